//! Building messages of the proxy's own. What is forwarded is patched, not encoded.
//!
//! Every builder takes the header and returns the whole message without the 4-byte prefix; [`frame`] adds that.

mod context;
mod request;
mod response;

pub use context::{
    durable_reconnect, durable_request, durable_v2_reconnect, durable_v2_request, lease, query_on_disk_id,
    timewarp,
};
pub use request::{
    CreateParams, IoctlParams, NegotiateParams, QueryDirectoryParams, QueryInfoParams, SessionSetupParams,
    cancel, close, create, echo, flush, ioctl, lease_break_ack, lock, logoff, negotiate, oplock_break_ack,
    query_directory, query_info, read, session_setup, set_info, tree_connect, tree_disconnect, write,
};
pub use response::{
    LeaseBreak, close_response, create_response, echo_response, error_response, ioctl_response,
    lease_break_ack_response, lease_break_notification, lock_response, oplock_break_ack_response,
    oplock_break_notification, query_directory_response, read_response, session_setup_response,
    set_info_response, write_response,
};

use crate::{
    FileId,
    frame::{PREFIX, write_prefix},
    header::Header,
    patch,
};

/// A frame of one message or compound: the prefix before it.
pub fn frame(msg: impl AsRef<[u8]>) -> Vec<u8> {
    let msg = msg.as_ref();
    let mut frame = vec![0; PREFIX];
    frame.reserve_exact(msg.len());
    write_prefix(&mut frame, msg.len());
    frame.extend_from_slice(msg);
    frame
}

/// Chains messages into a compound: each but the last padded to 8 bytes, NextCommand set. Sign afterwards, if at all.
pub fn compound<M: AsRef<[u8]>>(msgs: &[M]) -> Vec<u8> {
    let mut out = Vec::with_capacity(msgs.iter().map(|msg| msg.as_ref().len().next_multiple_of(8)).sum());
    for (index, msg) in msgs.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(msg.as_ref());
        let last = index + 1 == msgs.len();
        if !last {
            out.resize(out.len().next_multiple_of(8), 0);
        }
        let next = if last { 0 } else { len32(out.len() - start) };
        if let Some(msg) = out.get_mut(start..) {
            patch::set_next_command(msg, next);
        }
    }
    out
}

/// A message that grows.
#[derive(Debug)]
struct Builder(Vec<u8>);

impl Builder {
    /// Header and StructureSize.
    fn new(header: &Header, structure_size: u16) -> Self {
        let mut msg = vec![0; Header::LEN];
        header.write(&mut msg);
        Self(msg).u16(structure_size)
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn file_id(self, id: FileId) -> Self {
        self.bytes(&id.to_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Zeros up to a multiple of 8.
    fn align(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    /// What stands behind the fixed part; one zero if that is nothing, for the byte that an odd StructureSize counts.
    fn variable(self, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() { self.u8(0).0 } else { self.bytes(bytes).0 }
    }
}

/// The offset of what stands `fixed` bytes behind the header, as 16 bits.
const fn behind(fixed: u16) -> u16 {
    64 + fixed
}

fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
