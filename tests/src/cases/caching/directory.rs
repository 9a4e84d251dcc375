//! Leases on directories, which Samba has since 4.22.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Place, Report, Scale,
    acts::write,
    held::{LEASE, READ_WRITE, SHARE_ALL, hex},
    party::{Clients, QUIET, await_bytes},
};
use crate::{
    client::guid,
    rig::{Rig, net::FLOATING, puppet::Tag},
};

/// READ and HANDLE, and all of them.
const RH: u64 = 3;
/// See [`RH`].
const RWH: u64 = 7;
/// To list it.
const LIST: u32 = 0x0012_0089;
/// FILE_DIRECTORY_FILE.
const DIRECTORY: u32 = 1;
/// FILE_OPEN, FILE_CREATE.
const OPEN: u32 = 1;
/// See [`OPEN`].
const CREATE: u32 = 2;

/// When the node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Idle,
    /// With the CREATE in flight that is to break the lease.
    AmidCreate,
}

pub(super) fn leases(_: &Scale) -> Result<Report> {
    if std::env::var_os("SAMBA_ROOT").is_none_or(|root| root.is_empty()) {
        let note = "skipped: SAMBA_ROOT names no Samba of 4.22 or later (tests/samba-root.sh)";
        return Ok(Report { notes: vec![note.into()], ..Report::default() });
    }
    let Place { mut rig, mut clients, address } = Place::new()?;
    let (rig, clients) = (&mut rig, &mut clients);
    let mut unharmed = Watch::meet(rig, clients, &address, "unharmed")?;
    unharmed.work(clients)?;
    let made = unharmed.begin_make(clients)?;
    unharmed.finish(clients, made)?;
    for (times, death) in [Death::Idle, Death::AmidCreate].into_iter().enumerate() {
        let mut watch = Watch::meet(rig, clients, FLOATING, &format!("{death:?}"))?;
        let dead = rig.serving()?;
        let made = match death {
            Death::Idle => {
                rig.kill_serving()?;
                rig.await_takeovers("crash", 2 * (times + 1))?;
                watch.work(clients)?;
                watch.begin_make(clients)?
            }
            Death::AmidCreate => {
                watch.work(clients)?;
                let node = rig.nodes.get(dead).context("no such node")?;
                node.freeze(true);
                let made = watch.begin_make(clients)?;
                clients.second.sent()?;
                await_bytes(rig, &node.name)?;
                rig.kill_serving()?;
                made
            }
        };
        watch.finish(clients, made)?;
        ensure!(watch.told == unharmed.told, "{death:?}: {:#?} instead of {:#?}", watch.told, unharmed.told);
        rig.restart(dead)?;
        let name = &rig.nodes.get(dead).context("no such node")?.name;
        rig.await_metric(&format!("node_up{{node=\"{name}\"}}"), 1.0)?;
    }
    Ok(Report { notes: unharmed.told, ..Report::default() })
}

/// One client watches a directory by a lease, and works on a file in it; another one makes a file there.
struct Watch {
    name: String,
    key: String,
    file: String,
    state: u64,
    epoch: u64,
    /// Breaks that it has heard of.
    heard: usize,
    told: Vec<String>,
}

impl Watch {
    fn meet(rig: &Rig, clients: &mut Clients, server: &str, name: &str) -> Result<Self> {
        let path = rig.data().join(format!("{name}-dir"));
        std::fs::create_dir(&path)?;
        std::fs::write(path.join("own.bin"), b"own")?;
        clients.first.connect(name, server, "3.1.1")?;
        clients.second.connect(name, server, "3.1.1")?;
        let key = hex(&guid());
        let (file, told) = (String::new(), Vec::new());
        let mut watch = Self { name: name.into(), key, file, state: RH, epoch: 0x20, heard: 0, told };
        let said = clients.first.call(name, watch.open_directory(RH))?;
        watch.epoch = said["epoch"].as_u64().context("the directory's lease has no epoch")?;
        ensure!(said["lease"] == RH, "the directory's lease is {}", said["lease"]);
        let own = json!({
            "version": 2, "key": hex(&guid()), "state": RWH, "parent": watch.key, "epoch": 1,
        });
        let said = clients.first.call(name, watch.open("own.bin", OPEN, Some(&own)))?;
        watch.file = said["file"].as_str().with_context(|| format!("opening its file: {said}"))?.to_owned();
        Ok(watch)
    }

    fn open_directory(&self, state: u64) -> Value {
        let lease =
            json!({"version": 2, "key": self.key, "state": state, "parent": null, "epoch": self.epoch});
        json!({
            "do": "open", "name": format!("{}-dir", self.name), "access": LIST, "share": SHARE_ALL,
            "disposition": OPEN, "options": DIRECTORY, "oplock": LEASE, "lease": lease,
        })
    }

    fn open(&self, name: &str, disposition: u32, lease: Option<&Value>) -> Value {
        json!({
            "do": "open", "name": format!("{}-dir\\{name}", self.name), "access": READ_WRITE,
            "share": SHARE_ALL, "disposition": disposition, "options": 0,
            "oplock": if lease.is_some() { LEASE } else { 0 }, "lease": lease,
        })
    }

    /// What the client does itself in a file that it has opened under the directory's key breaks nothing. And the node says
    /// that it has what it believes: the lease, or nothing if that was taken away in so many words.
    fn work(&mut self, clients: &mut Clients) -> Result<()> {
        let said = clients.first.call(&self.name, write(&self.file, 0, b"changed"))?;
        ensure!(said["status"] == 0, "writing to its file: {said}");
        let said = clients.first.call(&self.name, json!({"do": "close", "file": self.file}))?;
        ensure!(said["status"] == 0, "closing its file: {said}");
        self.hear(clients, 1, QUIET)?;
        let said = clients.first.call(&self.name, self.open_directory(self.state))?;
        ensure!(said["lease"] == self.state, "the client has {}, the node says {said}", self.state);
        let epoch = said["epoch"].as_u64().context("no epoch")?;
        ensure!(epoch >= self.epoch || self.state == 0, "epoch {} became {epoch}", self.epoch);
        let said = clients.first.call(&self.name, json!({"do": "close", "file": said["file"]}))?;
        ensure!(said["status"] == 0, "closing the second Open: {said}");
        Ok(())
    }

    /// The breaks of the lease, acknowledged, once there are `count` or after so long.
    fn hear(&mut self, clients: &mut Clients, count: usize, seconds: f64) -> Result<()> {
        let breaks = clients.first.breaks(&self.name, count, seconds)?;
        for notice in breaks.get(self.heard..).unwrap_or_default() {
            ensure!(notice["key"] == self.key.as_str(), "another lease is broken: {notice}");
            ensure!(notice["from"] == self.state, "the client has {}, and is told: {notice}", self.state);
            let epoch = notice["epoch"].as_u64().context("no epoch")?;
            ensure!(epoch > self.epoch, "a break with epoch {epoch} after {}", self.epoch);
            self.epoch = epoch;
            self.state = notice["to"].as_u64().context("broken to nothing")?;
            self.told.push(format!(
                "{} to {}, acknowledge: {}",
                notice["from"], self.state, notice["acknowledge"]
            ));
            if notice["acknowledge"] == true {
                let order = json!({"do": "acknowledge", "key": self.key, "to": self.state});
                let said = clients.first.call(&self.name, order)?;
                self.told.push(format!("acknowledged: {}", said["status"]));
            }
        }
        self.heard = breaks.len();
        Ok(())
    }

    fn begin_make(&self, clients: &mut Clients) -> Result<Tag> {
        clients.second.begin(&self.name, self.open("new.bin", CREATE, None))
    }

    /// The file is made, and the client does not believe any more that it knows the directory.
    fn finish(&mut self, clients: &mut Clients, made: Tag) -> Result<()> {
        self.hear(clients, 1, 10.0)?;
        let said = clients.second.wait(made)?;
        ensure!(said["status"] == 0, "making a file: {said}");
        let said = clients.second.call(&self.name, json!({"do": "close", "file": said["file"]}))?;
        ensure!(said["status"] == 0, "closing it: {said}");
        self.hear(clients, 2, QUIET)?;
        ensure!(self.state == 0, "nobody tells of the new file: {:?}", self.told);
        Ok(())
    }
}
