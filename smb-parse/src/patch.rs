//! Changing ids and credits in place: what is forwarded is never parsed and encoded again.
//!
//! Every function leaves a message that is too short as it is, and says so.

use crate::{
    FileId,
    cmd::oplock_break,
    create_context::{Lease, tag, visit_mut},
    frame::{Protocol, protocol},
    fsctl,
    header::{Command, Flags, Status},
    read::index,
};

/// Header fields (MS-SMB2 2.2.1).
mod at {
    pub(super) const CREDIT_CHARGE: usize = 6;
    pub(super) const STATUS: usize = 8;
    pub(super) const COMMAND: usize = 12;
    pub(super) const CREDITS: usize = 14;
    pub(super) const FLAGS: usize = 16;
    pub(super) const NEXT_COMMAND: usize = 20;
    pub(super) const MESSAGE_ID: usize = 24;
    pub(super) const RESERVED: usize = 32;
    pub(super) const TREE_ID: usize = 36;
    pub(super) const SESSION_ID: usize = 40;
    pub(super) const SIGNATURE: usize = 48;
    pub(super) const BODY: usize = 64;
}

#[inline]
fn put<const N: usize>(msg: &mut [u8], at: usize, bytes: [u8; N]) -> bool {
    let field = msg.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
    field.map(|field| *field = bytes).is_some()
}

#[inline]
fn get<const N: usize>(msg: &[u8], at: usize) -> Option<[u8; N]> {
    msg.get(at..)?.first_chunk().copied()
}

/// CreditCharge.
#[inline]
pub fn set_credit_charge(msg: &mut [u8], charge: u16) -> bool {
    put(msg, at::CREDIT_CHARGE, charge.to_le_bytes())
}

/// Status; in a request ChannelSequence.
#[inline]
pub fn set_status(msg: &mut [u8], status: Status) -> bool {
    put(msg, at::STATUS, status.0.to_le_bytes())
}

/// CreditRequest or CreditResponse.
#[inline]
pub fn set_credits(msg: &mut [u8], credits: u16) -> bool {
    put(msg, at::CREDITS, credits.to_le_bytes())
}

/// Flags.
#[inline]
pub fn set_flags(msg: &mut [u8], flags: Flags) -> bool {
    put(msg, at::FLAGS, flags.0.to_le_bytes())
}

/// NextCommand.
#[inline]
pub fn set_next_command(msg: &mut [u8], next: u32) -> bool {
    put(msg, at::NEXT_COMMAND, next.to_le_bytes())
}

/// MessageId.
#[inline]
pub fn set_message_id(msg: &mut [u8], id: u64) -> bool {
    put(msg, at::MESSAGE_ID, id.to_le_bytes())
}

/// TreeId of a synchronous message. False if the message is asynchronous: the bytes are its AsyncId.
#[inline]
pub fn set_tree_id(msg: &mut [u8], id: u32) -> bool {
    flags(msg).is_some_and(|flags| !flags.contains(Flags::ASYNC)) && put(msg, at::TREE_ID, id.to_le_bytes())
}

/// AsyncId, and the flag that says so.
#[inline]
pub fn set_async_id(msg: &mut [u8], id: u64) -> bool {
    let Some(flags) = flags(msg) else { return false };
    put(msg, at::RESERVED, id.to_le_bytes()) && set_flags(msg, flags | Flags::ASYNC)
}

/// Makes a message synchronous, on this tree.
#[inline]
pub fn set_sync(msg: &mut [u8], tree_id: u32) -> bool {
    let Some(flags) = flags(msg) else { return false };
    put(msg, at::RESERVED, u64::from(tree_id).wrapping_shl(32).to_le_bytes())
        && set_flags(msg, flags.without(Flags::ASYNC))
}

/// SessionId.
#[inline]
pub fn set_session_id(msg: &mut [u8], id: u64) -> bool {
    put(msg, at::SESSION_ID, id.to_le_bytes())
}

/// Signature.
#[inline]
pub fn set_signature(msg: &mut [u8], signature: [u8; 16]) -> bool {
    put(msg, at::SIGNATURE, signature)
}

/// PreviousSessionId of a SESSION_SETUP Request (MS-SMB2 2.2.5). False if it is none.
#[inline]
pub fn set_previous_session_id(msg: &mut [u8], id: u64) -> bool {
    const SIZE: u16 = 25;
    let is_request = flags(msg).is_some_and(|flags| !flags.contains(Flags::SERVER_TO_REDIR));
    is_request
        && command(msg) == Some(Command::SESSION_SETUP)
        && structure_size(msg) == Some(SIZE)
        && put(msg, at::BODY + 16, id.to_le_bytes())
}

/// SessionId of a sealed message's TRANSFORM_HEADER (MS-SMB2 2.2.41). False if the body is none.
#[inline]
pub fn set_transform_session_id(body: &mut [u8], id: u64) -> bool {
    const SESSION_ID: usize = 44;
    protocol(body) == Protocol::Transform && put(body, SESSION_ID, id.to_le_bytes())
}

#[inline]
fn flags(msg: &[u8]) -> Option<Flags> {
    get(msg, at::FLAGS).map(u32::from_le_bytes).map(Flags)
}

#[inline]
fn command(msg: &[u8]) -> Option<Command> {
    get(msg, at::COMMAND).map(u16::from_le_bytes).map(Command)
}

#[inline]
fn structure_size(msg: &[u8]) -> Option<u16> {
    get(msg, at::BODY).map(u16::from_le_bytes)
}

/// Where the fixed part of a request has its FileId.
#[inline]
fn request_position(msg: &[u8]) -> Option<usize> {
    let (size, offset) = match command(msg)? {
        Command::CLOSE | Command::FLUSH => (24, 8),
        Command::OPLOCK_BREAK => (oplock_break::OPLOCK, 8),
        Command::LOCK => (48, 8),
        Command::IOCTL => (57, 8),
        Command::QUERY_DIRECTORY => (33, 8),
        Command::CHANGE_NOTIFY => (32, 8),
        Command::READ | Command::WRITE => (49, 16),
        Command::SET_INFO => (33, 16),
        Command::QUERY_INFO => (41, 24),
        _ => return None,
    };
    (structure_size(msg)? == size).then_some(at::BODY + offset)
}

/// Where the fixed part of an answer has its FileId. Error bodies have none: their StructureSize is another.
#[inline]
fn response_position(msg: &[u8]) -> Option<usize> {
    let (size, offset) = match command(msg)? {
        Command::CREATE => (89, 64),
        Command::IOCTL => (49, 8),
        Command::OPLOCK_BREAK => (oplock_break::OPLOCK, 8),
        _ => return None,
    };
    (structure_size(msg)? == size).then_some(at::BODY + offset)
}

/// CreateDisposition of a CREATE request (MS-SMB2 2.2.13).
pub fn set_create_disposition(msg: &mut [u8], disposition: u32) -> bool {
    put(msg, at::BODY + 36, disposition.to_le_bytes())
}

/// CreateAction of an answer to CREATE (MS-SMB2 2.2.14).
pub fn set_create_action(msg: &mut [u8], action: u32) -> bool {
    put(msg, at::BODY + 4, action.to_le_bytes())
}

/// Puts a lease in the place of the one in an answer to CREATE (MS-SMB2 2.2.14.2.10, 2.2.14.2.11): LeaseState, LeaseFlags and,
/// in version 2, Epoch. False if it has none of that version.
pub fn set_response_lease(msg: &mut [u8], lease: &Lease) -> bool {
    const SIZE: u16 = 89;
    const CONTEXTS: usize = at::BODY + 80;
    const STATE: usize = 16;
    const FLAGS: usize = 20;
    const EPOCH: usize = 48;
    if command(msg) != Some(Command::CREATE) || structure_size(msg) != Some(SIZE) {
        return false;
    }
    let Some(area) = part_mut(msg, CONTEXTS) else { return false };
    let mut done = false;
    visit_mut(area, &mut |name, data| {
        if name == tag::RQLS {
            done = put(data, STATE, lease.state.to_le_bytes())
                && put(data, FLAGS, lease.flags.to_le_bytes())
                && (lease.version == 1 || put(data, EPOCH, lease.epoch.to_le_bytes()));
        }
    });
    done
}

/// The FileId in the fixed part of a request.
#[inline]
pub fn request_file_id(msg: &[u8]) -> Option<FileId> {
    get(msg, request_position(msg)?).map(FileId::from_bytes)
}

/// Changes the FileId in the fixed part of a request. False if its command has none.
#[inline]
pub fn set_request_file_id(msg: &mut [u8], id: FileId) -> bool {
    request_position(msg).is_some_and(|at| put(msg, at, id.to_bytes()))
}

/// The FileId in the fixed part of an answer or of a break notification.
#[inline]
pub fn response_file_id(msg: &[u8]) -> Option<FileId> {
    get(msg, response_position(msg)?).map(FileId::from_bytes)
}

/// Changes the FileId in the fixed part of an answer or of a break notification. False if it has none.
#[inline]
pub fn set_response_file_id(msg: &mut [u8], id: FileId) -> bool {
    response_position(msg).is_some_and(|at| put(msg, at, id.to_bytes()))
}

/// Calls `f` with every FileId of a message and puts its result in the place, wherever ids stand: in the fixed part,
/// in the contexts of a durable reconnect, in resume keys and in the sources of server-side copies and clones.
///
/// `FileId::ALL_ONES` names no Open and is left alone.
pub fn rewrite_file_ids(msg: &mut [u8], f: &mut dyn FnMut(FileId) -> FileId) {
    let (Some(command), Some(flags)) = (command(msg), flags(msg)) else { return };
    let is_response = flags.contains(Flags::SERVER_TO_REDIR);
    let fixed = if is_response { response_position(msg) } else { request_position(msg) };
    if let Some(at) = fixed {
        rewrite_at(msg, at, f);
    }
    match (command, is_response) {
        (Command::CREATE, false) => rewrite_reconnect(msg, f),
        (Command::IOCTL, false) if fixed.is_some() => rewrite_input(msg, f),
        (Command::IOCTL, true) if fixed.is_some() => rewrite_output(msg, f),
        _ => {}
    }
}

/// One FileId.
fn rewrite_at(bytes: &mut [u8], at: usize, f: &mut dyn FnMut(FileId) -> FileId) {
    let Some(id) = get(bytes, at).map(FileId::from_bytes) else { return };
    if id != FileId::ALL_ONES {
        put(bytes, at, f(id).to_bytes());
    }
}

/// DHnC and DH2C (MS-SMB2 2.2.13.2.4, 2.2.13.2.12): both begin with the FileId.
fn rewrite_reconnect(msg: &mut [u8], f: &mut dyn FnMut(FileId) -> FileId) {
    const SIZE: u16 = 57;
    const CONTEXTS: usize = at::BODY + 48;
    if structure_size(msg) != Some(SIZE) {
        return;
    }
    let Some(area) = part_mut(msg, CONTEXTS) else { return };
    visit_mut(area, &mut |name, data| {
        if matches!(name, tag::DHNC | tag::DH2C) {
            rewrite_at(data, 0, f);
        }
    });
}

/// The source of a copy or a clone (MS-SMB2 2.2.31.1, MS-FSCC 2.3.7, 2.3.9).
fn rewrite_input(msg: &mut [u8], f: &mut dyn FnMut(FileId) -> FileId) {
    const INPUT: usize = at::BODY + 24;
    let Some(position) = ctl_code(msg).and_then(fsctl::input_file_id) else { return };
    if let Some(input) = part_mut(msg, INPUT) {
        rewrite_at(input, position, f);
    }
}

/// The resume key (MS-SMB2 2.2.32.3): Samba's is the FileId and a context of 8 bytes.
fn rewrite_output(msg: &mut [u8], f: &mut dyn FnMut(FileId) -> FileId) {
    const OUTPUT: usize = at::BODY + 32;
    let Some(position) = ctl_code(msg).and_then(fsctl::output_file_id) else { return };
    if let Some(output) = part_mut(msg, OUTPUT) {
        rewrite_at(output, position, f);
    }
}

fn ctl_code(msg: &[u8]) -> Option<u32> {
    get(msg, at::BODY + 4).map(u32::from_le_bytes)
}

/// The variable part whose 32-bit offset and length stand at `at`.
fn part_mut(msg: &mut [u8], at: usize) -> Option<&mut [u8]> {
    let offset = index(u32::from_le_bytes(get(msg, at)?));
    let len = index(u32::from_le_bytes(get(msg, at + 4)?));
    // No variable part lies in the header or in the fixed part that was just read.
    if offset < at + 8 {
        return None;
    }
    msg.get_mut(offset..offset.checked_add(len)?)
}
