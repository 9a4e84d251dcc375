//! Answers of the proxy's own to the client: errors, ECHO, STATUS_PENDING, breaks.

use bytes::BytesMut;
use smb_parse::{
    encode,
    header::{Command, Flags, Header, Status, Target},
};

use crate::{
    ids::MessageId,
    link::{
        Link,
        request::{Interim, Request},
    },
};

impl Link {
    /// Answers a request with an error and forgets it.
    pub(crate) fn fail_request(&mut self, id: MessageId, status: Status) {
        if let Some(request) = self.requests.remove(id) {
            self.leave_traces_of(&request);
            let msg = encode::error_response(&self.response_header(&request, status));
            self.note_appended(&request, status, None);
            self.tell_name_change_is_over(&request, false);
            self.answer(&request, &msg);
            self.end_doubt();
        }
    }

    /// Answers a request with a message whose header came from [`Self::response_header`], covered as the request was.
    pub(crate) fn answer(&mut self, request: &Request, msg: &[u8]) {
        self.send_to_client(request.cover(), request.header.session_id, msg);
    }

    /// The header of an answer of ours. Grants credits; final answers only.
    pub(crate) fn response_header(&mut self, request: &Request, status: Status) -> Header {
        let credits = match request.interim {
            Interim::Node(_) => 0,
            Interim::None | Interim::Ours => self.credits.grant(request.charge(), request.header.credits),
        };
        response_header(request, status, credits)
    }

    /// Our one STATUS_PENDING of a request: no credits, sealed if the request was, never signed, AsyncId = MessageId
    /// (MS-SMB2 3.3.4.2).
    pub(super) fn send_pending(&mut self, id: MessageId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.interim = Interim::Ours;
        let (cover, session) = (request.interim_cover(), request.header.session_id);
        let header = Header {
            credit_charge: request.header.credit_charge,
            status: Status::PENDING.0,
            command: request.header.command,
            credits: 0,
            flags: Flags::SERVER_TO_REDIR | Flags::ASYNC,
            next_command: 0,
            message_id: id,
            target: Target::Async { async_id: id },
            session_id: session,
            signature: [0; 16],
        };
        self.send_to_client(cover, session, &encode::error_response(&header));
    }

    /// Answers an ECHO in the node's place.
    pub(super) fn answer_echo(&mut self, id: MessageId) {
        if let Some(request) = self.requests.remove(id) {
            let msg = encode::echo_response(&self.response_header(&request, Status::SUCCESS));
            self.answer(&request, &msg);
        }
    }

    /// Tells the client that its session is gone: an unsigned error, for nobody holds the key.
    pub(super) fn answer_session_deleted(&mut self, id: MessageId) {
        self.fail_request(id, Status::USER_SESSION_DELETED);
    }

    /// Checks a message of the client that did not come sealed against its session's policy (MS-SMB2 3.3.5.2.4,
    /// 3.3.5.2.9, 3.3.5.2.11).
    pub(super) fn check_signature(&self, header: &Header, msg: &mut [u8]) -> Check {
        let Some(session) = self.sessions.get(header.session_id) else {
            let is_login = header.command == Command::SESSION_SETUP
                && self.judging.is_new(header.session_id)
                && !header.flags.contains(Flags::SIGNED);
            let needs_none = header.session_id == 0
                && matches!(header.command, Command::NEGOTIATE | Command::SESSION_SETUP | Command::ECHO);
            return if needs_none || is_login { Check::Passed } else { Check::NoSession };
        };
        if session.ended {
            return Check::NoSession;
        }
        let tree = header.tree_id().filter(|_| needs_tree(header.command));
        if header.command != Command::SESSION_SETUP && session.encrypts(tree) {
            return Check::Refused;
        }
        let signed = header.flags.contains(Flags::SIGNED);
        match (&session.client_keys, signed) {
            (Some(key), true) if key.verify_mut(msg) => Check::Passed,
            (Some(_), true) => Check::Refused,
            (Some(_), false) if session.signing_required => Check::Refused,
            (None, true) => Check::Refused,
            (_, false) => Check::Passed,
        }
    }
}

/// The header of a final answer that grants these credits.
pub(super) fn response_header(request: &Request, status: Status, credits: u16) -> Header {
    let mut flags = Flags::SERVER_TO_REDIR;
    let target = match request.interim.async_id(request.message_id()) {
        Some(async_id) => {
            flags = flags | Flags::ASYNC;
            Target::Async { async_id }
        }
        None => Target::Sync { reserved: 0xfeff, tree_id: request.header.tree_id().unwrap_or_default() },
    };
    Header {
        credit_charge: request.header.credit_charge,
        status: status.0,
        command: request.header.command,
        credits,
        flags,
        next_command: 0,
        message_id: request.message_id(),
        target,
        session_id: request.header.session_id,
        signature: [0; 16],
    }
}

/// What the check of a client's signature came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Signed rightly, or allowed to be unsigned.
    Passed,
    /// Wrong, or missing where it is required.
    Refused,
    /// No such session.
    NoSession,
}

/// Whether a command's TreeId means something.
pub(super) fn needs_tree(command: Command) -> bool {
    !matches!(
        command,
        Command::NEGOTIATE
            | Command::SESSION_SETUP
            | Command::LOGOFF
            | Command::TREE_CONNECT
            | Command::ECHO
            | Command::CANCEL
    )
}

/// A frame without its prefix.
pub(super) fn body(frame: &BytesMut) -> &[u8] {
    frame.get(smb_parse::frame::PREFIX..).unwrap_or_default()
}

/// A frame without its prefix.
pub(super) fn body_mut(frame: &mut BytesMut) -> &mut [u8] {
    frame.get_mut(smb_parse::frame::PREFIX..).unwrap_or_default()
}

/// Whether an answer to this command changes what the proxy knows.
pub(super) fn changes_state(command: Command) -> bool {
    matches!(
        command,
        Command::NEGOTIATE
            | Command::SESSION_SETUP
            | Command::LOGOFF
            | Command::TREE_CONNECT
            | Command::TREE_DISCONNECT
            | Command::CREATE
            | Command::CLOSE
            | Command::LOCK
            | Command::SET_INFO
            | Command::QUERY_DIRECTORY
            | Command::OPLOCK_BREAK
    )
}
