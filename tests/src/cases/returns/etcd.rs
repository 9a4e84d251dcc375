//! What goes wrong with etcd loses nobody what was recorded: clients are served meanwhile as is configured, and come back
//! after the death of the proxy.

use anyhow::{Context, Result, ensure};
use understudy_core::crypto::Dialect;

use super::{
    Fault, TIMEOUT, directly,
    owner::{Owner, Purpose, Rival},
};
use crate::{
    cases::Report,
    client::{Client, Setup},
    rig::{Rig, Site, Store, net::FLOATING, puppet::Puppet},
};

/// What the proxy logs when its store fails.
const FAILS: &str = "the store fails";
const QUOTA: u64 = 16 << 20;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A member that does not lead is killed.
    Member,
    /// The member that leads is killed.
    Leader,
    /// What was is forgotten.
    Compaction,
    /// No member is reached.
    Cut,
    /// The alarm NOSPACE.
    Full,
    /// All members are killed, and started again.
    Restart,
}

impl Trouble {
    /// Nothing can be stored until it is over.
    fn stops(self) -> bool {
        matches!(self, Self::Cut | Self::Full | Self::Restart)
    }

    fn begin(self, rig: &mut Rig) -> Result<()> {
        let (etcd, net) = rig.etcd()?;
        match self {
            Self::Member => {
                let leader = etcd.leader(net)?;
                etcd.kill((leader + 1) % etcd.count())
            }
            Self::Leader => {
                let leader = etcd.leader(net)?;
                etcd.kill(leader)
            }
            Self::Compaction => etcd.compact(net),
            Self::Cut => (0..etcd.count()).try_for_each(|index| etcd.set_link(net, index, false)),
            Self::Full => etcd.fill(net),
            Self::Restart => (0..etcd.count()).try_for_each(|index| etcd.kill(index)),
        }
    }

    fn end(self, rig: &mut Rig) -> Result<()> {
        let (etcd, net) = rig.etcd()?;
        match self {
            Self::Member | Self::Leader | Self::Compaction => Ok(()),
            Self::Cut => (0..etcd.count()).try_for_each(|index| etcd.set_link(net, index, true)),
            Self::Full => etcd.make_room(net),
            Self::Restart => (0..etcd.count()).try_for_each(|index| etcd.restart(net, index)),
        }
    }
}

/// Clients open files before, amid and after it, and all come back.
pub(super) fn survive(trouble: Trouble) -> Result<Report> {
    let quota = if trouble == Trouble::Full { QUOTA } else { 0 };
    let store = Store::Etcd { members: 3, quota, lines: "on_store_failure = \"serve\"" };
    let mut rig = Rig::new(&Site { store, ..Site::default() })?;
    if trouble.stops() {
        rig.expect_error(FAILS);
    }
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed = unharmed(&rig, &mut puppet)?;
    let mut owners = vec![arrive(&mut puppet, "before")?];
    ensure!(rig.metric("store_up")? == 1.0, "the store is not up");

    trouble.begin(&mut rig)?;
    owners.push(arrive(&mut puppet, "amid")?);
    ensure!(rig.metric("store_up")? == f64::from(u8::from(!trouble.stops())), "the store is up, or is not");
    trouble.end(&mut rig)?;
    rig.await_metric("store_up", 1.0)?;
    owners.push(arrive(&mut puppet, "after")?);
    if !trouble.stops() {
        ensure!(rig.metric("store_errors_total")? == 0.0, "the store failed");
    }
    come_back(&mut rig, &mut puppet, &mut owners, &unharmed)
}

/// The proxy dies while nothing can be stored: what was stored before is not lost, and waits.
pub(super) fn die_meanwhile() -> Result<Report> {
    let mut rig = Rig::new(&Site { store: Store::THREE, ..Site::default() })?;
    rig.expect_error(FAILS);
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed = unharmed(&rig, &mut puppet)?;
    let owner = arrive(&mut puppet, "before")?;
    Trouble::Cut.begin(&mut rig)?;
    // Whoever comes now is served, and not recorded.
    let served = arrive(&mut puppet, "amid")?;
    rig.proxy.kill()?;
    served.await_end(&mut puppet)?;
    Trouble::Cut.end(&mut rig)?;
    let (etcd, net) = rig.etcd()?;
    etcd.await_leader(net)?;
    rig.proxy.start_again(&rig.net)?;
    owner.await_end(&mut puppet)?;
    return_and_compare(&mut puppet, &mut [owner], &unharmed)
}

/// Where nobody is served who cannot be recorded: nobody is told that it has something durable, those who have go on, and come
/// back afterwards.
pub(super) fn refuse() -> Result<Report> {
    let store = Store::Etcd { members: 3, quota: 0, lines: "on_store_failure = \"refuse\"" };
    let mut rig = Rig::new(&Site { store, ..Site::default() })?;
    rig.expect_error(FAILS);
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed = unharmed(&rig, &mut puppet)?;
    let owner = arrive(&mut puppet, "before")?;
    let unlucky = Owner::arrive(&mut puppet, FLOATING, "amid", "3.1.1", &[], TIMEOUT)?;
    Trouble::Cut.begin(&mut rig)?;
    unlucky.ask_in_vain(&mut puppet)?;
    ensure!(rig.metric("store_up")? == 0.0, "the store is up");
    owner.echo(&mut puppet)?;
    let stranger =
        Client::connect(&rig.net, FLOATING, &Setup { dialect: Dialect::SMB311, ..Setup::default() });
    ensure!(stranger.is_err(), "a new client is served");
    Trouble::Cut.end(&mut rig)?;
    rig.await_metric("store_up", 1.0)?;
    let later = arrive(&mut puppet, "after")?;
    come_back(&mut rig, &mut puppet, &mut [owner, later], &unharmed)
}

fn arrive(puppet: &mut Puppet, name: &str) -> Result<Owner> {
    Owner::arrive(puppet, FLOATING, name, "3.1.1", &[Purpose::Alone], TIMEOUT)
        .with_context(|| name.to_owned())
}

/// What is told at a node to one whose own connection is lost.
fn unharmed(rig: &Rig, puppet: &mut Puppet) -> Result<Owner> {
    let server = directly(rig)?;
    let mut owner = Owner::arrive(puppet, &server, "unharmed", "3.1.1", &[Purpose::Alone], TIMEOUT)?;
    owner.leave(puppet)?;
    let rival = Rival::arrive(puppet, &server, "unharmed")?;
    owner.come_back(puppet, &server)?;
    owner.prove(puppet, &rival)?;
    Ok(owner)
}

/// The proxy dies, and all come back.
fn come_back(rig: &mut Rig, puppet: &mut Puppet, owners: &mut [Owner], unharmed: &Owner) -> Result<Report> {
    Fault::Proxy.happen(rig, puppet, owners)?;
    return_and_compare(puppet, owners, unharmed)
}

fn return_and_compare(puppet: &mut Puppet, owners: &mut [Owner], unharmed: &Owner) -> Result<Report> {
    let rival = Rival::arrive(puppet, FLOATING, "returns")?;
    let mut differences = Vec::new();
    for owner in owners {
        owner.come_back(puppet, FLOATING)?;
        owner.prove(puppet, &rival)?;
        differences.extend(owner.differences(Purpose::Alone, unharmed, Purpose::Alone));
    }
    super::tell(&differences)
}
