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
//! An exclusive create and a link are found out by a *probe*: the name is opened by the proxy, for its attributes alone, and
//! closed again.
//!
//! | under the name stands | exclusive create | link |
//! |---|---|---|
//! | nothing | undone; unclear with FILE_DELETE_ON_CLOSE | undone |
//! | the file of the link's Open (on-disk id) | | done |
//! | another one | | undone: it collides, or replaces it |
//! | what an answered request has made | undone: it collides | |
//! | what is a minute older than the request | undone: it collides | |
//! | empty, as new as the request, made by nobody else | done: sent as FILE_OPEN, answered FILE_CREATED | |
//! | anything else | [`Finding::Unclear`] | unclear |
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
//! - What is undone on the node that had the request is not believed, and nothing is probed there: the process that lost its
//!   leg may still do it. A lost leg is not a lost node.
//! - A rename that was found done stays so if this node is lost, too. All else is found out anew.
//! - One Link at a time finds out, and of its requests one after the other, each to its answer: so the file that one request
//!   is told it has made is no other's. Fresh requests that open files or change names wait meanwhile, of every Link.
//! - An exclusive create that cannot be told from another's is answered STATUS_INTERNAL_ERROR, never FILE_CREATED.

use std::{collections::BTreeMap, time::Duration};

use smb_parse::{
    cmd::{create, set_info},
    create_context::{Context, ResponseContext, tag},
    encode::{self, CreateParams},
    header::{Command, Flags, Header, Status},
};

use super::{
    Progress,
    verdict::{Facts, Verdict, verdict},
};
use crate::{
    event::{Event, FileEvent},
    files::{Files, Maker},
    ids::{MessageId, OpenToken, SessionId, TreeId},
    link::{
        Link, State,
        answer::Check,
        birth::Birth,
        dispatch::create_disposition,
        node_leg::Op,
        open::{Open, OpenState, file_key, known_id},
        request::Request,
    },
};

/// SMB2_0_INFO_FILE (MS-SMB2 2.2.39).
const INFO_FILE: u8 = 1;
/// FileRenameInformation and its Ex form (MS-FSCC 2.4.42, 2.4.43).
const RENAME: [u8; 2] = [10, 65];
/// FileLinkInformation and its Ex form (MS-FSCC 2.4.28).
const LINK: [u8; 2] = [11, 72];

/// How far clocks may be apart, and times be rounded, in units of 100 ns: two seconds.
const TOLERANCE: u64 = 20_000_000;
/// What is so much older than a request is not of its making, in units of 100 ns.
const OLD: u64 = 600_000_000;
/// FILE_CREATE and FILE_OPEN_IF, FILE_OPEN (MS-SMB2 2.2.13).
const CREATING: [u32; 2] = [2, 3];
const FILE_OPEN: u32 = 1;
/// FILE_READ_ATTRIBUTES (MS-SMB2 2.2.13.1.1); sharing everything.
const READ_ATTRIBUTES: u32 = 0x80;
const SHARE_ALL: u32 = 7;
/// FILE_DIRECTORY_FILE, FILE_DELETE_ON_CLOSE (MS-SMB2 2.2.13), FILE_ATTRIBUTE_DIRECTORY and READONLY, HIDDEN, SYSTEM (MS-FSCC 2.6).
const DIRECTORY_FILE: u32 = 0x1;
const DELETE_ON_CLOSE: u32 = 0x1000;
const DIRECTORY: u32 = 0x10;
const SETTABLE: u32 = 0x7;

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
    /// Nobody can tell.
    Unclear,
}

/// What a probe has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    Unasked,
    Asked,
    /// Nothing has that name.
    Absent,
    /// This has it.
    There(Sighting),
    /// It cannot be looked at.
    Obscure,
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sighting {
    birth: Birth,
    /// CreationTime and LastWriteTime.
    created: u64,
    written: u64,
    size: u64,
    attributes: u32,
    on_disk_id: Option<[u8; 32]>,
}

/// Whether a Link has to find something out. See the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    None,
    Waiting,
    Deciding,
}

/// What speaks for and against an exclusive create having made what stands there.
#[derive(Debug, Clone, Copy)]
struct Claim {
    maker: Maker,
    /// When it came, on the clock of its node.
    asked: Option<u64>,
    /// It brought nothing that may have been left undone, or that a file cannot show.
    bare: bool,
    directory: bool,
    attributes: u32,
}

/// Whether an exclusive create has made it.
fn whose(claim: &Claim, there: &Sighting) -> Finding {
    let Claim { maker, asked, bare, directory, attributes } = *claim;
    let is_old = asked.is_some_and(|asked| there.created.saturating_add(OLD) < asked);
    let is_new = |time: u64| asked.is_some_and(|asked| time.saturating_add(TOLERANCE) >= asked);
    let is_alike = there.size == 0
        && directory == (there.attributes & DIRECTORY != 0)
        && there.attributes & attributes & SETTABLE == attributes & SETTABLE;
    match maker {
        Maker::Known => Finding::Undone,
        _ if is_old => Finding::Undone,
        Maker::Nobody if bare && is_alike && is_new(there.created) && is_new(there.written) => Finding::Done,
        _ => Finding::Unclear,
    }
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
            let (Some((true, to)), Some(by)) = (new_name(request), self.opens.of(request)) else { continue };
            for open in self.opens.iter().filter(|o| o.state == OpenState::Unreclaimed) {
                if let Some(name) = renamed(open, by, to) {
                    let attempt = Attempt { id: request.message_id(), own: open.token == by.token, name };
                    attempts.0.entry(open.token).or_default().push(attempt);
                }
            }
        }
        attempts
    }

    /// The rename by which the Open is to be looked for, now that it is not there under the name after `tried`.
    pub(super) fn next_attempt(&self, open: OpenToken, tried: Option<MessageId>) -> Option<MessageId> {
        let State::Recovering(recovery) = &self.state else { return None };
        recovery.attempts.next(open, tried)
    }

    /// The Open was found: under its last known name, or under the one after `renamed`. `surely`: it is the very file.
    pub(super) fn note_place(&mut self, open: OpenToken, renamed: Option<MessageId>, surely: bool) {
        let State::Recovering(recovery) = &self.state else { return };
        let may_still_run = recovery.progress.is_on_the_lost_node();
        for Attempt { id, own, .. } in recovery.attempts.0.get(&open).into_iter().flatten() {
            let Some(request) = self.requests.get_mut(*id).filter(|r| !r.is_beyond_doubt()) else {
                continue;
            };
            match renamed {
                // Whichever Open of the file shows it.
                Some(found) if *id == found => request.finding = Finding::Done,
                _ if !own => {}
                // A node may do them in another order than they came in.
                Some(_) => request.finding = Finding::Unclear,
                _ if surely && !may_still_run => request.finding = Finding::Undone,
                _ => request.finding = Finding::Unknown,
            }
        }
        let name = renamed.and_then(|id| recovery.attempts.name(open, id)).map(<[u8]>::to_vec);
        if let (Some(name), Some(id)) = (name, renamed) {
            self.observe_rename(open, &name);
            if let Some(at) = self.requests.get(id).map(|rename| rename.at) {
                self.note_made(at, open, &name);
            }
        }
    }
}

impl Link {
    /// The node is lost: which requests are open to doubt.
    pub(crate) fn begin_doubt(&mut self) {
        let mut doubt = false;
        for request in self.requests.iter_mut() {
            request.probe = Probe::Unasked;
            request.doubtful = request.deaths == 1 && request.sent.is_none() && changes_names(request);
            doubt |= request.doubtful;
        }
        if doubt {
            self.doubt = Doubt::Waiting;
            self.out.file(FileEvent::Doubtful);
        } else {
            self.end_doubt();
        }
    }

    /// Others may go on once nothing is left to be found out.
    pub(crate) fn end_doubt(&mut self) {
        if self.doubt != Doubt::None && !self.requests.iter().any(|r| r.doubtful) {
            self.doubt = Doubt::None;
            self.out.file(FileEvent::Decided);
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
        if !files.may_decide(self.id) {
            if self.doubt == Doubt::Waiting {
                self.doubt = Doubt::Deciding;
                self.out.file(FileEvent::Deciding);
            }
            return false;
        }
        let others = |r: &Request| r.unit != unit && r.is_being_found_out();
        !self.requests.iter().any(others) && ids.iter().all(|id| self.is_found_out(*id, files))
    }

    fn is_found_out(&mut self, id: MessageId, files: &Files) -> bool {
        let Some(request) = self.requests.get(id) else { return true };
        if verdict(&Facts::of(request, &self.opens)) != Verdict::Probe
            || self.verify_kept(id) != Check::Passed
        {
            return true;
        }
        let Some(request) = self.requests.get(id) else { return true };
        let finding = match request.probe {
            Probe::Unasked => match self.send_probe(id) {
                Some(()) => return false,
                None => Finding::Unclear,
            },
            Probe::Asked => return false,
            // On a leg that was cut, a node that lives deletes what it has made.
            Probe::Absent if deletes_on_close(request) => Finding::Unclear,
            Probe::Absent => Finding::Undone,
            Probe::There(there) => self.judge(request, &there, files),
            Probe::Obscure => Finding::Unclear,
        };
        if let Some(request) = self.requests.get_mut(id) {
            request.finding = finding;
        }
        true
    }

    /// Opens the name of a request, when credits allow. `None`: it would tell nothing.
    fn send_probe(&mut self, id: MessageId) -> Option<()> {
        let State::Bridge(leg) = &self.state else { return None };
        if self.replaying.as_ref().is_none_or(Progress::is_on_the_lost_node) {
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
        let name = match (&asked, new_name(request)) {
            (Ok(_), _) if request.header.flags.contains(Flags::DFS) => return None,
            (Ok(asked), _) => asked.name.0,
            (Err(_), name) => name?.1,
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
                create_options: 0,
                name_utf16: name,
                contexts: &[(tag::QFID, Vec::new())],
            },
        );
        self.send_in_session(session, &msg, Op::Probe(id, session, tree));
        if let Some(request) = self.requests.get_mut(id) {
            request.probe = Probe::Asked;
        }
        Some(())
    }

    /// The node's answer to a probe. `opened`: whose keys opened it, if it came sealed.
    pub(crate) fn probe_answer(
        &mut self,
        id: MessageId,
        (session, tree): (SessionId, TreeId),
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        let keys = self.sessions.get(session).and_then(|s| s.node_keys.as_ref());
        let is_genuine = match opened {
            Some(by) => by == session,
            None => keys.is_none_or(|k| header.flags.contains(Flags::SIGNED) && k.verify_mut(msg)),
        };
        let seen = match Status(header.status) {
            _ if !is_genuine => {
                self.out.event(Event::SignatureRefused);
                Probe::Obscure
            }
            Status::OBJECT_NAME_NOT_FOUND | Status::OBJECT_PATH_NOT_FOUND => Probe::Absent,
            status if status.is_success() => match create::Response::parse(msg) {
                Ok(response) => {
                    let header = self.own_header(Command::CLOSE, session, tree);
                    let close = encode::close(&header, 0, response.file_id);
                    self.send_in_session(session, &close, Op::Discard);
                    Probe::There(sighting(&response))
                }
                Err(_) => Probe::Obscure,
            },
            _ => Probe::Obscure,
        };
        if let Some(request) = self.requests.get_mut(id) {
            request.probe = seen;
        }
    }

    /// Whether a request has made what stands under its name.
    fn judge(&self, request: &Request, there: &Sighting, files: &Files) -> Finding {
        if request.header.command == Command::SET_INFO {
            let linked = self.opens.of(request).and_then(|open| open.on_disk_id);
            return match (linked, there.on_disk_id) {
                (Some(linked), Some(there)) if linked.get(..8) == there.get(..8) => Finding::Done,
                (Some(_), Some(_)) => Finding::Undone,
                _ => Finding::Unclear,
            };
        }
        let tree = request.header.tree_id().and_then(|id| self.sessions.tree(request.header.session_id, id));
        let since = request.at.checked_sub(Duration::from_nanos(TOLERANCE * 100));
        let (Ok(asked), Some(tree), Some(since)) = (create::Request::parse(&request.msg), tree, since) else {
            return Finding::Unclear;
        };
        let key = file_key(&tree.share, asked.name.0);
        let claim = Claim {
            maker: files.maker(&key, there.birth, since),
            asked: self.clock.map(|clock| clock.time(request.at)),
            bare: !key.0.contains(':') && asked.contexts().all(|context| context.is_ok_and(is_harmless)),
            directory: asked.create_options & DIRECTORY_FILE != 0,
            attributes: asked.file_attributes,
        };
        whose(&claim, there)
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
            Finding::Unknown | Finding::Undone => false,
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
        self.doubtful && (self.sent.is_some() || self.probe == Probe::Asked)
    }
}

/// Whether what a CREATE opens is deleted when it is closed.
fn deletes_on_close(request: &Request) -> bool {
    create::Request::parse(&request.msg).is_ok_and(|asked| asked.create_options & DELETE_ON_CLOSE != 0)
}

/// Whether a create context asks for nothing that a file would not show, and means the same with FILE_OPEN.
fn is_harmless(context: Context<'_>) -> bool {
    matches!(context.tag, tag::RQLS | tag::DHNQ | tag::DH2Q | tag::QFID | tag::MXAC | tag::AAPL | tag::ALSI)
}

fn sighting(response: &create::Response<'_>) -> Sighting {
    let on_disk_id =
        response.contexts().filter_map(Result::ok).find_map(|c| match ResponseContext::parse(&c) {
            ResponseContext::OnDiskId(id) => known_id(id),
            _ => None,
        });
    Sighting {
        birth: Birth::of(response),
        created: response.creation_time,
        written: response.last_write_time,
        size: response.end_of_file,
        attributes: response.file_attributes,
        on_disk_id,
    }
}

/// Whether others must know what became of a request before they open files or change names.
fn changes_names(request: &Request) -> bool {
    match request.header.command {
        Command::CREATE => create_disposition(&request.msg).is_some_and(|d| CREATING.contains(&d)),
        Command::SET_INFO => new_name(request).is_some(),
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

/// What `open` is called after `by` was renamed to `to`, if it is the same file or beneath.
fn renamed(open: &Open, by: &Open, to: &[u8]) -> Option<Vec<u8>> {
    if open.token == by.token {
        return Some(to.to_vec());
    }
    let (theirs, old) = (file_key(&open.share, &open.name), file_key(&by.share, &by.name));
    if theirs == old {
        return Some(to.to_vec());
    }
    let beneath = theirs.0.strip_prefix(&*old.0).is_some_and(|rest| rest.starts_with('\\'));
    let rest = open.name.get(by.name.len()..)?;
    beneath.then(|| [to, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100 * OLD;

    fn claim() -> Claim {
        Claim { maker: Maker::Nobody, asked: Some(NOW), bare: true, directory: false, attributes: 0x20 }
    }

    fn there() -> Sighting {
        let birth = Birth::set(NOW);
        Sighting { birth, created: NOW, written: NOW, size: 0, attributes: 0x20, on_disk_id: None }
    }

    #[test]
    fn whose_file_it_is() {
        use Finding::{Done, Unclear, Undone};
        let second = 10_000_000;
        let rows = [
            ("new, empty, of nobody else", claim(), there(), Done),
            ("clocks differ by a second", claim(), Sighting { created: NOW - second, ..there() }, Done),
            (
                "a directory",
                Claim { directory: true, ..claim() },
                Sighting { attributes: 0x10, ..there() },
                Done,
            ),
            ("another's", Claim { maker: Maker::Known, ..claim() }, there(), Undone),
            ("perhaps another's", Claim { maker: Maker::Unclear, ..claim() }, there(), Unclear),
            ("old", claim(), Sighting { created: NOW - 2 * OLD, ..there() }, Undone),
            ("neither old nor new", claim(), Sighting { created: NOW - OLD / 2, ..there() }, Unclear),
            ("written before", claim(), Sighting { written: NOW - OLD / 2, ..there() }, Unclear),
            ("no clock", Claim { asked: None, ..claim() }, there(), Unclear),
            ("another's, no clock", Claim { asked: None, maker: Maker::Known, ..claim() }, there(), Undone),
            ("not empty", claim(), Sighting { size: 1, ..there() }, Unclear),
            ("a directory for a file", claim(), Sighting { attributes: 0x10, ..there() }, Unclear),
            ("a file for a directory", Claim { directory: true, ..claim() }, there(), Unclear),
            ("it brought more", Claim { bare: false, ..claim() }, there(), Unclear),
            ("not hidden", Claim { attributes: 0x22, ..claim() }, there(), Unclear),
        ];
        for (what, claim, there, expected) in rows {
            assert_eq!(whose(&claim, &there), expected, "{what}");
        }
    }
}
