//! Trees, Opens, locks and delete flags on the new node. Never the original disposition: FILE_OPEN, the last path, the
//! recorded access, the last granted oplock or lease, a CreateGuid of our own.

use std::time::Instant;

use smb_parse::{
    cmd::{create, query_info},
    create_context::{self, Lease, ResponseContext},
    encode::{self, CreateParams, QueryInfoParams},
    header::{Command, Header, Status, Target},
};

use super::{Stage, place::Under};
use crate::{
    event::FileEvent,
    ids::{Client, Node, OpenToken, SessionId, TreeId},
    link::{
        Link, State,
        birth::Birth,
        breaks::Level,
        node_leg::{NodeLeg, Op},
        open::{Durable, OPLOCK_LEASE, Open, OpenState, known_id},
    },
};

/// FILE_OPEN (MS-SMB2 2.2.13).
const FILE_OPEN: u32 = 1;
/// FileAccessInformation (MS-FSCC 2.4.1).
const ACCESS: u8 = 8;
/// `SMB2_LOCKFLAG_FAIL_IMMEDIATELY`.
const FAIL_IMMEDIATELY: u32 = 0x10;
/// The largest durable timeout that is asked for; the node caps it (milliseconds).
const TIMEOUT: u32 = 300_000;

impl Link {
    pub(super) fn begin_trees(&mut self, mut leg: NodeLeg) -> Stage {
        for session in self.sessions.iter().filter(|s| !s.ended) {
            for tree in session.trees.values().filter(|t| !t.lost) {
                leg.todo.push_back(Op::Tree(session.client_id.0, tree.client_id.0));
            }
        }
        Stage::ConnectingTrees(leg)
    }

    pub(super) fn send_tree(&mut self, session: SessionId, tree: TreeId) {
        let Some(path) = self.sessions.tree(session, tree).map(|t| t.path.clone()) else { return };
        let header = self.own_header(Command::TREE_CONNECT, session, 0);
        let msg = encode::tree_connect(&header, &path);
        self.send_in_session(session, &msg, Op::Tree(session, tree));
    }

    pub(super) fn tree_answer(&mut self, session: SessionId, tree: TreeId, header: &Header) {
        let granted = Status(header.status).is_success();
        let Some(tree) = self.sessions.get_mut(session).and_then(|s| s.trees.get_mut(&Client(tree))) else {
            return;
        };
        match header.tree_id().filter(|_| granted) {
            Some(id) => tree.node_id = Node(id),
            None => tree.lost = true,
        }
    }

    /// Every Open whose tree is back. Pipes cannot be: their state was the server's alone.
    pub(super) fn begin_reclaim(&mut self, mut leg: NodeLeg) -> Stage {
        let (mut kept, mut fresh, mut open_ended, mut lost) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for open in self.opens.iter().filter(|o| o.state == OpenState::Unreclaimed) {
            let tree = self.sessions.tree(open.session.0, open.tree.0);
            if open.is_pipe || tree.is_none_or(|t| t.lost) {
                lost.push(open.token);
            } else if self.may_be_kept(open, leg.node) {
                kept.push(Op::Reconnect(open.token));
            } else if open.wants_access() {
                open_ended.push(self.first_op(open));
            } else {
                fresh.push(self.first_op(open));
            }
        }
        // What may be granted more than it had, by MAXIMUM_ALLOWED, must take nothing from the others.
        leg.todo.extend(kept.into_iter().chain(fresh).chain(open_ended));
        for token in lost {
            self.give_up(token);
        }
        Stage::Reclaiming(leg)
    }

    pub(super) fn send_reclaim(&mut self, token: OpenToken, under: Under) {
        if let Some(open) = self.opens.get_mut(token) {
            self.random.fill(&mut open.reclaimed_as);
        }
        let Some(open) = self.opens.get(token) else { return };
        let new_name = self.name_under(token, under);
        let contexts = reclaim_contexts(open);
        let session = open.session.0;
        let header = self.own_header(Command::CREATE, session, self.node_tree(open));
        let msg = encode::create(
            &header,
            &CreateParams {
                oplock_level: match open.reclaimed_level() {
                    Level::Oplock(level) => level,
                    Level::Lease(_) => OPLOCK_LEASE,
                },
                impersonation_level: open.impersonation_level,
                desired_access: open.granted_access.unwrap_or(open.desired_access),
                file_attributes: 0,
                share_access: open.share_access,
                create_disposition: FILE_OPEN,
                create_options: self.reclaim_options(open),
                name_utf16: new_name.unwrap_or(&open.name.path),
                contexts: &contexts,
            },
        );
        self.send_in_session(session, &msg, under.reclaim(token));
    }

    pub(super) fn reclaim_answer(
        &mut self,
        now: Instant,
        token: OpenToken,
        under: Under,
        header: &Header,
        msg: &[u8],
    ) {
        let response = create::Response::parse(msg).ok().filter(|_| Status(header.status).is_success());
        let found = response.as_ref().zip(self.opens.get(token));
        let found = found.map(|(response, open)| (response.file_id, identity(open, response)));
        let is_back = match found {
            Some((_, Identity::Same)) => true,
            Some((_, Identity::Alike)) => under == Under::Recorded && !self.may_be_deleted(token),
            _ => false,
        };
        let Some(response) = response.filter(|_| is_back) else {
            if let Some((stranger, _)) = found {
                self.close_stranger(token, stranger);
            } else if under == Under::Recorded && self.may_be_read_only(token, Status(header.status)) {
                self.note_refusal(token);
                return;
            }
            self.note_absence(token, Status(header.status), found.is_some());
            self.look_elsewhere(token, under);
            return;
        };
        self.note_place(token, under, found.is_some_and(|(_, identity)| identity == Identity::Same));
        let node = self.node_in_the_making();
        self.returns.note_answer(token, msg);
        let Some(open) = self.opens.get_mut(token) else { return };
        let node_id = response.file_id;
        let (granted, epoch) = adopt(open, &response);
        open.had_by = node;
        open.owes_locks = true;
        open.is_deleted = false;
        open.state = OpenState::Live;
        open.cursor.reopened();
        open.has_key = false;
        let file = open.file();
        self.out.file(FileEvent::Identified { open: token, file });
        let closing = open.closing;
        self.opens.set_node_id(token, node_id);
        if !closing {
            self.take_level(now, token, granted, epoch);
        }
        self.ask_for_access(token);
        self.pay_read_only(token);
    }

    /// What MAXIMUM_ALLOWED has come to, if nobody has asked yet: the next node is asked for just that.
    fn ask_for_access(&mut self, token: OpenToken) {
        if self.opens.get(token).is_some_and(Open::wants_access) {
            self.ask_for(Op::Access(token));
        }
    }

    pub(super) fn send_access(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token) else { return };
        let session = open.session.0;
        let header = self.own_header(Command::QUERY_INFO, session, self.node_tree(open));
        let params = QueryInfoParams {
            info_type: 1,
            file_info_class: ACCESS,
            output_buffer_length: 4,
            additional_information: 0,
            flags: 0,
            file_id: open.node_id.0,
            input: &[],
        };
        self.send_in_session(session, &encode::query_info(&header, &params), Op::Access(token));
    }

    pub(super) fn access_answer(&mut self, token: OpenToken, header: &Header, msg: &[u8]) {
        let answer = query_info::Response::parse(msg).ok().filter(|_| Status(header.status).is_success());
        if let (Some(answer), Some(open)) = (answer, self.opens.get_mut(token)) {
            open.take_access(answer.buffer);
        }
    }

    /// The Open is back, and its file as it was: then its locks.
    pub(super) fn lock_again(&mut self, token: OpenToken) {
        if self.opens.get(token).is_some_and(|open| !open.locks.is_empty() && !open.closing) {
            self.ask_for(Op::Locks(token));
        } else {
            self.reclaimed(token);
        }
    }

    /// To be asked of the node in the making.
    pub(crate) fn ask_for(&mut self, op: Op) {
        if let Some(leg) = self.own_leg() {
            leg.todo.push_back(op);
        }
    }

    pub(super) fn reclaimed(&mut self, token: OpenToken) {
        if let Some(open) = self.opens.get_mut(token) {
            open.owes_locks = false;
        }
        let generation = self.generation();
        if self.opens.get(token).is_some_and(|open| open.delete_pending) {
            self.out.file(FileEvent::Unflagged { open: token, generation });
            self.unflagged.insert(token);
        } else {
            self.out.file(FileEvent::Reclaimed { open: token, generation });
        }
        if let State::Recovering(recovery) = &mut self.state {
            recovery.progress.opens_reclaimed += 1;
        }
        self.returned(token);
    }

    /// Another file stands under the name: what was opened is closed again.
    pub(super) fn close_stranger(&mut self, token: OpenToken, id: smb_parse::FileId) {
        let Some(open) = self.opens.get(token) else { return };
        let session = open.session.0;
        let header = self.own_header(Command::CLOSE, session, self.node_tree(open));
        self.send_in_session(session, &encode::close(&header, 0, id), Op::Discard);
    }

    /// That Open alone is lost.
    pub(crate) fn give_up(&mut self, token: OpenToken) {
        if self.returns.has(token) {
            return self.not_returned(token);
        }
        self.note_close_undone(token);
        let is_closed =
            matches!(&self.state, State::Recovering(recovery) if recovery.search.was_closed_by_node(token));
        if let Some(open) = self.opens.get_mut(token) {
            open.state = if is_closed { OpenState::ClosedByNode } else { OpenState::Lost };
            let deleted = open.is_deleted;
            self.out.file(FileEvent::GivenUp { open: token, deleted });
            self.leave_read_only(token);
            if let State::Recovering(recovery) = &mut self.state {
                recovery.progress.opens_lost += 1;
            }
        }
    }

    /// The acknowledged byte-range locks of an Open, in one request.
    pub(super) fn send_locks(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token) else { return };
        let locks: Vec<_> = open
            .locks
            .iter()
            .map(|lock| {
                let mut lock = *lock;
                lock.flags |= FAIL_IMMEDIATELY;
                lock
            })
            .collect();
        let (session, id) = (open.session.0, open.node_id.0);
        let header = self.own_header(Command::LOCK, session, self.node_tree(open));
        self.send_in_session(session, &encode::lock(&header, id, 0, &locks), Op::Locks(token));
    }

    /// Without its locks an Open is not what the client has: it is lost.
    pub(super) fn locks_answer(&mut self, token: OpenToken, header: &Header) {
        if Status(header.status).is_success() {
            self.reclaimed(token);
            return;
        }
        if let Some(id) = self.opens.get(token).map(|o| o.node_id.0) {
            self.close_stranger(token, id);
        }
        self.give_up(token);
    }

    pub(crate) fn node_tree(&self, open: &Open) -> TreeId {
        self.sessions.tree(open.session.0, open.tree.0).map_or(0, |t| t.node_id.0)
    }

    /// A request header of the proxy's own.
    pub(crate) fn own_header(&self, command: Command, session: SessionId, tree_id: TreeId) -> Header {
        let mut header = Header::request(command, 0);
        header.session_id = self.sessions.get(session).map_or(0, |s| s.node_id.0);
        header.target = Target::Sync { reserved: 0xfeff, tree_id };
        header.credit_charge = u16::from(self.conn.dialect > Some(crate::crypto::Dialect::SMB202));
        header
    }
}

/// How a file found under an Open's name compares with what was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// The very file.
    Same,
    /// Nothing speaks against it.
    Alike,
    /// Another one.
    Other,
}

pub(super) fn identity(open: &Open, response: &create::Response<'_>) -> Identity {
    let is = response.contexts().filter_map(Result::ok).find_map(|c| match ResponseContext::parse(&c) {
        ResponseContext::OnDiskId(id) => known_id(id),
        _ => None,
    });
    let birth = Birth::of(response);
    match (open.on_disk_id, is) {
        // The first 8 bytes are the file's number; the rest names the volume, which may differ from node to node.
        (Some(was), Some(is)) if was.get(..8) == is.get(..8) => Identity::Same,
        (Some(_), Some(_)) => Identity::Other,
        _ if open.birth.is_at(birth) => Identity::Same,
        _ if open.birth.can_be(birth) => Identity::Alike,
        _ => Identity::Other,
    }
}

/// Takes the node's answer into the record. What it has granted, and the epoch of its lease.
fn adopt(open: &mut Open, response: &create::Response<'_>) -> (Level, Option<u16>) {
    let mut lease = None;
    let mut on_disk_id = None;
    let mut durable = Durable::No;
    for context in response.contexts().filter_map(Result::ok) {
        match ResponseContext::parse(&context) {
            ResponseContext::Lease(granted) => lease = Some(granted),
            ResponseContext::OnDiskId(id) => on_disk_id = known_id(id),
            ResponseContext::Durable => durable = Durable::V1,
            ResponseContext::DurableV2 { timeout, .. } => {
                durable = Durable::V2 { timeout, create_guid: open.reclaimed_as };
            }
            _ => {}
        }
    }
    open.on_disk_id = on_disk_id.or(open.on_disk_id);
    open.birth = Birth::of(response);
    open.durable = durable;
    match open.lease {
        Some(_) => (Level::Lease(lease.map_or(0, |l| l.state)), lease.map(|l| l.epoch)),
        None => (Level::Oplock(response.oplock_level), None),
    }
}

/// The create contexts of a reclaim.
fn reclaim_contexts(open: &Open) -> Vec<(&'static [u8], Vec<u8>)> {
    let mut contexts: Vec<(&'static [u8], Vec<u8>)> = Vec::with_capacity(4);
    if let (Some(lease), Level::Lease(state)) = (&open.lease, open.reclaimed_level()) {
        contexts.push((create_context::tag::RQLS, encode::lease(&Lease { state, ..*lease })));
    }
    match open.promised {
        Durable::No => {}
        Durable::V1 => contexts.push((create_context::tag::DHNQ, encode::durable_request())),
        Durable::V2 { timeout, .. } => {
            let request = encode::durable_v2_request(timeout.min(TIMEOUT), open.reclaimed_as);
            contexts.push((create_context::tag::DH2Q, request));
        }
    }
    contexts.push((create_context::tag::QFID, Vec::new()));
    if let Some(timestamp) = open.timewarp {
        contexts.push((create_context::tag::TWRP, timestamp.to_le_bytes().to_vec()));
    }
    contexts
}
