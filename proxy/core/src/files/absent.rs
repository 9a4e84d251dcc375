//! Opens whose clients are away: their connection is lost, or the proxy was. They may come back by DHnC or DH2C (MS-SMB2
//! 3.3.5.9.7, 3.3.5.9.12).
//!
//! | what was lost | who keeps the file | others |
//! |---|---|---|
//! | the client's connection alone | the node, as a durable Open | as the node says: a conflicting open ends it |
//! | the node, before or after that | nobody | *grace*: nobody else opens the file, or works on it where it was locked |
//! | the proxy | perhaps the node | grace |
//!
//! Grace ends when the client is back, or after [`Files::with_grace`]. An Open of which the node's state is lost is made
//! afresh, if nobody else has had the file since the grace was over.
//!
//! An absent Open belongs to the Link [`ABSENT`], so that it is renamed like any other. A Link that wants one claims it
//! ([`FileEvent::Claim`](crate::event::FileEvent::Claim)), is told by [`Files::claimed`], and says how it ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    hash::{BuildHasher as _, Hash, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use smb_parse::header::Status;
use understudy_state::record::{DurableRecord, OpenKey, OpenRecord};

use super::{Birth, Entry, FileIdentity, FileKey, Files, Name, remembered::leaf};
use crate::{
    effect::Mutation,
    event::Claim,
    ids::{LinkId, OpenToken, SessionId},
    link::persist::birth,
};

/// The Link of Opens whose clients are away.
pub(super) const ABSENT: LinkId = LinkId(0);
/// How long a durable Open of version 1 is kept for its client, as Samba does it.
const V1: Duration = Duration::from_secs(16 * 60);
/// How long others wait on when the client is back: Linux 6.1 acknowledges a break wrongly that comes within a millisecond of the
/// answer by which it has the Open again, and loses its lock over that.
const LINGER: Duration = Duration::from_millis(500);
/// Grace, if nothing else is configured.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug)]
struct Absentee {
    record: OpenRecord,
    /// Until when its client may come back.
    until: Instant,
    /// Until when nobody else is admitted.
    grace: Option<Instant>,
    /// The node may not have it any more: it is opened afresh.
    fresh: bool,
    /// A Link is about to have it.
    claimed: bool,
    /// Somebody who could write has closed the file since.
    written: bool,
    /// Somebody else has had the file, so that a server would have given it up.
    taken: bool,
    /// Its client has it again; only others are still kept from the file.
    back: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Absent {
    opens: BTreeMap<OpenToken, Box<Absentee>>,
    by_id: BTreeSet<(u64, OpenToken)>,
    /// By the last components of their names, as hashes: one directory may be in two shares.
    by_leaf: BTreeSet<(u64, OpenToken)>,
    /// By whoever may claim them: the hash of a ClientGuid, or of a user's name, see [`Owner`].
    by_owner: BTreeSet<(u64, OpenToken)>,
    /// By when something is due for them.
    by_time: BTreeSet<(Instant, OpenToken)>,
    hasher: RandomState,
    /// What many records have in common, once.
    words: HashSet<Arc<str>>,
    /// How many keep others from their files.
    keeping: usize,
    /// How many are there still although their clients have them again.
    back: usize,
    claims: HashMap<(LinkId, OpenToken), Result<OpenToken, Status>>,
    next: u64,
    grace: Duration,
    mutations: VecDeque<Mutation>,
}

impl Absentee {
    fn new(record: OpenRecord, until: Instant, grace: Option<Instant>) -> Self {
        let fresh = grace.is_some();
        Self { record, until, grace, fresh, claimed: false, written: false, taken: false, back: false }
    }

    /// Whether others are kept from its file.
    fn keeps(&self) -> bool {
        self.grace.is_some() || self.back
    }

    /// When its grace or its time is over, unless a Link is about to have it.
    fn due(&self) -> Option<Instant> {
        let first = self.grace.map_or(self.until, |grace| grace.min(self.until));
        (!self.claimed).then_some(first)
    }
}

impl Absent {
    /// Whether somebody is kept from some file.
    pub(super) fn is_keeping(&self) -> bool {
        self.keeping > 0
    }

    /// How long others are kept from its file, at most.
    fn grace_of(&self, record: &OpenRecord) -> Duration {
        self.grace.max(resilience(record))
    }

    /// One is called so now.
    pub(super) fn named(&mut self, token: OpenToken, key: &FileKey) {
        self.by_leaf.insert((self.hash(leaf(key)), token));
    }

    /// One is not called so any more.
    pub(super) fn unnamed(&mut self, token: OpenToken, key: &FileKey) {
        self.by_leaf.remove(&(self.hash(leaf(key)), token));
    }

    fn hash(&self, what: impl Hash) -> u64 {
        self.hasher.hash_one(what)
    }

    /// Those that this owner may claim, and perhaps others.
    fn of(&self, owner: Owner<'_>) -> impl Iterator<Item = &Absentee> {
        let tokens = tokens(&self.by_owner, self.hash(owner));
        tokens.filter_map(|token| self.opens.get(&token)).map(|open| &**open)
    }

    fn insert(&mut self, mut absentee: Absentee) -> OpenToken {
        self.next += 1;
        let token = OpenToken(self.next);
        let OpenRecord { user, share, node, .. } = &mut absentee.record;
        for word in [user, share, node] {
            match self.words.get(word) {
                Some(known) => *word = Arc::clone(known),
                None => drop(self.words.insert(Arc::clone(word))),
            }
        }
        self.by_id.insert((absentee.record.file_id.persistent, token));
        self.by_owner.insert((self.hash(Owner::of(&absentee.record)), token));
        self.count(token, &absentee);
        self.opens.insert(token, Box::new(absentee));
        token
    }

    fn remove(&mut self, token: OpenToken) -> Option<Absentee> {
        let absentee = *self.opens.remove(&token)?;
        self.uncount(token, &absentee);
        self.by_id.remove(&(absentee.record.file_id.persistent, token));
        self.by_owner.remove(&(self.hash(Owner::of(&absentee.record)), token));
        if self.opens.is_empty() {
            self.words.clear();
        }
        Some(absentee)
    }

    /// Changes one. Who may have it stays as it is.
    fn change(&mut self, token: OpenToken, change: impl FnOnce(&mut Absentee)) {
        let Some(mut absentee) = self.opens.remove(&token) else { return };
        self.uncount(token, &absentee);
        change(&mut absentee);
        self.count(token, &absentee);
        self.opens.insert(token, absentee);
    }

    fn count(&mut self, token: OpenToken, absentee: &Absentee) {
        self.by_time.extend(absentee.due().map(|due| (due, token)));
        self.keeping += usize::from(absentee.keeps());
        self.back += usize::from(absentee.back);
    }

    fn uncount(&mut self, token: OpenToken, absentee: &Absentee) {
        if let Some(due) = absentee.due() {
            self.by_time.remove(&(due, token));
        }
        self.keeping -= usize::from(absentee.keeps());
        self.back -= usize::from(absentee.back);
    }
}

/// Who may claim an Open.
#[derive(Hash)]
enum Owner<'a> {
    /// With a lease: its user, as this client.
    Client(&'a [u8; 16]),
    /// Without one nobody asks for the ClientGuid. The user, in lower case.
    User(String),
}

impl<'a> Owner<'a> {
    fn of(record: &'a OpenRecord) -> Self {
        if record.lease.is_some() { Self::Client(&record.client.0) } else { Self::user(&record.user) }
    }

    fn user(name: &str) -> Self {
        Self::User(name.to_lowercase())
    }
}

/// What stands in an index under a number.
fn tokens(index: &BTreeSet<(u64, OpenToken)>, number: u64) -> impl Iterator<Item = OpenToken> {
    index.range((number, OpenToken(0))..=(number, OpenToken(u64::MAX))).map(|(_, token)| *token)
}

impl Default for Absent {
    fn default() -> Self {
        Self {
            opens: BTreeMap::new(),
            by_id: BTreeSet::new(),
            by_leaf: BTreeSet::new(),
            by_owner: BTreeSet::new(),
            by_time: BTreeSet::new(),
            hasher: RandomState::new(),
            words: HashSet::new(),
            keeping: 0,
            back: 0,
            claims: HashMap::new(),
            next: 0,
            grace: GRACE,
            mutations: VecDeque::new(),
        }
    }
}

impl Absent {
    pub(super) fn grace(&self) -> Duration {
        self.grace
    }

    pub(super) fn wants_stored(&mut self, mutation: Mutation) {
        self.mutations.push_back(mutation);
    }

    /// By ClientGuid and SessionId, the sessions of what these users may have had open as whatever client.
    pub(super) fn sessions(&self, users: &[&str]) -> BTreeSet<([u8; 16], SessionId)> {
        let of_user = |user: &&str| {
            let is_theirs =
                |open: &&Absentee| open.record.lease.is_none() && is_user(&open.record.user, user);
            self.of(Owner::user(user)).filter(is_theirs).collect::<Vec<_>>()
        };
        users
            .iter()
            .flat_map(of_user)
            .map(|open| (open.record.client.0, SessionId::from_be_bytes(open.record.session.0)))
            .collect()
    }
}

/// An Open that a Link has claimed.
#[derive(Debug)]
pub(crate) struct Claimed<'a> {
    pub(crate) record: &'a OpenRecord,
    /// What its file is called by now.
    pub(crate) name: &'a Name,
    /// When its file says that it was created.
    pub(crate) birth: Birth,
    /// It may be opened afresh, if the node does not have it.
    pub(crate) fresh: bool,
    /// Others may have changed the file since nobody keeps it for the client.
    pub(crate) stale: bool,
}

impl Files {
    /// Files of which nobody else is admitted to those of absent clients for so long.
    pub fn with_grace(grace: Duration) -> Self {
        let mut files = Self::default();
        files.absent.grace = grace;
        files
    }

    /// A record of an earlier run of the proxy. `left`: how long its client, which was away then, may still come back.
    pub fn load(&mut self, now: Instant, mut record: OpenRecord, left: Option<Duration>) {
        let lasts = if is_lasting(&record) { patience(&record) } else { self.absent.grace };
        let left = left.unwrap_or(lasts);
        let grace = now + self.absent.grace_of(&record).min(left);
        let name = Name::new(&record.share, &record.path);
        record.path = Arc::clone(&name.path);
        let name = record.timewarp.into_iter().fold(name, Name::in_the_past);
        let number = record.on_disk_id.map(|id| id.0).filter(|_| record.timewarp.is_none());
        let file = FileIdentity::new(birth(&record), number);
        let (heard, deletes) = (self.renames.hear(now), record.delete_pending);
        let writes = crate::link::breaks::may_write(record.desired_access);
        let entry = Entry {
            name,
            file,
            heard,
            named: now,
            reclaimed: true,
            unflagged: false,
            deletes,
            doomed: false,
            writes,
        };
        self.absent_is(Absentee::new(record, now + left, Some(grace)), entry);
    }

    /// How many Opens there are whose clients are away.
    pub fn absent(&self) -> usize {
        self.absent.opens.len() - self.absent.back
    }

    /// What is to be stored of them.
    pub fn poll_mutation(&mut self) -> Option<Mutation> {
        self.absent.mutations.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = self.absent.by_time.first().map(|(due, _)| *due);
        first.into_iter().chain(self.bygone_until()).min()
    }

    /// Those whose time is over are gone, and files whose grace is over are free.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_bygone(now);
        while let Some((_, token)) = self.absent.by_time.first().copied().filter(|(due, _)| now >= *due) {
            if self.absent.opens.get(&token).is_some_and(|open| now >= open.until) {
                self.absent_gone(now, token, None);
            } else {
                self.absent.change(token, |open| open.grace = None);
                self.version += 1;
            }
        }
    }

    /// Whether a client that has logged in is to be served by legs of the proxy's own, for it may claim what the node does not
    /// know by the ids that it will name.
    pub(crate) fn wants_bridge(&self, client: [u8; 16], user: &str) -> bool {
        let is_strange = |open: &Absentee| {
            (open.record.client.0 == client || open.record.lease.is_none())
                && !open.back
                && (open.fresh || open.record.file_id != open.record.node_file_id)
                && is_lasting(&open.record)
                && is_user(&open.record.user, user)
        };
        let owners = [Owner::Client(&client), Owner::user(user)];
        owners.into_iter().any(|owner| self.absent.of(owner).any(is_strange))
    }

    /// What became of a Link's claim.
    pub(crate) fn claimed(&self, link: LinkId, open: OpenToken) -> Option<Result<Claimed<'_>, Status>> {
        match self.absent.claims.get(&(link, open))? {
            Err(status) => Some(Err(*status)),
            Ok(token) => {
                let absentee = self.absent.opens.get(token)?;
                let entry = self.entry(ABSENT, *token)?;
                let others = self.files.get(&entry.name.key).into_iter().flat_map(|file| &file.opens);
                let mut others = others.filter(|(of, _)| ![link, ABSENT].contains(of));
                let writes =
                    others.any(|(link, open)| self.entry(*link, *open).is_some_and(|entry| entry.writes));
                Some(Ok(Claimed {
                    record: &absentee.record,
                    name: &entry.name,
                    birth: entry.file.birth,
                    fresh: absentee.fresh,
                    stale: absentee.fresh && (writes || absentee.written),
                }))
            }
        }
    }

    /// A client is gone, and its Open may be had again.
    pub(super) fn left(
        &mut self,
        now: Instant,
        link: LinkId,
        open: OpenToken,
        record: Box<OpenRecord>,
        lost: bool,
    ) {
        self.release(link, open);
        let Some(mut entry) = self.remove(link, open) else { return };
        // Nobody is about to reclaim it.
        (entry.reclaimed, entry.unflagged) = (true, false);
        let until = now + patience(&record);
        let grace = lost.then(|| until.min(now + self.absent.grace_of(&record)));
        let left = patience(&record);
        self.absent.mutations.push_back(Mutation::PutAway(record.clone(), left));
        self.absent_is(Absentee::new(*record, until, grace), entry);
    }

    fn absent_is(&mut self, absentee: Absentee, entry: Entry) {
        let token = self.absent.insert(absentee);
        self.insert(ABSENT, token, entry);
        self.version += 1;
    }

    /// Forgets one. `kept`: it is a Link's again, with this key.
    fn absent_gone(&mut self, now: Instant, token: OpenToken, kept: Option<OpenKey>) {
        let Some(absentee) = self.absent.remove(token) else { return };
        let key = absentee.record.key();
        if kept != Some(key) && !absentee.back {
            self.absent.mutations.push_back(Mutation::RemoveOpen(key));
        }
        if let Some(entry) = self.remove(ABSENT, token) {
            self.lately.closed(&entry.name.key, Some(now));
        }
        self.version += 1;
    }

    /// One has another name.
    pub(super) fn absent_moved(&mut self, token: OpenToken, path: &Arc<[u8]>) {
        if let Some(open) = self.absent.opens.get_mut(&token).filter(|open| !open.back) {
            open.record.path = Arc::clone(path);
            let left = patience(&open.record);
            self.absent.mutations.push_back(Mutation::PutAway(Box::new(open.record.clone()), left));
        }
    }

    /// The state of all nodes before this is lost.
    pub(super) fn absent_lost(&mut self, now: Instant) {
        let is_kept = |open: &Absentee| !open.back && !open.taken && !open.fresh;
        let kept = self.absent.opens.iter().filter(|(_, open)| is_kept(open)).map(|(token, _)| *token);
        for token in kept.collect::<Vec<_>>() {
            let grace = self.absent.grace;
            self.absent.change(token, |open| {
                let grace = now + grace.max(resilience(&open.record));
                (open.fresh, open.grace) = (true, Some(open.until.min(grace)));
            });
            self.version += 1;
        }
    }

    /// A Link claims an Open.
    pub(super) fn claim(&mut self, link: LinkId, open: OpenToken, claim: &Claim) {
        let mut answer = Err(Status::OBJECT_NAME_NOT_FOUND);
        for token in tokens(&self.absent.by_id, claim.file_id.persistent) {
            let Some(absentee) = self.absent.opens.get(&token).filter(|open| !open.claimed && !open.back)
            else {
                continue;
            };
            let Some(entry) = self.entry(ABSENT, token) else { continue };
            match permits(&absentee.record, &entry.name, claim) {
                Ok(()) => answer = Ok(token),
                Err(status) if answer.is_err() => answer = Err(status),
                Err(_) => {}
            }
        }
        if let Ok(token) = answer {
            self.absent.change(token, |open| open.claimed = true);
        }
        self.absent.claims.insert((link, open), answer);
        self.version += 1;
    }

    /// A claim is over. `kept`: the Link has the Open, with this key; else it is lost.
    pub(super) fn claim_ended(&mut self, now: Instant, link: LinkId, open: OpenToken, kept: Option<OpenKey>) {
        let Some(Ok(token)) = self.absent.claims.remove(&(link, open)) else { return };
        let lingers = |open: &Absentee| kept.is_some() && open.grace.is_some();
        match self.absent.opens.get(&token).filter(|open| lingers(open)).map(|open| open.record.key()) {
            Some(key) => {
                self.absent.change(token, |open| {
                    (open.back, open.claimed, open.until, open.grace) = (true, false, now + LINGER, None);
                });
                if kept != Some(key) {
                    self.absent.mutations.push_back(Mutation::RemoveOpen(key));
                }
            }
            None => self.absent_gone(now, token, kept),
        }
    }

    /// A claim is given up: the Open may be claimed again.
    pub(super) fn unclaim(&mut self, link: LinkId, open: OpenToken) {
        if let Some(Ok(token)) = self.absent.claims.remove(&(link, open)) {
            self.absent.change(token, |open| open.claimed = false);
        }
    }

    /// The Link is gone: so are its claims.
    pub(super) fn unclaim_all(&mut self, link: LinkId) {
        let claims = self.absent.claims.keys().filter(|(of, _)| *of == link);
        for (link, open) in claims.copied().collect::<Vec<_>>() {
            self.unclaim(link, open);
        }
        self.clients.remove(&link);
    }

    /// A client has opened a file afresh. What others had of it cannot be had afresh any more, without grace; what the client
    /// itself had is over, as at a server, where the new Open would have broken its oplock or lease; but not if it has opened
    /// the file by the same lease.
    pub(super) fn absent_meets(
        &mut self,
        now: Instant,
        link: LinkId,
        open: OpenToken,
        lease: Option<[u8; 16]>,
    ) {
        let Some(entry) = self.entry(link, open).filter(|_| !self.absent.opens.is_empty()) else { return };
        let client = self.clients.get(&link).copied();
        let at = self.files.get(&entry.name.key).map(|file| file.opens.clone()).unwrap_or_default();
        for (_, token) in at.into_iter().filter(|(link, _)| *link == ABSENT) {
            let Some(open) = self.absent.opens.get_mut(&token).filter(|open| !open.back) else { continue };
            if Some(open.record.client.0) != client {
                if open.grace.is_none() && !open.claimed {
                    open.taken |= open.fresh || is_exclusive(&open.record);
                    open.fresh = false;
                }
            } else if !open.claimed && (lease.is_none() || open.record.lease.map(|l| l.key.0) != lease) {
                self.absent_gone(now, token, None);
            }
        }
    }

    /// Somebody who could write has closed a file.
    pub(super) fn absent_written(&mut self, key: &FileKey) {
        let at = self.files.get(key).map(|file| file.opens.clone()).unwrap_or_default();
        for (_, token) in at.into_iter().filter(|(link, _)| *link == ABSENT) {
            if let Some(open) = self.absent.opens.get_mut(&token) {
                open.written = true;
            }
        }
    }

    /// Whether the file of an Open is kept for a client that is away and had locks on it. Where it had none, who has the file
    /// open already goes on.
    pub(crate) fn is_in_grace(&self, link: LinkId, open: OpenToken) -> bool {
        let Some(entry) = self.entry(link, open).filter(|_| self.absent.is_keeping()) else { return false };
        let at = self.files.get(&entry.name.key).into_iter().flat_map(|file| &file.opens);
        at.filter(|(link, _)| *link == ABSENT)
            .filter_map(|(_, token)| self.kept_from(link, *token))
            .any(|open| !open.record.locks.is_empty())
    }

    /// Whether a file is kept for a client that is away. The last component is enough.
    pub(crate) fn is_name_in_grace(&self, link: LinkId, key: &FileKey) -> bool {
        let is_meant = |token: &OpenToken| {
            self.entry(ABSENT, *token).is_some_and(|entry| leaf(&entry.name.key) == leaf(key))
        };
        let mut at = tokens(&self.absent.by_leaf, self.absent.hash(leaf(key))).filter(is_meant);
        self.absent.is_keeping() && at.any(|token| self.kept_from(link, token).is_some())
    }

    /// An Open whose file is kept from this Link.
    fn kept_from(&self, link: LinkId, token: OpenToken) -> Option<&Absentee> {
        let client = self.clients.get(&link).copied();
        let open = self.absent.opens.get(&token).map(|open| &**open);
        open.filter(|open| open.keeps() && Some(open.record.client.0) != client)
    }
}

/// How long a client may be away.
fn patience(record: &OpenRecord) -> Duration {
    let durable = match record.durable {
        DurableRecord::No => Duration::ZERO,
        DurableRecord::V1 => V1,
        DurableRecord::V2 { timeout, .. } => Duration::from_millis(timeout.into()),
    };
    durable.max(resilience(record))
}

/// Whether any other Open of the file ends it: it may have changes in its cache.
fn is_exclusive(record: &OpenRecord) -> bool {
    const LEVEL_II: u8 = 0x01;
    const WRITE: u32 = 0x4;
    record.lease.map_or(record.oplock > LEVEL_II, |lease| lease.state & WRITE != 0)
}

/// For how long it was promised whatever becomes of it.
fn resilience(record: &OpenRecord) -> Duration {
    Duration::from_millis(record.resilient.unwrap_or(0).into())
}

/// Whether a client may come back to it at all.
fn is_lasting(record: &OpenRecord) -> bool {
    record.durable != DurableRecord::No || record.resilient.is_some()
}

/// Whether two names are one user's.
pub(super) fn is_user(known: &str, user: &str) -> bool {
    known.to_lowercase() == user.to_lowercase()
}

/// Whether a client may have an Open, which is called so by now (MS-SMB2 3.3.5.9.7, 3.3.5.9.12; where Samba answers otherwise,
/// as Samba does it: it tells another user that there is nothing, asks for the ClientGuid only where there is a lease, and lets
/// DHnC have what was asked for by DH2Q).
fn permits(record: &OpenRecord, name: &Name, claim: &Claim) -> Result<(), Status> {
    let is_its_kind = match (record.durable, claim.create_guid) {
        (DurableRecord::V1 | DurableRecord::V2 { .. }, None) => true,
        (DurableRecord::V2 { create_guid, .. }, Some(guid)) => create_guid.0 == guid,
        // It has none, which is as good as one of zeros.
        (DurableRecord::V1, Some(guid)) => guid == [0; 16],
        (DurableRecord::No, None) => record.resilient.is_some(),
        _ => false,
    };
    let same_lease = record.lease.map(|lease| lease.key.0) == claim.lease_key;
    let same_client = record.lease.is_none() || record.client.0 == claim.client;
    if !is_its_kind
        || !same_lease
        || !same_client
        || !is_user(&record.user, &claim.user)
        || record.share != claim.share
    {
        return Err(Status::OBJECT_NAME_NOT_FOUND);
    }
    if record.lease.is_some() && name.key != claim.key {
        return Err(Status::INVALID_PARAMETER);
    }
    Ok(())
}
