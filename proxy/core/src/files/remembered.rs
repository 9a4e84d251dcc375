//! Names to which something has happened lately, as many as there is room for.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use super::FileKey;
use crate::link::birth::Birth;

/// How many names are remembered.
pub(super) const REMEMBERED: usize = 65_536;

/// What happened to a name.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) key: FileKey,
    /// When the file was created that has, or had, the name.
    pub(super) birth: Birth,
    pub(super) at: Instant,
}

/// Names to which one kind of thing has happened.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// By the last component of the name, for one directory may be in two shares. Of each the oldest first.
    by_leaf: HashMap<Box<str>, VecDeque<Record>>,
    /// The oldest first.
    order: VecDeque<(Instant, FileKey)>,
    /// The latest of those that were forgotten.
    forgotten: Option<Instant>,
}

impl Remembered {
    pub(super) fn insert(&mut self, key: FileKey, birth: Birth, at: Instant) {
        let record = Record { key: key.clone(), birth, at };
        self.by_leaf.entry(leaf(&key).into()).or_default().push_back(record);
        self.order.push_back((at, key));
        while self.order.len() > REMEMBERED {
            let Some((at, key)) = self.order.pop_front() else { return };
            self.forgotten = self.forgotten.max(Some(at));
            self.take(&key, |record| record.at == at);
        }
    }

    /// All of them, in no order.
    pub(super) fn into_records(self) -> impl Iterator<Item = Record> {
        self.by_leaf.into_values().flatten()
    }

    /// What is known of names that end alike.
    pub(super) fn alike(&self, key: &FileKey) -> impl Iterator<Item = &Record> {
        self.by_leaf.get(leaf(key)).into_iter().flatten()
    }

    /// Whether there may have been more since then.
    pub(super) fn has_forgotten(&self, since: Instant) -> bool {
        self.forgotten.is_some_and(|at| at >= since)
    }

    /// Forgets the oldest of a name's records that is meant. Its place in the order stays, and is of no more use.
    pub(super) fn take(&mut self, key: &FileKey, meant: impl Fn(&Record) -> bool) {
        let Some(records) = self.by_leaf.get_mut(leaf(key)) else { return };
        if let Some(at) = records.iter().position(|record| record.key == *key && meant(record)) {
            records.remove(at);
        }
        if records.is_empty() {
            self.by_leaf.remove(leaf(key));
        }
    }
}

pub(super) fn leaf(key: &FileKey) -> &str {
    key.0.rsplit('\\').next().unwrap_or_default()
}
