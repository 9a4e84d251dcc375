//! Nodes that are found, and not listed: they come and go while a client is at work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who},
    wait_until,
};

const FILE: &str = "bulk.bin";
/// The name by which the proxy finds them.
const NAME: &str = "samba.test";
const FOUND: &str = "[nodes]\ndns = \"samba.test:445\"\n";

pub(super) const CASES: &[Case] = &[Case {
    name: "found-by-name",
    shows: "nodes that a DNS name tells of come, die, are gone and come back in the middle of copies: get and put finish",
    soak: 3,
    run: by_name,
}];

fn by_name(scale: &Scale) -> Result<Report> {
    let site = Site { config: "[fence]\nunfenced_silence = true\n".into(), ..Site::default() };
    let mut rig = Rig::new(&site)?;
    rig.proxy.stop()?;
    tell(&rig, &[0])?;
    let of = |node: usize| -> Result<String> {
        let node = rig.nodes.get(node).context("no such node")?;
        Ok(format!("[[nodes]]\nname = \"{}\"\naddress = \"{}:445\"\n", node.name, node.address))
    };
    rig.proxy.rewrite(&of(0)?, FOUND)?;
    rig.proxy.rewrite(&of(1)?, "")?;
    rig.proxy.start_again(&rig.net)?;
    // Four times the name is looked up anew while a copy runs.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(30))?;
    for (round, way) in [Way::Get, Way::Put].into_iter().enumerate() {
        let before = (rig.metric("connections_total")?, 2 * round);
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let faults = vec![
            Fault::at(scale.copy / 8, |rig| {
                tell(rig, &[0, 1])?;
                rig.await_metric(&series(rig, "up", 1)?, 1.0)
            }),
            Fault::at(scale.copy / 4, |rig| replaced(rig, 0, before.1 + 1)),
            Fault::at(scale.copy / 2, |rig| {
                rig.restart(0)?;
                tell(rig, &[0, 1])?;
                rig.await_metric(&series(rig, "up", 0)?, 1.0)
            }),
            Fault::at(scale.copy * 3 / 4, |rig| replaced(rig, 1, before.1 + 2)),
        ];
        copy.run(&mut rig, faults)?;
        ensure!(rig.metric("connections_total")? == before.0 + 1.0, "the client connected more than once");
        std::fs::remove_file(rig.data().join(FILE))?;
        rig.restart(1)?;
    }
    Ok(Report::default())
}

/// The node that serves dies, the other one takes over, and then it is found no more.
fn replaced(rig: &mut Rig, node: usize, takeovers: usize) -> Result<()> {
    let (dead, other) = (series(rig, "active", node)?, series(rig, "active", 1 - node)?);
    ensure!(rig.metric(&dead)? == 1.0, "it does not serve");
    rig.nodes.get_mut(node).context("no such node")?.kill();
    rig.await_takeovers("crash", takeovers)?;
    ensure!(rig.metric(&other)? == 1.0, "the other one does not serve");
    tell(rig, &[1 - node])?;
    wait_until("the series of a node that is gone are gone", Duration::from_secs(30), || {
        let name = format!("understudy_{dead}");
        rig.proxy.metrics(&rig.net).is_ok_and(|all| !all.contains_key(&name))
    })
}

/// The name tells of these nodes from now on.
fn tell(rig: &Rig, nodes: &[usize]) -> Result<()> {
    let addresses: Option<Vec<_>> =
        nodes.iter().map(|at| rig.nodes.get(*at).map(|node| (node.address.as_str(), NAME))).collect();
    rig.net.add_names("hub", &addresses.context("no such node")?)
}

fn series(rig: &Rig, what: &str, node: usize) -> Result<String> {
    let address = &rig.nodes.get(node).context("no such node")?.address;
    Ok(format!("node_{what}{{node=\"{address}\"}}"))
}
