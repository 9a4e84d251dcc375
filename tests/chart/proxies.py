"""Proxies as processes with what the chart renders, each in a pod with an address of its own, and one etcd for them."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request


class Proxies:
    """`files`: a directory for all that is written; `pods`: the addresses of pods by their names."""

    def __init__(self, files, binary, config, pods, etcd):
        self.dir, self.binary, self.pods, self.running = files, binary, pods, {}
        self.config = config.replace("etcd://etcd:", f"etcd://{etcd}:")
        self.etcd = self.start_etcd(etcd)

    def start_etcd(self, address):
        """Without it the first proxy would give up after a while, and nobody here starts it anew."""
        peers, clients = "http://127.0.0.1:2380", f"http://{address}:2379"
        urls = ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]
        urls += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
        log = (self.dir / "etcd.log").open("w")
        etcd = subprocess.Popen(["etcd", "--data-dir", self.dir / "etcd", *urls], stdout=log, stderr=log)

        def is_ready():
            try:
                with urllib.request.urlopen(f"{clients}/health", timeout=5) as answer:
                    return b'"true"' in answer.read()
            except OSError:
                return False

        self.until("etcd is ready", is_ready)
        return etcd

    def start(self, name, prefix=(), env=None, edit=lambda text: text):
        """As its container is started."""
        path = self.dir / f"{name}.toml"
        path.write_text(edit(self.config))
        env = {**os.environ, **(env or {}), "POD_NAME": name, "POD_IP": self.pods[name]}
        log = (self.dir / f"{name}.log").open("a")
        command = [*prefix, self.binary, "run", "--config", path]
        self.running[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def admin(self, name, path):
        try:
            with socket.create_connection((self.pods[name], 9645), 5) as stream:
                stream.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return b"".join(iter(lambda: stream.recv(65536), b"")).decode()
        except OSError:
            return ""

    def until(self, what, is_so):
        begun = time.monotonic()
        while not is_so():
            if time.monotonic() - begun > 60:
                logs = "".join(path.read_text()[-1500:] for path in sorted(self.dir.glob("understudy-*.log")))
                raise AssertionError(f"waited in vain until {what}; {self.situation()}\n{logs}")
            time.sleep(0.005)

    def situation(self):
        return ""

    def stands_by(self, name, leader):
        """Its admin page comes after its heartbeats."""
        self.until(f"{leader} is heard", lambda: "understudy_standbys 1" in self.admin(leader, "/metrics"))
        self.until(f"{name} answers", lambda: self.admin(name, "/available"))
        answer = self.admin(name, "/available")
        assert " 200 " in answer and f"{leader} leads" in answer, f"{name} stands by, and says {answer}"

    def kill(self, name):
        """It is gone when this returns."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop_all(self):
        for child in [*self.running.values(), self.etcd]:
            child.kill()


def main(site_of, run):
    """Runs it in the directory that is the argument, and stops all that was started. The exit status."""
    site = site_of(pathlib.Path(sys.argv[1]))
    try:
        run(site)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        site.stop_all()
    return 0
