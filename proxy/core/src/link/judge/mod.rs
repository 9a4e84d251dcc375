//! SESSION_SETUP in Bridge: a further user, or a session that is authenticated anew.
//!
//! The client proves to a node who it is, and the proxy cannot stand in for either. So the exchange is relayed to a
//! connection that is thrown away afterwards, and the node judges it. Only after its yes, and with authority, does the
//! proxy log in for itself on the node leg, and only after that does the client get its answer: a login that is cut
//! off, or forged, or that ends as a guest's, becomes no session.
//!
//! One exchange at a time is judged; the others wait.

mod admit;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use smb_parse::{
    cmd::session_setup,
    compound::{ElementMut, next_mut},
    encode::{self, SessionSetupParams},
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status},
};

use self::admit::Admission;
use super::{
    Link, State,
    answer::body,
    fsctl::BINDING,
    node_leg::{NodeLeg, Op, Pending},
    session::Login,
    timers::PATIENCE,
};
use crate::{
    auth::{ntlm::message::message_type, spnego},
    crypto::preauth::Preauth,
    effect::{Close, Effect, Role},
    event::Event,
    ids::{LegId, MessageId, SessionId},
};

/// How many logins wait for the one that is judged.
const WAITING: usize = 8;
/// How long after a connection was lost another one is tried: the node's own leg may be about to end, too.
const REST: Duration = Duration::from_millis(200);

/// The login that is judged, and those behind it.
#[derive(Debug, Default)]
pub(crate) struct Judging {
    now: Option<Box<Judge>>,
    waiting: VecDeque<MessageId>,
    rest_until: Option<Instant>,
}

impl Judging {
    /// Whether this is the session of the login that is judged, and the client does not have it yet.
    pub(crate) fn is_new(&self, id: SessionId) -> bool {
        self.now.as_ref().is_some_and(|judge| judge.client_id == id && !judge.renews)
    }

    /// The leg that is thrown away afterwards, while it stands or is dialled.
    pub(crate) fn leg(&self) -> Option<LegId> {
        self.now.as_ref()?.stage.leg()
    }

    /// When something is to be done about it.
    pub(crate) fn due(&self, client_patience: Duration) -> Option<Instant> {
        match &self.now {
            Some(judge) if judge.request.is_none() && self.waiting.is_empty() => {
                Some(judge.since + client_patience)
            }
            Some(judge) => Some(judge.since + PATIENCE),
            None => self.rest_until,
        }
    }
}

/// One login.
#[derive(Debug)]
struct Judge {
    stage: Stage,
    /// Since when the next word is waited for.
    since: Instant,
    /// The client's request that waits. `None`: the client is to speak.
    request: Option<MessageId>,
    /// The session as the client is to know it.
    client_id: SessionId,
    /// The session stands already.
    renews: bool,
    /// The client was asked for more.
    is_told: bool,
    /// What passed on the client leg.
    login: Login,
}

/// Where it stands.
#[derive(Debug)]
enum Stage {
    Connecting(LegId),
    Negotiating(NodeLeg),
    /// The node has the client's token, or the client the node's.
    Exchanging {
        leg: NodeLeg,
        /// The session on this leg, once the node has named it.
        session: SessionId,
        preauth: Preauth,
    },
    /// The node has said yes: the proxy logs in on the node leg.
    Admitting(Box<Admission>),
}

impl Stage {
    fn leg(&self) -> Option<LegId> {
        match self {
            Self::Connecting(leg) => Some(*leg),
            Self::Negotiating(leg) | Self::Exchanging { leg, .. } => Some(leg.id),
            Self::Admitting(_) => None,
        }
    }
}

impl Link {
    /// A SESSION_SETUP of the client in Bridge, its signature checked.
    pub(super) fn judge_request(&mut self, now: Instant, id: MessageId) {
        let Some(request) = self.requests.get(id) else { return };
        let session = request.header.session_id;
        let refused = match session_setup::Request::parse(&request.msg) {
            Err(_) => Some(Status::INVALID_PARAMETER),
            Ok(_) if request.compounded => Some(Status::INVALID_PARAMETER),
            Ok(asked) if asked.flags & BINDING != 0 => Some(Status::REQUEST_NOT_ACCEPTED),
            Ok(_) if self.judging.now.as_ref().is_some_and(|judge| judge.client_id == session) => {
                return self.judge_more(now, id);
            }
            Ok(_) if session != 0 && self.sessions.get(session).is_none_or(|s| s.ended) => {
                Some(Status::USER_SESSION_DELETED)
            }
            // Its beginning went to a node that is lost: the client is to begin anew (MS-SMB2 3.2.5.1.6).
            Ok(asked) if session != 0 && continues(asked.security_buffer) => {
                Some(Status::NETWORK_SESSION_EXPIRED)
            }
            Ok(_) => (self.judging.waiting.len() >= WAITING).then_some(Status::REQUEST_NOT_ACCEPTED),
        };
        match refused {
            Some(status) => self.fail_request(id, status),
            None => {
                self.judging.waiting.push_back(id);
                self.judge_next(now);
            }
        }
    }

    /// The client goes on with the login that is judged.
    fn judge_more(&mut self, now: Instant, id: MessageId) {
        match &mut self.judging.now {
            Some(judge) if judge.request.is_none() => {
                judge.request = Some(id);
                judge.since = now;
                self.judge_ask();
            }
            _ => self.fail_request(id, Status::REQUEST_NOT_ACCEPTED),
        }
    }

    /// The next login that waits.
    fn judge_next(&mut self, now: Instant) {
        let State::Bridge(main) = &self.state else { return };
        let node = main.node;
        if self.judging.now.is_some() || self.judging.rest_until.is_some() {
            return;
        }
        while let Some(id) = self.judging.waiting.pop_front() {
            let Some(request) = self.requests.get(id) else { continue };
            let session = request.header.session_id;
            let client_id = if session == 0 { self.mint_session_id() } else { session };
            let leg = self.new_leg();
            self.out.effect(Effect::Connect { leg, node, role: Role::Auxiliary });
            self.judging.now = Some(Box::new(Judge {
                stage: Stage::Connecting(leg),
                since: now,
                request: Some(id),
                client_id,
                renews: session != 0,
                is_told: false,
                login: Login::new(&self.conn),
            }));
            return;
        }
    }

    /// A SessionId that no node gives out: Samba's have 32 bits.
    fn mint_session_id(&mut self) -> SessionId {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        let mut id = u64::from_le_bytes(bytes) >> 2 | 1 << 62;
        while self.sessions.get(id).is_some() {
            id += 1;
        }
        id
    }

    /// TCP stands: NEGOTIATE, as the client did.
    pub(super) fn judge_connected(&mut self, now: Instant, id: LegId) {
        let State::Bridge(main) = &self.state else { return };
        let Some(judge) = &mut self.judging.now else { return };
        let mut leg = NodeLeg::new(id, main.node, main.generation);
        let msg = self.conn.renegotiate(&mut *self.random);
        let sent = leg.send_own(&mut self.out, msg, None, Op::Judge);
        leg.conn.request(&sent);
        judge.since = now;
        judge.stage = Stage::Negotiating(leg);
    }

    /// A frame of the judging node.
    pub(super) fn judge_frame(&mut self, now: Instant, leg: LegId, mut frame: BytesMut) {
        let mut at = PREFIX;
        let is_smb2 = protocol(body(&frame)) == Protocol::Smb2;
        while let Some(Ok(ElementMut { header, msg, .. })) =
            is_smb2.then(|| next_mut(&mut frame, &mut at)).flatten()
        {
            if self.judging.leg() == Some(leg) {
                self.judge_answer(now, &header, msg);
            }
        }
        if at != frame.len() {
            self.out.event(Event::NotUnderstood);
        }
    }

    fn judge_answer(&mut self, now: Instant, header: &Header, msg: &mut [u8]) {
        let Some(judge) = &mut self.judging.now else { return };
        let (Stage::Negotiating(leg) | Stage::Exchanging { leg, .. }) = &mut judge.stage else { return };
        leg.granted(header.credits);
        let interim = header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING;
        if interim || leg.pending(header.message_id) != Some(&Pending::Ours(Op::Judge)) {
            return;
        }
        leg.answered(header.message_id);
        judge.since = now;
        match (&judge.stage, Status(header.status)) {
            (Stage::Negotiating(_), _) => self.judge_negotiated(now, header, msg),
            (_, Status::MORE_PROCESSING_REQUIRED) => self.judge_asks_more(now, header, msg),
            (_, Status::SUCCESS) => self.judge_says_yes(now, header, msg),
            (_, status) => self.judge_says_no(now, status),
        }
    }

    fn judge_negotiated(&mut self, now: Instant, header: &Header, msg: &[u8]) {
        let Some(mut judge) = self.judging.now.take() else { return };
        let Stage::Negotiating(mut leg) = judge.stage else { return };
        let agreed = header.command == Command::NEGOTIATE
            && leg.conn.response(msg)
            && leg.conn.dialect == self.conn.dialect;
        let preauth = leg.conn.preauth.clone();
        judge.stage = Stage::Exchanging { leg, session: 0, preauth };
        self.judging.now = Some(judge);
        if agreed {
            self.judge_ask();
        } else {
            self.end_login(now, Status::REQUEST_NOT_ACCEPTED);
        }
    }

    /// Hands the client's token to the node.
    fn judge_ask(&mut self) {
        let Some(judge) = &mut self.judging.now else { return };
        let Stage::Exchanging { leg, session, preauth } = &mut judge.stage else { return };
        let Some(request) = judge.request.and_then(|id| self.requests.get_mut(id)) else { return };
        let Ok(asked) = session_setup::Request::parse(&request.msg) else { return };
        judge.login.take_request(&asked, &request.msg);
        let mut header = Header::request(Command::SESSION_SETUP, 0);
        header.session_id = *session;
        header.credit_charge = NodeLeg::least_charge(&leg.conn);
        let params = SessionSetupParams {
            flags: 0,
            security_mode: asked.security_mode,
            capabilities: asked.capabilities,
            previous_session_id: 0,
            token: asked.security_buffer,
        };
        let sent = leg.send_own(&mut self.out, encode::session_setup(&header, &params), None, Op::Judge);
        preauth.update(&sent);
        let id = Header::parse(&sent).map_or(0, |header| header.message_id);
        request.sent = Some((leg.id, id));
    }

    /// The node asks for more: its token goes to the client.
    fn judge_asks_more(&mut self, now: Instant, header: &Header, msg: &[u8]) {
        let Some(judge) = &mut self.judging.now else { return };
        let Stage::Exchanging { session, preauth, .. } = &mut judge.stage else { return };
        let token = session_setup::Response::parse(msg).map(|r| r.security_buffer);
        let request = judge.request.take().and_then(|id| self.requests.remove(id));
        let (Ok(token), Some(request)) = (token, request) else {
            // The client has cancelled its request, or the node speaks nonsense.
            return self.end_login(now, Status::REQUEST_NOT_ACCEPTED);
        };
        *session = header.session_id;
        preauth.update(msg);
        judge.login.observer.server_token(token);
        judge.is_told = true;
        let id = judge.client_id;
        let mut header = self.response_header(&request, Status::MORE_PROCESSING_REQUIRED);
        header.session_id = id;
        let answer = encode::session_setup_response(&header, 0, token);
        if let Some(judge) = &mut self.judging.now {
            judge.login.preauth.update(&answer);
        }
        self.answer(&request, &answer);
    }

    /// The node says no, or nothing that counts: the client hears it from us. A session whose re-authentication fails is over, as on the node
    /// itself.
    fn judge_says_no(&mut self, now: Instant, status: Status) {
        let renewed = self.judging.now.as_ref().filter(|judge| judge.renews).map(|judge| judge.client_id);
        self.end_login(now, status);
        if let Some(session) = renewed {
            self.end_node_session(session, Op::Discard);
        }
    }

    /// The login comes to nothing. Its request is answered, if there is one.
    fn end_login(&mut self, now: Instant, status: Status) {
        let Some(judge) = self.judging.now.take() else { return };
        if let Some(leg) = judge.stage.leg() {
            self.out.close_leg(leg, Close::Graceful);
        }
        if let Some(id) = judge.request {
            self.fail_request(id, status);
        }
        self.judge_next(now);
    }

    /// The leg on which a login was judged is lost. What no node has answered is judged afresh, but not for ever; the
    /// rest cannot be, for the client holds a dead node's challenge.
    pub(super) fn judge_lost(&mut self, now: Instant) {
        let Some(judge) = self.judging.now.take() else { return };
        self.judging.rest_until = Some(now + REST);
        let Some(request) = judge.request.and_then(|id| self.requests.get_mut(id)) else { return };
        let id = request.message_id();
        if request.sent.take().is_some() {
            request.deaths = request.deaths.saturating_add(1);
        }
        if judge.is_told {
            let status =
                if judge.renews { Status::NETWORK_SESSION_EXPIRED } else { Status::USER_SESSION_DELETED };
            self.fail_request(id, status);
        } else if request.deaths > 1 || now > request.at + 2 * PATIENCE {
            self.fail_request(id, Status::REQUEST_NOT_ACCEPTED);
        } else {
            self.judging.waiting.push_front(id);
        }
    }

    /// The node leg is lost, and whatever was judged with it. What the client has asked is kept.
    pub(super) fn forget_judging(&mut self) {
        let judging = std::mem::take(&mut self.judging);
        if let Some(leg) = judging.leg() {
            self.out.close_leg(leg, Close::Reset);
        }
    }

    /// The time of [`Judging::due`] has come.
    pub(super) fn judge_overdue(&mut self, now: Instant) {
        let Some(judge) = &self.judging.now else {
            self.judging.rest_until = None;
            return self.judge_next(now);
        };
        let leg = judge.stage.leg();
        match (judge.request, leg) {
            (None, _) => self.end_login(now, Status::REQUEST_NOT_ACCEPTED),
            // What the node makes of the session after that is not known.
            (Some(_), None) => self.judge_says_no(now, Status::REQUEST_NOT_ACCEPTED),
            (Some(id), Some(leg)) => {
                // Silence is no death: Samba may sit on a connection while another one of the same ClientGuid comes.
                if let Some(request) = self.requests.get_mut(id) {
                    request.sent = None;
                }
                self.out.close_leg(leg, Close::Reset);
                self.judge_lost(now);
            }
        }
    }
}

/// Whether a client's token is none that a login begins with: an NTLM AUTHENTICATE (MS-NLMP 2.2.1.3), or a negTokenResp
/// (RFC 4178 4.2.2).
fn continues(buffer: &[u8]) -> bool {
    const RESPONSE: u8 = 0xa1;
    const AUTHENTICATE: u32 = 3;
    buffer.first() == Some(&RESPONSE)
        || spnego::unwrap(buffer).token.and_then(message_type) == Some(AUTHENTICATE)
}
