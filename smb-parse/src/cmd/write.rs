//! WRITE (MS-SMB2 2.2.21, 2.2.22).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// `SMB2_WRITEFLAG_WRITE_THROUGH`.
pub const WRITE_THROUGH: u32 = 0x1;
/// `SMB2_WRITEFLAG_WRITE_UNBUFFERED`.
pub const UNBUFFERED: u32 = 0x2;

/// A WRITE Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub length: u32,
    pub offset: u64,
    pub file_id: FileId,
    /// Not 0: the data comes by RDMA.
    pub channel: u32,
    /// RemainingBytes: with RDMA how much data there is.
    pub remaining: u32,
    pub write_channel_info: &'a [u8],
    pub flags: u32,
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    #[inline]
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::WRITE, 49)?;
        let data_offset = r.u16("DataOffset")?;
        let (length, offset) = (r.u32("Length")?, r.u64("Offset")?);
        let file_id = r.file_id()?;
        let (channel, remaining) = (r.u32("Channel")?, r.u32("RemainingBytes")?);
        let (at, len) = (r.u16("WriteChannelInfoOffset")?, r.u16("WriteChannelInfoLength")?);
        let flags = r.u32("Flags")?;
        let write_channel_info = r.part("WriteChannelInfo", at.into(), len.into())?;
        let data = r.part("Data", data_offset.into(), index(length))?;
        Ok(Self { length, offset, file_id, channel, remaining, write_channel_info, flags, data })
    }
}

/// A WRITE Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    pub count: u32,
    pub remaining: u32,
}

impl Response {
    /// Reads the body of an answer.
    #[inline]
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::WRITE, 17)?;
        r.skip(2)?;
        let (count, remaining) = (r.u32("Count")?, r.u32("Remaining")?);
        // WriteChannelInfoOffset and -Length: reserved.
        r.skip(4)?;
        Ok(Self { count, remaining })
    }
}
