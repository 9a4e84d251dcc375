//! A model of an SMB server: what MS-SMB2 3.3 says a server keeps, and strict about what it is sent.
//!
//! One [`Server`] has many connections. A frame is a [`Chain`] of requests that is run until it is answered, or waits for
//! another client's acknowledgement of a break, for a lock, or for slow storage.

mod caching;
mod chain;
mod cover;
mod durable;
mod files;
mod login;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use understudy_core::{
    auth::LoginObserver,
    crypto::{
        Dialect,
        preauth::Preauth,
        sealing::{Cipher, Nonces},
        signing::SigningKey,
    },
};

pub use self::{
    chain::{Chain, Had, Mark},
    table::{Caching, Lease, Open},
};
use crate::{cover::Seals, disk::Disk, oracle::Violation, setup::Setup};

/// Names one connection to a server. Never used again.
pub type ConnId = u64;

/// Something a server did that somebody outside wants to know.
#[derive(Debug, Clone)]
pub enum Out {
    /// A name came or went, or is another one.
    NameChanged,
    /// A frame for the client of this connection, and the files that it says were opened.
    Frame(ConnId, Vec<u8>, Vec<u64>),
    /// It closes the connection.
    Close(ConnId),
    /// It has executed a request.
    Deed(ConnId, Mark, Deed),
    /// It was sent what nobody may send.
    Offence(Violation),
    /// A line for the story.
    Note(String),
}

/// An execution that matters to the others: on which file, and where.
#[allow(missing_docs, reason = "the fields say what they are")]
#[derive(Debug, Clone)]
pub enum Deed {
    /// A file was opened. Whether the CREATE was one that must make a new file, and its name.
    Opened { number: u64, exclusive: bool, name: String },
    /// A block was read.
    Read { number: u64, block: usize },
    /// A block was written.
    Wrote { number: u64, block: usize, tag: u64 },
    /// Something was written to the end.
    Appended { number: u64, tag: u64 },
    /// A takeover has asked for an Open with this oplock level, or lease state.
    AskedBack { number: u64, name: String, oplock: u8, state: u32 },
    /// A range was locked.
    Locked { number: u64, block: usize },
    /// It has this name now.
    Renamed { number: u64, old: String, name: String },
    /// It has this name, too.
    Linked { number: u64, name: String },
    /// It is empty, by the CREATE with this tag.
    Emptied { number: u64, tag: u64 },
    /// This name came to be by a CREATE.
    Made { name: String },
    /// This name was removed.
    Removed { number: u64, name: String },
}

pub(crate) struct Session {
    pub(crate) user: String,
    pub(crate) key: Option<std::rc::Rc<SigningKey>>,
    pub(crate) seals: Option<std::rc::Rc<Seals>>,
    pub(crate) nonces: Nonces,
    /// MessageIds that were signed with its key: with GMAC never twice.
    pub(crate) signed: BTreeSet<u64>,
    pub(crate) signing_required: bool,
    pub(crate) encrypted: bool,
    pub(crate) trees: BTreeSet<u32>,
    pub(crate) conn: ConnId,
}

pub(crate) struct Login {
    pub(crate) observer: LoginObserver,
    pub(crate) preauth: Preauth,
}

/// What a server knows of one connection.
pub(crate) struct Conn {
    pub(crate) dialect: Dialect,
    pub(crate) cipher: Option<Cipher>,
    pub(crate) gmac: bool,
    pub(crate) guid: [u8; 16],
    /// Ids that are given out on it are greater.
    pub(crate) first: u64,
    pub(crate) preauth: Preauth,
    pub(crate) logins: BTreeMap<u64, Login>,
    /// Keys of sessions of other connections that this one is bound to.
    pub(crate) channels: BTreeMap<u64, std::rc::Rc<SigningKey>>,
    /// Below are used; from `high` on none is granted.
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) used: BTreeSet<u64>,
    pub(crate) available: u32,
}

/// One node.
pub struct Server {
    /// Its place in the list, from 0.
    pub(crate) id: usize,
    /// How often it has started.
    pub(crate) life: u32,
    pub(crate) setup: Setup,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// By the volatile part of the FileId.
    pub opens: BTreeMap<u64, Open>,
    /// By ClientGuid and LeaseKey.
    pub(crate) leases: BTreeMap<([u8; 16], [u8; 16]), Lease>,
    /// Names that nobody may open here.
    pub(crate) refused: BTreeSet<String>,
    /// Files whose last close deletes them.
    pub(crate) doomed: BTreeSet<u64>,
    /// In units of 100 ns.
    pub(crate) clock: u64,
    waiting: VecDeque<Chain>,
    /// Sessions that have ended: they cover what is still to be said in them.
    pub(crate) parted: BTreeMap<u64, Session>,
    next: u64,
    /// The request at hand had its credits with its STATUS_PENDING.
    pub(crate) credited: bool,
    /// What it has done since somebody looked.
    pub(crate) out: Vec<Out>,
}

impl Server {
    /// A server that has just started.
    pub fn new(id: usize, setup: &Setup) -> Self {
        Self {
            id,
            life: 1,
            setup: setup.clone(),
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            opens: BTreeMap::new(),
            leases: BTreeMap::new(),
            refused: BTreeSet::new(),
            doomed: BTreeSet::new(),
            clock: 0,
            waiting: VecDeque::new(),
            parted: BTreeMap::new(),
            next: 0,
            credited: false,
            out: Vec::new(),
        }
    }

    /// It dies, with all that it knew. Its ids will be others.
    pub fn crash(&mut self) {
        let life = self.life + 1;
        *self = Self { life, ..Self::new(self.id, &self.setup.clone()) };
    }

    /// A connection was accepted.
    pub fn connect(&mut self, conn: ConnId) {
        self.conns.insert(conn, Conn { first: self.next, ..Conn::new() });
    }

    /// A connection ended: its sessions and all they have open are gone.
    pub fn disconnect(&mut self, conn: ConnId, disk: &mut Disk) -> Vec<Out> {
        self.conns.remove(&conn);
        self.waiting.retain(|chain| chain.conn != conn);
        let gone: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.conn == conn).map(|(id, _)| *id).collect();
        for id in gone {
            self.disconnect_opens(id, disk);
            self.end_session(id, disk);
        }
        self.resume(disk, false);
        std::mem::take(&mut self.out)
    }

    /// A whole frame arrived.
    pub fn handle(&mut self, conn: ConnId, frame: &[u8], mark: Mark, disk: &mut Disk) -> Vec<Out> {
        self.clock = disk.now;
        if let Some(chain) = self.unpack(conn, frame, mark) {
            self.run(chain, disk);
        }
        self.resume(disk, false);
        std::mem::take(&mut self.out)
    }

    /// Slow storage answers.
    pub fn poke(&mut self, disk: &mut Disk) -> Vec<Out> {
        self.resume(disk, true);
        // What waited for a file may have it now that another request is done.
        self.resume(disk, false);
        std::mem::take(&mut self.out)
    }

    /// Breaks that nobody acknowledges are over.
    pub fn time_out(&mut self, disk: &mut Disk) -> Vec<Out> {
        self.time_out_breaks();
        self.poke(disk)
    }

    /// Whether something waits only for slow storage.
    pub fn is_slow(&self) -> bool {
        self.waiting.iter().any(|chain| chain.slow)
    }

    /// Whether a request of that connection waits for somebody else.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Everything that waits is tried again.
    fn resume(&mut self, disk: &mut Disk, storage: bool) {
        for mut chain in std::mem::take(&mut self.waiting) {
            if storage {
                chain.slow = false;
            }
            if chain.slow { self.waiting.push_back(chain) } else { self.run(chain, disk) }
        }
    }

    /// An id that says whose it is: node, life, number.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.mark() | self.next
    }

    /// What all its ids begin with.
    pub(crate) fn mark(&self) -> u64 {
        (self.id as u64 + 1) << 56 | u64::from(self.life) << 32
    }

    /// The newest of its ids.
    pub(crate) fn last_number(&self) -> u64 {
        self.next
    }

    /// A TreeId that says whose it is.
    pub(crate) fn fresh_tree(&mut self) -> u32 {
        self.next += 1;
        let number = u32::try_from(self.next & 0xffff).unwrap_or(0);
        (u32::try_from(self.id).unwrap_or(0) + 1) << 28 | (self.life & 0xff) << 16 | number
    }

    /// Whether a 64-bit id was given out on that connection: a client's own, of before, is not.
    pub(crate) fn is_mine(&self, conn: ConnId, id: u64) -> bool {
        let first = self.conns.get(&conn).map_or(0, |c| c.first);
        id & !0xffff_ffff == self.mark() && id & 0xffff_ffff > first
    }

    pub(crate) fn offend(&mut self, rule: &'static str, text: String) {
        let text = format!("node {}: {text}", self.id + 1);
        self.out.push(Out::Offence(Violation::new(rule, text)));
    }
}

/// Whether a TreeId looks like one that some node gave out.
pub fn is_node_tree(id: u32) -> bool {
    (1..=9).contains(&(id >> 28)) && (1..0x100).contains(&((id >> 16) & 0xff))
}

/// Whether a 64-bit id looks like one that some node gave out.
pub fn is_node_id(id: u64) -> bool {
    (1..=9).contains(&(id >> 56)) && (1..0x1_0000).contains(&((id >> 32) & 0xff_ffff))
}

impl Server {
    /// The ClientGuid of a connection.
    pub(crate) fn guid(&self, conn: ConnId) -> Option<[u8; 16]> {
        self.conns.get(&conn).map(|c| c.guid)
    }

    /// Whether the connection stands.
    pub fn knows(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    /// The most that it has granted to that connection's Opens of a file: oplock level, lease state.
    pub fn granted(&self, conn: ConnId, number: u64) -> (u8, u32) {
        let guid = self.conns.get(&conn).map(|c| c.guid).unwrap_or_default();
        let mut most = (0, 0);
        for open in self.opens.values().filter(|o| o.conn == conn && o.number == number) {
            match open.caching {
                Caching::Oplock(level) => most.0 = most.0.max(level),
                Caching::Lease(key) => most.1 |= self.leases.get(&(guid, key)).map_or(0, |l| l.state),
            }
        }
        most
    }
}
