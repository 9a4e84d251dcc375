//! QUERY_DIRECTORY (MS-SMB2 2.2.33, 2.2.34) and the entries of its answers (MS-FSCC 2.4).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use std::ops::Range;

use crate::{
    FileId, ParseError, Utf16,
    header::Command,
    read::{Reader, index},
};

/// `SMB2_RESTART_SCANS`.
pub const RESTART_SCANS: u8 = 0x01;
/// `SMB2_RETURN_SINGLE_ENTRY`.
pub const RETURN_SINGLE_ENTRY: u8 = 0x02;
/// `SMB2_INDEX_SPECIFIED`.
pub const INDEX_SPECIFIED: u8 = 0x04;
/// `SMB2_REOPEN`.
pub const REOPEN: u8 = 0x10;

/// A QUERY_DIRECTORY Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// FileInformationClass.
    pub info_class: u8,
    pub flags: u8,
    pub file_index: u32,
    pub file_id: FileId,
    /// FileName, wildcards included.
    pub pattern: Utf16<'a>,
    pub output_buffer_length: u32,
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::QUERY_DIRECTORY, 33)?;
        let (info_class, flags) = (r.u8("FileInformationClass")?, r.u8("Flags")?);
        let file_index = r.u32("FileIndex")?;
        let file_id = r.file_id()?;
        let (at, len) = (r.u16("FileNameOffset")?, r.u16("FileNameLength")?);
        let output_buffer_length = r.u32("OutputBufferLength")?;
        let pattern = Utf16(r.part("FileName", at.into(), len.into())?);
        Ok(Self { info_class, flags, file_index, file_id, pattern, output_buffer_length })
    }
}

/// A QUERY_DIRECTORY Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// OutputBuffer: see [`entries`].
    pub buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::QUERY_DIRECTORY, 9)?;
        let (at, len) = (r.u16("OutputBufferOffset")?, r.u32("OutputBufferLength")?);
        Ok(Self { buffer: r.part("OutputBuffer", at.into(), index(len))? })
    }
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where in the buffer it stands, up to the next entry or the buffer's end.
    pub range: Range<usize>,
    /// FileName.
    pub name: Utf16<'a>,
}

/// Where FileNameLength and FileName stand in an entry of a class (MS-FSCC 2.4).
fn layout(class: u8) -> Option<(usize, usize)> {
    Some(match class {
        1 => (60, 64),
        2 => (60, 68),
        3 => (60, 94),
        12 => (8, 12),
        37 => (60, 104),
        38 => (60, 80),
        60 => (60, 88),
        63 => (60, 114),
        78 => (60, 80),
        79 => (60, 106),
        80 => (60, 96),
        81 => (60, 122),
        _ => return None,
    })
}

/// The entries of an answer, in order. Ends after the first error; a class that is not known is one.
pub fn entries(info_class: u8, buffer: &[u8]) -> Entries<'_> {
    Entries { layout: layout(info_class), buffer, at: Some(0).filter(|_| !buffer.is_empty()) }
}

/// See [`entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    layout: Option<(usize, usize)>,
    buffer: &'a [u8],
    at: Option<usize>,
}

impl<'a> Entries<'a> {
    fn step(&mut self, at: usize) -> Result<Entry<'a>, ParseError> {
        let error = |field| ParseError { command: Some(Command::QUERY_DIRECTORY), field, at };
        let (len_at, name_at) = self.layout.ok_or(error("FileInformationClass"))?;
        let entry = self.buffer.get(at..).ok_or(error("NextEntryOffset"))?;
        let mut r = Reader::within(entry, Command::QUERY_DIRECTORY);
        let next = index(r.u32("NextEntryOffset")?);
        r.skip(len_at - 4)?;
        let len = index(r.u32("FileNameLength")?);
        r.skip(name_at - len_at - 4)?;
        let name = Utf16(r.bytes("FileName", len)?);
        let end = if next == 0 {
            self.buffer.len()
        } else {
            let end = at.checked_add(next).ok_or(error("NextEntryOffset"))?;
            if next < name_at + len || end >= self.buffer.len() {
                return Err(error("NextEntryOffset"));
            }
            self.at = Some(end);
            end
        };
        Ok(Entry { range: at..end, name })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        Some(self.step(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FileNamesInformation entry: 12 bytes and the name.
    fn names(next: u32, name: &[u8]) -> Vec<u8> {
        let len = u32::try_from(name.len()).unwrap();
        [&next.to_le_bytes()[..], &[0; 4], &len.to_le_bytes(), name].concat()
    }

    #[test]
    fn the_next_entry_lies_behind_this_one_and_inside() {
        let page = |next| [names(next, b"a\0b\0"), names(0, b"c\0d\0")].concat();
        let read = |next| entries(12, &page(next)).map(|e| e.is_ok()).collect::<Vec<_>>();
        assert_eq!(read(16), [true, true]);
        for next in [1, 4, 15, 32, 33, u32::MAX] {
            assert_eq!(read(next), [false], "{next}");
        }
    }
}
