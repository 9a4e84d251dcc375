//! ERROR Response (MS-SMB2 2.2.2): the body of whatever fails, and of what is pending.
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    ParseError, Utf16,
    header::{Command, Header, Status},
    read::{Reader, index},
};

/// StructureSize.
const SIZE: u16 = 9;

/// Whether an answer with this header has the error body, rather than the one of its command (2.2.2 lists which
/// statuses do not).
pub fn is_error_body(header: &Header, msg: &[u8]) -> bool {
    let status = Status(header.status);
    if status == Status::PENDING {
        return true;
    }
    if status.is_success() {
        return false;
    }
    match header.command {
        Command::SESSION_SETUP => status != Status::MORE_PROCESSING_REQUIRED,
        Command::QUERY_INFO | Command::READ | Command::QUERY_DIRECTORY => status != Status::BUFFER_OVERFLOW,
        // SRV_COPYCHUNK reports its limits beside an error, pipes more data beside a warning: the size tells.
        Command::IOCTL => {
            msg.get(Header::LEN..).and_then(|b| b.first_chunk()).copied().map(u16::from_le_bytes)
                == Some(SIZE)
        }
        _ => true,
    }
}

/// An ERROR Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// Of 3.1.1: how many error contexts the data is made of; 0 before.
    pub error_context_count: u8,
    pub error_data: &'a [u8],
    command: Command,
}

impl<'a> Response<'a> {
    /// Reads the body of an answer, whatever its command.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let command = Header::parse(msg)?.command;
        let mut r = Reader::body(msg, command, SIZE)?;
        let error_context_count = r.u8("ErrorContextCount")?;
        r.skip(1)?;
        let len = r.u32("ByteCount")?;
        Ok(Self { error_context_count, error_data: r.bytes("ErrorData", index(len))?, command })
    }

    /// The error contexts (2.2.2.1); without a count the data is the only one, of id 0. Ends after the first error.
    pub fn contexts(&self) -> Contexts<'a> {
        Contexts {
            rest: self.error_data,
            left: self.error_context_count,
            bare: self.error_context_count == 0,
            command: self.command,
        }
    }
}

/// SMB2_ERROR_CONTEXT (2.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// 0 or `SRDR` (0x72645253, share redirect).
    pub error_id: u32,
    pub data: &'a [u8],
}

/// See [`Response::contexts`].
#[derive(Debug, Clone)]
pub struct Contexts<'a> {
    rest: &'a [u8],
    left: u8,
    bare: bool,
    command: Command,
}

impl<'a> Contexts<'a> {
    fn step(&mut self) -> Result<Context<'a>, ParseError> {
        let mut r = Reader::within(self.rest, self.command);
        let (len, error_id) = (index(r.u32("ErrorDataLength")?), r.u32("ErrorId")?);
        let data = r.bytes("ErrorContextData", len)?;
        self.rest = r.rest().get(len.next_multiple_of(8) - len..).unwrap_or_default();
        Ok(Context { error_id, data })
    }
}

impl<'a> Iterator for Contexts<'a> {
    type Item = Result<Context<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if std::mem::take(&mut self.bare) {
            return (!self.rest.is_empty()).then_some(Ok(Context { error_id: 0, data: self.rest }));
        }
        self.left = self.left.checked_sub(1)?;
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }
}

/// Symbolic Link Error Response (2.2.2.2.1), beside STATUS_STOPPED_ON_SYMLINK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symlink<'a> {
    pub unparsed_path_length: u16,
    pub substitute_name: Utf16<'a>,
    pub print_name: Utf16<'a>,
    pub flags: u32,
}

impl<'a> Symlink<'a> {
    /// Reads the data of an error context.
    pub fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        // Only opening a file runs into one.
        let mut r = Reader::within(data, Command::CREATE);
        let error = r.error("SymLinkErrorTag");
        r.u32("SymLinkLength")?;
        if r.u32("SymLinkErrorTag")? != 0x4c4d_5953 || r.u32("ReparseTag")? != 0xa000_000c {
            return Err(error);
        }
        r.u16("ReparseDataLength")?;
        let unparsed_path_length = r.u16("UnparsedPathLength")?;
        let (substitute_at, substitute_len) =
            (r.u16("SubstituteNameOffset")?, r.u16("SubstituteNameLength")?);
        let (print_at, print_len) = (r.u16("PrintNameOffset")?, r.u16("PrintNameLength")?);
        let flags = r.u32("Flags")?;
        let paths = Reader::within(r.rest(), Command::CREATE);
        Ok(Self {
            unparsed_path_length,
            substitute_name: Utf16(paths.part(
                "SubstituteName",
                substitute_at.into(),
                substitute_len.into(),
            )?),
            print_name: Utf16(paths.part("PrintName", print_at.into(), print_len.into())?),
            flags,
        })
    }
}
