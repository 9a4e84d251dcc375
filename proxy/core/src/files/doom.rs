//! Files that are to be deleted: each by the last of its own Opens, whatever else has its name by then.

use std::time::Instant;

use super::{Entry, FileIdentity, FileKey, Files, barrier::Wants};
use crate::ids::{LinkId, OpenToken};

impl Files {
    /// Whether the file of that very name is to be deleted when its last Open is closed, and there still is one; or may be, for a
    /// node has been asked for that.
    pub(crate) fn is_doomed(&self, key: &FileKey) -> bool {
        let mut deleting = self.deleting.iter().filter_map(|((link, _), open)| self.entry(*link, *open));
        self.at(key).any(|entry| entry.deletes || entry.doomed)
            || deleting.any(|entry| entry.name.key == *key)
    }

    /// Says of the Opens of this name that can be meant whether their file is doomed.
    fn set_doomed(&mut self, key: &FileKey, doomed: bool, is_meant: impl Fn(FileIdentity) -> bool) {
        let Some(file) = self.files.get(key) else { return };
        for (link, open) in &file.opens {
            let entry = self.links.get_mut(link).and_then(|opens| opens.get_mut(open));
            if let Some(entry) = entry.filter(|entry| is_meant(entry.file)) {
                entry.doomed = doomed;
            }
        }
    }

    pub(super) fn doom(&mut self, link: LinkId, open: OpenToken, doomed: bool) {
        let Some((key, file)) = self.entry(link, open).map(|entry| (entry.name.key.clone(), entry.file))
        else {
            return;
        };
        self.set_doomed(&key, doomed, |other| !file.is_surely_not(other));
    }

    pub(super) fn closed(&mut self, now: Instant, link: LinkId, open: OpenToken) {
        self.release(link, open);
        let Some(entry) = self.remove(link, open) else { return };
        self.lately.closed(&entry.name.key, Some(now));
        if entry.writes {
            self.absent_written(&entry.name.key);
        }
        if !entry.deletes && !entry.doomed {
            return;
        }
        self.set_doomed(&entry.name.key, true, |other| !entry.file.is_surely_not(other));
        // An Open that is not back keeps no file on the node.
        let keeps = |other: &Entry| !entry.file.is_surely_not(other.file) && !is_lost_beside(&entry, other);
        if !self.at(&entry.name.key).any(keeps) {
            self.gone(now, entry.name.key, entry.file.birth);
            // Whoever finds out what has become of the name waits for that.
            self.version += u64::from(self.is_in_doubt());
        }
    }

    /// A file has this name, asked for at `asked`. Others that had it, and were to be deleted, are deleted, though Opens of them
    /// are not known to be closed.
    pub(super) fn succeed_doomed(&mut self, now: Instant, key: &FileKey, next: FileIdentity, asked: Instant) {
        // Links are heard in any order: the other one may be younger, and opened when this one was deleted.
        let is_before =
            |entry: &&Entry| entry.heard.is_before(asked) || entry.file.birth.is_older_than(next.birth);
        let doomed = self.at(key).filter(|entry| entry.doomed && entry.file.is_surely_not(next));
        let files: Vec<FileIdentity> = doomed.filter(is_before).map(|entry| entry.file).collect();
        // So may it be this one that is gone.
        if files.is_empty() || self.is_gone_since(key, next.birth, asked) {
            return;
        }
        self.set_doomed(key, false, |file| files.contains(&file));
        for file in files {
            self.gone(now, key.clone(), file.birth);
        }
        self.version += u64::from(self.is_in_doubt());
    }

    /// Whether what is open by the name of an Open is surely another file.
    pub(super) fn is_of_others(&self, entry: &Entry) -> bool {
        self.at(&entry.name.key).all(|other| entry.file.is_surely_not(other.file))
    }
}

/// Whether of two Opens the other's connection was lost while that of the one goes on.
fn is_lost_beside(one: &Entry, other: &Entry) -> bool {
    one.wants() != Wants::Reclaim && other.wants() == Wants::Reclaim
}
