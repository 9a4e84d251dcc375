//! The node dies amid READs and WRITEs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Report, Scale, Stage,
    acts::{read, write},
    end, get_in_the_way,
    held::{Held, LEVEL_II, Purpose},
    party::{Clients, Party, Pending, await_bytes},
};
use crate::rig::{Rig, net::FLOATING, wait_until};

/// READs and WRITEs a file.
const ROUNDS: u64 = 12;
/// Bytes of each.
const BLOCK: usize = 512;
/// Where the first client writes to, and reads from.
const WRITTEN: u64 = 8_192;
/// See [`WRITTEN`].
const UNTOUCHED: u64 = 32_768;

pub(super) fn busy(_: &Scale) -> Result<Report> {
    let rest = |rig: &Rig, clients: &mut Clients, party: &mut Party, work: Work| {
        work.finish(rig, clients, party)?;
        party.go_on(clients)?;
        get_in_the_way(clients, party)?;
        end(clients, party)
    };
    let mut stage = Stage::new(|rig, clients, party| {
        party.hold(rig, clients, "unharmed")?;
        let work = Work::begin(clients, party)?;
        rest(rig, clients, party, work)
    })?;
    let (rig, clients) = (&mut stage.rig, &mut stage.clients);
    let mut party = Party::meet(clients, FLOATING, "busy", Some(&stage.unharmed))?;
    party.hold(rig, clients, "busy")?;
    let work = Work::begin(clients, &party)?;
    let seen = party.held.iter().find(|held| writes(held)).context("nobody writes")?;
    let seen = rig.data().join(&seen.name);
    wait_until("some of it is written", Duration::from_secs(20), || {
        std::fs::read(&seen).is_ok_and(|bytes| bytes.get(at(WRITTEN, 1)) == Some(&1))
    })?;
    let dead = rig.serving()?;
    let node = rig.nodes.get(dead).context("no such node")?;
    node.freeze(true);
    await_bytes(rig, &node.name)?;
    rig.kill_serving()?;
    rest(rig, clients, &mut party, work)?;
    Stage::taken_over(rig, 1)?;
    party.compare(&stage.unharmed)?;
    Ok(Report::default())
}

/// READs and WRITEs in flight.
struct Work {
    reads: Vec<Pending>,
    writes: Vec<Pending>,
}

/// A WRITE by its own handle breaks an oplock of level II.
fn writes(held: &Held) -> bool {
    held.purpose == Purpose::Opened && held.kind.oplock != LEVEL_II
}

fn at(base: u64, round: u64) -> usize {
    usize::try_from(base + round * 512).unwrap_or_default()
}

impl Work {
    fn begin(clients: &mut Clients, party: &Party) -> Result<Self> {
        let mut work = Self { reads: Vec::new(), writes: Vec::new() };
        for round in 0..ROUNDS {
            let byte = u8::try_from(round)?;
            work.writes.push(party.begin_first(clients, writes, |held| {
                write(&held.id, WRITTEN + round * 512, &[byte; BLOCK])
            })?);
            let which = |held: &Held| held.purpose == Purpose::Opened;
            work.reads.push(
                party.begin_first(clients, which, |held| read(&held.id, UNTOUCHED + round * 512, 512))?,
            );
        }
        Ok(work)
    }

    /// All of it is answered, once, as if nothing had happened; and it has happened.
    fn finish(self, rig: &Rig, clients: &mut Clients, party: &Party) -> Result<()> {
        for (_, tag) in self.writes.into_iter().flatten() {
            let said = clients.first.wait(tag)?;
            ensure!(said["status"] == 0, "a WRITE in flight: {said}");
        }
        for (_, tag) in self.reads.into_iter().flatten() {
            let said = clients.first.wait(tag)?;
            ensure!(said["status"] == 0 && said["data"] == "61".repeat(BLOCK), "a READ in flight: {said}");
        }
        for held in party.held.iter().filter(|held| writes(held)) {
            let bytes = std::fs::read(rig.data().join(&held.name))?;
            for round in 0..ROUNDS {
                let from = at(WRITTEN, round);
                let is_there = bytes
                    .get(from..from + BLOCK)
                    .is_some_and(|block| block.iter().all(|byte| u64::from(*byte) == round));
                ensure!(is_there, "{}: round {round} is not written", held.name);
            }
        }
        Ok(())
    }
}
