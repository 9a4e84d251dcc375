//! The benchmark: the same work direct to Samba, through HAProxy and through Understudy, side by side in one run;
//! before that, what it costs to record what clients have open, with each store. It asserts no time; it fails only if the work itself fails.

mod bridge;
mod bulk;
mod cpu;
mod field;
mod primitive;
mod quantity;
mod report;
mod small;
mod stores;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use self::{
    bulk::{Bulk, Work},
    field::{Field, Road},
    report::Report,
};

/// How much is measured, and where the results go.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory for bench.json and bench.txt.
    #[arg(long, default_value = "out/bench")]
    out: PathBuf,
    /// MiB of each copy.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// How often each work is done on each road; the medians count.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Only the work whose name contains this; `stores`: only what it costs to record Opens,
    /// of which `stores-times`, `stores-rates` and `stores-many` are the parts.
    #[arg(long, default_value = "")]
    only: String,
    /// Minutes after which rounds are left out, down to one of each kind of work.
    #[arg(long, default_value_t = 16)]
    minutes: u64,
    /// How many Opens are recorded at once, to see what they take.
    #[arg(long, default_value_t = 100_000)]
    opens: usize,
}

/// How many kinds of work there are: two of small operations, six of copies, four of copies after a takeover.
const WORKS: u32 = 12;

/// Measures everything. The first round of each kind warms up and is not counted. What is there is written after every round, so that a run cut short leaves its rounds.
pub(crate) fn run(options: &Options) -> Result<()> {
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    if stores::is_chosen(&options.only) {
        stores::run(&options.out, &options.only, options.pairs, options.opens).context("stores")?;
    }
    if options.only.starts_with("stores") {
        return Ok(());
    }
    let mut field = Field::new()?;
    let mut report = Report::new(options.mib, options.pairs);
    let bulk = Bulk::prepare(&field.rig, options.mib << 20)?;
    for signed in [false, true] {
        let name = format!("open, read, close {}", if signed { "signed" } else { "unsigned" });
        measure(&mut report, options, &name, |report, pair| {
            for (road, sample) in
                small::round(&field, &turned(pair), signed)?.into_iter().filter(|_| pair > 0)
            {
                report.add(&name, road, sample);
            }
            Ok(())
        })?;
    }
    for work in Work::ALL {
        measure(&mut report, options, &work.to_string(), |report, pair| {
            for road in turned(pair) {
                let sample = bulk.copy(&field, road, work)?;
                if pair > 0 {
                    report.add(&work.to_string(), road, sample);
                }
            }
            Ok(())
        })?;
    }
    for work in Work::protected() {
        let name = work.in_bridge();
        measure(&mut report, options, &name, |report, pair| {
            let samples = [
                (Road::HaProxy, bulk.copy(&field, Road::HaProxy, work)?),
                (Road::Understudy, bridge::copy(&mut field, &bulk, work)?),
            ];
            for (road, sample) in samples.into_iter().filter(|_| pair > 0) {
                report.add(&name, road, sample);
            }
            Ok(())
        })?;
    }
    report.primitives = primitive::measure();
    report.finished = true;
    save(&report, &options.out)?;
    print!("{}{}", report.primitives_text(), report.aims());
    Ok(())
}

/// The rounds of one kind of work, if it is wanted, as long as its share of the time is not used up.
fn measure(
    report: &mut Report,
    options: &Options,
    work: &str,
    mut round: impl FnMut(&mut Report, u32) -> Result<()>,
) -> Result<()> {
    if !work.contains(&options.only) {
        return Ok(());
    }
    let (begun, share) = (Instant::now(), Duration::from_secs(options.minutes * 60) / WORKS);
    for pair in 0..=options.pairs {
        if pair > 1 && begun.elapsed() > share {
            println!("{work}: only {} of {} rounds, for want of time", pair - 1, options.pairs);
            report.complete = false;
            break;
        }
        round(report, pair).with_context(|| work.to_owned())?;
        save(report, &options.out)?;
    }
    println!("{}", report.table_of(work));
    Ok(())
}

/// The roads, beginning with another one each time.
fn turned(pair: u32) -> [Road; Road::ALL.len()] {
    let mut roads = Road::ALL;
    roads.rotate_left(pair as usize % Road::ALL.len());
    roads
}

fn save(report: &Report, out: &Path) -> Result<()> {
    fs::write(out.join("bench.json"), serde_json::to_string_pretty(&report.json())?)?;
    fs::write(out.join("bench.txt"), report.text())?;
    Ok(())
}
