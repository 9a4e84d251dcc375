//! FLUSH (MS-SMB2 2.2.17, 2.2.18).

use crate::{FileId, ParseError, header::Command, read::Reader};

/// A FLUSH Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is flushed.
    pub file_id: FileId,
}

impl Request {
    /// Reads the body of a request.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::FLUSH, 24)?;
        r.skip(6)?;
        Ok(Self { file_id: r.file_id()? })
    }
}

/// A FLUSH Response: without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Without meaning.
    pub reserved: u16,
}

impl Response {
    /// Reads the body of an answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::FLUSH, 4)?;
        Ok(Self { reserved: r.u16("Reserved")? })
    }
}
