//! Requests that must not reach a node: the proxy answers them.

use smb_parse::{
    cmd::{ioctl, session_setup},
    encode, fsctl,
    header::{Command, Header, Status},
};

use super::{Link, request::Request, resilience::asks_for_resilience};
use crate::{crypto::Dialect, event::Protection};

/// `SMB2_SESSION_FLAG_BINDING` (MS-SMB2 2.2.5).
pub(super) const BINDING: u8 = 0x01;
/// A VALIDATE_NEGOTIATE_INFO Response (MS-SMB2 2.2.32.6).
const VALIDATE_NEGOTIATE_LEN: usize = 24;

impl Link {
    /// Whether a request in Relay is to be answered by us, and how. Nobody goes around the proxy by a second
    /// channel, and resilient handles, which Samba does not have, are ours.
    pub(super) fn filler_for(&self, header: &Header, msg: &[u8]) -> Option<Status> {
        match header.command {
            Command::SESSION_SETUP => {
                let request = session_setup::Request::parse(msg).ok()?;
                (request.flags & BINDING != 0).then_some(Status::REQUEST_NOT_ACCEPTED)
            }
            Command::IOCTL => {
                let status = if asks_for_resilience(msg) && self.offers_resilience(header.session_id) {
                    Status::SUCCESS
                } else {
                    refused_fsctl(msg)?
                };
                let session = self.sessions.get(header.session_id)?;
                // Without the key our answer could not be signed as the client expects.
                let known = session.client_keys.is_some()
                    || matches!(session.protection, Protection::Guest | Protection::Anonymous);
                known.then_some(status)
            }
            _ => None,
        }
    }

    /// Answers FSCTL_VALIDATE_NEGOTIATE_INFO (MS-SMB2 3.3.5.15.12) from what the client's own node had said: the present
    /// node's answer is of another connection. `None`: the connection is to end, for what the client has asked and what
    /// the node was asked differ, or a client of 3.1.1 has no business to ask.
    pub(super) fn validate_negotiate(
        &mut self,
        request: &Request,
        asked: &ioctl::Request<'_>,
    ) -> Option<Vec<u8>> {
        let dialect = self.conn.dialect.filter(|dialect| *dialect != Dialect::SMB311)?;
        if usize::try_from(asked.max_output).is_ok_and(|max| max < VALIDATE_NEGOTIATE_LEN) {
            return None;
        }
        let input = asked.input;
        let word = |at: usize| input.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let capabilities = input.get(..4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))?;
        let count = usize::from(word(22)?);
        let dialects: Option<Vec<u16>> = (0..count).map(|i| word(24 + 2 * i)).collect();
        let same = capabilities == self.conn.client_capabilities
            && input.get(4..20)? == self.conn.client_guid
            && word(20)? == self.conn.client_security_mode
            && dialects? == self.conn.client_dialects;
        if !same {
            return None;
        }
        let mut output = Vec::with_capacity(VALIDATE_NEGOTIATE_LEN);
        output.extend_from_slice(&self.conn.server_capabilities.to_le_bytes());
        output.extend_from_slice(&self.conn.server_guid);
        output.extend_from_slice(&self.conn.server_security_mode.to_le_bytes());
        output.extend_from_slice(&dialect.0.to_le_bytes());
        let header = self.response_header(request, Status::SUCCESS);
        Some(encode::ioctl_response(
            &header,
            fsctl::VALIDATE_NEGOTIATE_INFO,
            smb_parse::FileId::ALL_ONES,
            &output,
        ))
    }
}

/// The status for FSCTLs that no node gets, as a server without the feature gives it.
pub(super) fn refused_fsctl(msg: &[u8]) -> Option<Status> {
    let request = ioctl::Request::parse(msg).ok()?;
    matches!(request.ctl_code, fsctl::QUERY_NETWORK_INTERFACE_INFO | fsctl::LMR_REQUEST_RESILIENCY)
        .then_some(Status::INVALID_DEVICE_REQUEST)
}
