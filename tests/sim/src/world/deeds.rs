//! What a node has executed, held against what every client believes and what the barrier promises.

use super::{PASSING_NAMES, World};
use crate::{
    node::{ConnId, Deed, Had, Mark},
    oracle::Violation,
};

impl World {
    pub(super) fn deed(&mut self, conn: ConnId, mark: &Mark, deed: Deed) {
        match &deed {
            Deed::Made { name } => return self.oracle.made(name),
            Deed::Removed { number, name } => return self.oracle.removed(*number, name),
            Deed::Renamed { number, old, .. } => self.oracle.moved(*number, old),
            _ => {}
        }
        let Some(actor) = self.pairs.iter().position(|p| p.wires.values().any(|w| w.conn == conn)) else {
            return;
        };
        let Some((node, life)) = self.place_of(conn) else { return };
        if self.placement.is_over(node, life) {
            let text = format!("node {} executes {deed:?} for client {}", node + 1, actor + 1);
            return self.fail(Violation::new("after its epoch", text));
        }
        let result =
            self.check_guid(actor, conn).and_then(|()| self.judge(actor, mark, &deed)).and_then(|()| {
                match &deed {
                    Deed::Wrote { number, block, tag } => self.check_order(conn, *number, *block, *tag),
                    _ => Ok(()),
                }
            });
        if let Err(violation) = result {
            self.fail(violation);
        }
    }

    /// Leases are a ClientGuid's, on every node.
    fn check_guid(&self, actor: usize, conn: ConnId) -> Result<(), Violation> {
        let own = self.pairs[actor].client.guid;
        let said = self.nodes.iter().find_map(|node| node.guid(conn));
        if said.is_some_and(|guid| guid != own) {
            let text = format!("client {} goes by another ClientGuid", actor + 1);
            return Err(Violation::new("client guid", text));
        }
        Ok(())
    }

    fn judge(&mut self, actor: usize, mark: &Mark, deed: &Deed) -> Result<(), Violation> {
        match deed {
            Deed::Opened { number, exclusive, name } => {
                if *exclusive && !PASSING_NAMES.contains(&name.as_str()) {
                    self.oracle.done_once(format!("create {name}"))?;
                }
                self.touch(actor, mark, *number, None, false)
            }
            Deed::AskedBack { number, name, oplock, state } => {
                let pair = &self.pairs[actor];
                let now = pair.client.has_now().filter(|_| pair.has_heard_all());
                let Some(most) = now.and_then(|had| at_most(&had, *number, name)) else { return Ok(()) };
                // It may have given back some since it was asked for.
                let then = mark.had.as_ref().and_then(|had| at_most(had, *number, name)).unwrap_or(most);
                let is_had = |(level, lease): (u8, u32)| *oplock <= level && state & !lease == 0;
                if !is_had(most) && !is_had(then) {
                    let text = format!(
                        "oplock {oplock}, lease {state:x} of file {number} for client {}, which has {most:x?}",
                        actor + 1
                    );
                    return Err(Violation::new("more than had", text));
                }
                Ok(())
            }
            Deed::Read { number, block } => self.touch(actor, mark, *number, Some(*block), true),
            Deed::Wrote { number, block, tag } => {
                self.oracle.written(*tag, *number, *block);
                self.touch(actor, mark, *number, Some(*block), true)
            }
            Deed::Appended { number, tag } => {
                self.oracle.done_once(format!("append {tag}"))?;
                self.touch(actor, mark, *number, None, true)
            }
            Deed::Locked { number, block } => self.touch(actor, mark, *number, Some(*block), true),
            Deed::Linked { number, name } => {
                self.oracle.done_once(format!("link {name}"))?;
                self.touch(actor, mark, *number, None, true)
            }
            Deed::Emptied { number, tag } => {
                self.oracle.emptied(*tag, *number)?;
                self.touch(actor, mark, *number, None, true)
            }
            Deed::Made { .. } | Deed::Removed { .. } => Ok(()),
            Deed::Renamed { number, name, .. } => {
                self.oracle.done_once(format!("rename {name}"))?;
                self.touch(actor, mark, *number, None, true)
            }
        }
    }

    /// A request of one client has worked on a file.
    fn touch(
        &self,
        actor: usize,
        mark: &Mark,
        number: u64,
        block: Option<usize>,
        held: bool,
    ) -> Result<(), Violation> {
        if mark.blocked.contains(&number) {
            let text =
                format!("client {} works on file {number}, of which not all Opens are back", actor + 1);
            return Err(Violation::new("barrier", text));
        }
        for (at, other) in self.pairs.iter().enumerate().filter(|(at, _)| *at != actor) {
            // What a node has had since before the other one's connection was lost nobody can hold back any more.
            let is_late = mark.at >= other.lost;
            // An Open that shares the lease or came first is never the other client's.
            if is_late && self.is_served(at) && other.client.believes_write(number) {
                let text = format!(
                    "client {} works on file {number}, which client {} may have changed in its cache",
                    actor + 1,
                    at + 1
                );
                return Err(Violation::new("lease", text));
            }
            if is_late
                && self.is_held(at, number)
                && self.has_heard_all(at)
                && let Some((_, text)) = self.beyond(at).find(|(file, _)| *file == number)
            {
                let text = format!("client {} works on a file that is held: {text}", actor + 1);
                return Err(Violation::new("lease", text));
            }
            let locked = |b: &usize| held && self.is_attached(at) && other.client.believes_lock(number, *b);
            if let Some(block) = block.filter(locked) {
                let text = format!(
                    "client {} works on block {block} of file {number}, locked by client {}",
                    actor + 1,
                    at + 1
                );
                return Err(Violation::new("lock", text));
            }
        }
        Ok(())
    }

    /// Whether a client has all that it believes on the node that serves now, and has heard all that was said.
    pub(super) fn is_attached(&self, at: usize) -> bool {
        let pair = &self.pairs[at];
        self.is_served(at) && pair.has_heard_all() && !pair.client.has_acks()
    }

    /// Whether the node that serves a client knows it. What the client was told, and has not heard or not acknowledged, it
    /// still believes otherwise.
    fn is_served(&self, at: usize) -> bool {
        let pair = &self.pairs[at];
        let leg = pair.main.and_then(|leg| pair.wires.get(&leg));
        pair.client.alive
            && pair.closed.is_none()
            && matches!(pair.link.mode(), "relay" | "bridge")
            && leg.is_some_and(|wire| !wire.over && self.nodes[wire.node].knows(wire.conn))
    }
}

/// The most that a client had of what is asked for by that name, and was found to be that file: oplock level, lease state.
/// Another file may stand under the name by now, which only its answer tells. `None`: it had nothing of the kind.
fn at_most(had: &[Had], number: u64, name: &str) -> Option<(u8, u32)> {
    let mut had = had.iter().filter(|had| had.number == number || had.name == name).peekable();
    had.peek()?;
    Some(had.fold((0, 0), |(oplock, lease), had| (had.oplock.max(oplock), lease | had.lease)))
}
