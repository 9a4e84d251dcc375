//! A file that a first client has open, what it believes it may cache, and what it and a second client were told.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::client::guid;
pub(super) use crate::rig::puppet::hex;

/// READ, WRITE and DELETE may others.
pub(super) const SHARE_ALL: u32 = 7;
/// Others may only read.
const SHARE_READ: u32 = 1;
/// To read, write and delete, spelt out (MS-SMB2 2.2.13.1).
pub(super) const READ_WRITE: u32 = 0x0013_019f;
/// `SMB2_OPLOCK_LEVEL_II`, and `SMB2_OPLOCK_LEVEL_LEASE` (MS-SMB2 2.2.13).
pub(super) const LEVEL_II: u64 = 1;
/// See [`LEVEL_II`].
pub(super) const LEASE: u64 = 0xff;
/// `SMB2_LEASE_WRITE_CACHING`.
pub(super) const WRITE_CACHING: u64 = 4;

/// A way of caching.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) oplock: u64,
    /// Of a lease.
    pub(super) state: u64,
}

/// All ways of caching of files.
pub(super) const KINDS: [Kind; 7] = [
    Kind { name: "ii", oplock: LEVEL_II, state: 0 },
    Kind { name: "exclusive", oplock: 8, state: 0 },
    Kind { name: "batch", oplock: 9, state: 0 },
    Kind { name: "r", oplock: LEASE, state: 1 },
    Kind { name: "rh", oplock: LEASE, state: 3 },
    Kind { name: "rw", oplock: LEASE, state: 5 },
    Kind { name: "rwh", oplock: LEASE, state: 7 },
];

/// What a file is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The first client lets nobody write.
    Shared,
    /// The first client has a byte range locked.
    Locked,
    /// The second client opens it too.
    Opened,
}

/// All purposes.
pub(super) const PURPOSES: [Purpose; 3] = [Purpose::Shared, Purpose::Locked, Purpose::Opened];

/// A break that wants an acknowledgement.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) to: u64,
    /// Whether the client may have had data to write.
    pub(super) writes: bool,
}

/// The file.
#[derive(Debug)]
pub(super) struct Held {
    /// The connection of the first client.
    pub(super) first: usize,
    pub(super) kind: &'static Kind,
    pub(super) purpose: Purpose,
    pub(super) name: String,
    /// Of the lease, and its version.
    key: String,
    version: u8,
    /// The FileId that the first client knows, and the second one.
    pub(super) id: String,
    pub(super) theirs: Option<String>,
    /// What the first client has: an oplock level, or a lease state.
    level: u64,
    epoch: Option<u64>,
    pub(super) owed: Option<Owed>,
    /// What both clients were told, one after the other.
    pub(super) told: Vec<String>,
    /// What it was told of breaks that the second client does not wait for: they may come at any time. After a takeover they
    /// may come before there is a reason, for what the first client has in its cache may be stale.
    pub(super) loose: Vec<String>,
}

impl Held {
    /// Not open yet.
    pub(super) fn new(
        first: usize,
        version: u8,
        kind: &'static Kind,
        purpose: Purpose,
        prefix: &str,
    ) -> Self {
        let name = format!("{prefix}-{first}-{}-{purpose:?}.bin", kind.name);
        let key = hex(&guid());
        let (id, theirs, epoch, owed) = (String::new(), None, None, None);
        let (told, loose) = (Vec::new(), Vec::new());
        Self { first, kind, purpose, name, key, version, id, theirs, level: 0, epoch, owed, told, loose }
    }

    pub(super) fn is_lease(&self) -> bool {
        self.kind.oplock == LEASE
    }

    /// The CREATE by which the first client gets it.
    pub(super) fn order(&self) -> Value {
        self.order_of(self.kind.state)
    }

    /// The CREATE by which the first client opens it once more, with the lease as it is.
    pub(super) fn again(&self) -> Value {
        self.order_of(self.level)
    }

    fn order_of(&self, state: u64) -> Value {
        let share = if self.purpose == Purpose::Shared { SHARE_READ } else { SHARE_ALL };
        // A lease under a parent's key, and one without.
        let parent = (self.version == 2 && self.kind.state > 1).then(|| "70".repeat(16));
        let lease = self.is_lease().then(|| {
            json!({
                "version": self.version, "key": self.key, "state": state, "parent": parent,
                "epoch": self.epoch.unwrap_or(0x20),
            })
        });
        open(&self.name, share, self.kind.oplock, lease.as_ref())
    }

    /// The first client has it open.
    pub(super) fn opened(&mut self, said: &Value) -> Result<()> {
        ensure!(said["status"] == 0, "{}: opening it: {said}", self.name);
        self.id = said["file"].as_str().context("no FileId")?.to_owned();
        let asked = if self.is_lease() { self.kind.state } else { self.kind.oplock };
        self.level = self.level_in(said).context("no level")?;
        ensure!(self.level == asked, "{}: {asked} was asked for, and {} granted", self.name, self.level);
        self.tick(said)
    }

    /// The first client opens it once more by its key: the node says what the lease is.
    pub(super) fn opened_again(&mut self, said: &Value) -> Result<()> {
        let level = self.level_in(said).with_context(|| format!("{}: {said}", self.name))?;
        ensure!(level == self.level, "{}: the client has {}, the node says {level}", self.name, self.level);
        self.tick(said)
    }

    fn level_in(&self, said: &Value) -> Option<u64> {
        if self.is_lease() { said["lease"].as_u64() } else { said["oplock"].as_u64() }
    }

    /// A lease's epoch never goes back (MS-SMB2 3.2.5.7.5).
    fn tick(&mut self, said: &Value) -> Result<()> {
        let epoch = said["epoch"].as_u64();
        if self.is_lease() && self.version == 2 {
            let now = epoch.context("a lease of version 2 without epoch")?;
            ensure!(
                self.epoch.is_none_or(|was| now >= was),
                "{}: epoch {:?} became {now}",
                self.name,
                self.epoch
            );
            self.epoch = Some(now);
        }
        Ok(())
    }

    /// Whether this notification is about it.
    pub(super) fn is_meant_by(&self, notice: &Value) -> bool {
        if self.is_lease() { notice["key"] == self.key.as_str() } else { notice["file"] == self.id.as_str() }
    }

    /// The first client got this notification.
    pub(super) fn broken(&mut self, notice: &Value) -> Result<()> {
        let to = notice["to"].as_u64().context("a break to nothing")?;
        let from = notice["from"].as_u64().unwrap_or(self.level);
        ensure!(
            from == self.level,
            "{}: the client has {}, and is told that it had {from}",
            self.name,
            self.level
        );
        if self.is_lease() && self.version == 2 {
            let (was, now) = (self.epoch.unwrap_or_default(), notice["epoch"].as_u64().unwrap_or_default());
            ensure!(now > was, "{}: a break with epoch {now} after {was}", self.name);
            self.epoch = Some(now);
        }
        let wanted = if self.is_lease() { notice["acknowledge"] == true } else { from > LEVEL_II };
        let writes = if self.is_lease() { from & !to & WRITE_CACHING != 0 } else { wanted };
        let suffix = if wanted { ", to be acknowledged" } else { "" };
        let line = format!("broken {from:#x} to {to:#x}{suffix}");
        if wanted && self.theirs.is_none() { &mut self.told } else { &mut self.loose }.push(line);
        ensure!(self.owed.is_none(), "{}: a break before the last one was acknowledged", self.name);
        self.owed = wanted.then_some(Owed { to, writes });
        self.level = to;
        Ok(())
    }

    /// The acknowledgement of a break to this level.
    pub(super) fn acknowledgement(&self, to: u64) -> Value {
        if self.is_lease() {
            json!({"do": "acknowledge", "key": self.key, "to": to})
        } else {
            json!({"do": "acknowledge", "file": self.id, "to": to})
        }
    }

    /// Its break is acknowledged.
    pub(super) fn acknowledged(&mut self, said: &Value) {
        let line = format!("acknowledged: {:#x}", said["status"].as_u64().unwrap_or(u64::MAX));
        if self.theirs.is_none() { &mut self.told } else { &mut self.loose }.push(line);
    }

    /// Notes what came of an act.
    pub(super) fn note(&mut self, what: &str, said: &Value) {
        let mut line = format!("{what}: {:#x}", said["status"].as_u64().unwrap_or(u64::MAX));
        for part in ["oplock", "lease", "data"] {
            if let Some(value) = said.get(part) {
                line += &format!(", {part} {value}");
            }
        }
        self.told.push(line);
    }
}

/// A CREATE of what is there, to read and to write.
pub(super) fn open(name: &str, share: u32, oplock: u64, lease: Option<&Value>) -> Value {
    json!({
        "do": "open", "name": name, "access": READ_WRITE, "share": share, "disposition": 1, "options": 0,
        "oplock": oplock, "lease": lease,
    })
}
