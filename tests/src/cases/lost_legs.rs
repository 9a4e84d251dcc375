//! A lost connection is not a lost node: only the process that serves one client dies, its node lives on.

use std::{cell::Cell, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who, gave_up},
    wait_until,
};

const FILE: &str = "bulk.bin";
const TAKEN_OVER: &str = "takeovers_total{cause=\"crash\",result=\"ok\"}";
const TOO_MANY: &str = "client_closed_total{reason=\"too_many_takeovers\"}";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "lost-leg",
        shows: "the one smbd that serves a copy dies, its node lives: taken over to the same node, get and put finish",
        soak: 5,
        run: lost_leg,
    },
    Case {
        name: "lost-legs-too-many",
        shows: "a connection whose smbd dies again and again is closed, for its requests may be the cause",
        soak: 2,
        run: too_many,
    },
];

fn lost_leg(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut report = Report::default();
    for (way, taken_over) in [(Way::Get, 1.0), (Way::Put, 2.0)] {
        let before = (rig.metric("connections_total")?, rig.serving()?);
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let outcome = copy.run(&mut rig, vec![Fault::at(scale.copy / 3, kill_child)])?;
        ensure!(rig.metric("connections_total")? == before.0 + 1.0, "the client connected more than once");
        ensure!(rig.serving()? == before.1, "the node was left although it lives");
        ensure!(rig.metric(TAKEN_OVER)? == taken_over, "not {taken_over} takeovers");
        report.stalls_ms.push(outcome.stall.as_millis());
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    let log = rig.proxy.log();
    let mut takeovers = log.iter().filter(|line| line["message"] == "taken over");
    ensure!(takeovers.all(|line| line["from"] == line["to"]), "taken over to another node");
    Ok(report)
}

fn too_many(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    rig.net.stretch_copies(scale.copy, Duration::from_secs(12))?;
    let copy = Copy::start(&rig, &Who::SIGNED, Way::Get, FILE, scale.copy)?;
    let deaths = Cell::new(0);
    let faults = (1..8).map(|death| {
        let deaths = &deaths;
        // Apart from each other, lest one request be in flight at two deaths: that alone would fail it.
        Fault::at(scale.copy * death / 8, move |rig| {
            let before = rig.metric(TAKEN_OVER)?;
            kill_child(rig)?;
            deaths.set(deaths.get() + 1);
            wait_until("the leg is replaced or given up", Duration::from_secs(30), || {
                let has = |name, more_than| rig.metric(name).is_ok_and(|now| now > more_than);
                has(TAKEN_OVER, before) || has(TOO_MANY, 0.0)
            })
        })
    });
    let error = copy.run(&mut rig, faults.collect()).err().context("the copy ended well")?;
    let deaths = deaths.get();
    ensure!(gave_up(&error), "{error:#}");
    ensure!(rig.metric(TOO_MANY)? == 1.0, "{error:#}");
    ensure!(deaths >= 4, "given up after only {deaths} deaths");
    ensure!(
        rig.has_logged("nodes keep closing this connection although they live"),
        "the log does not say why"
    );
    // Others are not disturbed.
    Copy::start(&rig, &Who::SIGNED, Way::Put, "after.bin", 1 << 20)?.run(&mut rig, Vec::new())?;
    Ok(Report { notes: vec![format!("given up at death {deaths}")], ..Report::default() })
}

/// Kills the smbd that serves the copy, and nothing else.
fn kill_child(rig: &mut Rig) -> Result<()> {
    let file = rig.data().join(FILE);
    let node = rig.nodes.get(rig.serving()?).context("no such node")?;
    wait_until("an smbd has the file open", Duration::from_secs(10), || node.kill_child_with(&file))
}
