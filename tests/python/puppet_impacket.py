"""A puppet made of impacket. It sends by impacket, and receives by itself: impacket waits for one answer at a time, and
takes whatever follows an interim answer for the final one."""

import select
import time

import puppet
from impacket import crypto, smb3structs as smb2
from impacket.smbconnection import SMBConnection
from Cryptodome.Cipher import AES
from Cryptodome.Hash import CMAC

# The same function as impacket's own, which takes more than a second for a MiB.
crypto.AES_CMAC = lambda key, message, _: CMAC.new(key, bytes(message), ciphermod=AES).digest()

DIALECTS = {"2.1": smb2.SMB2_DIALECT_21, "3.0": smb2.SMB2_DIALECT_30, "3.1.1": smb2.SMB2_DIALECT_311}


class Impacket(puppet.Wire):
    def __init__(self, server, user, password, dialect, guid=None, previous=0):
        assert guid is None and previous == 0, "impacket chooses them itself"
        self.breaks = puppet.Breaks()
        self.answers = {}
        self.outer = SMBConnection(
            server, server, sess_port=445, timeout=puppet.PATIENCE, preferredDialect=DIALECTS[dialect]
        )
        self.outer.login(user, password)
        self.smb = self.outer.getSMBServer()
        assert self.smb._Session["SigningActivated"], "the session is not signed"
        self.tree = self.smb.connectTree("share")
        self.session = self.smb._NetBIOSSession

    def session_id(self):
        return self.smb._Session["SessionID"]

    def post(self, command, body):
        packet = self.smb.SMB_PACKET()
        packet["Command"], packet["TreeID"], packet["Data"] = command, self.tree, body
        return self.smb.sendSMB(packet)

    def open(self, order):
        name = order["name"].encode("utf-16le")
        body = smb2.SMB2Create()
        body["RequestedOplockLevel"], body["ImpersonationLevel"] = order["oplock"], 2
        body["DesiredAccess"], body["FileAttributes"] = order["access"], 0x80
        body["ShareAccess"], body["CreateDisposition"] = order["share"], order["disposition"]
        body["CreateOptions"], body["NameLength"] = order["options"], len(name)
        body["Buffer"] = name
        if lease := order.get("lease"):
            context = smb2.SMB2CreateContext()
            data = puppet.lease_context(lease)
            context["NameOffset"], context["NameLength"] = 16, 4
            context["DataOffset"], context["DataLength"] = 24, len(data)
            context["Buffer"] = puppet.LEASE_TAG + bytes(4) + data
            body["Buffer"] = name + bytes(-len(name) % 8)
            body["CreateContextsOffset"] = 64 + smb2.SMB2Create.SIZE + len(body["Buffer"])
            body["CreateContextsLength"] = len(context.getData())
            body["Buffer"] += context.getData()
        return self.post(smb2.SMB2_CREATE, body)

    def read(self, file_id, offset, length):
        body = smb2.SMB2Read()
        body["Padding"], body["FileID"], body["Length"], body["Offset"] = 0x50, file_id, length, offset
        return self.post(smb2.SMB2_READ, body)

    def write(self, file_id, offset, data):
        body = smb2.SMB2Write()
        body["FileID"], body["Length"], body["Offset"], body["Buffer"] = file_id, len(data), offset, data
        body["WriteChannelInfoOffset"] = 0
        return self.post(smb2.SMB2_WRITE, body)

    def lock(self, file_id, offset, length, flags):
        element = smb2.SMB2_LOCK_ELEMENT()
        element["Offset"], element["Length"], element["Flags"] = offset, length, flags
        body = smb2.SMB2Lock()
        body["LockCount"], body["FileID"], body["Locks"] = 1, file_id, element.getData()
        return self.post(smb2.SMB2_LOCK, body)

    def control(self, file_id, code, data):
        body = smb2.SMB2Ioctl()
        body["CtlCode"], body["FileID"], body["Flags"] = code, file_id, smb2.SMB2_0_IOCTL_IS_FSCTL
        body["InputCount"], body["Buffer"] = len(data), data
        return self.post(smb2.SMB2_IOCTL, body)

    def close(self, file_id):
        body = smb2.SMB2Close()
        body["FileID"] = file_id
        return self.post(smb2.SMB2_CLOSE, body)

    def acknowledge(self, body):
        return self.post(smb2.SMB2_OPLOCK_BREAK, body)

    def echo(self):
        return self.post(smb2.SMB2_ECHO, smb2.SMB2Echo())

    def listen(self, seconds):
        if select.select([self.session.get_socket()], [], [], seconds)[0]:
            self.receive()

    def receive(self):
        message = self.session.recv_packet(puppet.PATIENCE).get_trailer()
        if self.breaks.takes(message):
            return
        packet = smb2.SMB2Packet(message)
        if packet["Status"] != puppet.PENDING:
            self.answers[packet["MessageID"]] = (packet["Status"], bytes(packet["Data"]))

    def is_ready(self, request):
        self.listen(0)
        return request in self.answers

    def wait(self, request):
        until = time.monotonic() + puppet.PATIENCE
        while request not in self.answers:
            assert time.monotonic() < until, f"no answer to {request}"
            self.listen(until - time.monotonic())
        return self.answers.pop(request)
