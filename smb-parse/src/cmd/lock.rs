//! LOCK (MS-SMB2 2.2.26, 2.2.27).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{FileId, ParseError, header::Command, read::Reader};

/// `SMB2_LOCKFLAG_SHARED_LOCK`.
pub const SHARED: u32 = 0x01;
/// `SMB2_LOCKFLAG_EXCLUSIVE_LOCK`.
pub const EXCLUSIVE: u32 = 0x02;
/// `SMB2_LOCKFLAG_UNLOCK`.
pub const UNLOCK: u32 = 0x04;
/// `SMB2_LOCKFLAG_FAIL_IMMEDIATELY`.
pub const FAIL_IMMEDIATELY: u32 = 0x10;

/// SMB2_LOCK_ELEMENT (2.2.26.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub offset: u64,
    pub length: u64,
    pub flags: u32,
}

impl Lock {
    /// Length on the wire.
    pub const LEN: usize = 24;

    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::within(bytes, Command::LOCK);
        Ok(Self { offset: r.u64("Offset")?, length: r.u64("Length")?, flags: r.u32("Flags")? })
    }
}

/// A LOCK Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub lock_count: u16,
    /// LockSequenceNumber in the low 4 bits, LockSequenceIndex above; reserved in 2.0.2.
    pub lock_sequence: u32,
    pub file_id: FileId,
    elements: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::LOCK, 48)?;
        let lock_count = r.u16("LockCount")?;
        let lock_sequence = r.u32("LockSequence")?;
        let file_id = r.file_id()?;
        let elements = r.bytes("Locks", usize::from(lock_count) * Lock::LEN)?;
        Ok(Self { lock_count, lock_sequence, file_id, elements })
    }

    /// The ranges, in order.
    pub fn locks(&self) -> impl Iterator<Item = Result<Lock, ParseError>> + use<'a> {
        self.elements.chunks_exact(Lock::LEN).map(Lock::parse)
    }
}

/// A LOCK Response: without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    pub reserved: u16,
}

impl Response {
    /// Reads the body of an answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::LOCK, 4)?;
        Ok(Self { reserved: r.u16("Reserved")? })
    }
}
