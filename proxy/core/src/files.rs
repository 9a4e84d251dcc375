//! What crosses Links: per file, the Opens of all Links, what they are called, and how many of them are not back yet.
//!
//! A file's *barrier* stands while a recorded Open of it, of whatever Link, is unreclaimed. Until it is lifted
//! nothing but reclaim passes to that file, whichever of its names is used, where its on-disk id is known. While any Open is
//! unreclaimed, requests that open files or change names wait too, for names alias (case, hard links, two shares on one
//! directory).
//!
//! A rename by any Link changes the name of every Open of that file, of its streams, and of what is beneath a directory. A
//! Link takes the names over before it reclaims ([`Files::place`]); what is not there is looked for under the other names
//! that it may have ([`Files::elsewhere`]): every rename is known from the moment on in which it is sent.
//!
//! A Link whose requests were in flight when its node was lost is *in doubt* if they change names: whether they were done
//! is to be found out. Meanwhile no fresh request of any Link opens a file or changes a name. Links find out one after the
//! other, in the order in which they are ready, so that no two of them take the same file for their own. What clients have
//! made and removed is remembered for that, by name and time.
//!
//! The owner applies every [`FileEvent`] of every Link, calls [`Files::all_lost`] before it tells any Link
//! of a new node, and wakes the Links that wait whenever [`Files::version`] has changed.

mod absent;
mod barrier;
pub(crate) mod bygone;
mod doom;
mod history;
mod lately;
mod moves;
mod name;
mod remembered;
mod renames;
mod tail;
mod traces;
mod under_way;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

pub(crate) use self::absent::Claimed;
use self::{
    absent::{ABSENT, Absent},
    barrier::Barrier,
    bygone::Bygone,
    lately::Lately,
    remembered::{Record, Remembered},
    renames::{Heard, Over, Renames},
    traces::Traces,
    under_way::Ongoing,
};
pub(crate) use self::{history::Maker, renames::Taking, tail::Tail, under_way::UnderWay};
pub use self::{
    history::Remover,
    name::{FileIdentity, Name},
    traces::Deed,
};
use crate::{
    event::FileEvent,
    ids::{LinkId, MessageId, OpenToken},
};

pub use crate::link::birth::Birth;

/// A name as the proxy can tell it from another: share and path, both folded to lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey(pub Arc<str>);

/// One Open.
#[derive(Debug)]
struct Entry {
    name: Name,
    file: FileIdentity,
    heard: Heard,
    /// When it was heard of that it is called so.
    named: Instant,
    reclaimed: bool,
    /// Back, but for its delete-on-close flag.
    unflagged: bool,
    /// Its file is to be deleted once it is closed.
    deletes: bool,
    /// Its file is deleted when the last of that file's Opens is closed.
    doomed: bool,
    /// It is open to write.
    writes: bool,
}

/// What has one name.
#[derive(Debug, Default)]
struct File {
    opens: Vec<(LinkId, OpenToken)>,
    barrier: Barrier,
    /// Links that may have changed it just before they lost their nodes.
    #[expect(clippy::box_collection, reason = "few files have any, and all would pay for it")]
    wrote: Option<Box<BTreeSet<LinkId>>>,
    tail: Tail,
}

/// What a Link is to know of one of its Opens before it reclaims it.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a Name,
    /// When it was heard of that it is called so.
    pub(crate) since: Instant,
    pub(crate) birth: Birth,
    /// The file is to be deleted on its last close.
    pub(crate) doomed: bool,
}

/// The Opens of all Links, by file.
#[derive(Debug, Default)]
pub struct Files {
    links: HashMap<LinkId, BTreeMap<OpenToken, Box<Entry>>>,
    files: BTreeMap<FileKey, Box<File>>,
    unreclaimed: u64,
    /// The same by the number of a file on the disk, while there are any.
    numbers: HashMap<u64, Barrier>,
    version: u64,
    /// Opens on the node of an earlier generation are lost.
    lost_before: u64,
    renames: Renames,
    /// Links that have, or had, something in flight on a node, and the generation of the assignment that named it.
    served: HashMap<LinkId, u64>,
    /// Those of them that have still to hear that their node is lost: what they have in flight, nobody knows.
    behind: HashSet<LinkId>,
    /// Links in doubt.
    doubtful: HashSet<LinkId>,
    /// Those of them that are ready to find out.
    deciding: VecDeque<LinkId>,
    /// The one of them that is at it. It alone passes its turn on: what it has begun is never overtaken.
    turn: Option<LinkId>,
    /// Those of them that wait for others to find out.
    deferring: HashSet<LinkId>,
    /// Requests, at nodes that serve, to delete the files of Opens.
    deleting: HashMap<(LinkId, MessageId), OpenToken>,
    /// Names that requests of Links, which were open to doubt, may still change: the node lets them wait.
    pending: HashMap<LinkId, Vec<FileKey>>,
    /// Names that came to be, and when they were asked for.
    made: Remembered,
    /// Names that are no more, and when that was heard of.
    gone: Remembered,
    /// Names whose files were found under others.
    moved: Remembered,
    /// Those of the names that are gone which were taken from their files by a request that opened them by that very name.
    taken: Remembered,
    traces: Traces,
    ongoing: Ongoing,
    lately: Lately,
    /// Opens for whose client the file is held.
    held: HashSet<(LinkId, OpenToken)>,
    /// Opens that have other names since the owner has told their Links.
    moved_opens: VecDeque<(LinkId, OpenToken, Box<[u8]>)>,
    /// Opens whose clients are away.
    absent: Absent,
    bygone: Bygone,
    /// Whose Link is whose: ClientGuids.
    clients: HashMap<LinkId, [u8; 16]>,
    /// Some changes of names are never seen.
    blind: bool,
}

impl Files {
    /// Grows whenever a barrier was raised or lifted, and when a file was renamed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// An Open that has another name now: its Link is to be told by `handle_moved`, so that it is recorded.
    pub fn poll_moved(&mut self) -> Option<(LinkId, OpenToken, Box<[u8]>)> {
        self.moved_opens.pop_front()
    }

    /// Recorded Opens of clients that are there.
    pub fn opens(&self) -> usize {
        let opens: usize = self.links.values().map(BTreeMap::len).sum();
        opens - self.absent()
    }

    /// Recorded Opens that are not back yet.
    pub fn unreclaimed(&self) -> u64 {
        self.unreclaimed
    }

    /// Whether some file is held for a client.
    pub(crate) fn is_something_held(&self) -> bool {
        !self.held.is_empty() || !self.pending.is_empty() || self.absent.is_keeping()
    }

    /// Whether a request waits on the node that was open to doubt, and may still change a name like this: the last component
    /// is enough, for one directory may be in two shares.
    pub(crate) fn is_name_pending(&self, key: &FileKey) -> bool {
        let mut pending = self.pending.values().flatten();
        pending.any(|pending| remembered::leaf(pending) == remembered::leaf(key))
    }

    /// The files that are held for the clients of other Links.
    fn held_from(&self, link: LinkId) -> impl Iterator<Item = &FileKey> {
        let others = self.held.iter().filter(move |(holder, _)| *holder != link);
        others.filter_map(|(holder, open)| self.entry(*holder, *open)).map(|entry| &entry.name.key)
    }

    /// Whether the file of an Open is held for the client of another Link.
    pub fn is_held(&self, link: LinkId, open: OpenToken) -> bool {
        let key = self.entry(link, open).map(|entry| &entry.name.key);
        key.is_some() && self.held_from(link).any(|held| Some(held) == key)
    }

    /// The same by a name: the last component is enough, for one directory may be in two shares.
    pub(crate) fn is_name_held(&self, link: LinkId, key: &FileKey) -> bool {
        self.held_from(link).any(|held| remembered::leaf(held) == remembered::leaf(key))
    }

    /// Whether another Link may have changed the file of an Open just before it lost its node, too; or, if the node lives, by
    /// then or since.
    pub(crate) fn may_others_have_written(&self, link: LinkId, open: OpenToken, node_lives: bool) -> bool {
        let file = self.entry(link, open).and_then(|entry| self.files.get(&entry.name.key));
        let Some(file) = file else { return false };
        let writes = |(other, open): &(LinkId, OpenToken)| {
            *other != link && self.entry(*other, *open).is_some_and(|entry| entry.writes)
        };
        file.wrote.iter().any(|links| links.iter().any(|other| *other != link))
            || node_lives && file.opens.iter().any(writes)
    }

    /// What is known of the end of an Open's file. `None`: another name may be the same file's.
    pub(crate) fn tail(&self, link: LinkId, open: OpenToken) -> Option<&Tail> {
        let entry = self.entry(link, open)?;
        let is_alias = |other: &Entry| {
            other.file.number.is_some()
                && other.file.number == entry.file.number
                && other.name.key != entry.name.key
        };
        let has_alias = self.links.values().flat_map(BTreeMap::values).any(|other| is_alias(other));
        self.files.get(&entry.name.key).filter(|_| !has_alias && !self.blind).map(|file| &file.tail)
    }

    fn tail_mut(&mut self, link: LinkId, open: OpenToken) -> Option<&mut Tail> {
        let key = self.entry(link, open)?.name.key.clone();
        self.files.get_mut(&key).map(|file| &mut file.tail)
    }

    /// The first Open of a file tells where it ends, unless what was closed just before may still have changed that.
    fn sized(&mut self, link: LinkId, open: OpenToken, end: Option<u64>, asked: Instant) {
        let Some(key) = self.entry(link, open).map(|entry| entry.name.key.clone()) else { return };
        let unsure = self.blind || self.lately.may_be_closed_since(&key, asked);
        let Some(file) = self.files.get_mut(&key) else { return };
        if end.is_none() || unsure {
            file.tail.found(None);
        } else if file.opens.len() == 1 {
            file.tail.found(end);
        }
    }

    /// Whether the node that was named by this assignment serves no more, and what is open there is lost.
    pub(crate) fn is_over(&self, generation: u64) -> bool {
        generation < self.lost_before
    }

    /// Whether some Link has still to find out what became of its requests, or to hear that its node is lost.
    pub fn is_in_doubt(&self) -> bool {
        !self.doubtful.is_empty() || !self.behind.is_empty()
    }

    /// Whether it is this Link's turn to find out.
    pub(crate) fn may_decide(&self, link: LinkId) -> bool {
        self.turn == Some(link) && self.behind.is_empty()
    }

    /// The next one has its turn, if nobody has.
    fn pass_turn(&mut self) {
        let next = self.deciding.iter().find(|next| !self.deferring.contains(next));
        self.turn = self.turn.or(next.or(self.deciding.front()).copied());
    }

    fn end_turn(&mut self, link: LinkId) {
        self.turn = self.turn.filter(|turn| *turn != link);
        self.asks_no_more(link);
        self.pass_turn();
    }

    /// Whether the name may have been taken from its file since then by a rename of which it is not known what became.
    pub(crate) fn taking(&self, key: &FileKey, since: Instant) -> Taking {
        self.renames.taking(key, since)
    }

    /// Whether a file that was opened by this name may have been given another one by that Open since then, and it is not known
    /// whether it was.
    pub(crate) fn may_have_moved(&self, key: &FileKey, since: Instant) -> bool {
        self.renames.may_have_moved(key, since)
    }

    /// What an Open's file is called by now, and more of it.
    pub(crate) fn place(&self, link: LinkId, open: OpenToken) -> Option<Place<'_>> {
        let entry = self.entry(link, open)?;
        let doomed = entry.deletes || entry.doomed;
        Some(Place { name: &entry.name, since: entry.named, birth: entry.file.birth, doomed })
    }

    /// Where else to look for the file of an Open: it is not there under these names.
    pub(crate) fn elsewhere(&self, link: LinkId, open: OpenToken, tried: &[FileKey]) -> Option<Name> {
        let entry = self.entry(link, open)?;
        let names = self.renames.names_of(&entry.name, entry.file);
        names.into_iter().find(|name| !tried.contains(&name.key))
    }

    /// All nodes' Links are about to be moved, by an assignment of this generation: every Open of every Link is unreclaimed,
    /// and so are those that are still to be heard of from the node before.
    pub fn all_lost(&mut self, now: Instant, generation: u64) {
        self.lost_before = self.lost_before.max(generation);
        self.version += 1;
        self.traces.node_lost(now);
        self.nothing_runs();
        let lost_before = self.lost_before;
        self.behind.extend(self.served.extract_if(|_, had| *had < lost_before).map(|(link, _)| link));
        self.absent_lost(now);
        let links: Vec<LinkId> = self.links.keys().copied().filter(|link| *link != ABSENT).collect();
        for link in links {
            self.mark_lost(link);
        }
    }

    /// Takes one Link's news in.
    pub fn handle(&mut self, now: Instant, link: LinkId, event: FileEvent) {
        match event {
            FileEvent::Opened { open, name, file, asked, generation, deletes } => {
                let name = self.renames.name_by_now(name, file, asked);
                self.succeed_doomed(now, &name.key, file, asked);
                let reclaimed = !self.is_over(generation);
                // Links are heard in any order: it was opened before its file was doomed.
                let doomed = self.at(&name.key).any(|other| other.doomed && !other.file.is_surely_not(file));
                let (heard, named, unflagged, writes) = (self.renames.hear(now), now, false, false);
                let entry = Entry { name, file, heard, named, reclaimed, unflagged, deletes, doomed, writes };
                self.insert(link, open, entry);
            }
            FileEvent::Closed { open } => self.closed(now, link, open),
            FileEvent::GivenUp { open, deleted } => {
                self.release(link, open);
                if let Some(entry) = self.remove(link, open) {
                    self.lately.closed(&entry.name.key, Some(now));
                    let ends = entry.doomed && self.is_of_others(&entry);
                    if (deleted || ends)
                        && !self.is_gone_since(&entry.name.key, entry.file.birth, entry.named)
                    {
                        self.gone(now, entry.name.key, entry.file.birth);
                    }
                }
            }
            FileEvent::Identified { open, file } => self.identified(link, open, file),
            FileEvent::Born { open, birth } => self.born(link, open, birth),
            FileEvent::Doomed { open, doomed } => self.doom(link, open, doomed),
            FileEvent::Renaming { open, from, to, asked, id } => {
                self.renaming(link, open, (from, to), asked, id);
            }
            FileEvent::RenameOver { id, known } => {
                self.renames.over(link, id, if known { Over::Known } else { Over::Unknown(Some(now)) });
                self.end_deferring();
            }
            FileEvent::Deleting { open, id } => {
                self.deleting.insert((link, id), open);
            }
            FileEvent::DeletingOver { id } => {
                let was = self.deleting.remove(&(link, id)).is_some();
                self.version += u64::from(was && self.is_in_doubt());
            }
            FileEvent::Renamed { open, to, asked, found } => {
                self.renamed(now, link, open, (to, asked), found);
            }
            FileEvent::Gone { key, birth: None }
                if self.lately.holder(&key).is_none() && self.lately.left(&key, None).is_some() =>
            {
                self.handle(now, link, FileEvent::LeftGone { key, but: None });
            }
            FileEvent::Gone { key, birth } => {
                let last = || self.lately.holder(&key).map(|(birth, _)| birth);
                let birth = birth.or_else(last).unwrap_or(Birth::set(0));
                if !self.is_shared(&key) {
                    self.taken.insert(key.clone(), birth, now);
                }
                self.gone(now, key, birth);
            }
            FileEvent::LeftGone { key, but } => {
                if let Some(left) = self.lately.left(&key, but) {
                    self.gone(now, key, left.birth);
                }
            }
            FileEvent::Perhaps { key, deed, coming } => self.traces.note(now, key, deed, coming),
            FileEvent::LeftRunning { generation } => self.left_running(link, generation),
            FileEvent::RunsNoMore { ended } => self.runs_no_more(link, ended),
            FileEvent::Asking => self.asked_by(link),
            FileEvent::Told { deeds } => self.told_by(link, deeds),
            FileEvent::Writes { open } => {
                if let Some(entry) = self.links.get_mut(&link).and_then(|opens| opens.get_mut(&open)) {
                    entry.writes = true;
                }
            }
            FileEvent::Wrote { open } => {
                let key = self.entry(link, open).map(|entry| entry.name.key.clone());
                if let Some(file) = key.and_then(|key| self.files.get_mut(&key)) {
                    file.wrote.get_or_insert_default().insert(link);
                }
            }
            FileEvent::Sized { open, end, asked } => self.sized(link, open, end, asked),
            FileEvent::Appending { open, id, data } => {
                if let Some(tail) = self.tail_mut(link, open) {
                    tail.asked(link, id, data);
                }
            }
            FileEvent::Appended { open, id, written } => {
                if let Some(tail) = self.tail_mut(link, open) {
                    tail.answered(link, id, written);
                }
            }
            FileEvent::Held { open } => {
                if self.entry(link, open).is_some() && self.held.insert((link, open)) {
                    self.version += 1;
                }
            }
            FileEvent::Released { open } => self.release(link, open),
            FileEvent::Served { generation } => {
                if self.is_over(generation) {
                    self.behind.insert(link);
                } else {
                    self.served.insert(link, generation);
                }
            }
            FileEvent::Lost => {
                self.unserved(link);
                self.end_deleting(link);
                self.mark_lost(link);
            }
            // On a node that serves no more, which its Link is still to be told, nothing is back.
            FileEvent::Unflagged { generation, .. } | FileEvent::Reclaimed { generation, .. }
                if self.is_over(generation) => {}
            FileEvent::Unflagged { open, .. } => self.mark_unflagged(link, open),
            FileEvent::Reclaimed { open, .. } => self.mark_reclaimed(link, open),
            FileEvent::Made { key, birth, at } => {
                self.succeed_doomed(now, &key, FileIdentity { birth, number: None }, at);
                // Links are heard in any order: it may be that what was made is gone.
                if !self.is_gone_since(&key, birth, at) {
                    self.lately.given(&key, birth, at, now);
                }
                // It may be told before it is answered, and again then.
                let is_it = |made: &Record| made.key == key && made.birth.is_at(birth);
                if !self.made.alike(&key).any(is_it) {
                    self.made.insert(key, birth, at);
                }
            }
            FileEvent::Unseen => self.blind = true,
            FileEvent::Met { open, lease } => self.absent_meets(now, link, open, lease),
            FileEvent::Client { guid } => {
                self.clients.insert(link, guid);
            }
            FileEvent::Left { open, record, lost } => self.left(now, link, open, record, lost),
            FileEvent::Claim { open, claim } => self.claim(link, open, &claim),
            FileEvent::ClaimEnded { open, kept } => self.claim_ended(now, link, open, kept),
            FileEvent::Unclaim { open } => self.unclaim(link, open),
            FileEvent::BygoneEnded { client, session } => self.bygone_ended(client, session),
            FileEvent::Doubtful => {
                self.deciding.retain(|other| *other != link);
                self.deferring.remove(&link);
                self.end_turn(link);
                self.doubtful.insert(link);
                self.version += 1;
            }
            FileEvent::Deciding => {
                if !self.deciding.contains(&link) {
                    self.deciding.push_back(link);
                }
                self.pass_turn();
                self.version += 1;
            }
            FileEvent::Deferring => {
                let had = self.turn;
                let is_new = self.deferring.insert(link);
                self.end_turn(link);
                self.version += u64::from(is_new || self.turn != had);
            }
            FileEvent::Pending { key } => {
                self.pending.entry(link).or_default().push(key);
                self.version += 1;
            }
            FileEvent::NonePending => self.version += u64::from(self.pending.remove(&link).is_some()),
            FileEvent::Decided => self.decided(link),
        }
    }

    /// The Link is gone, and its Opens with it.
    pub fn link_gone(&mut self, link: LinkId) {
        self.decided(link);
        self.unclaim_all(link);
        self.version += u64::from(self.pending.remove(&link).is_some());
        self.renames.link_gone(link);
        self.unserved(link);
        self.runs_no_more(link, false);
        self.end_deleting(link);
        self.end_deferring();
        let opens: Vec<_> = self.links.get(&link).into_iter().flat_map(BTreeMap::keys).copied().collect();
        for open in opens {
            self.release(link, open);
            if let Some(entry) = self.remove(link, open) {
                self.lately.closed(&entry.name.key, None);
            }
        }
    }

    fn entry(&self, link: LinkId, open: OpenToken) -> Option<&Entry> {
        Some(&**self.links.get(&link)?.get(&open)?)
    }

    /// What is open by this name.
    fn at(&self, key: &FileKey) -> impl Iterator<Item = &Entry> {
        let opens = self.files.get(key).into_iter().flat_map(|file| &file.opens);
        opens.filter_map(|(link, open)| self.entry(*link, *open))
    }

    fn entry_mut(&mut self, link: LinkId, open: OpenToken) -> Option<&mut Entry> {
        Some(&mut **self.links.get_mut(&link)?.get_mut(&open)?)
    }

    /// A Link has heard that its node is lost, and told what it had in flight; or it is gone.
    fn unserved(&mut self, link: LinkId) {
        self.served.remove(&link);
        self.need_not_tell(link);
        self.version += u64::from(self.behind.remove(&link));
    }

    /// What a Link has asked its node to delete is no more under way.
    fn end_deleting(&mut self, link: LinkId) {
        let before = self.deleting.len();
        self.deleting.retain(|(by, _), _| *by != link);
        self.version += u64::from(self.deleting.len() < before && self.is_in_doubt());
    }

    fn release(&mut self, link: LinkId, open: OpenToken) {
        if self.held.remove(&(link, open)) {
            self.version += 1;
        }
    }

    /// Those who wait for what has become of a rename look again.
    fn end_deferring(&mut self) {
        self.version += u64::from(!self.deferring.is_empty());
        self.deferring.clear();
    }

    fn decided(&mut self, link: LinkId) {
        self.deciding.retain(|other| *other != link);
        self.deferring.remove(&link);
        self.end_turn(link);
        if self.doubtful.remove(&link) {
            self.version += 1;
        }
    }

    fn insert(&mut self, link: LinkId, open: OpenToken, entry: Entry) {
        if link == ABSENT {
            self.absent.named(open, &entry.name.key);
        }
        let opens = &mut self.files.entry(entry.name.key.clone()).or_default().opens;
        if opens.is_empty() {
            // Most files are open once.
            opens.reserve_exact(1);
        }
        opens.push((link, open));
        self.raise(&entry.name.key, entry.file.number, entry.wants());
        self.links.entry(link).or_default().insert(open, Box::new(entry));
    }

    /// Takes an Open out.
    fn remove(&mut self, link: LinkId, open: OpenToken) -> Option<Entry> {
        self.take_out(link, open).map(|(entry, _)| entry)
    }

    /// Takes an Open out, and with it what is kept of its name, if it was the last.
    fn take_out(&mut self, link: LinkId, open: OpenToken) -> Option<(Entry, Option<Box<File>>)> {
        let opens = self.links.get_mut(&link)?;
        let entry = *opens.remove(&open)?;
        if link == ABSENT {
            self.absent.unnamed(open, &entry.name.key);
        }
        if opens.is_empty() {
            self.links.remove(&link);
        }
        self.lift(&entry.name.key, entry.file.number, entry.wants());
        let file = self.files.get_mut(&entry.name.key)?;
        if let Some(at) = file.opens.iter().position(|of| *of == (link, open)) {
            file.opens.swap_remove(at);
        }
        let last = file.opens.is_empty().then(|| self.files.remove(&entry.name.key)).flatten();
        Some((entry, last))
    }

    /// It is known better which file an Open is of.
    fn identified(&mut self, link: LinkId, open: OpenToken, file: FileIdentity) {
        let Some(entry) = self.entry_mut(link, open) else { return };
        let before = std::mem::replace(&mut entry.file, file);
        let (key, wants) = (entry.name.key.clone(), entry.wants());
        self.raise(&key, file.number, wants);
        self.lift(&key, before.number, wants);
    }

    /// A client has set the time at which a file says that it was created.
    fn born(&mut self, link: LinkId, open: OpenToken, birth: Birth) {
        let Some(by) = self.entry(link, open) else { return };
        let (key, file) = (by.name.key.clone(), by.file);
        for (link, open) in self.files.get(&key).map(|file| file.opens.clone()).unwrap_or_default() {
            if let Some(entry) = self.entry_mut(link, open).filter(|entry| entry.file.can_be(file)) {
                entry.file.birth = birth;
            }
        }
    }
}

#[cfg(test)]
mod tests;
