//! SERVER_TO_CLIENT_NOTIFICATION (MS-SMB2 2.2.44): only servers send it, only in 3.1.1.

use crate::{ParseError, header::Command, read::Reader};

/// A notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// What happened; 0: the session was closed.
    pub notification_type: u32,
    /// What the type makes of the rest.
    pub data: &'a [u8],
}

/// `SmbNotifySessionClosed`.
pub const SESSION_CLOSED: u32 = 0;

impl<'a> Response<'a> {
    /// Reads the body of a notification.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::SERVER_TO_CLIENT_NOTIFICATION, 4)?;
        r.skip(2)?;
        Ok(Self { notification_type: r.u32("NotificationType")?, data: r.rest() })
    }
}
