//! What crosses Links: per file, the Opens of all Links and how many of them are not back yet.
//!
//! A file's *barrier* stands while a recorded Open of it, of whatever Link, is unreclaimed. Until it is lifted
//! nothing but reclaim passes to that file. While any Open is unreclaimed, requests that open files or change
//! names wait too, for names alias (case, hard links, two shares on one directory).
//!
//! A Link whose requests were in flight when its node was lost is *in doubt* if they change names: whether they were done
//! is to be found out. Meanwhile no fresh request of any Link opens a file or changes a name. Links find out one after the
//! other, in the order in which they are ready, so that no two of them take the same file for their own. What clients have
//! made is remembered for that, by name and time.
//!
//! The owner applies every [`FileEvent`] of every Link, calls [`Files::all_lost`] before it tells any Link
//! of a new node, and wakes the Links that wait whenever [`Files::version`] has changed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
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
}

#[derive(Debug, Default)]
struct Counts {
    opens: u32,
    unreclaimed: u32,
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
    made: Made,
}

/// How many files are remembered that were made.
const REMEMBERED: usize = 65_536;

/// Names that came to be, and when their files were created.
#[derive(Debug, Default)]
struct Made {
    /// By the last component of the name, for one directory may be in two shares.
    by_leaf: HashMap<Box<str>, Vec<(FileKey, Birth)>>,
    /// The oldest first.
    order: VecDeque<(Instant, FileKey)>,
    /// The last one that was forgotten was asked for then.
    forgotten: Option<Instant>,
    /// Some are never seen.
    blind: bool,
}

impl Made {
    fn insert(&mut self, key: FileKey, birth: Birth, at: Instant) {
        self.by_leaf.entry(leaf(&key).into()).or_default().push((key.clone(), birth));
        self.order.push_back((at, key));
        while self.order.len() > REMEMBERED {
            let Some((at, key)) = self.order.pop_front() else { return };
            self.forgotten = self.forgotten.max(Some(at));
            if let Some(births) = self.by_leaf.get_mut(leaf(&key)) {
                // The oldest of its name stands first.
                if let Some(first) = births.iter().position(|(other, _)| *other == key) {
                    births.remove(first);
                }
                if births.is_empty() {
                    self.by_leaf.remove(leaf(&key));
                }
            }
        }
    }
}

fn leaf(key: &FileKey) -> &str {
    key.0.rsplit('\\').next().unwrap_or_default()
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
        let alike = self.made.by_leaf.get(leaf(key)).map(Vec::as_slice).unwrap_or_default();
        if alike.iter().any(|(other, was)| other == key && was.is_at(birth)) {
            Maker::Known
        } else if self.made.blind
            || self.made.forgotten.is_some_and(|at| at >= since)
            || alike.iter().any(|(other, was)| was.is_at(birth) || other == key && was.can_be(birth))
        {
            Maker::Unclear
        } else {
            Maker::Nobody
        }
    }

    /// All nodes' Links are about to be moved: every Open of every Link is unreclaimed.
    pub fn all_lost(&mut self) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.mark_lost(link);
        }
    }

    /// Takes one Link's news in.
    pub fn handle(&mut self, link: LinkId, event: FileEvent) {
        match event {
            FileEvent::Opened { open, key } => {
                self.files.entry(key.clone()).or_default().opens += 1;
                self.links.entry(link).or_default().insert(open, Entry { key, reclaimed: true });
            }
            FileEvent::Closed { open } | FileEvent::GivenUp { open } => self.remove(link, open),
            FileEvent::Renamed { open, key } => self.rename(link, open, key),
            FileEvent::Lost => self.mark_lost(link),
            FileEvent::Reclaimed { open } => self.mark_reclaimed(link, open),
            FileEvent::Made { key, birth, at } => self.made.insert(key, birth, at),
            FileEvent::Unseen => self.made.blind = true,
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
            self.forget(&entry);
        }
    }

    fn decided(&mut self, link: LinkId) {
        self.deciding.retain(|other| *other != link);
        if self.doubtful.remove(&link) {
            self.version += 1;
        }
    }

    fn mark_lost(&mut self, link: LinkId) {
        let Some(opens) = self.links.get_mut(&link) else { return };
        for entry in opens.values_mut().filter(|e| e.reclaimed) {
            entry.reclaimed = false;
            if let Some(counts) = self.files.get_mut(&entry.key) {
                counts.unreclaimed += 1;
            }
            self.unreclaimed += 1;
            self.version += 1;
        }
    }

    fn mark_reclaimed(&mut self, link: LinkId, open: OpenToken) {
        let Some(entry) = self.links.get_mut(&link).and_then(|o| o.get_mut(&open)) else { return };
        if !std::mem::replace(&mut entry.reclaimed, true) {
            let key = entry.key.clone();
            self.lift(&key);
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
            self.lift(&entry.key);
        }
        if let Some(counts) = self.files.get_mut(&entry.key) {
            counts.opens -= 1;
            if counts.opens == 0 {
                self.files.remove(&entry.key);
            }
        }
    }

    fn lift(&mut self, key: &FileKey) {
        self.unreclaimed -= 1;
        if let Some(counts) = self.files.get_mut(key) {
            counts.unreclaimed -= 1;
            if counts.unreclaimed == 0 {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);

    fn key(name: &str) -> FileKey {
        FileKey(name.into())
    }

    fn opened(files: &mut Files, link: LinkId, open: u64, name: &str) {
        files.handle(link, FileEvent::Opened { open: OpenToken(open), key: key(name) });
    }

    fn reclaimed(files: &mut Files, link: LinkId, open: u64) {
        files.handle(link, FileEvent::Reclaimed { open: OpenToken(open) });
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
        files.handle(B, FileEvent::GivenUp { open: OpenToken(1) });
        assert!(!files.is_blocked(&key("x")) && files.version() > version);
        assert!(files.is_opening_blocked() && files.is_blocked(&key("y")));
        files.link_gone(A);
        assert_eq!((files.is_opening_blocked(), files.opens()), (false, 0));
    }

    #[test]
    fn what_was_reclaimed_and_lost_again_counts_once() {
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        files.all_lost();
        files.handle(A, FileEvent::Lost);
        assert_eq!(files.unreclaimed(), 1);
        reclaimed(&mut files, A, 1);
        reclaimed(&mut files, A, 1);
        assert_eq!(files.unreclaimed(), 0);
        files.handle(A, FileEvent::Lost);
        assert_eq!(files.unreclaimed(), 1);
    }

    #[test]
    fn a_rename_takes_every_open_of_the_name_along() {
        let mut files = Files::default();
        opened(&mut files, A, 1, "old");
        opened(&mut files, B, 1, "old");
        opened(&mut files, B, 2, "new");
        files.handle(A, FileEvent::Renamed { open: OpenToken(1), key: key("new") });
        files.handle(B, FileEvent::Lost);
        assert!(files.is_blocked(&key("new")) && !files.is_blocked(&key("old")));
        reclaimed(&mut files, B, 1);
        assert!(files.is_blocked(&key("new")));
        reclaimed(&mut files, B, 2);
        assert!(!files.is_blocked(&key("new")));
        assert_eq!(files.files.get(&key("new")).map(|c| c.opens), Some(3));
    }

    #[test]
    fn who_made_a_file_is_remembered_by_name_and_time() {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let mut files = Files::default();
        let mut made = |name: &str, time, at| {
            let event = FileEvent::Made { key: key(name), birth: Birth::set(time), at };
            files.handle(A, event);
        };
        made(r"share\dir\x", 5, now);
        let maker = |files: &Files, name: &str, time| files.maker(&key(name), Birth::set(time), now);
        assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Known);
        assert_eq!(maker(&files, r"share\dir\x", 6), Maker::Nobody, "another one since");
        assert_eq!(maker(&files, r"other\x", 5), Maker::Unclear, "a share of the same directory");
        assert_eq!(maker(&files, r"share\dir\y", 5), Maker::Nobody);
        for n in 0..REMEMBERED {
            files.handle(B, FileEvent::Made { key: key(&n.to_string()), birth: Birth::set(1), at: now });
        }
        assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Unclear, "it is forgotten");
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(files.maker(&key("y"), Birth::set(1), later), Maker::Nobody, "what came since is known");
        files.handle(B, FileEvent::Unseen);
        assert_eq!(files.maker(&key("y"), Birth::set(1), later), Maker::Unclear);
    }

    #[test]
    fn links_in_doubt_have_their_turns() {
        let mut files = Files::default();
        files.handle(A, FileEvent::Doubtful);
        files.handle(B, FileEvent::Doubtful);
        assert!(files.is_in_doubt() && !files.may_decide(A));
        files.handle(B, FileEvent::Deciding);
        files.handle(A, FileEvent::Deciding);
        assert!(files.may_decide(B) && !files.may_decide(A), "B was ready first");
        files.handle(B, FileEvent::Doubtful);
        assert!(files.may_decide(A), "B has lost its node again");
        let version = files.version();
        files.handle(A, FileEvent::Decided);
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
                0..=2 => files.handle(link, FileEvent::Closed { open: OpenToken(open) }),
                3 => files.handle(link, FileEvent::Renamed { open: OpenToken(open), key: key(&name) }),
                4 => reclaimed(&mut files, link, open),
                5 => files.handle(link, FileEvent::Lost),
                6 if step % 50 == 0 => files.all_lost(),
                7 if step % 50 == 0 => files.link_gone(link),
                _ => files.handle(link, FileEvent::GivenUp { open: OpenToken(open) }),
            }
            let entries = || files.links.values().flat_map(HashMap::values);
            assert_eq!(files.unreclaimed, entries().filter(|e| !e.reclaimed).count() as u64);
            for (key, counts) in &files.files {
                let of_file = || entries().filter(|e| e.key == *key);
                assert_eq!(counts.opens as usize, of_file().count(), "{key:?} at step {step}");
                assert_eq!(counts.unreclaimed as usize, of_file().filter(|e| !e.reclaimed).count());
            }
        }
    }
}
