"""Two proxies with the configuration that the chart renders, a real etcd, and a stand-in for the API server that grants what the
chart's role does: the Service leads to the proxy that serves, when that is told to go and when it is killed.

Run by check.py in a network of its own, with a directory that has the binary's path and what was rendered (`site.json`)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import api
from proxies import Proxies, main

API = "127.0.0.1:8080"


class Site(Proxies):
    def __init__(self, directory):
        site = json.loads((directory / "site.json").read_text())
        self.service, self.grace, self.rules = (site[key] for key in ("service", "grace", "rules"))
        self.names = [f"understudy-{at}" for at in range(2)]
        self.api = api.Api(API, site["rules"], {name: site["labels"] for name in self.names})
        kubeconfig = {
            "clusters": [{"name": "a", "cluster": {"server": f"http://{API}"}}],
            "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        }
        (directory / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **kubeconfig}))
        pods = {name: f"127.0.0.{2 + at}" for at, name in enumerate(self.names)}
        super().__init__(directory, site["binary"], site["config"], pods, "127.0.0.1")

    def start(self, name):
        # As in an image without certificates.
        env = {"KUBECONFIG": str(self.dir / "kubeconfig"), "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
        super().start(name, env=env, edit=lambda text: text.replace("[::]", self.pods[name]))

    def situation(self):
        return f"the Service leads to {self.leads_to()}"

    def leads_to(self):
        """The pods that the Service selects."""
        return self.api.selected(self.service)

    def connect(self):
        """A client, by the Service."""
        [name] = self.leads_to()
        client = socket.create_connection((self.pods[name], 8445), 5)
        client.settimeout(30)
        return client


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
    site.kill(second)
    begun = time.monotonic()
    site.until("the other serves", lambda: site.leads_to() == [first])
    print(f"killed, the proxy was followed after {1000 * (time.monotonic() - begun):.0f} ms")
    site.connect().close()
    site.start(second)
    site.stands_by(second, first)

    # The last one that goes takes its label along.
    site.kill(second)
    site.until("nobody stands by", lambda: "understudy_standbys 0" in site.admin(first, "/metrics"))
    site.running[first].send_signal(signal.SIGTERM)
    assert site.running.pop(first).wait(site.grace) == 0
    assert site.leads_to() == [], f"nobody serves, and the Service leads to {site.leads_to()}"

    granted = {verb for rule in site.rules for verb in rule["verbs"]}
    assert not site.api.refused, f"not granted: {site.api.refused}"
    assert site.api.used == granted, f"granted, and not used: {granted - site.api.used}"


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
sys.exit(main(Site, run))
