"""The chart's checks: lint and render by Helm 3 and 4 for all value sets, the schemas of Kubernetes, golden renders, unit tests,
values that have to be refused, and the configuration that is rendered against the binary that has to read it."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

import helm
import readme
import suites

MINORS = ["1.35", "1.36", "1.37"]
GOLDEN = helm.HERE / "golden"
CUSTOM = json.loads((helm.HERE / "monitoring.schema.json").read_text())


def value_sets():
    """All that is shipped: those of the checks, and the examples."""
    return sorted([*(helm.CHART / "ci").glob("*.yaml"), *(helm.CHART / "examples").glob("*values.yaml")])


def lint():
    for binary in helm.HELMS:
        for path in value_sets():
            helm.helm(binary, "lint", "--strict", helm.CHART, "--values", path)


def same_by_both():
    for path in value_sets():
        three, four = (helm.ordered(helm.template(binary, [path])) for binary in helm.HELMS)
        assert three == four, f"{path.name}: Helm 3 and 4 render it otherwise"
        names = [helm.key_of(document) for document in three]
        assert len(names) == len(set(names)), f"{path.name}: an object comes twice: {names}"


def schemas_of_kubernetes():
    for path in value_sets():
        for document in helm.template(helm.HELMS[-1], [path]):
            if document["apiVersion"].startswith("monitoring.coreos.com/"):
                jsonschema.validate(document, CUSTOM[document["kind"]])
                continue
            for minor in MINORS:
                try:
                    kubernetes_validate.validate(document, minor, strict=True)
                except kubernetes_validate.ValidationError as error:
                    raise AssertionError(f"{path.name}: {helm.key_of(document)} in {minor}: {error.message}") from None


def golden_renders(write=False):
    for path in value_sets():
        now = helm.ordered(helm.template(helm.HELMS[-1], [path]))
        file = GOLDEN / f"{path.stem}.json"
        if write:
            file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
            continue
        assert file.exists(), f"{file.name} is missing: tests/chart.sh golden"
        was = json.loads(file.read_text())
        for old, new in zip(was, now, strict=False):
            assert old == new, f"{path.name}: {helm.key_of(new)} is not as in {file.name}; on purpose? tests/chart.sh golden"
        assert len(was) == len(now), f"{path.name}: there are other objects than in {file.name}; on purpose? tests/chart.sh golden"
    if not write:
        known, there = {f"{path.stem}.json" for path in value_sets()}, {path.name for path in GOLDEN.iterdir()}
        assert known == there, f"golden renders of no value set: {there - known}"


def unit_tests():
    for binary in helm.HELMS:
        count, failures = suites.run(binary)
        assert count > 0, "no unit test"
        assert not failures, "\n".join(failures)
    print(f"      {count} unit tests, by both")


# Values that are wrong, and what Helm 3 or Helm 4 has to say of them.
WRONG = [
    ({"replicaCount": 3}, ["store.etcd.endpoints is missing: 3 proxies elect", "set replicaCount to 1"]),
    ({"replicaCount": 6}, ["replicaCount", "5"]),
    ({"config": {"ha": {"lease": "1s"}}}, ["config.ha.lease = 1s is not from 2000ms"]),
    ({"config": {"ha": {"confirm": "3s"}}}, ["confirm is not less than config.ha.lease"]),
    ({"vip": {"mode": "own"}}, ["give vip.addresses and vip.interface"]),
    ({"vip": {"addresses": ["10.0.0.100/24"]}}, ["are for vip.mode = own"]),
    ({"vip": {"mode": "own", "addresses": ["10.0.0.100"], "interface": "eth0"}}, ["vip", "addresses", "pattern"]),
    ({"vip": {"mode": "arp"}}, ["vip", "mode", "own"]),
    ({"vip": {"mode": "own", "addresses": ["10.0.0.100/24"], "interface": "eth0"}, "networkPolicy": {"enabled": True}}, ["no NetworkPolicy reaches"]),
    ({"ports": {"heartbeat": 9645}}, ["ports.admin and ports.heartbeat are the same"]),
    ({"fence": {"kubernetes": {"enabled": True, "pods": ["samba-0"]}}}, ["fence.kubernetes.pods is for nodes.endpointSlices"]),
    ({"nodes": {"list": [{"name": "samba-0"}]}}, ["nodes", "address"]),
    ({"nodes": {"list": [{"name": "samba-0", "address": "10.0.0.10"}]}}, ["address", "pattern"]),
    ({"nodes": {"list": []}}, ["no Samba nodes", "nodes.statefulSet.name"]),
    ({"nodes": {"list": [{"name": "a", "address": "b:445"}] * 2}}, ["two nodes have the same name"]),
    ({"nodes": {"list": [], "dns": "samba:445"}}, ["nodes that are found need a fence"]),
    ({"nodes": {"list": [], "dns": "10.0.0.1:445"}}, ["dns", "pattern"]),
    ({"nodes": {"endpointSlices": {"service": "samba"}}}, ["nodes.endpointSlices.service and nodes.list are given: choose one"]),
    ({"nodes": {"list": [], "endpointSlices": {"service": "samba.files"}}}, ["service", "pattern"]),
    ({"nodes": {"statefulSet": {"name": "samba"}}}, ["choose one", "headless Service"]),
    ({"config": {"takeoverDeadline": "soon"}}, ["takeoverDeadline", "'^[0-9]+(ms|s|m|min)$'"]),
    ({"config": {"takeoverDeadline": 60}}, ["takeoverDeadline", "string"]),
    ({"config": {"takeover_deadline": "60s"}}, ["config", "takeover_deadline", "not allowed"]),
    ({"config": {"health": {"probeInterval": "1s"}}}, ["silenceAfter", "twice"]),
    ({"config": {"shutdownGrace": "30s"}}, ["terminationGracePeriodSeconds = 30 is too short"]),
    (
        {"replicaCount": 2, "config": {"shutdownGrace": "21s"}, "store": {"etcd": {"endpoints": ["etcd:2379"]}}},
        ["terminationGracePeriodSeconds = 30 is too short", "10 s more"],
    ),
    ({"config": {"log": {"level": "loud"}}}, ["log", "level", "debug"]),
    ({"config": {"compare": {"user": "alice"}}}, ["both, user and shares", "needs a hash"]),
    ({"fence": {"exec": ["fence-node"]}}, ["fence-node is no absolute path"]),
    ({"fence": {"kubernetes": {"enabled": True}}}, ["for pods", "nodes.statefulSet", "nodes.endpointSlices"]),
    ({"store": {"etcd": {"endpoints": ["http://etcd:2379"]}}}, ["endpoints", "pattern"]),
    ({"store": {"etcd": {"tls": {"cert": "tls.crt"}}}}, ["both, cert and key"]),
    ({"service": {"type": "loadbalancer"}}, ["service", "LoadBalancer"]),
    ({"ports": {"smb": 445}}, ["ports", "smb", "1,?024"]),
    ({"image": {"digest": "latest"}}, ["image", "digest", "sha256"]),
    ({"store": {"file": {"size": "lots"}}}, ["size", "pattern"]),
    ({"credentials": {"smbpasswd": {"hashes": "alice:..."}}}, ["smbpasswd", "hashes", "not allowed"]),
    ({"podDisruptionBudget": {"minAvailable": 1}}, ["one of minAvailable and maxUnavailable"]),
]


def wrong_values():
    for binary in helm.HELMS:
        for values, words in WRONG:
            try:
                helm.template(binary, [helm.CHART / "ci/nodes-list.yaml"], values)
            except helm.Refused as refused:
                said = str(refused)
            else:
                raise AssertionError(f"not refused: {values}")
            for word in words:
                assert word in said or re.search(word, said), f"{values}: nothing of {word!r} in: {said}"
            assert len(said) < 600, f"{values}: too long to be read: {said}"
    print(f"      {len(WRONG)} wrong values, by both")


def table_of_values():
    wanted, there = readme.rewritten()
    assert wanted == there, "the table in helm/README.md is not made of values.yaml: tests/chart.sh readme"


def versions():
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    product = re.search(r'^version = "(.+)"$', (helm.ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert (chart["version"], chart["appVersion"]) == (product, product), "Chart.yaml has another version than Cargo.toml"


# What no upgrade may change, for the API server refuses it; as it was in the chart's first version.
FIXED = {
    "serviceName": "understudy-pods",
    "podManagementPolicy": "Parallel",
    "selector": {
        "matchLabels": {
            "app.kubernetes.io/component": "proxy",
            "app.kubernetes.io/instance": "understudy",
            "app.kubernetes.io/name": "understudy",
        }
    },
    "volumeClaimTemplates": None,
}


def upgrades_and_rollbacks():
    """From the first version to each value set, and from each to each other, as far as the names stay."""
    for path in value_sets():
        documents = helm.template(helm.HELMS[-1], [path], {"fullnameOverride": ""})
        spec = helm.the(documents, "StatefulSet")["spec"]
        for field, fixed in FIXED.items():
            assert spec.get(field) == fixed, f"{path.name}: an upgrade would change {field} of the StatefulSet: {spec.get(field)}"
        # The subject and the role of a binding cannot be changed: a role of another kind has another name.
        for document in documents:
            if document["kind"].endswith("RoleBinding") and "helm.sh/chart" in document["metadata"]["labels"]:
                assert document["roleRef"]["name"] == document["metadata"]["name"], f"{path.name}: {helm.key_of(document)}"


def series_exist():
    known = set(re.findall(r"`(\w+)", (helm.ROOT / "README.md").read_text()))
    rule = helm.the(helm.template(helm.HELMS[-1], [helm.CHART / "ci/everything.yaml"]), "PrometheusRule")
    for alert in rule["spec"]["groups"][0]["rules"]:
        for name in re.findall(r"understudy_(\w+)", alert["expr"]):
            assert name in known, f"{alert['alert']}: README.md knows no series {name}"


def binary():
    if "UNDERSTUDY_BIN" in os.environ:
        return pathlib.Path(os.environ["UNDERSTUDY_BIN"])
    built = [helm.TARGET / profile / "understudy" for profile in ("release", "debug")]
    built = [path for path in built if path.exists()]
    assert built, "no understudy is built: make build"
    return max(built, key=lambda path: path.stat().st_mtime)


def ask_binary(text):
    """What `check` says of a configuration, in a network of its own where nothing can be reached: exit status, standard output,
    standard error."""
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    pod = {"POD_NAME": "understudy-0", "POD_IP": "fd00::7"}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        asked = [*alone, binary(), "check", "--config", file.name]
        done = subprocess.run(asked, env={**os.environ, **pod}, text=True, capture_output=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def config_of(files=(), values=None, suffix=""):
    documents = helm.template(helm.HELMS[-1], files, values)
    texts = {d["metadata"]["name"]: d["data"]["understudy.toml"] for d in documents if "understudy.toml" in d.get("data", {})}
    return next(text for name, text in texts.items() if name.endswith("-test") == (suffix == "-test"))


def binary_reads_it():
    for path in value_sets():
        for suffix in ("", "-test"):
            text = config_of([path], suffix=suffix)
            status, said, mistakes = ask_binary(text)
            assert status != 2 and "no mistake" in said, f"{path.name}{suffix}: understudy refuses what is rendered:\n{mistakes}"


def every_key_is_there():
    """Whatever key the binary knows, the chart sets in one value set or another."""
    texts = [config_of([path]) for path in value_sets()]

    def known(extra):
        _, _, mistakes = ask_binary(extra)
        return re.search(r"known here: (.+)", mistakes)[1].split(", ")

    for key in known("never-a-key = 1\n"):
        header = f"[[{key}]]" if key == "nodes" else f"[{key}]"
        sections = [text.split(f"{header}\n", 1)[1].split("\n[", 1)[0] for text in texts if header in text]
        if not sections:
            assert any(re.search(rf"^{key} = ", text, re.MULTILINE) for text in texts), f"the chart has no value for {key}"
            continue
        for inner in known(f"{header}\nnever-a-key = 1\n"):
            there = any(re.search(rf"^{inner} = ", section, re.MULTILINE) for section in sections)
            assert there, f"the chart has no value for [{key}] {inner}"


def limits_agree():
    """What is a length of time has the limits that the binary names, and what is one of several words has its words."""
    base = config_of([helm.CHART / "ci/everything.yaml"])
    schema = json.loads((helm.CHART / "values.schema.json").read_text())
    section, count = [], 0
    for line in base.splitlines():
        if found := re.match(r"\[+(\w+)\]+", line):
            section = [found[1]]
        found = re.match(r"(\w+) = (\S+)$", line)
        if not found:
            continue
        path = [camel(word) for word in [*section, found[1]]]
        match path:
            case ["store", "onStoreFailure"]:
                path = ["store", "onFailure"]
            case ["store", key]:
                path = ["store", "etcd", key]
            case ["fence", *_]:
                pass
            case _:
                path = ["config", *path]
        value = found[2]
        wrong = base.replace(line, f'{found[1]} = {"-1" if value.isdigit() else json.dumps("never")}')
        _, _, mistakes = ask_binary(wrong)
        if limits := re.search(r"from (\d+)ms to (\d+)ms", mistakes):
            for number, is_good in zip(edges(*map(int, limits.groups())), (True, True, False, False), strict=True):
                assert accepted(path, f"{number}ms") == is_good, f"{'.'.join(path)} = {number}ms: chart and binary disagree"
            count += 1
        elif limits := re.search(r"write a number from (\d+) to (\d+)", mistakes):
            part = leaf(schema, path)
            # 0 workers: as many as there are cores.
            low = 0 if path[-1] == "workers" else int(limits[1])
            assert (part["minimum"], part["maximum"]) == (low, int(limits[2])), f"{'.'.join(path)}: other limits than in the binary"
            count += 1
        elif words := re.search(r'write (one of )?("?\w+"?(?:, "?\w+"?)*(?: or "?\w+"?)?)', mistakes.split("is not known")[-1]):
            if "is not known" not in mistakes:
                continue
            words = sorted(word for word in re.findall(r"\w+", words[2]) if word != "or")
            assert sorted(leaf(schema, path)["enum"]) == words, f"{'.'.join(path)}: other words than in the binary: {words}"
            count += 1
    # 14 lengths of time, 2 numbers, 4 words: fewer mean that the binary says it in other words than are looked for here.
    assert count >= 20, f"only {count} limits were compared"
    print(f"      {count} limits and lists of words")


def edges(low, high):
    return low, high, low - 1, high + 1


def accepted(path, value):
    if value.startswith("-"):
        return False
    values = {}
    suites.put(values, ".".join(path), value)
    # What must fit the others fits them.
    suites.put(values, "terminationGracePeriodSeconds", 3600)
    if path[-1] == "probeInterval":
        suites.put(values, "config.health.silenceAfter", "10m")
    if path[-1] == "silenceAfter":
        suites.put(values, "config.health.probeInterval", "50ms")
    if path[-1] == "confirm":
        suites.put(values, "config.ha.lease", "60s")
    try:
        helm.template(helm.HELMS[-1], [helm.CHART / "ci/nodes-list.yaml"], values)
    except helm.Refused:
        return False
    return True


def camel(word):
    first, *rest = word.split("_")
    return first + "".join(part.title() for part in rest)


def leaf(schema, path):
    for key in path:
        schema = schema["properties"][key]
    return schema


def hand_over():
    """Two processes with what is rendered: see handover.py."""
    documents = helm.template(helm.HELMS[-1], [helm.CHART / "ci/two-proxies.yaml"])
    pod = helm.the(documents, "StatefulSet")["spec"]["template"]
    by_processes("handover.py", {
        "config": config_of([helm.CHART / "ci/two-proxies.yaml"]),
        "labels": pod["metadata"]["labels"],
        "grace": pod["spec"]["terminationGracePeriodSeconds"],
        "service": next(d for d in documents if helm.key_of(d)[1:] == ("Service", "default", "understudy"))["spec"]["selector"],
        "rules": helm.the(documents, "Role")["rules"],
    })


def own_address():
    """Two processes that take the floating address themselves: see own_address.py. One address, and one of each family."""
    files = [helm.CHART / "ci/own-address.yaml"]
    for values in (None, {"vip": {"addresses": ["10.0.0.64/24", "fd00::64/64"]}}):
        documents = helm.template(helm.HELMS[-1], files, values)
        spec = helm.the(documents, "StatefulSet")["spec"]["template"]["spec"]
        by_processes("own_address.py", {
            "config": config_of(files, values),
            "pod": spec,
            "addresses": (values or yaml.safe_load(files[0].read_text()))["vip"]["addresses"],
        })


def by_processes(script, site):
    """Runs a script with real processes, in a network and with mounts of its own."""
    if not shutil.which("etcd"):
        assert "UNDERSTUDY_REQUIRE_ETCD" not in os.environ, "there is no etcd"
        print("      NOT RUN: there is no etcd on this machine")
        return
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    alone += [] if os.geteuid() == 0 else ["--map-root-user"]
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "site.json").write_text(json.dumps({"binary": str(binary().resolve()), **site}))
        asked = [*alone, sys.executable, helm.HERE / script, directory]
        done = subprocess.run(asked, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        print(f"      {line}")


CHECKS = [
    lint, same_by_both, schemas_of_kubernetes, golden_renders, unit_tests, wrong_values, table_of_values, versions,
    upgrades_and_rollbacks, series_exist, binary_reads_it, every_key_is_there, limits_agree, hand_over, own_address,
]


def main():
    match sys.argv[1:]:
        case ["readme"]:
            wanted, _ = readme.rewritten()
            (helm.CHART / "README.md").write_text(wanted)
            return 0
        case ["golden"]:
            golden_renders(write=True)
            return 0
        case []:
            pass
        case _:
            print("chart.sh [readme | golden]", file=sys.stderr)
            return 2
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check()
            print(f"ok    {name}")
        except (AssertionError, helm.Refused, jsonschema.ValidationError) as error:
            failed += 1
            print(f"WRONG {name}: {error}")
    print(f"chart: {len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
