//! Authenticating every protected session again (MS-SMB2 3.2.4.2.3), as its own user.

use std::{collections::HashMap, sync::Arc, time::Instant};

use smb_parse::{
    cmd::session_setup,
    encode::{self, SessionSetupParams},
    header::{Command, Flags, Header, Status},
};

use super::Stage;
use crate::{
    auth::Login,
    crypto::preauth::Preauth,
    ids::{Node, SessionId},
    link::{
        Link, State,
        cover::SessionKeys,
        node_leg::{NodeLeg, Op},
    },
};

/// The logins under way, by the client's SessionId.
pub(crate) type Logins = HashMap<SessionId, LoginState>;

/// One login.
#[derive(Debug)]
pub(crate) struct LoginState {
    login: Login,
    preauth: Preauth,
    /// The SessionId the node gave with its first answer.
    node_id: SessionId,
    /// The security buffer to send next.
    token: Vec<u8>,
}

impl Link {
    /// Every protected session, all at once as far as credits go.
    pub(super) fn begin_logins(&mut self, mut leg: NodeLeg) -> Stage {
        let mut logins = Logins::new();
        let mut refused = Vec::new();
        for session in self.sessions.iter().filter(|s| !s.ended) {
            let Some(authority) = &session.authority else { continue };
            let id = session.client_id.0;
            let begun = authority.login(&*self.credentials).and_then(|mut login| {
                let token = login.start(&mut *self.random)?;
                Ok(LoginState { login, preauth: leg.conn.preauth.clone(), node_id: 0, token })
            });
            if let Ok(state) = begun {
                logins.insert(id, state);
                leg.todo.push_back(Op::Login(id));
            } else {
                refused.push(id);
            }
        }
        for id in refused {
            self.session_lost(id);
        }
        Stage::Authenticating(leg, logins)
    }

    /// The next SESSION_SETUP of a login.
    pub(super) fn send_login(&mut self, id: SessionId) {
        let security_mode = self.conn.client_security_mode;
        let State::Recovering(recovery) = &mut self.state else { return };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return };
        let Some(state) = logins.get_mut(&id) else { return };
        let mut header = Header::request(Command::SESSION_SETUP, 0);
        header.session_id = state.node_id;
        header.credit_charge = u16::from(leg.conn.dialect > Some(crate::crypto::Dialect::SMB202));
        let params = SessionSetupParams {
            flags: 0,
            security_mode: u8::try_from(security_mode & 0xff).unwrap_or(1),
            capabilities: 0,
            previous_session_id: 0,
            token: &state.token,
        };
        let sent = leg.send_plain(&mut self.out, encode::session_setup(&header, &params), Op::Login(id));
        state.preauth.update(&sent);
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
            self.session_lost(id);
        }
    }

    fn login_step(&mut self, id: SessionId, header: &Header, msg: &[u8]) -> bool {
        let State::Recovering(recovery) = &mut self.state else { return false };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return false };
        let Some(state) = logins.get_mut(&id) else { return false };
        let Ok(response) = session_setup::Response::parse(msg) else { return false };
        state.preauth.update(msg);
        state.node_id = header.session_id;
        let Ok(token) = state.login.step(response.security_buffer, &mut *self.random) else { return false };
        state.token = token;
        leg.todo.push_front(Op::Login(id));
        true
    }

    /// SUCCESS counts only with the flags that were recorded, and signed under the key that we derived: a node that
    /// maps the user to guest must not get the user's writes.
    fn login_done(&mut self, id: SessionId, header: &Header, msg: &mut [u8]) -> bool {
        let State::Recovering(recovery) = &mut self.state else { return false };
        let Stage::Authenticating(leg, logins) = &mut recovery.stage else { return false };
        let Some(mut state) = logins.remove(&id) else { return false };
        let Ok(response) = session_setup::Response::parse(msg) else { return false };
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if response.session_flags != session.flags {
            return false;
        }
        if session.client_keys.is_some() {
            if state.login.finish(response.security_buffer).is_err() {
                return false;
            }
            let Some(key) = state.login.session_key() else { return false };
            let keys = SessionKeys::derive(&leg.conn, key, &state.preauth);
            let proved = header.flags.contains(Flags::SIGNED) && keys.verify_mut(msg);
            // What the client has sealed must not go on in plain.
            let must_seal = session.seals || session.encrypts(None);
            if !proved || must_seal && !keys.can_seal() {
                return false;
            }
            session.node_keys = Some(Arc::new(keys));
        }
        session.node_id = Node(header.session_id);
        recovery.progress.sessions += 1;
        true
    }

    /// A session could not be had again: it ends alone.
    fn session_lost(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.ended = true;
        }
        if let State::Recovering(recovery) = &mut self.state {
            recovery.progress.sessions_lost += 1;
        }
        self.answer_ended_sessions();
    }
}
