//! Authenticating every protected session again (MS-SMB2 3.2.4.2.3), as its own user.

use std::{collections::HashMap, sync::Arc, time::Instant};

use smb_parse::{
    cmd::session_setup,
    encode::{self, SessionSetupParams},
    header::{Command, Flags, Header, Status},
};

use super::Stage;
use crate::{
    auth::{Authority, Credentials, Login, LoginError},
    crypto::preauth::Preauth,
    event::{Event, SessionLoss},
    ids::{Node, SessionId},
    link::{
        Link, State,
        connection::Connection,
        cover::SessionKeys,
        node_leg::{NodeLeg, Op},
        outbox::Outbox,
    },
    random::Random,
};

/// The logins under way, by the client's SessionId.
pub(crate) type Logins = HashMap<SessionId, LoginState>;

/// One login of the proxy's own.
#[derive(Debug)]
pub(crate) struct LoginState {
    login: Login,
    preauth: Preauth,
    /// The SessionId the node gave with its first answer; of a session that stands already, its own.
    node_id: SessionId,
    /// PreviousSessionId: the session on that node whose place it takes, or 0.
    pub(crate) previous: SessionId,
    /// The security buffer to send next.
    token: Vec<u8>,
}

impl LoginState {
    /// Begins a login on a leg of which NEGOTIATE settled `conn`; on the session `node_id`, if that is not 0.
    pub(crate) fn begin(
        authority: &Authority,
        credentials: &dyn Credentials,
        random: &mut dyn Random,
        conn: &Connection,
        node_id: SessionId,
    ) -> Result<Self, LoginError> {
        let mut login = authority.login(credentials)?;
        let token = login.start(random)?;
        Ok(Self { login, preauth: conn.preauth.clone(), node_id, previous: 0, token })
    }

    /// Sends the next SESSION_SETUP of a session that does not stand yet.
    pub(crate) fn send(&mut self, leg: &mut NodeLeg, out: &mut Outbox, security_mode: u16, op: Op) {
        let sent = leg.send_own(out, self.message(&leg.conn, security_mode), None, op);
        self.preauth.update(&sent);
    }

    /// The next SESSION_SETUP. On a session that stands it need not be told how it was sent: no key comes of it.
    pub(crate) fn message(&self, conn: &Connection, security_mode: u16) -> Vec<u8> {
        let mut header = Header::request(Command::SESSION_SETUP, 0);
        header.session_id = self.node_id;
        header.credit_charge = NodeLeg::least_charge(conn);
        let params = SessionSetupParams {
            flags: 0,
            security_mode: u8::try_from(security_mode & 0xff).unwrap_or(1),
            capabilities: 0,
            previous_session_id: self.previous,
            token: &self.token,
        };
        encode::session_setup(&header, &params)
    }

    /// The node asks for more. Whether there is something to send to it.
    pub(crate) fn step(&mut self, header: &Header, msg: &[u8], random: &mut dyn Random) -> bool {
        let Ok(response) = session_setup::Response::parse(msg) else { return false };
        self.preauth.update(msg);
        self.node_id = header.session_id;
        match self.login.step(response.security_buffer, random) {
            Ok(token) => {
                self.token = token;
                true
            }
            Err(_) => false,
        }
    }

    /// The node says yes. That counts only with the SessionFlags that were recorded and, where the session has a key,
    /// signed under the one that we derived: a node that maps the user to guest must not get the user's writes.
    pub(crate) fn finish(
        &mut self,
        conn: &Connection,
        flags: u16,
        is_keyed: bool,
        header: &Header,
        msg: &mut [u8],
    ) -> Option<Accepted> {
        let response = session_setup::Response::parse(msg).ok()?;
        if response.session_flags != flags {
            return None;
        }
        let mut accepted = Accepted { node_id: Node(header.session_id), keys: None };
        if is_keyed {
            self.login.finish(response.security_buffer).ok()?;
            let keys = SessionKeys::derive(conn, self.login.session_key()?, &self.preauth);
            if !header.flags.contains(Flags::SIGNED) || !keys.verify_mut(msg) {
                return None;
            }
            accepted.keys = Some(keys);
        }
        Some(accepted)
    }

    /// The same for a session that stands already, whose keys stay and have proved the answer (MS-SMB2 3.3.5.5.2).
    pub(crate) fn renewed(&mut self, flags: u16, msg: &[u8]) -> bool {
        const NOBODY: u16 = session_setup::GUEST | session_setup::NULL;
        session_setup::Response::parse(msg).is_ok_and(|response| {
            response.session_flags & NOBODY == flags & NOBODY
                && self.login.finish(response.security_buffer).is_ok()
        })
    }
}

/// A session of ours that a node has accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) node_id: Node<SessionId>,
    /// `None` for guests.
    pub(crate) keys: Option<SessionKeys>,
}

impl Link {
    /// Every protected session, all at once as far as credits go.
    pub(super) fn begin_logins(&mut self, mut leg: NodeLeg) -> Stage {
        let mut logins = Logins::new();
        let mut hopeless = Vec::new();
        for session in self.sessions.iter().filter(|s| !s.ended) {
            let Some(authority) = &session.authority else { continue };
            let id = session.client_id.0;
            let begun = LoginState::begin(authority, &*self.credentials, &mut *self.random, &leg.conn, 0);
            match begun {
                Ok(mut state) => {
                    let known = session.known_as.get(&leg.node).map(|id| id.0);
                    // Our own session on this node ends with its leg; that of a proxy before us by nothing else.
                    let bygone = self.bygone_session(&session.user, leg.node);
                    state.previous = bygone.or(known).unwrap_or_default();
                    logins.insert(id, state);
                    leg.todo.push_back(Op::Login(id));
                }
                Err(error) => hopeless.push((id, error)),
            }
        }
        for (id, error) in hopeless {
            self.session_lost(id, error.into());
        }
        Stage::Authenticating(leg, logins)
    }

    /// The next SESSION_SETUP of a login.
    pub(super) fn send_login(&mut self, id: SessionId) {
        let security_mode = self.conn.client_security_mode;
        let State::Recovering(recovery) = &mut self.state else { return };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return };
        if let Some(state) = logins.get_mut(&id) {
            state.send(leg, &mut self.out, security_mode, Op::Login(id));
        }
    }

    /// The node's answer to a SESSION_SETUP of ours.
    pub(super) fn login_answer(&mut self, _now: Instant, id: SessionId, header: &Header, msg: &mut [u8]) {
        let status = Status(header.status);
        let more = status == Status::MORE_PROCESSING_REQUIRED;
        let goes_on = if more {
            self.login_step(id, header, msg)
        } else {
            status == Status::SUCCESS && self.login_done(id, header, msg)
        };
        if !goes_on {
            self.session_lost(id, SessionLoss::Refused);
        }
    }

    fn login_step(&mut self, id: SessionId, header: &Header, msg: &[u8]) -> bool {
        let State::Recovering(recovery) = &mut self.state else { return false };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return false };
        let Some(state) = logins.get_mut(&id) else { return false };
        let goes_on = state.step(header, msg, &mut *self.random);
        if goes_on {
            leg.todo.push_front(Op::Login(id));
        }
        goes_on
    }

    fn login_done(&mut self, id: SessionId, header: &Header, msg: &mut [u8]) -> bool {
        let State::Recovering(recovery) = &mut self.state else { return false };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return false };
        let Some(mut state) = logins.remove(&id) else { return false };
        let Some(session) = self.sessions.get_mut(id) else { return false };
        let is_keyed = session.client_keys.is_some();
        let Some(accepted) = state.finish(&leg.conn, session.flags, is_keyed, header, msg) else {
            return false;
        };
        // What the client has sealed must not go on in plain.
        let must_seal = session.seals || session.encrypts(None);
        if must_seal && !accepted.keys.as_ref().is_some_and(SessionKeys::can_seal) {
            return false;
        }
        session.node_keys = accepted.keys.map(Arc::new);
        session.node_id = accepted.node_id;
        let was = session.known_as.insert(leg.node, accepted.node_id);
        session.still_runs &= was.is_none_or(|was| was.0 != state.previous);
        recovery.progress.sessions += 1;
        if state.previous != 0 {
            self.note_bygone_ended(state.previous);
        }
        self.end_next_bygone(id);
        true
    }

    /// A login ends one session: where there are more the user logs in once more, and what stood so far ends with the leg.
    fn end_next_bygone(&mut self, id: SessionId) {
        let State::Recovering(recovery) = &self.state else { return };
        let Stage::Authenticating(leg, _) = &recovery.stage else { return };
        let Some(session) = self.sessions.get(id) else { return };
        let Some(previous) = self.bygone_session(&session.user, leg.node) else { return };
        let Some(authority) = &session.authority else { return };
        let begun = LoginState::begin(authority, &*self.credentials, &mut *self.random, &leg.conn, 0);
        let State::Recovering(recovery) = &mut self.state else { return };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return };
        if let Ok(state) = begun {
            logins.insert(id, LoginState { previous, ..state });
            leg.todo.push_back(Op::Login(id));
            recovery.progress.sessions -= 1;
        }
    }

    /// A session could not be had again: it ends alone.
    fn session_lost(&mut self, id: SessionId, loss: SessionLoss) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.ended = true;
            self.out.event(Event::SessionLost { user: session.user.clone(), loss });
        }
        if let State::Recovering(recovery) = &mut self.state {
            recovery.progress.sessions_lost += 1;
        }
        self.answer_ended_sessions();
    }
}
