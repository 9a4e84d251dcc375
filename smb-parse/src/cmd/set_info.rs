//! SET_INFO (MS-SMB2 2.2.39, 2.2.40). InfoType as in [`super::query_info`].
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// A SET_INFO Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub info_type: u8,
    pub file_info_class: u8,
    pub additional_information: u32,
    pub file_id: FileId,
    pub buffer: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::SET_INFO, 33)?;
        let (info_type, file_info_class) = (r.u8("InfoType")?, r.u8("FileInfoClass")?);
        let (len, at) = (r.u32("BufferLength")?, r.u16("BufferOffset")?);
        r.skip(2)?;
        let additional_information = r.u32("AdditionalInformation")?;
        let file_id = r.file_id()?;
        let buffer = r.part("Buffer", at.into(), index(len))?;
        Ok(Self { info_type, file_info_class, additional_information, file_id, buffer })
    }
}

/// A SET_INFO Response: a StructureSize and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response;

impl Response {
    /// Reads the body of an answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        Reader::body(msg, Command::SET_INFO, 2).map(|_| Self)
    }
}
