//! Relay: every frame passes byte for byte, and is watched.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use smb_parse::{
    compound::{ElementMut, elements, next_mut},
    encode,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status},
    transform,
};

use super::{
    Attached, Link, State,
    answer::{Check, body, body_mut, changes_state, response_header},
    cover::{Cover, Incoming, SessionKeys},
    request::{Chain, Interim, Request},
    session::Session,
    side_channel::From,
};
use crate::{
    crypto::sealing::HEADROOM,
    effect::{Close, CloseReason},
    event::{Event, FileEvent},
    ids::{MessageId, SessionId},
};

/// Sealed frames up to this size are opened whole.
const OPENED: usize = 4096;

/// Sealed frames that nobody here can read, while some Open of some Link is unreclaimed, or some file is held for another client:
/// they may be about any file.
#[derive(Debug, Default)]
pub(super) struct Unread {
    frames: Vec<Bytes>,
    bytes: usize,
    since: Option<Instant>,
}

impl Unread {
    fn push(&mut self, now: Instant, frame: Bytes) {
        self.since.get_or_insert(now);
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many bytes are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the first of them waits.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }
}

impl Link {
    /// Frames that nobody can read go on once no Open is unreclaimed, and no file held.
    pub(super) fn send_unread(&mut self) {
        let State::Relay(attached) = &self.state else { return };
        if !self.barrier && !self.file_held {
            for frame in std::mem::take(&mut self.unread).frames {
                self.out.send_node(attached.leg, frame);
            }
        }
    }

    /// A frame of the client in Relay.
    pub(super) fn relay_client_frame(&mut self, now: Instant, attached: Attached, frame: BytesMut) {
        if let Some(handshake) = &mut self.handshake {
            handshake.push(frame.clone());
        }
        let incoming = match protocol(body(&frame)) {
            Protocol::Smb2 => Incoming::plain(frame.freeze()),
            Protocol::Transform => {
                self.counters.sealed();
                let frame = frame.freeze();
                let Some(incoming) = self.read_sealed_request(&frame) else {
                    if self.can_read(frame.get(PREFIX..).unwrap_or_default()) {
                        // The node would end the connection for it (MS-SMB2 3.3.5.2.1.1), and that would look like a lost leg.
                        self.out.event(Event::SignatureRefused);
                        self.close(Close::Graceful, CloseReason::SignatureInvalid);
                        return;
                    }
                    self.note_opaque(frame.get(PREFIX..).unwrap_or_default());
                    if (self.barrier || self.file_held) && self.handshake.is_none() {
                        self.unread.push(now, frame);
                    } else {
                        self.out.send_node(attached.leg, frame);
                    }
                    return;
                };
                incoming
            }
            Protocol::Smb1 => {
                self.credits.consume(0, 1);
                self.out.send_node(attached.leg, frame.freeze());
                return;
            }
            _ => {
                self.out.event(Event::NotUnderstood);
                self.out.send_node(attached.leg, frame.freeze());
                return;
            }
        };
        if self.barrier || self.file_held {
            self.park_in_relay(now, attached, incoming);
        } else if self.watch_requests(now, attached, &incoming) {
            self.out.send_node(attached.leg, incoming.frame);
        }
    }

    /// Whether the keys of a sealed frame's session are known.
    fn can_read(&self, body: &[u8]) -> bool {
        let session =
            transform::Header::parse(body).ok().and_then(|header| self.sessions.get(header.session_id));
        session.is_some_and(Session::can_seal)
    }

    /// What must be known of a sealed frame of the client: of a large one that changes nothing the header, else all.
    fn read_sealed_request(&mut self, frame: &Bytes) -> Option<Incoming> {
        let (id, head) = self.peek_header(frame.get(PREFIX..)?, SessionKeys::to_server)?;
        let header = Header::parse(&head).ok()?;
        let bulk = header.command == Command::WRITE && header.next_command == 0 && frame.len() > OPENED;
        if !bulk || self.barrier || self.file_held {
            return self.open_request(frame);
        }
        self.sessions.get_mut(id)?.seals = true;
        Some(Incoming {
            frame: frame.clone(),
            messages: Bytes::copy_from_slice(&head),
            sealed: Some(id),
            opened: false,
        })
    }

    /// Registers the requests of a frame. False if the frame must not be sent as it is.
    fn watch_requests(&mut self, now: Instant, attached: Attached, incoming: &Incoming) -> bool {
        let unit = self.requests.next_unit();
        let mut compounded = false;
        let mut chain = Chain::default();
        for element in elements(&incoming.messages) {
            let Ok(element) = element else {
                self.out.event(Event::NotUnderstood);
                break;
            };
            let header = element.header;
            compounded |= header.next_command != 0;
            self.counters.request(header.command);
            self.note_writing(now, header.command);
            if header.command == Command::CANCEL {
                continue;
            }
            let mut request = incoming.request(&element, unit, compounded, now);
            chain.link(&mut request);
            if incoming.sealed.is_some_and(|id| id != request.header.session_id) {
                // It ends the connection (MS-SMB2 3.3.5.2.1.1). If the node died before it had, it would be replayed as if
                // that session had sealed it.
                self.close(Close::Graceful, CloseReason::ProtocolError);
                return false;
            }
            request.sent = Some((attached.leg, header.message_id));
            self.credits.consume(header.message_id, request.charge());
            let filler = if compounded { None } else { self.filler_for(&header, element.msg) };
            if filler.is_none() {
                self.watch_request(&header, element.msg);
            }
            request.filler = filler;
            let id = request.message_id();
            if !self.requests.insert(request) {
                // The node will end the connection for it (MS-SMB2 3.3.5.2.3).
                self.out.event(Event::NotUnderstood);
            }
            self.tell_name_changes(&[id]);
            self.tell_appends(&[id]);
            if filler.is_some() {
                self.send_filler(attached, &header);
                return false;
            }
        }
        true
    }

    /// Puts an unsigned ECHO in a request's place: it takes the MessageId and brings the credits.
    fn send_filler(&mut self, attached: Attached, header: &Header) {
        let mut echo = Header::request(Command::ECHO, header.message_id);
        echo.credit_charge = header.credit_charge;
        echo.credits = header.credits;
        self.out.send_node(attached.leg, encode::frame(encode::echo(&echo)).into());
    }

    /// What must be known of a request before its answer comes.
    fn watch_request(&mut self, header: &Header, msg: &[u8]) {
        let understood = match header.command {
            Command::NEGOTIATE => self.conn.request(msg),
            Command::SESSION_SETUP => self.sessions.request(&self.conn, header, msg),
            _ => true,
        };
        if !understood {
            self.out.event(Event::NotUnderstood);
        }
    }

    /// A frame of the node in Relay.
    pub(super) fn relay_node_frame(&mut self, now: Instant, mut frame: BytesMut) {
        self.handshake = None;
        match protocol(body(&frame)) {
            Protocol::Smb2 => {
                let news = !self.side.is_bound() || self.is_news(now, From::Main, body(&frame));
                if !news || !self.watch_responses(now, None, body_mut(&mut frame)) {
                    return;
                }
            }
            Protocol::Transform => {
                self.counters.sealed();
                if !self.watch_sealed(now, body(&frame)) {
                    self.note_opaque(body(&frame));
                }
            }
            _ => self.out.event(Event::NotUnderstood),
        }
        self.out.send_client(frame.freeze());
        self.bridge_early(now);
        if self.stopping.is_some() {
            self.finish_shutdown(now);
        }
    }

    /// Takes the answers of a sealed frame in: of one that teaches nothing the header, else all. False if it cannot be
    /// read.
    fn watch_sealed(&mut self, now: Instant, body: &[u8]) -> bool {
        let Some((id, head)) = self.peek_header(body, SessionKeys::to_client) else { return false };
        let Ok(header) = Header::parse(&head) else { return false };
        let appends = self.requests.get(header.message_id).is_some_and(|request| request.appends);
        let teaches = changes_state(header.command) || header.message_id == u64::MAX || appends;
        if !teaches && header.next_command == 0 {
            self.counters.response(header.command);
            self.watch_response(None, &header, &mut []);
            return true;
        }
        let keys = self.sessions.reading_keys(id).cloned();
        match keys.as_ref().and_then(|keys| keys.to_client()?.open(body)) {
            Some(mut opened) => {
                let _ = self.watch_responses(now, Some(id), opened.get_mut(HEADROOM..).unwrap_or_default());
            }
            None => self.out.event(Event::SignatureRefused),
        }
        true
    }

    /// Takes the answers of a frame in. `opened`: whose keys opened it, if it came sealed. False if the frame is not for
    /// the client.
    fn watch_responses(&mut self, now: Instant, opened: Option<SessionId>, frame: &mut [u8]) -> bool {
        let mut at = 0;
        let mut forward = true;
        while let Some(element) = next_mut(frame, &mut at) {
            let Ok(ElementMut { header, msg, .. }) = element else {
                self.out.event(Event::NotUnderstood);
                break;
            };
            self.counters.response(header.command);
            if header.message_id == u64::MAX {
                self.watch_break(now, msg);
            } else {
                forward &= self.watch_response(opened, &header, msg);
            }
        }
        forward
    }

    /// One answer. False if it is a filler's, which the client must not see.
    fn watch_response(&mut self, opened: Option<SessionId>, header: &Header, msg: &mut [u8]) -> bool {
        if self.requests.get(header.message_id).is_some_and(|r| r.filler.is_some()) {
            self.answer_filled(header);
            return false;
        }
        self.credits.granted(header.credits);
        let interim = header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING;
        if interim {
            if let (Some(request), Some(id)) = (self.requests.get_mut(header.message_id), header.async_id()) {
                request.interim = Interim::Node(id);
            }
            return true;
        }
        let Some(request) = self.requests.remove(header.message_id) else {
            if header.command == Command::NEGOTIATE {
                // The answer to an SMB1 NEGOTIATE, which is no request of SMB2 (MS-SMB2 3.3.5.3).
                self.observe_negotiate(Status(header.status), msg);
            }
            return true;
        };
        if header.command == Command::CHANGE_NOTIFY {
            self.note_watch(&request, Status(header.status));
        }
        if let Some(open) = self.opens.first_use(&request) {
            self.side_open_recorded(request.at, open);
        }
        if request.appends {
            let believed = self.is_believable(&request, opened, header, msg);
            self.note_appended(&request, Status(header.status), believed.then_some(msg));
        }
        let is_believed = changes_state(header.command) && self.is_believable(&request, opened, header, msg);
        if is_believed {
            self.observe(&request, header, msg);
        }
        if is_believed && header.command == Command::CREATE && Status(header.status).is_error() {
            self.requests.failed(&request, Status(header.status));
        }
        if !is_believed && changes_state(header.command) {
            self.leave_traces_of(&request);
        }
        self.tell_name_change_is_over(&request, is_believed);
        if Status(header.status) == Status::USER_SESSION_DELETED {
            // Unsigned, for nobody has the key any more: the session is over, whatever has ended it.
            self.forget_session(request.header.session_id);
        }
        true
    }

    /// The answer of ours to a request that the node got as an ECHO, with the credits that the ECHO brought.
    fn answer_filled(&mut self, header: &Header) {
        let Some(mut request) = self.requests.remove(header.message_id) else { return };
        let mut status = request.filler.unwrap_or(Status::NOT_SUPPORTED);
        self.credits.granted(header.credits);
        let refused = !request.verified
            && self.check_signature(&request.header, &mut request.msg.to_vec()) == Check::Refused;
        if refused {
            self.out.event(Event::SignatureRefused);
            request.header.flags = request.header.flags.without(Flags::SIGNED);
            status = Status::ACCESS_DENIED;
        }
        let msg = if status == Status::SUCCESS {
            let credits = header.credits;
            self.answer_resilience(&request, |status| response_header(&request, status, credits))
        } else {
            encode::error_response(&response_header(&request, status, header.credits))
        };
        self.answer(&request, &msg);
    }

    /// State is learned only from what is signed rightly or was sealed, where it is to be that at all.
    fn is_believable(
        &mut self,
        request: &Request,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> bool {
        if header.command == Command::NEGOTIATE {
            return true;
        }
        // A login is proved by its keys, a re-authentication by those of the session.
        let Some(session) = self.sessions.get(request.header.session_id) else { return true };
        let Some(keys) = &session.client_keys else { return true };
        let signed = header.flags.contains(Flags::SIGNED);
        let believable = match opened {
            Some(id) => id == request.header.session_id,
            None if signed => keys.verify_mut(msg),
            None => request.cover() == Cover::Plain,
        };
        if !believable {
            self.out.event(Event::SignatureRefused);
        }
        believable
    }

    /// A sealed frame that cannot be read: what its session has in flight is not known.
    fn note_opaque(&mut self, body: &[u8]) {
        self.credits.passed_sealed();
        let Ok(header) = transform::Header::parse(body) else { return };
        if let Some(session) = self.sessions.get_mut(header.session_id).filter(|s| !s.opaque) {
            session.opaque = true;
            self.out.file(FileEvent::Unseen);
        }
    }

    /// Keeps a frame back that a barrier may concern.
    fn park_in_relay(&mut self, now: Instant, attached: Attached, incoming: Incoming) {
        if let Some(Ok(element)) = elements(&incoming.messages).next()
            && (element.header.command, element.header.next_command) == (Command::CANCEL, 0)
        {
            self.cancel_in_relay(attached, &element.header, element.msg, &incoming);
            return;
        }
        let unit = self.requests.next_unit();
        let Some(ids) = self.register_raw(now, &incoming, unit) else {
            self.close(Close::Graceful, CloseReason::ProtocolError);
            return;
        };
        if let (Some(first), Some(_)) = (ids.first(), incoming.sealed) {
            self.requests.keep_frame(*first, incoming.frame);
        }
        self.parked.push_back(ids);
        self.fresh = true;
    }

    /// CANCEL while frames are kept back: of one of those, which the node does not know, or of a request on the node, which
    /// alone may answer that.
    fn cancel_in_relay(&mut self, attached: Attached, header: &Header, msg: &[u8], incoming: &Incoming) {
        let is_parked = |request: &&Request| request.sent.is_none() && !request.compounded;
        let id = self.requests.cancelled_by(header);
        let Some(request) = id.and_then(|id| self.requests.get(id)).filter(is_parked) else {
            self.out.send_node(attached.leg, incoming.frame.clone());
            return;
        };
        let id = request.message_id();
        let may_be_cancelled = request.may_be_cancelled();
        if self.is_cancel_verified(header, &mut msg.to_vec(), incoming.sealed) {
            if may_be_cancelled {
                self.fill(attached, id, Status::CANCELLED);
            }
        } else {
            self.out.event(Event::SignatureRefused);
        }
    }

    /// A request that no node has had is answered by us, and the node gets an ECHO instead.
    pub(super) fn fill(&mut self, attached: Attached, id: MessageId, status: Status) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.parked = None;
        request.filler = Some(status);
        request.sent = Some((attached.leg, id));
        let header = request.header;
        self.send_filler(attached, &header);
        self.forget_unparked();
    }

    /// Sends a parked frame on, as it came.
    pub(super) fn relay_parked(&mut self, ids: &[u64]) {
        let State::Relay(attached) = &self.state else { return };
        let attached = *attached;
        if let [id] = ids
            && let Some(request) = self.requests.get(*id).filter(|r| !r.compounded)
            && let Some(status) = self.filler_for(&request.header, &request.msg)
        {
            self.fill(attached, *id, status);
            return;
        }
        let sealed = ids.first().and_then(|first| self.requests.take_frame(*first));
        let mut bytes = vec![0; PREFIX];
        for id in ids {
            let Some(request) = self.requests.get_mut(*id) else { continue };
            request.parked = None;
            request.sent = Some((attached.leg, *id));
            bytes.extend_from_slice(&request.msg);
            let (header, msg) = (request.header, request.msg.clone());
            self.watch_request(&header, &msg);
        }
        self.tell_name_changes(ids);
        self.tell_appends(ids);
        let len = bytes.len() - PREFIX;
        smb_parse::frame::write_prefix(&mut bytes, len);
        self.out.send_node(attached.leg, sealed.unwrap_or_else(|| bytes.into()));
    }
}
