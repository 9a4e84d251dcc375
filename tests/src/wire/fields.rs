//! Which of tshark's fields the two readers are compared by: in a message of a kind, each of them must be in both or in
//! neither, as often, with the same bytes.

use smb_parse::{cmd::Message, header::Command};

/// The header fields that both must have or lack.
pub(crate) const HEADER: [&str; 14] = [
    "smb2.cmd",
    "smb2.credit.charge",
    "smb2.nt_status",
    "smb2.channel_sequence",
    "smb2.credits.granted",
    "smb2.credits.requested",
    "smb2.flags",
    "smb2.chain_offset",
    "smb2.msg_id",
    "smb2.pid",
    "smb2.tid",
    "smb2.aid",
    "smb2.sesid",
    "smb2.signature",
];

/// The same of a sealed message.
pub(crate) const SEALED: [&str; 5] = [
    "smb2.header.transform.signature",
    "smb2.header.transform.nonce",
    "smb2.header.transform.msg_size",
    "smb2.header.transform.flags",
    "smb2.sesid",
];

/// The body fields that both must have or lack, in the messages of a kind.
pub(crate) fn of_body(command: Command, message: &Message<'_>) -> Vec<&'static str> {
    let contexts: &[_] = match message {
        Message::CreateRequest(_) | Message::CreateResponse(_) => &CREATE_CONTEXTS,
        _ => &[],
    };
    [of_fixed_part(command, message), contexts].concat()
}

fn of_fixed_part(command: Command, message: &Message<'_>) -> &'static [&'static str] {
    use Message as M;
    match message {
        // A refused login is one to tshark, though its body is that of an error (MS-SMB2 2.2.2).
        M::Error(_) if command == Command::SESSION_SETUP => &[],
        M::NegotiateRequest(_) | M::NegotiateResponse(_) => &NEGOTIATE,
        M::SessionSetupRequest(_) => &["smb2.previous_sesid", "smb2.capabilities", "smb2.security_blob"],
        M::SessionSetupResponse(_) => &["smb2.session_flags", "smb2.security_blob"],
        M::TreeConnectRequest(_) => &["smb2.tree", "smb2.tc.flags"],
        M::TreeConnectResponse(_) => {
            &["smb2.share_type", "smb2.share_flags", "smb2.share_caps", "smb.access_mask"]
        }
        M::CreateRequest(_) => &CREATE_REQUEST,
        M::CreateResponse(_) => &CREATE_RESPONSE,
        M::CloseRequest(_) => &["smb2.fid", "smb2.close.flags"],
        M::CloseResponse(_) => {
            &["smb2.close.flags", "smb2.eof", "smb2.allocation_size", "smb2.last_write.time"]
        }
        M::FlushRequest(_) => &["smb2.fid"],
        M::ReadRequest(_) => &["smb2.fid", "smb2.read_length", "smb2.file_offset", "smb2.min_count"],
        M::ReadResponse(_) => &["smb2.olb.length", "smb2.read_remaining"],
        M::WriteRequest(_) => &["smb2.fid", "smb2.write_length", "smb2.file_offset", "smb2.write.flags"],
        M::WriteResponse(_) => &["smb2.write.count", "smb2.write.remaining"],
        M::LockRequest(_) => {
            &["smb2.fid", "smb2.lock_count", "smb2.file_offset", "smb2.lock_length", "smb2.lock_flags"]
        }
        M::IoctlRequest(_) | M::IoctlResponse(_) => &["smb2.fid", "smb2.ioctl.function"],
        M::QueryDirectoryRequest(_) => &[
            "smb2.fid",
            "smb2.find.infolevel",
            "smb2.find.flags",
            "smb2.find.pattern",
            "smb2.output_buffer_len",
        ],
        M::QueryDirectoryResponse(_) => &["smb2.filename"],
        M::QueryInfoRequest(_) => &QUERY_INFO,
        M::SetInfoRequest(_) => &SET_INFO,
        M::ChangeNotifyRequest(_) => &["smb2.fid", "smb2.notify.flags", "smb2.output_buffer_len"],
        M::ChangeNotifyResponse(_) => &["smb2.notify.action", "smb2.filename"],
        M::BreakNotification(_) | M::BreakRequest(_) | M::BreakResponse(_) => &BREAK,
        M::Error(_) => &["smb2.error.context_count", "smb2.error.byte_count"],
        _ => &[],
    }
}

const QUERY_INFO: [&str; 6] = [
    "smb2.fid",
    "smb2.class",
    "smb2.file_info.infolevel",
    "smb2.fs_info.infolevel",
    "smb2.sec_info.infolevel",
    "smb2.max_response_size",
];

const SET_INFO: [&str; 7] = [
    "smb2.fid",
    "smb2.class",
    "smb2.file_info.infolevel",
    "smb2.fs_info.infolevel",
    "smb2.sec_info.infolevel",
    "smb2.setinfo_size",
    "smb2.filename",
];

const NEGOTIATE: [&str; 16] = [
    "smb2.dialect",
    "smb2.capabilities",
    "smb2.client_guid",
    "smb2.server_guid",
    "smb2.max_trans_size",
    "smb2.max_read_size",
    "smb2.max_write_size",
    "smb2.current_time",
    "smb2.negotiate_context.type",
    "smb2.negotiate_context.hash_algorithm",
    "smb2.negotiate_context.salt",
    "smb2.negotiate_context.cipher_id",
    "smb2.negotiate_context.comp_alg_id",
    "smb2.negotiate_context.netname",
    "smb2.negotiate_context.signing_id",
    "smb2.negotiate_context.rdma_transform_id",
];

const CREATE_REQUEST: [&str; 14] = [
    "smb2.filename",
    "smb2.create.oplock",
    "smb2.impersonation.level",
    "smb2.create_flags",
    "smb.access_mask",
    "smb2.file_attribute",
    "smb.share_access",
    "smb2.create.disposition",
    "smb.create_options",
    "smb2.fid",
    "smb2.allocation_size",
    "smb2.dh2x.create_guid",
    "smb2.app_instance.app_guid",
    "smb2.mxac_timestamp",
];

/// Of the contexts, which are much alike in both directions.
const CREATE_CONTEXTS: [&str; 8] = [
    "smb2.tag",
    "smb2.lease.lease_key",
    "smb2.lease.lease_state",
    "smb2.lease.lease_flags",
    "smb2.lease.parent_lease_key",
    "smb2.lease.lease_oplock",
    "smb2.dh2x.timeout",
    "smb2.dh2x.flags",
];

const CREATE_RESPONSE: [&str; 10] = [
    "smb2.fid",
    "smb2.create.oplock",
    "smb2.create.action",
    "smb2.create.time",
    "smb2.last_write.time",
    "smb2.allocation_size",
    "smb2.eof",
    "smb2.file_attribute",
    "smb2.mxac_status",
    "smb2.qfid_fid",
];

const BREAK: [&str; 6] = [
    "smb2.fid",
    "smb2.create.oplock",
    "smb2.lease.lease_key",
    "smb2.lease.lease_state",
    "smb2.lease.lease_flags",
    "smb2.lease.lease_oplock",
];
