"""Two machines, and on each a proxy with what the chart renders for `vip.mode: own`, with the capabilities of its container and
no others: the floating address is where the proxy is that serves, when that is told to go and when it is killed; and nobody has
it when none is left.

Run by check.py in a network and with mounts of its own, with a directory that has the binary's path and what was rendered
(`site.json`)."""

import ipaddress
import json
import signal
import socket
import subprocess
import sys
import time

from proxies import Proxies, main

PORT = 445


class Site(Proxies):
    def __init__(self, directory):
        site = json.loads((directory / "site.json").read_text())
        self.pod = site["pod"]
        [self.container] = self.pod["containers"]
        self.floating = [ipaddress.ip_interface(text).ip for text in site["addresses"]]
        self.names = [f"understudy-{at}" for at in range(2)]
        place = "fd00::" if self.floating[0].version == 6 else "10.0.0."
        pods = {name: f"{place}{11 + at}" for at, name in enumerate(self.names)}
        self.make_network()
        super().__init__(directory, site["binary"], site["config"], pods, "10.0.0.1")

    def make_network(self):
        """A machine for each, and this one, on one wire."""
        # Names of networks are files there.
        ip_of("mount", "-t", "tmpfs", "tmpfs", "/run")
        ip_of("ip", "link", "set", "lo", "up")
        ip_of("ip", "link", "add", "br0", "type", "bridge")
        for at, name in enumerate(self.names):
            ip_of("ip", "netns", "add", name)
            ip_of("ip", "link", "add", f"port{at}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip_of("ip", "link", "set", f"port{at}", "master", "br0", "up")
            ip_of("ip", "-n", name, "link", "set", "lo", "up")
            with_addresses(11 + at, "eth0", "-n", name)
        with_addresses(1, "br0")

    def start(self, name):
        security = self.container["securityContext"]
        assert self.pod["hostNetwork"] and security["runAsUser"] == 0 and security["capabilities"]["drop"] == ["ALL"]
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in security["capabilities"]["add"])])
        prefix = ["ip", "netns", "exec", name, "setpriv", "--no-new-privs", f"--bounding-set={kept}", f"--inh-caps={kept}"]
        super().start(name, prefix)

    def holders(self, enough=all):
        """Who has all of the floating addresses."""
        shown = {name: ip_of("ip", "-n", name, "-o", "address", "show", "dev", "eth0") for name in self.names}
        return [name for name in self.names if enough(f" {address}/" in shown[name] for address in self.floating)]

    def situation(self):
        return f"{self.holders()} have {self.floating}"

    def connects_to(self, name):
        """Clients that go to the floating addresses come to this proxy."""
        series = "understudy_connections {}\n"
        self.until("earlier clients are gone", lambda: series.format(0) in self.admin(name, "/metrics"))
        clients = []
        self.until("clients can connect", lambda: all(self.connect(address, clients) for address in self.floating[len(clients):]))
        self.until("they are served", lambda: series.format(len(clients)) in self.admin(name, "/metrics"))
        for client in clients:
            client.close()

    def connect(self, address, clients):
        """As clients do it, again when they are refused: the address comes before the proxy listens, and the machine of one that was
        killed has it, and refuses, for a moment more."""
        try:
            clients.append(socket.create_connection((str(address), PORT), 5))
        except OSError:
            return False
        return True


def ip_of(*words):
    return subprocess.run(words, check=True, text=True, capture_output=True).stdout


def with_addresses(number, device, *where):
    ip_of("ip", *where, "link", "set", device, "up")
    ip_of("ip", *where, "address", "add", f"10.0.0.{number}/24", "dev", device)
    ip_of("ip", *where, "address", "add", f"fd00::{number}/64", "dev", device, "nodad")


def run(site):
    first, second = site.names
    site.start(first)
    site.until("the first has the address", lambda: site.holders() == [first])
    site.connects_to(first)
    site.start(second)
    site.stands_by(second, first)
    assert site.holders() == [first], f"{site.holders()} have it"

    begun = time.monotonic()
    site.running[first].send_signal(signal.SIGTERM)
    site.until("the second has the address, alone", lambda: site.holders() == site.holders(any) == [second])
    moved = time.monotonic() - begun
    status = site.running.pop(first).wait(site.pod["terminationGracePeriodSeconds"])
    assert status == 0, f"the proxy that was told to stop ended with status {status}"
    site.connects_to(second)
    print(f"told to stop, the proxy was followed after {1000 * moved:.0f} ms, and {' and '.join(map(str, site.floating))} moved along")

    site.start(first)
    site.stands_by(first, second)
    site.kill(second)
    begun = time.monotonic()
    site.until("the other has the address", lambda: first in site.holders())
    print(f"killed, it was followed after {1000 * (time.monotonic() - begun):.0f} ms")
    site.connects_to(first)
    site.until("the dead one has it no more", lambda: site.holders() == site.holders(any) == [first])

    site.running[first].send_signal(signal.SIGTERM)
    assert site.running.pop(first).wait(site.pod["terminationGracePeriodSeconds"]) == 0
    assert site.holders(any) == [], f"nobody serves, and {site.holders(any)} have the address"


sys.exit(main(Site, run))
