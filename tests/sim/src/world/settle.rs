//! The end of a run: everything arrives, and every request has had its answer.

use std::time::Duration;

use super::World;
use crate::{
    oracle::Violation,
    plan::{Act, Hop},
};

const HOPS: [Hop; 7] = [
    Hop::ToClient,
    Hop::FromNode,
    Hop::ToNodeLate,
    Hop::ToNode,
    Hop::ToProxy,
    Hop::FromNodeBeside,
    Hop::ToNodeBeside,
];
/// How long anybody may wait for an answer at the end: the longest deadline, and parking after it.
const PATIENCE: Duration = Duration::from_secs(200);
/// More steps than this without time passing are a loop.
const STEPS: usize = 20_000;

impl World {
    /// Whether something is under way.
    pub(super) fn one_hop(&mut self) -> bool {
        for at in 0..self.pairs.len() {
            for hop in HOPS {
                if self.has(at, hop) && self.hop(at, hop) {
                    self.steps += 1;
                    self.look_at_links();
                    self.check();
                    return true;
                }
            }
        }
        false
    }

    /// Everything under way arrives; decisions are made and heard; breaks are acknowledged, if they are to be. No time passes.
    pub(super) fn settle(&mut self, acknowledges: bool) {
        for _ in 0..STEPS {
            if self.violation.is_some() {
                return;
            }
            if self.one_hop() || self.storage_answers() || self.store_answers() {
                continue;
            }
            if self.has_decision() && self.decide() {
                continue;
            }
            let mut moved = false;
            for at in 0..self.pairs.len() {
                moved |= self.tell_link(at);
                moved |= acknowledges && self.pairs[at].client.has_acks() && self.client_acts(at, &Act::Ack);
            }
            self.look_at_links();
            if !moved {
                return;
            }
        }
        self.fail(Violation::new("endless", "it goes on and on although no time passes"));
    }

    /// The faults end; every client gets its answers, or its connection is closed.
    pub fn finish(&mut self) {
        if self.violation.is_some() {
            return;
        }
        for node in 0..self.nodes.len() {
            self.stopped[node] = false;
        }
        self.end_silence();
        if !self.up.iter().any(|up| *up) {
            self.settle(true);
            self.start_node(0);
        }
        let end = self.now + PATIENCE;
        loop {
            self.settle(true);
            if self.violation.is_some() {
                return;
            }
            // A Link that has to leave its node does so after a while.
            let is_still = self.files.unreclaimed() == 0;
            if is_still && self.pairs.iter().all(|p| !p.client.alive || p.client.waits_for_ever()) {
                break;
            }
            if self.breaks_time_out() {
                continue;
            }
            match self.next_due() {
                Some(due) if due <= end => {
                    self.tick();
                }
                _ => break,
            }
        }
        self.cancel_the_rest();
        self.check_the_end();
    }

    /// Whoever waits for an acknowledgement waits no longer. True if that has moved anything.
    fn breaks_time_out(&mut self) -> bool {
        let mut any = false;
        for pair in &mut self.pairs {
            if pair.client.has_acks() {
                pair.client.be_late();
            }
        }
        for node in 0..self.nodes.len() {
            if self.up[node] && self.nodes[node].is_breaking() {
                any = true;
                let outs = self.nodes[node].time_out(&mut self.disk);
                self.take_outs(outs);
            }
        }
        any
    }

    /// What may wait for ever is cancelled.
    fn cancel_the_rest(&mut self) {
        for _ in 0..200 {
            let mut any = false;
            for at in 0..self.pairs.len() {
                if !self.pairs[at].client.asked.is_empty() {
                    any |= self.client_acts(at, &Act::Cancel);
                }
            }
            self.settle(true);
            if !any || self.violation.is_some() {
                return;
            }
        }
    }

    fn check_the_end(&mut self) {
        for (at, pair) in self.pairs.iter().enumerate() {
            if !pair.client.alive {
                continue;
            }
            if let Some((id, asked)) = pair.client.asked.iter().next() {
                let text = format!(
                    "client {}: {} {id}; its Link is in {}",
                    at + 1,
                    asked.command.name(),
                    pair.link.mode()
                );
                return self.fail(Violation::new("never answered", text));
            }
            if !pair.client.has_credits() {
                return self.fail(Violation::new("credits", format!("client {} has none left", at + 1)));
            }
        }
        if let Err(violation) = self.oracle.check_tallies() {
            return self.fail(violation);
        }
        if self.files.unreclaimed() > 0 && self.pairs.iter().all(|p| p.link.mode() != "takeover") {
            self.fail(Violation::new("barrier for ever", format!("{} Opens", self.files.unreclaimed())));
        }
    }
}
