"""A client on strings: it does what it is told, a line of JSON at a time, and says what came of it.

puppet.py LIBRARY USER PASSWORD

LIBRARY is smbprotocol or impacket. Requests are sent when they are named and waited for when that is asked, so that any
number of them is in flight; a break notification is kept until somebody asks, and is acknowledged only on order. What is
asked of it is in `Puppet`, what it needs of a library in `Wire`. Integers and hexadecimal strings as on the wire.
"""

import json
import struct
import sys
import threading
import time

PATIENCE = 60
NOBODY_ASKED = 0xFFFFFFFFFFFFFFFF
OPLOCK_BREAK = 0x12
PENDING = 0x103
LEASE_TAG = b"RqLs"


class Breaks:
    """The break notifications of one connection (MS-SMB2 2.2.23)."""

    def __init__(self):
        self.seen = []
        self.more = threading.Condition()

    def takes(self, message):
        """Whether this was one."""
        command, message_id = struct.unpack_from("<H", message, 12)[0], struct.unpack_from("<Q", message, 24)[0]
        if message[:4] != b"\xfeSMB" or message_id != NOBODY_ASKED or command != OPLOCK_BREAK:
            return False
        body = message[64:]
        if len(body) == 24:
            told = {"to": body[2], "file": body[8:24].hex(), "session": struct.unpack_from("<Q", message, 40)[0]}
        else:
            epoch, flags = struct.unpack_from("<HL", body, 2)
            had, has = struct.unpack_from("<LL", body, 24)
            told = {"key": body[8:24].hex(), "from": had, "to": has, "epoch": epoch, "acknowledge": flags & 1 == 1}
        with self.more:
            self.seen.append(told)
            self.more.notify_all()
        return True


class Wire:
    """What a library must be able to do: a connection with one session and the share `share`."""

    def __init__(self, server, user, password, dialect, guid=None, previous=0):
        """`guid` is the ClientGuid, `previous` the PreviousSessionId."""
        raise NotImplementedError

    def session_id(self):
        raise NotImplementedError

    def drop(self):
        """Ends the TCP connection, and nothing else."""
        raise NotImplementedError

    def is_gone(self):
        """Whether the TCP connection has ended."""
        raise NotImplementedError

    def open(self, order):
        """Sends a CREATE; what it returns stands for the request."""
        raise NotImplementedError

    def read(self, file_id, offset, length):
        raise NotImplementedError

    def write(self, file_id, offset, data):
        raise NotImplementedError

    def lock(self, file_id, offset, length, flags):
        raise NotImplementedError

    def control(self, file_id, code, data):
        """Sends an FSCTL that is answered without data."""
        raise NotImplementedError

    def close(self, file_id):
        raise NotImplementedError

    def acknowledge(self, body):
        raise NotImplementedError

    def echo(self):
        raise NotImplementedError

    def listen(self, seconds):
        """Takes in what comes within this time, or less."""
        raise NotImplementedError

    def is_ready(self, request):
        raise NotImplementedError

    def wait(self, request):
        """Status and body of the final answer."""
        raise NotImplementedError


def acknowledgement(order):
    """The body of an OPLOCK_BREAK acknowledgement (MS-SMB2 2.2.24)."""
    if "key" in order:
        return struct.pack("<HHL16sLQ", 36, 0, 0, bytes.fromhex(order["key"]), order["to"], 0)
    return struct.pack("<HBBL16s", 24, order["to"], 0, 0, bytes.fromhex(order["file"]))


def lease_context(lease):
    """What a CREATE asks a lease by (MS-SMB2 2.2.13.2.8, 2.2.13.2.10)."""
    data = struct.pack("<16sLLQ", bytes.fromhex(lease["key"]), lease["state"], 4 if lease["parent"] else 0, 0)
    if lease["version"] == 2:
        data += struct.pack("<16sHH", bytes.fromhex(lease["parent"] or "00" * 16), lease["epoch"], 0)
    return data


def granted(body):
    """FileId, oplock level, lease and contexts of a CREATE's answer (MS-SMB2 2.2.14)."""
    offset, length = struct.unpack_from("<LL", body, 80)
    action, size = struct.unpack_from("<L", body, 4)[0], struct.unpack_from("<Q", body, 48)[0]
    said = {"file": body[64:80].hex(), "oplock": body[2], "action": action, "size": size, "contexts": {}}
    contexts = body[offset - 64 : offset - 64 + length]
    while contexts:
        following, name, name_length, _, data, data_length = struct.unpack_from("<LHHHHL", contexts)
        tag, value = contexts[name : name + name_length], contexts[data : data + data_length]
        said["contexts"][tag.decode("latin-1")] = value.hex()
        if tag == LEASE_TAG:
            said["lease"] = struct.unpack_from("<L", value, 16)[0]
            said["epoch"] = struct.unpack_from("<H", value, 48)[0] if data_length == 52 else None
        contexts = contexts[following:] if following else b""
    return said


class Puppet:
    """Names of connections, files and requests are the master's."""

    def __init__(self, wire, user, password):
        self.wire, self.user, self.password = wire, user, password
        self.connections, self.requests = {}, {}

    def obey(self, order):
        verb = order.pop("do")
        if verb == "connect":
            return self.connect(**order)
        if verb in ("ready", "wait"):
            return getattr(self, verb)(order["tag"])
        connection = self.connections[order["as"]]
        if verb == "breaks":
            return self.breaks(connection, order["count"], order["seconds"])
        if verb == "drop":
            connection.drop()
            return {}
        if verb == "gone":
            return {"gone": connection.is_gone()}
        self.requests[order["tag"]] = (verb, connection, self.send(connection, verb, order))
        return {}

    def connect(self, server, dialect, user=None, **rest):
        """`guid` and `previous` may be among the rest."""
        name = rest.pop("as")
        connection = self.wire(server, user or self.user, self.password, dialect, **rest)
        self.connections[name] = connection
        return {"session": connection.session_id()}

    def send(self, connection, verb, order):
        if verb == "open":
            return connection.open(order)
        if verb == "acknowledge":
            return connection.acknowledge(acknowledgement(order))
        if verb == "echo":
            return connection.echo()
        file_id = bytes.fromhex(order["file"])
        if verb == "read":
            return connection.read(file_id, order["offset"], order["length"])
        if verb == "write":
            return connection.write(file_id, order["offset"], bytes.fromhex(order["data"]))
        if verb == "lock":
            return connection.lock(file_id, order["offset"], order["length"], order["flags"])
        if verb == "control":
            return connection.control(file_id, order["code"], bytes.fromhex(order["data"]))
        if verb == "close":
            return connection.close(file_id)
        raise ValueError(f"no such order: {verb}")

    def ready(self, tag):
        _, connection, request = self.requests[tag]
        return {"ready": connection.is_ready(request)}

    def wait(self, tag):
        verb, connection, request = self.requests.pop(tag)
        status, body = connection.wait(request)
        said = {"status": status}
        if status == 0 and verb == "open":
            said.update(granted(body))
        if status == 0 and verb == "read":
            offset, length = body[2] - 64, struct.unpack_from("<L", body, 4)[0]
            said["data"] = body[offset : offset + length].hex()
        return said

    def breaks(self, connection, count, seconds):
        """All notifications so far, once there are so many of them, or the time is over."""
        until = time.monotonic() + seconds
        while len(connection.breaks.seen) < count and (left := until - time.monotonic()) > 0:
            connection.listen(left)
        return {"breaks": list(connection.breaks.seen)}


def main(library, user, password):
    if library == "smbprotocol":
        from puppet_smbprotocol import Smbprotocol as wire
    else:
        from puppet_impacket import Impacket as wire
    puppet = Puppet(wire, user, password)
    for line in sys.stdin:
        print(json.dumps(puppet.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
