//! Runs seeds and scenario files.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use understudy_sim::{
    coverage::Coverage, oracle::Violation, required::missing, rules::Belongs, run, run::Outcome, scenario,
    shrink,
};

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
        /// Fails if a row of the replay table or a stage of a takeover was hit fewer times than this.
        #[arg(long)]
        require_coverage: Option<u64>,
        /// Stops only at a rule of this invariant, and fails if there is none; what else is broken is not looked at.
        #[arg(long)]
        invariant: Option<u8>,
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
        What::Run { runs, from, strict, invariant: Some(number), .. } => Ok(hunt(from, runs, strict, number)),
        What::Run { runs, from, strict, quiet, keep_going, require_coverage, .. } => {
            Ok(many(from, runs, (strict, quiet, keep_going), require_coverage))
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

/// Runs seeds on every processor until `each` has seen enough: it gets what came of one, and says whether that was the last.
fn campaign(from: u64, runs: u64, strict: bool, each: impl Fn(u64, Outcome) -> bool + Sync) -> u64 {
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let worker = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + runs {
                break;
            }
            if each(seed, run::seed(seed, strict)) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    next.load(Ordering::Relaxed).min(from + runs) - from
}

/// Looks for a run that breaks an invariant.
fn hunt(from: u64, runs: u64, strict: bool, number: u8) -> ExitCode {
    let found = Mutex::new(None);
    let is_it = |violation: &Violation| violation.belongs() == Belongs::Invariant(number);
    let done = campaign(from, runs, strict, |seed, outcome| {
        let violation = outcome.violation.filter(is_it);
        violation.is_some_and(|violation| {
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, violation));
            true
        })
    });
    match found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((seed, violation)) => {
            println!("seed {seed}: {violation}");
            ExitCode::SUCCESS
        }
        None => {
            println!("{done} seeds, and none breaks invariant {number}");
            ExitCode::FAILURE
        }
    }
}

/// What many seeds have come to.
#[derive(Default)]
struct Totals {
    coverage: Coverage,
    steps: u64,
    failed: Vec<(u64, Outcome)>,
}

fn many(
    from: u64,
    runs: u64,
    (strict, quiet, keep_going): (bool, bool, bool),
    required: Option<u64>,
) -> ExitCode {
    #[allow(clippy::disallowed_methods, reason = "how fast it is")]
    let start = Instant::now();
    let totals = Mutex::new(Totals::default());
    let done = campaign(from, runs, strict, |seed, outcome| {
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.steps += outcome.taken;
        totals.coverage.add(&outcome.coverage);
        let Some(violation) = &outcome.violation else { return false };
        if keep_going {
            println!("seed {seed}: {violation}");
        }
        totals.failed.push((seed, outcome));
        !keep_going
    });
    let took = start.elapsed().as_secs_f64();
    let Totals { coverage, steps, mut failed } = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
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
    let missing = required.map(|least| missing(&coverage, least)).unwrap_or_default();
    for line in &missing {
        println!("not covered: {line}");
    }
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
