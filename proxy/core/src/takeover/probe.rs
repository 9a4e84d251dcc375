//! Whether a request that changes names was done by the node that is lost. It is found out on the new node, before the
//! request is answered or sent again.
//!
//! A rename is found out by reclaiming its Open: first under the name it had, then under those that renames in flight may
//! have given to it, in their order. A file has one name of these at a time, so where it is found says which the lost
//! node has done last:
//!
//! | the very file is found | the renames up to there | those behind |
//! |---|---|---|
//! | under its last known name | | [`Finding::Undone`] |
//! | under a new name | that one is [`Finding::Done`]: answered as done; the record has the new name. Others: [`Finding::Unclear`] | unclear |
//! | nowhere | the Open is lost | the Open is lost |
//!
//! A CREATE that makes or empties files and a link are found out by a *probe*: the name is opened by the proxy, for its
//! attributes alone, and closed again. What changes names within a compound of its own CREATE is found out alike, see
//! [`super::compound`].
//!
//! | under the name stands | FILE_CREATE | FILE_OPEN_IF |
//! |---|---|---|
//! | nothing | undone; unclear with FILE_DELETE_ON_CLOSE | undone |
//! | what an answered request has made, or what is a minute older than the request | undone: it collides | undone |
//! | as new as the request, made by nobody else | done if it is empty, or holds what its own compound writes | done; [`Finding::Partly`] if it was to bring more than a file shows |
//! | anything else | [`Finding::Unclear`] | unclear: sent again, and told as the node says |
//!
//! FILE_CREATE is unclear, whatever is there, if another request may have removed what it made: one answered since it came, in
//! flight when its node was lost, or of a client whose sealed frames nobody here can read. What was done is sent as FILE_OPEN, and answered FILE_CREATED.
//!
//! | under the name stands | a disposition that empties it |
//! |---|---|
//! | nothing | undone |
//! | what nobody else has open, or had since the request came | undone, even if it was done: nothing is lost |
//! | what others have open, not written since the request came | undone |
//! | what others have open, empty, written since | done: sent as FILE_OPEN |
//! | anything else | unclear |
//!
//! Its CreateAction is FILE_CREATED if the file is of its making as above, whatever the node says.
//!
//! | under the new name stands | link |
//! |---|---|
//! | nothing | undone; unclear if an answered request has removed the name |
//! | the file of the link's Open (on-disk id), of no answered request | done |
//! | another file, or what an answered request has made | undone: it collides, or replaces it |
//! | what has no on-disk id | unclear |
//!
//! Whether a file was deleted by an Open, the reclaim of that shows, too: if its name is gone it was deleted; so it was if
//! another file has the name, and a CLOSE of the Open was in flight behind. Such an Open is had again without
//! FILE_DELETE_ON_CLOSE, which would delete what another client has made since; it gets its flag back when it is known to be
//! the very file.
//!
//! The clock is that of the node that had the request, told by its answer to NEGOTIATE.
//!
//! | [`Doubt`] | meaning | leaves by |
//! |---|---|---|
//! | None | nothing to find out | a lost leg with requests in flight that change names |
//! | Waiting | the new node is not reached, or Opens of some Link are not back | the barrier |
//! | Deciding | it has its turn, or waits for it | the last such request is answered, or waits on the node itself |
//!
//! Invariants:
//!
//! - Under a new name only the very file counts: the same on-disk id, or else the same creation time.
//! - A lost leg is not a lost node: what seems undone on the node that had the request may still be done by the process that
//!   lost its leg, until a login names its session as PreviousSessionId, and succeeds. Nothing is probed there before, nor
//!   before the other Links have told what they have in flight ([`Files::under_way`]).
//! - A rename that was found done stays so if this node is lost, too. All else is found out anew.
//! - Until a request that the new node lets wait is answered, nobody else opens a file of a name that it changes.
//! - One Link at a time finds out, and of its requests one after the other, each to its answer: so the file that one request
//!   is told it has made is no other's. Others know of it before the node is asked for it, which may let the request wait. Fresh requests that open files or change names wait meanwhile, of every Link.
//! - A Link passes its turn on itself, and only while nothing that it has begun is unanswered: when it is done, or when all that
//!   is left waits for what becomes of others' requests.
//! - An exclusive create that cannot be told from another's is answered STATUS_INTERNAL_ERROR, never FILE_CREATED.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use smb_parse::{
    cmd::{create, set_info, write},
    create_context::{Context, tag},
    encode::{self, CreateParams},
    header::{Command, Flags, Header, Status},
};

use super::{
    Progress,
    append::{Look, is_append},
    claim::{self, Asked, CREATED, Claim, Holder, Name, Sighting, TOLERANCE},
    place::Under,
    verdict::{Facts, Kind, Subject, Verdict, verdict},
};
use crate::{
    event::{Event, FileEvent},
    files::{self, FileKey, Files, Maker, Taking, UnderWay},
    ids::{MessageId, OpenToken, SessionId, TreeId},
    link::{
        Link, State,
        answer::Check,
        dispatch::create_disposition,
        node_leg::Op,
        open::{Open, OpenState, file_key},
        request::Request,
    },
};

/// SMB2_0_INFO_FILE (MS-SMB2 2.2.39).
const INFO_FILE: u8 = 1;
/// FileRenameInformation and its Ex form (MS-FSCC 2.4.42, 2.4.43).
const RENAME: [u8; 2] = [10, 65];
/// FileLinkInformation and its Ex form (MS-FSCC 2.4.28).
const LINK: [u8; 2] = [11, 72];

/// How much later than it is said to be something may have been heard of.
const LATE: Duration = Duration::from_secs(1);
/// FILE_SUPERSEDE, FILE_OPEN, FILE_CREATE, FILE_OVERWRITE (MS-SMB2 2.2.13).
const FILE_SUPERSEDE: u32 = 0;
const FILE_OPEN: u32 = 1;
pub(super) const FILE_CREATE: u32 = 2;
const FILE_OVERWRITE: u32 = 4;
/// FILE_READ_ATTRIBUTES (MS-SMB2 2.2.13.1.1); sharing everything.
const READ_ATTRIBUTES: u32 = 0x80;
const SHARE_ALL: u32 = 7;
/// FILE_DIRECTORY_FILE, FILE_DELETE_ON_CLOSE, FILE_OPEN_REPARSE_POINT (MS-SMB2 2.2.13).
const DIRECTORY_FILE: u32 = 0x1;
const DELETE_ON_CLOSE: u32 = 0x1000;
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// What is known of a request in flight whose node was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Finding {
    /// Nothing.
    #[default]
    Unknown,
    /// It was not done.
    Undone,
    /// It was done.
    Done,
    /// It was done, but perhaps not all of it.
    Partly,
    /// Nobody can tell.
    Unclear,
}

/// What a probe has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    Unasked,
    Asked,
    /// This has the name, and is still open: to delete it would take no effect yet.
    Closing(Sighting),
    /// Nothing has that name.
    Absent,
    /// Nor is there a directory where it could be.
    Pathless,
    /// This has it.
    There(Sighting),
    /// It cannot be looked at.
    Obscure,
}

/// Whether a Link has to find something out. See the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    None,
    Waiting,
    Deciding,
}

/// A name that an Open may have since a rename in flight.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The rename.
    id: MessageId,
    /// Whether it was made by this very Open, whose place then says what became of it.
    own: bool,
    name: Vec<u8>,
}

/// The names that Opens may have, in the order of the renames.
#[derive(Debug, Default)]
pub(crate) struct Attempts(BTreeMap<OpenToken, Vec<Attempt>>);

impl Attempts {
    /// The name of an Open after that rename.
    pub(super) fn name(&self, open: OpenToken, rename: MessageId) -> Option<&[u8]> {
        let attempts = self.0.get(&open)?.iter();
        attempts.rev().find(|attempt| attempt.id == rename).map(|attempt| &attempt.name[..])
    }

    /// The last rename after which an Open is called exactly so.
    fn named(&self, open: OpenToken, name: &[u8]) -> Option<MessageId> {
        let mut attempts = self.0.get(&open)?.iter().rev();
        attempts.find(|attempt| *attempt.name == *name).map(|attempt| attempt.id)
    }

    /// The rename to be tried behind that one.
    fn next(&self, open: OpenToken, tried: Option<MessageId>) -> Option<MessageId> {
        let mut ids = self.0.get(&open)?.iter().map(|attempt| attempt.id);
        ids.find(|id| tried.is_none_or(|tried| *id > tried))
    }
}

impl Link {
    /// Under which other names each Open is to be looked for.
    pub(super) fn attempts(&self) -> Attempts {
        let mut attempts = Attempts::default();
        let in_flight = self.requests.iter().filter(|r| r.deaths > 0 && !r.is_beyond_doubt());
        for request in in_flight {
            let Some((true, to)) = new_name(request) else { continue };
            let by = self.opens.of(request);
            let Some((old, to)) = self.old_and_new_name(request, to) else { continue };
            for open in self.opens.iter().filter(|o| o.state == OpenState::Unreclaimed) {
                let own = by.is_some_and(|by| by.token == open.token);
                if let Some(name) = if own { Some(to.path.to_vec()) } else { renamed(open, &old, &to) } {
                    let attempt = Attempt { id: request.message_id(), own, name };
                    attempts.0.entry(open.token).or_default().push(attempt);
                }
            }
        }
        attempts
    }

    /// What the file of a rename was called, by its Open, or by the CREATE of its own compound; and what it is to be called.
    pub(crate) fn old_and_new_name(
        &self,
        request: &Request,
        to: &[u8],
    ) -> Option<(files::Name, files::Name)> {
        if let Some(by) = self.opens.of(request) {
            return Some((by.name.clone(), files::Name::new(&by.share, &by.full_name(to))));
        }
        let create = self.own_create(request)?;
        let tree = self.sessions.tree(create.header.session_id, create.header.tree_id()?)?;
        let name = create::Request::parse(&create.msg).ok()?.name.0;
        Some((files::Name::new(&tree.share, name), files::Name::new(&tree.share, to)))
    }

    /// The rename by which the Open is to be looked for, now that it is not there under the name after `tried`.
    pub(super) fn next_attempt(&self, open: OpenToken, tried: Option<MessageId>) -> Option<MessageId> {
        let State::Recovering(recovery) = &self.state else { return None };
        recovery.attempts.next(open, tried)
    }

    /// The Open was found there. `surely`: it is the very file.
    pub(super) fn note_place(&mut self, open: OpenToken, under: Under, surely: bool) {
        let State::Recovering(recovery) = &self.state else { return };
        let Some(found) = self.opens.get(open) else { return };
        let session = self.sessions.get(found.session.0);
        let may_still_run =
            recovery.progress.is_on_the_lost_node() && session.is_none_or(|session| session.still_runs);
        // Another Link may have found it before, and told Files.
        let shown = recovery.attempts.named(open, &found.name.path).filter(|_| under == Under::Recorded);
        let renamed = match under {
            Under::Renamed(rename) => Some(rename),
            _ => shown.filter(|_| surely),
        };
        for Attempt { id, own, .. } in recovery.attempts.0.get(&open).into_iter().flatten() {
            let Some(request) = self.requests.get_mut(*id).filter(|r| !r.is_beyond_doubt()) else {
                continue;
            };
            // If others have renamed it meanwhile, it may have been before or after.
            let is_moved = found.moved_at.is_some_and(|at| at + LATE >= request.at);
            match renamed {
                // Whichever Open of the file shows it.
                Some(found) if *id == found => request.finding = Finding::Done,
                _ if !own => {}
                // A node may do them in another order than they came in.
                Some(_) => request.finding = Finding::Unclear,
                None if under == Under::Elsewhere || is_moved => request.finding = Finding::Unclear,
                None if surely && !may_still_run => request.finding = Finding::Undone,
                None => request.finding = Finding::Unknown,
            }
        }
        let lost_at = recovery.lost_at();
        let name = match under {
            Under::Recorded => renamed.map(|_| found.name.path.to_vec()),
            Under::Renamed(rename) => recovery.attempts.name(open, rename).map(<[u8]>::to_vec),
            Under::Elsewhere => recovery.search.name(open).map(|name| name.path.to_vec()),
        };
        self.forget_deletion(open);
        let deletes = self.may_be_deleted(open);
        if let Some(open) = self.opens.get_mut(open).filter(|_| deletes) {
            open.delete_pending |= open.create_options & DELETE_ON_CLOSE != 0;
        }
        let Some(name) = name else { return };
        let asked = renamed.and_then(|id| self.requests.get(id)).map(|rename| rename.at);
        self.observe_rename(asked.unwrap_or(lost_at), open, &name, asked.is_none());
        if let Some(asked) = asked {
            self.note_made(asked, open, &name);
        }
    }
}

impl Link {
    /// The lost node may have closed the Open, and deleted its file with that.
    pub(super) fn may_be_deleted(&self, open: OpenToken) -> bool {
        let Some(open) = self.opens.get(open) else { return false };
        let on_it = |r: &Request| self.opens.of(r).is_some_and(|o| o.token == open.token);
        let closes = |r: &Request| match r.header.command {
            Command::CLOSE => on_it(r),
            Command::TREE_DISCONNECT => r.header.tree_id() == Some(open.tree.0) && is_of(r, open),
            Command::LOGOFF => is_of(r, open),
            _ => false,
        };
        let deletes = |r: &Request| {
            r.header.command == Command::SET_INFO
                && on_it(r)
                && Facts::of(r, &self.opens).kind == Kind::Delete
        };
        let in_flight = || self.requests.iter().filter(|r| r.deaths > 0);
        let flagged = open.is_to_be_deleted();
        // Of one whose answer was not the node's nobody can tell what became of it either.
        (open.closing || in_flight().any(closes)) && (flagged || in_flight().any(deletes))
    }

    /// The options by which an Open is had again. The file found may be another one, made since the lost node deleted the
    /// Open's own: FILE_DELETE_ON_CLOSE would delete it. Its flag is set when it is known to be the very file.
    pub(super) fn reclaim_options(&self, open: &Open) -> u32 {
        let without = if self.may_be_deleted(open.token) { DELETE_ON_CLOSE } else { 0 };
        open.create_options & !without
    }

    /// The file of an Open was not where it was looked for first, but is there; or another request has deleted it.
    pub(super) fn forget_deletion(&mut self, open: OpenToken) {
        let opens = &self.opens;
        let deletes = |r: &Request| {
            opens.of(r).is_some_and(|o| o.token == open) && Facts::of(r, opens).kind == Kind::Delete
        };
        for request in self.requests.iter_mut().filter(|r| r.finding == Finding::Done && deletes(r)) {
            request.finding = Finding::Unknown;
        }
    }

    /// The node lets nobody look whether the file of an Open is there.
    pub(super) fn note_refusal(&mut self, open: OpenToken) {
        if let State::Recovering(recovery) = &mut self.state {
            recovery.search.note_refusal(open);
        }
    }

    /// An Open is lost: a CLOSE in flight may have been to delete its file, and not have done so.
    pub(super) fn note_close_undone(&mut self, open: OpenToken) {
        let is_open = self.may_be_deleted(open) && self.opens.get(open).is_some_and(|open| !open.is_deleted);
        let opens = &self.opens;
        let closes = |r: &Request| {
            r.header.command == Command::CLOSE && opens.of(r).is_some_and(|on| on.token == open)
        };
        for close in self.requests.iter_mut().filter(|r| is_open && r.deaths > 0 && closes(r)) {
            close.finding = Finding::Unclear;
        }
    }

    /// The Open is not there: what that says of requests in flight on it. `stranger`: another file has its name.
    pub(super) fn note_absence(&mut self, open: OpenToken, status: Status, stranger: bool) {
        let gone = matches!(status, Status::OBJECT_NAME_NOT_FOUND | Status::OBJECT_PATH_NOT_FOUND);
        // While it was open, nobody could give its name to another file by deleting it.
        let closes = |r: &Request| {
            let is_on_it = self.opens.of(r).is_some_and(|o| o.token == open);
            r.deaths == 1 && is_on_it && r.header.command == Command::CLOSE
        };
        let may_be_closed = self.opens.get(open).is_some_and(|open| open.closing);
        let gone = gone || stranger && (may_be_closed || self.requests.iter().any(closes));
        let is_deleted_by_now = (gone || status == Status::DELETE_PENDING) && !stranger;
        let State::Recovering(recovery) = &mut self.state else { return };
        let lives = recovery.progress.is_on_the_lost_node();
        if !gone && !stranger {
            recovery.search.note_refusal(open);
        }
        let refused = recovery.search.was_refused(open);
        if refused {
            self.forget_deletion(open);
        }
        let gone = gone && !refused;
        let works_on_it = |r: &&Request| r.deaths == 1 && self.opens.of(r).is_some_and(|o| o.token == open);
        let deletes = |r: &&Request| Facts::of(r, &self.opens).kind == Kind::Delete;
        let deletes: Vec<_> =
            self.requests.iter().filter(works_on_it).filter(deletes).map(Request::message_id).collect();
        let is_deleted = gone && (!deletes.is_empty() || self.may_be_deleted(open));
        if let Some(open) = self.opens.get_mut(open) {
            open.is_deleted = is_deleted || open.is_deleted && !refused;
            let flagged = open.is_to_be_deleted();
            if let State::Recovering(recovery) = &mut self.state {
                let closed = lives && is_deleted_by_now && (flagged || !deletes.is_empty());
                recovery.search.note_closed_by_node(open.token, closed);
            }
        }
        for id in deletes.into_iter().filter(|_| gone) {
            if let Some(request) = self.requests.get_mut(id) {
                request.finding = Finding::Done;
            }
        }
    }
}

impl Link {
    /// The node is lost: which requests are open to doubt.
    pub(crate) fn begin_doubt(&mut self, generation: u64) {
        let mut doubt = false;
        self.looks = 0;
        self.note_what_compounds_delete();
        for request in self.requests.iter_mut() {
            request.action = None;
            request.probe = Probe::Unasked;
            request.look = Look::Unasked;
            request.pends = false;
            let is_open = request.fails.is_none() && (changes_names(request) || is_append(request));
            request.doubtful = request.deaths == 1 && request.sent.is_none() && is_open;
            doubt |= request.doubtful;
        }
        self.end_pending();
        let doubtful = self.requests.iter().filter(|r| r.doubtful && r.compounded);
        let creates: Vec<_> = doubtful.filter_map(|r| self.own_create(r)).map(Request::message_id).collect();
        for create in creates {
            if let Some(request) = self.requests.get_mut(create) {
                request.doubtful = true;
            }
        }
        if doubt {
            self.doubt = Doubt::Waiting;
            self.out.file(FileEvent::Doubtful);
        } else {
            self.end_doubt();
        }
        if self.leave_traces(false) {
            self.out.file(FileEvent::LeftRunning { generation });
        }
    }

    /// The node lets a request wait that was open to doubt.
    pub(crate) fn tell_what_pends(&mut self, id: MessageId) {
        let Some(request) = self.requests.get(id) else { return };
        for key in self.names_of(request) {
            self.pends = true;
            self.out.file(FileEvent::Pending { key });
        }
    }

    /// Whether a frame opens a file of a name that a request, which was open to doubt, may still change.
    pub(crate) fn is_behind_pending(&self, ids: &[MessageId], files: &Files) -> bool {
        let creates = ids.iter().filter_map(|id| self.requests.get(*id));
        let mut creates = creates.filter(|request| request.header.command == Command::CREATE);
        creates.any(|create| self.create_key(create).is_some_and(|key| files.is_name_pending(&key)))
    }

    /// Others may go on once nothing is left to be found out.
    pub(crate) fn end_doubt(&mut self) {
        self.end_pending();
        // A request may be cancelled while its name is looked at, and what that opens would keep a file from being deleted.
        if self.doubt != Doubt::None && self.looks == 0 && !self.requests.iter().any(|r| r.doubtful) {
            self.doubt = Doubt::None;
            self.out.file(FileEvent::Decided);
        }
    }

    /// All that is left to be found out waits for what becomes of others' requests: they have their turn first.
    pub(crate) fn defer(&mut self) {
        let is_at_it = self.requests.iter().any(Request::is_being_found_out);
        if self.looks == 0 && !is_at_it && self.judged().next().is_none() {
            self.out.file(FileEvent::Deferring);
        }
    }

    /// The frames of which a look has told what became of them, and that are neither sent nor answered yet: what they are to do,
    /// or have done, others do not know of.
    fn judged(&self) -> impl Iterator<Item = u64> {
        let unsent = || self.requests.iter().filter(|r| r.doubtful && r.sent.is_none());
        let looked = unsent().filter(|r| r.probe != Probe::Unasked).map(|r| r.unit);
        looked.filter(move |unit| unsent().any(|r| r.unit == *unit && r.finding != Finding::Unknown))
    }

    fn end_pending(&mut self) {
        if self.pends && !self.requests.iter().any(|r| r.pends) {
            self.pends = false;
            self.out.file(FileEvent::NonePending);
        }
    }

    /// After answers of the node: if none is waited for any more, the next request is due.
    pub(crate) fn go_on_deciding(&mut self) {
        self.end_doubt();
        if self.doubt == Doubt::Deciding && !self.requests.iter().any(Request::is_being_found_out) {
            self.out.file(FileEvent::Deciding);
        }
    }

    /// Whether all that can be found out of a frame's requests is, so that they can be answered or sent.
    pub(crate) fn is_decided(&mut self, ids: &[MessageId], files: &Files) -> bool {
        let mut members = ids.iter().filter_map(|id| self.requests.get(*id));
        let Some(unit) = members.find(|r| r.doubtful).map(|r| r.unit) else { return true };
        if self.is_behind_pending(ids, files) {
            return false;
        }
        if !files.may_decide(self.id) {
            if self.doubt == Doubt::Waiting {
                self.doubt = Doubt::Deciding;
                self.out.file(FileEvent::Deciding);
            }
            return false;
        }
        let others = |r: &Request| r.unit != unit && r.is_being_found_out();
        if self.requests.iter().any(others) || self.judged().any(|judged| judged != unit) {
            return false;
        }
        // Of one that was cancelled what its look has opened may still be there.
        let looks = |r: &Request| r.unit == unit && r.is_looked_at();
        if self.looks > 0 && !self.requests.iter().any(looks) {
            return false;
        }
        if !self.is_known_what_runs(ids, files) {
            return false;
        }
        match self.story(ids) {
            Some(story) => self.is_story_told(&story, files),
            None => ids.iter().all(|id| self.is_found_out(*id, files)),
        }
    }

    /// Whether it is known what the node may still do meanwhile, if that is the one which had these requests, and lives.
    fn is_known_what_runs(&mut self, ids: &[MessageId], files: &Files) -> bool {
        let may_still_run = match self.replaying.as_ref().map(Progress::is_on_the_lost_node) {
            None => true,
            Some(false) => false,
            Some(true) => match files.under_way(self.id) {
                UnderWay::Unasked => {
                    self.out.file(FileEvent::Asking);
                    return false;
                }
                UnderWay::Awaited => return false,
                UnderWay::Anything => true,
                UnderWay::Known => {
                    let requests = ids.iter().filter_map(|id| self.requests.get(*id));
                    requests.flat_map(|request| self.names_of(request)).any(|key| files.may_be_changing(&key))
                }
            },
        };
        if let Some(progress) = &mut self.replaying {
            progress.may_still_run = may_still_run;
        }
        true
    }

    /// The names that a request is about.
    fn names_of(&self, request: &Request) -> impl Iterator<Item = FileKey> + use<> {
        let keys = [
            self.create_key(request),
            new_name(request).and_then(|(_, name)| self.key_of(request, name)),
            self.opens.of(request).map(Open::key),
        ];
        keys.into_iter().flatten()
    }

    fn is_found_out(&mut self, id: MessageId, files: &Files) -> bool {
        let Some(request) = self.requests.get(id) else { return true };
        let facts = Facts::of(request, &self.opens);
        if verdict(&facts) != Verdict::Probe || self.verify_kept(id) != Check::Passed {
            return true;
        }
        if facts.subject == Subject::OwnCreate {
            // A compound of no shape that is known.
            self.note_finding(id, Finding::Unclear, None);
            return true;
        }
        if facts.kind == Kind::Append {
            return self.is_append_found_out(id, files);
        }
        let Some(request) = self.requests.get(id) else { return true };
        let (finding, action) = match request.probe {
            Probe::Unasked => match self.send_probe(id) {
                Some(()) => return false,
                None => (Finding::Unclear, None),
            },
            Probe::Asked | Probe::Closing(_) => return false,
            // What it made may be gone, and what stands there a third's.
            _ if facts.kind == Kind::Exclusive && self.may_be_gone_again(request, files) => {
                (Finding::Unclear, None)
            }
            // On a leg that was cut, a node that lives deletes what it has made.
            Probe::Absent | Probe::Pathless if facts.kind == Kind::Exclusive && deletes_on_close(request) => {
                (Finding::Unclear, None)
            }
            Probe::Absent | Probe::Pathless if facts.kind != Kind::Link => (Finding::Undone, None),
            Probe::Obscure => (Finding::Unclear, None),
            Probe::Absent | Probe::Pathless => (self.judge_link(request, None, files), None),
            Probe::There(there) if facts.kind == Kind::Link => {
                (self.judge_link(request, Some(there), files), None)
            }
            Probe::There(there) => self.judge_create(request, facts.kind, &there, files),
        };
        self.note_finding(id, finding, action);
        true
    }

    /// Whether another request may have removed what a CREATE has made.
    fn may_be_gone_again(&self, request: &Request, files: &Files) -> bool {
        let asked = create::Request::parse(&request.msg).ok();
        let key = asked.and_then(|asked| self.key_of(request, asked.name.0));
        key.is_none_or(|key| files.may_be_gone_since(&key, request.at))
    }

    pub(super) fn note_finding(&mut self, id: MessageId, finding: Finding, action: Option<u32>) {
        if let Some(request) = self.requests.get_mut(id) {
            (request.finding, request.action) = (finding, action);
        }
    }

    /// Opens the name of a request, when credits allow. `None`: it would tell nothing.
    pub(super) fn send_probe(&mut self, id: MessageId) -> Option<()> {
        let State::Bridge(leg) = &self.state else { return None };
        if self.replaying.as_ref().is_none_or(|progress| progress.may_still_run) {
            return None;
        }
        if !leg.can_send(1) {
            return Some(());
        }
        let request = self.requests.get(id)?;
        let session = request.header.session_id;
        let tree = self.sessions.tree(session, request.header.tree_id()?).filter(|tree| !tree.lost)?;
        let tree = tree.node_id.0;
        let asked = create::Request::parse(&request.msg);
        let (name, options) = match (&asked, new_name(request)) {
            (Ok(_), _) if request.header.flags.contains(Flags::DFS) => return None,
            (Ok(asked), _) => (asked.name.0, asked.create_options & OPEN_REPARSE_POINT),
            (Err(_), name) => (name?.1, OPEN_REPARSE_POINT),
        };
        let header = self.own_header(Command::CREATE, session, tree);
        let msg = encode::create(
            &header,
            &CreateParams {
                oplock_level: 0,
                impersonation_level: 2,
                desired_access: READ_ATTRIBUTES,
                file_attributes: 0,
                share_access: SHARE_ALL,
                create_disposition: FILE_OPEN,
                create_options: options,
                name_utf16: name,
                contexts: &[(tag::QFID, Vec::new())],
            },
        );
        self.send_in_session(session, &msg, Op::Probe(id, session, tree));
        self.looks += 1;
        if let Some(request) = self.requests.get_mut(id) {
            request.probe = Probe::Asked;
        }
        Some(())
    }

    /// The node's answer to a probe. `opened`: whose keys opened it, if it came sealed.
    pub(crate) fn probe_answer(
        &mut self,
        now: Instant,
        id: MessageId,
        (session, tree): (SessionId, TreeId),
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        let is_genuine = self.is_of_session(Some(session), opened, header, msg);
        let seen = match Status(header.status) {
            _ if !is_genuine => {
                self.out.event(Event::SignatureRefused);
                Probe::Obscure
            }
            Status::OBJECT_NAME_NOT_FOUND => Probe::Absent,
            Status::OBJECT_PATH_NOT_FOUND => Probe::Pathless,
            status if status.is_success() => match create::Response::parse(msg) {
                // The LOGOFF of a client that cancelled the request closes it, and the node has the session no more.
                Ok(response) if self.has_sent_logoff(session) => Probe::There(Sighting::of(&response)),
                Ok(response) => {
                    let header = self.own_header(Command::CLOSE, session, tree);
                    let close = encode::close(&header, 0, response.file_id);
                    self.send_in_session(session, &close, Op::ProbeClose(id));
                    Probe::Closing(Sighting::of(&response))
                }
                Err(_) => Probe::Obscure,
            },
            _ => Probe::Obscure,
        };
        if !matches!(seen, Probe::Closing(_)) {
            self.looks = self.looks.saturating_sub(1);
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.probe = seen;
        }
        if !is_genuine {
            // What was opened cannot be closed, and would keep the file from being deleted.
            self.leave_tampered_leg(now);
        }
    }

    /// Whether the node has been sent the LOGOFF of a session.
    fn has_sent_logoff(&self, session: SessionId) -> bool {
        self.requests.iter().any(|request| {
            request.header.command == Command::LOGOFF
                && request.header.session_id == session
                && request.sent.is_some()
        })
    }

    /// What was looked at is closed.
    pub(crate) fn probe_closed(&mut self, id: MessageId) {
        self.looks = self.looks.saturating_sub(1);
        if let Some(request) = self.requests.get_mut(id)
            && let Probe::Closing(there) = request.probe
        {
            request.probe = Probe::There(there);
        }
    }

    /// Whether a link was made.
    fn judge_link(&self, request: &Request, there: Option<Sighting>, files: &Files) -> Finding {
        let (Some(open), Some((_, name))) = (self.opens.of(request), new_name(request)) else {
            return Finding::Unclear;
        };
        let key = file_key(&open.share, name);
        let source = (open.on_disk_id, holder(files, &open.key(), request));
        claim::linked(source, &known(files, &key, there, request))
    }

    /// Whether a CREATE has made, or emptied, what stands under its name; and the CreateAction to be told, if the node's is not.
    fn judge_create(
        &self,
        request: &Request,
        kind: Kind,
        there: &Sighting,
        files: &Files,
    ) -> (Finding, Option<u32>) {
        const UNCLEAR: (Finding, Option<u32>) = (Finding::Unclear, None);
        let Ok(asked) = create::Request::parse(&request.msg) else { return UNCLEAR };
        let Some(key) = self.key_of(request, asked.name.0) else { return UNCLEAR };
        let claim = Claim {
            maker: known(files, &key, Some(*there), request).maker,
            asked: self.asked(request),
            bare: !key.0.contains(':') && asked.contexts().all(|context| context.is_ok_and(is_harmless)),
            directory: asked.create_options & DIRECTORY_FILE != 0,
            attributes: asked.file_attributes,
            size: self.written_by_compound(request),
        };
        let as_created = |finding| (finding, (finding == Finding::Done).then_some(CREATED));
        match kind {
            Kind::Exclusive => as_created(claim::created(&claim, there)),
            Kind::OpenIf => as_created(claim::opened(&claim, there)),
            _ => {
                let shared = files.is_shared_since(&key, request.at);
                claim::emptied(&claim, there, shared, asked.create_disposition == FILE_SUPERSEDE)
            }
        }
    }

    /// Of the CREATEs that go to the node now, which have made a file on the node that is lost: it is no other's, even if this
    /// node lets them wait.
    pub(crate) fn tell_what_was_made(&mut self, ids: &[MessageId]) {
        for request in ids.iter().filter_map(|id| self.requests.get(*id)) {
            let Probe::There(there) = request.probe else { continue };
            if request.action != Some(CREATED) || request.header.command != Command::CREATE {
                continue;
            }
            let asked = create::Request::parse(&request.msg);
            if let Some(key) = asked.ok().and_then(|asked| self.key_of(request, asked.name.0)) {
                self.out.file(FileEvent::Made { key, birth: there.birth, at: request.at });
            }
        }
    }

    /// How far the members behind a CREATE write what it opens.
    fn written_by_compound(&self, create: &Request) -> u64 {
        let members = self.requests.iter().filter(|r| r.unit == create.unit && r.deaths > 0);
        let end = |r: &Request| {
            let asked = write::Request::parse(&r.msg).ok()?;
            asked.offset.checked_add(u64::try_from(asked.data.len()).ok()?)
        };
        members.filter(|r| r.header.command == Command::WRITE).filter_map(end).max().unwrap_or(0)
    }

    /// The file that a request calls by a name.
    pub(super) fn key_of(&self, request: &Request, name: &[u8]) -> Option<FileKey> {
        let tree = self.sessions.tree(request.header.session_id, request.header.tree_id()?)?;
        Some(file_key(&tree.share, name))
    }

    /// When a request came, on the clock of the node that is lost.
    pub(super) fn asked(&self, request: &Request) -> Asked {
        Asked(self.clock.map(|clock| clock.time(request.at)))
    }
}

/// What is known of a name for a request in flight.
pub(super) fn known(files: &Files, key: &FileKey, there: Option<Sighting>, request: &Request) -> Name {
    let since = since(request);
    let stands = there.map(|there| there.birth);
    let left = files.left_behind(key, stands).filter(|left| request.at <= left.until);
    // A rename of which nobody knows the outcome may have taken the file at any time since it had the name.
    let had = [left.map(|left| left.from), files.holder(key).map(|(_, heard)| heard)];
    let had = had.into_iter().flatten().fold(since, Instant::min);
    // So may a request have made it, of which nobody knows the outcome, at any time since it was gone.
    let gone = files.known_to_be_gone(key);
    Name {
        there,
        holder: holder(files, key, request),
        maker: there.map_or(Maker::Nobody, |there| files.maker(key, there.birth, since)),
        remover: files.remover(key, since),
        may_be_moved: files.taking(key, had) != Taking::None,
        may_be_moved_by_open: files.may_have_moved(key, since),
        may_be_deleted_by_open: files.may_be_deleted_since(key, since),
        is_gone: gone.is_some(),
        may_be_made: files.may_be_made_since(key, gone.map_or(since, |gone| gone.min(since))),
        is_unseen: files.is_blind(),
        was_taken: files.was_taken(key, since, request.at),
        was_left: left.is_some(),
    }
}

impl Name {
    /// The same, where a request in flight may have given what stands `there` another name in the place of this one.
    pub(super) fn given_up_by(
        self,
        there: Sighting,
        files: &Files,
        key: &FileKey,
        request: &Request,
    ) -> Self {
        Self { remover: files.remover_from(key, there.birth, since(request)), ..self }
    }
}

/// From when on something may have happened while a request was under way.
fn since(request: &Request) -> Instant {
    request.at.checked_sub(Duration::from_nanos(TOLERANCE * 100)).unwrap_or(request.at)
}

/// Which file has a name, seen from a request in flight.
fn holder(files: &Files, key: &FileKey, request: &Request) -> Holder {
    match files.holder(key) {
        None => Holder::Unknown,
        Some((birth, heard)) if heard > request.at => Holder::Since(birth),
        Some((birth, _)) => Holder::Before(birth),
    }
}

impl Request {
    /// What was found out on a node since lost counts no more, but for a rename that was done, and for one behind which
    /// another was done: where the file is now tells nothing of that one.
    pub(crate) fn forget_finding(&mut self) {
        let is_rename = || matches!(new_name(self), Some((true, _)));
        let stays = match self.finding {
            Finding::Done => self.header.command == Command::SET_INFO,
            Finding::Unclear => is_rename(),
            Finding::Unknown | Finding::Undone | Finding::Partly => false,
        };
        if !stays {
            self.finding = Finding::Unknown;
        }
    }

    /// Whether nothing more can be found out of a rename.
    fn is_beyond_doubt(&self) -> bool {
        matches!(self.finding, Finding::Done | Finding::Unclear)
    }

    /// Whether the node's answer decides what becomes of it.
    fn is_being_found_out(&self) -> bool {
        self.doubtful && (self.sent.is_some() || self.is_looked_at())
    }

    fn is_looked_at(&self) -> bool {
        matches!(self.probe, Probe::Asked | Probe::Closing(_))
    }
}

fn is_of(request: &Request, open: &Open) -> bool {
    request.header.session_id == open.session.0
}

/// Whether what a CREATE opens is deleted when it is closed.
pub(super) fn deletes_on_close(request: &Request) -> bool {
    create::Request::parse(&request.msg).is_ok_and(|asked| asked.create_options & DELETE_ON_CLOSE != 0)
}

/// Whether a CREATE makes what is not there.
pub(super) fn makes(request: &Request) -> bool {
    create_disposition(&request.msg).is_some_and(|d| ![FILE_OPEN, FILE_OVERWRITE].contains(&d))
}

/// Whether a create context asks for nothing that a file would not show, and means the same with FILE_OPEN.
fn is_harmless(context: Context<'_>) -> bool {
    matches!(context.tag, tag::RQLS | tag::DHNQ | tag::DH2Q | tag::QFID | tag::MXAC | tag::AAPL | tag::ALSI)
}

/// Whether others must know what became of a request before they open files or change names.
fn changes_names(request: &Request) -> bool {
    match request.header.command {
        Command::CREATE => {
            let opens = |disposition| disposition == FILE_OPEN;
            request.deletes || create_disposition(&request.msg).is_some_and(|d| !opens(d))
        }
        Command::SET_INFO => request.deletes || new_name(request).is_some(),
        _ => false,
    }
}

/// The name that a rename or a link gives to what it works on, and whether it is a rename.
pub(crate) fn new_name(request: &Request) -> Option<(bool, &[u8])> {
    if request.header.command != Command::SET_INFO {
        return None;
    }
    let parsed = set_info::Request::parse(&request.msg).ok().filter(|r| r.info_type == INFO_FILE)?;
    let is_rename = RENAME.contains(&parsed.file_info_class);
    let changes = is_rename || LINK.contains(&parsed.file_info_class);
    parsed.new_name().filter(|_| changes).map(|name| (is_rename, name))
}

/// What `open` is called after what was called `old` was renamed to `to`, if it is that file, a stream of it, or beneath.
fn renamed(open: &Open, old: &files::Name, to: &files::Name) -> Option<Vec<u8>> {
    open.name.after(old, to).map(|name| name.path.to_vec())
}
