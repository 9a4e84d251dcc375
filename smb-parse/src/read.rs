//! The one place where offsets and lengths of a peer are resolved.

use nom::{
    IResult, Parser,
    bytes::complete::take,
    number::complete::{le_u8, le_u16, le_u32, le_u64},
};

use crate::{FileId, ParseError, header::Command};

/// A UTF-16LE string as it stands on the wire. Nothing says that it is well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utf16<'a>(pub &'a [u8]);

impl Utf16<'_> {
    /// The text; what is not Unicode becomes U+FFFD.
    pub fn to_string_lossy(self) -> String {
        let units = self.0.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
}

/// Reads fields one behind the other, by nom's complete combinators.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
    command: Option<Command>,
}

impl<'a> Reader<'a> {
    /// From the body of a message, behind its header and a StructureSize of `size`.
    #[inline]
    pub(crate) fn body(msg: &'a [u8], command: Command, size: u16) -> Result<Self, ParseError> {
        let mut r = Self::any_body(msg, command)?;
        let at = r.error("StructureSize");
        if r.u16("StructureSize")? == size { Ok(r) } else { Err(at) }
    }

    /// From the body of a message; StructureSize comes next.
    #[inline]
    pub(crate) fn any_body(msg: &'a [u8], command: Command) -> Result<Self, ParseError> {
        let rest =
            msg.get(64..).ok_or(ParseError { command: Some(command), field: "Header", at: msg.len() })?;
        Ok(Self { whole: msg, rest, command: Some(command) })
    }

    /// From the first byte of anything else.
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { whole: bytes, rest: bytes, command: None }
    }

    /// From the first byte of a part of a message of `command`.
    #[inline]
    pub(crate) fn within(bytes: &'a [u8], command: Command) -> Self {
        Self { command: Some(command), ..Self::new(bytes) }
    }

    #[inline]
    pub(crate) fn error(&self, field: &'static str) -> ParseError {
        ParseError { command: self.command, field, at: self.whole.len() - self.rest.len() }
    }

    #[inline]
    fn step<T>(
        &mut self,
        field: &'static str,
        parsed: IResult<&'a [u8], T, nom::error::Error<&'a [u8]>>,
    ) -> Result<T, ParseError> {
        let (rest, value) = parsed.map_err(|_| self.error(field))?;
        self.rest = rest;
        Ok(value)
    }

    #[inline]
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, ParseError> {
        self.step(field, le_u8.parse_complete(self.rest))
    }

    #[inline]
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, ParseError> {
        self.step(field, le_u16.parse_complete(self.rest))
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, ParseError> {
        self.step(field, le_u32.parse_complete(self.rest))
    }

    #[inline]
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, ParseError> {
        self.step(field, le_u64.parse_complete(self.rest))
    }

    #[inline]
    pub(crate) fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], ParseError> {
        self.step(field, take(count).parse_complete(self.rest))
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ParseError> {
        let error = self.error(field);
        self.bytes(field, N)?.try_into().map_err(|_| error)
    }

    #[inline]
    pub(crate) fn file_id(&mut self) -> Result<FileId, ParseError> {
        Ok(FileId::from_bytes(self.array("FileId")?))
    }

    /// Steps over what means nothing (yet).
    #[inline]
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), ParseError> {
        self.bytes("Reserved", count).map(|_| ())
    }

    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The variable part at `offset` of the message. An empty one may point anywhere.
    #[inline]
    pub(crate) fn part(
        &self,
        field: &'static str,
        offset: usize,
        len: usize,
    ) -> Result<&'a [u8], ParseError> {
        if len == 0 {
            return Ok(&[]);
        }
        offset.checked_add(len).and_then(|end| self.whole.get(offset..end)).ok_or(ParseError {
            command: self.command,
            field,
            at: offset,
        })
    }

    /// Everything from `offset` of the message on.
    #[inline]
    pub(crate) fn from(&self, field: &'static str, offset: usize) -> Result<&'a [u8], ParseError> {
        self.whole.get(offset..).ok_or(ParseError { command: self.command, field, at: offset })
    }
}

/// A 32-bit length as an index.
pub(crate) fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
