"""A stand-in for the API server: pods with labels, and whoever asks may do what the chart's role grants.

As a program: its address, and a file with `rules` and `pods`, and perhaps `tls`: where it answers those who have a token, and by
which certificate. What it refuses it says on standard error."""

import http.server
import json
import pathlib
import ssl
import sys
import threading
import urllib.parse


class Api:
    """Pods with labels; whoever asks may do what the rules say."""

    def __init__(self, address, rules, pods, tls=None):
        self.rules, self.pods, self.used, self.refused = rules, pods, set(), []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            token = None

            def do_GET(self):
                query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
                wanted = dict(part.split("=") for part in query["labelSelector"][0].split(","))
                if self.may("list", None):
                    items = [api.pod(name) for name in api.selected(wanted)]
                    self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

            def do_PATCH(self):
                name = urllib.parse.urlparse(self.path).path.rsplit("/", 1)[1]
                change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.may("patch", name):
                    for label, value in change["metadata"]["labels"].items():
                        api.pods[name] = {k: v for k, v in {**api.pods[name], label: value}.items() if v is not None}
                    self.answer(200, api.pod(name))

            def may(self, verb, name):
                if self.token and self.headers["Authorization"] != f"Bearer {self.token}":
                    api.refuse(verb, name, "not by this token")
                    self.answer(401, {"kind": "Status", "status": "Failure", "reason": "Unauthorized", "code": 401})
                    return False
                if not api.may(verb, name):
                    self.answer(403, {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403})
                    return False
                return True

            def answer(self, status, body):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        serve(address, Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls["certificate"], tls["key"])
            serve(tls["address"], type("Secured", (Handler,), {"token": tls["token"]}), context)

    def may(self, verb, name):
        for rule in self.rules:
            if verb in rule["verbs"] and rule["resources"] == ["pods"] and name in rule.get("resourceNames", [name]):
                self.used.add(verb)
                return True
        self.refuse(verb, name, "not granted")
        return False

    def refuse(self, verb, name, why):
        self.refused.append((verb, name))
        print(f"{why}: {verb} {name or 'pods'}", file=sys.stderr, flush=True)

    def selected(self, wanted):
        return [name for name, labels in self.pods.items() if wanted.items() <= labels.items()]

    def pod(self, name):
        return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": self.pods[name]}, "spec": {"containers": []}}


def serve(address, handler, context=None):
    host, port = address.split(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), handler)
    if context:
        # One that is slow over its handshake keeps nobody else waiting: that is done by its own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    address, file = sys.argv[1:]
    Api(address, **json.loads(pathlib.Path(file).read_text()))
    threading.Event().wait()


if __name__ == "__main__":
    main()
