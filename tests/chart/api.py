"""A stand-in for the API server: pods with labels, and whoever asks may do what the chart's role grants.

As a program: its address, and a file with `rules` and `pods`. What it refuses it says on standard error."""

import http.server
import json
import pathlib
import sys
import threading
import urllib.parse


class Api:
    """Pods with labels; whoever asks may do what the rules say."""

    def __init__(self, address, rules, pods):
        self.rules, self.pods, self.used, self.refused = rules, pods, set(), []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
                wanted = dict(part.split("=") for part in query["labelSelector"][0].split(","))
                if api.may("list", None):
                    items = [api.pod(name) for name in api.selected(wanted)]
                    self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
                else:
                    self.answer(403, {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403})

            def do_PATCH(self):
                name = urllib.parse.urlparse(self.path).path.rsplit("/", 1)[1]
                change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if api.may("patch", name):
                    for label, value in change["metadata"]["labels"].items():
                        api.pods[name] = {k: v for k, v in {**api.pods[name], label: value}.items() if v is not None}
                    self.answer(200, api.pod(name))
                else:
                    self.answer(403, {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403})

            def answer(self, status, body):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        host, port = address.split(":")
        server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def may(self, verb, name):
        for rule in self.rules:
            if verb in rule["verbs"] and rule["resources"] == ["pods"] and name in rule.get("resourceNames", [name]):
                self.used.add(verb)
                return True
        self.refused.append((verb, name))
        print(f"not granted: {verb} {name or 'pods'}", file=sys.stderr, flush=True)
        return False

    def selected(self, wanted):
        return [name for name, labels in self.pods.items() if wanted.items() <= labels.items()]

    def pod(self, name):
        return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": self.pods[name]}, "spec": {"containers": []}}


def main():
    address, file = sys.argv[1:]
    Api(address, **json.loads(pathlib.Path(file).read_text()))
    threading.Event().wait()


if __name__ == "__main__":
    main()
