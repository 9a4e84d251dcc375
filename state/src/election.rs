//! Electing one of several processes that share a store.
//!
//! Who leads has written the record `leader`, which hangs on a lease: whoever cannot renew it loses the record. Every batch
//! of a leader's is guarded by that very record, so that nothing of a leader that was deposed is applied any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    record::{Hex, RecordError, VERSION, Versioned, versioned},
    store::{BoxFuture, Guard, Key, StoreError},
};

/// Who leads (one record in a store).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderRecord {
    /// Record version.
    pub v: u32,
    /// What the process is called.
    pub name: String,
    /// Where it answers others, `ip:port`.
    pub heartbeat: String,
    /// Tells the process from those that have the name, or the address, before and after it.
    pub instance: Hex<8>,
    /// The lease on which the record hangs. No two terms have the same.
    pub lease: i64,
    /// It has given its leadership away, and does nothing any more. Hangs on no lease then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

impl Versioned for LeaderRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl LeaderRecord {
    /// Where it is kept.
    pub const KEY: &'static str = "leader";

    /// The value to be stored.
    ///
    /// # Errors
    /// None in practice: the record has no value that JSON lacks.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(self).map_err(|error| StoreError::Failed(error.to_string()))
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// The bytes are no such record, or one of a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        versioned(bytes)
    }
}

/// Who stands for election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What the process is called.
    pub name: String,
    /// Where it answers others, `ip:port`.
    pub heartbeat: String,
    /// A number that no other process has.
    pub instance: u64,
}

impl Candidate {
    /// What it puts if it is elected.
    #[must_use]
    pub fn record(&self, lease: i64) -> LeaderRecord {
        let (name, heartbeat) = (self.name.clone(), self.heartbeat.clone());
        let instance = Hex(self.instance.to_be_bytes());
        LeaderRecord { v: VERSION, name, heartbeat, instance, lease, released: false }
    }
}

/// A leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The record as it was written.
    pub record: LeaderRecord,
    /// What all batches of this term are guarded by.
    pub guard: Guard,
    /// The leader before has given its leadership away: it does nothing any more.
    pub handed_over: bool,
}

impl Term {
    /// The leadership of whoever has put this record.
    ///
    /// # Errors
    /// None in practice: the record has no value that JSON lacks.
    pub fn new(record: LeaderRecord, handed_over: bool) -> Result<Self, StoreError> {
        let guard = Guard { key: Key::from(LeaderRecord::KEY), value: record.to_bytes()? };
        Ok(Self { record, guard, handed_over })
    }
}

/// How an election went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Election {
    /// The candidate leads.
    Won(Term),
    /// Somebody else does.
    Lost(LeaderRecord),
}

/// What a store can do that several processes may share.
///
/// A lease is only how a leader that is gone is noticed by itself. Whether one still leads is known by
/// [`Elections::confirm`] alone, and only for the moment at which that was asked.
pub trait Elections: Send + Sync {
    /// Leads, if nobody does. The record is lost `ttl` after it was last confirmed, or later.
    fn campaign(&self, candidate: Candidate, ttl: Duration) -> BoxFuture<'_, Result<Election, StoreError>>;

    /// Renews the lease, and says whether the term stood when this was asked. False is for ever.
    fn confirm<'a>(&'a self, term: &'a Term) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Gives leadership away. Nothing may be done in its name any more.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: it was lost already.
    fn release<'a>(&'a self, term: &'a Term) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Deposes the leader whose lease this is. What it has confirmed before may make it go on for as long as it trusts in that.
    fn depose(&self, lease: i64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Who leads, or has given that away last.
    fn leader(&self) -> BoxFuture<'_, Result<Option<LeaderRecord>, StoreError>>;

    /// Waits until that is not `seen` any more.
    ///
    /// # Errors
    /// The store does not answer; it may be asked again.
    fn changed(&self, seen: Option<LeaderRecord>) -> BoxFuture<'_, Result<Option<LeaderRecord>, StoreError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_pinned() {
        let candidate = Candidate { name: "proxy-a".into(), heartbeat: "10.0.0.1:9646".into(), instance: 1 };
        let term = Term::new(candidate.record(7), false).unwrap();
        assert_eq!(
            String::from_utf8(term.guard.value.clone()).unwrap(),
            r#"{"v":1,"name":"proxy-a","heartbeat":"10.0.0.1:9646","instance":"0000000000000001","lease":7}"#
        );
        assert_eq!(LeaderRecord::from_bytes(&term.guard.value).unwrap(), term.record);
        let released = LeaderRecord { released: true, ..term.record };
        let bytes = released.to_bytes().unwrap();
        assert!(bytes.ends_with(br#""lease":7,"released":true}"#));
        assert_eq!(LeaderRecord::from_bytes(&bytes).unwrap(), released);
        assert!(matches!(LeaderRecord::from_bytes(br#"{"v":2}"#), Err(RecordError::TooNew(2))));
    }
}
