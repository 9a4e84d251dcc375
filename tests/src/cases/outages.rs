//! Nodes that die again and again, all at once, or while nobody is connected yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who, gave_up},
};

const FILE: &str = "bulk.bin";
const DEATHS: u64 = 5;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "five-deaths",
        shows: "kill, restart, kill the other node, five times in one copy: get and put finish",
        soak: 5,
        run: five_deaths,
    },
    Case {
        name: "outage-within-deadline",
        shows: "all nodes gone for a while (10 s in a soak), then one is back: get and put finish",
        soak: 3,
        run: outage,
    },
    Case {
        name: "outage-beyond-deadline",
        shows: "all nodes gone for longer than the deadline: a clean disconnect, and the log says why",
        soak: 2,
        run: lasting_outage,
    },
    Case {
        name: "dead-at-connect",
        shows: "the node dies, or is cut off and fenced, just before a client connects: the next one is dialled unseen",
        soak: 3,
        run: dead_at_connect,
    },
    Case {
        name: "dies-in-negotiate",
        shows: "the node dies with the client's NEGOTIATE unanswered: the next one gets it, the client sees nothing",
        soak: 3,
        run: dies_in_negotiate,
    },
];

fn five_deaths(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    // Five nodes must start while one copy runs.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(16))?;
    for way in [Way::Get, Way::Put] {
        let before = (rig.metric("connections_total")?, rig.metric(TAKEN_OVER)?);
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let faults = (1..=DEATHS).map(|death| {
            Fault::at(scale.copy * death / (DEATHS + 2), move |rig| {
                let before = rig.metric(TAKEN_OVER)?;
                let dead = rig.kill_serving()?;
                rig.await_metric(TAKEN_OVER, before + 1.0)?;
                ensure!(rig.serving()? != dead, "a dead node serves");
                rig.restart(dead)?;
                rig.await_metric(&up(rig, dead)?, 1.0)
            })
        });
        copy.run(&mut rig, faults.collect())?;
        ensure!(rig.metric("connections_total")? == before.0 + 1.0, "the client connected more than once");
        let taken_over = rig.metric(TAKEN_OVER)? - before.1;
        ensure!(taken_over >= 5.0, "only {taken_over} takeovers");
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    Ok(Report::default())
}

fn outage(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut report = Report::default();
    let length = Duration::from_secs(if scale.soak { 10 } else { 3 });
    for way in [Way::Get, Way::Put] {
        let before = rig.metric("connections_total")?;
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let fault = Fault::at(scale.copy / 3, |rig| {
            rig.kill_all()?;
            std::thread::sleep(length);
            rig.restart(1)
        });
        let outcome = copy.run(&mut rig, vec![fault])?;
        ensure!(rig.metric("connections_total")? == before + 1.0, "the client connected more than once");
        rig.restart(0)?;
        report.stalls_ms.push(outcome.stall.as_millis());
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    Ok(report)
}

fn lasting_outage(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site { config: "takeover_deadline = \"2s\"\n".into(), ..Site::default() })?;
    for (way, ended) in [(Way::Get, 1.0), (Way::Put, 2.0)] {
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let fault = Fault::at(scale.copy / 3, Rig::kill_all);
        let error = copy.run(&mut rig, vec![fault]).err().context("the copy ended well")?;
        ensure!(gave_up(&error), "{error:#}");
        let closed = rig.metric("client_closed_total{reason=\"deadline\"}")?;
        ensure!(closed == ended, "{closed} clients were disconnected at the deadline, not {ended}");
        ensure!(
            rig.metric("takeovers_total{cause=\"crash\",result=\"failed\"}")? == ended,
            "no failed takeover"
        );
        ensure!(rig.has_logged("no node could serve within takeover_deadline"), "the log does not say why");
        for node in 0..rig.nodes.len() {
            rig.restart(node)?;
        }
        // The next client finds the proxy as if nothing had been.
        Copy::start(&rig, &Who::SIGNED, Way::Put, "after.bin", 1 << 20)?.run(&mut rig, Vec::new())?;
    }
    Ok(Report::default())
}

fn dead_at_connect(scale: &Scale) -> Result<Report> {
    let config = "[fence]\nexec = [\"{fence}\", \"{name}\"]\n";
    let mut rig = Rig::new(&Site { config: config.into(), ..Site::default() })?;
    let dead = rig.kill_serving()?;
    Copy::start(&rig, &Who::SIGNED, Way::Put, FILE, scale.copy)?.run(&mut rig, Vec::new())?;
    rig.restart(dead)?;
    rig.await_metric(&up(&rig, dead)?, 1.0)?;

    let silent = rig.serving()?;
    let name = rig.nodes.get(silent).context("no such node")?.name.clone();
    rig.net.set_link(&name, false)?;
    Copy::start(&rig, &Who::SIGNED, Way::Get, FILE, scale.copy)?.run(&mut rig, Vec::new())?;
    ensure!(rig.serving()? != silent, "the silent node serves");
    ensure!(rig.metric("connections_total")? == 2.0, "a client connected more than once");
    ensure!(rig.metric(TAKEN_OVER)? == 0.0, "there was nothing to take over");
    Ok(Report::default())
}

fn dies_in_negotiate(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    // On a busy machine the node may stand still for longer than it is given.
    rig.expect_error("the serving node is silent");
    let serving = rig.serving()?;
    rig.nodes.get(serving).context("no such node")?.freeze(true);
    let copy = Copy::start(&rig, &Who::SIGNED, Way::Put, FILE, scale.copy)?;
    rig.await_metric("messages_total{command=\"negotiate\",direction=\"request\"}", 1.0)?;
    rig.nodes.get_mut(serving).context("no such node")?.kill();
    copy.run(&mut rig, Vec::new())?;
    ensure!(rig.serving()? != serving, "a dead node serves");
    ensure!(rig.metric("connections_total")? == 1.0, "the client connected more than once");
    Ok(Report::default())
}

const TAKEN_OVER: &str = "takeovers_total{cause=\"crash\",result=\"ok\"}";

fn up(rig: &Rig, node: usize) -> Result<String> {
    Ok(format!("node_up{{node=\"{}\"}}", rig.nodes.get(node).context("no such node")?.name))
}
