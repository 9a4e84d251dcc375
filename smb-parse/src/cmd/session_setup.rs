//! SESSION_SETUP (MS-SMB2 2.2.5, 2.2.6).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{ParseError, header::Command, read::Reader};

/// `SMB2_SESSION_FLAG_BINDING` in a request.
pub const BINDING: u8 = 0x01;
/// `SMB2_SESSION_FLAG_IS_GUEST` in an answer.
pub const GUEST: u16 = 0x0001;
/// `SMB2_SESSION_FLAG_IS_NULL`.
pub const NULL: u16 = 0x0002;
/// `SMB2_SESSION_FLAG_ENCRYPT_DATA`.
pub const ENCRYPT: u16 = 0x0004;

/// A SESSION_SETUP Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub flags: u8,
    pub security_mode: u8,
    pub capabilities: u32,
    pub channel: u32,
    pub previous_session_id: u64,
    pub security_buffer: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::SESSION_SETUP, 25)?;
        let (flags, security_mode) = (r.u8("Flags")?, r.u8("SecurityMode")?);
        let (capabilities, channel) = (r.u32("Capabilities")?, r.u32("Channel")?);
        let (offset, len) = (r.u16("SecurityBufferOffset")?, r.u16("SecurityBufferLength")?);
        let previous_session_id = r.u64("PreviousSessionId")?;
        let security_buffer = r.part("SecurityBuffer", offset.into(), len.into())?;
        Ok(Self { flags, security_mode, capabilities, channel, previous_session_id, security_buffer })
    }
}

/// A SESSION_SETUP Response, be it final or with STATUS_MORE_PROCESSING_REQUIRED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    pub session_flags: u16,
    pub security_buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::SESSION_SETUP, 9)?;
        let session_flags = r.u16("SessionFlags")?;
        let (offset, len) = (r.u16("SecurityBufferOffset")?, r.u16("SecurityBufferLength")?);
        Ok(Self { session_flags, security_buffer: r.part("SecurityBuffer", offset.into(), len.into())? })
    }
}
