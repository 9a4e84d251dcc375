"""A puppet made of smbprotocol. Its receiver takes every message for an answer and dies of one that nobody asked for; so
break notifications are taken out before it sees them."""

import uuid

import puppet
from smbprotocol.connection import Connection, Dialects, SMB2Echo
from smbprotocol.create_contexts import SMB2CreateContextRequest
from smbprotocol.exceptions import SMBResponseException
from smbprotocol.ioctl import IOCTLFlags, SMB2IOCTLRequest
from smbprotocol.open import Open, SMB2CloseRequest, SMB2LockElement
from smbprotocol.session import Session, SMB2SessionSetupRequest
from smbprotocol.structure import BytesField, Structure
from smbprotocol.tree import TreeConnect

DIALECTS = {"2.1": Dialects.SMB_2_1_0, "3.0": Dialects.SMB_3_0_0, "3.1.1": Dialects.SMB_3_1_1}
NORMAL = 0x80
CREDITS = 32


class Sieve:
    """A transport that keeps break notifications from who reads."""

    def __init__(self, transport, breaks):
        self.transport, self.breaks = transport, breaks

    def recv(self, timeout):
        while True:
            message = self.transport.recv(timeout)
            if not message or not self.breaks.takes(message):
                return message

    def __getattr__(self, name):
        return getattr(self.transport, name)


class Returning(Connection):
    """Names a session of an earlier connection when it logs in; smbprotocol never does."""

    previous = 0

    def send(self, message, *rest, **named):
        if isinstance(message, SMB2SessionSetupRequest):
            message["previous_session_id"] = self.previous
        return super().send(message, *rest, **named)


class Acknowledgement(Structure):
    """A body that is ready; smbprotocol has none for this command."""

    COMMAND = puppet.OPLOCK_BREAK

    def __init__(self, body=b""):
        self.fields = {"body": BytesField(default=body)}
        super().__init__()


class Smbprotocol(puppet.Wire):
    def __init__(self, server, user, password, dialect, guid=None, previous=0):
        self.breaks = puppet.Breaks()
        guid = uuid.UUID(bytes_le=bytes.fromhex(guid)) if guid else uuid.uuid4()
        self.connection = Returning(guid, server, 445, require_signing=True)
        self.connection.previous = previous
        # LEASING, DIRECTORY_LEASING (MS-SMB2 2.2.3).
        self.connection.client_capabilities |= 0x02 | 0x20
        self.connection.connect(dialect=DIALECTS[dialect], timeout=puppet.PATIENCE)
        self.connection.transport = Sieve(self.connection.transport, self.breaks)
        self.session = Session(self.connection, user, password, require_encryption=False, auth_protocol="ntlm")
        self.session.connect()
        self.tree = TreeConnect(self.session, rf"\\{server}\share")
        self.tree.connect()

    def session_id(self):
        return self.session.session_id

    def drop(self):
        self.connection.disconnect(close=False)

    def is_gone(self):
        return not self.connection.transport.connected

    def post(self, message):
        return self.connection.send(
            message, sid=self.session.session_id, tid=self.tree.tree_connect_id, credit_request=CREDITS
        )

    def opened(self, file_id):
        file = Open(self.tree, "")
        file.file_id = file_id
        return file

    def open(self, order):
        contexts = []
        if lease := order.get("lease"):
            context = SMB2CreateContextRequest()
            context["buffer_name"], context["buffer_data"] = puppet.LEASE_TAG, puppet.lease_context(lease)
            contexts.append(context)
        for tag, data in order.get("contexts", []):
            context = SMB2CreateContextRequest()
            context["buffer_name"], context["buffer_data"] = tag.encode("latin-1"), bytes.fromhex(data)
            contexts.append(context)
        message, _ = Open(self.tree, order["name"]).create(
            2,
            order["access"],
            NORMAL,
            order["share"],
            order["disposition"],
            order["options"],
            create_contexts=contexts or None,
            oplock_level=order["oplock"],
            send=False,
        )
        return self.post(message)

    def read(self, file_id, offset, length):
        return self.post(self.opened(file_id).read(offset, length, send=False)[0])

    def write(self, file_id, offset, data):
        return self.post(self.opened(file_id).write(data, offset, send=False)[0])

    def lock(self, file_id, offset, length, flags):
        element = SMB2LockElement()
        element["offset"], element["length"] = offset, length
        element["flags"] = flags
        return self.post(self.opened(file_id).lock([element], send=False)[0])

    def control(self, file_id, code, data):
        message = SMB2IOCTLRequest()
        message["ctl_code"], message["file_id"], message["flags"] = code, file_id, IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
        message["buffer"] = data
        return self.post(message)

    def close(self, file_id):
        message = SMB2CloseRequest()
        message["file_id"] = file_id
        return self.post(message)

    def acknowledge(self, body):
        return self.post(Acknowledgement(body))

    def echo(self):
        return self.post(SMB2Echo())

    def listen(self, seconds):
        with self.breaks.more:
            self.breaks.more.wait(min(seconds, 0.02))

    def is_ready(self, request):
        with request.response_event_lock:
            return request.response is not None and request.response["status"].get_value() != puppet.PENDING

    def wait(self, request):
        try:
            self.connection.receive(request, timeout=puppet.PATIENCE, resolve_symlinks=False)
        except SMBResponseException:
            pass
        return request.response["status"].get_value(), request.response["data"].get_value()
