//! After the node's yes: the authority that the proof gives, a session of our own by it, and the client's answer.

use std::{sync::Arc, time::Instant};

use smb_parse::{
    cmd::session_setup,
    encode,
    header::{Command, Flags, Header, Status},
};

use super::{Judge, Stage};
use crate::{
    auth::{LoginOutcome, keys::SessionKey},
    effect::{Close, CloseReason},
    event::Protection,
    ids::{Client, Node, SessionId},
    link::{
        Link, State,
        cover::{Cover, SessionKeys, proved_key},
        node_leg::{NodeLeg, Op},
        session::{SESSION_ENCRYPT_DATA, Session, name},
    },
    takeover::login::{Accepted, LoginState},
};

/// What the node's yes has brought.
#[derive(Debug)]
pub(super) struct Admission {
    outcome: LoginOutcome,
    /// What the client and the judging node agreed on. `None`: a guest, who has none.
    session_key: Option<SessionKey>,
    /// SessionFlags of the node's answer; our own login must get the same.
    flags: u16,
    /// The node's last token, for the client.
    token: Vec<u8>,
    login: LoginState,
    /// There is something to send, as soon as credits allow.
    is_due: bool,
}

impl Link {
    /// The judging node has said yes. Without authority that is not enough.
    pub(super) fn judge_says_yes(&mut self, now: Instant, header: &Header, msg: &mut [u8]) {
        let leg = self.judging.leg();
        let admission = self.admission(header, msg);
        let Some(admission) = admission else {
            if self.sessions.is_empty() {
                // Alone on its connection the client is better served by a node of its own: it connects again.
                return self.close(Close::Reset, CloseReason::Unprotected);
            }
            return self.end_login(now, Status::REQUEST_NOT_ACCEPTED);
        };
        if let Some(leg) = leg {
            self.out.close_leg(leg, Close::Graceful);
        }
        if let Some(judge) = &mut self.judging.now {
            judge.stage = Stage::Admitting(Box::new(admission));
        }
        self.send_admission();
    }

    /// Takes the proof in, and begins the login of our own.
    fn admission(&mut self, header: &Header, msg: &mut [u8]) -> Option<Admission> {
        let judge = self.judging.now.as_mut()?;
        let Stage::Exchanging { leg, preauth, .. } = &judge.stage else { return None };
        let response = session_setup::Response::parse(msg).ok()?;
        let (flags, token) = (response.session_flags, response.security_buffer.to_vec());
        if flags & SESSION_ENCRYPT_DATA != 0 && self.conn.cipher.is_none() {
            return None;
        }
        let outcome = judge.login.observer.finish(flags, &token, &*self.credentials);
        let derived = outcome.result.as_ref().ok()?;
        let session_key = if derived.session_keys.is_empty() {
            None
        } else {
            Some(proved_key(&leg.conn, &derived.session_keys, preauth, header, msg)?.0.clone())
        };
        let known = self.credentials.nt_hash(&outcome.domain, &outcome.user).is_some();
        if derived.protection == Protection::Guest && known {
            // A user of whom more is known does not become a guest unnoticed.
            return None;
        }
        let standing = self.sessions.get(judge.client_id).filter(|_| judge.renews);
        if judge.renews && standing.is_none_or(|s| s.client_keys.is_some() != session_key.is_some()) {
            return None;
        }
        let State::Bridge(main) = &self.state else { return None };
        let node_id = standing.map_or(0, |session| session.node_id.0);
        let login =
            LoginState::begin(&derived.authority, &*self.credentials, &mut *self.random, &main.conn, node_id);
        let mut login = login.ok()?;
        if !judge.renews {
            login.previous = self.bygone_session(&name(&outcome), main.node).unwrap_or_default();
        }
        Some(Admission { session_key, flags, token, login, is_due: true, outcome })
    }

    /// The next SESSION_SETUP of our own, as soon as the node leg has a credit for it.
    pub(in crate::link) fn send_admission(&mut self) {
        let State::Bridge(main) = &mut self.state else { return };
        let Some(judge) = &mut self.judging.now else { return };
        let Stage::Admitting(admission) = &mut judge.stage else { return };
        if !admission.is_due || !main.can_send(1) {
            return;
        }
        admission.is_due = false;
        let id = judge.client_id;
        let security_mode = self.conn.client_security_mode;
        if judge.renews {
            let msg = admission.login.message(&main.conn, security_mode);
            self.send_in_session(id, &msg, Op::Login(id));
        } else {
            admission.login.send(main, &mut self.out, security_mode, Op::Login(id));
        }
    }

    /// The node's answer to a SESSION_SETUP of our own.
    pub(in crate::link) fn admission_answer(
        &mut self,
        now: Instant,
        id: SessionId,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        let State::Bridge(main) = &self.state else { return };
        let Some(judge) = self.judging.now.as_mut().filter(|judge| judge.client_id == id) else { return };
        let Stage::Admitting(admission) = &mut judge.stage else { return };
        judge.since = now;
        if Status(header.status) == Status::MORE_PROCESSING_REQUIRED {
            admission.is_due = admission.login.step(header, msg, &mut *self.random);
            if admission.is_due {
                self.send_admission();
            } else {
                self.judge_says_no(now, Status::REQUEST_NOT_ACCEPTED);
            }
            return;
        }
        let is_yes = Status(header.status) == Status::SUCCESS;
        if judge.renews {
            // Samba seals its answer in a session that seals, although the request was not sealed.
            let keys = self.sessions.get(id).and_then(|s| s.node_keys.as_deref());
            let is_proved = opened == Some(id)
                || keys.is_none_or(|keys| header.flags.contains(Flags::SIGNED) && keys.verify_mut(msg));
            if is_yes && is_proved && admission.login.renewed(admission.flags, msg) {
                self.renew_session(now);
            } else {
                // The node has ended the session, or has given it to nobody knows whom.
                self.judge_says_no(now, Status::REQUEST_NOT_ACCEPTED);
            }
            return;
        }
        let is_keyed = admission.session_key.is_some();
        let flags = admission.flags;
        let accepted = admission.login.finish(&main.conn, flags, is_keyed, header, msg).filter(|accepted| {
            let can_seal = accepted.keys.as_ref().is_some_and(SessionKeys::can_seal);
            is_yes && (flags & SESSION_ENCRYPT_DATA == 0 || can_seal)
        });
        match accepted {
            Some(accepted) => self.establish(now, accepted),
            None => {
                self.end_login(now, Status::REQUEST_NOT_ACCEPTED);
                if is_yes {
                    self.log_off_node(header.session_id, None);
                }
            }
        }
    }

    /// Our own session stands: so does the client's.
    fn establish(&mut self, now: Instant, accepted: Accepted) {
        let Some(judge) = self.judging.now.take() else { return };
        let Judge { stage: Stage::Admitting(admission), client_id, login, request, .. } = *judge else {
            return;
        };
        let (node_id, node_keys) = (accepted.node_id, accepted.keys.map(Arc::new));
        if admission.login.previous != 0 {
            self.note_bygone_ended(admission.login.previous);
        }
        let Some(request) = request.and_then(|id| self.requests.remove(id)) else {
            self.log_off_node(node_id.0, node_keys.as_deref());
            return self.judge_next(now);
        };
        let mut session = Session::new(&self.conn, &login, &admission.outcome, admission.flags);
        (session.client_id, session.node_id) = (Client(client_id), node_id);
        if let Ok(derived) = admission.outcome.result {
            session.protection = derived.protection;
            session.authority = Some(derived.authority);
        }
        session.node_keys = node_keys;
        session.client_keys =
            admission.session_key.map(|key| Arc::new(SessionKeys::derive(&self.conn, &key, &login.preauth)));
        session.signing_required &= session.client_keys.is_some();
        self.sessions.insert(session);
        self.tell_session(client_id, None);
        self.tell_succession(now, client_id, login.previous);
        let mut header = self.response_header(&request, Status::SUCCESS);
        header.session_id = client_id;
        let answer = encode::session_setup_response(&header, admission.flags, &admission.token);
        // The last answer of a login is signed, whatever the request was (MS-SMB2 3.3.5.5.3).
        self.send_to_client(Cover::Signed, client_id, &answer);
        self.judge_next(now);
    }

    /// Our own session is authenticated anew: so is the client's. Its keys stay.
    fn renew_session(&mut self, now: Instant) {
        let Some(judge) = self.judging.now.take() else { return };
        let Judge { stage: Stage::Admitting(admission), client_id, request, .. } = *judge else { return };
        if let Some(session) = self.sessions.get_mut(client_id) {
            let was = session.protection;
            session.renew(admission.outcome, admission.flags);
            self.tell_session(client_id, Some(was));
        }
        if let Some(request) = request.and_then(|id| self.requests.remove(id)) {
            let header = self.response_header(&request, Status::SUCCESS);
            let answer = encode::session_setup_response(&header, admission.flags, &admission.token);
            let cover = if request.sealed { Cover::Sealed } else { Cover::Signed };
            self.send_to_client(cover, client_id, &answer);
        }
        self.judge_next(now);
    }

    /// Ends a session on the node, and for the client, with all that it has open.
    /// `op` says who waits for the node's answer.
    pub(in crate::link) fn end_node_session(&mut self, id: SessionId, op: Op) {
        let session = self.sessions.get(id).filter(|s| !s.ended);
        if let (Some(Node(node_id)), State::Bridge(leg)) = (session.map(|s| s.node_id), &self.state)
            && leg.can_send(1)
        {
            self.send_in_session(id, &logoff(leg, node_id), op);
        }
        self.forget_session(id);
    }

    /// Ends a session of ours that the client does not have. The answer changes nothing.
    fn log_off_node(&mut self, node_id: SessionId, keys: Option<&SessionKeys>) {
        let State::Bridge(leg) = &mut self.state else { return };
        if leg.can_send(1) {
            let msg = logoff(leg, node_id);
            leg.send_own(&mut self.out, msg, keys, Op::Discard);
        }
    }
}

/// LOGOFF of a session of ours.
fn logoff(leg: &NodeLeg, node_id: SessionId) -> Vec<u8> {
    let mut header = Header::request(Command::LOGOFF, 0);
    header.session_id = node_id;
    header.credit_charge = NodeLeg::least_charge(&leg.conn);
    encode::logoff(&header)
}
