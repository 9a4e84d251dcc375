//! Bridge: the legs are independent. Every frame is verified on the way in, translated in place, and signed for the
//! way out.

use std::time::Instant;

use bytes::BytesMut;
use smb_parse::{
    cmd::create,
    compound::{ElementMut, elements, next_mut},
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status},
    patch, transform,
};

use super::{
    Link, State,
    answer::{Check, body, body_mut, changes_state},
    cover::{Cover, Incoming, Outgoing, cover_for_node},
    node_leg::{Op, Pending},
    open::{Open, minted_tree_id},
    request::{Chain, Interim, Request},
};
use crate::{
    crypto::sealing::HEADROOM,
    effect::{Close, CloseReason},
    event::{Event, LegLoss},
    ids::{MessageId, RELATED_FILE_ID, SessionId},
    takeover::probe::Finding,
};

/// Why a frame of a node cannot be read. It was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is sealed in a session that stands, and does not open.
    Tampered,
    /// Sealed in no session that is known, or not SMB2.
    Other,
}

/// Where an answer of the node goes.
enum Passage {
    /// To the client, covered with the keys of this session.
    Client(Cover, SessionId),
    /// Nowhere: it was answered otherwise, or is no business of the client's.
    Withheld,
}

impl Link {
    /// A frame of the client in Bridge, or while a new node is sought.
    pub(super) fn bridge_client_frame(&mut self, now: Instant, mut frame: BytesMut) {
        let incoming = match protocol(body(&frame)) {
            Protocol::Smb2 => {
                let opened = self.verify_in_place(body_mut(&mut frame));
                Incoming { opened, ..Incoming::plain(frame.freeze()) }
            }
            Protocol::Transform => {
                self.counters.sealed();
                let Some(incoming) = self.open_request(&frame.freeze()) else {
                    // MS-SMB2 3.3.5.2.1.1.
                    self.out.event(Event::SignatureRefused);
                    self.close(Close::Graceful, CloseReason::SignatureInvalid);
                    return;
                };
                incoming
            }
            _ => {
                // Nothing else is spoken after NEGOTIATE.
                self.out.event(Event::NotUnderstood);
                self.close(Close::Graceful, CloseReason::ProtocolError);
                return;
            }
        };
        let unit = self.requests.next_unit();
        let Some(ids) = self.register_raw(now, &incoming, unit) else {
            self.close(Close::Graceful, CloseReason::ProtocolError);
            return;
        };
        if ids.is_empty() {
            return;
        }
        match &self.state {
            State::Recovering(_) => self.greet_while_recovering(now, &ids),
            State::Bridge(_) => {
                for ids in self.in_parts(ids) {
                    let waits = self.barrier || self.file_held || !self.parked.is_empty();
                    if waits || !self.send_unit(now, &ids) {
                        self.parked.push_back(ids);
                        self.fresh = true;
                    }
                }
            }
            _ => {}
        }
    }

    /// Keeps the requests of a frame as they came. `None`: not a frame that a client sends.
    pub(super) fn register_raw(
        &mut self,
        now: Instant,
        incoming: &Incoming,
        unit: u64,
    ) -> Option<Vec<MessageId>> {
        let mut ids = Vec::with_capacity(1);
        let mut compounded = false;
        let mut chain = Chain::default();
        for element in elements(&incoming.messages) {
            let element = element.ok()?;
            let header = element.header;
            compounded |= header.next_command != 0;
            self.counters.request(header.command);
            self.note_writing(now, header.command);
            if header.command == Command::CANCEL {
                if matches!(self.state, State::Relay(_)) {
                    // Nobody compounds one; the node alone may answer what it has.
                    return None;
                }
                self.cancel(&header, element.msg, incoming.sealed);
                continue;
            }
            if header.is_response() {
                return None;
            }
            let mut request = incoming.request(&element, unit, compounded, now);
            chain.link(&mut request);
            if incoming.sealed.is_some_and(|id| id != request.header.session_id) {
                return None;
            }
            let granted = self.credits.consume(header.message_id, request.charge());
            ids.push(header.message_id);
            if !granted || !self.requests.insert(request) {
                return None;
            }
        }
        Some(ids)
    }

    /// While a node is sought: ECHO is answered, acknowledgements that only we wait for, requests of ended sessions too, the rest waits.
    fn greet_while_recovering(&mut self, now: Instant, ids: &[MessageId]) {
        self.answer_own_breaks(now, ids);
        for id in ids {
            let Some(request) = self.requests.get(*id) else { continue };
            if self.sessions.get(request.header.session_id).is_some_and(|s| s.ended) {
                self.answer_session_deleted(*id);
            } else if request.is_echo() && !request.compounded {
                self.check_and_answer_echo(*id);
            }
        }
    }

    pub(super) fn check_and_answer_echo(&mut self, id: MessageId) {
        if self.verify_kept(id) == Check::Passed {
            self.answer_echo(id);
        }
    }

    /// Verifies a message that is alone in its frame where it lies, so that bulk data is not copied for it. What does not
    /// pass is judged again, and answered, when its turn comes.
    fn verify_in_place(&self, msg: &mut [u8]) -> bool {
        let Ok(header) = Header::parse(msg) else { return false };
        let alone = header.next_command == 0 && !header.flags.contains(Flags::RELATED);
        alone && self.check_signature(&header, msg) == Check::Passed
    }

    /// Verifies a kept request; one that is refused is answered here, unsigned.
    pub(crate) fn verify_kept(&mut self, id: MessageId) -> Check {
        let Some(request) = self.requests.get(id) else { return Check::NoSession };
        if request.verified {
            return Check::Passed;
        }
        let header = request.header;
        let mut msg = request.msg.to_vec();
        let check = self.check_signature(&header, &mut msg);
        match check {
            Check::Passed => {}
            Check::Refused => {
                self.out.event(Event::SignatureRefused);
                self.refuse(id, Status::ACCESS_DENIED);
            }
            Check::NoSession => self.refuse(id, Status::USER_SESSION_DELETED),
        }
        check
    }

    /// Answers what was not verified: never signed.
    fn refuse(&mut self, id: MessageId, status: Status) {
        if let Some(mut request) = self.requests.remove(id) {
            request.header.flags = request.header.flags.without(Flags::SIGNED);
            let msg = smb_parse::encode::error_response(&self.response_header(&request, status));
            self.tell_name_change_is_over(&request, false);
            self.answer(&request, &msg);
        }
    }

    /// Gives a kept request up. Its answer is signed only if it was verified.
    pub(super) fn give_up_request(&mut self, id: MessageId, status: Status) {
        if self.verify_kept(id) == Check::Passed {
            self.fail_request(id, status);
        }
    }

    /// A frame of the node in Bridge.
    pub(super) fn bridge_node_frame(&mut self, now: Instant, frame: BytesMut) {
        let (opened, mut frame, start) = match self.read_answer(frame) {
            Ok(read) => read,
            Err(Unreadable::Other) => return,
            Err(Unreadable::Tampered) => return self.leave_tampered_leg(now),
        };
        let mut out = Vec::new();
        let mut at = start;
        let mut whole = true;
        while let Some(element) = next_mut(&mut frame, &mut at) {
            let Ok(ElementMut { range, header, msg }) = element else {
                self.out.event(Event::NotUnderstood);
                break;
            };
            self.counters.response(header.command);
            match self.bridge_answer(now, opened, &header, msg) {
                Passage::Client(cover, session) => out.push(Outgoing { range, cover, session }),
                Passage::Withheld => whole = false,
            }
        }
        let whole = whole && at == frame.len();
        self.forward_answers(frame, start, out, whole);
        self.after_answers(now);
    }

    /// Whether a frame of the present node is sealed in a session that stands.
    fn names_session(&self, frame: &BytesMut) -> bool {
        let header = transform::Header::parse(body(frame));
        header.is_ok_and(|header| self.sessions.by_node_id(header.session_id).is_some())
    }

    /// A sealed answer does not open: to which request it is can not be told, and whoever waits for it would wait for ever. A
    /// client would end such a connection, and so is this one.
    pub(crate) fn leave_tampered_leg(&mut self, now: Instant) {
        let State::Bridge(leg) = &self.state else { return };
        let leg = leg.id;
        self.out.close_leg(leg, Close::Reset);
        self.leg_lost(now, leg, LegLoss::Closed);
    }

    /// A frame of the present node in plain: whose keys opened it, if it came sealed, and where its messages begin.
    pub(crate) fn read_answer(
        &mut self,
        frame: BytesMut,
    ) -> Result<(Option<SessionId>, BytesMut, usize), Unreadable> {
        match protocol(body(&frame)) {
            Protocol::Smb2 => return Ok((None, frame, PREFIX)),
            Protocol::Transform => {
                self.counters.sealed();
                if let Some((session, frame)) = self.open_answer(body(&frame)) {
                    return Ok((Some(session), frame, HEADROOM));
                }
                // Of a session that is over, only the keys are missing.
                if self.names_session(&frame) {
                    self.out.event(Event::SignatureRefused);
                    return Err(Unreadable::Tampered);
                }
            }
            _ => {}
        }
        self.out.event(Event::NotUnderstood);
        Err(Unreadable::Other)
    }

    /// One answer of the node, its ids made the client's.
    fn bridge_answer(
        &mut self,
        now: Instant,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> Passage {
        if header.message_id == u64::MAX {
            // As Samba sends them: not covered, whatever the session's policy.
            return if self.translate_break(now, msg) {
                Passage::Client(Cover::Plain, header.session_id)
            } else {
                Passage::Withheld
            };
        }
        let State::Bridge(leg) = &mut self.state else { return Passage::Withheld };
        leg.granted(header.credits);
        let interim = header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING;
        let pending = leg.pending(header.message_id).cloned();
        if !interim {
            leg.answered(header.message_id);
        }
        match pending {
            Some(Pending::Client(id)) if interim => self.bridge_interim(id, opened, msg),
            Some(Pending::Client(id)) => self.bridge_final(now, id, opened, header, msg),
            Some(Pending::Ours(Op::Probe(request, session, tree))) if !interim => {
                self.probe_answer(now, request, (session, tree), opened, header, msg);
                Passage::Withheld
            }
            Some(Pending::Ours(Op::Tail(request, session))) if !interim => {
                self.tail_answer(request, session, opened, header, msg);
                Passage::Withheld
            }
            Some(Pending::Ours(Op::ProbeClose(request))) if !interim => {
                self.probe_closed(request);
                Passage::Withheld
            }
            Some(Pending::Ours(Op::Disposition(open))) if !interim => {
                self.delete_flag_answer(open, opened, header, msg);
                Passage::Withheld
            }
            Some(Pending::Ours(Op::Login(session))) if !interim => {
                self.admission_answer(now, session, opened, header, msg);
                Passage::Withheld
            }
            Some(Pending::Ours(
                op @ (Op::Reconnect(open)
                | Op::Reclaim(open)
                | Op::Access(open)
                | Op::Attributes(open)
                | Op::TakeOff(open)
                | Op::PutOn(open)
                | Op::Unlock(open, _)
                | Op::Locks(open)),
            )) if !interim => {
                self.return_answer(now, (op, open), opened, header, msg);
                Passage::Withheld
            }
            Some(Pending::Ours(_)) | None => Passage::Withheld,
        }
    }

    /// The node's STATUS_PENDING passes only if the client has had none. It is never signed (MS-SMB2 3.3.4.2), so what is to
    /// be sealed for the client must have come sealed.
    fn bridge_interim(&mut self, id: MessageId, opened: Option<SessionId>, msg: &mut [u8]) -> Passage {
        let Some(request) = self.requests.get_mut(id) else { return Passage::Withheld };
        if request.doubtful {
            // It may take long: only who opens the very file can wait for that.
            (request.doubtful, request.pends) = (false, true);
            self.tell_what_pends(id);
        }
        let Some(request) = self.requests.get_mut(id) else { return Passage::Withheld };
        if request.sealed && opened != Some(request.header.session_id) {
            self.out.event(Event::SignatureRefused);
            return Passage::Withheld;
        }
        if request.header.command == Command::LOCK {
            // A node that lets it wait was not killed by it. It may wait longer than many a node lives.
            request.deaths = 0;
        }
        if request.interim != Interim::None {
            return Passage::Withheld;
        }
        let (charge, wanted, session) = (request.charge(), request.header.credits, request.header.session_id);
        let cover = request.interim_cover();
        let credits = self.credits.grant(charge, wanted);
        if let Some(request) = self.requests.get_mut(id) {
            request.interim = Interim::Node(id);
        }
        patch::set_message_id(msg, id);
        patch::set_session_id(msg, session);
        patch::set_async_id(msg, id);
        patch::set_credits(msg, credits);
        Passage::Client(cover, session)
    }

    fn bridge_final(
        &mut self,
        now: Instant,
        id: MessageId,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> Passage {
        let Some(request) = self.requests.get(id) else { return Passage::Withheld };
        let session = request.header.session_id;
        if Status(header.status) == Status::USER_SESSION_DELETED {
            // The node has ended the session, and has its keys no more: Samba sends the request's own signature back.
            // The keys of the client leg are ours.
            self.answer_session_deleted(id);
            self.forget_session(session);
            return Passage::Withheld;
        }
        if !self.is_from_node(request, opened, header, msg) {
            self.out.event(Event::SignatureRefused);
            self.settle_untold(id);
            self.fail_request(id, Status::INTERNAL_ERROR);
            return Passage::Withheld;
        }
        if header.command == Command::QUERY_DIRECTORY && self.withhold_entries(now, id, header, msg) {
            return Passage::Withheld;
        }
        let (finding, action) =
            self.requests.get(id).map_or((Finding::Unknown, None), |r| (r.finding, r.action));
        if header.command == Command::CREATE {
            if finding == Finding::Done && !Status(header.status).is_success() {
                // It was created or emptied, and cannot be had: nor can what its compound does with it.
                self.note_failed(true);
                let unit = self.requests.get(id).map(|request| request.unit);
                for behind in self.requests.iter_mut().filter(|r| Some(r.unit) == unit && r.leans()) {
                    behind.finding = Finding::Unclear;
                }
                self.fail_request(id, Status::INTERNAL_ERROR);
                return Passage::Withheld;
            }
            if let Some(action) = action.filter(|_| Status(header.status).is_success()) {
                patch::set_create_action(msg, action);
            }
        }
        if header.command != Command::CREATE && finding == Finding::Unclear {
            self.fail_request(id, Status::INTERNAL_ERROR);
            return Passage::Withheld;
        }
        let Some(request) = self.requests.remove(id) else { return Passage::Withheld };
        if header.command == Command::TREE_CONNECT && Status(header.status).is_success() {
            self.adopt_tree(&request, header, msg);
        } else {
            if header.command == Command::CREATE && Status(header.status).is_success() {
                self.adopt_open(&request, msg);
            } else {
                self.ids_for_client(msg);
            }
            if header.command == Command::CREATE && Status(header.status).is_error() {
                self.requests.failed(&request, Status(header.status));
            }
            if request.appends {
                self.note_appended(&request, Status(header.status), Some(msg));
            }
            if let Some(tree) = request.header.tree_id() {
                patch::set_tree_id(msg, tree);
            }
            if header.command == Command::LOGOFF {
                if Status(header.status).is_success() {
                    self.sessions.part(session);
                }
            } else if changes_state(header.command) && header.command != Command::CREATE {
                self.observe(&request, header, msg);
                self.tell_name_change_is_over(&request, true);
            }
        }
        let answer = self.response_header(&request, Status(header.status));
        patch::set_message_id(msg, id);
        patch::set_session_id(msg, session);
        patch::set_credits(msg, answer.credits);
        patch::set_credit_charge(msg, request.header.credit_charge);
        if let Some(async_id) = request.interim.async_id(id) {
            patch::set_async_id(msg, async_id);
        } else if header.async_id().is_some() {
            patch::set_sync(msg, request.header.tree_id().unwrap_or_default());
        }
        Passage::Client(request.cover(), session)
    }

    /// Whether an answer is the node's: sealed or signed rightly wherever the request was.
    fn is_from_node(
        &self,
        request: &Request,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> bool {
        if let Some(session) = opened {
            return session == request.header.session_id;
        }
        let keys = self.sessions.get(request.header.session_id).and_then(|s| s.node_keys.as_ref());
        match keys {
            Some(keys) if request.cover() != Cover::Plain => {
                header.flags.contains(Flags::SIGNED) && keys.verify_mut(msg)
            }
            _ => true,
        }
    }

    /// FileIds in an answer become the client's.
    fn ids_for_client(&mut self, msg: &mut [u8]) {
        let opens = &self.opens;
        patch::rewrite_file_ids(msg, &mut |id| opens.by_node(id).map_or(id, |o| o.client_id.0));
    }

    /// A CREATE succeeded: the client gets a FileId that no other of its Opens has.
    fn adopt_open(&mut self, request: &Request, msg: &mut [u8]) {
        let Ok(response) = create::Response::parse(msg) else { return };
        let node_id = response.file_id;
        // A CREATE that is replayed (MS-SMB2 3.3.5.9.10) brings what the client has already.
        let client_id = match self.opens.by_node(node_id) {
            Some(open) => open.client_id.0,
            None => self.mint_file_id(),
        };
        self.translate_lease(msg);
        let answer = msg.to_vec();
        patch::set_response_file_id(msg, client_id);
        self.record_open(request, &answer, client_id, node_id);
    }

    /// A TREE_CONNECT succeeded: the client gets a TreeId that no other of its trees has.
    fn adopt_tree(&mut self, request: &Request, header: &Header, msg: &mut [u8]) {
        let Some(mut tree) = super::session::tree_from(&request.msg, header, msg) else { return };
        let session = request.header.session_id;
        let mut id = minted_tree_id(self.mint());
        while self.sessions.tree(session, id).is_some() {
            id = minted_tree_id(self.mint());
        }
        tree.client_id = crate::ids::Client(id);
        patch::set_tree_id(msg, id);
        self.add_tree(request, tree);
    }

    /// CANCEL (MS-SMB2 3.3.5.16): of a request on the node, or of one that waits here.
    fn cancel(&mut self, header: &Header, msg: &[u8], sealed: Option<SessionId>) {
        let mut own = msg.to_vec();
        if !self.is_cancel_verified(header, &mut own, sealed) {
            self.out.event(Event::SignatureRefused);
            return;
        }
        let Some(id) = self.requests.cancelled_by(header) else { return };
        let Some(request) = self.requests.get(id) else { return };
        match (&self.state, request.sent) {
            (State::Bridge(leg), Some((on, node_id))) if leg.id == on => {
                let Some(node) = self.sessions.get(header.session_id).map(|s| s.node_id.0) else { return };
                let leg = leg.id;
                patch::set_sync(&mut own, 0);
                patch::set_message_id(&mut own, node_id);
                patch::set_session_id(&mut own, node);
                let cover = match sealed {
                    Some(_) => Cover::Sealed,
                    None if header.flags.contains(Flags::SIGNED) => Cover::Signed,
                    None => Cover::Plain,
                };
                let mut frame = BytesMut::zeroed(HEADROOM);
                frame.extend_from_slice(&own);
                let cancel = [Outgoing { range: HEADROOM..frame.len(), cover, session: header.session_id }];
                if let Some(frame) = cover_for_node(&mut self.sessions, &mut *self.random, frame, &cancel) {
                    self.out.send_node(leg, frame);
                }
            }
            _ if request.may_be_cancelled() => self.give_up_request(id, Status::CANCELLED),
            _ => {}
        }
    }

    /// Whether a CANCEL comes from the session it names: sealed with its keys, or signed as that session has to.
    pub(super) fn is_cancel_verified(
        &self,
        header: &Header,
        msg: &mut [u8],
        sealed: Option<SessionId>,
    ) -> bool {
        match sealed {
            Some(session) => session == header.session_id,
            None => header.session_id == 0 || self.check_signature(header, msg) == Check::Passed,
        }
    }

    /// FileIds of a request become the node's. An id that the node does not know, or an Open that is lost, is said; of a
    /// durable reconnect as MS-SMB2 3.3.5.9.7 and 3.3.5.9.12 have it, for clients open the file afresh then.
    pub(super) fn ids_for_node(&self, msg: &mut [u8]) -> Result<(), Status> {
        let mut unknown = None;
        patch::rewrite_file_ids(msg, &mut |id| {
            if id == RELATED_FILE_ID {
                return id;
            }
            let open = self.opens.by_client(id);
            match open.filter(|_| self.is_live(id)) {
                Some(open) => open.node_id.0,
                None => {
                    unknown = Some(open.map_or(Status::FILE_CLOSED, Open::lost_status));
                    id
                }
            }
        });
        let reconnects = || Header::parse(msg).is_ok_and(|header| header.command == Command::CREATE);
        match unknown {
            None => Ok(()),
            Some(_) if reconnects() => Err(Status::OBJECT_NAME_NOT_FOUND),
            Some(status) => Err(status),
        }
    }
}
