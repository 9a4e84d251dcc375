//! The cases: each builds its own site, and shows one thing.

mod caching;
mod containers;
mod containers_ha;
mod copies;
mod differences;
mod enumerations;
mod every_kind;
mod every_open;
mod found;
mod garbage;
mod haproxy;
mod injected;
mod kerberos;
mod kerberos_logins;
mod kernel;
mod kernel_programs;
mod logins;
mod lost_legs;
mod many_opens;
mod messages;
mod names;
mod outages;
mod pending;
mod pipelines;
mod python;
mod refused;
mod renamed;
mod returns;
mod sealed;
mod sealed_messages;
mod sealed_share;
mod secrets;
mod sessions;
mod shutdown;
mod side_channel;
mod silence;
mod stale;
mod tampered;
mod torture;
mod two_links;
mod unprotected;
mod wire;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::rig;

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
    /// The full size of what is not a copy, too: as many clients and files as the claim names.
    pub(crate) soak: bool,
}

/// What a case has to tell besides that it passed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How long each copy stood still.
    pub(crate) stalls_ms: Vec<u128>,
    pub(crate) notes: Vec<String>,
}

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        copies::CASES,
        sealed::CASES,
        sealed_share::CASES,
        sealed_messages::CASES,
        python::CASES,
        kernel::CASES,
        kernel_programs::CASES,
        kerberos::CASES,
        kerberos_logins::CASES,
        messages::CASES,
        sessions::CASES,
        logins::CASES,
        pipelines::CASES,
        two_links::CASES,
        caching::CASES,
        many_opens::CASES,
        every_kind::CASES,
        every_open::CASES,
        names::CASES,
        enumerations::CASES,
        renamed::CASES,
        secrets::CASES,
        unprotected::CASES,
        injected::CASES,
        tampered::CASES,
        refused::CASES,
        stale::CASES,
        wire::CASES,
        silence::CASES,
        side_channel::CASES,
        outages::CASES,
        lost_legs::CASES,
        returns::CASES,
        returns::HA_CASES,
        differences::CASES,
        found::CASES,
        garbage::CASES,
        pending::CASES,
        shutdown::CASES,
        haproxy::CASES,
        containers::CASES,
        containers_ha::CASES,
        torture::CASES,
    ]
    .concat()
}

/// Runs one case and tells of it.
pub(crate) fn run(case: &Case, scale: &Scale) -> Result<Report> {
    let start = Instant::now();
    let result = (case.run)(scale).and_then(without_errors);
    let took = start.elapsed().as_secs_f64();
    match &result {
        Ok(report) => {
            let stalls = report.stalls_ms.iter().map(|ms| format!(", stall {ms} ms")).collect::<String>();
            println!("ok      {} ({took:.1} s{stalls})", case.name);
            report.notes.iter().for_each(|note| println!("        {note}"));
        }
        Err(error) => {
            rig::take_unexpected();
            println!("FAILED  {} ({took:.1} s): {error:#}", case.name);
        }
    }
    result
}

/// A proxy that logs an error which its case did not expect has not passed.
fn without_errors(report: Report) -> Result<Report> {
    let errors = rig::take_unexpected();
    if !errors.is_empty() {
        bail!("the proxy logged errors: {}", errors.join("; "));
    }
    Ok(report)
}
