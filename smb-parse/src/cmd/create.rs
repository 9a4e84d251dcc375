//! CREATE (MS-SMB2 2.2.13, 2.2.14). Its contexts are in [`crate::create_context`].
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    FileId, ParseError, Utf16,
    create_context::{Contexts, contexts},
    header::Command,
    read::{Reader, index},
};

/// A CREATE Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub security_flags: u8,
    pub requested_oplock_level: u8,
    pub impersonation_level: u32,
    pub smb_create_flags: u64,
    pub desired_access: u32,
    pub file_attributes: u32,
    pub share_access: u32,
    pub create_disposition: u32,
    pub create_options: u32,
    pub name: Utf16<'a>,
    area: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CREATE, 57)?;
        let (security_flags, requested_oplock_level) =
            (r.u8("SecurityFlags")?, r.u8("RequestedOplockLevel")?);
        let (impersonation_level, smb_create_flags) =
            (r.u32("ImpersonationLevel")?, r.u64("SmbCreateFlags")?);
        r.skip(8)?;
        let (desired_access, file_attributes) = (r.u32("DesiredAccess")?, r.u32("FileAttributes")?);
        let (share_access, create_disposition) = (r.u32("ShareAccess")?, r.u32("CreateDisposition")?);
        let create_options = r.u32("CreateOptions")?;
        let (name_at, name_len) = (r.u16("NameOffset")?, r.u16("NameLength")?);
        let (area_at, area_len) = (r.u32("CreateContextsOffset")?, r.u32("CreateContextsLength")?);
        Ok(Self {
            security_flags,
            requested_oplock_level,
            impersonation_level,
            smb_create_flags,
            desired_access,
            file_attributes,
            share_access,
            create_disposition,
            create_options,
            name: Utf16(r.part("Name", name_at.into(), name_len.into())?),
            area: r.part("CreateContexts", index(area_at), index(area_len))?,
        })
    }

    /// The create contexts, in order. Ends after the first error.
    pub fn contexts(&self) -> Contexts<'a> {
        contexts(self.area)
    }
}

/// A CREATE Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    pub oplock_level: u8,
    pub flags: u8,
    pub create_action: u32,
    pub creation_time: u64,
    pub last_access_time: u64,
    pub last_write_time: u64,
    pub change_time: u64,
    pub allocation_size: u64,
    pub end_of_file: u64,
    pub file_attributes: u32,
    pub file_id: FileId,
    area: &'a [u8],
}

impl Response<'static> {
    /// One without contexts; all but the FileId is 0.
    pub const fn of(file_id: FileId) -> Self {
        Self {
            oplock_level: 0,
            flags: 0,
            create_action: 0,
            creation_time: 0,
            last_access_time: 0,
            last_write_time: 0,
            change_time: 0,
            allocation_size: 0,
            end_of_file: 0,
            file_attributes: 0,
            file_id,
            area: &[],
        }
    }
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::CREATE, 89)?;
        let mut response = Self {
            oplock_level: r.u8("OplockLevel")?,
            flags: r.u8("Flags")?,
            create_action: r.u32("CreateAction")?,
            creation_time: r.u64("CreationTime")?,
            last_access_time: r.u64("LastAccessTime")?,
            last_write_time: r.u64("LastWriteTime")?,
            change_time: r.u64("ChangeTime")?,
            allocation_size: r.u64("AllocationSize")?,
            end_of_file: r.u64("EndofFile")?,
            file_attributes: r.u32("FileAttributes")?,
            file_id: {
                r.skip(4)?;
                r.file_id()?
            },
            area: &[],
        };
        let (at, len) = (r.u32("CreateContextsOffset")?, r.u32("CreateContextsLength")?);
        response.area = r.part("CreateContexts", index(at), index(len))?;
        Ok(response)
    }

    /// The create contexts, in order. Ends after the first error.
    pub fn contexts(&self) -> Contexts<'a> {
        contexts(self.area)
    }
}
