//! What is written to the store of a Link's Opens and sessions, and what waits for it.
//!
//! Whatever touches an Open marks it ([`Opens::get_mut`]); when the owner asks for effects, the record of each that is marked
//! is compared with the one last written, and written if it is another. While a takeover is under way nothing is: what was
//! written last is what the client believes.
//!
//! | answer | leaves when |
//! |---|---|
//! | CREATE with a durable grant | its record is stored |
//! | LOCK on a durable Open, acknowledgement of a break | the change is stored |
//! | what says something of the lease of an Open that waits; break notification of such an Open | that has left |
//! | any other | at once; the record follows. That of an Open which is not durable only after [`LATER`], if it is still there |
//!
//! Invariant: no client sees a durable grant whose record is not stored, as long as the store works.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use smb_parse::{FileId, cmd::lock::Lock, create_context::Lease};
use understudy_state::record::{
    DurableRecord, FileIdRecord, Hex, LeaseRecord, LockRecord, OpenKey, OpenRecord, SessionRecord, VERSION,
};

use super::{
    Link, State,
    birth::Birth,
    locks::LockTable,
    open::{Durable, Open, OpenState},
    outbox::Named,
    session::Session,
};
use crate::{
    effect::{Close, CloseReason, Effect, Mutation},
    ids::{NodeId, OpenToken, SessionId, StoreToken},
};

/// When an Open that nobody can come back to is worth a record.
const LATER: Duration = Duration::from_secs(1);

/// What is on its way to the store.
#[derive(Debug, Default)]
pub(crate) struct Persist {
    last: StoreToken,
    stored: StoreToken,
    /// When Opens that are not durable are written.
    later: Option<Instant>,
    /// Those of them that were touched.
    late: BTreeSet<OpenToken>,
    /// Sessions may be others than those that were written.
    pub(crate) sessions_touched: bool,
    /// Sessions that were written.
    sessions: Vec<(SessionId, u64)>,
}

/// What was last written of an Open.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Written {
    digest: u64,
    /// 0: nothing.
    by: StoreToken,
}

impl Written {
    /// Whether there is a record.
    pub(crate) fn is_there(self) -> bool {
        self.by > StoreToken(0)
    }
}

fn digest(record: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}

impl Link {
    /// The owner has stored this, and everything before it; or will not, and the client is to be served all the same.
    pub fn handle_stored(&mut self, _now: Instant, token: StoreToken) {
        self.persist.stored = self.persist.stored.max(token);
        self.out.stored(token);
    }

    /// Whether something that is for the client waits until the store has answered.
    pub fn waits_for_store(&self) -> bool {
        self.out.waits_for_store()
    }

    /// The store has failed, and nobody is to be served without.
    pub fn handle_store_failed(&mut self, _now: Instant) {
        if self.out.waits_for_store() {
            self.close(Close::Reset, CloseReason::StoreFailed);
        }
    }

    /// Somebody has given another name to the file of an Open.
    pub fn handle_moved(&mut self, now: Instant, open: OpenToken, path: Box<[u8]>) {
        if let Some(open) = self.opens.get_mut(open) {
            open.called = Some(path).filter(|path| **path != *open.name.path);
        }
        self.write_touched(now);
    }

    /// When [`Self::write_later`] is due.
    pub(super) fn persist_timer(&self) -> Option<Instant> {
        self.persist.later
    }

    /// Opens that are not durable, and still there, are written.
    pub(super) fn write_later(&mut self, now: Instant) {
        if self.persist.later.is_none_or(|at| now < at) {
            return;
        }
        self.persist.later = None;
        for token in std::mem::take(&mut self.persist.late) {
            self.write_open(token);
        }
    }

    fn is_written(&self) -> bool {
        self.config.persist && matches!(self.state, State::Relay(_) | State::Bridge(_))
    }

    fn store(&mut self, mutation: Mutation) -> StoreToken {
        self.persist.last.0 += 1;
        let token = self.persist.last;
        self.out.effect(Effect::Store { token, mutation });
        token
    }

    /// What was touched is written, if it has become another.
    pub(super) fn write_touched(&mut self, now: Instant) {
        if !self.config.persist {
            self.opens.forget_touched();
            return;
        }
        if !self.is_written() {
            return;
        }
        for file_id in self.opens.take_removed() {
            self.store(Mutation::RemoveOpen(self.open_key(file_id)));
        }
        for token in self.opens.take_touched() {
            let Some(open) = self.opens.get(token) else { continue };
            if open.is_lasting() {
                self.write_open(token);
            } else if !open.is_pipe {
                self.persist.later.get_or_insert(now + LATER);
                self.persist.late.insert(token);
            }
        }
        if std::mem::take(&mut self.persist.sessions_touched) {
            self.write_sessions();
        }
    }

    /// The answer that is about to be given waits until the Open is stored as it is now, if somebody can come back to it.
    pub(super) fn wait_for_open(&mut self, token: OpenToken) {
        if !self.is_written() {
            return;
        }
        if let Some(lease) = self.opens.get(token).and_then(|open| open.lease) {
            self.out.wait_behind(Named::Lease(lease.key));
        }
        if self.opens.get(token).is_none_or(|open| !open.is_lasting()) {
            return;
        }
        self.write_open(token);
        let Some(open) = self.opens.get(token) else { return };
        let by = open.written.by;
        if by > self.persist.stored {
            let lease = open.lease.map(|lease| Named::Lease(lease.key));
            self.out.wait_for(by, [Named::File(open.client_id.0)].into_iter().chain(lease));
        }
    }

    fn write_open(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token).filter(|open| open.state == OpenState::Live) else { return };
        let Some(record) = self.record_of(open) else { return };
        let (digest, written) = (digest(&record), open.written);
        if !written.is_there() || written.digest != digest {
            let by = self.store(Mutation::PutOpen(Box::new(record)));
            self.opens.set_written(token, Written { digest, by });
        }
    }

    fn write_sessions(&mut self) {
        let records: Vec<_> =
            self.sessions.iter().filter_map(|session| self.session_record(session)).collect();
        let mut known = std::mem::take(&mut self.persist.sessions);
        for record in records {
            let (id, digest) = (u64::from_be_bytes(record.session.0), digest(&record));
            let before = known.iter().position(|(of, _)| *of == id).map(|at| known.swap_remove(at));
            if before != Some((id, digest)) {
                self.store(Mutation::PutSession(Box::new(record)));
            }
            self.persist.sessions.push((id, digest));
        }
        for (session, _) in known {
            self.store(Mutation::RemoveSession { client: self.conn.client_guid, session });
        }
    }

    /// The client is gone: nothing of its sessions is left, and of its Opens only what was told to Files.
    pub(super) fn unwrite(&mut self) {
        if !self.config.persist {
            return;
        }
        let written: Vec<_> =
            self.opens.iter().filter(|o| o.written.is_there()).map(|o| o.client_id.0).collect();
        for file_id in self.opens.take_removed().into_iter().chain(written) {
            self.store(Mutation::RemoveOpen(self.open_key(file_id)));
        }
        for (session, _) in std::mem::take(&mut self.persist.sessions) {
            self.store(Mutation::RemoveSession { client: self.conn.client_guid, session });
        }
    }

    pub(super) fn open_key(&self, file_id: FileId) -> OpenKey {
        OpenKey { client: self.conn.client_guid, file_id: file_id_record(file_id) }
    }

    /// The name of a node.
    pub(crate) fn node_name(&self, node: NodeId) -> Option<Arc<str>> {
        self.config.nodes.get(node)
    }

    /// What is recorded of an Open.
    pub(crate) fn record_of(&self, open: &Open) -> Option<OpenRecord> {
        let session = self.sessions.get(open.session.0)?;
        let node = open.had_by.filter(|_| open.state != OpenState::Live).or(self.node()).or(open.had_by)?;
        Some(OpenRecord {
            v: VERSION,
            client: Hex(self.conn.client_guid),
            user: session.user.as_str().into(),
            session: Hex(open.session.0.to_be_bytes()),
            file_id: file_id_record(open.client_id.0),
            share: Arc::clone(&open.share),
            path: open.called.as_deref().map_or_else(|| Arc::clone(&open.name.path), Into::into),
            node: self.node_name(node)?,
            epoch: self.assignment?.epoch,
            node_file_id: file_id_record(open.node_id.0),
            desired_access: open.desired_access,
            granted_access: open.granted_access,
            share_access: open.share_access,
            create_options: open.create_options,
            impersonation_level: open.impersonation_level,
            durable: durable_record(open.promised),
            node_durable: durable_record(open.durable),
            resilient: open.resilient,
            oplock: open.oplock_level,
            lease: open.lease.map(|lease| LeaseRecord {
                key: Hex(lease.key),
                state: lease.state,
                flags: lease.flags,
                parent_key: Hex(lease.parent_key),
                epoch: lease.epoch,
                epoch_shift: open.epoch_shift,
                version: lease.version,
            }),
            locks: open.locks.iter().map(lock_record).collect(),
            timewarp: open.timewarp,
            on_disk_id: open.on_disk_id.map(Hex),
            created: open.birth.time(),
            created_derived: open.birth.is_derived(),
            directory: open.is_directory,
            delete_pending: open.delete_pending,
            away_until: None,
        })
    }

    fn session_record(&self, session: &Session) -> Option<SessionRecord> {
        if session.ended {
            return None;
        }
        Some(SessionRecord {
            v: VERSION,
            client: Hex(self.conn.client_guid),
            user: session.user.clone(),
            session: Hex(session.client_id.0.to_be_bytes()),
            node: self.node_name(self.node()?)?.as_ref().into(),
            epoch: self.assignment?.epoch,
            node_session: Hex(session.node_id.0.to_be_bytes()),
            // Who has the socket knows.
            address: None,
        })
    }
}

/// What a record says of an Open is put into the Open.
pub(crate) fn restore(open: &mut Open, record: &OpenRecord) {
    open.desired_access = record.desired_access;
    open.granted_access = record.granted_access;
    open.share_access = record.share_access;
    open.create_options = record.create_options;
    open.impersonation_level = record.impersonation_level;
    open.promised = durable(record.durable);
    open.durable = durable(record.node_durable);
    open.resilient = record.resilient;
    open.oplock_level = record.oplock;
    open.lease = record.lease.map(|lease| Lease {
        key: lease.key.0,
        state: lease.state,
        flags: lease.flags,
        duration: 0,
        parent_key: lease.parent_key.0,
        epoch: lease.epoch,
        version: lease.version,
    });
    open.epoch_shift = record.lease.map_or(0, |lease| lease.epoch_shift);
    open.locks = record.locks.iter().map(lock).collect::<LockTable>();
    open.timewarp = record.timewarp;
    open.set_path(&record.path);
    open.on_disk_id = record.on_disk_id.map(|id| id.0);
    open.birth = birth(record);
    open.is_directory = record.directory;
    open.delete_pending = record.delete_pending;
}

/// When the file of a record was created.
pub(crate) fn birth(record: &OpenRecord) -> Birth {
    Birth::recorded(record.created, record.created_derived)
}

fn lock_record(lock: &Lock) -> LockRecord {
    LockRecord { offset: lock.offset, length: lock.length, flags: lock.flags }
}

fn lock(record: &LockRecord) -> Lock {
    Lock { offset: record.offset, length: record.length, flags: record.flags }
}

/// A FileId as it is recorded.
pub(crate) fn file_id_record(id: FileId) -> FileIdRecord {
    FileIdRecord { persistent: id.persistent, volatile: id.volatile }
}

/// A FileId from its record.
pub(crate) fn file_id(record: FileIdRecord) -> FileId {
    FileId { persistent: record.persistent, volatile: record.volatile }
}

fn durable_record(durable: Durable) -> DurableRecord {
    match durable {
        Durable::No => DurableRecord::No,
        Durable::V1 => DurableRecord::V1,
        Durable::V2 { timeout, create_guid } => DurableRecord::V2 { timeout, create_guid: Hex(create_guid) },
    }
}

fn durable(record: DurableRecord) -> Durable {
    match record {
        DurableRecord::No => Durable::No,
        DurableRecord::V1 => Durable::V1,
        DurableRecord::V2 { timeout, create_guid } => Durable::V2 { timeout, create_guid: create_guid.0 },
    }
}
