//! READ (MS-SMB2 2.2.19, 2.2.20).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// A READ Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Where in the answer the client would like the data.
    pub padding: u8,
    pub flags: u8,
    pub length: u32,
    pub offset: u64,
    pub file_id: FileId,
    pub minimum_count: u32,
    pub channel: u32,
    pub remaining_bytes: u32,
    pub read_channel_info: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    #[inline]
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::READ, 49)?;
        let (padding, flags) = (r.u8("Padding")?, r.u8("Flags")?);
        let (length, offset) = (r.u32("Length")?, r.u64("Offset")?);
        let file_id = r.file_id()?;
        let minimum_count = r.u32("MinimumCount")?;
        let channel = r.u32("Channel")?;
        let remaining_bytes = r.u32("RemainingBytes")?;
        let (at, len) = (r.u16("ReadChannelInfoOffset")?, r.u16("ReadChannelInfoLength")?);
        let read_channel_info = r.part("ReadChannelInfo", at.into(), len.into())?;
        Ok(Self {
            padding,
            flags,
            length,
            offset,
            file_id,
            minimum_count,
            channel,
            remaining_bytes,
            read_channel_info,
        })
    }
}

/// A READ Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// Where in the message the data stands.
    pub data_offset: u8,
    pub data_remaining: u32,
    /// In 3.1.1; reserved before.
    pub flags: u32,
    pub data: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    #[inline]
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::READ, 17)?;
        let data_offset = r.u8("DataOffset")?;
        r.skip(1)?;
        let (len, data_remaining) = (r.u32("DataLength")?, r.u32("DataRemaining")?);
        let flags = r.u32("Flags")?;
        let data = r.part("Data", data_offset.into(), index(len))?;
        Ok(Self { data_offset, data_remaining, flags, data })
    }
}
