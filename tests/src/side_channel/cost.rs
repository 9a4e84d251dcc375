//! What a side channel costs the node, and what it says of a stopped process.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Stage, Trial, alone};
use crate::client::At;

pub(super) const TRIALS: &[Trial] =
    &[("processes and memory of the node", memory), ("CPU of the node", cpu), ("stopped process", stopped)];

/// Memory that a process alone has, in KiB (proc(5)).
fn private(pid: Pid) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero()))?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}

fn memory(stage: &Stage<'_>) -> Result<String> {
    const CHANNELS: u64 = 8;
    let setup = stage.setup();
    let mut main = stage.connect(&setup)?;
    let at = main.enter(stage.user, "share")?;
    let file = main.open(at, &alone("cost.bin"))?;
    let pid = stage.node.pid_with(&stage.path("cost.bin")).context("who serves the client?")?;
    let before = (stage.node.pids().len(), private(pid)?);
    let mut sides = Vec::new();
    for _ in 0..CHANNELS {
        let mut side = stage.connect(&setup)?;
        side.bind(&main, at.session, stage.user)?;
        side.flush(file)?;
        sides.push(side);
    }
    std::thread::sleep(Duration::from_millis(200));
    let after = (stage.node.pids().len(), private(pid)?);
    main.close(file)?;
    let more = after.0.saturating_sub(before.0);
    let kib = after.1.saturating_sub(before.1) / CHANNELS;
    Ok(format!("{CHANNELS} channels: {more} processes more, {kib} KiB each"))
}

/// CPU seconds of all processes of the node, and of those that they have waited for: fields 14 to 17 (proc(5)).
fn spent(stage: &Stage<'_>) -> Result<f64> {
    let mut ticks = 0;
    for pid in stage.node.pids() {
        let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { continue };
        let (_, behind) = text.rsplit_once(')').context("no name in /proc/PID/stat")?;
        ticks +=
            behind.split_whitespace().skip(11).take(4).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn cpu(stage: &Stage<'_>) -> Result<String> {
    const TIMES: u32 = 50;
    let setup = stage.setup();
    let mut main = stage.connect(&setup)?;
    let at = main.enter(stage.user, "share")?;
    let begun = spent(stage)?;
    for _ in 0..TIMES {
        let mut side = stage.connect(&setup)?;
        if let Err(error) = side.bind(&main, at.session, stage.user) {
            main.echo(at).context("the client is disturbed by a binding that failed")?;
            return Err(error.context("binding; the client is undisturbed"));
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    let bound = spent(stage)? - begun;
    let begun = spent(stage)?;
    for _ in 0..TIMES {
        stage.stranger().context("another client's login")?;
    }
    std::thread::sleep(Duration::from_millis(200));
    let fresh = spent(stage)? - begun;
    let ms = |seconds: f64| seconds * 1e3 / f64::from(TIMES);
    Ok(format!("{:.1} ms each; a client's own login and tree connect: {:.1} ms", ms(bound), ms(fresh)))
}

/// The one process that serves the client is stopped: the node answers others, the side channel says nothing.
fn stopped(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    pair.main.open(pair.at, &alone("stopped.bin"))?;
    let pid = stage.node.pid_with(&stage.path("stopped.bin")).context("who serves the client?")?;
    kill_process(pid, Signal::STOP)?;
    let begun = Instant::now();
    let probe = stage.connect(&stage.setup());
    let healthy = begun.elapsed();
    let id = pair.side.send(At::default(), smb_parse::header::Command::ECHO, 1, smb_parse::encode::echo)?;
    pair.side.listen(Duration::from_millis(500))?;
    let silent = pair.side.take_ready(id).is_none();
    kill_process(pid, Signal::CONT)?;
    probe?;
    pair.side.wait(id)?.success()?;
    pair.main.echo(pair.at)?;
    ensure!(silent, "a stopped process answers");
    Ok(format!("side channel silent, a new connection answered in {:.0} ms", healthy.as_secs_f64() * 1e3))
}
