//! PreviousSessionId (MS-SMB2 3.3.5.5.3): who logs in again on another connection ends the session that they had.
//!
//! In Relay the node does it, and the proxy takes note. In Bridge the id that the client gives is one that no node knows:
//! the proxy ends the session, once the user has proved to be the same. A login that no key proves ends nothing.
//!
//! The client hears of its success only when the earlier session has ended, as a server does it: else it could meet its own
//! files still open. The owner says when ([`Link::handle_succession_done`]); nobody waits longer than [`PATIENCE`].

use std::time::{Duration, Instant};

use super::{Link, State, node_leg::Op};
use crate::{
    event::{Event, Succession},
    ids::SessionId,
};

/// How long a client waits at most for the end of its earlier session.
const PATIENCE: Duration = Duration::from_secs(2);

impl Link {
    /// A session stands whose client has named an earlier one.
    pub(super) fn tell_succession(&mut self, now: Instant, id: SessionId, previous: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        if previous != 0 && previous != id && session.client_keys.is_some() {
            let user = session.user.clone();
            self.out.event(Event::Succession(Succession { session: previous, user }));
            self.out.hold_client();
            self.succeeds_until = Some(now + PATIENCE);
        }
    }

    /// Every Link has dealt with the succession that this one told of.
    pub fn handle_succession_done(&mut self, _now: Instant) {
        self.end_succession();
    }

    /// The client waits no longer for its earlier session.
    pub(super) fn end_succession(&mut self) {
        self.succeeds_until = None;
        self.out.release_client();
    }

    /// Whether the end of a session, which somebody has succeeded, is under way.
    pub fn is_ending_session(&self) -> bool {
        match &self.state {
            State::Bridge(leg) => leg.waits_for(&Op::Ending),
            State::Recovering(_) => !self.succeeded.is_empty(),
            _ => false,
        }
    }

    /// Somebody has logged in elsewhere in the place of a session, which may be one of this Link's.
    pub fn handle_succession(&mut self, _now: Instant, succession: &Succession) {
        let id = succession.session;
        let is_theirs = self.sessions.get(id).is_some_and(|session| {
            !session.ended
                && session.client_keys.is_some()
                && session.user.to_lowercase() == succession.user.to_lowercase()
        });
        if !is_theirs {
            return;
        }
        match self.state {
            State::Relay(_) => self.forget_session(id),
            State::Bridge(_) => self.end_succeeded(id),
            State::Recovering(_) => self.succeeded.push(id),
            State::Opening(_) | State::Closed => {}
        }
    }

    /// Ends a session in Bridge: on the node, and for whoever still waits for something in it.
    fn end_succeeded(&mut self, id: SessionId) {
        for request in self.requests.ids() {
            if self.requests.get(request).is_some_and(|r| r.header.session_id == id) {
                self.give_up_request(request, smb_parse::header::Status::USER_SESSION_DELETED);
            }
        }
        self.end_node_session(id, Op::Ending);
    }

    /// What was said while a new node was sought.
    pub(crate) fn end_all_succeeded(&mut self) {
        for id in std::mem::take(&mut self.succeeded) {
            self.end_succeeded(id);
        }
    }
}
