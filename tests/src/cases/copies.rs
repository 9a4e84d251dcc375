//! Copies that outlive their node.

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Outcome, Way, Who},
};

/// What is copied.
pub(super) const FILE: &str = "bulk.bin";

const PLAIN: Who = Who { protection: "plain", ..Who::SIGNED };

const fn signed(dialect: &'static str) -> Who {
    Who { dialect, ..Who::SIGNED }
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "crash-3.1.1-signed",
        shows: "get and put as a signed NTLM user survive kill -9 of the serving node",
        soak: 20,
        run: |scale| crash(scale, &Who::SIGNED),
    },
    Case {
        name: "crash-3.1.1-guest",
        shows: "the same as guest",
        soak: 5,
        run: |scale| crash(scale, &Who::GUEST),
    },
    Case {
        name: "crash-3.1.1-unsigned",
        shows: "the same as an NTLM user without signing",
        soak: 5,
        run: |scale| crash(scale, &PLAIN),
    },
    Case {
        name: "crash-3.0.2-signed",
        shows: "the same on SMB 3.0.2",
        soak: 5,
        run: |scale| crash(scale, &signed("SMB3_02")),
    },
    Case {
        name: "crash-3.0-signed",
        shows: "the same on SMB 3.0",
        soak: 5,
        run: |scale| crash(scale, &signed("SMB3_00")),
    },
    Case {
        name: "crash-2.1-signed",
        shows: "the same on SMB 2.1",
        soak: 5,
        run: |scale| crash(scale, &signed("SMB2_10")),
    },
    Case {
        name: "crash-2.0.2-signed",
        shows: "the same on SMB 2.0.2",
        soak: 5,
        run: |scale| crash(scale, &signed("SMB2_02")),
    },
    Case {
        name: "crash-3.1.1-multi-protocol",
        shows: "the same for a client that begins with an SMB1 NEGOTIATE, as Windows does",
        soak: 2,
        run: |scale| crash(scale, &Who { multi_protocol: true, ..Who::SIGNED }),
    },
    Case {
        name: "crash-2.0.2-multi-protocol",
        shows: "the same where the answer to the SMB1 NEGOTIATE settles the dialect",
        soak: 2,
        run: |scale| crash(scale, &Who { multi_protocol: true, ..signed("SMB2_02") }),
    },
];

fn crash(scale: &Scale, who: &Who) -> Result<Report> {
    crash_at(&Site::default(), scale, who)
}

/// A get and a put, and in the midst of each its node is killed.
pub(super) fn crash_at(site: &Site, scale: &Scale, who: &Who) -> Result<Report> {
    survive(&mut Rig::new(site)?, scale, &|rig, way| Copy::start(rig, who, way, FILE, scale.copy))
}

/// The same for any client: `start` begins a copy of [`FILE`].
pub(super) fn survive(
    rig: &mut Rig,
    scale: &Scale,
    start: &dyn Fn(&Rig, Way) -> Result<Copy>,
) -> Result<Report> {
    let mut report = Report::default();
    for way in [Way::Get, Way::Put] {
        let outcome = survive_one(rig, scale, way, start, None).with_context(|| format!("{way:?}"))?;
        report.stalls_ms.push(outcome.stall.as_millis());
    }
    Ok(report)
}

/// A copy whose node is killed, after another fault if there is one. The node is started again.
pub(super) fn survive_one(
    rig: &mut Rig,
    scale: &Scale,
    way: Way,
    start: &dyn Fn(&Rig, Way) -> Result<Copy>,
    first: Option<Fault<'static>>,
) -> Result<Outcome> {
    let before = (connections(rig)?, rig.metric(TAKEN_OVER)?);
    let copy = start(rig, way)?;
    let mut dead = 0;
    let kill = Fault::at(scale.copy / 3, |rig| {
        dead = rig.kill_serving()?;
        Ok(())
    });
    let outcome = copy.run(rig, first.into_iter().chain([kill]).collect())?;
    ensure!(connections(rig)? == before.0 + 1.0, "the client connected more than once");
    ensure!(rig.metric(TAKEN_OVER)? > before.1, "no takeover was counted");
    rig.restart(dead)?;
    std::fs::remove_file(rig.data().join(FILE))?;
    Ok(outcome)
}

pub(super) const TAKEN_OVER: &str = "takeovers_total{cause=\"crash\",result=\"ok\"}";

fn connections(rig: &Rig) -> Result<f64> {
    rig.metric("connections_total")
}
