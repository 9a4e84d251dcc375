//! What the parser says of a message, under the names that tshark gives to the same fields. Values are the bytes as they
//! would stand on the wire, in hexadecimal: what was parsed, put back.

use smb_parse::{
    FileId, ParseError,
    cmd::{Message, close, create, lock, negotiate, oplock_break, query_directory, query_info},
    create_context::{Context, Lease, RequestContext, ResponseContext},
    header::{Command, Header, Status, Target},
    transform,
};

/// Fields with their values, in the order of the message.
#[derive(Debug, Default)]
pub(crate) struct Facts(pub(crate) Vec<(&'static str, String)>);

impl Facts {
    /// All values of a field.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| *n == name).map(|(_, value)| value.as_str()).collect()
    }

    fn put(&mut self, name: &'static str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() {
            self.0.push((name, hex(bytes)));
        }
    }

    fn file_id(&mut self, id: FileId) {
        self.put("smb2.fid", id.to_bytes());
    }
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The fields of every header.
pub(crate) fn header(header: &Header) -> Facts {
    let mut f = Facts::default();
    f.put("smb2.cmd", header.command.0.to_le_bytes());
    f.put("smb2.credit.charge", header.credit_charge.to_le_bytes());
    let status = header.status.to_le_bytes();
    if header.is_response() {
        f.put("smb2.nt_status", status);
        f.put("smb2.credits.granted", header.credits.to_le_bytes());
    } else {
        f.put("smb2.channel_sequence", &status[..2]);
        f.put("smb2.credits.requested", header.credits.to_le_bytes());
    }
    f.put("smb2.flags", header.flags.0.to_le_bytes());
    f.put("smb2.chain_offset", header.next_command.to_le_bytes());
    f.put("smb2.msg_id", header.message_id.to_le_bytes());
    match header.target {
        Target::Sync { reserved, tree_id } => {
            f.put("smb2.pid", reserved.to_le_bytes());
            f.put("smb2.tid", tree_id.to_le_bytes());
        }
        Target::Async { async_id } => f.put("smb2.aid", async_id.to_le_bytes()),
    }
    f.put("smb2.sesid", header.session_id.to_le_bytes());
    f.put("smb2.signature", header.signature);
    f
}

/// The header of a sealed message.
pub(crate) fn sealed(header: &transform::Header) -> Facts {
    let mut f = Facts::default();
    f.put("smb2.header.transform.signature", header.signature);
    f.put("smb2.header.transform.nonce", header.nonce);
    f.put("smb2.header.transform.msg_size", header.original_size.to_le_bytes());
    f.put("smb2.header.transform.flags", header.flags.to_le_bytes());
    f.put("smb2.sesid", header.session_id.to_le_bytes());
    f
}

/// The fields of a body. `class`: what an answer to QUERY_DIRECTORY answers.
pub(crate) fn body(header: &Header, message: &Message<'_>, class: Option<u8>) -> Result<Facts, ParseError> {
    use Message as M;
    let mut f = Facts::default();
    match message {
        M::NegotiateRequest(m) => negotiate_request(&mut f, m)?,
        M::NegotiateResponse(m) => negotiate_response(&mut f, m)?,
        M::SessionSetupRequest(m) => {
            f.put("smb2.previous_sesid", m.previous_session_id.to_le_bytes());
            f.put("smb2.capabilities", m.capabilities.to_le_bytes());
            f.put("smb2.security_blob", m.security_buffer);
        }
        M::SessionSetupResponse(m) => {
            f.put("smb2.session_flags", m.session_flags.to_le_bytes());
            f.put("smb2.security_blob", m.security_buffer);
        }
        M::TreeConnectRequest(m) => {
            f.put("smb2.tree", m.path.0);
            f.put("smb2.tc.flags", m.flags.to_le_bytes());
        }
        M::TreeConnectResponse(m) => {
            f.put("smb2.share_type", [m.share_type]);
            f.put("smb2.share_flags", m.share_flags.to_le_bytes());
            f.put("smb2.share_caps", m.capabilities.to_le_bytes());
            f.put("smb.access_mask", m.maximal_access.to_le_bytes());
        }
        M::CreateRequest(m) => create_request(&mut f, m)?,
        M::CreateResponse(m) => create_response(&mut f, m)?,
        M::CloseRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.close.flags", m.flags.to_le_bytes());
        }
        M::CloseResponse(m) => close_response(&mut f, m),
        M::QueryDirectoryResponse(m) => directory(&mut f, header, m, class)?,
        M::ChangeNotifyResponse(m) => {
            for change in m.changes() {
                let change = change?;
                f.put("smb2.notify.action", change.action.to_le_bytes());
                f.put("smb2.filename", change.name.0);
            }
        }
        M::BreakNotification(m) => notification(&mut f, m),
        M::BreakRequest(m) | M::BreakResponse(m) => acknowledgement(&mut f, m),
        M::Error(m) => {
            f.put("smb2.error.context_count", [m.error_context_count]);
            f.put(
                "smb2.error.byte_count",
                u32::try_from(m.error_data.len()).unwrap_or(u32::MAX).to_le_bytes(),
            );
        }
        _ => file_operation(&mut f, message)?,
    }
    Ok(f)
}

/// What is done with an open file, and the answers that have no name in them.
fn file_operation(f: &mut Facts, message: &Message<'_>) -> Result<(), ParseError> {
    use Message as M;
    let length = |data: &[u8]| u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
    match message {
        M::FlushRequest(m) => f.file_id(m.file_id),
        M::ReadRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.read_length", m.length.to_le_bytes());
            f.put("smb2.file_offset", m.offset.to_le_bytes());
            f.put("smb2.min_count", m.minimum_count.to_le_bytes());
        }
        M::ReadResponse(m) => {
            f.put("smb2.olb.length", length(m.data));
            f.put("smb2.read_remaining", m.data_remaining.to_le_bytes());
        }
        M::WriteRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.write_length", length(m.data));
            f.put("smb2.file_offset", m.offset.to_le_bytes());
            f.put("smb2.write.flags", m.flags.to_le_bytes());
        }
        M::WriteResponse(m) => {
            f.put("smb2.write.count", m.count.to_le_bytes());
            f.put("smb2.write.remaining", m.remaining.to_le_bytes());
        }
        M::LockRequest(m) => locks(f, m)?,
        M::IoctlRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.ioctl.function", m.ctl_code.to_le_bytes());
        }
        M::IoctlResponse(m) => {
            f.file_id(m.file_id);
            f.put("smb2.ioctl.function", m.ctl_code.to_le_bytes());
        }
        M::QueryDirectoryRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.find.infolevel", [m.info_class]);
            f.put("smb2.find.flags", [m.flags]);
            f.put("smb2.find.pattern", m.pattern.0);
            f.put("smb2.output_buffer_len", m.output_buffer_length.to_le_bytes());
        }
        M::QueryInfoRequest(m) => {
            f.file_id(m.file_id);
            info_level(f, m.info_type, m.file_info_class);
            f.put("smb2.max_response_size", m.output_buffer_length.to_le_bytes());
        }
        M::SetInfoRequest(m) => {
            f.file_id(m.file_id);
            info_level(f, m.info_type, m.file_info_class);
            f.put("smb2.setinfo_size", length(m.buffer));
            // FileRenameInformation and FileLinkInformation end in a name (MS-FSCC 2.4.42.2, 2.4.27.2).
            if let (1, 10 | 11) = (m.info_type, m.file_info_class) {
                f.put("smb2.filename", m.buffer.get(20..).unwrap_or_default());
            }
        }
        M::ChangeNotifyRequest(m) => {
            f.file_id(m.file_id);
            f.put("smb2.notify.flags", m.flags.to_le_bytes());
            f.put("smb2.output_buffer_len", m.output_buffer_length.to_le_bytes());
        }
        _ => {}
    }
    Ok(())
}

fn info_level(f: &mut Facts, info_type: u8, class: u8) {
    f.put("smb2.class", [info_type]);
    match info_type {
        query_info::FILE => f.put("smb2.file_info.infolevel", [class]),
        query_info::FILESYSTEM => f.put("smb2.fs_info.infolevel", [class]),
        query_info::SECURITY => f.put("smb2.sec_info.infolevel", [class]),
        _ => {}
    }
}

fn negotiate_request(f: &mut Facts, m: &negotiate::Request<'_>) -> Result<(), ParseError> {
    m.dialects().for_each(|dialect| f.put("smb2.dialect", dialect.to_le_bytes()));
    f.put("smb2.capabilities", m.capabilities.to_le_bytes());
    f.put("smb2.client_guid", m.client_guid);
    m.contexts().try_for_each(|context| context.map(|context| negotiate_context(f, context)))
}

fn negotiate_response(f: &mut Facts, m: &negotiate::Response<'_>) -> Result<(), ParseError> {
    f.put("smb2.dialect", m.dialect_revision.to_le_bytes());
    f.put("smb2.capabilities", m.capabilities.to_le_bytes());
    f.put("smb2.server_guid", m.server_guid);
    f.put("smb2.max_trans_size", m.max_transact_size.to_le_bytes());
    f.put("smb2.max_read_size", m.max_read_size.to_le_bytes());
    f.put("smb2.max_write_size", m.max_write_size.to_le_bytes());
    f.put("smb2.current_time", m.system_time.to_le_bytes());
    m.contexts().try_for_each(|context| context.map(|context| negotiate_context(f, context)))
}

fn negotiate_context(f: &mut Facts, context: negotiate::Context<'_>) {
    use negotiate::{Context as C, context_type as t};
    let kind = |f: &mut Facts, value: u16| f.put("smb2.negotiate_context.type", value.to_le_bytes());
    let list = |f: &mut Facts, name: &'static str, values: negotiate::U16List<'_>| {
        values.iter().for_each(|value| f.put(name, value.to_le_bytes()));
    };
    match context {
        C::PreauthIntegrity { hash_algorithms, salt } => {
            kind(f, t::PREAUTH_INTEGRITY);
            list(f, "smb2.negotiate_context.hash_algorithm", hash_algorithms);
            f.put("smb2.negotiate_context.salt", salt);
        }
        C::Encryption { ciphers } => {
            kind(f, t::ENCRYPTION);
            list(f, "smb2.negotiate_context.cipher_id", ciphers);
        }
        C::Compression { algorithms, .. } => {
            kind(f, t::COMPRESSION);
            list(f, "smb2.negotiate_context.comp_alg_id", algorithms);
        }
        C::Netname { name } => {
            kind(f, t::NETNAME);
            f.put("smb2.negotiate_context.netname", name.0);
        }
        C::Transport { .. } => kind(f, t::TRANSPORT),
        C::RdmaTransform { transforms } => {
            kind(f, t::RDMA_TRANSFORM);
            list(f, "smb2.negotiate_context.rdma_transform_id", transforms);
        }
        C::Signing { algorithms } => {
            kind(f, t::SIGNING);
            list(f, "smb2.negotiate_context.signing_id", algorithms);
        }
        C::Posix { .. } => kind(f, t::POSIX),
        C::Unknown { context_type, .. } => kind(f, context_type),
    }
}

fn create_request(f: &mut Facts, m: &create::Request<'_>) -> Result<(), ParseError> {
    f.put("smb2.filename", m.name.0);
    f.put("smb2.create.oplock", [m.requested_oplock_level]);
    f.put("smb2.impersonation.level", m.impersonation_level.to_le_bytes());
    f.put("smb2.create_flags", m.smb_create_flags.to_le_bytes());
    f.put("smb.access_mask", m.desired_access.to_le_bytes());
    f.put("smb2.file_attribute", m.file_attributes.to_le_bytes());
    f.put("smb.share_access", m.share_access.to_le_bytes());
    f.put("smb2.create.disposition", m.create_disposition.to_le_bytes());
    f.put("smb.create_options", m.create_options.to_le_bytes());
    m.contexts().try_for_each(|context| context.map(|context| asked(f, &context)))
}

fn asked(f: &mut Facts, context: &Context<'_>) {
    use RequestContext as R;
    f.put("smb2.tag", context.tag);
    match RequestContext::parse(context) {
        R::Lease(lease) => leased(f, &lease),
        // tshark takes the 16 bytes of zeros for a FileId.
        R::Durable => f.put("smb2.fid", context.data),
        R::DurableReconnect { file_id } => f.file_id(file_id),
        R::AllocationSize(size) => f.put("smb2.allocation_size", size.to_le_bytes()),
        R::MaximalAccess { timestamp: Some(timestamp) } => {
            f.put("smb2.mxac_timestamp", timestamp.to_le_bytes())
        }
        R::DurableV2 { timeout, flags, create_guid } => {
            f.put("smb2.dh2x.timeout", timeout.to_le_bytes());
            f.put("smb2.dh2x.flags", flags.to_le_bytes());
            f.put("smb2.dh2x.create_guid", create_guid);
        }
        R::DurableReconnectV2 { file_id, create_guid, flags } => {
            f.file_id(file_id);
            f.put("smb2.dh2x.create_guid", create_guid);
            f.put("smb2.dh2x.flags", flags.to_le_bytes());
        }
        R::AppInstanceId(id) => f.put("smb2.app_instance.app_guid", id),
        _ => {}
    }
}

fn create_response(f: &mut Facts, m: &create::Response<'_>) -> Result<(), ParseError> {
    f.file_id(m.file_id);
    f.put("smb2.create.oplock", [m.oplock_level]);
    f.put("smb2.create.action", m.create_action.to_le_bytes());
    f.put("smb2.create.time", m.creation_time.to_le_bytes());
    f.put("smb2.last_write.time", m.last_write_time.to_le_bytes());
    f.put("smb2.allocation_size", m.allocation_size.to_le_bytes());
    f.put("smb2.eof", m.end_of_file.to_le_bytes());
    f.put("smb2.file_attribute", m.file_attributes.to_le_bytes());
    m.contexts().try_for_each(|context| context.map(|context| granted(f, &context)))
}

fn granted(f: &mut Facts, context: &Context<'_>) {
    use ResponseContext as R;
    f.put("smb2.tag", context.tag);
    match ResponseContext::parse(context) {
        R::Lease(lease) => leased(f, &lease),
        R::MaximalAccess { query_status, .. } => f.put("smb2.mxac_status", query_status.to_le_bytes()),
        R::OnDiskId(id) => f.put("smb2.qfid_fid", id),
        R::DurableV2 { timeout, flags } => {
            f.put("smb2.dh2x.timeout", timeout.to_le_bytes());
            f.put("smb2.dh2x.flags", flags.to_le_bytes());
        }
        _ => {}
    }
}

fn leased(f: &mut Facts, lease: &Lease) {
    f.put("smb2.lease.lease_key", lease.key);
    f.put("smb2.lease.lease_state", lease.state.to_le_bytes());
    f.put("smb2.lease.lease_flags", lease.flags.to_le_bytes());
    if lease.version > 1 {
        f.put("smb2.lease.parent_lease_key", lease.parent_key);
        f.put("smb2.lease.lease_oplock", lease.epoch.to_le_bytes());
    }
}

fn close_response(f: &mut Facts, m: &close::Response) {
    f.put("smb2.close.flags", m.flags.to_le_bytes());
    f.put("smb2.allocation_size", m.allocation_size.to_le_bytes());
    f.put("smb2.eof", m.end_of_file.to_le_bytes());
    f.put("smb2.last_write.time", m.last_write_time.to_le_bytes());
}

fn locks(f: &mut Facts, m: &lock::Request<'_>) -> Result<(), ParseError> {
    f.file_id(m.file_id);
    f.put("smb2.lock_count", m.lock_count.to_le_bytes());
    for lock in m.locks() {
        let lock = lock?;
        f.put("smb2.file_offset", lock.offset.to_le_bytes());
        f.put("smb2.lock_length", lock.length.to_le_bytes());
        f.put("smb2.lock_flags", lock.flags.to_le_bytes());
    }
    Ok(())
}

fn directory(
    f: &mut Facts,
    header: &Header,
    m: &query_directory::Response<'_>,
    class: Option<u8>,
) -> Result<(), ParseError> {
    debug_assert_eq!(header.command, Command::QUERY_DIRECTORY);
    // A page that was cut short by the client's buffer may end in the middle of an entry.
    let Some(class) = class.filter(|_| Status(header.status) != Status::BUFFER_OVERFLOW) else {
        return Ok(());
    };
    query_directory::entries(class, m.buffer).try_for_each(|e| e.map(|e| f.put("smb2.filename", e.name.0)))
}

fn notification(f: &mut Facts, m: &oplock_break::Notification) {
    match m {
        oplock_break::Notification::Oplock { oplock_level, file_id } => {
            f.put("smb2.create.oplock", [*oplock_level]);
            f.file_id(*file_id);
        }
        oplock_break::Notification::Lease {
            new_epoch,
            flags,
            lease_key,
            current_lease_state,
            new_lease_state,
            ..
        } => {
            f.put("smb2.lease.lease_oplock", new_epoch.to_le_bytes());
            f.put("smb2.lease.lease_flags", flags.to_le_bytes());
            f.put("smb2.lease.lease_key", lease_key);
            f.put("smb2.lease.lease_state", current_lease_state.to_le_bytes());
            f.put("smb2.lease.lease_state", new_lease_state.to_le_bytes());
        }
    }
}

fn acknowledgement(f: &mut Facts, m: &oplock_break::Ack) {
    match m {
        oplock_break::Ack::Oplock { oplock_level, file_id } => {
            f.put("smb2.create.oplock", [*oplock_level]);
            f.file_id(*file_id);
        }
        oplock_break::Ack::Lease { flags, lease_key, lease_state, .. } => {
            f.put("smb2.lease.lease_flags", flags.to_le_bytes());
            f.put("smb2.lease.lease_key", lease_key);
            f.put("smb2.lease.lease_state", lease_state.to_le_bytes());
        }
    }
}
