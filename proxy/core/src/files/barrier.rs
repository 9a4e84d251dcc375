//! A file's barrier: how many of its Opens are not back.

use super::{Entry, FileKey, Files};
use crate::ids::{LinkId, OpenToken};

/// What an Open wants until it is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    Nothing,
    Reclaim,
    /// Only its delete-on-close flag.
    Flag,
}

impl Entry {
    pub(super) fn wants(&self) -> Wants {
        match (self.reclaimed, self.unflagged) {
            (true, _) => Wants::Nothing,
            (false, true) => Wants::Flag,
            (false, false) => Wants::Reclaim,
        }
    }
}

/// How many Opens are not back.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Barrier {
    pub(super) unreclaimed: u32,
    /// Of those: how many only want their delete-on-close flag.
    pub(super) unflagged: u32,
}

impl Barrier {
    pub(super) fn raise(&mut self, wants: Wants) {
        self.unreclaimed += 1;
        self.unflagged += u32::from(wants == Wants::Flag);
    }

    /// Whether nobody is waited for any more, but for flags.
    pub(super) fn lift(&mut self, wanted: Wants) -> bool {
        self.unreclaimed -= 1;
        self.unflagged -= u32::from(wanted == Wants::Flag);
        self.unreclaimed == self.unflagged
    }
}

impl Files {
    /// Whether a request on the file of this name must wait.
    pub fn is_blocked(&self, key: &FileKey) -> bool {
        self.unreclaimed > 0 && self.files.get(key).is_some_and(|file| file.barrier.unreclaimed > 0)
    }

    /// The same by an Open, whatever its file is called by now, and by whatever other name it is open.
    pub fn is_open_blocked(&self, link: LinkId, open: OpenToken) -> bool {
        let blocked = |entry: &Entry| {
            self.is_blocked(&entry.name.key)
                || entry.file.number.is_some_and(|number| self.numbers.contains_key(&number))
        };
        self.unreclaimed > 0 && self.entry(link, open).is_some_and(blocked)
    }

    /// Whether the delete-on-close flag of an Open may be set: all Opens of its file are back, of whatever Link. The file
    /// admits no further one afterwards.
    pub(crate) fn may_flag(&self, link: LinkId, open: OpenToken) -> bool {
        let Some(entry) = self.entry(link, open) else { return true };
        let by_name = self.files.get(&entry.name.key).map(|file| file.barrier);
        let by_number = entry.file.number.and_then(|number| self.numbers.get(&number).copied());
        let barriers = [by_name, by_number];
        barriers.into_iter().flatten().all(|barrier| barrier.unreclaimed == barrier.unflagged)
    }

    /// Whether requests that open files or change names must wait.
    pub fn is_opening_blocked(&self) -> bool {
        self.unreclaimed > 0
    }

    pub(super) fn mark_lost(&mut self, link: LinkId) {
        let Some(opens) = self.links.get_mut(&link) else { return };
        let mut lost = Vec::new();
        for entry in opens.values_mut().filter(|entry| entry.reclaimed || entry.unflagged) {
            let was = entry.wants();
            (entry.reclaimed, entry.unflagged) = (false, false);
            lost.push((entry.name.key.clone(), entry.file.number, was));
        }
        for (key, number, was) in lost {
            self.raise(&key, number, Wants::Reclaim);
            self.lift(&key, number, was);
        }
    }

    pub(super) fn mark_unflagged(&mut self, link: LinkId, open: OpenToken) {
        let Some(entry) = self.entry_mut(link, open).filter(|entry| !entry.reclaimed) else { return };
        let was = entry.wants();
        entry.unflagged = true;
        let (key, number) = (entry.name.key.clone(), entry.file.number);
        self.raise(&key, number, Wants::Flag);
        self.lift(&key, number, was);
    }

    pub(super) fn mark_reclaimed(&mut self, link: LinkId, open: OpenToken) {
        let Some(entry) = self.entry_mut(link, open) else { return };
        let was = entry.wants();
        (entry.reclaimed, entry.unflagged) = (true, false);
        let (key, number) = (entry.name.key.clone(), entry.file.number);
        self.lift(&key, number, was);
    }

    /// One more Open is not back.
    pub(super) fn raise(&mut self, key: &FileKey, number: Option<u64>, wants: Wants) {
        if wants == Wants::Nothing {
            return;
        }
        self.unreclaimed += 1;
        self.version += 1;
        if let Some(file) = self.files.get_mut(key) {
            file.barrier.raise(wants);
        }
        if let Some(number) = number {
            self.numbers.entry(number).or_default().raise(wants);
        }
    }

    /// One less.
    pub(super) fn lift(&mut self, key: &FileKey, number: Option<u64>, wanted: Wants) {
        if wanted == Wants::Nothing {
            return;
        }
        self.unreclaimed -= 1;
        if let Some(file) = self.files.get_mut(key) {
            self.version += u64::from(file.barrier.lift(wanted));
        }
        if let Some(number) = number
            && let Some(barrier) = self.numbers.get_mut(&number)
        {
            self.version += u64::from(barrier.lift(wanted));
            if barrier.unreclaimed == 0 {
                self.numbers.remove(&number);
            }
        }
    }
}
