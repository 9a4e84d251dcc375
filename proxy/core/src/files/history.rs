//! What is known of a name's past: who made what stands there, who removed what stood there, and what may have been done to it of
//! which nobody knows.

use std::time::Instant;

use super::{
    Deed, Entry, FileKey, Files,
    lately::Left,
    remembered::{Record, Remembered},
};
use crate::{
    ids::{LinkId, OpenToken},
    link::birth::Birth,
};

/// What is known of who made a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// A request that was answered, under that very name.
    Known,
    /// It may have been one that was answered.
    Unclear,
    /// None that was answered.
    Nobody,
}

/// What is known of whether a name was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remover {
    /// An answered request has removed a file of that very name.
    Known,
    /// This file, which had that very name, was found under another one: a rename did that, answered or not.
    Moved(Birth),
    /// It may have.
    Unclear,
    /// None that was answered.
    Nobody,
}

impl Files {
    /// Who made the file that now stands under a name, if that was after `since`.
    pub(crate) fn maker(&self, key: &FileKey, birth: Birth, since: Instant) -> Maker {
        let is_it = |made: &&Record| made.key == *key && made.birth.is_at(birth);
        let may_be = |made: &Record| made.birth.is_at(birth) || made.key == *key && made.birth.can_be(birth);
        match self.made.alike(key).find(is_it) {
            // Links are heard in any order: it may be that what was made is gone, and this is another.
            Some(made) if self.is_gone_since(&made.key, made.birth, made.at) => Maker::Unclear,
            Some(_) => Maker::Known,
            None if self.blind || self.made.has_forgotten(since) => Maker::Unclear,
            None if self.made.alike(key).any(may_be) => Maker::Unclear,
            // It was to be gone, but an Open that nobody was told of has kept it.
            None if self.gone.alike(key).any(|gone| gone.key == *key && gone.birth.is_at(birth)) => {
                Maker::Unclear
            }
            None => Maker::Nobody,
        }
    }

    /// Whether a file that got a name, asked for at `at`, is known not to have it any more.
    pub(super) fn is_gone_since(&self, key: &FileKey, birth: Birth, at: Instant) -> bool {
        let is_it = |gone: &Record| gone.key == *key && gone.birth.is_at(birth) && gone.at >= at;
        self.gone.alike(key).any(is_it)
    }

    /// Whether an answered request has removed a file of that name, by deleting it, or by giving another name to it or to a
    /// directory above it, and the answer came after `since`; or its file was found elsewhere since then.
    pub fn remover(&self, key: &FileKey, since: Instant) -> Remover {
        if let Some(moved) = self.moved_since(key, since) {
            return Remover::Moved(moved.birth);
        }
        let mut answer = Remover::Nobody;
        for name in key.and_directories_above() {
            let mut alike = self.gone.alike(&name).filter(|gone| gone.at >= since).peekable();
            if alike.peek().is_some() {
                answer = Remover::Unclear;
            }
            if alike.any(|gone| gone.key == name) {
                return Remover::Known;
            }
            if self.moved.alike(&name).any(|moved| moved.at >= since) {
                answer = Remover::Unclear;
            }
        }
        let forgotten = self.gone.has_forgotten(since) || self.moved.has_forgotten(since);
        let unsure = self.blind || forgotten;
        if unsure { Remover::Unclear } else { answer }
    }

    /// The same where it is asked of one file whether it had the name, of several that may have been found under others.
    pub(crate) fn remover_from(&self, key: &FileKey, birth: Birth, since: Instant) -> Remover {
        match self.remover(key, since) {
            Remover::Moved(_) if self.all_moved_since(key, since).any(|moved| moved.birth.is_at(birth)) => {
                Remover::Moved(birth)
            }
            other => other,
        }
    }

    /// Whether a request took this very name from its file that had opened it by the name: the file had not lost it before.
    ///
    /// Not if others have the file open, or had since `asked`: Samba lets even the middle of a compound wait until they have
    /// given back their handle leases, and what was opened by this name may have another one by then.
    pub(crate) fn was_taken(&self, key: &FileKey, since: Instant, asked: Instant) -> bool {
        let is_taken = self.taken.alike(key).any(|taken| taken.key == *key && taken.at >= since);
        is_taken && !self.lately.may_be_closed_since(key, asked)
    }

    /// Whether others have what was taken from a name open, as far as is known: by that name, or by the one it has since.
    pub(super) fn is_shared(&self, key: &FileKey) -> bool {
        let to = self.renames.last_from(key);
        let opens = |key: &FileKey| self.files.get(key).map_or(0, |file| file.opens.len());
        opens(key) > 0 || to.is_some_and(|to| opens(&to.key) > 1)
    }

    /// The file that had this very name, and was found under another one after all that is known to have removed the name. Of
    /// several the one that was found last, which may have had it before the others.
    fn moved_since<'a>(&'a self, key: &FileKey, since: Instant) -> Option<&'a Record> {
        self.all_moved_since(key, since).last()
    }

    fn all_moved_since<'a>(&'a self, key: &FileKey, since: Instant) -> impl Iterator<Item = &'a Record> {
        let since =
            self.gone.alike(key).filter(|gone| gone.key == *key).fold(since, |last, gone| last.max(gone.at));
        self.moved.alike(key).filter(move |moved| moved.key == *key && moved.at >= since)
    }

    /// Whether a file that got this name since then may have lost it again by another request, answered, in flight when its
    /// node was lost, or of one that nobody here sees.
    pub(crate) fn may_be_gone_since(&self, key: &FileKey, since: Instant) -> bool {
        let is_gone = |names: &Remembered, key: &FileKey| {
            names.has_forgotten(since) || names.alike(key).any(|name| name.at >= since)
        };
        let is_any_gone = |name: FileKey| {
            [&self.gone, &self.moved].iter().any(|names| is_gone(names, &name))
                || [Deed::Taken, Deed::Deleted]
                    .iter()
                    .any(|deed| self.traces.may_be_since(*deed, &name, since))
        };
        self.blind || key.and_directories_above().any(is_any_gone)
    }

    /// Whether the name may have been given to a file since then by a request of which nobody knows what became, or by one that
    /// nobody here sees.
    pub(crate) fn may_be_made_since(&self, key: &FileKey, since: Instant) -> bool {
        self.blind || self.traces.may_be_since(Deed::Made, key, since)
    }

    /// Whether the file that had the name may have been deleted since then by an Open, by whatever name it was called by then, and
    /// nobody knows whether it was.
    pub(crate) fn may_be_deleted_since(&self, key: &FileKey, since: Instant) -> bool {
        self.blind || self.traces.may_be_since(Deed::Deleted, key, since)
    }

    /// Whether the file of the name may have been emptied since then by a CREATE, and nobody knows whether it was.
    pub(crate) fn may_be_emptied_since(&self, key: &FileKey, since: Instant) -> bool {
        self.blind || self.traces.may_be_since(Deed::Emptied, key, since)
    }

    /// When an answered request has removed that very name, however long ago, if none has given it to a file since.
    pub(crate) fn known_to_be_gone(&self, key: &FileKey) -> Option<Instant> {
        let last = self.gone.alike(key).filter(|gone| gone.key == *key).map(|gone| gone.at).max();
        last.filter(|at| self.lately.holder(key).is_none() && !self.lately.has_forgotten(*at))
    }

    /// Whether an answered request has removed the very file of an Open that is not back.
    pub(crate) fn is_removed(&self, link: LinkId, open: OpenToken) -> bool {
        let is_gone = |entry: &Entry| self.is_gone_since(&entry.name.key, entry.file.birth, entry.named);
        self.entry(link, open).is_some_and(is_gone)
    }

    /// Whether some changes of names are never seen.
    pub(crate) fn is_blind(&self) -> bool {
        self.blind
    }

    /// The file that an answered request has given this name to last, and when that was heard of; unless it is gone.
    pub(crate) fn holder(&self, key: &FileKey) -> Option<(Birth, Instant)> {
        self.lately.holder(key)
    }

    /// The last of the files that had the name before answered requests have given it to another, and which none that was answered
    /// has removed; but not this one.
    pub(crate) fn left_behind(&self, key: &FileKey, but: Option<Birth>) -> Option<Left> {
        self.lately.left(key, but)
    }

    /// Whether others may have changed the file of this name since then, or may do so now: they have it open, or had.
    pub(crate) fn is_shared_since(&self, key: &FileKey, since: Instant) -> bool {
        self.blind || self.files.contains_key(key) || self.lately.may_be_closed_since(key, since)
    }

    pub(super) fn gone(&mut self, now: Instant, key: FileKey, birth: Birth) {
        self.lately.gone(&key, birth);
        self.made.take(&key, |made| made.birth.is_at(birth));
        self.gone.insert(key, birth, now);
    }
}
