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

    /// The name in a FileRenameInformation or FileLinkInformation, as SMB2 has them (MS-FSCC 2.4.42.2, 2.4.28.2):
    /// from the share's root on, UTF-16LE. `None` if it is relative to another directory, or does not fit.
    pub fn new_name(&self) -> Option<&'a [u8]> {
        let root: [u8; 8] = self.buffer.get(8..16)?.try_into().ok()?;
        let length: [u8; 4] = self.buffer.get(16..20)?.try_into().ok()?;
        let end = index(u32::from_le_bytes(length)).checked_add(20)?;
        self.buffer.get(20..end).filter(|_| root == [0; 8])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_whole_and_from_the_root_on() {
        let with = |root: u8, length: u8, name: &[u8]| {
            [&[1, 0, 0, 0, 0, 0, 0, 0, root, 0, 0, 0, 0, 0, 0, 0, length, 0, 0, 0][..], name].concat()
        };
        let new_name = |buffer: &[u8]| {
            let request = Request {
                info_type: 1,
                file_info_class: 10,
                additional_information: 0,
                file_id: FileId::ALL_ONES,
                buffer,
            };
            request.new_name().map(<[u8]>::to_vec)
        };
        assert_eq!(new_name(&with(0, 4, b"a\0b\0")), Some(b"a\0b\0".to_vec()));
        assert_eq!(new_name(&with(0, 2, b"a\0b\0")), Some(b"a\0".to_vec()), "what is behind it is padding");
        for wrong in [with(0, 5, b"a\0b\0"), with(7, 4, b"a\0b\0"), vec![0; 19]] {
            assert_eq!(new_name(&wrong), None);
        }
    }
}
