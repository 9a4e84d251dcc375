//! Clients that were away have their files again: with their data, what they may cache of them, and their locks.
//!
//! The same client does the same at a node, where nothing but its own connection is lost. What everybody is told must be the
//! same.

mod etcd;
mod ha;
mod kept;
mod late;
mod mount;
mod owner;
mod refused;
mod resilient;

use anyhow::{Context, Result, ensure};

use self::{
    etcd::Trouble,
    owner::{Owner, Purpose, Rival},
};
use super::{Case, Report};
use crate::rig::{Rig, Site, Store, net::FLOATING, puppet::Puppet};

pub(super) const HA_CASES: &[Case] = ha::CASES;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "return-own-connection",
        shows: "clients of 2.1 and 3.1.1 whose own connection is lost while their node lives have their durable Opens again (DHnC by oplock and lease, DH2C), with locks and leases; whom a server lets in meanwhile, the proxy does",
        soak: 50,
        run: |_| lose(Fault::OwnConnection, &Site::default()),
    },
    Case {
        name: "return-own-connection-bridge",
        shows: "the same after a takeover",
        soak: 50,
        run: |_| lose(Fault::OwnConnectionInBridge, &Site::default()),
    },
    Case {
        name: "return-proxy-killed",
        shows: "the proxy is killed and started again: the same clients have their Opens again, and nobody steals a file before",
        soak: 50,
        run: |_| lose(Fault::Proxy, &Site::default()),
    },
    Case {
        name: "return-proxy-killed-bridge",
        shows: "the same after a takeover",
        soak: 50,
        run: |_| lose(Fault::ProxyInBridge, &Site::default()),
    },
    Case {
        name: "return-both-killed",
        shows: "the same when the node dies with the proxy, and another serves afterwards",
        soak: 50,
        run: |_| lose(Fault::ProxyAndNode, &Site::default()),
    },
    Case {
        name: "return-both-restarted",
        shows: "the same when the node that died with the proxy serves again afterwards",
        soak: 50,
        run: |_| lose(Fault::ProxyAndNodeAtOnce, &Site::default()),
    },
    Case {
        name: "return-node-killed",
        shows: "the same when the node dies while the clients are away",
        soak: 50,
        run: |_| lose(Fault::NodeMeanwhile, &Site::default()),
    },
    Case {
        name: "return-etcd-one",
        shows: "the proxy is killed, after a takeover or not, with its records in an etcd of one member, and started again: the same clients have their Opens again",
        soak: 10,
        run: |_| {
            let site = in_etcd(1);
            lose(Fault::Proxy, &site)?;
            lose(Fault::ProxyInBridge, &site)
        },
    },
    Case {
        name: "return-etcd-proxy-killed",
        shows: "the same with three members",
        soak: 50,
        run: |_| lose(Fault::Proxy, &in_etcd(3)),
    },
    Case {
        name: "return-etcd-proxy-killed-bridge",
        shows: "the same after a takeover",
        soak: 50,
        run: |_| lose(Fault::ProxyInBridge, &in_etcd(3)),
    },
    Case {
        name: "return-etcd-both-killed",
        shows: "the same when the node dies with the proxy, and another serves afterwards",
        soak: 50,
        run: |_| lose(Fault::ProxyAndNode, &in_etcd(3)),
    },
    Case {
        name: "return-etcd-both-restarted",
        shows: "the same when the node that died with the proxy serves again afterwards",
        soak: 50,
        run: |_| lose(Fault::ProxyAndNodeAtOnce, &in_etcd(3)),
    },
    Case {
        name: "return-etcd-node-killed",
        shows: "the same when the node dies while the clients are away",
        soak: 50,
        run: |_| lose(Fault::NodeMeanwhile, &in_etcd(3)),
    },
    Case {
        name: "etcd-member-killed",
        shows: "a member of etcd dies: nobody notices, and what was opened before and afterwards outlives the proxy",
        soak: 5,
        run: |_| etcd::survive(Trouble::Member),
    },
    Case {
        name: "etcd-leader-killed",
        shows: "the same when it is the leader",
        soak: 5,
        run: |_| etcd::survive(Trouble::Leader),
    },
    Case {
        name: "etcd-compaction",
        shows: "the same when etcd is compacted and defragmented",
        soak: 5,
        run: |_| etcd::survive(Trouble::Compaction),
    },
    Case {
        name: "etcd-cut",
        shows: "no member of etcd is reached: clients are served, and what they open outlives the proxy if that dies afterwards",
        soak: 5,
        run: |_| etcd::survive(Trouble::Cut),
    },
    Case {
        name: "etcd-full",
        shows: "the same when etcd is full",
        soak: 5,
        run: |_| etcd::survive(Trouble::Full),
    },
    Case {
        name: "etcd-restart",
        shows: "the same when all members are killed and started again",
        soak: 5,
        run: |_| etcd::survive(Trouble::Restart),
    },
    Case {
        name: "etcd-cut-proxy-killed",
        shows: "the proxy dies while no member of etcd is reached: what was opened before is not lost",
        soak: 5,
        run: |_| etcd::die_meanwhile(),
    },
    Case {
        name: "etcd-refuse",
        shows: "on_store_failure = \"refuse\": while no member of etcd is reached, nobody is told that it has something durable; those who have are served, and come back",
        soak: 5,
        run: |_| etcd::refuse(),
    },
    Case {
        name: "return-refused",
        shows: "who asks for a durable Open as the wrong user or client, or with a wrong CreateGuid, lease key or id, is told what a server tells it, and so is its owner afterwards",
        soak: 5,
        run: |_| refused::refused(Fault::OwnConnection),
    },
    Case {
        name: "return-refused-bridge",
        shows: "the same after a takeover",
        soak: 5,
        run: |_| refused::refused(Fault::OwnConnectionInBridge),
    },
    Case {
        name: "return-refused-proxy-killed",
        shows: "the same after the death of the proxy",
        soak: 5,
        run: |_| refused::refused(Fault::Proxy),
    },
    Case {
        name: "return-refused-both-killed",
        shows: "the same after the death of the proxy and of the node",
        soak: 5,
        run: |_| refused::refused(Fault::ProxyAndNode),
    },
    Case {
        name: "return-resilient",
        shows: "clients of 2.1 and 3.1.1 lose their connections, and have their resilient handles again with the locks, which Samba does not offer; nobody steals the files meanwhile",
        soak: 50,
        run: |_| resilient::comes_back(Fault::OwnConnection),
    },
    Case {
        name: "return-resilient-bridge",
        shows: "the same after a takeover",
        soak: 50,
        run: |_| resilient::comes_back(Fault::OwnConnectionInBridge),
    },
    Case {
        name: "return-resilient-node-killed",
        shows: "the same when the node dies while the clients are away",
        soak: 50,
        run: |_| resilient::comes_back(Fault::NodeMeanwhile),
    },
    Case {
        name: "return-resilient-proxy-killed",
        shows: "the same when the proxy is killed and started again",
        soak: 50,
        run: |_| resilient::comes_back(Fault::Proxy),
    },
    Case {
        name: "return-resilient-both-killed",
        shows: "the same when the node dies with the proxy",
        soak: 50,
        run: |_| resilient::comes_back(Fault::ProxyAndNode),
    },
    Case {
        name: "return-late",
        shows: "clients that come back after the timeout of their Opens have lost them, as at a server",
        soak: 5,
        run: |_| late::too_late(Fault::OwnConnection),
    },
    Case {
        name: "return-late-bridge",
        shows: "the same after a takeover",
        soak: 5,
        run: |_| late::too_late(Fault::OwnConnectionInBridge),
    },
    Case {
        name: "return-late-proxy-killed",
        shows: "the same after the death of the proxy; whoever waits for the files gets them then, and not before",
        soak: 5,
        run: |_| late::too_late(Fault::Proxy),
    },
    Case {
        name: "return-late-both-killed",
        shows: "the same after the death of the proxy and of the node",
        soak: 5,
        run: |_| late::too_late(Fault::ProxyAndNode),
    },
    Case {
        name: "return-kernel-proxy-killed",
        shows: "a kernel mount comes back by itself after the death of the proxy, with its locks, and nobody steals them",
        soak: 50,
        run: |_| mount::comes_back(Fault::Proxy, &Site::default()),
    },
    Case {
        name: "return-kernel-both-killed",
        shows: "the same when the node dies with the proxy",
        soak: 50,
        run: |_| mount::comes_back(Fault::ProxyAndNode, &Site::default()),
    },
];

/// A site whose proxy keeps its records in an etcd of so many members.
fn in_etcd(members: usize) -> Site {
    Site { store: Store::Etcd { members, quota: 0, lines: "" }, ..Site::default() }
}

/// In milliseconds; asked for where one can be.
const TIMEOUT: u32 = 60_000;
const DIALECTS: [&str; 2] = ["3.1.1", "2.1"];
const PURPOSES: [Purpose; 2] = [Purpose::Alone, Purpose::Wanted];

/// Why the clients are away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Their own connections are lost, and nothing else.
    OwnConnection,
    /// The same after a takeover.
    OwnConnectionInBridge,
    /// The proxy is killed, and started again.
    Proxy,
    /// The same after a takeover.
    ProxyInBridge,
    /// The proxy is killed together with the node; the other node serves when it is started again.
    ProxyAndNode,
    /// The same, but the node is up again before the proxy is.
    ProxyAndNodeAtOnce,
    /// Their own connections are lost, and then the node dies.
    NodeMeanwhile,
    /// One of two proxies is lost.
    Leader(ha::Loss),
}

impl Fault {
    /// Nobody gets what belongs to whom a node or a proxy has let down. Who has only lost its connection has no such claim.
    fn keeps_others_out(self) -> bool {
        !matches!(self, Self::OwnConnection | Self::OwnConnectionInBridge)
    }

    fn happen(self, rig: &mut Rig, puppet: &mut Puppet, owners: &[Owner]) -> Result<()> {
        if matches!(self, Self::OwnConnectionInBridge | Self::ProxyInBridge) {
            take_over(rig, puppet, owners)?;
        }
        if matches!(self, Self::OwnConnection | Self::OwnConnectionInBridge | Self::NodeMeanwhile) {
            owners.iter().try_for_each(|owner| owner.leave(puppet))?;
        }
        self.strike(rig)?;
        owners.iter().try_for_each(|owner| owner.await_end(puppet))
    }

    /// What happens elsewhere than at the clients.
    fn strike(self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::OwnConnection | Self::OwnConnectionInBridge => Ok(()),
            Self::Leader(loss) => loss.strike(rig),
            Self::NodeMeanwhile => {
                rig.await_no_client()?;
                let dead = rig.kill_serving()?;
                rig.await_serving_other_than(dead)
            }
            Self::Proxy | Self::ProxyInBridge => {
                rig.proxy.kill()?;
                rig.proxy.start_again(&rig.net)
            }
            Self::ProxyAndNode | Self::ProxyAndNodeAtOnce => {
                let serving = rig.serving()?;
                rig.proxy.kill()?;
                rig.nodes.get_mut(serving).context("no such node")?.kill();
                if self == Self::ProxyAndNodeAtOnce {
                    rig.restart(serving)?;
                }
                rig.proxy.start_again(&rig.net)?;
                if self == Self::ProxyAndNode {
                    rig.await_serving_other_than(serving)?;
                }
                Ok(())
            }
        }
    }
}

/// The node dies, and everybody is served by the other one.
fn take_over(rig: &mut Rig, puppet: &mut Puppet, owners: &[Owner]) -> Result<()> {
    let dead = rig.kill_serving()?;
    rig.await_takeovers("crash", owners.len())?;
    owners.iter().try_for_each(|owner| owner.echo(puppet))?;
    rig.restart(dead)?;
    let name = rig.nodes.get(dead).context("no such node")?.name.clone();
    rig.await_metric(&format!("node_up{{node=\"{name}\"}}"), 1.0)
}

/// What they do at `server`. `away`: how they come to be away, and what the rival does meanwhile.
fn play(
    puppet: &mut Puppet,
    server: &str,
    name: &str,
    away: impl FnOnce(&mut Puppet, &mut [Owner]) -> Result<Rival>,
) -> Result<Vec<Owner>> {
    let arrive = |dialect| Owner::arrive(puppet, server, name, dialect, &PURPOSES, TIMEOUT);
    let mut owners = DIALECTS.into_iter().map(arrive).collect::<Result<Vec<_>>>()?;
    let rival = away(puppet, &mut owners)?;
    for owner in &mut owners {
        owner.come_back(puppet, server)?;
        owner.prove(puppet, &rival)?;
    }
    Ok(owners)
}

/// What they do at `server` when nothing but their own connections is lost.
fn play_alone(puppet: &mut Puppet, server: &str, name: &str) -> Result<Vec<Owner>> {
    play(puppet, server, name, |puppet, owners| {
        owners.iter().try_for_each(|owner| owner.leave(puppet))?;
        let rival = Rival::arrive(puppet, server, name)?;
        owners.iter_mut().try_for_each(|owner| rival.open(puppet, owner))?;
        Ok(rival)
    })
}

/// The address of a node that does not serve, without a proxy before it.
fn directly(rig: &Rig) -> Result<String> {
    let serving = rig.serving()?;
    let other = rig.nodes.iter().enumerate().find(|(index, _)| *index != serving).context("one node")?.1;
    Ok(other.address.clone())
}

/// Clients lose their connections so, and come back.
fn lose(fault: Fault, site: &Site) -> Result<Report> {
    let mut rig = Rig::new(site)?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed = play_alone(&mut puppet, &directly(&rig)?, "unharmed").context("at a node")?;
    let owners = play(&mut puppet, FLOATING, "returns", |puppet, owners| {
        fault.happen(&mut rig, puppet, owners)?;
        let rival = Rival::arrive(puppet, FLOATING, "returns")?;
        for owner in owners {
            if fault.keeps_others_out() {
                rival.try_in_vain(puppet, owner)?;
            } else {
                rival.open(puppet, owner)?;
            }
        }
        Ok(rival)
    })?;
    let as_if = if fault.keeps_others_out() { Purpose::Alone } else { Purpose::Wanted };
    let mut differences = Vec::new();
    for (owner, unharmed) in owners.iter().zip(&unharmed) {
        differences.extend(owner.differences(Purpose::Alone, unharmed, Purpose::Alone));
        differences.extend(owner.differences(Purpose::Wanted, unharmed, as_if));
    }
    tell(&differences)
}

/// Nobody has fared otherwise than at a server.
fn tell(differences: &[String]) -> Result<Report> {
    ensure!(
        differences.is_empty(),
        "{} files fared otherwise than at a server:\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(Report::default())
}
