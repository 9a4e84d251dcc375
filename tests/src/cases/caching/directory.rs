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
const RH: u32 = 3;
/// See [`RH`].
const RWH: u32 = 7;
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
    epoch: u64,
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
        let mut watch = Self { name: name.into(), key, file: String::new(), epoch: 0x20, told: Vec::new() };
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

    fn open_directory(&self, state: u32) -> Value {
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

    /// What the client does itself in a file that it has opened under the directory's key breaks nothing.
    fn work(&mut self, clients: &mut Clients) -> Result<()> {
        let said = clients.first.call(&self.name, write(&self.file, 0, b"changed"))?;
        self.told.push(format!("writes: {}", said["status"]));
        let said = clients.first.call(&self.name, json!({"do": "close", "file": self.file}))?;
        self.told.push(format!("closes: {}", said["status"]));
        let breaks = clients.first.breaks(&self.name, 1, QUIET)?;
        self.told.push(format!("{} breaks of its own making", breaks.len()));
        let said = clients.first.call(&self.name, self.open_directory(RH))?;
        self.told.push(format!("has {}", said["lease"]));
        let epoch = said["epoch"].as_u64().context("no epoch")?;
        ensure!(epoch >= self.epoch, "epoch {} became {epoch}", self.epoch);
        self.epoch = epoch;
        let said = clients.first.call(&self.name, json!({"do": "close", "file": said["file"]}))?;
        ensure!(said["status"] == 0, "closing the second Open: {said}");
        Ok(())
    }

    fn begin_make(&self, clients: &mut Clients) -> Result<Tag> {
        clients.second.begin(&self.name, self.open("new.bin", CREATE, None))
    }

    /// The client hears of the new file.
    fn finish(&mut self, clients: &mut Clients, made: Tag) -> Result<()> {
        let breaks = clients.first.breaks(&self.name, 1, 10.0)?;
        let notice = breaks.first().context("nobody tells of the new file")?;
        ensure!(notice["key"] == self.key.as_str(), "another lease is broken: {notice}");
        let epoch = notice["epoch"].as_u64().context("no epoch")?;
        ensure!(epoch > self.epoch, "a break with epoch {epoch} after {}", self.epoch);
        self.told.push(format!(
            "broken {} to {}, acknowledge: {}",
            notice["from"], notice["to"], notice["acknowledge"]
        ));
        if notice["acknowledge"] == true {
            let order = json!({"do": "acknowledge", "key": self.key, "to": notice["to"]});
            let said = clients.first.call(&self.name, order)?;
            self.told.push(format!("acknowledged: {}", said["status"]));
        }
        let said = clients.second.wait(made)?;
        self.told.push(format!("the file is made: {}", said["status"]));
        let said = clients.second.call(&self.name, json!({"do": "close", "file": said["file"]}))?;
        self.told.push(format!("and closed: {}", said["status"]));
        let breaks = clients.first.breaks(&self.name, 2, QUIET)?;
        ensure!(breaks.len() == 1, "{} breaks of one lease that was broken once", breaks.len());
        Ok(())
    }
}
