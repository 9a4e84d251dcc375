//! Sessions that a proxy before this one had at nodes. Its process may only be stopped, and its machine may still have something
//! to send: what a client comes back to is opened again only when its user's session of then is ended, which a login does that
//! names it as PreviousSessionId (MS-SMB2 3.3.5.5.3). When the grace is over nobody waits for that any more.

use std::{collections::BTreeMap, time::Instant};

use understudy_state::record::SessionRecord;

use super::{Files, absent::is_user};
use crate::{effect::Mutation, ids::SessionId};

/// All of them, by ClientGuid and the client's SessionId.
#[derive(Debug, Default)]
pub(super) struct Bygone {
    sessions: BTreeMap<([u8; 16], SessionId), SessionRecord>,
    until: Option<Instant>,
}

impl Files {
    /// A record of an earlier run of the proxy.
    pub fn load_session(&mut self, now: Instant, record: SessionRecord) {
        let key = (record.client.0, SessionId::from_be_bytes(record.session.0));
        self.bygone.until = Some(now + self.absent.grace());
        self.bygone.sessions.insert(key, record);
    }

    /// What is to be ended before a client of this ClientGuid gets back what it had: its own sessions, and those of what its
    /// users may claim by another ClientGuid.
    pub(crate) fn bygone(&self, client: [u8; 16], users: &[&str]) -> Vec<SessionRecord> {
        let claimed = self.absent.sessions(users);
        let is_meant = |key: &([u8; 16], SessionId)| key.0 == client || claimed.contains(key);
        self.bygone
            .sessions
            .iter()
            .filter(|(key, _)| is_meant(key))
            .map(|(_, record)| record.clone())
            .collect()
    }

    /// One is ended.
    pub(super) fn bygone_ended(&mut self, client: [u8; 16], session: SessionId) {
        if self.bygone.sessions.remove(&(client, session)).is_some() {
            self.absent.wants_stored(Mutation::RemoveSession { client, session });
        }
    }

    /// When [`Self::end_bygone`] is due.
    pub(super) fn bygone_until(&self) -> Option<Instant> {
        self.bygone.until.filter(|_| !self.bygone.sessions.is_empty())
    }

    /// Nobody is kept waiting for their end any more.
    pub(super) fn end_bygone(&mut self, now: Instant) {
        if self.bygone_until().is_some_and(|at| now >= at) {
            for ((client, session), _) in std::mem::take(&mut self.bygone.sessions) {
                self.absent.wants_stored(Mutation::RemoveSession { client, session });
            }
        }
    }
}

/// The session to be ended by a login of this user's, if one of these is at this node.
pub(crate) fn next(bygone: &[SessionRecord], user: &str, node: Option<&str>) -> Option<SessionId> {
    let found =
        bygone.iter().find(|record| is_user(&record.user, user) && Some(record.node.as_str()) == node);
    found.map(|record| SessionId::from_be_bytes(record.node_session.0))
}
