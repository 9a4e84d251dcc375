//! The state of the art beside it: HAProxy with health checks and a backup server, on the same nodes.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who, gave_up},
    haproxy::HaProxy,
    net::FLOATING,
    node::Node,
    wait_until,
};

const FILE: &str = "bulk.bin";

pub(super) const CASES: &[Case] = &[Case {
    name: "haproxy-loses-it",
    shows: "for comparison: behind HAProxy the same copies die with their node; a client that comes after is served",
    soak: 7,
    run: loses_it,
}];

fn loses_it(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    ensure!(rig.proxy.stop()?.success(), "the proxy did not end well");
    let _haproxy = HaProxy::start(&rig.net, rig.dir.path(), FLOATING, &rig.nodes)?;
    // Without a takeover to be counted, this makes sure that the node dies in mid-copy.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(4))?;
    let mut report = Report::default();
    for way in [Way::Get, Way::Put] {
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let mut dead = 0;
        let kill = Fault::at(scale.copy / 3, |rig| {
            let file = rig.data().join(FILE);
            let serves = |node: &Node| node.pid_with(&file).is_some();
            dead = rig.nodes.iter().position(serves).context("no node has the file open")?;
            rig.nodes.get_mut(dead).context("no such node")?.kill();
            Ok(())
        });
        let error = copy.run(&mut rig, vec![kill]).err().context("the copy survived")?;
        ensure!(gave_up(&error), "{error:#}");
        report.notes.push(format!("{way:?}: {}", format!("{error:#}").lines().next().unwrap_or_default()));
        // It is HAProxy at work, and not a rig in which nothing works: the other node serves whoever comes next.
        await_service(&rig)?;
        Copy::start(&rig, &Who::SIGNED, way, "after.bin", 1 << 20)?.run(&mut rig, Vec::new())?;
        rig.restart(dead)?;
    }
    Ok(report)
}

/// Waits until the floating address leads to the node that lives.
fn await_service(rig: &Rig) -> Result<()> {
    wait_until("the other node serves", Duration::from_secs(30), || {
        let listing = rig
            .net
            .command("client", "smbclient")
            .arg(format!("//{FLOATING}/share"))
            .args(Who::SIGNED.arguments())
            .args(["-c", "ls"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        listing.is_ok_and(|status| status.success())
    })
}
