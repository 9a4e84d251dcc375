//! The SMB2/3 wire (MS-SMB2): frames, headers, every command, negotiate and create contexts, patching in place and
//! building messages. No I/O and no allocation on the parse path; what a peer sends can only lead to a typed error.
//!
//! `msg` always means one SMB2 message from its 64-byte header on, up to the next element of its compound or to the
//! end of the frame; offsets on the wire are relative to it. A *frame* is the 4-byte direct-TCP prefix and a body.

#![forbid(unsafe_code)]

pub mod cmd;
pub mod compound;
pub mod compression;
pub mod create_context;
pub mod encode;
mod error;
pub mod frame;
pub mod fsctl;
pub mod header;
pub mod info;
pub mod patch;
mod read;
pub mod smb1;
pub mod transform;
pub mod walk;

pub use crate::{error::ParseError, read::Utf16};

/// SMB2_FILEID (MS-SMB2 2.2.14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The part that outlives a lost connection, if the Open is durable.
    pub persistent: u64,
    /// The part that names the Open on its session.
    pub volatile: u64,
}

impl FileId {
    /// "The one opened earlier in this compound", or none at all (MS-SMB2 3.3.5.2.7.2).
    pub const ALL_ONES: Self = Self { persistent: u64::MAX, volatile: u64::MAX };

    /// As on the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.persistent.to_le_bytes());
        bytes[8..].copy_from_slice(&self.volatile.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[inline]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self { persistent: value as u64, volatile: (value >> 64) as u64 }
    }
}
