"""Copies one file by a Python client, over one connection: what other SMB stacks make of a takeover.

copy_file.py LIBRARY WAY PROTECTION SERVER USER PASSWORD NAME LOCAL

LIBRARY is smbprotocol or impacket, WAY get or put, PROTECTION signed or sealed; NAME is the file on the share `share`,
LOCAL the one here. Blocks go out as they come in, so that who watches the target sees how far the copy is. Any error
ends it: nothing is tried again, and no second connection is made.
"""

import sys
import uuid

BLOCK = 65536


def by_smbprotocol(way, protection, server, user, password, name, local):
    from smbprotocol.connection import Connection
    from smbprotocol.open import (
        CreateDisposition,
        CreateOptions,
        FileAttributes,
        FilePipePrinterAccessMask,
        ImpersonationLevel,
        Open,
        ShareAccess,
    )
    from smbprotocol.session import Session
    from smbprotocol.tree import TreeConnect

    connection = Connection(uuid.uuid4(), server, 445, require_signing=True)
    connection.connect(timeout=60)
    session = Session(connection, user, password, require_encryption=protection == "sealed", auth_protocol="ntlm")
    session.connect()
    tree = TreeConnect(session, rf"\\{server}\share")
    tree.connect()
    file = Open(tree, name)
    # No oplock: smbprotocol's receiver dies of a break notification.
    file.create(
        ImpersonationLevel.Impersonation,
        FilePipePrinterAccessMask.GENERIC_READ | FilePipePrinterAccessMask.GENERIC_WRITE,
        FileAttributes.FILE_ATTRIBUTE_NORMAL,
        ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE,
        CreateDisposition.FILE_OPEN if way == "get" else CreateDisposition.FILE_OVERWRITE_IF,
        CreateOptions.FILE_NON_DIRECTORY_FILE,
    )
    if way == "get":
        download(connection, file, local)
    else:
        upload(connection, file, local)
    file.close()
    tree.disconnect()
    session.disconnect()
    connection.disconnect()


def download(connection, file, local):
    """Four READs in flight at a time."""
    with open(local, "wb", buffering=0) as target:
        size, offset = file.end_of_file, 0
        while offset < size:
            waiting = []
            while offset < size and len(waiting) < 4:
                length = min(BLOCK, size - offset)
                message, unpack = file.read(offset, length, send=False)
                request = connection.send(
                    message, sid=file.tree_connect.session.session_id, tid=file.tree_connect.tree_connect_id
                )
                waiting.append((request, unpack, length))
                offset += length
            for request, unpack, length in waiting:
                data = unpack(request)
                assert len(data) == length, f"a READ of {length} brought {len(data)} bytes"
                target.write(data)


def upload(connection, file, local):
    """Four WRITEs in flight at a time."""
    with open(local, "rb") as source:
        offset, ended = 0, False
        while not ended:
            waiting = []
            while len(waiting) < 4:
                data = source.read(BLOCK)
                if not data:
                    ended = True
                    break
                message, unpack = file.write(data, offset, send=False)
                request = connection.send(
                    message, sid=file.tree_connect.session.session_id, tid=file.tree_connect.tree_connect_id
                )
                waiting.append((request, unpack, len(data)))
                offset += len(data)
            for request, unpack, length in waiting:
                count = unpack(request)
                assert count == length, f"{count} of {length} bytes were written"


def by_impacket(way, protection, server, user, password, name, local):
    from Cryptodome.Cipher import AES
    from Cryptodome.Hash import CMAC
    from impacket import crypto
    from impacket.smb3structs import SMB2_DIALECT_311
    from impacket.smbconnection import SMBConnection

    # The same function as impacket's own, which takes more than a second for a MiB.
    crypto.AES_CMAC = lambda key, message, _: CMAC.new(key, bytes(message), ciphermod=AES).digest()

    connection = SMBConnection(server, server, sess_port=445, timeout=120, preferredDialect=SMB2_DIALECT_311)
    connection.login(user, password)
    # impacket signs where the server requires it, and seals where the server can; it is the server that is set up.
    smb = connection.getSMBServer()
    session, agreed = smb._Session, smb._Connection
    is_sealed = bool(agreed["SupportsEncryption"])
    assert is_sealed == (protection == "sealed"), f"the session is {'' if is_sealed else 'not '}sealed"
    assert session["SigningActivated"] or is_sealed, "the session is not signed"
    if way == "get":
        with open(local, "wb", buffering=0) as target:
            connection.getFile("share", name, target.write)
    else:
        with open(local, "rb") as source:
            connection.putFile("share", name, source.read)
    connection.logoff()
    connection.close()


if __name__ == "__main__":
    library, *rest = sys.argv[1:]
    {"smbprotocol": by_smbprotocol, "impacket": by_impacket}[library](*rest)
