//! Answers and notifications.
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use super::{Builder, behind, context::chain, len16, len32};
use crate::{
    FileId,
    cmd::{close, create, oplock_break},
    header::Header,
};

/// ERROR Response without data (MS-SMB2 2.2.2).
pub fn error_response(header: &Header) -> Vec<u8> {
    Builder::new(header, 9).zeros(6).variable(&[])
}

/// SESSION_SETUP Response (MS-SMB2 2.2.6).
pub fn session_setup_response(header: &Header, session_flags: u16, token: &[u8]) -> Vec<u8> {
    Builder::new(header, 9).u16(session_flags).u16(behind(8)).u16(len16(token.len())).variable(token)
}

/// ECHO Response (MS-SMB2 2.2.29).
pub fn echo_response(header: &Header) -> Vec<u8> {
    Builder::new(header, 4).u16(0).0
}

/// LOCK Response (MS-SMB2 2.2.27).
pub fn lock_response(header: &Header) -> Vec<u8> {
    Builder::new(header, 4).u16(0).0
}

/// SET_INFO Response (MS-SMB2 2.2.40).
pub fn set_info_response(header: &Header) -> Vec<u8> {
    Builder::new(header, 2).0
}

/// CLOSE Response (MS-SMB2 2.2.16).
pub fn close_response(header: &Header, response: &close::Response) -> Vec<u8> {
    Builder::new(header, 60)
        .u16(response.flags)
        .u32(0)
        .u64(response.creation_time)
        .u64(response.last_access_time)
        .u64(response.last_write_time)
        .u64(response.change_time)
        .u64(response.allocation_size)
        .u64(response.end_of_file)
        .u32(response.file_attributes)
        .0
}

/// CREATE Response (MS-SMB2 2.2.14), the contexts instead of those of `response`.
pub fn create_response(
    header: &Header,
    response: &create::Response<'_>,
    contexts: &[(&[u8], Vec<u8>)],
) -> Vec<u8> {
    let contexts = chain(contexts);
    let offset = if contexts.is_empty() { 0 } else { behind(88) };
    Builder::new(header, 89)
        .u8(response.oplock_level)
        .u8(response.flags)
        .u32(response.create_action)
        .u64(response.creation_time)
        .u64(response.last_access_time)
        .u64(response.last_write_time)
        .u64(response.change_time)
        .u64(response.allocation_size)
        .u64(response.end_of_file)
        .u32(response.file_attributes)
        .u32(0)
        .file_id(response.file_id)
        .u32(offset.into())
        .u32(len32(contexts.len()))
        .bytes(&contexts)
        .0
}

/// READ Response (MS-SMB2 2.2.20).
pub fn read_response(header: &Header, data: &[u8]) -> Vec<u8> {
    // 80: header and fixed part.
    Builder::new(header, 17).u8(80).u8(0).u32(len32(data.len())).zeros(8).variable(data)
}

/// WRITE Response (MS-SMB2 2.2.22).
pub fn write_response(header: &Header, count: u32) -> Vec<u8> {
    Builder::new(header, 17).u16(0).u32(count).zeros(8).variable(&[])
}

/// IOCTL Response (MS-SMB2 2.2.32).
pub fn ioctl_response(header: &Header, ctl_code: u32, file_id: FileId, output: &[u8]) -> Vec<u8> {
    let offset = u32::from(behind(48));
    Builder::new(header, 49)
        .u16(0)
        .u32(ctl_code)
        .file_id(file_id)
        .u32(offset)
        .u32(0)
        .u32(offset)
        .u32(len32(output.len()))
        .zeros(8)
        .variable(output)
}

/// QUERY_DIRECTORY Response (MS-SMB2 2.2.34).
pub fn query_directory_response(header: &Header, buffer: &[u8]) -> Vec<u8> {
    Builder::new(header, 9).u16(behind(8)).u32(len32(buffer.len())).variable(buffer)
}

/// Oplock break notification (MS-SMB2 2.2.23.1).
pub fn oplock_break_notification(header: &Header, file_id: FileId, level: u8) -> Vec<u8> {
    oplock_break(header, file_id, level)
}

/// The answer to an oplock break acknowledgement (MS-SMB2 2.2.25.1).
pub fn oplock_break_ack_response(header: &Header, file_id: FileId, level: u8) -> Vec<u8> {
    oplock_break(header, file_id, level)
}

/// The oplock form, the same in all directions.
pub(super) fn oplock_break(header: &Header, file_id: FileId, level: u8) -> Vec<u8> {
    Builder::new(header, oplock_break::OPLOCK).u8(level).zeros(5).file_id(file_id).0
}

/// What a lease break notification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseBreak {
    pub epoch: u16,
    pub flags: u32,
    pub key: [u8; 16],
    /// CurrentLeaseState.
    pub current: u32,
    /// NewLeaseState.
    pub new: u32,
}

/// Lease break notification (MS-SMB2 2.2.23.2).
pub fn lease_break_notification(header: &Header, notice: &LeaseBreak) -> Vec<u8> {
    Builder::new(header, oplock_break::LEASE_NOTIFICATION)
        .u16(notice.epoch)
        .u32(notice.flags)
        .bytes(&notice.key)
        .u32(notice.current)
        .u32(notice.new)
        .zeros(12)
        .0
}

/// The answer to a lease break acknowledgement (MS-SMB2 2.2.25.2).
pub fn lease_break_ack_response(header: &Header, key: [u8; 16], state: u32) -> Vec<u8> {
    lease_ack(header, key, state)
}

/// The lease form of an acknowledgement, the same in both directions.
pub(super) fn lease_ack(header: &Header, key: [u8; 16], state: u32) -> Vec<u8> {
    Builder::new(header, oplock_break::LEASE_ACK).zeros(6).bytes(&key).u32(state).u64(0).0
}
