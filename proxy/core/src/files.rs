//! What crosses Links: per file, the Opens of all Links and how many of them are not back yet.
//!
//! A file's *barrier* stands while a recorded Open of it, of whatever Link, is unreclaimed. Until it is lifted
//! nothing but reclaim passes to that file. While any Open is unreclaimed, requests that open files or change
//! names wait too, for names alias (case, hard links, two shares on one directory).
//!
//! A Link whose requests were in flight when its node was lost is *in doubt* if they change names: whether they were done
//! is to be found out. Meanwhile no fresh request of any Link opens a file or changes a name. Links find out one after the
//! other, in the order in which they are ready, so that no two of them take the same file for their own. What clients have
//! made and removed is remembered for that, by name and time.
//!
//! The owner applies every [`FileEvent`] of every Link, calls [`Files::all_lost`] before it tells any Link
//! of a new node, and wakes the Links that wait whenever [`Files::version`] has changed.

mod lately;
mod remembered;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
};

use self::{
    lately::Lately,
    remembered::{Record, Remembered},
};
use crate::{
    event::FileEvent,
    ids::{LinkId, OpenToken},
    link::birth::Birth,
};

/// A file as the proxy can tell it from another: share and path, both folded to lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey(pub Box<str>);

#[derive(Debug)]
struct Entry {
    key: FileKey,
    reclaimed: bool,
    /// Back, but for its delete-on-close flag.
    unflagged: bool,
}

#[derive(Debug, Default)]
struct Counts {
    opens: u32,
    unreclaimed: u32,
    /// Of those: how many only want their delete-on-close flag.
    unflagged: u32,
}

/// The Opens of all Links, by file.
#[derive(Debug, Default)]
pub struct Files {
    links: HashMap<LinkId, HashMap<OpenToken, Entry>>,
    files: HashMap<FileKey, Counts>,
    unreclaimed: u64,
    version: u64,
    /// Links in doubt.
    doubtful: HashSet<LinkId>,
    /// Those of them that are ready to find out, the first of them at it.
    deciding: VecDeque<LinkId>,
    /// Names that came to be, and when they were asked for.
    made: Remembered,
    /// Names that are no more, and when that was heard of.
    gone: Remembered,
    lately: Lately,
    /// Some changes of names are never seen.
    blind: bool,
}

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
    /// It may have.
    Unclear,
    /// None that was answered.
    Nobody,
}

impl Files {
    /// Grows whenever a barrier was raised or lifted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Recorded Opens.
    pub fn opens(&self) -> usize {
        self.links.values().map(HashMap::len).sum()
    }

    /// Recorded Opens that are not back yet.
    pub fn unreclaimed(&self) -> u64 {
        self.unreclaimed
    }

    /// Whether a request on this file must wait.
    pub fn is_blocked(&self, key: &FileKey) -> bool {
        self.unreclaimed > 0 && self.files.get(key).is_some_and(|c| c.unreclaimed > 0)
    }

    /// The same by an Open, whatever its file is called by now.
    pub fn is_open_blocked(&self, link: LinkId, open: OpenToken) -> bool {
        let entry = self.links.get(&link).and_then(|opens| opens.get(&open));
        entry.is_some_and(|entry| self.is_blocked(&entry.key))
    }

    /// Whether the delete-on-close flag of an Open may be set: all Opens of its file are back, of whatever Link. The file
    /// admits no further one afterwards.
    pub(crate) fn may_flag(&self, link: LinkId, open: OpenToken) -> bool {
        let entry = self.links.get(&link).and_then(|opens| opens.get(&open));
        let counts = entry.and_then(|entry| self.files.get(&entry.key));
        counts.is_none_or(|counts| counts.unreclaimed == counts.unflagged)
    }

    /// Whether requests that open files or change names must wait.
    pub fn is_opening_blocked(&self) -> bool {
        self.unreclaimed > 0
    }

    /// Whether some Link has still to find out what became of its requests.
    pub fn is_in_doubt(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Whether it is this Link's turn to find out.
    pub(crate) fn may_decide(&self, link: LinkId) -> bool {
        self.deciding.front() == Some(&link)
    }

    /// Who made the file that now stands under a name, if that was after `since`.
    pub(crate) fn maker(&self, key: &FileKey, birth: Birth, since: Instant) -> Maker {
        let is_it = |made: &&Record| made.key == *key && made.birth.is_at(birth);
        let may_be = |made: &Record| made.birth.is_at(birth) || made.key == *key && made.birth.can_be(birth);
        match self.made.alike(key).find(is_it) {
            // Links are heard in any order: it may be that what was made is gone, and this is another.
            Some(made) if self.is_gone_since(made) => Maker::Unclear,
            Some(_) => Maker::Known,
            None if self.blind || self.made.has_forgotten(since) => Maker::Unclear,
            None if self.made.alike(key).any(may_be) => Maker::Unclear,
            None => Maker::Nobody,
        }
    }

    fn is_gone_since(&self, made: &Record) -> bool {
        let is_it =
            |gone: &Record| gone.key == made.key && gone.birth.is_at(made.birth) && gone.at >= made.at;
        self.gone.alike(&made.key).any(is_it)
    }

    /// Whether an answered request has removed a file of that name, by deleting it, or by giving another name to it or to a
    /// directory above it, and the answer came after `since`.
    pub fn remover(&self, key: &FileKey, since: Instant) -> Remover {
        let mut above = Some(key.clone());
        let mut answer = Remover::Nobody;
        while let Some(name) = above {
            let mut alike = self.gone.alike(&name).filter(|gone| gone.at >= since).peekable();
            if alike.peek().is_some() {
                answer = Remover::Unclear;
            }
            if alike.any(|gone| gone.key == name) {
                return Remover::Known;
            }
            above = name.0.rsplit_once('\\').map(|(directory, _)| FileKey(directory.into()));
        }
        let unsure = self.blind || self.gone.has_forgotten(since);
        if unsure { Remover::Unclear } else { answer }
    }

    /// The file that an answered request has given this name to last, and when that was heard of; unless it is gone.
    pub(crate) fn holder(&self, key: &FileKey) -> Option<(Birth, Instant)> {
        self.lately.holder(key)
    }

    /// Whether others may have changed the file of this name since then, or may do so now: they have it open, or had.
    pub(crate) fn is_shared_since(&self, key: &FileKey, since: Instant) -> bool {
        self.blind || self.files.contains_key(key) || self.lately.may_be_closed_since(key, since)
    }

    /// All nodes' Links are about to be moved: every Open of every Link is unreclaimed.
    pub fn all_lost(&mut self) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.mark_lost(link);
        }
    }

    /// Takes one Link's news in.
    pub fn handle(&mut self, now: Instant, link: LinkId, event: FileEvent) {
        match event {
            FileEvent::Opened { open, key } => {
                self.files.entry(key.clone()).or_default().opens += 1;
                self.links
                    .entry(link)
                    .or_default()
                    .insert(open, Entry { key, reclaimed: true, unflagged: false });
            }
            FileEvent::Closed { open } | FileEvent::GivenUp { open } => {
                let entry = self.links.get(&link).and_then(|opens| opens.get(&open));
                if let Some(entry) = entry {
                    self.lately.closed(&entry.key, Some(now));
                }
                self.remove(link, open);
            }
            FileEvent::Renamed { open, key } => self.rename(link, open, key),
            FileEvent::Gone { key, birth } => self.gone(now, key, birth),
            FileEvent::Lost => self.mark_lost(link),
            FileEvent::Unflagged { open } => self.mark_unflagged(link, open),
            FileEvent::Reclaimed { open } => self.mark_reclaimed(link, open),
            FileEvent::Made { key, birth, at } => {
                self.lately.given(&key, birth, now);
                self.made.insert(key, birth, at);
            }
            FileEvent::Unseen => self.blind = true,
            FileEvent::Doubtful => {
                self.deciding.retain(|other| *other != link);
                self.doubtful.insert(link);
                self.version += 1;
            }
            FileEvent::Deciding => {
                if !self.deciding.contains(&link) {
                    self.deciding.push_back(link);
                }
                self.version += 1;
            }
            FileEvent::Decided => self.decided(link),
        }
    }

    /// The Link is gone, and its Opens with it.
    pub fn link_gone(&mut self, link: LinkId) {
        self.decided(link);
        for (_, entry) in self.links.remove(&link).into_iter().flatten() {
            self.lately.closed(&entry.key, None);
            self.forget(&entry);
        }
    }

    fn gone(&mut self, now: Instant, key: FileKey, birth: Birth) {
        self.lately.gone(&key, birth);
        self.made.take(&key, |made| made.birth.is_at(birth));
        self.gone.insert(key, birth, now);
    }

    fn decided(&mut self, link: LinkId) {
        self.deciding.retain(|other| *other != link);
        if self.doubtful.remove(&link) {
            self.version += 1;
        }
    }

    fn mark_lost(&mut self, link: LinkId) {
        let Some(opens) = self.links.get_mut(&link) else { return };
        for entry in opens.values_mut() {
            let Some(counts) = self.files.get_mut(&entry.key) else { continue };
            counts.unflagged -= u32::from(std::mem::take(&mut entry.unflagged));
            if !std::mem::take(&mut entry.reclaimed) {
                continue;
            }
            counts.unreclaimed += 1;
            self.unreclaimed += 1;
            self.version += 1;
        }
    }

    fn mark_unflagged(&mut self, link: LinkId, open: OpenToken) {
        let Some(entry) = self.links.get_mut(&link).and_then(|o| o.get_mut(&open)) else { return };
        if !entry.reclaimed && !std::mem::replace(&mut entry.unflagged, true) {
            if let Some(counts) = self.files.get_mut(&entry.key) {
                counts.unflagged += 1;
            }
            self.version += 1;
        }
    }

    fn mark_reclaimed(&mut self, link: LinkId, open: OpenToken) {
        let Some(entry) = self.links.get_mut(&link).and_then(|o| o.get_mut(&open)) else { return };
        if !std::mem::replace(&mut entry.reclaimed, true) {
            let (key, unflagged) = (entry.key.clone(), std::mem::take(&mut entry.unflagged));
            self.lift(&key, unflagged);
        }
    }

    fn remove(&mut self, link: LinkId, open: OpenToken) {
        let Some(opens) = self.links.get_mut(&link) else { return };
        let Some(entry) = opens.remove(&open) else { return };
        if opens.is_empty() {
            self.links.remove(&link);
        }
        self.forget(&entry);
    }

    fn forget(&mut self, entry: &Entry) {
        if !entry.reclaimed {
            self.lift(&entry.key, entry.unflagged);
        }
        if let Some(counts) = self.files.get_mut(&entry.key) {
            counts.opens -= 1;
            if counts.opens == 0 {
                self.files.remove(&entry.key);
            }
        }
    }

    fn lift(&mut self, key: &FileKey, unflagged: bool) {
        self.unreclaimed -= 1;
        if let Some(counts) = self.files.get_mut(key) {
            counts.unreclaimed -= 1;
            counts.unflagged -= u32::from(unflagged);
            if counts.unreclaimed == counts.unflagged {
                self.version += 1;
            }
        }
    }

    fn rename(&mut self, link: LinkId, open: OpenToken, to: FileKey) {
        let Some(from) = self.links.get(&link).and_then(|o| o.get(&open)).map(|e| e.key.clone()) else {
            return;
        };
        for entry in self.links.values_mut().flat_map(HashMap::values_mut).filter(|e| e.key == from) {
            entry.key = to.clone();
        }
        if let Some(counts) = self.files.remove(&from) {
            let target = self.files.entry(to).or_default();
            target.opens += counts.opens;
            target.unreclaimed += counts.unreclaimed;
            target.unflagged += counts.unflagged;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{remembered::REMEMBERED, *};

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);

    /// A first instant; the rest is virtual.
    #[allow(clippy::disallowed_methods, reason = "see above")]
    fn now() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }

    fn key(name: &str) -> FileKey {
        FileKey(name.into())
    }

    fn opened(files: &mut Files, link: LinkId, open: u64, name: &str) {
        files.handle(now(), link, FileEvent::Opened { open: OpenToken(open), key: key(name) });
    }

    fn reclaimed(files: &mut Files, link: LinkId, open: u64) {
        files.handle(now(), link, FileEvent::Reclaimed { open: OpenToken(open) });
    }

    #[test]
    fn a_barrier_stands_until_the_last_open_of_the_file_is_back_or_given_up() {
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        opened(&mut files, A, 2, "y");
        opened(&mut files, B, 1, "x");
        assert!(!files.is_opening_blocked());
        files.all_lost();
        assert!(files.is_opening_blocked() && files.is_blocked(&key("x")) && files.is_blocked(&key("y")));
        reclaimed(&mut files, A, 1);
        assert!(files.is_blocked(&key("x")), "B's Open is not back");
        let version = files.version();
        files.handle(now(), B, FileEvent::GivenUp { open: OpenToken(1) });
        assert!(!files.is_blocked(&key("x")) && files.version() > version);
        assert!(files.is_opening_blocked() && files.is_blocked(&key("y")));
        files.link_gone(A);
        assert_eq!((files.is_opening_blocked(), files.opens()), (false, 0));
    }

    #[test]
    fn a_file_is_flagged_to_be_deleted_when_all_its_opens_are_back() {
        let unflagged = |files: &mut Files, link, open| {
            files.handle(now(), link, FileEvent::Unflagged { open: OpenToken(open) })
        };
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        opened(&mut files, A, 2, "x");
        opened(&mut files, B, 1, "x");
        opened(&mut files, B, 2, "y");
        files.all_lost();
        unflagged(&mut files, A, 1);
        reclaimed(&mut files, A, 2);
        assert!(!files.may_flag(A, OpenToken(1)), "B's Open is not back");
        unflagged(&mut files, B, 1);
        assert!(files.may_flag(A, OpenToken(1)) && files.may_flag(B, OpenToken(1)), "y is another file");
        files.handle(now(), B, FileEvent::Lost);
        assert!(!files.may_flag(A, OpenToken(1)), "B's Open is lost again");
        let version = files.version();
        files.handle(now(), B, FileEvent::GivenUp { open: OpenToken(1) });
        assert!(files.may_flag(A, OpenToken(1)) && files.version() > version);
        assert!(files.is_blocked(&key("x")), "nobody may open it before");
        reclaimed(&mut files, A, 1);
        assert!(!files.is_blocked(&key("x")));
    }

    #[test]
    fn what_was_reclaimed_and_lost_again_counts_once() {
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        files.all_lost();
        files.handle(now(), A, FileEvent::Lost);
        assert_eq!(files.unreclaimed(), 1);
        reclaimed(&mut files, A, 1);
        reclaimed(&mut files, A, 1);
        assert_eq!(files.unreclaimed(), 0);
        files.handle(now(), A, FileEvent::Lost);
        assert_eq!(files.unreclaimed(), 1);
    }

    #[test]
    fn a_rename_takes_every_open_of_the_name_along() {
        let mut files = Files::default();
        opened(&mut files, A, 1, "old");
        opened(&mut files, B, 1, "old");
        opened(&mut files, B, 2, "new");
        files.handle(now(), A, FileEvent::Renamed { open: OpenToken(1), key: key("new") });
        files.handle(now(), B, FileEvent::Lost);
        assert!(files.is_blocked(&key("new")) && !files.is_blocked(&key("old")));
        reclaimed(&mut files, B, 1);
        assert!(files.is_blocked(&key("new")));
        reclaimed(&mut files, B, 2);
        assert!(!files.is_blocked(&key("new")));
        assert_eq!(files.files.get(&key("new")).map(|c| c.opens), Some(3));
    }

    fn made(files: &mut Files, name: &str, time: u64, at: Instant) {
        files.handle(now(), A, FileEvent::Made { key: key(name), birth: Birth::set(time), at });
    }

    fn gone(files: &mut Files, name: &str, time: u64, at: Instant) {
        files.handle(at, A, FileEvent::Gone { key: key(name), birth: Birth::set(time) });
    }

    fn maker(files: &Files, name: &str, time: u64) -> Maker {
        files.maker(&key(name), Birth::set(time), now())
    }

    fn later(seconds: u64) -> Instant {
        now() + std::time::Duration::from_secs(seconds)
    }

    #[test]
    fn who_made_a_file_is_remembered_by_name_and_time() {
        let mut files = Files::default();
        made(&mut files, r"share\dir\x", 5, now());
        assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Known);
        assert_eq!(maker(&files, r"share\dir\x", 6), Maker::Nobody, "another one since");
        assert_eq!(maker(&files, r"other\x", 5), Maker::Unclear, "a share of the same directory");
        assert_eq!(maker(&files, r"share\dir\y", 5), Maker::Nobody);
        for n in 0..REMEMBERED {
            made(&mut files, &n.to_string(), 1, now());
        }
        assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Unclear, "it is forgotten");
        let since = later(1);
        assert_eq!(files.maker(&key("y"), Birth::set(1), since), Maker::Nobody, "what came since is known");
        files.handle(now(), B, FileEvent::Unseen);
        assert_eq!(files.maker(&key("y"), Birth::set(1), since), Maker::Unclear);
    }

    #[test]
    fn who_made_what_is_gone_has_not_made_what_stands_there_now() {
        let mut files = Files::default();
        made(&mut files, r"share\x", 5, now());
        gone(&mut files, r"share\x", 5, later(1));
        assert_eq!(maker(&files, r"share\x", 5), Maker::Nobody);
        made(&mut files, r"share\x", 5, later(2));
        assert_eq!(maker(&files, r"share\x", 5), Maker::Known, "it was made again");
        gone(&mut files, r"share\y", 5, later(2));
        made(&mut files, r"share\y", 5, later(1));
        assert_eq!(maker(&files, r"share\y", 5), Maker::Unclear, "who removed it was heard first");
    }

    #[test]
    fn that_a_name_was_removed_is_remembered() {
        let mut files = Files::default();
        let remover = |files: &Files, name: &str, since| files.remover(&key(name), since);
        assert_eq!(remover(&files, r"share\dir\x", now()), Remover::Nobody);
        gone(&mut files, r"share\dir\x", 5, later(5));
        assert_eq!(remover(&files, r"share\dir\x", later(5)), Remover::Known);
        assert_eq!(remover(&files, r"share\dir\x", later(6)), Remover::Nobody, "it was before");
        assert_eq!(remover(&files, r"share\dir\y", now()), Remover::Nobody);
        assert_eq!(remover(&files, r"other\x", now()), Remover::Unclear, "a share of the same directory");
        gone(&mut files, r"share\dir", 5, later(7));
        assert_eq!(remover(&files, r"share\dir\y\z", later(7)), Remover::Known, "the directory is gone");
        assert_eq!(remover(&files, r"share\directory\y", later(7)), Remover::Nobody);
        for n in 0..REMEMBERED {
            gone(&mut files, &n.to_string(), 1, later(8));
        }
        assert_eq!(remover(&files, r"share\dir\x", now()), Remover::Unclear, "it is forgotten");
        assert_eq!(remover(&files, r"share\dir\x", later(9)), Remover::Nobody, "what came since is known");
        files.handle(now(), B, FileEvent::Unseen);
        assert_eq!(remover(&files, r"share\dir\x", later(9)), Remover::Unclear);
    }

    #[test]
    fn links_in_doubt_have_their_turns() {
        let mut files = Files::default();
        files.handle(now(), A, FileEvent::Doubtful);
        files.handle(now(), B, FileEvent::Doubtful);
        assert!(files.is_in_doubt() && !files.may_decide(A));
        files.handle(now(), B, FileEvent::Deciding);
        files.handle(now(), A, FileEvent::Deciding);
        assert!(files.may_decide(B) && !files.may_decide(A), "B was ready first");
        files.handle(now(), B, FileEvent::Doubtful);
        assert!(files.may_decide(A), "B has lost its node again");
        let version = files.version();
        files.handle(now(), A, FileEvent::Decided);
        assert!(files.is_in_doubt() && files.version() > version);
        files.link_gone(B);
        assert!(!files.is_in_doubt());
    }

    #[test]
    fn counts_agree_with_the_opens_whatever_happens() {
        let mut files = Files::default();
        let mut seed = 7_u64;
        let mut draw = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % limit
        };
        for step in 0..20_000 {
            let (link, open, name) = (LinkId(draw(4)), draw(6), format!("f{}", draw(3)));
            let known = files.links.get(&link).is_some_and(|o| o.contains_key(&OpenToken(open)));
            match draw(8) {
                0..=2 if !known => opened(&mut files, link, open, &name),
                0..=2 => files.handle(now(), link, FileEvent::Closed { open: OpenToken(open) }),
                3 => files.handle(now(), link, FileEvent::Renamed { open: OpenToken(open), key: key(&name) }),
                4 => reclaimed(&mut files, link, open),
                5 if step % 3 == 0 => files.handle(now(), link, FileEvent::Lost),
                5 => files.handle(now(), link, FileEvent::Unflagged { open: OpenToken(open) }),
                6 if step % 50 == 0 => files.all_lost(),
                7 if step % 50 == 0 => files.link_gone(link),
                _ => files.handle(now(), link, FileEvent::GivenUp { open: OpenToken(open) }),
            }
            let entries = || files.links.values().flat_map(HashMap::values);
            assert_eq!(files.unreclaimed, entries().filter(|e| !e.reclaimed).count() as u64);
            for (key, counts) in &files.files {
                let of_file = || entries().filter(|e| e.key == *key);
                assert_eq!(counts.opens as usize, of_file().count(), "{key:?} at step {step}");
                assert_eq!(counts.unreclaimed as usize, of_file().filter(|e| !e.reclaimed).count());
                assert_eq!(counts.unflagged as usize, of_file().filter(|e| e.unflagged).count());
                assert!(of_file().all(|e| !(e.reclaimed && e.unflagged)));
            }
        }
    }
}
