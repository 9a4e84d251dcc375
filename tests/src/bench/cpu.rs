//! What a process has cost.

use std::fs;

use anyhow::{Context, Result};

/// User and system time of a process and all its threads, in seconds: fields 14 and 15 of /proc/PID/stat (proc(5)).
pub(crate) fn seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, field 2, is in parentheses and may hold spaces.
    let (_, behind) = text.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks: Vec<u64> =
        behind.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}
