//! A file that a client has open durably, by what claim it asks for it when it comes back, and what it and others were told.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{client::guid, rig::puppet::hex};

/// To read, write and delete, spelt out (MS-SMB2 2.2.13.1).
const READ_WRITE: u32 = 0x0013_019f;
/// All others may read, write and delete.
const SHARE_ALL: u32 = 7;
/// FILE_OPEN_IF (MS-SMB2 2.2.13).
const OPEN_IF: u32 = 3;
/// SMB2_OPLOCK_LEVEL_II, SMB2_OPLOCK_LEVEL_BATCH and SMB2_OPLOCK_LEVEL_LEASE (MS-SMB2 2.2.13).
const LEVEL_II: u64 = 1;
const BATCH: u64 = 9;
const LEASE: u64 = 0xff;
/// SMB2_LEASE_WRITE_CACHING.
const WRITE_CACHING: u64 = 4;
/// The lease of a client of 3.x that caches nothing but handles and what it reads.
const READ_HANDLE: u64 = 3;
const ALL: u64 = 7;

/// How a file is held durably.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    oplock: u64,
    /// Of a lease.
    state: u64,
    /// 1: DHnQ, 2: DH2Q.
    durable: u8,
    /// Whether a client of 2.1 can have it.
    pub(super) old: bool,
}

/// All of them.
pub(super) const KINDS: [Kind; 5] = [
    Kind { name: "v1-oplock", oplock: BATCH, state: 0, durable: 1, old: true },
    Kind { name: "v1-lease", oplock: LEASE, state: ALL, durable: 1, old: true },
    Kind { name: "v2-oplock", oplock: BATCH, state: 0, durable: 2, old: false },
    Kind { name: "v2-lease", oplock: LEASE, state: ALL, durable: 2, old: false },
    Kind { name: "v2-read-handle", oplock: LEASE, state: READ_HANDLE, durable: 2, old: false },
];

impl Kind {
    /// By a lease, not by an oplock.
    pub(super) fn is_lease(&self) -> bool {
        self.oplock == LEASE
    }

    /// By DH2Q.
    pub(super) fn is_second(&self) -> bool {
        self.durable == 2
    }

    /// Others have to wait until it is broken.
    pub(super) fn caches_writes(&self) -> bool {
        !self.is_lease() || self.state & WRITE_CACHING != 0
    }
}

/// By what its owner asks for it when it comes back.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) name: String,
    /// FileId.
    pub(super) id: String,
    /// Of the lease.
    pub(super) key: Option<String>,
    /// DH2C with this CreateGuid; `None`: DHnC.
    pub(super) create_guid: Option<String>,
    /// Further create contexts.
    pub(super) further: Vec<(&'static str, String)>,
    oplock: u64,
    state: u64,
    lease_version: u8,
    epoch: u64,
}

impl Claim {
    /// The CREATE (MS-SMB2 2.2.13.2.4, 2.2.13.2.12).
    pub(super) fn order(&self) -> Value {
        let mut contexts = vec![match &self.create_guid {
            None => json!(["DHnC", self.id]),
            Some(guid) => json!(["DH2C", format!("{}{guid}{}", self.id, "00".repeat(4))]),
        }];
        contexts.extend(self.further.iter().map(|(tag, data)| json!([tag, data])));
        let lease = self.key.as_deref().map(|key| lease(self.lease_version, key, self.state, self.epoch));
        open(&self.name, if lease.is_some() { LEASE } else { self.oplock }, lease, contexts)
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) kind: &'static Kind,
    pub(super) name: String,
    /// The FileId that the owner knows, and whether it takes it for open.
    pub(super) id: String,
    pub(super) is_open: bool,
    pub(super) create_guid: String,
    key: String,
    lease_version: u8,
    epoch: u64,
    /// What it has: an oplock level, or a lease state.
    pub(super) level: u64,
    /// What was told, one after the other.
    pub(super) told: Vec<String>,
}

impl Kept {
    pub(super) fn new(kind: &'static Kind, name: String, dialect: &str) -> Self {
        let lease_version = if dialect == "2.1" { 1 } else { 2 };
        let (create_guid, key) = (hex(&guid()), hex(&guid()));
        let (id, told) = (String::new(), Vec::new());
        Self { kind, name, id, is_open: false, create_guid, key, lease_version, epoch: 0, level: 0, told }
    }

    /// The CREATE by which the owner gets it; `timeout` in milliseconds is asked for where one can be.
    pub(super) fn order(&self, timeout: u32) -> Value {
        let lease =
            self.kind.is_lease().then(|| lease(self.lease_version, &self.key, self.kind.state, self.epoch));
        let context = if self.kind.is_second() {
            // MS-SMB2 2.2.13.2.11: timeout, flags, eight reserved bytes, CreateGuid.
            json!(["DH2Q", format!("{}{}{}", hex(&timeout.to_le_bytes()), "00".repeat(12), self.create_guid)])
        } else {
            json!(["DHnQ", "00".repeat(16)])
        };
        open(&self.name, self.kind.oplock, lease, vec![context])
    }

    /// The owner has it, durably and with all that it asked for.
    pub(super) fn opened(&mut self, said: &Value) -> Result<()> {
        ensure!(said["status"] == 0, "{}: opening it: {said}", self.name);
        let tag = if self.kind.is_second() { "DH2Q" } else { "DHnQ" };
        ensure!(said["contexts"].get(tag).is_some(), "{}: it is not durable: {said}", self.name);
        let (level, asked) =
            if self.kind.is_lease() { ("lease", self.kind.state) } else { ("oplock", self.kind.oplock) };
        ensure!(said[level] == asked, "{}: {asked:#x} was asked for: {said}", self.name);
        self.is_open = true;
        self.know(said)?;
        self.note("opened", said);
        Ok(())
    }

    /// What the owner asks for it by when nothing is wrong.
    pub(super) fn claim(&self) -> Claim {
        Claim {
            name: self.name.clone(),
            id: self.id.clone(),
            key: self.kind.is_lease().then(|| self.key.clone()),
            create_guid: self.kind.is_second().then(|| self.create_guid.clone()),
            further: Vec::new(),
            oplock: self.kind.oplock,
            state: self.kind.state,
            lease_version: self.lease_version,
            epoch: self.epoch,
        }
    }

    /// The owner has come back and got this answer.
    pub(super) fn returned(&mut self, said: &Value) -> Result<()> {
        self.is_open = said["status"] == 0;
        if said["status"] == 0 {
            let id = said["file"].as_str().context("no FileId")?;
            // MS-SMB2 3.3.5.9.7 has the same Open again.
            self.told.push(format!("persistent id {}", if same_half(&self.id, id) { "kept" } else { "new" }));
            self.know(said)?;
        }
        self.note("returned", said);
        Ok(())
    }

    /// FileId and epoch are not the same for everybody, and are followed.
    fn know(&mut self, said: &Value) -> Result<()> {
        self.id = said["file"].as_str().context("no FileId")?.to_owned();
        self.level =
            said[if self.kind.is_lease() { "lease" } else { "oplock" }].as_u64().context("no level")?;
        if let Some(now) = said["epoch"].as_u64() {
            // MS-SMB2 3.2.5.7.5.
            ensure!(now >= self.epoch, "{}: epoch {} became {now}", self.name, self.epoch);
            self.epoch = now;
        }
        Ok(())
    }

    /// Whether this notification is about it.
    pub(super) fn is_meant_by(&self, notice: &Value) -> bool {
        if self.kind.is_lease() {
            notice["key"] == self.key.as_str()
        } else {
            notice["file"] == self.id.as_str()
        }
    }

    /// The owner got this notification. Its acknowledgement, if one is wanted. `awaited`: the rival waits for that; another
    /// break comes when it comes.
    pub(super) fn broken(&mut self, notice: &Value, awaited: bool) -> Result<Option<Value>> {
        let to = notice["to"].as_u64().context("a break to nothing")?;
        let from = notice["from"].as_u64().unwrap_or(self.level);
        ensure!(
            from == self.level,
            "{}: it has {:#x}, and is told that it had {from:#x}",
            self.name,
            self.level
        );
        self.level = to;
        if let Some(now) = notice["epoch"].as_u64().filter(|_| self.lease_version == 2) {
            ensure!(now > self.epoch, "{}: a break with epoch {now} after {}", self.name, self.epoch);
            self.epoch = now;
        }
        if awaited {
            self.told.push(format!("broken from {from:#x} to {to:#x}"));
        }
        let wanted = if self.kind.is_lease() { notice["acknowledge"] == true } else { from > LEVEL_II };
        Ok(wanted.then(|| {
            if self.kind.is_lease() {
                json!({"do": "acknowledge", "key": self.key, "to": to})
            } else {
                json!({"do": "acknowledge", "file": self.id, "to": to})
            }
        }))
    }

    /// Notes what came of an act.
    pub(super) fn note(&mut self, what: &str, said: &Value) {
        let mut line = format!("{what}: {:#x}", said["status"].as_u64().unwrap_or(u64::MAX));
        for part in ["oplock", "lease", "action", "size", "data"] {
            if let Some(value) = said.get(part) {
                line += &format!(", {part} {value}");
            }
        }
        if let Some(contexts) = said["contexts"].as_object() {
            let mut all: Vec<_> = contexts.iter().filter(|(tag, _)| *tag != "RqLs").collect();
            all.sort_by_key(|(tag, _)| *tag);
            line += &all.iter().map(|(tag, data)| format!(", {tag} {data}")).collect::<String>();
        }
        self.told.push(line);
    }
}

/// A CREATE of somebody who wants it too, to read and to write, and caches nothing.
pub(super) fn wanted(name: &str) -> Value {
    open(name, 0, None, Vec::new())
}

/// A CREATE of somebody who had it open so, and lost his connection (MS-SMB2 2.2.13.2.4).
pub(super) fn reopened(name: &str, id: &str) -> Value {
    open(name, 0, None, vec![json!(["DHnC", id])])
}

fn open(name: &str, oplock: u64, lease: Option<Value>, contexts: Vec<Value>) -> Value {
    json!({
        "do": "open", "name": name, "access": READ_WRITE, "share": SHARE_ALL, "disposition": OPEN_IF, "options": 0,
        "oplock": oplock, "lease": lease, "contexts": contexts,
    })
}

fn lease(version: u8, key: &str, state: u64, epoch: u64) -> Value {
    json!({"version": version, "key": key, "state": state, "parent": null, "epoch": epoch})
}

/// Whether the persistent halves of two FileIds are the same (MS-SMB2 2.2.14.1).
fn same_half(one: &str, other: &str) -> bool {
    one.get(..16) == other.get(..16)
}
