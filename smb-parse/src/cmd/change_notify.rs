//! CHANGE_NOTIFY (MS-SMB2 2.2.35, 2.2.36).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError, Utf16,
    header::Command,
    read::{Reader, index},
};

/// `SMB2_WATCH_TREE`.
pub const WATCH_TREE: u16 = 0x0001;

/// A CHANGE_NOTIFY Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub output_buffer_length: u32,
    pub file_id: FileId,
    pub completion_filter: u32,
}

impl Request {
    /// Reads the body of a request.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CHANGE_NOTIFY, 32)?;
        let (flags, output_buffer_length) = (r.u16("Flags")?, r.u32("OutputBufferLength")?);
        let file_id = r.file_id()?;
        let completion_filter = r.u32("CompletionFilter")?;
        r.skip(4)?;
        Ok(Self { flags, output_buffer_length, file_id, completion_filter })
    }
}

/// A CHANGE_NOTIFY Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// OutputBuffer: see [`Response::changes`].
    pub buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CHANGE_NOTIFY, 9)?;
        let (at, len) = (r.u16("OutputBufferOffset")?, r.u32("OutputBufferLength")?);
        Ok(Self { buffer: r.part("OutputBuffer", at.into(), index(len))? })
    }

    /// What changed. Ends after the first error.
    pub fn changes(&self) -> Changes<'a> {
        Changes { rest: Some(self.buffer).filter(|b| !b.is_empty()) }
    }
}

/// FILE_NOTIFY_INFORMATION (MS-FSCC 2.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    pub action: u32,
    pub name: Utf16<'a>,
}

/// See [`Response::changes`].
#[derive(Debug, Clone)]
pub struct Changes<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Changes<'a> {
    fn step(&mut self, bytes: &'a [u8]) -> Result<Change<'a>, ParseError> {
        let mut r = Reader::within(bytes, Command::CHANGE_NOTIFY);
        let at = r.error("NextEntryOffset");
        let (next, action, len) = (r.u32("NextEntryOffset")?, r.u32("Action")?, r.u32("FileNameLength")?);
        let name = Utf16(r.bytes("FileName", index(len))?);
        if next != 0 {
            let end = bytes.len() - r.rest().len();
            self.rest = Some(bytes.get(index(next)..).filter(|_| index(next) >= end).ok_or(at)?);
        }
        Ok(Change { action, name })
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Result<Change<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.rest.take()?;
        Some(self.step(bytes))
    }
}
