//! A client, and what it may believe: it checks what it hears as a real one would, and more strictly.

mod acts;
mod hear;
mod login;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use smb_parse::{
    FileId,
    compound::elements,
    encode,
    frame::PREFIX,
    header::{Command, Flags, Header, Status, Target},
};
use understudy_core::crypto::{
    Dialect,
    preauth::Preauth,
    sealing::{Cipher, Nonces},
    signing::SigningKey,
};

use self::login::Exchange;
use crate::{
    cover::{Seals, seal},
    node::Had,
    setup::{Protection, Setup},
    users::User,
};

/// A session as the client has it.
pub(crate) struct Session {
    id: u64,
    tree: u32,
    key: Option<Rc<SigningKey>>,
    seals: Option<Rc<Seals>>,
    /// It has ended.
    over: bool,
}

/// A file that the client has open.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    id: FileId,
    session: usize,
    /// The name it was opened by.
    name: String,
    /// The file's number.
    pub(crate) number: u64,
    oplock: u8,
    lease: Option<[u8; 16]>,
    /// Blocks that are locked, as far as the client knows, in order; whether exclusively.
    locks: Vec<(u64, bool)>,
    /// It may have been lost with a node: nothing is believed of it any more.
    gone: bool,
    directory: bool,
    /// Which blocks are locked is not known for certain any more.
    unsure: bool,
    /// The names of the enumeration under way.
    seen: Option<BTreeSet<String>>,
}

/// A lease as the client believes to have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Belief {
    state: u32,
    epoch: u16,
    v2: bool,
    /// How often names had changed when it was told so.
    names: u64,
    /// It was raised while a break was not acknowledged: the acknowledgement took back what the server still grants.
    raced: bool,
}

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Negotiate,
    Login,
    Tree(usize),
    Create {
        slot: Option<u8>,
        name: String,
        once: bool,
        wanted: (u8, u32),
        key: Option<[u8; 16]>,
        session: usize,
        /// The tag of a CREATE that empties.
        empties: Option<u64>,
    },
    Read {
        number: Option<u64>,
        chain: u64,
        block: usize,
    },
    Write {
        tag: u64,
    },
    Append {
        tag: u64,
    },
    Close,
    Lock {
        slot: u8,
        id: FileId,
        blocks: Vec<u64>,
        exclusive: bool,
        /// An UNLOCK of it was sent since: nothing is believed of it.
        unlocked: bool,
    },
    Unlock {
        slot: u8,
        id: FileId,
        blocks: Vec<u64>,
        /// What becomes of it, where the client can tell.
        outcome: Option<Status>,
    },
    Rename {
        name: String,
    },
    Link {
        name: String,
    },
    /// The flag that a file is to be deleted, in front of the CLOSE that does so.
    Dispose,
    /// CLOSE of a compound that makes or deletes a name.
    Counted {
        what: String,
        /// The CREATE of the same compound.
        create: u64,
    },
    List {
        slot: u8,
        id: FileId,
    },
    LogOff(usize),
    Ack,
    Other,
}

/// What a run may be devoted to: the kinds of request of which the replay table has rows that are rare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Append,
    Close,
    /// Within a compound.
    Delete,
    /// CREATE of a file that must be new.
    Exclusive,
    /// CREATE of a file that is new, and may be there.
    More,
    Link,
    Rename,
    /// CREATE that empties.
    Overwrite,
    Login,
    Notify,
    Ioctl,
}

impl Awaited {
    /// As the replay table calls it.
    pub(crate) fn row(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Close => "close",
            Self::Delete => "delete",
            Self::Exclusive => "exclusive_create",
            Self::More => "open_if",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Overwrite => "overwrite",
            Self::Login => "login",
            Self::Notify => "notify",
            Self::Ioctl => "other_ioctl",
        }
    }

    fn is(self, asked: &Asked) -> bool {
        match (self, &asked.kind) {
            (Self::Append, Kind::Append { .. })
            | (Self::Close, Kind::Close)
            | (Self::Delete, Kind::Counted { .. })
            | (Self::Exclusive, Kind::Create { once: true, .. })
            | (Self::Link, Kind::Link { .. })
            | (Self::Rename, Kind::Rename { .. })
            | (Self::Overwrite, Kind::Create { empties: Some(_), .. })
            | (Self::Login, Kind::Login) => true,
            (Self::More, Kind::Create { once: false, name, .. }) => name.starts_with('x'),
            (Self::Notify, _) => asked.command == Command::CHANGE_NOTIFY,
            (Self::Ioctl, _) => asked.command == Command::IOCTL,
            _ => false,
        }
    }
}

/// A request that is not answered yet.
#[derive(Debug, Clone)]
pub struct Asked {
    pub(crate) kind: Kind,
    /// The command.
    pub command: Command,
    start: u64,
    interim: Option<u64>,
    /// Its STATUS_PENDING came from the node itself.
    interim_relayed: bool,
    /// What its STATUS_PENDING granted.
    granted: u32,
    /// The TreeId that its answer must have.
    tree: Option<u32>,
    signed: bool,
    pub(crate) sealed: bool,
    pub(crate) evil: bool,
    slot: Option<u8>,
    session: usize,
}

/// One client and its connection to the proxy.
pub struct Client {
    pub(crate) at: usize,
    pub(crate) guid: [u8; 16],
    setup: Setup,
    /// Whether the connection stands.
    pub alive: bool,
    dialect: Dialect,
    cipher: Option<Cipher>,
    preauth: Preauth,
    next: u64,
    credits: u32,
    nonces: Nonces,
    heard: BTreeSet<(u64, [u8; 16])>,
    pub(crate) sessions: Vec<Session>,
    login: Option<Exchange>,
    /// What is not answered yet.
    pub asked: BTreeMap<u64, Asked>,
    finals: BTreeSet<u64>,
    pub(crate) slots: BTreeMap<u8, Held>,
    leases: BTreeMap<[u8; 16], Belief>,
    /// How often it has asked for each lease.
    keys: BTreeMap<[u8; 16], u32>,
    acks: VecDeque<login::Ack>,
    users: Vec<User>,
    /// Files of which an Open was lost while its CREATE was perhaps not answered yet.
    suspect: BTreeSet<u64>,
    /// It is not known of which.
    suspects_all: bool,
    /// Files of which several Opens had one lease.
    shared: BTreeSet<u64>,
    names: u32,
    /// How many LOCKs and UNLOCKs it has sent.
    locks: u32,
    /// The numbers of what compounds have opened.
    chains: BTreeMap<u64, u64>,
    /// How many break notifications it has heard.
    pub breaks: u32,
    /// CLOSEs that delete nothing, for the flag was not set.
    spoilt: BTreeSet<u64>,
    /// What each command was last answered.
    pub last: BTreeMap<&'static str, u32>,
    /// What was answered, for coverage: command, status.
    pub answers: Vec<(Command, u64, Status)>,
}

impl Client {
    /// One that has not said anything yet.
    pub fn new(at: usize, setup: &Setup) -> Self {
        Self {
            at,
            guid: [u8::try_from(at).unwrap_or(0) + 0x51; 16],
            setup: setup.clone(),
            alive: true,
            dialect: setup.dialect,
            cipher: None,
            preauth: Preauth::new(),
            next: 0,
            credits: 1,
            nonces: Nonces::default(),
            heard: BTreeSet::new(),
            sessions: Vec::new(),
            login: None,
            asked: BTreeMap::new(),
            finals: BTreeSet::new(),
            slots: BTreeMap::new(),
            leases: BTreeMap::new(),
            keys: BTreeMap::new(),
            acks: VecDeque::new(),
            users: Vec::new(),
            suspect: BTreeSet::new(),
            suspects_all: false,
            shared: BTreeSet::new(),
            names: 0,
            locks: 0,
            chains: BTreeMap::new(),
            breaks: 0,
            spoilt: BTreeSet::new(),
            last: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    /// Whether it has logged in and connected to the share.
    pub fn is_ready(&self) -> bool {
        self.alive && self.sessions.first().is_some_and(|s| s.tree != 0)
    }

    /// Whether nothing is awaited but what may wait for ever.
    pub fn waits_for_ever(&self) -> bool {
        self.asked.values().all(|a| matches!(a.command, Command::CHANGE_NOTIFY | Command::LOCK))
    }

    /// Whether such a request is not answered.
    pub(crate) fn awaits(&self, what: Awaited) -> bool {
        self.asked.values().any(|asked| what.is(asked))
    }

    /// Whether a request of that kind is not answered, and whether a STATUS_PENDING has said so.
    pub fn unanswered(&self, command: &str) -> Option<bool> {
        self.asked.values().find(|a| a.command.name() == command).map(|a| a.interim.is_some())
    }

    /// Whether such a user has logged in, or tried.
    pub fn has(&self, user: User) -> bool {
        self.users.contains(&user)
    }

    /// The names by which it has opened what it has open.
    pub fn open_names(&self) -> impl Iterator<Item = &str> {
        self.slots.values().map(|held| &*held.name)
    }

    /// Whether it can ask for anything.
    pub fn has_credits(&self) -> bool {
        self.credits > 0
    }

    /// Whether it has a break to acknowledge.
    pub fn has_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// Whether an acknowledgement is not answered yet.
    pub fn is_acknowledging(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked.kind, Kind::Ack))
    }

    /// Whether it may have data of the file in its cache that nobody else has seen.
    pub fn believes_write(&self, number: u64) -> bool {
        self.alive
            && self.slots.values().any(|h| {
                h.number == number
                    && !h.gone
                    && (h.oplock == 8
                        || h.oplock == 9
                        || h.lease.and_then(|k| self.leases.get(&k)).is_some_and(|l| l.state & 4 != 0))
            })
    }

    /// It has not acknowledged breaks for so long that others wait no longer (MS-SMB2 3.3.6.1).
    pub fn be_late(&mut self) {
        let writes =
            |oplock: u8, lease: Option<&Belief>| oplock > 1 || lease.is_some_and(|l| l.state & 4 != 0);
        for held in self.slots.values_mut() {
            held.gone |= writes(held.oplock, held.lease.and_then(|key| self.leases.get(&key)));
        }
    }

    /// What it believes to have of each of its Opens. `None`: nobody can tell, for what it has asked for changes that.
    pub(crate) fn has_now(&self) -> Option<Rc<[Had]>> {
        let closes =
            |asked: &Asked| matches!(asked.kind, Kind::Close | Kind::LogOff(_) | Kind::Create { .. });
        if !self.alive || self.asked.values().any(closes) {
            return None;
        }
        // What it does not believe in any more may be asked for all the same.
        let had = |held: &Held| Had {
            number: held.number,
            name: held.name.clone(),
            oplock: held.oplock,
            lease: self.lease_of(held),
        };
        Some(self.slots.values().map(had).collect())
    }

    fn lease_of(&self, held: &Held) -> u32 {
        held.lease.and_then(|key| self.leases.get(&key)).map_or(0, |lease| lease.state)
    }

    /// Whether it believes that nobody else can touch the block.
    pub fn believes_lock(&self, number: u64, block: usize) -> bool {
        self.alive
            && self
                .slots
                .values()
                .any(|h| h.number == number && !h.gone && h.locks.contains(&(block as u64, true)))
    }

    /// The files that it has open, once for each Open.
    pub(crate) fn open_files(&self) -> impl Iterator<Item = u64> {
        self.slots.values().filter(|h| !h.gone && !h.directory).map(|h| h.number)
    }

    /// Whether the proxy cannot read what it says.
    pub(crate) fn is_opaque(&self) -> bool {
        self.setup.protection.seals() && self.has(User::Mallory)
    }

    /// The files of which it believes to hold something, with oplock level and lease state.
    pub(crate) fn beliefs(&self) -> impl Iterator<Item = (&Held, u8, u32)> {
        let believed = self.slots.values().filter(|h| !h.gone && (!h.directory || h.lease.is_some()));
        believed.map(|h| (h, h.oplock, self.lease_of(h)))
    }

    /// Whether it believes to know the names in the directory, and does not: they have changed since so often.
    pub fn believes_stale_names(&self, changes: u64) -> bool {
        let of = self.slots.values().filter(|h| !h.gone && h.directory);
        of.filter_map(|h| self.leases.get(&h.lease?)).any(|l| l.state & 1 != 0 && l.names < changes)
    }

    /// An Open of that file did not come back: which of several nobody tells it.
    pub fn give_up(&mut self, number: u64) {
        self.suspect.insert(number);
        for held in self.slots.values_mut().filter(|h| h.number == number) {
            held.gone = true;
        }
    }

    /// The same, where not even the file is known.
    pub fn give_up_all(&mut self) {
        self.suspects_all = true;
        for held in self.slots.values_mut() {
            held.gone = true;
        }
    }

    /// The connection is closed: nothing is believed any more.
    pub fn close(&mut self) {
        self.alive = false;
        self.slots.clear();
        self.leases.clear();
        self.acks.clear();
        self.asked.clear();
    }

    /// A request header on a session.
    fn header(&self, command: Command, session: usize) -> Header {
        let mut header = Header::request(command, 0);
        header.credits = 8;
        header.credit_charge = u16::from(self.dialect > Dialect::SMB202);
        if let Some(session) = self.sessions.get(session) {
            header.session_id = session.id;
            header.target = Target::Sync { reserved: 0, tree_id: session.tree };
        }
        header
    }

    /// Numbers messages, and signs or seals them as one frame.
    fn cover(&mut self, msgs: Vec<(Vec<u8>, Asked)>, evil: bool) -> Option<Vec<u8>> {
        let count = u32::try_from(msgs.len()).ok()?;
        if self.credits < count {
            return None;
        }
        let bodies: Vec<_> = msgs.iter().map(|(msg, _)| msg).collect();
        let mut chain = encode::compound(&bodies);
        let places: Vec<_> = elements(&chain).filter_map(Result::ok).map(|e| (e.range, e.header)).collect();
        let session = msgs.first().map_or(0, |(_, asked)| asked.session);
        let first = self.next;
        let known = self.sessions.get(session);
        let plain = places.first().is_some_and(|(_, h)| h.session_id == 0);
        let seals = known.and_then(|s| s.seals.clone()).filter(|_| self.setup.protection.seals() && !plain);
        let key = known.and_then(|s| s.key.clone()).filter(|_| !plain && seals.is_none());
        let id = known.map_or(0, |s| s.id);
        for ((range, mut header), (_, mut asked)) in places.into_iter().zip(msgs) {
            header.message_id = self.next;
            self.next += 1;
            self.credits -= 1;
            let msg = &mut chain[range];
            header.write(msg);
            let must = self.setup.protection != Protection::Unsigned
                || header.command == Command::TREE_CONNECT && self.dialect == Dialect::SMB311;
            if let Some(key) = key.as_ref().filter(|_| must || evil) {
                key.sign(msg);
                asked.signed = true;
            }
            asked.sealed = seals.is_some();
            asked.evil = evil;
            asked.tree = header.tree_id().filter(|_| !header.flags.contains(Flags::RELATED));
            self.asked.insert(header.message_id, asked);
        }
        let mut frame = match seals {
            Some(seals) => seal(&seals.to_server, id, &mut self.nonces, &chain),
            None => encode::frame(chain),
        };
        if evil {
            self.spoil(&mut frame, first, key.is_some());
        }
        Some(frame)
    }

    /// Somebody on the wire changes a frame: its signature, whether it has one, or what is sealed.
    fn spoil(&self, frame: &mut [u8], first: u64, keyed: bool) {
        const FLAGS: usize = PREFIX + 16;
        const SIGNATURE: usize = PREFIX + 48;
        let strip = self.setup.protection == Protection::Signed && keyed && first.is_multiple_of(2);
        if frame.get(PREFIX) == Some(&0xfd) {
            if let Some(last) = frame.last_mut() {
                *last ^= 1;
            }
        } else if strip {
            frame[FLAGS] &= !8;
            frame[SIGNATURE..SIGNATURE + 16].fill(0);
        } else {
            frame[FLAGS] |= 8;
            frame[SIGNATURE + 3] ^= 1;
        }
    }
}
