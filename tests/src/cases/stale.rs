//! A node that was only stopped, and goes on where it stood: what it still had to do must not be done any more.
//!
//! Every way of fencing goes through the same trial; a further one is a further [`Hook`].

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

use super::{Case, Report};
use crate::{
    client::{Client, DELETE_ON_CLOSE, FILE_CREATE, File, Open, Setup, User, written},
    rig::{Rig, Site, net::FLOATING, wait_until},
};

/// As much as a stopped process's socket surely takes.
const BLOCK: usize = 2_048;
const BLOCKS: usize = 64;
const OLD: u8 = 0x0f;
const NEW: u8 = 0xf0;

/// A way to see to it that a silent node does nothing any more.
struct Hook {
    /// For understudy.toml.
    config: &'static str,
    /// Whether it does see to it.
    fences: bool,
}

const EXEC: Hook = Hook { config: "[fence]\nexec = [\"{fence}\", \"{name}\"]\n", fences: true };
const NONE: Hook = Hook { config: "[fence]\nunfenced_silence = true\n", fences: false };

pub(super) const CASES: &[Case] = &[
    Case {
        name: "stale-writes-fenced",
        shows: "stopped in mid-write, left, and woken: with a fence no stale write and no late delete-on-close lands",
        soak: 5,
        run: |_| trial(&EXEC),
    },
    Case {
        name: "stale-writes-unfenced",
        shows: "the same without a fence: what lands is told, and the dirty node is not chosen again",
        soak: 5,
        run: |_| trial(&NONE),
    },
];

/// What a client has open on the node that is stopped.
struct Work {
    client: Client,
    written: File,
    doomed: File,
}

fn trial(hook: &Hook) -> Result<Report> {
    let mut rig = Rig::new(&Site { config: hook.config.into(), ..Site::default() })?;
    let silent = rig.serving()?;
    let before = processes(&rig, silent)?;
    let mut work = begin(&rig)?;
    let serves_us: BTreeSet<_> = processes(&rig, silent)?.difference(&before).copied().collect();
    ensure!(!serves_us.is_empty(), "no process of the node serves the client");

    let half = BLOCKS / 2;
    write_blocks(&mut work, 0..half, OLD)?;
    rig.nodes.get(silent).context("no such node")?.freeze(true);
    let waiting = send_blocks(&mut work, half..BLOCKS, OLD)?;
    for id in waiting {
        written(work.client.wait(id)?, BLOCK).context("a write in flight")?;
    }
    ensure!(rig.serving()? != silent, "the silent node still serves");
    write_blocks(&mut work, 0..BLOCKS, NEW)?;
    work.client.flush(work.written)?;

    rig.nodes.get(silent).context("no such node")?.freeze(false);
    wait_until("the woken processes have ended", Duration::from_secs(60), || {
        processes(&rig, silent).is_ok_and(|now| now.is_disjoint(&serves_us))
    })?;
    let stale = fs::read(rig.data().join("stale.bin"))?.chunks(BLOCK).filter(|b| b.contains(&OLD)).count();
    let deleted = !rig.data().join("doomed.bin").exists();
    let note = format!("{stale} of {BLOCKS} blocks stale, late delete-on-close: {deleted}");
    if hook.fences {
        ensure!(stale == 0 && !deleted, "the fence did not hold: {note}");
        finish(&rig, work)?;
    } else {
        shunned(&mut rig, silent, work)?;
    }
    Ok(Report { notes: vec![note], ..Report::default() })
}

fn processes(rig: &Rig, node: usize) -> Result<BTreeSet<i32>> {
    let node = rig.nodes.get(node).context("no such node")?;
    Ok(node.pids().into_iter().map(Pid::as_raw_nonzero).map(Into::into).collect())
}

fn begin(rig: &Rig) -> Result<Work> {
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let new = |name| Open { disposition: FILE_CREATE, ..Open::of(name) };
    let written = client.open(at, &new("stale.bin"))?;
    let doomed = client.open(at, &Open { options: DELETE_ON_CLOSE, ..new("doomed.bin") })?;
    client.write(doomed, 0, b"not before its handle is closed")?;
    Ok(Work { client, written, doomed })
}

fn send_blocks(work: &mut Work, blocks: std::ops::Range<usize>, value: u8) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for block in blocks {
        let offset = u64::try_from(block * BLOCK)?;
        ids.push(work.client.send_write(work.written, offset, &[value; BLOCK])?);
    }
    Ok(ids)
}

fn write_blocks(work: &mut Work, blocks: std::ops::Range<usize>, value: u8) -> Result<()> {
    for id in send_blocks(work, blocks, value)? {
        written(work.client.wait(id)?, BLOCK)?;
    }
    Ok(())
}

/// Delete-on-close is still to come: when the client closes its handle, not before.
fn finish(rig: &Rig, mut work: Work) -> Result<()> {
    work.client.close(work.doomed).context("closing the file to be deleted")?;
    ensure!(!rig.data().join("doomed.bin").exists(), "delete-on-close got lost in the takeover");
    work.client.close(work.written)
}

/// A node that was left without a fence serves nobody, not even if it is the only one.
fn shunned(rig: &mut Rig, dirty: usize, mut work: Work) -> Result<()> {
    let name = rig.nodes.get(dirty).context("no such node")?.name.clone();
    let gauge = |what: &str| format!("{what}{{node=\"{name}\"}}");
    ensure!(rig.metric(&gauge("node_dirty"))? == 1.0, "the node is not marked dirty");
    rig.await_metric(&gauge("node_up"), 1.0).context("the woken node answers again")?;
    let killed = rig.kill_serving()?;
    rig.await_log("no node can serve")?;
    ensure!(rig.metric(&gauge("node_active"))? == 0.0, "the dirty node serves again");
    rig.restart(killed)?;
    work.client.write(work.written, 0, &[NEW; BLOCK]).context("writing once a clean node is back")?;
    ensure!(rig.metric(&gauge("node_active"))? == 0.0, "the dirty node serves again");
    Ok(())
}
