//! What must hold after every step, whatever is under way.

use std::collections::BTreeMap;

use super::{World, legs::ToLink};
use crate::{node::ConnId, oracle::Violation};

/// The last WRITE that a connection has executed on each block.
pub(super) type Order = BTreeMap<(ConnId, u64, usize), u64>;

impl World {
    /// Called after every step.
    pub(super) fn check(&mut self) {
        let wrong = (0..self.pairs.len())
            .find_map(|at| self.check_records(at).and_then(|()| self.check_beliefs(at)).err());
        if let Some(violation) = wrong {
            self.fail(violation);
        }
    }

    /// A client has no Open of which nothing is recorded (invariant 1, as far as it applies).
    fn check_records(&self, at: usize) -> Result<(), Violation> {
        let pair = &self.pairs[at];
        let settled = pair.client.alive && pair.closed.is_none() && pair.has_heard_all();
        if !settled || pair.client.is_opaque() {
            return Ok(());
        }
        for number in pair.client.open_files() {
            let held = pair.client.open_files().filter(|other| *other == number).count();
            if held > pair.tokens.values().filter(|other| **other == number).count() {
                let text = format!("client {} has file {number} open, and nobody has recorded that", at + 1);
                return Err(Violation::new("open not recorded", text));
            }
        }
        Ok(())
    }

    /// Whether a client has heard all that its node has said. Behind the answer to an acknowledgement more may be told; until
    /// then others are kept out.
    pub(super) fn has_heard_all(&self, at: usize) -> bool {
        let quiet = self.is_attached(at) && !self.pairs[at].client.is_acknowledging();
        quiet && self.main_wire(at).is_some_and(|wire| wire.to_link.is_empty())
    }

    /// A client that has heard everything believes no more than its node has granted (invariant 7).
    fn check_beliefs(&self, at: usize) -> Result<(), Violation> {
        if !self.has_heard_all(at) {
            return Ok(());
        }
        if self.pairs[at].client.believes_stale_names(self.oracle.names) {
            let text = format!("client {} caches a directory that has changed since", at + 1);
            return Err(Violation::new("stale names", text));
        }
        for (number, text) in self.beyond(at) {
            if !self.is_held(at, number) {
                return Err(Violation::new("more than granted", text));
            }
        }
        Ok(())
    }

    /// Whether its Link holds a file for a client: nobody else may come near it.
    pub(super) fn is_held(&self, at: usize, number: u64) -> bool {
        let pair = &self.pairs[at];
        pair.held.iter().any(|open| pair.tokens.get(open) == Some(&number))
    }

    /// The files of which a client believes more than its node has granted, and how much. Others must be kept out of them.
    pub(super) fn beyond(&self, at: usize) -> impl Iterator<Item = (u64, String)> {
        let wire = self.main_wire(at);
        let beliefs = wire
            .into_iter()
            .flat_map(move |wire| self.pairs[at].client.beliefs().map(move |belief| (belief, wire)));
        beliefs.filter_map(move |((held, oplock, state), wire)| {
            let granted = self.nodes[wire.node].granted(wire.conn, held.number);
            let text = || {
                format!(
                    "client {} believes oplock {oplock}, lease {state:x} on file {}; granted: {granted:x?}",
                    at + 1,
                    held.number
                )
            };
            (oplock > granted.0 || state & !granted.1 != 0).then(|| (held.number, text()))
        })
    }

    /// What one client writes to a block is written in its order, also when it is sent again (invariant 8).
    pub(super) fn check_order(
        &mut self,
        conn: ConnId,
        number: u64,
        block: usize,
        tag: u64,
    ) -> Result<(), Violation> {
        // A node that takes its time with some has an order of its own.
        if self.setup.slow_every != 0 || !self.oracle.is_ordered(tag) {
            return Ok(());
        }
        match self.order.insert((conn, number, block), tag) {
            Some(before) if before > tag => {
                let text = format!("#{tag} was written to file {number}, block {block}, after #{before}");
                Err(Violation::new("order of writes", text))
            }
            _ => Ok(()),
        }
    }

    /// Somebody between node and proxy changes the next frame of the node. Only where that can be noticed.
    pub(super) fn tamper(&mut self, at: usize) -> bool {
        let Some(pair) = self.pairs.get_mut(at) else { return false };
        if !matches!(pair.link.mode(), "takeover" | "bridge") {
            return false;
        }
        let Some(wire) = pair.main.and_then(|leg| pair.wires.get_mut(&leg)) else { return false };
        let Some(ToLink::Frame(frame, _)) = wire.to_link.front_mut() else { return false };
        crate::cover::tamper(frame)
    }
}
