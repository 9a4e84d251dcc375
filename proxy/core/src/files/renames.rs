//! The latest renames: what an Open may be called of which a Link hears late, or which is not where it was.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{FileIdentity, FileKey, Name};
use crate::ids::{LinkId, MessageId};

/// How many are remembered.
const REMEMBERED: usize = 4096;
/// How many names a file is looked for under.
const NAMES: usize = 16;
/// How much later something may have been than it is said to have been: a Link reads the clock before it reads its legs.
const LATE: Duration = Duration::from_secs(1);

/// A rename that was asked for.
#[derive(Debug, Clone)]
pub(super) struct Rename {
    pub(super) from: Name,
    pub(super) to: Name,
    /// Of which file, if that is known.
    pub(super) file: Option<FileIdentity>,
    /// By which Link, and when its client asked for it.
    pub(super) by: LinkId,
    pub(super) asked: Instant,
    /// How many were told of before it was sent first, if it was told of.
    pub(super) turn: Option<u64>,
    /// When its success was heard of. `None`: nobody knows what comes of it.
    pub(super) answered: Option<Instant>,
    /// The request, if it was told of, and whether its client has been answered.
    pub(super) request: Option<(MessageId, Over)>,
}

/// How far a request has come that is to rename a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// It is not answered.
    Not,
    /// Since then nobody will know what became of it; without a time when its client is gone.
    Unknown(Option<Instant>),
    /// Its outcome is known.
    Known,
}

/// When an Open was heard of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    at: Instant,
    /// How many renames had been told of.
    turn: u64,
}

impl Heard {
    /// Whether it was heard of before that.
    pub(super) fn is_before(self, at: Instant) -> bool {
        self.at < at
    }
}

impl Rename {
    /// Whether an Open was there before this was sent. Every rename is told of before it is sent, and an Open only when its
    /// CREATE was answered: by their order it is certain.
    pub(super) fn is_later_than(&self, heard: Heard) -> bool {
        match self.turn {
            Some(turn) => heard.turn <= turn,
            None => heard.at + LATE < self.asked,
        }
    }

    /// What an Open of this name and file is called now that this is answered. What was open `before` it was sent can
    /// be no other file; else it may be a new one under the old name.
    pub(super) fn takes(&self, name: &Name, file: FileIdentity, before: bool) -> Option<Name> {
        let after = name.after(&self.from, &self.to)?;
        let is_it = match self.file {
            _ if after.key != self.to.key => !self.is_stream(name) || before || self.is_born_with(file),
            Some(renamed) if before => !renamed.is_surely_not(file),
            Some(renamed) => renamed.is(file),
            None => false,
        };
        is_it.then_some(after)
    }

    fn is_stream(&self, name: &Name) -> bool {
        name.key.0.strip_prefix(&*self.from.key.0).is_some_and(|rest| rest.starts_with(':'))
    }

    /// A stream has another number than its file, and the same time of creation.
    fn is_born_with(&self, stream: FileIdentity) -> bool {
        self.file.is_some_and(|file| file.birth.is_at(stream.birth))
    }
}

/// Whether a name may have been taken from its file by a rename of which nobody knows what became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// No.
    None,
    /// By one that is not answered yet.
    UnderWay,
    /// By one of which nobody will know.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Renames {
    /// The oldest first.
    log: VecDeque<Rename>,
    /// When the last of them was answered.
    answered: Option<Instant>,
    /// How many were told of before they were sent.
    told: u64,
}

impl Renames {
    /// One is about to be sent.
    pub(super) fn tell(&mut self, rename: Rename) {
        if let Some((id, _)) = rename.request {
            // It is sent again.
            self.over(rename.by, id, Over::Known);
        }
        self.push(Rename { turn: Some(self.told), ..rename });
        self.told += 1;
    }

    /// The client of one that was told of is answered.
    pub(super) fn over(&mut self, by: LinkId, id: MessageId, over: Over) {
        let told = self.log.iter_mut().filter(|rename| rename.by == by).filter_map(|r| r.request.as_mut());
        for (_, state) in told.filter(|(told, state)| *told == id && *state == Over::Not) {
            *state = over;
        }
    }

    /// The Link is gone, and nobody will know what became of its requests.
    pub(super) fn link_gone(&mut self, link: LinkId) {
        let told = self.log.iter_mut().filter(|rename| rename.by == link).filter_map(|r| r.request.as_mut());
        for (_, state) in told.filter(|(_, state)| *state == Over::Not) {
            *state = Over::Unknown(None);
        }
    }

    /// What is known of the requests that may have given the file of this name, or a directory above it, another one since
    /// then: the least that is known of any.
    pub(super) fn taking(&self, key: &FileKey, since: Instant) -> Taking {
        let names: Vec<FileKey> = key.and_directories_above().collect();
        let takes = self.log.iter().filter(|rename| names.contains(&rename.from.key));
        takes.filter_map(|rename| rename.request).fold(Taking::None, |worst, (_, over)| match over {
            Over::Not => Taking::UnderWay,
            Over::Unknown(at) if worst == Taking::None && at.is_none_or(|at| at >= since) => Taking::Unknown,
            Over::Unknown(_) | Over::Known => worst,
        })
    }

    /// Whether nobody knows what became of a request that may since then have renamed by an Open what was opened by this name.
    pub(super) fn may_have_moved(&self, key: &FileKey, since: Instant) -> bool {
        let is_open = |over: Over| match over {
            Over::Not | Over::Unknown(None) => true,
            Over::Unknown(Some(at)) => at >= since,
            Over::Known => false,
        };
        let mut by_opens = self.log.iter().filter(|rename| rename.file.is_some() && rename.from.key == *key);
        by_opens.any(|rename| rename.request.is_some_and(|(_, over)| is_open(over)))
    }

    /// What is heard of now.
    pub(super) fn hear(&self, now: Instant) -> Heard {
        Heard { at: now, turn: self.told }
    }

    /// What was called so before it was given another name last.
    pub(super) fn last_from(&self, key: &FileKey) -> Option<&Name> {
        let mut latest = self.log.iter().rev().filter(|rename| rename.answered.is_some());
        latest.find(|rename| rename.from.key == *key).map(|rename| &rename.to)
    }

    /// When that rename, which is answered, was sent first.
    pub(super) fn turn(&self, by: LinkId, asked: Instant, to: &Name) -> Option<u64> {
        let is_it = |told: &&Rename| told.by == by && told.asked == asked && told.to.key == to.key;
        self.log.iter().find(is_it)?.turn
    }

    pub(super) fn push(&mut self, rename: Rename) {
        self.answered = rename.answered.or(self.answered);
        self.log.push_back(rename);
        while self.log.len() > REMEMBERED {
            self.log.pop_front();
        }
    }

    /// What a file is called by now of which a CREATE asked for at `asked` says that it has this name.
    pub(super) fn name_by_now(&self, name: Name, file: FileIdentity, asked: Instant) -> Name {
        let is_late = |answered: Option<Instant>| answered.is_some_and(|at| at + LATE >= asked);
        let mut name = name;
        // Mostly there is none.
        if !is_late(self.answered) {
            return name;
        }
        for rename in self.log.iter().filter(|rename| is_late(rename.answered)) {
            name = rename.takes(&name, file, false).unwrap_or(name);
        }
        name
    }

    /// All that a file may be called that should be there under this name: the likely first. What was renamed may not have
    /// been, and answers may have been heard in another order than the node gave them.
    pub(super) fn names_of(&self, name: &Name, file: FileIdentity) -> Vec<Name> {
        let mut names = vec![name.clone()];
        let mut at = 0;
        while let Some(name) = names.get(at).cloned() {
            at += 1;
            for rename in &self.log {
                let ways = [(&rename.from, &rename.to), (&rename.to, &rename.from)];
                for other in ways.into_iter().filter_map(|(from, to)| name.after(from, to)) {
                    let is_other = rename.file.is_some_and(|renamed| !renamed.can_be(file));
                    let is_whole = name.key == rename.from.key || name.key == rename.to.key;
                    let is_known = names.iter().any(|name| name.key == other.key);
                    if names.len() < NAMES && !(is_known || is_other && is_whole) {
                        names.push(other);
                    }
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::birth::Birth;

    fn now() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START
    }

    fn name(path: &str) -> Name {
        let path: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        Name::new("share", &path)
    }

    fn file(birth: u64) -> FileIdentity {
        FileIdentity { birth: Birth::set(birth), number: None }
    }

    fn at(seconds: u64) -> Instant {
        now() + Duration::from_secs(seconds)
    }

    fn rename(from: &str, to: &str, birth: u64, answered: Option<u64>) -> Rename {
        let (from, to, answered) = (name(from), name(to), answered.map(at));
        Rename {
            from,
            to,
            file: Some(file(birth)),
            by: LinkId(1),
            asked: at(10),
            turn: None,
            answered,
            request: None,
        }
    }

    #[test]
    fn what_is_opened_while_it_is_renamed_has_its_new_name() {
        let mut renames = Renames::default();
        renames.push(rename("x", "y", 5, Some(12)));
        renames.push(rename("other", "x", 6, None));
        renames.push(rename("y", "z", 5, Some(13)));
        let by_now = |path: &str, birth, asked| renames.name_by_now(name(path), file(birth), at(asked));
        assert_eq!(by_now("x", 5, 11), name("z"));
        assert_eq!(by_now("x:s", 5, 11), name("z:s"));
        assert_eq!(by_now("x", 7, 11), name("x"), "a new file under the old name");
        assert_eq!(by_now("x", 5, 20), name("x"), "it was renamed long before");
        assert_eq!(by_now("other", 6, 11), name("other"), "nobody knows that it was renamed");
    }

    #[test]
    fn a_new_file_under_the_old_name_is_not_taken_along() {
        let rename = rename("x", "y", 5, Some(12));
        let takes = |path: &str, birth, since| {
            rename.takes(&name(path), file(birth), rename.is_later_than(Heard { at: at(since), turn: 0 }))
        };
        assert_eq!(takes("x", 5, 11), Some(name("y")));
        assert_eq!(takes("x", 7, 11), None);
        assert_eq!(takes("x:s", 5, 11), Some(name("y:s")));
        assert_eq!(takes("x:s", 7, 11), None);
        assert_eq!(takes("x:s", 7, 5), Some(name("y:s")), "it was open before");
        assert_eq!(takes(r"x\f", 7, 11), Some(name(r"y\f")));
    }

    #[test]
    fn a_name_may_be_taken_by_what_nobody_knows_the_outcome_of() {
        let (key, link) = (name(r"dir\f").key, LinkId(1));
        let told = |from: &str, id| Rename { request: Some((id, Over::Not)), ..rename(from, "y", 5, None) };
        let rows = [
            ("under way", told(r"dir\f", 7), None, Taking::UnderWay),
            ("a directory above it", told("dir", 7), None, Taking::UnderWay),
            ("another name", told(r"dir\g", 7), None, Taking::None),
            ("answered", told(r"dir\f", 7), Some(Over::Known), Taking::None),
            ("nobody knows", told(r"dir\f", 7), Some(Over::Unknown(Some(at(12)))), Taking::Unknown),
            ("nobody knows, long ago", told(r"dir\f", 7), Some(Over::Unknown(Some(at(2)))), Taking::None),
            ("nobody knows, nor when", told(r"dir\f", 7), Some(Over::Unknown(None)), Taking::Unknown),
        ];
        for (what, rename, over, expected) in rows {
            let mut renames = Renames::default();
            renames.tell(rename);
            if let Some(over) = over {
                renames.over(link, 8, Over::Known);
                renames.over(link, 7, over);
            }
            assert_eq!(renames.taking(&key, at(10)), expected, "{what}");
        }
        let mut renames = Renames::default();
        renames.tell(told(r"dir\f", 7));
        renames.tell(told(r"dir\f", 7));
        renames.over(link, 7, Over::Known);
        assert_eq!(renames.taking(&key, at(10)), Taking::None, "it was sent twice, and answered once");
        renames.tell(told(r"dir\f", 9));
        renames.link_gone(link);
        assert_eq!(renames.taking(&key, at(10)), Taking::Unknown, "its client is gone");
    }

    #[test]
    fn a_file_is_looked_for_under_every_name_that_it_may_have() {
        let mut renames = Renames::default();
        renames.push(rename("x", "y", 5, None));
        renames.push(rename("y", "z", 5, Some(12)));
        renames.push(rename("dir", "other", 9, Some(12)));
        renames.push(rename("x", "not", 6, Some(12)));
        let names = |path: &str, birth| renames.names_of(&name(path), file(birth));
        assert_eq!(names("x", 5), [name("x"), name("y"), name("z")]);
        assert_eq!(names("z", 5), [name("z"), name("y"), name("x")]);
        assert_eq!(names(r"dir\f", 7), [name(r"dir\f"), name(r"other\f")]);
        assert_eq!(names("q", 5), [name("q")]);
        for n in 0..REMEMBERED {
            renames.push(rename(&format!("a{n}"), &format!("a{}", n + 1), 5, None));
        }
        assert_eq!(renames.names_of(&name("x"), file(5)), [name("x")], "it is forgotten");
        assert_eq!(renames.names_of(&name("a9"), file(5)).len(), NAMES);
    }
}
