//! QUERY_INFO (MS-SMB2 2.2.37, 2.2.38) and the classes of information (MS-FSCC 2.4, 2.5).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// `SMB2_0_INFO_FILE`.
pub const FILE: u8 = 1;
/// `SMB2_0_INFO_FILESYSTEM`.
pub const FILESYSTEM: u8 = 2;
/// `SMB2_0_INFO_SECURITY`.
pub const SECURITY: u8 = 3;
/// `SMB2_0_INFO_QUOTA`.
pub const QUOTA: u8 = 4;

/// A QUERY_INFO Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub info_type: u8,
    pub file_info_class: u8,
    pub output_buffer_length: u32,
    pub additional_information: u32,
    pub flags: u32,
    pub file_id: FileId,
    pub input: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::QUERY_INFO, 41)?;
        let (info_type, file_info_class) = (r.u8("InfoType")?, r.u8("FileInfoClass")?);
        let output_buffer_length = r.u32("OutputBufferLength")?;
        let at = r.u16("InputBufferOffset")?;
        r.skip(2)?;
        let len = r.u32("InputBufferLength")?;
        let (additional_information, flags) = (r.u32("AdditionalInformation")?, r.u32("Flags")?);
        let file_id = r.file_id()?;
        let input = r.part("InputBuffer", at.into(), index(len))?;
        Ok(Self {
            info_type,
            file_info_class,
            output_buffer_length,
            additional_information,
            flags,
            file_id,
            input,
        })
    }
}

/// A QUERY_INFO Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// OutputBuffer.
    pub buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::QUERY_INFO, 9)?;
        let (at, len) = (r.u16("OutputBufferOffset")?, r.u32("OutputBufferLength")?);
        Ok(Self { buffer: r.part("OutputBuffer", at.into(), index(len))? })
    }
}
