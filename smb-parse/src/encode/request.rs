//! Requests.
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use super::{Builder, behind, context::chain, len16, len32};
use crate::{
    FileId,
    cmd::{ioctl::IS_FSCTL, lock::Lock, negotiate::context_type},
    header::Header,
};

/// What a NEGOTIATE says. Contexts go with it only if 3.1.1 is among the dialects.
#[derive(Debug, Clone, Copy)]
pub struct NegotiateParams<'a> {
    pub dialects: &'a [u16],
    pub security_mode: u16,
    pub capabilities: u32,
    pub client_guid: [u8; 16],
    pub preauth_salt: &'a [u8],
    /// None: no encryption context.
    pub ciphers: &'a [u16],
    /// None: no signing context.
    pub signing_algs: &'a [u16],
    pub netname: Option<&'a str>,
}

/// NEGOTIATE (MS-SMB2 2.2.3).
pub fn negotiate(header: &Header, params: &NegotiateParams<'_>) -> Vec<u8> {
    let contexts = if params.dialects.contains(&0x0311) { negotiate_contexts(params) } else { Vec::new() };
    let dialects = words(params.dialects);
    let contexts_at = (usize::from(behind(36)) + dialects.len()).next_multiple_of(8);
    let offset = if contexts.is_empty() { 0 } else { len32(contexts_at) };
    let mut msg = Builder::new(header, 36)
        .u16(len16(params.dialects.len()))
        .u16(params.security_mode)
        .u16(0)
        .u32(params.capabilities)
        .bytes(&params.client_guid)
        .u32(offset)
        .u16(len16(contexts.len()))
        .u16(0)
        .bytes(&dialects);
    for (kind, data) in &contexts {
        msg = msg.align().u16(*kind).u16(len16(data.len())).u32(0).bytes(data);
    }
    msg.0
}

fn negotiate_contexts(params: &NegotiateParams<'_>) -> Vec<(u16, Vec<u8>)> {
    const SHA512: u16 = 1;
    let salt = params.preauth_salt;
    let preauth = [&words(&[1, len16(salt.len()), SHA512])[..], salt].concat();
    let mut contexts = vec![(context_type::PREAUTH_INTEGRITY, preauth)];
    for (kind, algorithms) in
        [(context_type::ENCRYPTION, params.ciphers), (context_type::SIGNING, params.signing_algs)]
    {
        if !algorithms.is_empty() {
            contexts.push((kind, [words(&[len16(algorithms.len())]), words(algorithms)].concat()));
        }
    }
    if let Some(name) = params.netname {
        contexts.push((context_type::NETNAME, name.encode_utf16().flat_map(u16::to_le_bytes).collect()));
    }
    contexts
}

fn words(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What a SESSION_SETUP says.
#[derive(Debug, Clone, Copy)]
pub struct SessionSetupParams<'a> {
    pub flags: u8,
    pub security_mode: u8,
    pub capabilities: u32,
    pub previous_session_id: u64,
    /// SecurityBuffer.
    pub token: &'a [u8],
}

/// SESSION_SETUP (MS-SMB2 2.2.5).
pub fn session_setup(header: &Header, params: &SessionSetupParams<'_>) -> Vec<u8> {
    Builder::new(header, 25)
        .u8(params.flags)
        .u8(params.security_mode)
        .u32(params.capabilities)
        .u32(0)
        .u16(behind(24))
        .u16(len16(params.token.len()))
        .u64(params.previous_session_id)
        .variable(params.token)
}

fn empty(header: &Header) -> Vec<u8> {
    Builder::new(header, 4).u16(0).0
}

/// LOGOFF (MS-SMB2 2.2.7).
pub fn logoff(header: &Header) -> Vec<u8> {
    empty(header)
}

/// TREE_CONNECT (MS-SMB2 2.2.9).
pub fn tree_connect(header: &Header, path_utf16: &[u8]) -> Vec<u8> {
    Builder::new(header, 9).u16(0).u16(behind(8)).u16(len16(path_utf16.len())).variable(path_utf16)
}

/// TREE_DISCONNECT (MS-SMB2 2.2.11).
pub fn tree_disconnect(header: &Header) -> Vec<u8> {
    empty(header)
}

/// ECHO (MS-SMB2 2.2.28).
pub fn echo(header: &Header) -> Vec<u8> {
    empty(header)
}

/// CANCEL (MS-SMB2 2.2.30).
pub fn cancel(header: &Header) -> Vec<u8> {
    empty(header)
}

/// What a CREATE says.
#[derive(Debug, Clone, Copy)]
pub struct CreateParams<'a> {
    pub oplock_level: u8,
    pub impersonation_level: u32,
    pub desired_access: u32,
    pub file_attributes: u32,
    pub share_access: u32,
    pub create_disposition: u32,
    pub create_options: u32,
    pub name_utf16: &'a [u8],
    /// Tags and data; the data by [`lease`](super::lease) and its like.
    pub contexts: &'a [(&'a [u8], Vec<u8>)],
}

/// CREATE (MS-SMB2 2.2.13).
pub fn create(header: &Header, params: &CreateParams<'_>) -> Vec<u8> {
    let contexts = chain(params.contexts);
    let name = params.name_utf16;
    let contexts_at = (usize::from(behind(56)) + name.len()).next_multiple_of(8);
    let msg = Builder::new(header, 57)
        .u8(0)
        .u8(params.oplock_level)
        .u32(params.impersonation_level)
        .u64(0)
        .u64(0)
        .u32(params.desired_access)
        .u32(params.file_attributes)
        .u32(params.share_access)
        .u32(params.create_disposition)
        .u32(params.create_options)
        .u16(behind(56))
        .u16(len16(name.len()))
        .u32(if contexts.is_empty() { 0 } else { len32(contexts_at) })
        .u32(len32(contexts.len()))
        .bytes(name);
    if contexts.is_empty() {
        return if name.is_empty() { msg.u8(0).0 } else { msg.0 };
    }
    msg.align().bytes(&contexts).0
}

/// CLOSE (MS-SMB2 2.2.15).
pub fn close(header: &Header, flags: u16, file_id: FileId) -> Vec<u8> {
    Builder::new(header, 24).u16(flags).u32(0).file_id(file_id).0
}

/// FLUSH (MS-SMB2 2.2.17).
pub fn flush(header: &Header, file_id: FileId) -> Vec<u8> {
    Builder::new(header, 24).zeros(6).file_id(file_id).0
}

/// READ (MS-SMB2 2.2.19).
pub fn read(header: &Header, file_id: FileId, offset: u64, length: u32, minimum_count: u32) -> Vec<u8> {
    // Padding: the answer's data right behind its fixed part.
    Builder::new(header, 49)
        .u8(0x50)
        .u8(0)
        .u32(length)
        .u64(offset)
        .file_id(file_id)
        .u32(minimum_count)
        .zeros(12)
        .variable(&[])
}

/// WRITE (MS-SMB2 2.2.21).
pub fn write(header: &Header, file_id: FileId, offset: u64, flags: u32, data: &[u8]) -> Vec<u8> {
    Builder::new(header, 49)
        .u16(behind(48))
        .u32(len32(data.len()))
        .u64(offset)
        .file_id(file_id)
        .zeros(12)
        .u32(flags)
        .variable(data)
}

/// LOCK (MS-SMB2 2.2.26).
pub fn lock(header: &Header, file_id: FileId, lock_sequence: u32, locks: &[Lock]) -> Vec<u8> {
    let msg = Builder::new(header, 48).u16(len16(locks.len())).u32(lock_sequence).file_id(file_id);
    locks.iter().fold(msg, |msg, lock| msg.u64(lock.offset).u64(lock.length).u32(lock.flags).u32(0)).0
}

/// What an IOCTL says.
#[derive(Debug, Clone, Copy)]
pub struct IoctlParams<'a> {
    pub ctl_code: u32,
    pub file_id: FileId,
    pub input: &'a [u8],
    pub max_output: u32,
}

/// IOCTL, always an FSCTL (MS-SMB2 2.2.31).
pub fn ioctl(header: &Header, params: &IoctlParams<'_>) -> Vec<u8> {
    Builder::new(header, 57)
        .u16(0)
        .u32(params.ctl_code)
        .file_id(params.file_id)
        .u32(behind(56).into())
        .u32(len32(params.input.len()))
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(params.max_output)
        .u32(IS_FSCTL)
        .u32(0)
        .variable(params.input)
}

/// What a QUERY_DIRECTORY says.
#[derive(Debug, Clone, Copy)]
pub struct QueryDirectoryParams<'a> {
    pub info_class: u8,
    pub flags: u8,
    pub file_index: u32,
    pub file_id: FileId,
    pub pattern_utf16: &'a [u8],
    pub output_buffer_length: u32,
}

/// QUERY_DIRECTORY (MS-SMB2 2.2.33).
pub fn query_directory(header: &Header, params: &QueryDirectoryParams<'_>) -> Vec<u8> {
    Builder::new(header, 33)
        .u8(params.info_class)
        .u8(params.flags)
        .u32(params.file_index)
        .file_id(params.file_id)
        .u16(behind(32))
        .u16(len16(params.pattern_utf16.len()))
        .u32(params.output_buffer_length)
        .variable(params.pattern_utf16)
}

/// What a QUERY_INFO says.
#[derive(Debug, Clone, Copy)]
pub struct QueryInfoParams<'a> {
    pub info_type: u8,
    pub file_info_class: u8,
    pub output_buffer_length: u32,
    pub additional_information: u32,
    pub flags: u32,
    pub file_id: FileId,
    pub input: &'a [u8],
}

/// QUERY_INFO (MS-SMB2 2.2.37).
pub fn query_info(header: &Header, params: &QueryInfoParams<'_>) -> Vec<u8> {
    let input_at = if params.input.is_empty() { 0 } else { behind(40) };
    Builder::new(header, 41)
        .u8(params.info_type)
        .u8(params.file_info_class)
        .u32(params.output_buffer_length)
        .u16(input_at)
        .u16(0)
        .u32(len32(params.input.len()))
        .u32(params.additional_information)
        .u32(params.flags)
        .file_id(params.file_id)
        .variable(params.input)
}

/// SET_INFO (MS-SMB2 2.2.39).
pub fn set_info(
    header: &Header,
    info_type: u8,
    class: u8,
    additional: u32,
    file_id: FileId,
    buffer: &[u8],
) -> Vec<u8> {
    Builder::new(header, 33)
        .u8(info_type)
        .u8(class)
        .u32(len32(buffer.len()))
        .u16(behind(32))
        .u16(0)
        .u32(additional)
        .file_id(file_id)
        .variable(buffer)
}

/// Oplock break acknowledgement (MS-SMB2 2.2.24.1).
pub fn oplock_break_ack(header: &Header, file_id: FileId, level: u8) -> Vec<u8> {
    super::response::oplock_break(header, file_id, level)
}

/// Lease break acknowledgement (MS-SMB2 2.2.24.2).
pub fn lease_break_ack(header: &Header, key: [u8; 16], state: u32) -> Vec<u8> {
    super::response::lease_ack(header, key, state)
}
