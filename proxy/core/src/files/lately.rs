//! What answered requests have done to a name lately: which file it was given to, and when an Open of it was closed.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use super::{FileKey, remembered::REMEMBERED};
use crate::link::birth::Birth;

/// When the last Open of a name was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Closed {
    #[default]
    Never,
    At(Instant),
    /// With its client.
    Sometime,
}

/// The file that had a name before another got it, and of which nobody has heard that it was removed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    pub(crate) birth: Birth,
    /// When it was heard of that it has the name.
    pub(crate) from: Instant,
    /// The same of the other.
    pub(crate) until: Instant,
}

#[derive(Debug, Default)]
struct Happened {
    given: Option<(Birth, Instant)>,
    /// The latest last.
    left: Vec<Left>,
    closed: Closed,
    /// The place in the order that counts.
    turn: u64,
}

impl Happened {
    fn leave(&mut self, left: Left) {
        if self.left.len() >= LEFT {
            self.left.remove(0);
        }
        self.left.push(left);
    }
}

/// How many files are remembered that had a name one after the other.
const LEFT: usize = 8;

/// The names to which something has happened, as many as there is room for.
#[derive(Debug, Default)]
pub(super) struct Lately {
    by_name: HashMap<FileKey, Happened>,
    /// The oldest first.
    order: VecDeque<(u64, FileKey)>,
    turn: u64,
    /// The latest of those that were forgotten.
    forgotten: Option<Instant>,
}

impl Lately {
    /// A file has got this name by a request that was asked for at `asked`.
    pub(super) fn given(&mut self, key: &FileKey, birth: Birth, asked: Instant, now: Instant) {
        let happened = self.note(key);
        happened.left.retain(|left| !left.birth.can_be(birth));
        match happened.given {
            // Links are heard in any order: the file that was created earlier had the name earlier.
            Some((has, heard)) if asked < heard && birth.is_surely_not(has) && birth.is_older_than(has) => {
                happened.leave(Left { birth, from: now, until: heard });
            }
            Some((has, _)) if has.is_at(birth) => {}
            Some((was, from)) if !was.can_be(birth) => {
                happened.leave(Left { birth: was, from, until: now });
                happened.given = Some((birth, now));
            }
            _ => happened.given = Some((birth, now)),
        }
        self.forget(now);
    }

    /// That file has not any more.
    pub(super) fn gone(&mut self, key: &FileKey, birth: Birth) {
        if let Some(happened) = self.by_name.get_mut(key) {
            happened.given = happened.given.filter(|(given, _)| !given.can_be(birth));
            happened.left.retain(|left| !left.birth.can_be(birth));
        }
    }

    /// An Open of it was closed; without a time when its client is gone.
    pub(super) fn closed(&mut self, key: &FileKey, now: Option<Instant>) {
        self.note(key).closed = now.map_or(Closed::Sometime, Closed::At);
        if let Some(now) = now {
            self.forget(now);
        }
    }

    fn note(&mut self, key: &FileKey) -> &mut Happened {
        self.turn += 1;
        self.order.push_back((self.turn, key.clone()));
        let happened = self.by_name.entry(key.clone()).or_default();
        happened.turn = self.turn;
        happened
    }

    fn forget(&mut self, now: Instant) {
        while self.order.len() > REMEMBERED {
            let Some((turn, key)) = self.order.pop_front() else { return };
            if self.by_name.get(&key).is_some_and(|happened| happened.turn == turn) {
                self.by_name.remove(&key);
                // It was earlier; later is on the safe side.
                self.forgotten = Some(now);
            }
        }
    }

    /// The file that was given this name last, and when that was heard of; unless it is gone.
    pub(super) fn holder(&self, key: &FileKey) -> Option<(Birth, Instant)> {
        self.by_name.get(key)?.given
    }

    /// The last of the files that had the name before the one that has it, or had it last, and of which nobody was told that they
    /// were removed; but not this one.
    pub(super) fn left(&self, key: &FileKey, but: Option<Birth>) -> Option<Left> {
        let mut left = self.by_name.get(key)?.left.iter().rev();
        left.find(|left| but.is_none_or(|but| !left.birth.can_be(but))).copied()
    }

    /// Whether an Open of it may have been closed since then.
    pub(super) fn may_be_closed_since(&self, key: &FileKey, since: Instant) -> bool {
        match self.by_name.get(key).map(|happened| happened.closed) {
            Some(Closed::At(at)) if at >= since => true,
            Some(Closed::Sometime) => true,
            _ => self.has_forgotten(since),
        }
    }

    /// Whether there may have been more since then.
    pub(super) fn has_forgotten(&self, since: Instant) -> bool {
        self.forgotten.is_some_and(|at| at >= since)
    }
}
