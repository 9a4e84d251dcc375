"""The chart's unit tests, helm/tests/*_test.yaml, in the form of the Helm plugin unittest, which runs them as well. Of its
assertions those are known here that the suites use; one that is not known fails."""

import re

import yaml

import helm

ABSENT = object()


def run(binary):
    """Runs all suites. The number of tests, and what failed."""
    count, failures = 0, []
    for path in sorted((helm.CHART / "tests").glob("*_test.yaml")):
        suite = yaml.safe_load(path.read_text())
        for test in suite["tests"]:
            count += 1
            for what in failed(binary, suite, test):
                failures.append(f"{path.name}: {suite['suite']}: {test['it']}: {what}")
    return count, failures


def failed(binary, suite, test):
    """What is not as a test says."""
    release = {**suite.get("release", {}), **test.get("release", {})}
    values = {}
    for settings in (suite.get("set", {}), test.get("set", {})):
        for key, value in settings.items():
            put(values, key, value)
    files = [helm.CHART / "tests" / name for name in suite.get("values", []) + test.get("values", [])]
    only = test.get("templates", suite["templates"])
    name, namespace = release["name"], release["namespace"]
    try:
        documents, error = helm.sourced(binary, files, values, name, namespace), None
    except helm.Refused as refused:
        documents, error = [], str(refused)
    for assertion in test["asserts"]:
        kind = next(key for key in assertion if key not in ("template", "documentIndex", "documentSelector"))
        wanted = assertion[kind]
        if kind == "failedTemplate":
            if error is None:
                yield "it rendered, and was to fail"
            elif not re.search((wanted or {}).get("errorPattern", ""), error):
                yield f"it failed with other words: {error.strip()}"
            continue
        if error is not None:
            yield f"it does not render: {error.strip()}"
            return
        shown = [assertion["template"]] if "template" in assertion else only
        found = [document for source, document in documents if source in shown]
        if "documentIndex" in assertion:
            found = found[assertion["documentIndex"] :][:1]
        if "documentSelector" in assertion:
            selector = assertion["documentSelector"]
            found = [document for document in found if get(document, selector["path"]) == selector["value"]]
        yield from judge(kind, wanted, found)


def judge(name, wanted, documents):
    if name == "hasDocuments":
        if len(documents) != wanted["count"]:
            yield f"{len(documents)} documents, not {wanted['count']}"
        return
    if not documents:
        yield "no document"
    for document in documents:
        value = document if name in ("isKind", "isAPIVersion") else get(document, wanted["path"])
        if not holds(name, wanted, value):
            yield f"{name} {wanted}: {'nothing there' if value is ABSENT else value!r}"


def holds(name, wanted, value):
    match name:
        case "isKind":
            return value["kind"] == wanted["of"]
        case "isAPIVersion":
            return value["apiVersion"] == wanted["of"]
        case "exists":
            return value is not ABSENT
        case "notExists":
            return value is ABSENT
        case "equal":
            return value == wanted["value"]
        case "notEqual":
            return value != wanted["value"]
        case "matchRegex":
            return isinstance(value, str) and re.search(wanted["pattern"], value) is not None
        case "notMatchRegex":
            return isinstance(value, str) and re.search(wanted["pattern"], value) is None
        case "contains":
            return isinstance(value, list) and wanted["content"] in value
        case "lengthEqual":
            return value is not ABSENT and len(value) == wanted["count"]
    raise AssertionError(f"the assertion {name} is not known to this runner")


def steps(path):
    """`a.b[0]["c.d"]` as a, b, 0, c.d."""
    for quoted, number, word in re.findall(r'\["([^"]+)"\]|\[(\d+)\]|([^.\[\]]+)', path):
        yield int(number) if number else quoted or word


def get(document, path):
    for step in steps(path):
        if isinstance(document, list) and isinstance(step, int) and step < len(document):
            document = document[step]
        elif isinstance(document, dict) and step in document:
            document = document[step]
        else:
            return ABSENT
    return document


def put(values, path, value):
    *way, last = steps(path)
    for step in way:
        values = values.setdefault(step, {})
    values[last] = value
