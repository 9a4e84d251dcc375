//! A client that has files open durably, loses its connection, and comes back; and a rival who wants the same files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kept::{KINDS, Kept, wanted};
use crate::{
    client::guid,
    rig::{
        node::{SECOND, USER},
        puppet::{Puppet, Tag, Visit, hex},
        wait_until,
    },
};
/// How long a notification may be on its way.
const PATIENCE: f64 = 10.0;
/// For so long nobody is answered whom a file is kept from.
const KEPT_FROM: Duration = Duration::from_millis(300);
/// For so long nobody keeps trying.
const LIMIT: Duration = Duration::from_secs(90);
/// STATUS_SHARING_VIOLATION.
const SHARING_VIOLATION: u64 = 0xc000_0043;
/// What the owner has written before it goes, and afterwards.
const BEFORE: &[u8] = b"before";
const AFTER: &[u8] = b"after";

/// What is done with a file while its owner is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing.
    Alone,
    /// The rival opens it.
    Wanted,
}

/// Its file.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) kept: Kept,
    pub(super) purpose: Purpose,
    /// The rival's CREATE, if it is not answered yet.
    waits: Option<Tag>,
    /// The rival's FileId.
    theirs: Option<String>,
}

/// The client.
#[derive(Debug)]
pub(super) struct Owner {
    name: String,
    dialect: &'static str,
    pub(super) guid: [u8; 16],
    session: u64,
    pub(super) held: Vec<Held>,
    /// How often it has come, and how many notifications it has seen since.
    visits: usize,
    seen: usize,
}

impl Owner {
    /// Connects, opens a file of each kind for each purpose, writes to it and locks it.
    pub(super) fn arrive(
        puppet: &mut Puppet,
        server: &str,
        name: &str,
        dialect: &'static str,
        purposes: &[Purpose],
        timeout: u32,
    ) -> Result<Self> {
        let name = format!("{name}-{dialect}");
        let mut owner =
            Self { name, dialect, guid: guid(), session: 0, held: Vec::new(), visits: 0, seen: 0 };
        owner.enter(puppet, server)?;
        for purpose in purposes {
            for kind in KINDS.iter().filter(|kind| kind.old || dialect != "2.1") {
                let kept = Kept::new(kind, format!("{}-{}-{purpose:?}", owner.name, kind.name), dialect);
                owner.held.push(Held { kept, purpose: *purpose, waits: None, theirs: None });
            }
        }
        let connection = owner.connection();
        for Held { kept, .. } in &mut owner.held {
            kept.opened(&puppet.call(&connection, kept.order(timeout))?)?;
            kept.note("writes", &puppet.call(&connection, write(&kept.id, 0, BEFORE))?);
            if kept.kind.caches_writes() {
                kept.note("locks", &puppet.call(&connection, lock(&kept.id, 100))?);
            }
        }
        Ok(owner)
    }

    /// The name of its present connection.
    pub(super) fn connection(&self) -> String {
        format!("{}-{}", self.name, self.visits)
    }

    /// It connects, and has its session before ended.
    pub(super) fn enter(&mut self, puppet: &mut Puppet, server: &str) -> Result<()> {
        self.visits += 1;
        self.seen = 0;
        let (dialect, previous) = (self.dialect, self.session);
        let visit = Visit { server, dialect, user: USER, guid: self.guid, previous };
        self.session = puppet.enter(&self.connection(), &visit)?;
        Ok(())
    }

    /// It does not name its session when it comes back.
    pub(super) fn forget_session(&mut self) {
        self.session = 0;
    }

    /// Its ClientGuid as its library sends it: the first three parts the other way round.
    pub(super) fn sent_guid(&self) -> [u8; 16] {
        let mut guid = self.guid;
        for part in [0..4, 4..6, 6..8] {
            guid[part].reverse();
        }
        guid
    }

    /// The server has answered it something.
    pub(super) fn echo(&self, puppet: &mut Puppet) -> Result<()> {
        let said = puppet.call(&self.connection(), json!({"do": "echo"}))?;
        ensure!(said["status"] == 0, "echo: {said}");
        Ok(())
    }

    /// It asks for something durable, and gets no answer, but the end of its connection.
    pub(super) fn ask_in_vain(&self, puppet: &mut Puppet) -> Result<()> {
        let kind = KINDS.first().context("no kinds")?;
        let kept = Kept::new(kind, format!("{}-in-vain", self.name), self.dialect);
        let tag = puppet.begin(&self.connection(), kept.order(0))?;
        puppet.await_end(&self.connection())?;
        ensure!(!puppet.is_ready(tag)?, "it was answered");
        Ok(())
    }

    /// Its connection is lost at its own end.
    pub(super) fn leave(&self, puppet: &mut Puppet) -> Result<()> {
        puppet.leave(&self.connection())
    }

    /// It sees that its connection is lost.
    pub(super) fn await_end(&self, puppet: &mut Puppet) -> Result<()> {
        puppet.await_end(&self.connection())
    }

    /// It comes back and asks for all its files.
    pub(super) fn come_back(&mut self, puppet: &mut Puppet, server: &str) -> Result<()> {
        self.enter(puppet, server)?;
        let connection = self.connection();
        for Held { kept, .. } in &mut self.held {
            kept.returned(&puppet.call(&connection, kept.claim().order())?)?;
        }
        Ok(())
    }

    /// All that it had is still there: the data, what it may cache, and its locks. The rival finds that out.
    pub(super) fn prove(&mut self, puppet: &mut Puppet, rival: &Rival) -> Result<()> {
        for index in 0..self.held.len() {
            self.prove_one(puppet, rival, index)?;
        }
        Ok(())
    }

    fn prove_one(&mut self, puppet: &mut Puppet, rival: &Rival, index: usize) -> Result<()> {
        let connection = self.connection();
        let id = self.at(index)?.kept.id.clone();
        let held = self.at(index)?;
        let (name, is_locked) = (held.kept.name.clone(), held.kept.kind.caches_writes());
        if held.theirs.is_none() {
            let waited = held.waits.take();
            let ask = |puppet: &mut Puppet| puppet.begin(&rival.connection, wanted(&name));
            let tag = waited.map_or_else(|| ask(puppet), Ok)?;
            let mut said = self.answered(puppet, tag)?;
            if waited.is_some() && said["status"] == SHARING_VIOLATION {
                // It has waited for too long before the owner came.
                let tag = ask(puppet)?;
                said = self.answered(puppet, tag)?;
            }
            let held = self.at(index)?;
            held.kept.note("rival opens", &said);
            held.theirs = said["file"].as_str().map(str::to_owned);
        }
        let reads = puppet.call(&connection, read(&id, 0, BEFORE.len()))?;
        let writes = puppet.call(&connection, write(&id, 50, AFTER))?;
        let locks = puppet.call(&connection, lock(&id, 200))?;
        let held = self.at(index)?;
        held.kept.note("reads", &reads);
        held.kept.note("writes", &writes);
        held.kept.note("locks", &locks);
        let theirs = held.theirs.clone().unwrap_or_default();
        let mut tell = |owner: &mut Self, what, order| {
            let tag = puppet.begin(&rival.connection, order)?;
            let said = owner.answered(puppet, tag)?;
            owner.at(index)?.kept.note(what, &said);
            anyhow::Ok(())
        };
        tell(self, "rival locks the range", lock(&theirs, 105))?;
        tell(self, "rival locks beside it", lock(&theirs, 120))?;
        tell(self, "rival reads the range", read(&theirs, 100, 10))?;
        tell(self, "rival writes", write(&theirs, 80, b"theirs"))?;
        if !is_locked {
            // Nobody waits for this break: it comes when it comes.
            let kept = &self.at(index)?.kept;
            if kept.is_open && kept.level > 0 {
                self.listen(puppet, self.seen + 1)?;
            }
            let kept = &mut self.at(index)?.kept;
            kept.told.push(format!("caches in the end: {:#x}", kept.level));
        }
        for offset in [100, 200] {
            let said = puppet.call(&connection, unlock(&id, offset))?;
            self.at(index)?.kept.note("unlocks", &said);
        }
        let mut tell = |owner: &mut Self, what, order| {
            let said = puppet.call(&rival.connection, order)?;
            owner.at(index)?.kept.note(what, &said);
            anyhow::Ok(())
        };
        tell(self, "rival locks the range", lock(&theirs, 105))?;
        tell(self, "rival closes", close(&theirs))?;
        let said = puppet.call(&connection, read(&id, 0, 128))?;
        self.at(index)?.kept.note("reads all", &said);
        let said = puppet.call(&connection, close(&id))?;
        self.at(index)?.kept.note("closes", &said);
        Ok(())
    }

    /// The rival's answer; breaks that it has to wait for are acknowledged.
    fn answered(&mut self, puppet: &mut Puppet, tag: Tag) -> Result<Value> {
        let mut failed = None;
        wait_until("the rival is answered", Duration::from_secs(60), || {
            match self.try_answered(puppet, tag) {
                Ok(is_ready) => is_ready,
                Err(error) => {
                    failed = Some(error);
                    true
                }
            }
        })?;
        failed.map_or_else(|| puppet.wait(tag), Err)
    }

    fn try_answered(&mut self, puppet: &mut Puppet, tag: Tag) -> Result<bool> {
        if puppet.is_ready(tag)? {
            return Ok(true);
        }
        self.listen(puppet, 0)?;
        Ok(false)
    }

    /// Takes in the breaks that have come, or waits until there are so many, and acknowledges them.
    fn listen(&mut self, puppet: &mut Puppet, count: usize) -> Result<()> {
        let connection = self.connection();
        let all = puppet.breaks(&connection, count, PATIENCE)?;
        for notice in all.get(self.seen..).unwrap_or_default() {
            let held = self.held.iter_mut().find(|held| held.kept.is_meant_by(notice));
            let held = held.with_context(|| format!("a break of nothing: {notice}"))?;
            let awaited = held.theirs.is_none();
            if let Some(order) = held.kept.broken(notice, awaited)? {
                let said = puppet.call(&connection, order)?;
                if awaited {
                    held.kept.note("acknowledges", &said);
                }
            }
        }
        self.seen = all.len();
        Ok(())
    }

    pub(super) fn at(&mut self, index: usize) -> Result<&mut Held> {
        self.held.get_mut(index).context("no such file")
    }

    /// The stories of its files of this purpose, by kind.
    fn stories(&self, purpose: Purpose) -> Vec<(&str, &[String])> {
        let of = self.held.iter().filter(|held| held.purpose == purpose);
        of.map(|held| (held.kept.kind.name, held.kept.told.as_slice())).collect()
    }

    /// Which of its files of this purpose fared otherwise than that one's of another purpose, of the same kinds.
    pub(super) fn differences(&self, purpose: Purpose, with: &Self, as_if: Purpose) -> Vec<String> {
        let pairs = self.stories(purpose).into_iter().zip(with.stories(as_if));
        let told = pairs.filter(|(here, there)| here != there).map(|((kind, here), (_, there))| {
            format!("{} {kind} {purpose:?}:\n{}", self.dialect, difference(here, there))
        });
        told.collect()
    }
}

/// The first lines in which two stories differ.
pub(super) fn difference(here: &[String], there: &[String]) -> String {
    let same = here.iter().zip(there).take_while(|(here, there)| here == there).count();
    let rest =
        |story: &[String]| story.get(same..).unwrap_or_default().iter().take(3).cloned().collect::<Vec<_>>();
    format!("    is     {:?}\n    should {:?}", rest(here), rest(there))
}

/// The rival.
#[derive(Debug)]
pub(super) struct Rival {
    connection: String,
}

impl Rival {
    pub(super) fn arrive(puppet: &mut Puppet, server: &str, name: &str) -> Result<Self> {
        let connection = format!("rival-{name}");
        let visit = Visit { server, dialect: "3.1.1", user: SECOND, guid: guid(), previous: 0 };
        puppet.enter(&connection, &visit)?;
        Ok(Self { connection })
    }

    /// While the owner is away, it opens the files that are there for that, as one would at any server.
    pub(super) fn open(&self, puppet: &mut Puppet, owner: &mut Owner) -> Result<()> {
        for held in owner.held.iter_mut().filter(|held| held.purpose == Purpose::Wanted) {
            let said = puppet.call(&self.connection, wanted(&held.kept.name))?;
            held.kept.note("rival opens", &said);
            held.theirs = said["file"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    /// It asks for something, and waits for the answer.
    pub(super) fn call(&self, puppet: &mut Puppet, order: Value) -> Result<Value> {
        puppet.call(&self.connection, order)
    }

    /// It tries to open a file until it is let in, and closes it.
    pub(super) fn open_at_last(&self, puppet: &mut Puppet, name: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let said = self.call(puppet, wanted(name))?;
            if said["status"] == 0 {
                let order = close(said["file"].as_str().context("no FileId")?);
                return self.call(puppet, order).map(|_| ());
            }
            ensure!(said["status"] == SHARING_VIOLATION, "{name}: {said}");
            ensure!(begun.elapsed() < LIMIT, "{name} is kept for nobody");
        }
    }

    /// It opens a file whose owner is there; its FileId.
    pub(super) fn let_in(&self, puppet: &mut Puppet, name: &str) -> Result<String> {
        let said = self.call(puppet, wanted(name))?;
        Ok(said["file"].as_str().with_context(|| format!("{name}: {said}"))?.to_owned())
    }

    /// It asks for a file whose owner is away, and is refused, or waits: then for this.
    pub(super) fn begin_to_steal(&self, puppet: &mut Puppet, name: &str) -> Result<Option<Tag>> {
        let tag = puppet.begin(&self.connection, wanted(name))?;
        puppet.sent()?;
        std::thread::sleep(KEPT_FROM);
        if !puppet.is_ready(tag)? {
            return Ok(Some(tag));
        }
        let said = puppet.wait(tag)?;
        ensure!(said["status"] == SHARING_VIOLATION, "{name} is stolen: {said}");
        Ok(None)
    }

    /// The owner is back. Whoever waited for it so long is let in, or told that the file is in use.
    pub(super) fn has_stolen_nothing(&self, puppet: &mut Puppet, name: &str, tag: Tag) -> Result<()> {
        let said = puppet.wait(tag)?;
        if let Some(file) = said["file"].as_str() {
            return self.call(puppet, close(file)).map(|_| ());
        }
        ensure!(said["status"] == SHARING_VIOLATION, "{name}: {said}");
        Ok(())
    }

    /// While the owner is away, nobody lets it in: it waits, or is told that the file is in use.
    pub(super) fn try_in_vain(&self, puppet: &mut Puppet, owner: &mut Owner) -> Result<()> {
        let mut asked = Vec::new();
        let is_wanted = |held: &&mut Held| held.purpose == Purpose::Wanted && held.kept.kind.caches_writes();
        for held in owner.held.iter_mut().filter(is_wanted) {
            asked.push((puppet.begin(&self.connection, wanted(&held.kept.name))?, held));
        }
        puppet.sent()?;
        std::thread::sleep(KEPT_FROM);
        for (tag, held) in asked {
            if puppet.is_ready(tag)? {
                let said = puppet.wait(tag)?;
                if said["status"] != SHARING_VIOLATION {
                    held.kept.note("stolen", &said);
                    held.theirs = said["file"].as_str().map(str::to_owned);
                }
            } else {
                held.waits = Some(tag);
            }
        }
        Ok(())
    }
}

pub(super) fn write(file: &str, offset: u64, data: &[u8]) -> Value {
    json!({"do": "write", "file": file, "offset": offset, "data": hex(data)})
}

pub(super) fn read(file: &str, offset: u64, length: usize) -> Value {
    json!({"do": "read", "file": file, "offset": offset, "length": length})
}

/// Ten bytes, exclusive and at once (MS-SMB2 2.2.26.1).
pub(super) fn lock(file: &str, offset: u64) -> Value {
    json!({"do": "lock", "file": file, "offset": offset, "length": 10, "flags": 0x12})
}

fn unlock(file: &str, offset: u64) -> Value {
    json!({"do": "lock", "file": file, "offset": offset, "length": 10, "flags": 0x04})
}

fn close(file: &str) -> Value {
    json!({"do": "close", "file": file})
}
