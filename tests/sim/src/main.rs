//! Runs seeds and scenario files.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use understudy_sim::{coverage::Coverage, run, run::Outcome, scenario, shrink};

#[derive(Parser)]
#[command(about = "The core of Understudy against a model of an SMB server, on virtual time")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs seeds; stops at the first that breaks a rule, and says how.
    Run {
        /// This one alone.
        #[arg(long)]
        seed: Option<u64>,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        runs: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// What the core is known to do wrong fails, too.
        #[arg(long)]
        strict: bool,
        /// Says nothing of what was hit.
        #[arg(long)]
        quiet: bool,
        /// Goes on after a failure, and says of each in a line.
        #[arg(long)]
        keep_going: bool,
    },
    /// Runs a scenario file, and tells its story.
    Play {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    std::panic::set_hook(Box::new(|_| {}));
    match Args::parse().what {
        What::Run { seed: Some(seed), strict, .. } => Ok(report(seed, &run::seed(seed, strict))),
        What::Run { runs, from, strict, quiet, keep_going, .. } => {
            Ok(many(from, runs, (strict, quiet, keep_going)))
        }
        What::Play { file } => {
            let (setup, steps) = scenario::parse(&std::fs::read_to_string(file)?)?;
            let outcome = run::steps(&setup, &steps, true);
            println!("{}", outcome.story.join("\n"));
            Ok(if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

/// What came of one seed: if it failed, the shortest way there.
fn report(seed: u64, outcome: &Outcome) -> ExitCode {
    let Some(violation) = &outcome.violation else {
        println!("seed {seed}: {} steps, no rule broken", outcome.taken);
        return ExitCode::SUCCESS;
    };
    println!("seed {seed} breaks a rule: {violation}\n");
    let (setup, steps) = shrink::shrink(&outcome.setup, &outcome.steps, violation);
    let short = run::steps(&setup, &steps, true);
    println!("Its story:\n{}\n", short.story.join("\n"));
    println!("As a scenario:\n{}", scenario::text(&setup, &steps));
    ExitCode::FAILURE
}

fn many(from: u64, runs: u64, (strict, quiet, keep_going): (bool, bool, bool)) -> ExitCode {
    #[allow(clippy::disallowed_methods, reason = "how fast it is")]
    let start = Instant::now();
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let worker = || {
        let (mut coverage, mut steps, mut failed) = (Coverage::default(), 0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + runs {
                break;
            }
            let outcome = run::seed(seed, strict);
            steps += outcome.taken;
            coverage.add(&outcome.coverage);
            if let Some(violation) = &outcome.violation {
                if keep_going {
                    println!("seed {seed}: {violation}");
                }
                stop.store(!keep_going, Ordering::Relaxed);
                failed.push((seed, outcome));
            }
        }
        (coverage, steps, failed)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    let (mut coverage, mut steps, mut failed) = (Coverage::default(), 0, Vec::new());
    for (part, count, failures) in results {
        coverage.add(&part);
        steps += count;
        failed.extend(failures);
    }
    let took = start.elapsed().as_secs_f64();
    let done = next.load(Ordering::Relaxed).min(from + runs) - from;
    if !quiet {
        print!("{}", coverage.text());
    }
    let (seeds, rate) = (done as f64 / took, steps as f64 / took);
    println!("{done} seeds, {steps} steps in {took:.1} s: {seeds:.0} seeds, {rate:.0} steps a second");
    failed.sort_by_key(|(seed, _)| *seed);
    if let Some((seed, outcome)) = failed.first() {
        println!("{} seeds failed", failed.len());
        return report(*seed, outcome);
    }
    ExitCode::SUCCESS
}
