//! What a look at the disk says of a request that changes names, in flight when its node was lost: pure functions over what
//! stands there and what answered requests are known to have done. The tables are in [`super::probe`] and
//! [`super::compound`].

use smb_parse::{cmd::create, create_context::ResponseContext};

use super::probe::Finding;
use crate::{
    files::{Maker, Remover},
    link::{birth::Birth, open::known_id},
};

/// How far clocks may be apart, and times be rounded, in units of 100 ns: two seconds.
pub(super) const TOLERANCE: u64 = 20_000_000;
/// What is so much older than a request is not of its making, in units of 100 ns.
pub(super) const OLD: u64 = 600_000_000;
/// CreateAction (MS-SMB2 2.2.14).
pub(super) const SUPERSEDED: u32 = 0;
pub(super) const CREATED: u32 = 2;
pub(super) const OVERWRITTEN: u32 = 3;
/// FILE_ATTRIBUTE_DIRECTORY and READONLY, HIDDEN, SYSTEM (MS-FSCC 2.6).
const DIRECTORY: u32 = 0x10;
const SETTABLE: u32 = 0x7;

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(super) birth: Birth,
    /// CreationTime, LastAccessTime, LastWriteTime and ChangeTime.
    pub(super) created: u64,
    pub(super) accessed: u64,
    pub(super) written: u64,
    pub(super) changed: u64,
    pub(super) allocated: u64,
    pub(super) size: u64,
    pub(super) attributes: u32,
    pub(super) on_disk_id: Option<[u8; 32]>,
}

impl Sighting {
    /// As an answer to CREATE has it.
    pub(super) fn of(response: &create::Response<'_>) -> Self {
        let on_disk_id =
            response.contexts().filter_map(Result::ok).find_map(|c| match ResponseContext::parse(&c) {
                ResponseContext::OnDiskId(id) => known_id(id),
                _ => None,
            });
        Self {
            birth: Birth::of(response),
            created: response.creation_time,
            accessed: response.last_access_time,
            written: response.last_write_time,
            changed: response.change_time,
            allocated: response.allocation_size,
            size: response.end_of_file,
            attributes: response.file_attributes,
            on_disk_id,
        }
    }
}

/// Whether two on-disk ids are of one file: the rest of them names the volume, which may differ from node to node.
pub(super) fn is_same_file(one: Option<[u8; 32]>, other: Option<[u8; 32]>) -> Option<bool> {
    Some(one?.get(..8) == other?.get(..8))
}

/// When a request came, on the clock of its node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked(pub(super) Option<u64>);

impl Asked {
    /// It may have happened since.
    fn may_follow(self, time: u64) -> bool {
        self.0.is_none_or(|asked| time.saturating_add(TOLERANCE) >= asked)
    }

    /// It has happened since, or just before.
    fn is_near(self, time: u64) -> bool {
        self.0.is_some() && self.may_follow(time)
    }

    /// It was long before.
    fn is_long_after(self, time: u64) -> bool {
        self.0.is_some_and(|asked| time.saturating_add(OLD) < asked)
    }
}

/// What speaks for and against a CREATE having made what stands there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) maker: Maker,
    pub(super) asked: Asked,
    /// It brought nothing that may have been left undone, or that a file cannot show.
    pub(super) bare: bool,
    pub(super) directory: bool,
    pub(super) attributes: u32,
    /// How large it may be by now: its own compound may have written to it.
    pub(super) size: u64,
}

impl Claim {
    fn is_alike(&self, there: &Sighting) -> bool {
        there.size <= self.size
            && self.directory == (there.attributes & DIRECTORY != 0)
            && there.attributes & self.attributes & SETTABLE == self.attributes & SETTABLE
    }

    /// Whether it has made the file, whatever has become of that since. `None`: nobody can tell.
    fn has_made(&self, there: &Sighting) -> Option<bool> {
        match self.maker {
            Maker::Known => Some(false),
            _ if self.asked.is_long_after(there.created) => Some(false),
            Maker::Nobody if self.asked.is_near(there.created) => Some(true),
            _ => None,
        }
    }
}

/// Whether an exclusive create has made it.
pub(super) fn created(claim: &Claim, there: &Sighting) -> Finding {
    match claim.has_made(there) {
        Some(false) => Finding::Undone,
        Some(true) if claim.bare && claim.is_alike(there) && claim.asked.is_near(there.written) => {
            Finding::Done
        }
        _ => Finding::Unclear,
    }
}

/// Whether a CREATE that opens what exists has made it.
pub(super) fn opened(claim: &Claim, there: &Sighting) -> Finding {
    match claim.has_made(there) {
        Some(false) => Finding::Undone,
        Some(true) if claim.bare => Finding::Done,
        Some(true) => Finding::Partly,
        None => Finding::Unclear,
    }
}

/// Whether a CREATE that empties what exists has done so, and the CreateAction that its client is to be told, if that is not
/// what the node will say. `shared`: others have, or had, the file open meanwhile.
pub(super) fn emptied(
    claim: &Claim,
    there: &Sighting,
    shared: bool,
    supersedes: bool,
) -> (Finding, Option<u32>) {
    let action = match claim.has_made(there) {
        Some(true) => CREATED,
        _ if supersedes => SUPERSEDED,
        _ => OVERWRITTEN,
    };
    if !shared || !claim.asked.may_follow(there.written) {
        // Done or not, there is nothing in it that anybody was told is there.
        return (Finding::Undone, (action == CREATED).then_some(CREATED));
    }
    let is_done = claim.bare && claim.is_alike(there) && claim.asked.is_near(there.written);
    if is_done { (Finding::Done, Some(action)) } else { (Finding::Unclear, None) }
}

/// Which file has a name as far as answered requests tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// None is known.
    Unknown,
    /// One that had it before the request came.
    Before(Birth),
    /// One that got it while the request was under way.
    Since(Birth),
}

impl Holder {
    fn is_before(self, birth: Birth) -> bool {
        matches!(self, Self::Before(known) if known.can_be(birth))
    }

    fn is_since(self, birth: Birth) -> bool {
        matches!(self, Self::Since(known) if known.can_be(birth))
    }
}

/// All that is known of a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) there: Option<Sighting>,
    pub(super) holder: Holder,
    /// Who made what stands there.
    pub(super) maker: Maker,
    /// Who removed what stood there.
    pub(super) remover: Remover,
    /// A rename of which nobody knows what became may have taken the name from its file.
    pub(super) may_be_moved: bool,
    /// The same by an Open, whatever name the file had by then.
    pub(super) may_be_moved_by_open: bool,
    /// Its file may have been deleted by an Open, whatever name it had by then, and nobody knows.
    pub(super) may_be_deleted_by_open: bool,
    /// An answered request removed it before, and none has made it since.
    pub(super) is_gone: bool,
    /// It may have been given to a file meanwhile by a request that is not answered either.
    pub(super) may_be_made: bool,
    /// Changes of it may never be seen.
    pub(super) is_unseen: bool,
    /// Another request found the file by this name when it took it away, and had to wait for nobody: no other had done so.
    pub(super) was_taken: bool,
    /// Before what stands there, or has stood there last, answered requests have left another file there, which the request may
    /// have met.
    pub(super) was_left: bool,
}

impl Name {
    /// What stands there has got the name while the request was under way.
    pub(super) fn is_anew(&self) -> bool {
        self.there.is_some_and(|there| self.holder.is_since(there.birth))
    }

    /// Another file than that stands there, which no answered request has given the name to.
    pub(super) fn is_of_another(&self, other: &Sighting) -> bool {
        let given = |there: Sighting| self.holder.is_before(there.birth) || self.holder.is_since(there.birth);
        self.maker != Maker::Known
            && self.there.is_some_and(|there| {
                !given(there) && is_same_file(there.on_disk_id, other.on_disk_id) == Some(false)
            })
    }

    /// What stands there had the name before the request came.
    pub(super) fn is_as_before(&self, asked: Asked) -> bool {
        self.there.is_some_and(|there| self.holder.is_before(there.birth) || !asked.may_follow(there.created))
    }
}

/// Whether a file was deleted by its name.
pub(super) fn deleted(name: &Name, asked: Asked) -> Finding {
    match name.there {
        None if name.is_unseen => Finding::Unclear,
        None => match (name.holder, name.remover) {
            // An answered request has removed the next one; whoever removed this one was not answered.
            (Holder::Unknown, Remover::Known | Remover::Moved(_)) if name.was_left && name.may_be_moved => {
                Finding::Unclear
            }
            (Holder::Unknown, Remover::Known | Remover::Moved(_)) if name.was_left => Finding::Done,
            (Holder::Unknown, Remover::Known | Remover::Moved(_)) if name.may_be_made => Finding::Unclear,
            (Holder::Unknown, Remover::Known | Remover::Moved(_)) => Finding::Undone,
            // It may have been made, and this have deleted it.
            (Holder::Unknown, _) if name.is_gone && name.may_be_made => Finding::Unclear,
            (Holder::Unknown, _) if name.is_gone => Finding::Undone,
            _ if name.may_be_moved => Finding::Unclear,
            (Holder::Unknown, Remover::Unclear) => Finding::Unclear,
            // Whoever removed what answered requests have left there was not answered.
            (Holder::Before(_) | Holder::Since(_), _) | (_, Remover::Nobody) => Finding::Done,
        },
        // To delete it again would delete what another client has made since.
        Some(_)
            if name.is_anew() && name.was_left && name.remover == Remover::Nobody && !name.may_be_moved =>
        {
            Finding::Done
        }
        // Or else it was made first, and its maker answered while this was under way.
        Some(_) if name.is_anew() => Finding::Unclear,
        Some(_) if name.is_as_before(asked) => Finding::Undone,
        Some(_) => Finding::Unclear,
    }
}

/// Whether what stood under `old` was renamed to `new`.
pub(super) fn renamed(old: &Name, new: &Name, asked: Asked) -> Finding {
    let anew = old.is_anew();
    if old.there.is_some() && !anew {
        return if old.is_as_before(asked) { Finding::Undone } else { Finding::Unclear };
    }
    // To do it again would rename what another client has made since.
    let undone = if anew { Finding::Unclear } else { Finding::Undone };
    let Some(there) = new.there else {
        // Whoever has renamed or deleted the file meanwhile may have done so by an Open, when it had the new name already.
        let by_open = old.may_be_moved_by_open || old.may_be_deleted_by_open;
        let has_had_it = old.was_taken || old.remover == Remover::Nobody && !by_open;
        let is_known_to_be_undone = new.remover != Remover::Known && has_had_it;
        return if is_known_to_be_undone { undone } else { Finding::Unclear };
    };
    if new.holder.is_before(there.birth) || new.holder.is_since(there.birth) {
        return undone;
    }
    match (old.holder, old.remover) {
        (Holder::Before(was), _) if was.can_be(there.birth) => return Finding::Done,
        // Another file may have got the name, and this have renamed it.
        (Holder::Before(_), _) if old.may_be_made => return Finding::Unclear,
        (Holder::Before(_), _) => return undone,
        // It was given the name before the rename was done.
        (Holder::Since(was), _) if !anew && was.can_be(there.birth) => return Finding::Done,
        (_, Remover::Moved(was)) if was.is_at(there.birth) && new.maker != Maker::Known => {
            return Finding::Done;
        }
        _ => {}
    }
    match (new.maker, old.remover) {
        (Maker::Known, _) => undone,
        _ if asked.is_long_after(there.changed) => undone,
        (Maker::Nobody, Remover::Nobody) if asked.is_near(there.changed) => Finding::Done,
        (_, Remover::Moved(_)) if old.may_be_made => Finding::Unclear,
        // That may have been made while this was under way, in the place of what this had renamed.
        (_, Remover::Moved(was)) if asked.may_follow(was.time()) => Finding::Unclear,
        (_, Remover::Moved(_)) => undone,
        // What that request has removed may have been made since this one was done.
        _ => Finding::Unclear,
    }
}

/// Whether what stood under `old`, and stands there no more, was made a link of the name `new`.
pub(super) fn linked_before(old: &Name, new: &Name, asked: Asked) -> Finding {
    let Some(there) = new.there else {
        return if new.remover == Remover::Known { Finding::Unclear } else { Finding::Undone };
    };
    let is_anothers = new.holder.is_before(there.birth) || new.holder.is_since(there.birth);
    if is_anothers || new.maker == Maker::Known || asked.is_long_after(there.changed) {
        return Finding::Undone;
    }
    let was = match (old.holder, old.remover) {
        (Holder::Before(was) | Holder::Since(was), _) if old.there.is_none() => Some(was),
        (_, Remover::Moved(was)) => Some(was),
        _ => None,
    };
    match was {
        Some(was) if was.is_at(there.birth) => Finding::Done,
        // It is older than the request: whoever gave it the name has not made it.
        _ if new.maker == Maker::Nobody
            && asked.is_near(there.changed)
            && !asked.may_follow(there.created) =>
        {
            Finding::Done
        }
        _ => Finding::Unclear,
    }
}

/// Whether `new` was made a link of `source`: what has, or had, that name and on-disk id.
pub(super) fn linked(source: (Option<[u8; 32]>, Holder), new: &Name) -> Finding {
    let Some(there) = new.there else {
        return if new.remover == Remover::Known { Finding::Unclear } else { Finding::Undone };
    };
    match is_same_file(source.0, there.on_disk_id) {
        None => Finding::Unclear,
        Some(false) => Finding::Undone,
        // An answered request has made it: this one collides.
        Some(true) if new.holder.is_before(there.birth) || new.holder.is_since(there.birth) => {
            Finding::Undone
        }
        Some(true) if new.maker == Maker::Known => Finding::Undone,
        // It may be known by another path; but then by the source's.
        Some(true) if new.maker == Maker::Unclear && source.1 == Holder::Unknown => Finding::Unclear,
        Some(true) => Finding::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100 * OLD;
    const SECOND: u64 = 10_000_000;

    fn claim() -> Claim {
        let asked = Asked(Some(NOW));
        Claim { maker: Maker::Nobody, asked, bare: true, directory: false, attributes: 0x20, size: 0 }
    }

    fn at(time: u64) -> Sighting {
        Sighting {
            birth: Birth::set(time),
            created: time,
            accessed: time,
            written: time,
            changed: time,
            allocated: 0,
            size: 0,
            attributes: 0x20,
            on_disk_id: None,
        }
    }

    fn there() -> Sighting {
        at(NOW)
    }

    #[test]
    fn whose_file_it_is() {
        use Finding::{Done, Partly, Unclear, Undone};
        let older = Claim { asked: Asked(None), ..claim() };
        // For a CREATE that must be the one to make it, and for one that opens it else.
        let rows = [
            ("new, empty, of nobody else", claim(), there(), Done, Done),
            ("clocks differ by a second", claim(), Sighting { created: NOW - SECOND, ..there() }, Done, Done),
            (
                "a directory",
                Claim { directory: true, ..claim() },
                Sighting { attributes: 0x10, ..there() },
                Done,
                Done,
            ),
            ("another's", Claim { maker: Maker::Known, ..claim() }, there(), Undone, Undone),
            ("perhaps another's", Claim { maker: Maker::Unclear, ..claim() }, there(), Unclear, Unclear),
            ("old", claim(), Sighting { created: NOW - 2 * OLD, ..there() }, Undone, Undone),
            (
                "neither old nor new",
                claim(),
                Sighting { created: NOW - OLD / 2, ..there() },
                Unclear,
                Unclear,
            ),
            ("written before", claim(), Sighting { written: NOW - OLD / 2, ..there() }, Unclear, Done),
            ("no clock", older, there(), Unclear, Unclear),
            ("another's, no clock", Claim { maker: Maker::Known, ..older }, there(), Undone, Undone),
            ("not empty", claim(), Sighting { size: 1, ..there() }, Unclear, Done),
            (
                "written by its compound",
                Claim { size: 1, ..claim() },
                Sighting { size: 1, ..there() },
                Done,
                Done,
            ),
            ("a directory for a file", claim(), Sighting { attributes: 0x10, ..there() }, Unclear, Done),
            ("a file for a directory", Claim { directory: true, ..claim() }, there(), Unclear, Done),
            ("it brought more", Claim { bare: false, ..claim() }, there(), Unclear, Partly),
            ("not hidden", Claim { attributes: 0x22, ..claim() }, there(), Unclear, Done),
        ];
        for (what, claim, there, exclusive, open_if) in rows {
            assert_eq!(created(&claim, &there), exclusive, "{what}");
            assert_eq!(opened(&claim, &there), open_if, "{what}");
        }
    }

    #[test]
    fn what_may_be_emptied_again() {
        use Finding::{Done, Unclear, Undone};
        let old = Sighting { size: 9, ..at(NOW - 2 * OLD) };
        let fresh = Sighting { written: NOW, ..old };
        let (not, overwritten) = (None, Some(OVERWRITTEN));
        let rows = [
            ("nobody else had it", claim(), fresh, false, (Undone, not)),
            ("nobody else had it, and it made it", claim(), there(), false, (Undone, Some(CREATED))),
            ("others have it, not written since", claim(), old, true, (Undone, not)),
            ("others have it, written since", claim(), fresh, true, (Unclear, not)),
            (
                "others have it, empty since",
                claim(),
                Sighting { size: 0, ..fresh },
                true,
                (Done, overwritten),
            ),
            ("others have it, empty for long", claim(), Sighting { size: 0, ..old }, true, (Undone, not)),
            ("others have it, and it made it", claim(), there(), true, (Done, Some(CREATED))),
            (
                "others have it, it brought more",
                Claim { bare: false, ..claim() },
                Sighting { size: 0, ..fresh },
                true,
                (Unclear, not),
            ),
            ("no clock", Claim { asked: Asked(None), ..claim() }, old, true, (Unclear, not)),
        ];
        for (what, claim, there, shared, expected) in rows {
            assert_eq!(emptied(&claim, &there, shared, false), expected, "{what}");
        }
        let superseded = emptied(&claim(), &Sighting { size: 0, ..fresh }, true, true);
        assert_eq!(superseded, (Done, Some(SUPERSEDED)));
    }

    const BORN: u64 = NOW - 3 * OLD;

    /// A name with nothing known of it.
    fn name(there: Option<Sighting>) -> Name {
        Name {
            there,
            holder: Holder::Unknown,
            maker: Maker::Nobody,
            remover: Remover::Nobody,
            may_be_moved: false,
            may_be_moved_by_open: false,
            may_be_deleted_by_open: false,
            is_gone: false,
            may_be_made: false,
            is_unseen: false,
            was_taken: false,
            was_left: false,
        }
    }

    fn held(there: Option<Sighting>, holder: Holder) -> Name {
        Name { holder, ..name(there) }
    }

    fn removed(remover: Remover) -> Name {
        Name { remover, ..name(None) }
    }

    #[test]
    fn whether_a_name_was_deleted() {
        use Finding::{Done, Unclear, Undone};
        let (old, fresh) = (at(BORN), there());
        let (before, since) = (Holder::Before(fresh.birth), Holder::Since(fresh.birth));
        let remade = Name { was_left: true, ..held(Some(fresh), since) };
        let left = Name { was_left: true, ..removed(Remover::Known) };
        let rows = [
            ("it is not there", name(None), Done),
            ("answered: removed", removed(Remover::Known), Undone),
            ("it was found elsewhere", removed(Remover::Moved(old.birth)), Undone),
            ("answered: perhaps removed", removed(Remover::Unclear), Unclear),
            ("perhaps renamed", Name { may_be_moved: true, ..name(None) }, Unclear),
            ("the same, of what is known", Name { may_be_moved: true, ..held(None, before) }, Unclear),
            ("answered: removed, or renamed", Name { may_be_moved: true, ..removed(Remover::Known) }, Undone),
            ("answered: perhaps made again", Name { may_be_made: true, ..removed(Remover::Known) }, Unclear),
            ("answered: removed long ago", Name { is_gone: true, ..name(None) }, Undone),
            (
                "answered: removed long ago, perhaps made again",
                Name { is_gone: true, may_be_made: true, ..name(None) },
                Unclear,
            ),
            ("nobody sees all", Name { is_unseen: true, ..held(None, before) }, Unclear),
            ("answered: removed, and made again", Name { holder: before, ..removed(Remover::Known) }, Done),
            ("it is there", name(Some(old)), Undone),
            ("it was made just before", held(Some(fresh), before), Undone),
            ("it was made by nobody known, just now", name(Some(fresh)), Unclear),
            ("it was made since, or just before", held(Some(fresh), since), Unclear),
            ("another was there, and it was made since", remade, Done),
            (
                "it was made since, and removed by another",
                Name { remover: Remover::Known, ..remade },
                Unclear,
            ),
            ("the same, and perhaps renamed before", Name { may_be_moved: true, ..remade }, Unclear),
            ("another was there, and what was made since is removed", left, Done),
            ("the same, and perhaps made again", Name { may_be_made: true, ..left }, Done),
            ("another was there, and perhaps renamed", Name { may_be_moved: true, ..left }, Unclear),
        ];
        for (what, name, expected) in rows {
            assert_eq!(deleted(&name, Asked(Some(NOW))), expected, "{what}");
        }
        assert_eq!(deleted(&name(Some(old)), Asked(None)), Unclear, "no clock");
    }

    #[test]
    fn whether_a_name_was_changed() {
        use Finding::{Done, Unclear, Undone};
        let (old, fresh) = (at(BORN), there());
        let moved = Sighting { changed: NOW, ..old };
        let other = Sighting { changed: NOW, ..at(BORN + 1) };
        let (is_old, is_fresh) = (Holder::Before(old.birth), Holder::Since(fresh.birth));
        let anew = held(Some(fresh), is_fresh);
        let known = |there| Name { maker: Maker::Known, ..name(there) };
        let rows = [
            ("it has its old name", name(Some(old)), name(None), Undone),
            ("it has its old name, another the new", name(Some(old)), name(Some(moved)), Undone),
            ("what has the old name is unknown, and new", name(Some(fresh)), name(Some(moved)), Unclear),
            ("neither name is there", name(None), name(None), Undone),
            (
                "neither, and an Open may have renamed it",
                Name { may_be_moved_by_open: true, ..name(None) },
                name(None),
                Unclear,
            ),
            (
                "neither, and an Open may have deleted it",
                Name { may_be_deleted_by_open: true, ..name(None) },
                name(None),
                Unclear,
            ),
            ("neither, and another removed the new", name(None), removed(Remover::Known), Unclear),
            ("neither, and another removed the old", removed(Remover::Known), name(None), Unclear),
            (
                "the same, but it had found the file there",
                Name { was_taken: true, ..removed(Remover::Known) },
                name(None),
                Undone,
            ),
            ("neither, and it was found elsewhere", removed(Remover::Moved(old.birth)), name(None), Unclear),
            ("it has the new name, since now", name(None), name(Some(moved)), Done),
            ("what has the new name has not changed", name(None), name(Some(old)), Undone),
            (
                "it changed a while ago",
                name(None),
                name(Some(Sighting { changed: NOW - OLD / 2, ..old })),
                Unclear,
            ),
            ("an answered request made the new", name(None), known(Some(moved)), Undone),
            ("perhaps one did", name(None), Name { maker: Maker::Unclear, ..name(Some(moved)) }, Unclear),
            ("an answered request gave it the new", name(None), held(Some(moved), is_old), Undone),
            ("it is known to be the file", held(None, is_old), name(Some(moved)), Done),
            (
                "the same, under a like name elsewhere",
                held(None, is_old),
                Name { maker: Maker::Unclear, ..name(Some(moved)) },
                Done,
            ),
            ("it is known to be another", held(None, is_old), name(Some(other)), Undone),
            (
                "the same, but that may have been made there",
                Name { may_be_made: true, ..held(None, is_old) },
                name(Some(other)),
                Unclear,
            ),
            ("an answered request removed the old", removed(Remover::Known), name(Some(moved)), Unclear),
            ("it was found there", removed(Remover::Moved(old.birth)), name(Some(moved)), Done),
            ("it was found elsewhere", removed(Remover::Moved(other.birth)), name(Some(moved)), Undone),
            (
                "it was found elsewhere, and another may have been made there",
                Name { may_be_made: true, ..removed(Remover::Moved(other.birth)) },
                name(Some(moved)),
                Unclear,
            ),
            (
                "it was found there, and is another's",
                removed(Remover::Moved(old.birth)),
                known(Some(moved)),
                Undone,
            ),
            (
                "it got the old name since, and has the new",
                Name { remover: Remover::Known, ..held(None, Holder::Since(old.birth)) },
                name(Some(moved)),
                Done,
            ),
            (
                "another got the old name since",
                Name { remover: Remover::Known, ..held(None, Holder::Since(other.birth)) },
                name(Some(moved)),
                Unclear,
            ),
            ("the old name was made anew", anew, name(Some(moved)), Done),
            ("the old name was made anew, no new one", anew, name(None), Unclear),
            ("the old name was made anew, the new is another's", anew, known(Some(moved)), Unclear),
        ];
        for (what, old, new, expected) in rows {
            assert_eq!(renamed(&old, &new, Asked(Some(NOW))), expected, "{what}");
        }
        assert_eq!(renamed(&name(None), &name(Some(moved)), Asked(None)), Unclear, "no clock");
    }

    #[test]
    fn whether_a_link_was_made_of_what_is_gone_since() {
        use Finding::{Done, Unclear, Undone};
        let (old, fresh) = (at(BORN), there());
        let moved = Sighting { changed: NOW, ..old };
        let gone = name(None);
        let is_old = Holder::Before(old.birth);
        let rows = [
            ("neither is there", gone, name(None), Undone),
            ("neither, and another removed the new", gone, removed(Remover::Known), Unclear),
            ("the new is old, and has changed", gone, name(Some(moved)), Done),
            ("the new is as new as the request", gone, name(Some(fresh)), Unclear),
            ("the new has not changed", gone, name(Some(old)), Undone),
            ("it is known to be the file", held(None, is_old), name(Some(moved)), Done),
            ("the same, removed by an answered request", removed(Remover::Known), name(Some(moved)), Done),
            ("it was found there", removed(Remover::Moved(fresh.birth)), name(Some(fresh)), Done),
            (
                "another has the old name",
                held(Some(fresh), Holder::Since(fresh.birth)),
                name(Some(moved)),
                Done,
            ),
            ("an answered request made it", gone, held(Some(moved), is_old), Undone),
            ("the same, by time", gone, Name { maker: Maker::Known, ..name(Some(moved)) }, Undone),
            ("perhaps one did", gone, Name { maker: Maker::Unclear, ..name(Some(moved)) }, Unclear),
        ];
        for (what, old, new, expected) in rows {
            assert_eq!(linked_before(&old, &new, Asked(Some(NOW))), expected, "{what}");
        }
    }

    #[test]
    fn whether_a_link_was_made() {
        use Finding::{Done, Unclear, Undone};
        let id = |n: u8| Some([n; 32]);
        let file = |n| Sighting { on_disk_id: id(n), ..at(BORN) };
        let is = Holder::Before(Birth::set(BORN));
        let rows = [
            ("it is not there", name(None), Undone),
            ("it is not there, and another removed it", removed(Remover::Known), Unclear),
            ("it is the file", name(Some(file(1))), Done),
            ("it is another file", name(Some(file(2))), Undone),
            ("nobody knows", name(Some(at(BORN))), Unclear),
            ("an answered request made it", held(Some(file(1)), is), Undone),
            ("the same, by time", Name { maker: Maker::Known, ..name(Some(file(1))) }, Undone),
            ("perhaps one did", Name { maker: Maker::Unclear, ..name(Some(file(1))) }, Unclear),
        ];
        for (what, new, expected) in rows {
            assert_eq!(linked((id(1), Holder::Unknown), &new), expected, "{what}");
        }
        let alike = Name { maker: Maker::Unclear, ..name(Some(file(1))) };
        assert_eq!(linked((id(1), is), &alike), Done, "it is known by the source's name");
    }
}
