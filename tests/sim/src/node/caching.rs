//! Oplocks and leases of a server (MS-SMB2 3.3.4.6, 3.3.4.7, 3.3.5.22).

use smb_parse::{
    FileId,
    cmd::{create, oplock_break},
    create_context::{self, Lease as WireLease},
    encode,
    header::{Command, Flags, Header, Status, Target},
};

use super::{Caching, Chain, ConnId, Lease, Out, Server, chain::Step, files::lease_of, login::u16s};

/// The tag and the data of a create context.
type Context = (&'static [u8], Vec<u8>);

/// The directory has this number.
const DIRECTORY: u64 = 0;
const LEVEL_II: u8 = 1;
const READ: u32 = 1;
const HANDLE: u32 = 2;
const WRITE: u32 = 4;

fn notice(session_id: u64) -> Header {
    Header {
        credit_charge: 0,
        status: 0,
        command: Command::OPLOCK_BREAK,
        credits: 0,
        flags: Flags::SERVER_TO_REDIR,
        next_command: 0,
        message_id: u64::MAX,
        target: Target::Sync { reserved: 0, tree_id: 0 },
        session_id,
        signature: [0; 16],
    }
}

impl Server {
    /// What a new Open may cache, and the context that says so.
    pub(super) fn grant_caching(
        &mut self,
        conn: ConnId,
        guid: [u8; 16],
        number: u64,
        asked: &create::Request<'_>,
    ) -> (Caching, Option<Context>) {
        let lease = lease_of(asked).filter(|_| asked.requested_oplock_level == 0xff);
        let directory = number == DIRECTORY;
        let stingy = self.setup.stingy && self.id % 2 == 1;
        let own = lease.map(|l| (guid, l.key));
        let alone = !self.opens.values().any(|o| {
            o.number == number && !own.is_some_and(|(g, k)| o.guid == g && o.caching == Caching::Lease(k))
        });
        let Some(wanted) = lease else {
            let level = match asked.requested_oplock_level {
                0xff | 0 => 0,
                _ if directory => 0,
                level if alone && !stingy => level,
                _ => LEVEL_II,
            };
            return (Caching::Oplock(level), None);
        };
        let cap = match (stingy, alone && !directory) {
            (true, _) => READ,
            (false, true) => READ | HANDLE | WRITE,
            (false, false) => READ | HANDLE,
        };
        let granted = wanted.state & cap;
        let entry = self.leases.entry((guid, wanted.key)).or_insert_with(|| Lease {
            number,
            state: 0,
            epoch: 0,
            version: wanted.version,
            breaking: None,
            conn,
        });
        entry.conn = conn;
        if entry.breaking.is_none() && entry.state & !granted == 0 && entry.state != granted {
            entry.state = granted;
            entry.epoch = entry.epoch.wrapping_add(1);
        }
        let state = entry.breaking.unwrap_or(entry.state);
        let answer = WireLease { state, epoch: entry.epoch, flags: 0, duration: 0, ..wanted };
        (Caching::Lease(wanted.key), Some((create_context::tag::RQLS, encode::lease(&answer))))
    }

    /// The context that says what a lease is.
    pub(super) fn lease_context(&self, guid: [u8; 16], key: [u8; 16]) -> Option<Context> {
        let lease = self.leases.get(&(guid, key))?;
        let (state, epoch, version) = (lease.breaking.unwrap_or(lease.state), lease.epoch, lease.version);
        let answer = WireLease { key, state, flags: 0, duration: 0, parent_key: [0; 16], epoch, version };
        Some((create_context::tag::RQLS, encode::lease(&answer)))
    }

    /// Whether an Open's file is open to others who may keep it open when their applications close it.
    pub(super) fn others_cache_handles(&self, id: u64) -> bool {
        const BATCH: u8 = 9;
        let Some(own) = self.opens.get(&id) else { return false };
        let keeps = |open: &super::Open| match open.caching {
            Caching::Oplock(level) => level == BATCH,
            Caching::Lease(key) => {
                self.leases.get(&(open.guid, key)).is_some_and(|lease| lease.state & HANDLE != 0)
            }
        };
        self.opens.iter().any(|(other, open)| *other != id && open.number == own.number && keeps(open))
    }

    /// Breaks what must not be cached once somebody else opens the file. True if an acknowledgement is awaited.
    pub(super) fn break_for_open(&mut self, number: u64, own: Option<([u8; 16], [u8; 16])>) -> bool {
        let mut waits = false;
        for (id, open) in &mut self.opens {
            if open.number != number || open.disconnected.is_some() {
                continue;
            }
            if let Caching::Oplock(level) = open.caching
                && level > LEVEL_II
            {
                waits = true;
                if open.breaking.replace(LEVEL_II).is_none() {
                    let file = FileId { persistent: open.persistent, volatile: *id };
                    let msg = encode::oplock_break_notification(&notice(open.session), file, LEVEL_II);
                    self.out.push(Out::Frame(open.conn, encode::frame(msg), Vec::new()));
                }
            }
        }
        for (key, lease) in &mut self.leases {
            if lease.number == number && Some(*key) != own && lease.state & WRITE != 0 {
                waits = true;
                if lease.breaking.is_none() {
                    self.out.push(break_lease(key.1, lease, lease.state & !WRITE));
                }
            }
        }
        waits
    }

    /// Breaks what is cached of the directory when a name in it changes. Nobody waits for that.
    pub(super) fn break_for_name(&mut self) {
        self.out.push(Out::NameChanged);
        for (key, lease) in &mut self.leases {
            if lease.number == DIRECTORY && lease.state != 0 && lease.breaking.is_none() {
                self.out.push(break_lease(key.1, lease, 0));
            }
        }
    }

    /// Whether an acknowledgement is awaited.
    pub fn is_breaking(&self) -> bool {
        self.leases.values().any(|l| l.breaking.is_some())
            || self.opens.values().any(|o| o.breaking.is_some())
    }

    /// Nobody has acknowledged a break for too long (3.3.6.1).
    pub(super) fn time_out_breaks(&mut self) {
        for lease in self.leases.values_mut() {
            lease.state = lease.breaking.take().unwrap_or(lease.state);
        }
        for open in self.opens.values_mut() {
            if let Some(level) = open.breaking.take() {
                open.caching = Caching::Oplock(level);
            }
        }
    }

    /// Breaks what others may read from their caches of a file that is written.
    pub(super) fn break_for_write(&mut self, me: u64, number: u64) {
        let writer = self.opens.get(&me).map(|o| (o.guid, o.caching));
        for (id, open) in &mut self.opens {
            if open.number == number && *id != me && open.caching == Caching::Oplock(LEVEL_II) {
                open.caching = Caching::Oplock(0);
                let file = FileId { persistent: open.persistent, volatile: *id };
                let msg = encode::oplock_break_notification(&notice(open.session), file, 0);
                self.out.push(Out::Frame(open.conn, encode::frame(msg), Vec::new()));
            }
        }
        for ((guid, key), lease) in &mut self.leases {
            let own = writer == Some((*guid, Caching::Lease(*key)));
            if lease.number == number && !own && lease.state != 0 && lease.breaking.is_none() {
                self.out.push(break_lease(*key, lease, 0));
            }
        }
    }

    /// MS-SMB2 3.3.5.22.
    pub(super) fn acknowledge(&mut self, chain: &Chain, msg: &[u8]) -> Step {
        let fail = |status| Step::Done(status, u16s(&[9, 0, 0, 0]));
        match oplock_break::Ack::parse(msg) {
            Ok(oplock_break::Ack::Oplock { oplock_level, file_id }) => {
                if chain.mark.bridge && !self.is_mine(chain.conn, file_id.volatile) {
                    self.offend("foreign id", format!("FileId {:x} in an acknowledgement", file_id.volatile));
                }
                let Some(open) = self.opens.get_mut(&file_id.volatile) else {
                    return fail(Status::FILE_CLOSED);
                };
                if open.breaking.take().is_none() {
                    return fail(Status(0xc000_00e3));
                }
                open.caching = Caching::Oplock(oplock_level.min(LEVEL_II));
                let body = [&u16s(&[24])[..], &[oplock_level, 0, 0, 0, 0, 0], &file_id.to_bytes()].concat();
                Step::Done(Status::SUCCESS, body)
            }
            Ok(oplock_break::Ack::Lease { lease_key, lease_state, .. }) => {
                let guid = self.conns.get(&chain.conn).map(|c| c.guid).unwrap_or_default();
                let Some(lease) = self.leases.get_mut(&(guid, lease_key)) else {
                    return fail(Status::OBJECT_NAME_NOT_FOUND);
                };
                let Some(to) = lease.breaking.take() else { return fail(Status::UNSUCCESSFUL) };
                lease.state = lease_state & to;
                let body =
                    [&u16s(&[36, 0])[..], &[0; 4], &lease_key, &lease.state.to_le_bytes(), &[0; 8]].concat();
                Step::Done(Status::SUCCESS, body)
            }
            Err(_) => fail(Status::INVALID_PARAMETER),
        }
    }
}

/// Begins a break; what needs no acknowledgement is broken at once.
fn break_lease(key: [u8; 16], lease: &mut Lease, to: u32) -> Out {
    let waits = lease.state & !READ != 0;
    lease.epoch = lease.epoch.wrapping_add(1);
    let notice_of = encode::LeaseBreak {
        epoch: if lease.version == 2 { lease.epoch } else { 0 },
        flags: u32::from(waits),
        key,
        current: lease.state,
        new: to,
    };
    if waits {
        lease.breaking = Some(to);
    } else {
        lease.state = to;
    }
    Out::Frame(
        lease.conn,
        encode::frame(encode::lease_break_notification(&notice(0), &notice_of)),
        Vec::new(),
    )
}
