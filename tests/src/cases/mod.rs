//! The cases: each builds its own site, and shows one thing.

mod copies;

use std::time::Instant;

use anyhow::Result;

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) shows: &'static str,
    /// How often `soak` runs it.
    pub(crate) soak: u32,
    pub(crate) run: fn(&Scale) -> Result<Report>,
}

/// How large a case is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Bytes of a copy.
    pub(crate) copy: u64,
}

/// What a case has to tell besides that it passed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) stall_ms: Option<u128>,
    pub(crate) notes: Vec<String>,
}

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    copies::CASES.to_vec()
}

/// Runs one case and tells of it. True if it passed.
pub(crate) fn run(case: &Case, scale: &Scale) -> (bool, Report) {
    let start = Instant::now();
    let result = (case.run)(scale);
    let took = start.elapsed().as_secs_f64();
    match result {
        Ok(report) => {
            let stall = report.stall_ms.map(|ms| format!(", stall {ms} ms")).unwrap_or_default();
            println!("ok      {} ({took:.1} s{stall})", case.name);
            for note in &report.notes {
                println!("        {note}");
            }
            (true, report)
        }
        Err(error) => {
            println!("FAILED  {} ({took:.1} s): {error:#}", case.name);
            (false, Report::default())
        }
    }
}
