//! Each case as often as its claim needs. Results are kept as JSON lines, one file a case, so that a run that was cut
//! off goes on where it stopped: runs of the same proxy binary count, others do not.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    cases::{self, Case, Scale},
    rig::{copy::sha256, proxy},
};

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Part of the names to run.
    pub(crate) filter: &'a str,
    /// Instead of each case's own count.
    pub(crate) runs: Option<u32>,
    /// Where results are kept.
    pub(crate) out: &'a Path,
    pub(crate) scale: Scale,
}

/// Runs what is not done yet, and tells of all. An error if a run failed.
pub(crate) fn run(plan: &Plan<'_>) -> Result<()> {
    fs::create_dir_all(plan.out).with_context(|| plan.out.display().to_string())?;
    let build = sha256(&proxy::binary()?)?;
    let build = build.get(..16).unwrap_or(&build);
    let mut failed = 0;
    let mut lines = Vec::new();
    for case in cases::all().iter().filter(|c| c.name.contains(plan.filter) && c.soak > 0) {
        let ledger = Ledger { path: plan.out.join(format!("{}.jsonl", case.name)), build };
        let wanted = plan.runs.unwrap_or(case.soak);
        soak(case, wanted, &plan.scale, &ledger)?;
        let done = ledger.read()?;
        let bad = done.iter().filter(|r| r["ok"] != true).count();
        failed += bad;
        lines.push(summary(case, &done));
    }
    println!("\n{:<28} {:>9} {:>12} {:>12}", "case", "passed", "stall median", "stall max");
    lines.iter().for_each(|line| println!("{line}"));
    if lines.is_empty() {
        bail!("no case has `{}` in its name; `list` names them", plan.filter);
    }
    if failed > 0 {
        bail!("{failed} runs failed; what they said is in {}", plan.out.display());
    }
    Ok(())
}

fn soak(case: &Case, wanted: u32, scale: &Scale, ledger: &Ledger<'_>) -> Result<()> {
    let done = u32::try_from(ledger.read()?.len())?;
    for run in done..wanted {
        println!("{} {} of {wanted}", case.name, run + 1);
        let result = match cases::run(case, scale) {
            Ok(report) => json!({
                "build": ledger.build, "run": run, "ok": true,
                "stalls_ms": report.stalls_ms, "notes": report.notes,
            }),
            Err(error) => {
                json!({ "build": ledger.build, "run": run, "ok": false, "error": format!("{error:#}") })
            }
        };
        ledger.add(&result)?;
    }
    Ok(())
}

fn summary(case: &Case, done: &[Value]) -> String {
    let passed = done.iter().filter(|r| r["ok"] == true).count();
    let mut stalls: Vec<u64> =
        done.iter().filter_map(|r| r["stalls_ms"].as_array()).flatten().filter_map(Value::as_u64).collect();
    stalls.sort_unstable();
    let ms = |value: Option<&u64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
    let (median, max) = (ms(stalls.get(stalls.len() / 2)), ms(stalls.last()));
    format!("{:<28} {:>9} {median:>12} {max:>12}", case.name, format!("{passed}/{}", done.len()))
}

/// The runs of one case.
#[derive(Debug)]
struct Ledger<'a> {
    path: PathBuf,
    /// Names the proxy binary.
    build: &'a str,
}

impl Ledger<'_> {
    /// The runs of this build.
    fn read(&self) -> Result<Vec<Value>> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&self.path).with_context(|| self.path.display().to_string())?;
        let runs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(runs.filter(|run| run["build"] == self.build).collect())
    }

    fn add(&self, run: &Value) -> Result<()> {
        let mut file: File = OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{run}").with_context(|| self.path.display().to_string())
    }
}
