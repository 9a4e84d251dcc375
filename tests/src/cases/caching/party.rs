//! Two clients and the files that they get in each other's way with. The same party meets at a node that does not die, and
//! what is told there must be told here.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    acts::{lock, write},
    held::{Held, KINDS, Owed, PURPOSES, Purpose},
};
use crate::rig::{
    Rig,
    puppet::{Puppet, Tag},
};

/// The first client's connections: a dialect, and the version of its leases.
pub(super) const FIRST: [(&str, u8); 2] = [("3.1.1", 2), ("2.1", 1)];
/// How long a notification may be on its way.
const PATIENCE: f64 = 10.0;
/// For so long nothing comes where nothing is to come.
pub(super) const QUIET: f64 = 0.15;
/// Bytes of a file.
pub(super) const SIZE: usize = 65_536;
/// What the first client has in its cache when a break takes it away.
pub(super) const DIRTY: &[u8] = b"dirty";

/// The processes.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) first: Puppet,
    pub(super) second: Puppet,
}

/// Requests that are in flight, each with its file.
pub(super) type Pending = Vec<(usize, Tag)>;

/// Who meets, and about what.
#[derive(Debug)]
pub(super) struct Party {
    /// Names of connections.
    pub(super) first: Vec<String>,
    second: String,
    pub(super) held: Vec<Held>,
    /// How many notifications each connection has had.
    seen: Vec<usize>,
    /// The same, whenever it came to rest.
    pub(super) rests: Vec<Vec<usize>>,
    /// How it went where nothing crashed.
    expected: Option<Vec<Vec<usize>>>,
}

impl Party {
    /// Connects both to `server`.
    pub(super) fn meet(
        clients: &mut Clients,
        server: &str,
        name: &str,
        expected: Option<&Party>,
    ) -> Result<Self> {
        let mut first = Vec::new();
        for (dialect, _) in FIRST {
            let connection = format!("{name}-{dialect}");
            clients.first.connect(&connection, server, dialect)?;
            first.push(connection);
        }
        clients.second.connect(name, server, "3.1.1")?;
        Ok(Self {
            seen: vec![0; first.len()],
            first,
            second: name.to_owned(),
            held: Vec::new(),
            rests: Vec::new(),
            expected: expected.map(|party| party.rests.clone()),
        })
    }

    /// The first client opens files of every kind, for every purpose.
    pub(super) fn hold(&mut self, rig: &Rig, clients: &mut Clients, prefix: &str) -> Result<()> {
        for (first, (_, version)) in FIRST.iter().enumerate() {
            for kind in &KINDS {
                let new = PURPOSES.map(|purpose| Held::new(first, *version, kind, purpose, prefix));
                self.held.extend(new);
            }
        }
        for held in &self.held {
            std::fs::write(rig.data().join(&held.name), vec![b'a'; SIZE])?;
        }
        let opens = self.begin_first(clients, |_| true, |held| held.order())?;
        for (index, tag) in opens {
            let said = clients.first.wait(tag)?;
            self.at(index)?.opened(&said)?;
        }
        let locks =
            self.begin_first(clients, |held| held.purpose == Purpose::Locked, |held| lock(&held.id, 0))?;
        self.finish_first(clients, "lock", locks)?;
        self.rest(clients)
    }

    pub(super) fn at(&mut self, index: usize) -> Result<&mut Held> {
        self.held.get_mut(index).context("no such file")
    }

    /// The first client sends something about some of its files.
    pub(super) fn begin_first(
        &self,
        clients: &mut Clients,
        which: impl Fn(&Held) -> bool,
        what: impl Fn(&Held) -> Value,
    ) -> Result<Pending> {
        let mut pending = Vec::new();
        for (index, held) in self.held.iter().enumerate().filter(|(_, held)| which(held)) {
            let connection = self.first.get(held.first).context("no such connection")?;
            pending.push((index, clients.first.begin(connection, what(held))?));
        }
        Ok(pending)
    }

    /// The same for the second client.
    pub(super) fn begin_second(
        &self,
        clients: &mut Clients,
        which: impl Fn(&Held) -> bool,
        what: impl Fn(&Held) -> Value,
    ) -> Result<Pending> {
        let mut pending = Vec::new();
        for (index, held) in self.held.iter().enumerate().filter(|(_, held)| which(held)) {
            pending.push((index, clients.second.begin(&self.second, what(held))?));
        }
        Ok(pending)
    }

    /// What the first client got.
    pub(super) fn finish_first(&mut self, clients: &mut Clients, what: &str, pending: Pending) -> Result<()> {
        for (index, tag) in pending {
            let said = clients.first.wait(tag)?;
            self.at(index)?.note(what, &said);
        }
        Ok(())
    }

    /// What the second client got; the first one acknowledges breaks meanwhile, and not before that is the second
    /// client's CREATE answered.
    pub(super) fn finish_second(
        &mut self,
        clients: &mut Clients,
        what: &str,
        mut pending: Pending,
    ) -> Result<()> {
        while !pending.is_empty() {
            self.listen(clients, 0.0)?;
            self.check_held_back(clients, &pending)?;
            self.acknowledge(clients)?;
            let mut left = Vec::new();
            for (index, tag) in pending {
                if clients.second.is_ready(tag)? {
                    let said = clients.second.wait(tag)?;
                    self.admit(index, what, &said)?;
                } else {
                    left.push((index, tag));
                }
            }
            pending = left;
            std::thread::yield_now();
        }
        self.rest(clients)
    }

    /// What the second client got.
    pub(super) fn admit(&mut self, index: usize, what: &str, said: &Value) -> Result<()> {
        let held = self.at(index)?;
        held.note(what, said);
        if let Some(id) = said["file"].as_str() {
            held.theirs = Some(id.to_owned());
        }
        Ok(())
    }

    /// Whoever waits for an acknowledgement has not been let in. A WRITE does not wait.
    pub(super) fn check_held_back(&self, clients: &mut Clients, pending: &Pending) -> Result<()> {
        for (index, tag) in pending {
            let held = self.held.get(*index).context("no such file")?;
            if held.owed.is_some() && held.theirs.is_none() {
                ensure!(
                    !clients.second.is_ready(*tag)?,
                    "{}: the second client was answered before the break was acknowledged: {:?}",
                    held.name,
                    held.told
                );
            }
        }
        Ok(())
    }

    /// Takes in what has come, or comes within this time.
    pub(super) fn listen(&mut self, clients: &mut Clients, seconds: f64) -> Result<bool> {
        let mut is_news = false;
        for (connection, name) in self.first.iter().enumerate() {
            let seen = self.seen.get_mut(connection).context("no such connection")?;
            let patience = if connection == 0 { seconds } else { 0.0 };
            let all = clients.first.breaks(name, *seen + 1, patience)?;
            for notice in all.get(*seen..).unwrap_or_default() {
                let mut meant =
                    self.held.iter_mut().filter(|h| h.first == connection && h.is_meant_by(notice));
                meant.next().with_context(|| format!("a break of nothing: {notice}"))?.broken(notice)?;
                is_news = true;
            }
            *seen = all.len();
        }
        Ok(is_news)
    }

    /// What was dirty is written, and then everything owed acknowledged.
    pub(super) fn acknowledge(&mut self, clients: &mut Clients) -> Result<()> {
        self.clean(clients)?;
        let acknowledged = self.begin_acknowledge(clients, |_| true)?;
        self.finish_acknowledge(clients, acknowledged)
    }

    /// What came of that.
    pub(super) fn finish_acknowledge(&mut self, clients: &mut Clients, pending: Pending) -> Result<()> {
        for (index, tag) in pending {
            let said = clients.first.wait(tag)?;
            self.at(index)?.acknowledged(&said);
        }
        Ok(())
    }

    /// The first client writes what it still has in its cache.
    pub(super) fn clean(&mut self, clients: &mut Clients) -> Result<()> {
        let is_dirty = |held: &Held| {
            held.purpose == Purpose::Opened && held.owed.as_ref().is_some_and(|owed| owed.writes)
        };
        let writes = self.begin_first(clients, is_dirty, |held| write(&held.id, 0, DIRTY))?;
        for (index, _) in &writes {
            if let Some(owed) = &mut self.at(*index)?.owed {
                owed.writes = false;
            }
        }
        self.finish_first(clients, "written back", writes)
    }

    /// Sends what is owed.
    pub(super) fn begin_acknowledge(
        &mut self,
        clients: &mut Clients,
        which: impl Fn(&Held) -> bool,
    ) -> Result<Pending> {
        let sent = self.begin_first(
            clients,
            |held| held.owed.is_some() && which(held),
            |held| held.acknowledgement(held.owed.as_ref().map_or(0, |owed: &Owed| owed.to)),
        )?;
        for (index, _) in &sent {
            self.at(*index)?.owed = None;
        }
        Ok(sent)
    }

    /// All notifications that come where nothing crashes have come, or more. Those that nobody waits for are acknowledged.
    pub(super) fn rest(&mut self, clients: &mut Clients) -> Result<()> {
        match &self.expected {
            None => while self.listen(clients, QUIET)? {},
            Some(rests) => {
                let wanted = rests.get(self.rests.len()).context("no such rest")?.clone();
                for (connection, wanted) in wanted.into_iter().enumerate() {
                    let name = self.first.get(connection).context("no such connection")?;
                    clients.first.breaks(name, wanted, PATIENCE)?;
                }
                self.listen(clients, 0.0)?;
            }
        }
        let acknowledged = self.begin_acknowledge(clients, |held| held.theirs.is_some())?;
        self.finish_acknowledge(clients, acknowledged)?;
        self.rests.push(self.seen.clone());
        Ok(())
    }

    /// The node has answered each client something.
    pub(super) fn echo(&self, clients: &mut Clients) -> Result<()> {
        for name in &self.first {
            let said = clients.first.call(name, json!({"do": "echo"}))?;
            ensure!(said["status"] == 0, "echo: {said}");
        }
        let said = clients.second.call(&self.second, json!({"do": "echo"}))?;
        ensure!(said["status"] == 0, "echo: {said}");
        Ok(())
    }

    /// Each file's story is the same as where nothing crashed.
    pub(super) fn compare(&self, unharmed: &Party) -> Result<()> {
        ensure!(self.held.len() == unharmed.held.len(), "other files");
        let story = |held: &Held| (held.told.clone(), held.loose.clone());
        let pairs =
            self.held.iter().zip(&unharmed.held).map(|(here, there)| (here, story(here), story(there)));
        let stories: Vec<_> = pairs
            .filter(|(_, here, there)| here != there)
            .map(|(held, here, there)| format!("{}: {here:#?} instead of {there:#?}", held.name))
            .collect();
        ensure!(stories.is_empty(), "{} files fared otherwise: {}", stories.len(), stories.join("\n"));
        Ok(())
    }
}

/// Waits until bytes that were sent lie unread in the host `name`.
pub(super) fn await_bytes(rig: &Rig, name: &str) -> Result<()> {
    crate::rig::wait_until("bytes arrive at the frozen node", Duration::from_secs(20), || {
        unread(rig, name).is_ok_and(|bytes| bytes > 0)
    })
}

/// Bytes that nobody has read, on connections to port 445 of a host.
fn unread(rig: &Rig, name: &str) -> Result<u64> {
    let output =
        rig.net.command(name, "ss").args(["-Htn", "state", "established", "sport = :445"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum())
}
