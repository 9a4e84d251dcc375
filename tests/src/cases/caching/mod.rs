//! What clients cache survives a takeover: each oplock and each kind of lease, by two clients of different makes, with the
//! node dying idle, amid reads and writes, and amid breaks.
//!
//! The same two clients do the same at a node that does not die. What they are told must be the same: each status, each
//! break and its levels, in its order. But a cache that nobody waits for, and that may be stale, may be taken away sooner.

mod acts;
mod amid;
mod busy;
mod directory;
mod held;
mod party;

use anyhow::{Context, Result, ensure};

use self::{
    held::{KINDS, Purpose},
    party::{Clients, FIRST, Party},
};
use super::{Case, Report, Scale};
use crate::rig::{Rig, Site, net::FLOATING, node::Settings, puppet::Puppet};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "caching-idle",
        shows: "every oplock and lease (v1, v2) outlives an idle node; share modes, locks and breaks bite on the new one",
        soak: 5,
        run: idle,
    },
    Case {
        name: "caching-busy",
        shows: "the same with READs and WRITEs in flight",
        soak: 5,
        run: busy::busy,
    },
    Case {
        name: "caching-amid-break",
        shows: "the same with breaks not acknowledged: nobody is let in before the acknowledgement, wherever that was when the node died",
        soak: 5,
        run: amid::amid_break,
    },
    Case {
        name: "directory-leases",
        shows: "leases on directories outlive their node, and a new file breaks them on the next one (Samba 4.22 or later, by SAMBA_ROOT)",
        soak: 5,
        run: directory::leases,
    },
];

/// A site, both clients, and the address of a node that does not serve.
struct Place {
    rig: Rig,
    clients: Clients,
    address: String,
}

impl Place {
    fn new() -> Result<Self> {
        // impacket signs only where it must, and seals wherever the server can.
        let global = vec!["server signing = mandatory", "server smb encrypt = off"];
        let samba = Settings { global, ..Settings::default() };
        let rig = Rig::new(&Site { samba, ..Site::default() })?;
        let clients =
            Clients { first: Puppet::start(&rig, "smbprotocol")?, second: Puppet::start(&rig, "impacket")? };
        let serving = rig.serving()?;
        let other = rig.nodes.iter().enumerate().find(|(index, _)| *index != serving).context("one node")?.1;
        let address = other.address.clone();
        Ok(Self { rig, clients, address })
    }
}

/// The same, and what they are told at that node, where nothing happens.
struct Stage {
    rig: Rig,
    clients: Clients,
    unharmed: Party,
}

impl Stage {
    fn new(play: impl Fn(&Rig, &mut Clients, &mut Party) -> Result<()>) -> Result<Self> {
        let Place { rig, mut clients, address } = Place::new()?;
        let mut unharmed = Party::meet(&mut clients, &address, "unharmed", None)?;
        play(&rig, &mut clients, &mut unharmed)?;
        Ok(Self { rig, clients, unharmed })
    }

    /// The other node serves, and all connections are there.
    fn taken_over(rig: &Rig, times: usize) -> Result<()> {
        rig.await_takeovers("crash", (FIRST.len() + 1) * times)
    }
}

/// What the second client does, but for files in which it has been already.
fn get_in_the_way(clients: &mut Clients, party: &mut Party) -> Result<()> {
    let shared = party.begin_shared(clients)?;
    party.finish_second(clients, "second opens to write", shared)?;
    let opened = party.begin_opened(clients)?;
    party.finish_second(clients, "second opens", opened)
}

/// And afterwards.
fn end(clients: &mut Clients, party: &mut Party) -> Result<()> {
    party.contend_for_locks(clients)?;
    party.look(clients)?;
    party.overwrite(clients, |_| true)?;
    party.part(clients)
}

fn idle(_: &Scale) -> Result<Report> {
    let rest = |clients: &mut Clients, party: &mut Party| {
        party.go_on(clients)?;
        get_in_the_way(clients, party)?;
        end(clients, party)
    };
    let mut stage = Stage::new(|rig, clients, party| {
        party.hold(rig, clients, "unharmed")?;
        rest(clients, party)
    })?;
    check_breaks(&stage.unharmed)?;
    let (rig, clients) = (&mut stage.rig, &mut stage.clients);
    let mut party = Party::meet(clients, FLOATING, "idle", Some(&stage.unharmed))?;
    party.hold(rig, clients, "idle")?;
    rig.kill_serving()?;
    Stage::taken_over(rig, 1)?;
    party.echo(clients)?;
    rest(clients, &mut party)?;
    party.compare(&stage.unharmed)?;
    Ok(Report::default())
}

/// Every kind that can be broken was: else nothing would be compared.
fn check_breaks(party: &Party) -> Result<()> {
    for kind in &KINDS {
        let mut stories =
            party.held.iter().filter(|h| h.kind.name == kind.name && h.purpose == Purpose::Opened);
        ensure!(
            stories.all(|held| held.told.iter().chain(&held.loose).any(|line| line.starts_with("broken"))),
            "{} is never broken",
            kind.name
        );
    }
    Ok(())
}
