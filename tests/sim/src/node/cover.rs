//! Credits, signatures and seals of a server.

use std::collections::{BTreeMap, BTreeSet};

use smb_parse::{
    cmd::create,
    compound::elements,
    encode,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status, Target},
    transform,
};
use understudy_core::crypto::{Dialect, preauth::Preauth, sealing::HEADROOM, signing::SigningAlg};

use super::{Chain, Conn, ConnId, Mark, Out, Server};
use crate::{
    cover::{seal, signing_alg},
    disk::number_of,
    oracle::Violation,
};

impl Conn {
    pub(super) fn new() -> Self {
        Self {
            dialect: Dialect::SMB311,
            cipher: None,
            gmac: false,
            guid: [0; 16],
            first: 0,
            preauth: Preauth::new(),
            logins: BTreeMap::new(),
            channels: BTreeMap::new(),
            low: 0,
            high: 1,
            used: BTreeSet::new(),
            available: 1,
        }
    }

    /// MS-SMB2 3.3.5.2.3. False if a MessageId was used before or never granted.
    fn consume(&mut self, id: u64, charge: u16) -> bool {
        let end = id.saturating_add(u64::from(charge.max(1)));
        if id < self.low || end > self.high || (id..end).any(|id| self.used.contains(&id)) {
            return false;
        }
        self.used.extend(id..end);
        self.available -= u32::from(charge.max(1));
        while self.used.remove(&self.low) {
            self.low += 1;
        }
        true
    }

    fn grant(&mut self, asked: u16, window: u32) -> u16 {
        let room = window.saturating_sub(self.available).max(u32::from(self.available == 0));
        let granted = u32::from(asked.max(1)).min(room);
        self.available += granted;
        self.high += u64::from(granted);
        u16::try_from(granted).unwrap_or(0)
    }
}

impl Server {
    /// Opens a frame and checks its MessageIds. `None`: nothing is to be done.
    pub(super) fn unpack(&mut self, conn: ConnId, frame: &[u8], mark: Mark) -> Option<Chain> {
        let body = frame.get(PREFIX..)?;
        let mut sealed = None;
        let mut plain = None;
        match protocol(body) {
            Protocol::Smb2 => {}
            Protocol::Transform => {
                let id = transform::Header::parse(body).ok()?.session_id;
                let keys = self.sessions.get(&id).and_then(|s| s.seals.clone());
                let opened = keys.as_ref().and_then(|keys| keys.to_server.open(body));
                let Some(mut opened) = opened else {
                    // A frame that comes late may be of a session that a login has ended.
                    if mark.bridge && !self.parted.contains_key(&id) {
                        let text =
                            format!("node {}: a frame of session {id:x} cannot be opened", self.id + 1);
                        self.out.push(Out::Offence(Violation::new("wrong seal", text)));
                    }
                    self.out.push(Out::Close(conn));
                    return None;
                };
                sealed = Some(id);
                plain = Some(opened.split_off(HEADROOM).to_vec());
            }
            _ => {
                self.offend("not SMB2", "a frame of another protocol".into());
                return None;
            }
        }
        let mut chain = Chain::new(conn, sealed, mark);
        for element in elements(plain.as_deref().unwrap_or(body)) {
            let Ok(element) = element else {
                self.offend("malformed", "a frame that is cut".into());
                return None;
            };
            let header = element.header;
            let known = self.conns.get_mut(&conn)?;
            if header.command != Command::CANCEL && !known.consume(header.message_id, header.credit_charge) {
                self.offend(
                    "credits",
                    format!("MessageId {} is not granted, or came twice", header.message_id),
                );
                return None;
            }
            chain.push(header, element.msg.to_vec());
        }
        Some(chain)
    }

    /// The header of a final answer; its credits are put in when it is sent.
    pub(super) fn response(&mut self, conn: ConnId, request: &Header, status: Status) -> Header {
        let window = self.setup.window;
        let known = self.conns.get_mut(&conn).filter(|_| !self.credited);
        let credits = known.map_or(0, |c| c.grant(request.credits, window));
        Header {
            status: status.0,
            flags: Flags::SERVER_TO_REDIR | Flags(request.flags.0 & Flags::RELATED.0),
            next_command: 0,
            credits,
            signature: [0; 16],
            ..*request
        }
    }

    pub(super) fn error(&mut self, conn: ConnId, request: &Header, status: Status) -> Vec<u8> {
        encode::error_response(&self.response(conn, request, status))
    }

    pub(super) fn interim(&mut self, conn: ConnId, request: &Header, async_id: u64) -> Vec<u8> {
        let mut header = self.response(conn, request, Status::PENDING);
        header.flags = header.flags | Flags::ASYNC;
        header.target = Target::Async { async_id };
        encode::error_response(&header)
    }

    /// Whether a request may be executed, by how it is covered.
    pub(super) fn check_cover(&mut self, chain: &Chain, header: &Header, msg: &[u8]) -> Result<(), Status> {
        let (conn, sealed) = (chain.conn, chain.sealed);
        let gmac =
            self.conns.get(&conn).is_some_and(|c| signing_alg(c.dialect, c.gmac) == SigningAlg::AesGmac);
        let channel = self.conns.get(&conn).and_then(|c| c.channels.get(&header.session_id)).cloned();
        let Some(session) = self.sessions.get_mut(&header.session_id) else { return Ok(()) };
        if let Some(id) = sealed {
            return if id == header.session_id { Ok(()) } else { Err(Status::ACCESS_DENIED) };
        }
        if session.encrypted && header.command != Command::SESSION_SETUP {
            return Err(Status::ACCESS_DENIED);
        }
        if !header.flags.contains(Flags::SIGNED) {
            let refused = session.signing_required && session.key.is_some();
            return if refused { Err(Status::ACCESS_DENIED) } else { Ok(()) };
        }
        let key = channel.clone().or_else(|| session.key.clone());
        let right = key.is_some_and(|key| key.verify_mut(&mut msg.to_vec()));
        // The nonce of a CANCEL says that it is one.
        let cancels = header.command == Command::CANCEL;
        let fresh = channel.is_some() || cancels || session.signed.insert(header.message_id);
        if right && gmac && !fresh {
            self.offend("nonce", format!("MessageId {} was signed twice", header.message_id));
        }
        if right {
            return Ok(());
        }
        if chain.mark.bridge {
            let name = header.command.name();
            self.offend("wrong signature", format!("a {name} of the proxy's is signed wrongly"));
        }
        Err(Status::ACCESS_DENIED)
    }

    /// Sends answers to one frame: each with the request it answers and the session whose key signs it.
    pub(super) fn send(&mut self, conn: ConnId, sealed: Option<u64>, answers: &[(Header, u64, Vec<u8>)]) {
        let made = |(_, _, msg): &(Header, u64, Vec<u8>)| {
            create::Response::parse(msg).ok().map(|r| number_of(r.creation_time))
        };
        let created: Vec<u64> = answers.iter().filter_map(made).collect();
        let msgs: Vec<&[u8]> = answers.iter().map(|(_, _, msg)| &msg[..]).collect();
        let mut body = encode::compound(&msgs);
        if let Some(id) = sealed
            && let Some(session) = self.sessions.get_mut(&id).or_else(|| self.parted.get_mut(&id))
            && let Some(keys) = session.seals.clone()
        {
            let frame = seal(&keys.to_client, id, &mut session.nonces, &body);
            self.out.push(Out::Frame(conn, frame, created));
            return;
        }
        let ranges: Vec<_> = elements(&body).filter_map(|e| e.ok().map(|e| e.range)).collect();
        for (range, (request, session, _)) in ranges.into_iter().zip(answers) {
            self.sign(conn, request, *session, &mut body[range]);
        }
        self.out.push(Out::Frame(conn, encode::frame(body), created));
    }

    fn sign(&mut self, conn: ConnId, request: &Header, session: u64, answer: &mut [u8]) {
        let Ok(header) = Header::parse(answer) else { return };
        if header.status == Status::PENDING.0 || header.status == Status::USER_SESSION_DELETED.0 {
            return;
        }
        let login = request.command == Command::SESSION_SETUP;
        if login && header.status == Status::MORE_PROCESSING_REQUIRED.0 && request.session_id == 0 {
            return;
        }
        let channel = self.conns.get(&conn).and_then(|c| c.channels.get(&session)).cloned();
        let known = self.sessions.get(&session).or_else(|| self.parted.get(&session));
        let key = channel.or_else(|| known?.key.clone());
        if let Some(key) = key.filter(|_| login || request.flags.contains(Flags::SIGNED)) {
            key.sign(answer);
        }
    }
}
