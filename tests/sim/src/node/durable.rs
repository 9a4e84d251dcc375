//! Durable Opens (MS-SMB2 3.3.5.9.6, 3.3.5.9.7, 3.3.5.9.10, 3.3.5.9.12), as Samba has them: what outlives its connection, and how
//! it is had again.
//!
//! A disconnected Open keeps its locks. It is in nobody's way: a CREATE that it would conflict with closes it. It can be had
//! again by the same user of the same client, as long as the file has not changed and its time is not over.

use smb_parse::{
    FileId,
    cmd::create,
    create_context::{RequestContext, tag},
    header::{Header, Status},
};

use super::{Caching, Chain, Open, Server, chain::Step};
use crate::disk::Disk;

/// What was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Durable {
    /// By DH2Q, with this CreateGuid; else by DHnQ.
    guid: Option<[u8; 16]>,
    /// In units of 100 ns.
    timeout: u64,
}

/// An Open whose connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnected {
    until: u64,
    /// How often the file had changed by then.
    version: u64,
}

/// DHnQ lasts for 16 minutes, DH2Q as long as it is asked for, at most for five minutes (in milliseconds).
const V1: u64 = 960_000;
const V2: (u32, u32) = (60_000, 300_000);
const BATCH: u8 = 9;
const HANDLE: u32 = 2;
const WRITE: u32 = 4;

/// The reconnect that a CREATE asks for: by which FileId, with which CreateGuid.
pub(super) fn reconnect_of(asked: &create::Request<'_>) -> Option<(FileId, Option<[u8; 16]>)> {
    asked.contexts().flatten().find_map(|context| match RequestContext::parse(&context) {
        RequestContext::DurableReconnect { file_id } => Some((file_id, None)),
        RequestContext::DurableReconnectV2 { file_id, create_guid, .. } => Some((file_id, Some(create_guid))),
        _ => None,
    })
}

impl Server {
    /// Whether an Open with this caching outlives its connection, if that is asked for; and the context that says so.
    pub(super) fn grant_durable(
        &self,
        asked: &create::Request<'_>,
        guid: [u8; 16],
        caching: Caching,
    ) -> Option<(Durable, &'static [u8], Vec<u8>)> {
        if !self.keeps(guid, caching) {
            return None;
        }
        asked.contexts().flatten().find_map(|context| match RequestContext::parse(&context) {
            RequestContext::Durable => {
                Some((Durable { guid: None, timeout: V1 * 10_000 }, tag::DHNQ, vec![0; 8]))
            }
            RequestContext::DurableV2 { timeout, create_guid, .. } => {
                let timeout = if timeout == 0 { V2.0 } else { timeout.min(V2.1) };
                let answer = [timeout.to_le_bytes(), [0; 4]].concat();
                let durable = Durable { guid: Some(create_guid), timeout: u64::from(timeout) * 10_000 };
                Some((durable, tag::DH2Q, answer))
            }
            _ => None,
        })
    }

    /// Whether this is a batch oplock, or a lease with handle caching.
    fn keeps(&self, guid: [u8; 16], caching: Caching) -> bool {
        match caching {
            Caching::Oplock(level) => level == BATCH,
            Caching::Lease(key) => self.leases.get(&(guid, key)).is_some_and(|l| l.state & HANDLE != 0),
        }
    }

    /// MS-SMB2 3.3.7.1, and what Samba wants besides.
    fn survives(&self, open: &Open) -> bool {
        let breaking = match open.caching {
            Caching::Oplock(_) => open.breaking.is_some(),
            Caching::Lease(key) => self.leases.get(&(open.guid, key)).is_none_or(|l| l.breaking.is_some()),
        };
        let writes = match open.caching {
            Caching::Oplock(level) => level == BATCH,
            Caching::Lease(key) => self.leases.get(&(open.guid, key)).is_some_and(|l| l.state & WRITE != 0),
        };
        let others_lock = || {
            self.opens
                .values()
                .any(|o| o.number == open.number && o.persistent != open.persistent && !o.locks.is_empty())
        };
        !breaking
            && open.durable.is_some()
            && self.keeps(open.guid, open.caching)
            && !open.delete_on_close
            && !self.doomed.contains(&open.number)
            && (open.locks.is_empty() || writes)
            && !others_lock()
    }

    /// The connection of a session is gone: what is durable stays, without it.
    pub(super) fn disconnect_opens(&mut self, session: u64, disk: &Disk) {
        let staying: Vec<u64> = self
            .opens
            .iter()
            .filter(|(_, open)| open.session == session && self.survives(open))
            .map(|(id, _)| *id)
            .collect();
        let user = self.sessions.get(&session).map(|s| s.user.clone()).unwrap_or_default();
        for id in staying {
            let Some(open) = self.opens.get_mut(&id) else { continue };
            let version = disk.files.get(&open.number).map_or(0, |f| f.version);
            let until = disk.now + open.durable.map_or(0, |d| d.timeout);
            open.disconnected = Some(Disconnected { until, version });
            open.user.clone_from(&user);
            (open.session, open.conn, open.breaking) = (0, 0, None);
        }
    }

    /// Disconnected Opens whose time is over are closed.
    pub(super) fn scavenge(&mut self, disk: &mut Disk) {
        let now = disk.now;
        self.close_disconnected(disk, |_, _, gone| gone.until <= now);
    }

    /// Those of a file that are in the way of something are closed.
    pub(super) fn close_ghosts(
        &mut self,
        number: u64,
        disk: &mut Disk,
        is_in_the_way: impl Fn(&Self, &Open) -> bool,
    ) {
        self.close_disconnected(disk, |server, open, _| open.number == number && is_in_the_way(server, open));
    }

    fn close_disconnected(&mut self, disk: &mut Disk, which: impl Fn(&Self, &Open, Disconnected) -> bool) {
        let gone = self.opens.iter().filter(|(_, o)| o.disconnected.is_some_and(|gone| which(self, o, gone)));
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close_open(id, disk);
        }
    }

    /// Whether what nobody could acknowledge would have to be broken for a CREATE with that lease.
    pub(super) fn is_in_the_way(&self, open: &Open, own: Option<([u8; 16], [u8; 16])>) -> bool {
        match open.caching {
            Caching::Oplock(level) => level > 1,
            Caching::Lease(key) => {
                let held = (open.guid, key);
                own != Some(held) && self.leases.get(&held).is_some_and(|l| l.state & WRITE != 0)
            }
        }
    }

    /// A file has changed, and perhaps was written: nobody has it again as it was.
    pub(super) fn touch(&mut self, number: u64, writes: bool, disk: &mut Disk) {
        disk.touch(number, writes);
        if let Some(file) = disk.files.get_mut(&number) {
            file.version += 1;
        }
        self.close_ghosts(number, disk, |_, _| true);
    }

    /// DHnC, DH2C: the disconnected Open is this connection's.
    pub(super) fn reconnect(
        &mut self,
        chain: &mut Chain,
        header: &Header,
        asked: &create::Request<'_>,
        (wanted, guid): (FileId, Option<[u8; 16]>),
        disk: &Disk,
    ) -> Result<u64, Step> {
        let absent = || super::files::fail(Status::OBJECT_NAME_NOT_FOUND);
        let others: &[&[u8]] =
            if guid.is_some() { &[tag::DH2C, tag::RQLS] } else { &[tag::DHNC, tag::DHNQ, tag::RQLS] };
        if asked.contexts().flatten().any(|context| !others.contains(&context.tag)) {
            return Err(absent());
        }
        let known = self.conns.get(&chain.conn).map(|c| c.guid).unwrap_or_default();
        let user = self.sessions.get(&header.session_id).map(|s| s.user.clone()).unwrap_or_default();
        let found =
            self.opens.iter().find(|(_, o)| o.persistent == wanted.persistent).map(|(id, o)| (*id, o));
        let Some((id, open)) = found else { return Err(absent()) };
        let Some(gone) = open.disconnected else { return Err(absent()) };
        let lease = super::files::lease_of(asked).map(|l| l.key);
        let same_lease = match open.caching {
            Caching::Lease(key) => lease == Some(key),
            Caching::Oplock(_) => lease.is_none(),
        };
        let same_guid = guid.is_none() || open.durable.is_some_and(|d| d.guid == guid);
        let unchanged = disk.files.get(&open.number).is_some_and(|f| f.version == gone.version);
        if open.user != user {
            return Err(super::files::fail(Status::ACCESS_DENIED));
        }
        if open.guid != known || !same_guid || !same_lease || !unchanged || gone.until <= disk.now {
            return Err(absent());
        }
        let volatile = self.fresh();
        let Some(mut open) = self.opens.remove(&id) else { return Err(absent()) };
        (open.session, open.conn, open.disconnected) = (header.session_id, chain.conn, None);
        if let Caching::Lease(key) = open.caching
            && let Some(lease) = self.leases.get_mut(&(open.guid, key))
        {
            lease.conn = chain.conn;
        }
        self.opens.insert(volatile, open);
        Ok(volatile)
    }

    /// The session that a client has named as its earlier one ends, if the user is the same (3.3.5.5.3).
    pub(super) fn end_previous(&mut self, previous: u64, present: u64, disk: &mut Disk) {
        let user = |id| self.sessions.get(&id).map(|s: &super::Session| s.user.clone());
        if previous == 0 || previous == present || user(previous).is_none() || user(previous) != user(present)
        {
            return;
        }
        self.disconnect_opens(previous, disk);
        self.end_session(previous, disk);
    }

    /// The FileId by which it tells clients of an Open.
    pub(super) fn file_id(&self, volatile: u64) -> FileId {
        FileId { persistent: self.opens.get(&volatile).map_or(volatile, |o| o.persistent), volatile }
    }
}
