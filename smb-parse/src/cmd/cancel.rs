//! CANCEL (MS-SMB2 2.2.30): a body without content.

use crate::{ParseError, header::Command, read::Reader};

/// A CANCEL Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Without meaning.
    pub reserved: u16,
}

impl Request {
    /// Reads the body of a request.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CANCEL, 4)?;
        Ok(Self { reserved: r.u16("Reserved")? })
    }
}
