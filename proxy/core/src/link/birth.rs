//! When a file was created: what is left to tell it from another of its name, if its on-disk id was never asked for.

use smb_parse::cmd::create;

/// CreationTime, and what it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    time: u64,
    /// It is the earliest of the other times. Samba makes it of them where neither the file system nor an attribute
    /// keeps it; then reading and writing the file moves it.
    derived: bool,
}

impl Birth {
    /// As an answer to CREATE has it (MS-SMB2 2.2.14).
    pub(crate) fn of(response: &create::Response<'_>) -> Self {
        let others = [response.last_access_time, response.last_write_time, response.change_time];
        Self {
            time: response.creation_time,
            derived: others.iter().min().is_some_and(|time| *time == response.creation_time),
        }
    }

    /// As a client has set it.
    pub fn set(time: u64) -> Self {
        Self { time, derived: false }
    }

    /// As a record has it.
    pub(crate) fn recorded(time: u64, derived: bool) -> Self {
        Self { time, derived }
    }

    /// CreationTime, in units of 100 ns since 1601.
    pub(crate) fn time(self) -> u64 {
        self.time
    }

    /// Whether the node makes it of the other times.
    pub(crate) fn is_derived(self) -> bool {
        self.derived
    }

    /// As a node makes it of the other times.
    #[cfg(test)]
    pub(crate) fn derived(time: u64) -> Self {
        Self { time, derived: true }
    }

    /// Whether the two are the same instant.
    pub(crate) fn is_at(self, other: Self) -> bool {
        self.time == other.time
    }

    /// Whether the file that now shows `later` can be the one that showed this. An open file's name cannot come to
    /// mean another one by way of SMB, so a derived time that has grown is no sign of one.
    pub(crate) fn can_be(self, later: Self) -> bool {
        self.time == later.time || self.derived && later.derived && self.time < later.time
    }

    /// Whether the two are of two files, if both were seen in the same while: a derived time may have moved, and then have
    /// come to be kept.
    pub(crate) fn is_surely_not(self, other: Self) -> bool {
        self.time != other.time && !self.derived && !other.derived
    }

    /// Whether this file was created earlier.
    pub(crate) fn is_older_than(self, other: Self) -> bool {
        self.time < other.time
    }

    /// What is known of the time of a file that has shown this and `other`.
    pub(crate) fn latest(self, other: Self) -> Self {
        if self.derived && self.time < other.time { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_time_must_be_the_same_and_a_derived_one_may_grow() {
        let kept = |time| Birth { time, derived: false };
        let derived = |time| Birth { time, derived: true };
        assert!(kept(5).can_be(kept(5)) && kept(5).can_be(derived(5)) && derived(5).can_be(derived(5)));
        assert!(derived(5).can_be(derived(6)), "it was read or written");
        assert!(!derived(5).can_be(derived(4)), "nothing makes it younger");
        assert!(!kept(5).can_be(kept(6)) && !kept(5).can_be(derived(6)), "another file");
        assert!(!derived(5).can_be(kept(6)), "another file");
        assert!(!Birth::set(5).can_be(derived(6)), "what a client has set is kept");
    }

    #[test]
    fn only_two_kept_times_are_surely_of_two_files() {
        let (kept, derived) = (Birth::set, Birth::derived);
        assert!(kept(5).is_surely_not(kept(6)) && !kept(5).is_surely_not(kept(5)));
        assert!(!derived(5).is_surely_not(kept(6)) && !kept(6).is_surely_not(derived(5)));
        assert!(!derived(5).is_surely_not(derived(6)));
        assert_eq!((derived(5).latest(kept(6)), derived(6).latest(derived(5))), (kept(6), derived(6)));
        assert_eq!(kept(5).latest(derived(6)), kept(5));
    }
}
