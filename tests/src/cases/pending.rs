//! Two interim responses for one request make clients drop the connection. Node and proxy both send them; slow storage
//! and an outage make both want to for the same requests.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::{
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Way, Who},
        net::FLOATING,
        node::Settings,
        recorder::Recorder,
        storage::SlowStorage,
        wait_until,
    },
    wire::interims::{self, Interim},
};

const FILE: &str = "bulk.bin";
/// A node sends its interim response after half a millisecond, the proxy after a second.
const DELAY: Duration = Duration::from_millis(1500);
/// Slow storage makes slow copies: none needs to be larger. Of a smaller one too little would be left for slow progress.
const COPY: u64 = 96 << 20;

pub(super) const CASES: &[Case] = &[Case {
    name: "pending-meets-pending",
    shows: "storage so slow that node and proxy both send interim responses around a takeover: never two for one request",
    soak: 50,
    run: pending,
}];

fn pending(_: &Scale) -> Result<Report> {
    let storage = SlowStorage::new()?;
    let samba = Settings { environment: storage.environment(), ..Settings::default() };
    let mut rig = Rig::new(&Site { samba, ..Site::default() })?;
    // On a busy machine the node may stand still for longer than it is given.
    rig.expect_error("the serving node is silent");
    let mut seen = Seen::default();
    for way in [Way::Get, Way::Put] {
        for disaster in [node_first, proxy_first] {
            let recorder = Recorder::of_proxy(&rig)?;
            let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, COPY)?;
            let target = copy.target().to_owned();
            // Early: until the node stands still or is slow, the copy goes on at the speed of memory.
            let fault = Fault::at(COPY / 8, |rig| disaster(rig, &storage, &target));
            copy.run(&mut rig, vec![fault])?;
            seen.take(&interims::read(&recorder.stop()?)?)?;
            for node in 0..rig.nodes.len() {
                if !rig.nodes.get(node).context("no such node")?.is_running() {
                    rig.restart(node)?;
                }
            }
            fs::remove_file(rig.data().join(FILE))?;
        }
    }
    ensure!(rig.metric("connections_total")? == 4.0, "a client connected more than once");
    ensure!(seen.ours > 0, "the proxy sent no interim response: nothing was tried");
    ensure!(seen.passed_on > 0, "no interim response of a node was passed on: nothing was tried");
    ensure!(seen.by_nodes > seen.passed_on, "no interim response of a node was held back: nothing was tried");
    let Seen { ours, passed_on, by_nodes } = seen;
    Ok(Report {
        notes: vec![format!(
            "interim responses: {ours} ours, {by_nodes} of nodes, {passed_on} of them passed on"
        )],
        ..Report::default()
    })
}

/// The node has sent its own interim responses when it dies; the next one is as slow.
fn node_first(rig: &mut Rig, storage: &SlowStorage, target: &Path) -> Result<()> {
    storage.set_delay(DELAY)?;
    // What was answered before the storage became slow arrives first; what comes after it was slow.
    await_slow_progress(target)?;
    rig.kill_serving()?;
    await_slow_progress(target)?;
    storage.set_delay(Duration::ZERO)
}

/// The node dies before it can send any, and the proxy's come; then a node takes over that sends its own.
fn proxy_first(rig: &mut Rig, storage: &SlowStorage, target: &Path) -> Result<()> {
    let serving = rig.serving()?;
    rig.nodes.get(serving).context("no such node")?.freeze(true);
    storage.set_delay(DELAY)?;
    rig.kill_all()?;
    // The outage: long enough for interim responses of the proxy.
    std::thread::sleep(DELAY * 2);
    rig.restart(1 - serving)?;
    await_slow_progress(target)?;
    storage.set_delay(Duration::ZERO)
}

/// Waits until the copy stands still for most of the storage's delay and then goes on.
fn await_slow_progress(target: &Path) -> Result<()> {
    let len = || fs::metadata(target).map_or(0, |m| m.len());
    let (mut last, mut moved) = (len(), std::time::Instant::now());
    wait_until("slow progress", Duration::from_secs(60), || {
        if len() == last {
            return false;
        }
        let stood = moved.elapsed();
        (last, moved) = (len(), std::time::Instant::now());
        stood > DELAY / 2
    })
}

/// Interim responses on the wire.
#[derive(Debug, Default)]
struct Seen {
    ours: usize,
    by_nodes: usize,
    passed_on: usize,
}

impl Seen {
    /// Counts those of one copy. No request of a client may have got two.
    fn take(&mut self, interims: &[Interim]) -> Result<()> {
        let mut per_request = BTreeMap::new();
        for interim in interims {
            if interim.from != FLOATING {
                self.by_nodes += 1;
                continue;
            }
            let count = per_request.entry(interim.message_id).or_insert(0);
            *count += 1;
            ensure!(*count == 1, "request {} got two interim responses", interim.message_id);
            // Samba grants its credits in the interim response, the proxy none.
            if interim.credits == 0 {
                self.ours += 1;
            } else {
                self.passed_on += 1;
            }
        }
        Ok(())
    }
}
