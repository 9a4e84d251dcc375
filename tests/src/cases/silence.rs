//! Nodes that say nothing any more. Silence proves nothing: only a fence, or the operator's word, lets clients leave.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who, gave_up, sha256},
};

/// No copy across a fenced node may stand still for longer.
const STALL: Duration = Duration::from_secs(4);
const FILE: &str = "bulk.bin";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "silence-fenced",
        shows: "the serving node falls silent, the fence kills it, get and put go on within 4 s; its cable is mended: equal bytes",
        soak: 5,
        run: fenced,
    },
    Case {
        name: "silence-fence-fails",
        shows: "a fence that fails is no fence: clients stay with the silent node until one succeeds",
        soak: 1,
        run: fence_fails,
    },
    Case {
        name: "silence-unfenced",
        shows: "without a fence nobody leaves a silent node; at the deadline the client is disconnected, and told why in the log",
        soak: 2,
        run: unfenced,
    },
    Case {
        name: "silence-ends",
        shows: "the silent node answers again before the deadline: the copy goes on where it was",
        soak: 2,
        run: ends,
    },
];

fn site(config: &str) -> Site {
    Site { config: config.into(), ..Site::default() }
}

fn fenced(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site("[fence]\nexec = [\"{fence}\", \"{name}\"]\n"))?;
    let mut report = Report::default();
    for way in [Way::Get, Way::Put] {
        let before = rig.metric("fences_total{result=\"ok\"}")?;
        let mut silent = 0;
        let cut = Fault::at(scale.copy / 3, |rig| {
            silent = cut_serving(rig)?;
            Ok(())
        });
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let outcome = copy.run(&mut rig, vec![cut])?;
        ensure!(outcome.stall < STALL, "the copy stood still for {:?}", outcome.stall);
        ensure!(rig.metric("fences_total{result=\"ok\"}")? == before + 1.0, "the fence did not run once");
        report.stalls_ms.push(outcome.stall.as_millis());

        let node = rig.nodes.get_mut(silent).context("no such node")?;
        ensure!(node.pids().is_empty(), "the fence left processes alive");
        node.kill();
        rig.net.set_link(&node.name, true)?;
        let up = format!("node_up{{node=\"{}\"}}", node.name);
        rig.restart(silent)?;
        rig.await_metric(&up, 1.0)?;
        let now = sha256(&rig.data().join(FILE))?;
        ensure!(now == outcome.sha256, "the bytes changed once the silent node's cable was mended");
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    ensure!(rig.metric("takeovers_total{cause=\"silence\",result=\"ok\"}")? == 2.0, "not two takeovers");
    Ok(report)
}

fn fence_fails(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(
        "[fence]\nexec = [\"/bin/sh\", \"-c\", \"test -e {fence}.ok && exec {fence} {name}\"]\n",
    ))?;
    rig.expect_error("the fence failed");
    rig.expect_error("the serving node is silent");
    let copy = Copy::start(&rig, &Who::SIGNED, Way::Put, FILE, scale.copy)?;
    let allow = rig.dir.path().join("fence.ok");
    let cut = Fault::at(scale.copy / 3, |rig| {
        cut_serving(rig)?;
        rig.await_metric("fences_total{result=\"failed\"}", 2.0)?;
        ensure!(takeovers(rig)? == 0.0, "taken over without a fence");
        std::fs::write(&allow, "").context("allowing the fence")
    });
    copy.run(&mut rig, vec![cut])?;
    ensure!(
        rig.has_logged("the fence has failed; it is tried again"),
        "the log does not say what is waited for"
    );
    ensure!(rig.metric("takeovers_total{cause=\"silence\",result=\"ok\"}")? == 1.0, "not one takeover");
    Ok(Report::default())
}

fn unfenced(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site("takeover_deadline = \"3s\"\n"))?;
    rig.expect_error("the serving node is silent");
    for (way, ended) in [(Way::Get, 1.0), (Way::Put, 2.0)] {
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let mut silent = 0;
        let cut = Fault::at(scale.copy / 3, |rig| {
            silent = cut_serving(rig)?;
            Ok(())
        });
        let error = copy.run(&mut rig, vec![cut]).err().context("the copy ended well")?;
        ensure!(gave_up(&error), "{error:#}");
        let closed = rig.metric("client_closed_total{reason=\"deadline\"}")?;
        ensure!(closed == ended, "{closed} clients were disconnected at the deadline, not {ended}");
        ensure!(
            rig.has_logged("clients wait: no fence is configured, and unfenced_silence is false"),
            "the log does not say why clients wait"
        );
        ensure!(
            rig.has_logged("no node could serve within takeover_deadline"),
            "the log does not say why it ended"
        );
        mend(&rig, silent)?;
    }
    ensure!(takeovers(&rig)? == 0.0, "taken over without a fence");
    Ok(Report::default())
}

fn ends(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    rig.expect_error("the serving node is silent");
    let mut report = Report::default();
    for way in [Way::Get, Way::Put] {
        let before = rig.metric("connections_total")?;
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let cut = Fault::at(scale.copy / 3, |rig| {
            let known = silences(rig);
            let silent = cut_serving(rig)?;
            crate::rig::wait_until("the node is called silent", Duration::from_secs(30), || {
                silences(rig) > known
            })?;
            mend(rig, silent)
        });
        let outcome = copy.run(&mut rig, vec![cut])?;
        ensure!(rig.metric("connections_total")? == before + 1.0, "the client connected more than once");
        report.stalls_ms.push(outcome.stall.as_millis());
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    ensure!(takeovers(&rig)? == 0.0, "taken over without a fence");
    ensure!(rig.has_logged("the silent node answers again"), "the log does not say that the node is back");
    Ok(report)
}

/// Cuts the cable of the node that serves.
fn cut_serving(rig: &Rig) -> Result<usize> {
    let serving = rig.serving()?;
    rig.net.set_link(&rig.nodes.get(serving).context("no such node")?.name, false)?;
    Ok(serving)
}

/// Mends its cable and waits until it serves again.
fn mend(rig: &Rig, node: usize) -> Result<()> {
    let name = &rig.nodes.get(node).context("no such node")?.name;
    rig.net.set_link(name, true)?;
    rig.await_metric(&format!("node_up{{node=\"{name}\"}}"), 1.0)
}

/// How often the log called the serving node silent.
fn silences(rig: &Rig) -> usize {
    rig.proxy.log_text().matches("the serving node is silent").count()
}

/// Takeovers of any cause that went well.
fn takeovers(rig: &Rig) -> Result<f64> {
    let metrics = rig.proxy.metrics(&rig.net)?;
    let went_well =
        |name: &str| name.starts_with("understudy_takeovers_total") && name.contains("result=\"ok\"");
    Ok(metrics.iter().filter(|(name, _)| went_well(name)).map(|(_, count)| count).sum())
}
