//! NEGOTIATE as the client's, and the SESSION_SETUP that binds (MS-SMB2 3.2.4.2.3.1, 3.3.5.5.2).

use std::time::Instant;

use smb_parse::{
    cmd::session_setup::{self, BINDING},
    encode::{self, SessionSetupParams},
    header::{Command, Flags, Header, Status},
};

use super::{Bound, Stage, framed, watch::Watch};
use crate::{
    auth::Login,
    crypto::{preauth::Preauth, signing::SigningAlg},
    event::{Event, SideChannelFailure, SideChannelNews},
    ids::SessionId,
    link::{
        Link, State,
        cover::SessionKeys,
        node_leg::{NodeLeg, Op, Pending},
    },
};

/// A side channel in the making, from NEGOTIATE on.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) leg: NodeLeg,
    pub(super) session: SessionId,
    pub(super) since: Instant,
    /// The login of its own by which it proves to be the same user, once NEGOTIATE is answered.
    login: Option<(Login, Preauth)>,
}

impl Link {
    /// TCP stands: NEGOTIATE.
    pub(in crate::link) fn side_connected(&mut self, now: Instant) {
        let Stage::Connecting { leg, session, .. } = self.side.stage else { return };
        let State::Relay(attached) = self.state else { return };
        let mut leg = NodeLeg::new(leg, attached.node, attached.generation);
        let msg = self.conn.negotiate_alike(&mut *self.random);
        let sent = leg.send_own(&mut self.out, msg, None, Op::Negotiate);
        leg.conn.request(&sent);
        let binding = Binding { leg, session, since: now, login: None };
        self.side.stage = Stage::Binding(Box::new(binding));
    }

    /// The node has answered NEGOTIATE. A binding to a connection that is not alike would be refused.
    pub(super) fn side_negotiated(&mut self, now: Instant, msg: &[u8]) {
        let Stage::Binding(binding) = &mut self.side.stage else { return };
        let ours = &mut binding.leg.conn;
        let alike = Header::parse(msg).is_ok_and(|h| h.command == Command::NEGOTIATE)
            && ours.response(msg)
            && ours.dialect == self.conn.dialect
            && ours.signing == self.conn.signing
            && ours.cipher == self.conn.cipher
            && ours.server_guid == self.conn.server_guid;
        if !alike {
            self.fail_side_channel(now, SideChannelFailure::Refused);
            return;
        }
        let preauth = ours.preauth.clone();
        let authority = self.sessions.get(binding.session).and_then(|s| s.authority.as_ref());
        let begun = authority.and_then(|authority| {
            let mut login = authority.login(&*self.credentials).ok()?;
            let token = login.start(&mut *self.random).ok()?;
            Some((login, token))
        });
        let Some((login, token)) = begun else {
            self.fail_side_channel(now, SideChannelFailure::NoAuthority);
            return;
        };
        binding.login = Some((login, preauth));
        self.send_binding(now, &token);
    }

    /// One SESSION_SETUP, signed with the session's key.
    fn send_binding(&mut self, now: Instant, token: &[u8]) {
        let Stage::Binding(binding) = &mut self.side.stage else { return };
        let Some(session) = self.sessions.get_mut(binding.session) else { return };
        let Some(keys) = session.client_keys.clone() else { return };
        // With GMAC the MessageId is the nonce: nobody must have signed it with this key, nor ever do so.
        let unused = session.signed_aside..=session.login_message_id;
        if self.conn.signing == SigningAlg::AesGmac && !unused.contains(&binding.leg.next_id()) {
            self.fail_side_channel(now, SideChannelFailure::Nonce);
            return;
        }
        let mut header = Header::request(Command::SESSION_SETUP, 0);
        (header.session_id, header.credit_charge) = (session.node_id.0, 1);
        let params = SessionSetupParams {
            flags: BINDING,
            security_mode: u8::try_from(self.conn.client_security_mode & 0xff).unwrap_or(1),
            capabilities: 0,
            previous_session_id: 0,
            token,
        };
        let mut msg = encode::session_setup(&header, &params);
        session.signed_aside = binding.leg.stamp(&mut msg, 1, Pending::Ours(Op::Bind)) + 1;
        keys.sign(&mut msg);
        if let Some((_, preauth)) = &mut binding.login {
            preauth.update(&msg);
        }
        self.out.send_node(binding.leg.id, framed(&msg));
    }

    /// The node's answer to a SESSION_SETUP that binds.
    pub(super) fn side_bound(&mut self, now: Instant, header: &Header, msg: &mut [u8]) {
        let result = match Status(header.status) {
            Status::MORE_PROCESSING_REQUIRED => self.binding_step(header, msg).map(Some),
            Status::SUCCESS => self.finish_binding(now, header, msg).map(|()| None),
            _ => Err(SideChannelFailure::Refused),
        };
        match result {
            Ok(Some(token)) => self.send_binding(now, &token),
            Ok(None) => {}
            Err(why) => self.fail_side_channel(now, why),
        }
    }

    /// The next token. The node, too, signs with the session's key until the channel has one.
    fn binding_step(&mut self, header: &Header, msg: &mut [u8]) -> Result<Vec<u8>, SideChannelFailure> {
        let Stage::Binding(binding) = &mut self.side.stage else { return Err(SideChannelFailure::Refused) };
        let keys = self.sessions.get(binding.session).and_then(|s| s.client_keys.as_ref());
        let proved = header.flags.contains(Flags::SIGNED) && keys.is_some_and(|keys| keys.verify_mut(msg));
        if !proved {
            return Err(SideChannelFailure::NotProved);
        }
        let response = session_setup::Response::parse(msg).map_err(|_| SideChannelFailure::Refused)?;
        let Some((login, preauth)) = &mut binding.login else { return Err(SideChannelFailure::Refused) };
        preauth.update(msg);
        login.step(response.security_buffer, &mut *self.random).map_err(|_| SideChannelFailure::NoAuthority)
    }

    /// It stands, if the last answer is signed with the key that the channel's own login has come to.
    fn finish_binding(
        &mut self,
        now: Instant,
        header: &Header,
        msg: &mut [u8],
    ) -> Result<(), SideChannelFailure> {
        let Stage::Binding(binding) = &mut self.side.stage else { return Err(SideChannelFailure::Refused) };
        let Some((mut login, preauth)) = binding.login.take() else {
            return Err(SideChannelFailure::Refused);
        };
        let response = session_setup::Response::parse(msg).map_err(|_| SideChannelFailure::Refused)?;
        login.finish(response.security_buffer).map_err(|_| SideChannelFailure::NotProved)?;
        let key = login.session_key().ok_or(SideChannelFailure::NoAuthority)?;
        let keys = SessionKeys::derive(&binding.leg.conn, key, &preauth);
        if !header.flags.contains(Flags::SIGNED) || !keys.verify_mut(msg) {
            return Err(SideChannelFailure::NotProved);
        }
        let stage = std::mem::take(&mut self.side.stage);
        if let Stage::Binding(binding) = stage {
            let Binding { leg, session, .. } = *binding;
            let bound = Bound { leg, session, keys, watch: Watch::heard(now) };
            self.side.stage = Stage::Bound(Box::new(bound));
            self.out.event(Event::SideChannel(SideChannelNews::Bound));
            self.take_questions(now);
        }
        Ok(())
    }
}
