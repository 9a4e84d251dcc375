//! TREE_CONNECT (MS-SMB2 2.2.9, 2.2.10).
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    ParseError, Utf16,
    header::{Command, Header},
    read::{Reader, index},
};

/// `SMB2_TREE_CONNECT_FLAG_CLUSTER_RECONNECT`.
pub const CLUSTER_RECONNECT: u16 = 0x0001;
/// `SMB2_TREE_CONNECT_FLAG_REDIRECT_TO_OWNER`.
pub const REDIRECT_TO_OWNER: u16 = 0x0002;
/// `SMB2_TREE_CONNECT_FLAG_EXTENSION_PRESENT`.
pub const EXTENSION_PRESENT: u16 = 0x0004;
/// `SMB2_REMOTED_IDENTITY_TREE_CONNECT_CONTEXT_ID` (2.2.9.2).
pub const REMOTED_IDENTITY: u16 = 0x0001;

/// A TREE_CONNECT Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub flags: u16,
    /// `\\server\share`.
    pub path: Utf16<'a>,
    contexts: &'a [u8],
    context_count: u16,
}

impl<'a> Request<'a> {
    /// Reads the body of a request, with or without its extension (2.2.9.1).
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::TREE_CONNECT, 9)?;
        let flags = r.u16("Flags")?;
        let (at, len) = (r.u16("PathOffset")?, r.u16("PathLength")?);
        let path = Utf16(r.part("PathName", at.into(), len.into())?);
        let mut request = Self { flags, path, contexts: &[], context_count: 0 };
        if flags & EXTENSION_PRESENT != 0 {
            // Counted from the start of the request's body, not of its header.
            let offset = index(r.u32("TreeConnectContextOffset")?).saturating_add(Header::LEN);
            request.context_count = r.u16("TreeConnectContextCount")?;
            if request.context_count > 0 {
                request.contexts = r.from("TreeConnectContexts", offset)?;
            }
        }
        Ok(request)
    }

    /// The contexts of the extension as (ContextType, Data). Ends after the first error.
    pub fn contexts(&self) -> impl Iterator<Item = Result<(u16, &'a [u8]), ParseError>> + use<'a> {
        super::negotiate::raw_contexts(self.contexts, self.context_count, Command::TREE_CONNECT)
    }
}

/// A TREE_CONNECT Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    pub share_type: u8,
    pub share_flags: u32,
    pub capabilities: u32,
    pub maximal_access: u32,
}

impl Response {
    /// Reads the body of an answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::TREE_CONNECT, 16)?;
        let share_type = r.u8("ShareType")?;
        r.skip(1)?;
        Ok(Self {
            share_type,
            share_flags: r.u32("ShareFlags")?,
            capabilities: r.u32("Capabilities")?,
            maximal_access: r.u32("MaximalAccess")?,
        })
    }
}
