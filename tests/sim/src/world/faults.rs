//! What goes wrong, and how time passes.

use std::time::Duration;

use understudy_core::event::LegLoss;

use super::{
    World,
    legs::{Straggler, ToLink, ToNode, Wire},
};

/// How long at most others wait for a client to acknowledge a break, less what the steps meanwhile take, which nobody adds up.
const PATIENCE: Duration = Duration::from_millis(34_999);

impl World {
    /// The node that the Fleet has named.
    pub fn serving_node(&self) -> Option<usize> {
        self.placement.serving()
    }

    /// A node that has crashed.
    pub fn fallen_node(&self) -> Option<usize> {
        self.up.iter().position(|up| !up)
    }

    /// The end of a connection whose node has gone: what was under way to the node is lost, and so are all but the first
    /// answers.
    fn break_wire(wire: &mut Wire, kept: usize, said: bool) {
        wire.to_node.clear();
        wire.dead = true;
        if wire.over {
            return;
        }
        wire.to_link.truncate(kept);
        if said && !wire.given_up {
            wire.to_link.push_back(ToLink::Lost(LegLoss::Closed));
        } else {
            wire.over = wire.given_up;
        }
    }

    pub(super) fn kill(&mut self, node: usize, kept: usize, said: bool) {
        self.up[node] = false;
        let was_silent = std::mem::take(&mut self.stopped[node]);
        for pair in &mut self.pairs {
            for wire in pair.wires.values_mut().filter(|w| w.node == node) {
                let lost = matches!(wire.to_link.back(), Some(ToLink::Lost(_)));
                Self::break_wire(wire, if lost { usize::MAX } else { kept }, said && !lost);
            }
        }
        // That connections were cut it has heard by then.
        for at in 0..self.pairs.len() {
            let late = self.pairs[at].stragglers.iter().filter(|straggler| straggler.node == node);
            let conns: Vec<_> = late.filter(|_| !was_silent).map(|straggler| straggler.conn).collect();
            for conn in conns {
                let outs = self.nodes[node].disconnect(conn, &mut self.disk);
                self.take_outs(outs);
            }
            self.pairs[at].stragglers.retain(|straggler| straggler.node != node);
        }
        // What is deleted with the last close is not, if nobody closes.
        self.nodes[node].crash();
    }

    pub(super) fn crash(&mut self, node: usize, kept: usize) -> bool {
        if !self.up.get(node).copied().unwrap_or(false) {
            return false;
        }
        self.kill(node, kept, true);
        true
    }

    pub(super) fn start_node(&mut self, node: usize) -> bool {
        // The end of a process, or that there is none, is heard of before another one can be started in its place.
        let says = |w: &Wire| w.dead || matches!(w.to_link.back(), Some(ToLink::Lost(_)));
        let unheard = |w: &Wire| w.node == node && says(w) && !w.over && !w.given_up;
        let early = self.pairs.iter().any(|p| p.wires.values().any(unheard));
        if early || self.up.get(node).copied().unwrap_or(true) {
            return false;
        }
        self.up[node] = true;
        self.nodes[node].refused.clear();
        self.note_start(node);
        true
    }

    pub(super) fn stop_node(&mut self, node: usize, stop: bool) -> bool {
        let can = self.up.get(node).copied().unwrap_or(false) && self.stopped[node] != stop;
        if can {
            self.stopped[node] = stop;
        }
        can
    }

    /// A node that is silent is killed; nobody hears of that from its legs. Another one is named at once.
    pub(super) fn cut(&mut self, client: usize, beside: bool, kept: usize) -> bool {
        let Some(pair) = self.pairs.get_mut(client) else { return false };
        let stands = |w: &&mut Wire| {
            w.beside == beside && !w.over && !w.given_up && !matches!(w.to_link.back(), Some(ToLink::Lost(_)))
        };
        let Some(wire) = pair.wires.values_mut().find(stands) else { return false };
        let (node, conn) = (wire.node, wire.conn);
        if self.stopped[node] {
            return false;
        }
        let got = std::mem::take(&mut wire.to_node);
        Self::break_wire(wire, kept, true);
        if beside {
            let outs = self.nodes[node].disconnect(conn, &mut self.disk);
            self.take_outs(outs);
        } else {
            // What the node has got it may still do, later than what comes by the next connection.
            let got = got.into_iter().chain([ToNode::Close]);
            pair.stragglers.extend(got.map(|what| Straggler { node, conn, what }));
        }
        true
    }

    /// Whether a Link has not heard of the last decision.
    pub fn has_news(&self, at: usize) -> bool {
        let generation = self.placement.assignment.map_or(0, |(a, _)| a.generation);
        self.pairs.get(at).is_some_and(|p| p.closed.is_none() && p.told < generation)
    }

    pub(super) fn tell_link(&mut self, at: usize) -> bool {
        if !self.has_news(at) {
            return false;
        }
        let Some((assignment, cause)) = self.placement.assignment else { return false };
        let pair = &mut self.pairs[at];
        pair.told = assignment.generation;
        let before = pair.link.mode();
        let node = pair.main.and_then(|leg| pair.wires.get(&leg)).map(|w| w.node);
        pair.link.handle_assignment(self.now, assignment, cause);
        if before != "takeover" && self.pairs[at].link.mode() == "takeover" {
            self.lose_in_flight(at);
        }
        if let Some(node) = node {
            self.note_relay(at, before, node);
        }
        self.drain(at);
        true
    }

    pub(super) fn storage_answers(&mut self) -> bool {
        let mut any = false;
        for node in 0..self.nodes.len() {
            if self.up[node] && !self.stopped[node] && self.nodes[node].is_slow() {
                any = true;
                let outs = self.nodes[node].poke(&mut self.disk);
                self.take_outs(outs);
            }
        }
        any
    }

    pub(super) fn wait(&mut self, time: Duration) -> bool {
        self.now += time;
        self.disk.now += u64::try_from(time.as_nanos() / 100).unwrap_or(0);
        for pair in &mut self.pairs {
            let waits = pair.client.has_acks() || !pair.has_heard_all();
            pair.owes = if waits { pair.owes + time } else { Duration::ZERO };
            if pair.owes >= PATIENCE {
                pair.client.be_late();
                pair.late = pair.before_a_break(self.now - PATIENCE);
            }
        }
        self.fleet_timers();
        for at in 0..self.pairs.len() {
            let mut turns = 0;
            while self.pairs[at].closed.is_none()
                && self.pairs[at].link.poll_timeout().is_some_and(|(due, _)| due <= self.now)
                && turns < 50
            {
                turns += 1;
                let pair = &mut self.pairs[at];
                let before = pair.link.mode();
                let node = pair.main.and_then(|leg| pair.wires.get(&leg)).map(|w| w.node);
                pair.link.handle_timeout(self.now);
                if let Some(node) = node {
                    self.note_relay(at, before, node);
                }
                self.drain(at);
            }
            if turns == 50 {
                let what = self.pairs[at].link.poll_timeout().map_or("", |(_, why)| why);
                self.fail(crate::oracle::Violation::new("busy timer", what));
            }
        }
        true
    }

    /// The next timer of any Link or of the Fleet.
    pub(super) fn next_due(&self) -> Option<std::time::Instant> {
        let open = self.pairs.iter().filter(|p| p.closed.is_none());
        open.filter_map(|p| p.link.poll_timeout().map(|(at, _)| at)).chain(self.placement.next_due()).min()
    }

    pub(super) fn tick(&mut self) -> bool {
        let Some(due) = self.next_due() else { return false };
        let time = due.saturating_duration_since(self.now);
        self.wait(time)
    }
}
