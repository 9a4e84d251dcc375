//! IOCTL (MS-SMB2 2.2.31, 2.2.32). The codes are in [`crate::fsctl`].
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// `SMB2_0_IOCTL_IS_FSCTL`.
pub const IS_FSCTL: u32 = 0x1;

/// An IOCTL Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub ctl_code: u32,
    pub file_id: FileId,
    pub input: &'a [u8],
    /// MaxInputResponse.
    pub max_input: u32,
    /// OutputBuffer: empty in requests as a rule.
    pub output: &'a [u8],
    /// MaxOutputResponse.
    pub max_output: u32,
    pub flags: u32,
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::IOCTL, 57)?;
        r.skip(2)?;
        let ctl_code = r.u32("CtlCode")?;
        let file_id = r.file_id()?;
        let (input_at, input_len) = (r.u32("InputOffset")?, r.u32("InputCount")?);
        let max_input = r.u32("MaxInputResponse")?;
        let (output_at, output_len) = (r.u32("OutputOffset")?, r.u32("OutputCount")?);
        let max_output = r.u32("MaxOutputResponse")?;
        let flags = r.u32("Flags")?;
        r.skip(4)?;
        let input = r.part("Input", index(input_at), index(input_len))?;
        let output = r.part("Output", index(output_at), index(output_len))?;
        Ok(Self { ctl_code, file_id, input, max_input, output, max_output, flags })
    }
}

/// An IOCTL Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    pub ctl_code: u32,
    pub file_id: FileId,
    pub input: &'a [u8],
    pub output: &'a [u8],
    pub flags: u32,
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::IOCTL, 49)?;
        r.skip(2)?;
        let ctl_code = r.u32("CtlCode")?;
        let file_id = r.file_id()?;
        let (input_at, input_len) = (r.u32("InputOffset")?, r.u32("InputCount")?);
        let (output_at, output_len) = (r.u32("OutputOffset")?, r.u32("OutputCount")?);
        let flags = r.u32("Flags")?;
        r.skip(4)?;
        let input = r.part("Input", index(input_at), index(input_len))?;
        let output = r.part("Output", index(output_at), index(output_len))?;
        Ok(Self { ctl_code, file_id, input, output, flags })
    }
}
