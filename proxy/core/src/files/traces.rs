//! What requests may have done to names of which nobody will know what became: they were in flight when their node was lost, or
//! when their client went; or their client was told so, for the node's answer was not genuine, or came too late.
//!
//! What a node has that was not lost it may still do at any time, until it is.

use std::time::Instant;

use super::{FileKey, remembered::Remembered};
use crate::link::birth::Birth;

/// What may have been done to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It was taken from its file.
    Taken,
    /// Its file was deleted by an Open, by whatever name that was called then.
    Deleted,
    /// It was given to a file.
    Made,
    /// Its file was emptied by a CREATE.
    Emptied,
}

/// The names to which one of these may have been done.
#[derive(Debug, Default)]
struct Trace {
    /// When the node was lost.
    done: Remembered,
    /// It may still be done.
    coming: Remembered,
}

impl Trace {
    fn may_be_since(&self, key: &FileKey, since: Instant) -> bool {
        self.done.has_forgotten(since)
            || self.done.alike(key).any(|done| done.at >= since)
            || self.coming.has_forgotten(since)
            || self.coming.alike(key).next().is_some()
    }
}

/// All such names.
#[derive(Debug, Default)]
pub(super) struct Traces {
    taken: Trace,
    deleted: Trace,
    made: Trace,
    emptied: Trace,
}

impl Traces {
    fn of(&self, deed: Deed) -> &Trace {
        match deed {
            Deed::Taken => &self.taken,
            Deed::Deleted => &self.deleted,
            Deed::Made => &self.made,
            Deed::Emptied => &self.emptied,
        }
    }

    /// A request may have done that. `coming`: the node that has it may still do it.
    pub(super) fn note(&mut self, now: Instant, key: FileKey, deed: Deed, coming: bool) {
        let trace = match deed {
            Deed::Taken => &mut self.taken,
            Deed::Deleted => &mut self.deleted,
            Deed::Made => &mut self.made,
            Deed::Emptied => &mut self.emptied,
        };
        let names = if coming { &mut trace.coming } else { &mut trace.done };
        names.insert(key, Birth::set(0), now);
    }

    /// The node does nothing any more.
    pub(super) fn node_lost(&mut self, now: Instant) {
        for trace in [&mut self.taken, &mut self.deleted, &mut self.made, &mut self.emptied] {
            for name in std::mem::take(&mut trace.coming).into_records() {
                trace.done.insert(name.key, name.birth, now);
            }
        }
    }

    /// Whether that may have been done to a name like this since then.
    pub(super) fn may_be_since(&self, deed: Deed, key: &FileKey, since: Instant) -> bool {
        self.of(deed).may_be_since(key, since)
    }
}
