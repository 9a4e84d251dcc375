//! CLOSE (MS-SMB2 2.2.15, 2.2.16).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{FileId, ParseError, header::Command, read::Reader};

/// `SMB2_CLOSE_FLAG_POSTQUERY_ATTRIB`.
pub const POSTQUERY_ATTRIB: u16 = 0x0001;

/// A CLOSE Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub file_id: FileId,
}

impl Request {
    /// Reads the body of a request.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CLOSE, 24)?;
        let flags = r.u16("Flags")?;
        r.skip(4)?;
        Ok(Self { flags, file_id: r.file_id()? })
    }
}

/// A CLOSE Response. All but the flags is 0 unless POSTQUERY_ATTRIB was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response {
    pub flags: u16,
    pub creation_time: u64,
    pub last_access_time: u64,
    pub last_write_time: u64,
    pub change_time: u64,
    pub allocation_size: u64,
    pub end_of_file: u64,
    pub file_attributes: u32,
}

impl Response {
    /// Reads the body of an answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CLOSE, 60)?;
        let flags = r.u16("Flags")?;
        r.skip(4)?;
        Ok(Self {
            flags,
            creation_time: r.u64("CreationTime")?,
            last_access_time: r.u64("LastAccessTime")?,
            last_write_time: r.u64("LastWriteTime")?,
            change_time: r.u64("ChangeTime")?,
            allocation_size: r.u64("AllocationSize")?,
            end_of_file: r.u64("EndofFile")?,
            file_attributes: r.u32("FileAttributes")?,
        })
    }
}
