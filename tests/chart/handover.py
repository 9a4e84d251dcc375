"""Two proxies with the configuration that the chart renders, a real etcd, and a stand-in for the API server that grants what the
chart's role does: the Service leads to the proxy that serves, when that is told to go and when it is killed.

Run by check.py in a network of its own, with a directory that has the binary's path and what was rendered (`site.json`)."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import api

API = "127.0.0.1:8080"


class Site:
    def __init__(self, directory):
        self.dir = directory
        site = json.loads((directory / "site.json").read_text())
        self.binary, self.config, self.service, self.grace = (site[key] for key in ("binary", "config", "service", "grace"))
        self.names = [f"understudy-{at}" for at in range(2)]
        self.api = api.Api(API, site["rules"], {name: site["labels"] for name in self.names})
        self.rules, self.running = site["rules"], {}
        kubeconfig = {
            "clusters": [{"name": "a", "cluster": {"server": f"http://{API}"}}],
            "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        }
        (directory / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **kubeconfig}))
        peers = "http://127.0.0.1:2380"
        urls = ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]
        log = (directory / "etcd.log").open("w")
        self.etcd = subprocess.Popen(["etcd", "--data-dir", directory / "etcd", *urls], stdout=log, stderr=log)

    def start(self, name):
        """As its container is started, in a pod with an address of its own."""
        address = f"127.0.0.{2 + self.names.index(name)}"
        path = self.dir / f"{name}.toml"
        path.write_text(self.config.replace("[::]", address).replace("etcd://etcd:", "etcd://127.0.0.1:"))
        env = {**os.environ, "KUBECONFIG": str(self.dir / "kubeconfig"), "POD_NAME": name, "POD_IP": address}
        log = (self.dir / f"{name}.log").open("a")
        self.running[name] = subprocess.Popen([self.binary, "run", "--config", path], env=env, stdout=log, stderr=log)

    def admin(self, name, path):
        try:
            with socket.create_connection((f"127.0.0.{2 + self.names.index(name)}", 9645), 5) as stream:
                stream.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return b"".join(iter(lambda: stream.recv(65536), b"")).decode()
        except OSError:
            return ""

    def leads_to(self):
        """The pods that the Service selects."""
        return self.api.selected(self.service)

    def connect(self):
        """A client, by the Service."""
        [name] = self.leads_to()
        client = socket.create_connection((f"127.0.0.{2 + self.names.index(name)}", 8445), 5)
        client.settimeout(30)
        return client

    def until(self, what, is_so):
        begun = time.monotonic()
        while not is_so():
            if time.monotonic() - begun > 60:
                logs = "".join(path.read_text()[-1500:] for path in sorted(self.dir.glob("understudy-*.log")))
                raise AssertionError(f"waited in vain until {what}; the Service leads to {self.leads_to()}\n{logs}")
            time.sleep(0.005)

    def stands_by(self, name, leader):
        self.until(f"{leader} is heard", lambda: "understudy_standbys 1" in self.admin(leader, "/metrics"))
        answer = self.admin(name, "/available")
        assert " 200 " in answer and f"{leader} leads" in answer, f"{name} stands by, and says {answer}"

    def end(self, name):
        self.running.pop(name).kill()


def ended(client):
    """How a client's connection ends. Nobody sends it anything."""
    try:
        return client.recv(1)
    except ConnectionResetError:
        return None


def run(site):
    first, second = site.names
    site.start(first)
    site.until("the first serves", lambda: site.leads_to() == [first])
    site.start(second)
    site.stands_by(second, first)

    client = site.connect()
    site.until("the client is served", lambda: "understudy_connections 1\n" in site.admin(first, "/metrics"))
    begun = time.monotonic()
    site.running[first].send_signal(signal.SIGTERM)
    assert ended(client) is None, "the client's connection was closed, not reset"
    assert site.leads_to() == [second], f"the client is let go while the Service leads to {site.leads_to()}"
    site.connect().close()
    status = site.running.pop(first).wait(site.grace)
    took = time.monotonic() - begun
    assert status == 0, f"the proxy that was told to stop ended with status {status}"
    print(f"told to stop, the proxy has handed over and ended after {1000 * took:.0f} ms")

    # It crashes: its container is started again in the same pod, once the other leads. (One that is back before anybody has
    # noticed leads again itself.)
    site.start(first)
    site.stands_by(first, second)
    site.end(second)
    begun = time.monotonic()
    site.until("the other serves", lambda: site.leads_to() == [first])
    print(f"killed, the proxy was followed after {1000 * (time.monotonic() - begun):.0f} ms")
    site.connect().close()
    site.start(second)
    site.stands_by(second, first)

    # The last one that goes takes its label along.
    site.running.pop(second).kill()
    site.until("nobody stands by", lambda: "understudy_standbys 0" in site.admin(first, "/metrics"))
    site.running[first].send_signal(signal.SIGTERM)
    assert site.running.pop(first).wait(site.grace) == 0
    assert site.leads_to() == [], f"nobody serves, and the Service leads to {site.leads_to()}"

    granted = {verb for rule in site.rules for verb in rule["verbs"]}
    assert not site.api.refused, f"not granted: {site.api.refused}"
    assert site.api.used == granted, f"granted, and not used: {granted - site.api.used}"


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    site = Site(pathlib.Path(sys.argv[1]))
    try:
        run(site)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for child in [*site.running.values(), site.etcd]:
            child.kill()
    return 0


sys.exit(main())
