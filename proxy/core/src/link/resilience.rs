//! Resilient handles (MS-SMB2 3.3.5.15.9), which Samba does not have: FSCTL_LMR_REQUEST_RESILIENCY is answered from here, in
//! Relay by way of a filler.
//!
//! When the client's connection is lost, the node closes the Open. What keeps it for its client is grace (`files/absent.rs`),
//! from the very moment of the loss, for as long as was promised: nobody else opens the file, and where the Open had locks
//! nobody works on it. The client names it by DHnC, and it is opened afresh with its locks, as after the loss of a node. A server
//! that had the handle itself would admit others who share the file: here they wait, and are told STATUS_SHARING_VIOLATION.

use smb_parse::{
    cmd::ioctl,
    encode, fsctl,
    header::{Header, Status},
};

use super::{Link, open::OpenState, request::Request};
use crate::crypto::Dialect;

/// Timeout, if the client leaves it to the server, and the longest that is granted (milliseconds; MaxResiliencyTimeout).
const DEFAULT: u32 = 120_000;
const LONGEST: u32 = 300_000;

/// Whether a request asks for a resilient handle.
pub(super) fn asks_for_resilience(msg: &[u8]) -> bool {
    ioctl::Request::parse(msg).is_ok_and(|asked| asked.ctl_code == fsctl::LMR_REQUEST_RESILIENCY)
}

impl Link {
    /// Whether resilient handles can be promised in a session: somebody must be able to have them again.
    pub(super) fn offers_resilience(&self, session: u64) -> bool {
        self.conn.dialect >= Some(Dialect::SMB210)
            && self.sessions.get(session).is_some_and(|session| session.protection.is_protected())
    }

    /// The answer, without a signature. What was promised is in the record when it leaves.
    pub(super) fn answer_resilience(
        &mut self,
        request: &Request,
        header: impl Fn(Status) -> Header,
    ) -> Vec<u8> {
        match self.grant_resilience(request) {
            Ok(asked) => {
                encode::ioctl_response(&header(Status::SUCCESS), fsctl::LMR_REQUEST_RESILIENCY, asked, &[])
            }
            Err(status) => encode::error_response(&header(status)),
        }
    }

    fn grant_resilience(&mut self, request: &Request) -> Result<smb_parse::FileId, Status> {
        if !self.offers_resilience(request.header.session_id) {
            return Err(Status::INVALID_DEVICE_REQUEST);
        }
        let asked = ioctl::Request::parse(&request.msg).map_err(|_| Status::INVALID_PARAMETER)?;
        let timeout = asked.input.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let timeout = timeout.filter(|timeout| asked.input.len() >= 8 && *timeout <= LONGEST);
        let timeout = timeout.ok_or(Status::INVALID_PARAMETER)?;
        let open = self.opens.of(request).filter(|open| open.state == OpenState::Live);
        let open = open.ok_or(Status::FILE_CLOSED)?;
        if open.is_pipe || open.session.0 != request.header.session_id {
            return Err(Status::INVALID_PARAMETER);
        }
        let (token, id) = (open.token, open.client_id.0);
        if let Some(open) = self.opens.get_mut(token) {
            open.resilient = Some(if timeout == 0 { DEFAULT } else { timeout });
        }
        self.wait_for_open(token);
        Ok(id)
    }
}
