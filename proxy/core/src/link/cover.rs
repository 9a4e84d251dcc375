//! How a message is covered on its way: signed, sealed, or neither (MS-SMB2 3.3.4.1.1, 3.3.4.1.4, 3.3.5.2.1.1).
//!
//! Each leg of a session has keys of its own, except in Relay, where both have the client's. An answer is covered as the
//! request was that it answers. What is covered was verified first: only [`Request::cover`] of a request that passed says
//! anything but [`Cover::Plain`].

use std::{ops::Range, time::Instant};

use bytes::{Buf, Bytes, BytesMut};
use smb_parse::{
    compound::Element,
    frame::{PREFIX, write_prefix},
    header::{Flags, Header},
    patch, transform,
};

use super::{
    Link,
    connection::Connection,
    request::Request,
    session::{Session, Sessions},
};
use crate::{
    auth::keys::SessionKey,
    crypto::{
        Dialect,
        kdf::{self, Direction},
        preauth::Preauth,
        sealing::{HEADROOM, SealingKey},
        signing::SigningKey,
    },
    ids::SessionId,
    random::Random,
};

/// How a message is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cover {
    /// Not at all.
    Plain,
    /// Signed.
    Signed,
    /// Sealed, and so not signed.
    Sealed,
}

/// The keys of a session on one leg.
#[derive(Debug)]
pub(crate) struct SessionKeys {
    signing: SigningKey,
    /// `None` where the leg has no cipher.
    sealing: Option<SealingKeys>,
}

#[derive(Debug)]
struct SealingKeys {
    to_server: SealingKey,
    to_client: SealingKey,
}

impl SessionKeys {
    /// The keys of a session from what its login came to (MS-SMB2 3.3.5.5.3). `conn` is what the leg has negotiated.
    pub(crate) fn derive(conn: &Connection, key: &SessionKey, preauth: &Preauth) -> Self {
        let dialect = conn.dialect.unwrap_or(Dialect::SMB202);
        let hash = preauth.value();
        let sealing = conn.cipher.map(|cipher| {
            let one = |way| SealingKey::new(cipher, &kdf::sealing_key(dialect, cipher, way, key, &hash));
            SealingKeys { to_server: one(Direction::ToServer), to_client: one(Direction::ToClient) }
        });
        Self { signing: SigningKey::new(conn.signing, &kdf::signing_key(dialect, key, &hash)), sealing }
    }

    /// Whether messages can be sealed.
    pub(crate) fn can_seal(&self) -> bool {
        self.sealing.is_some()
    }

    pub(crate) fn sign(&self, msg: &mut [u8]) {
        self.signing.sign(msg);
    }

    pub(crate) fn verify_mut(&self, msg: &mut [u8]) -> bool {
        self.signing.verify_mut(msg)
    }

    /// The key that opens what a client has sealed, and seals towards a node.
    pub(crate) fn to_server(&self) -> Option<&SealingKey> {
        self.sealing.as_ref().map(|keys| &keys.to_server)
    }

    /// The key that opens what a node has sealed, and seals towards a client.
    pub(crate) fn to_client(&self) -> Option<&SealingKey> {
        self.sealing.as_ref().map(|keys| &keys.to_client)
    }
}

/// Of the keys that may be a session's, the one that the node signed its answer with, and what derives from it. `conn` is
/// what the leg has negotiated, `preauth` its hash up to the request that was answered.
pub(crate) fn proved_key<'a>(
    conn: &Connection,
    candidates: &'a [SessionKey],
    preauth: &Preauth,
    header: &Header,
    msg: &mut [u8],
) -> Option<(&'a SessionKey, SessionKeys)> {
    if !header.flags.contains(Flags::SIGNED) {
        return None;
    }
    let mut keys = candidates.iter().map(|key| (key, SessionKeys::derive(conn, key, preauth)));
    keys.find(|(_, keys)| keys.verify_mut(msg))
}

/// A frame of the client, read as far as it is needed.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// As it came.
    pub(crate) frame: Bytes,
    /// Its messages in plain, from the first header on. If it is sealed and not `opened`, only the first header.
    pub(crate) messages: Bytes,
    /// Whose keys sealed it.
    pub(crate) sealed: Option<SessionId>,
    /// Its tag holds, or the signature of the only message in it.
    pub(crate) opened: bool,
}

impl Incoming {
    /// A frame that is not sealed.
    pub(crate) fn plain(frame: Bytes) -> Self {
        let messages = frame.slice(PREFIX.min(frame.len())..);
        Self { frame, messages, sealed: None, opened: false }
    }

    /// The record of one of its messages.
    pub(super) fn request(
        &self,
        element: &Element<'_>,
        unit: u64,
        compounded: bool,
        now: Instant,
    ) -> Request {
        let mut request =
            Request::new(element.header, &self.messages.slice(element.range.clone()), unit, compounded, now);
        request.sealed = self.sealed.is_some();
        request.verified = self.opened;
        request.frame = (request.sealed && !self.opened).then(|| self.frame.clone());
        request
    }
}

/// One message of a frame that is about to leave.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Where it stands in its frame.
    pub(crate) range: Range<usize>,
    pub(crate) cover: Cover,
    pub(crate) session: SessionId,
}

impl Link {
    /// Opens a sealed frame of the client. `None`: of no session whose keys are known, or its tag is wrong.
    pub(super) fn open_request(&mut self, frame: &Bytes) -> Option<Incoming> {
        let body = frame.get(PREFIX..)?;
        let id = transform::Header::parse(body).ok()?.session_id;
        let session = self.sessions.get_mut(id)?;
        let messages = session.client_keys.as_ref()?.to_server()?.open(body)?;
        session.seals = true;
        let messages = messages.freeze().slice(HEADROOM..);
        Some(Incoming { frame: frame.clone(), messages, sealed: Some(id), opened: true })
    }

    /// The session whose keys read a sealed frame in Relay, and its first header, unverified. `key`: of which direction.
    pub(super) fn peek_header(
        &self,
        body: &[u8],
        key: impl Fn(&SessionKeys) -> Option<&SealingKey>,
    ) -> Option<(SessionId, [u8; Header::LEN])> {
        let id = transform::Header::parse(body).ok()?.session_id;
        let keys = self.sessions.reading_keys(id)?;
        let mut head = [0; Header::LEN];
        (key(keys)?.peek(body, 0, &mut head) == head.len()).then_some((id, head))
    }

    /// Sealed requests that were kept as they came are opened, for their node is lost. False if one does not open. Those of a
    /// session that is over are answered, in plain: its keys are gone with it.
    pub(super) fn open_kept(&mut self) -> bool {
        for id in self.requests.ids() {
            let frame = self.requests.take_frame(id);
            let Some(request) = self.requests.get_mut(id) else { continue };
            if request.sealed && self.sessions.get(request.header.session_id).is_none() {
                request.sealed = false;
                self.answer_session_deleted(id);
                continue;
            }
            let Some(frame) = frame.filter(|_| !request.verified) else { continue };
            let Some(incoming) = self.open_request(&frame) else { return false };
            self.requests.replace_msg(id, incoming.messages, true);
        }
        true
    }

    /// Opens a sealed frame of the present node in Bridge or on the way there; says which session of the client's it
    /// belongs to.
    pub(crate) fn open_answer(&self, body: &[u8]) -> Option<(SessionId, BytesMut)> {
        let id = transform::Header::parse(body).ok()?.session_id;
        let session = self.sessions.by_node_id(id)?;
        let opened = session.node_keys.as_ref()?.to_client()?.open(body)?;
        Some((session.client_id.0, opened))
    }

    /// Sends a message of the proxy's own to the client.
    pub(super) fn send_to_client(&mut self, cover: Cover, session: SessionId, msg: &[u8]) {
        let start = if cover == Cover::Sealed { HEADROOM } else { PREFIX };
        let mut frame = BytesMut::zeroed(start + msg.len());
        if let Some(place) = frame.get_mut(start..) {
            place.copy_from_slice(msg);
        }
        let range = start..frame.len();
        self.send_answers(frame, start, &[Outgoing { range, cover, session }]);
    }

    /// Covers and sends a frame that holds these answers from `start` on and nothing else. All have the same cover and
    /// session.
    fn send_answers(&mut self, mut frame: BytesMut, start: usize, answers: &[Outgoing]) {
        let Some(first) = answers.first() else { return };
        for answer in answers {
            let Some(msg) = frame.get_mut(answer.range.clone()) else { return };
            match answer.cover {
                Cover::Signed => sign_for_client(&self.sessions, answer.session, msg),
                Cover::Plain | Cover::Sealed => unsign(msg),
            }
        }
        if first.cover != Cover::Sealed {
            frame.advance(start.saturating_sub(PREFIX));
            let len = frame.len().saturating_sub(PREFIX);
            write_prefix(&mut frame, len);
            self.out.send_client(frame.freeze());
            return;
        }
        if start != HEADROOM {
            let mut shifted = BytesMut::zeroed(HEADROOM);
            shifted.extend_from_slice(frame.get(start..).unwrap_or_default());
            frame = shifted;
        }
        let sealed = self.sessions.get_mut(first.session).is_some_and(|session| {
            let Session { client_keys, client_nonces, client_id, .. } = session;
            let key = client_keys.as_ref().and_then(|keys| keys.to_client());
            key.is_some_and(|key| key.seal(&mut frame, client_id.0, client_nonces.next(&mut *self.random)))
        });
        if sealed {
            self.out.send_client(frame.freeze());
        }
    }

    /// Covers and sends the answers of a node's frame that are for the client: as one frame if they are all it holds
    /// and are covered alike, else each alone. Its messages begin at `start`.
    pub(super) fn forward_answers(
        &mut self,
        mut frame: BytesMut,
        start: usize,
        answers: Vec<Outgoing>,
        whole: bool,
    ) {
        let alike = |one: &Outgoing| {
            answers.first().is_some_and(|first| (one.cover, one.session) == (first.cover, first.session))
        };
        let sealed = answers.iter().any(|a| a.cover == Cover::Sealed);
        if whole && (!sealed || answers.iter().all(alike)) {
            self.send_answers(frame, start, &answers);
            return;
        }
        for answer in answers {
            let Some(msg) = frame.get_mut(answer.range) else { continue };
            patch::set_next_command(msg, 0);
            self.send_to_client(answer.cover, answer.session, msg);
        }
    }
}

impl Request {
    /// How its answer is to be covered.
    pub(crate) fn cover(&self) -> Cover {
        if self.sealed {
            Cover::Sealed
        } else if self.header.flags.contains(Flags::SIGNED) {
            Cover::Signed
        } else {
            Cover::Plain
        }
    }

    /// How a STATUS_PENDING for it is to be covered: never signed (MS-SMB2 3.3.4.2).
    pub(crate) fn interim_cover(&self) -> Cover {
        if self.sealed { Cover::Sealed } else { Cover::Plain }
    }
}

/// Signs an answer if the session still stands and has keys.
fn sign_for_client(sessions: &Sessions, session: SessionId, msg: &mut [u8]) {
    let session = sessions.get(session).filter(|s| !s.ended);
    match session.and_then(|s| s.client_keys.as_ref()) {
        Some(keys) => keys.sign(msg),
        None => unsign(msg),
    }
}

/// Covers a frame for the node: its messages begin at [`HEADROOM`] and are these. If one is sealed, all are, with the same
/// keys. `None`: it cannot be sealed, and must not be sent.
pub(crate) fn cover_for_node(
    sessions: &mut Sessions,
    random: &mut dyn Random,
    mut frame: BytesMut,
    messages: &[Outgoing],
) -> Option<Bytes> {
    for Outgoing { range, cover, session } in messages {
        let msg = frame.get_mut(range.clone())?;
        let keys = sessions.get(*session).and_then(|s| s.node_keys.as_ref());
        match keys.filter(|_| *cover == Cover::Signed) {
            Some(keys) => keys.sign(msg),
            None => unsign(msg),
        }
    }
    if let Some(sealed) = messages.iter().find(|m| m.cover == Cover::Sealed) {
        let session = sessions.get_mut(sealed.session)?;
        let nonce = session.node_nonces.next(random);
        let key = session.node_keys.as_ref()?.to_server()?;
        return key.seal(&mut frame, session.node_id.0, nonce).then(|| frame.freeze());
    }
    frame.advance(HEADROOM - PREFIX);
    let len = frame.len().saturating_sub(PREFIX);
    write_prefix(&mut frame, len);
    Some(frame.freeze())
}

/// Takes the SIGNED flag and the signature away.
pub(super) fn unsign(msg: &mut [u8]) {
    if let Ok(header) = Header::parse(msg) {
        patch::set_flags(msg, header.flags.without(Flags::SIGNED));
        patch::set_signature(msg, [0; 16]);
    }
}
