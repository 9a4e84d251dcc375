//! Back on the node that was lost: only the connection was, and the node may have kept the durable Opens (MS-SMB2 3.3.5.9.7,
//! 3.3.5.9.12), their locks with them.
//!
//! Our login names the lost session as PreviousSessionId, so the node has ended it when the login succeeds: what is
//! durable is disconnected by then, and all else is closed, so that nothing of the lost connection is in the way. Durable
//! Opens are asked for first. One that the node does not give is opened anew, as on any node.
//!
//! One with locks over which a connection ended unanswered is opened anew next: smbd 4.17 panics over some. If its locks are refused
//! then, the node may have it still, and is asked once more.
//!
//! A process of the node that is just ending may hold a file still: what fails for that is tried again, for a while. So are, on
//! any node, locks that are refused: storage may keep those of the lost node until it is known to be dead.

use std::time::{Duration, Instant};

use smb_parse::{
    cmd::create,
    create_context::{ResponseContext, tag},
    encode::{self, CreateParams},
    header::{Command, Header, Status},
};

use super::{
    place::Under,
    reclaim::{Identity, identity},
};
use crate::{
    event::FileEvent,
    ids::{NodeId, OpenToken},
    link::{
        Link, State,
        birth::Birth,
        breaks::Level,
        node_leg::Op,
        open::{Disconnected, Durable, OPLOCK_LEASE, Open, OpenState},
    },
};

/// FILE_OPEN (MS-SMB2 2.2.13).
const FILE_OPEN: u32 = 1;
/// What a file answers that another process has not let go yet.
const NOT_FREE: [Status; 2] = [Status::SHARING_VIOLATION, Status::FILE_NOT_AVAILABLE];
/// How often it is tried again, and for how long.
const AGAIN: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(3);
/// The same for locks. It is less than a client waits for an answer.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How often a node is asked for an Open with locks.
const TRIES: u8 = 2;
/// What a lock is answered that another one is in the way of.
const REFUSED: [Status; 2] = [Status::LOCK_NOT_GRANTED, Status::FILE_LOCK_CONFLICT];

/// What is to be asked again.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    ops: Vec<Op>,
    /// When.
    at: Option<Instant>,
    /// When the first of them was put off.
    since: Option<Instant>,
}

impl Retries {
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// When [`Link::retry_reclaims`] is due.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }
}

impl Link {
    /// The node that is gone to, or was.
    pub(super) fn node_in_the_making(&self) -> Option<NodeId> {
        match &self.state {
            State::Recovering(recovery) => recovery.attached().map(|attached| attached.node),
            State::Bridge(leg) => Some(leg.node),
            _ => None,
        }
    }

    /// The node did not answer a login that names an earlier session: the process that has it may be stopped, and the next
    /// login shall not wait for it.
    pub(super) fn name_no_session_of(&mut self, node: NodeId) {
        for session in self.sessions.iter_mut() {
            session.known_as.remove(&node);
        }
        self.bygone.clear();
    }

    /// Whether a node may have kept an Open, which it has not if its file was flagged to be deleted there. One that may have
    /// another name by now is not asked for, unless its lease makes the node compare the names.
    pub(crate) fn may_be_kept(&self, open: &Open, node: NodeId) -> bool {
        open.durable != Durable::No
            && open.had_by == Some(node)
            // Samba 4.17's process panics over one with locks, if locks are mapped to POSIX ones.
            && open.reconnecting.is_none()
            && (open.lease.is_some() || self.next_attempt(open.token, None).is_none())
    }

    /// DHnC or DH2C, with a lease if the Open has one: with anything else beside it a node says no.
    pub(super) fn send_reconnect(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get_mut(token) else { return };
        let tries = open.reconnecting.as_ref().map_or(0, |kept| kept.tries) + 1;
        let kept = Disconnected { durable: open.durable, node_id: open.node_id, tries };
        open.reconnecting = (!open.locks.is_empty()).then(|| Box::new(kept));
        let Some(open) = self.opens.get(token) else { return };
        let mut contexts: Vec<(&'static [u8], Vec<u8>)> = match open.durable {
            Durable::No => Vec::new(),
            Durable::V1 => vec![(tag::DHNC, encode::durable_reconnect(open.node_id.0))],
            Durable::V2 { create_guid, .. } => {
                vec![(tag::DH2C, encode::durable_v2_reconnect(open.node_id.0, create_guid, 0))]
            }
        };
        if let Some(lease) = &open.lease {
            contexts.push((tag::RQLS, encode::lease(lease)));
        }
        let session = open.session.0;
        let header = self.own_header(Command::CREATE, session, self.node_tree(open));
        let msg = encode::create(
            &header,
            &CreateParams {
                oplock_level: if open.lease.is_some() { OPLOCK_LEASE } else { open.oplock_level },
                impersonation_level: open.impersonation_level,
                desired_access: open.granted_access.unwrap_or(open.desired_access),
                file_attributes: 0,
                share_access: open.share_access,
                create_disposition: FILE_OPEN,
                create_options: open.create_options,
                name_utf16: &open.name.path,
                contexts: &contexts,
            },
        );
        self.send_in_session(session, &msg, Op::Reconnect(token));
    }

    /// The Open is back as it was, or has to be opened anew.
    pub(super) fn reconnect_answer(&mut self, now: Instant, token: OpenToken, header: &Header, msg: &[u8]) {
        if let Some(open) = self.opens.get_mut(token) {
            open.reconnecting = None;
        }
        let response = create::Response::parse(msg).ok().filter(|_| Status(header.status).is_success());
        let Some(response) = response else {
            self.ask_afresh(token);
            return;
        };
        let node = self.node_in_the_making();
        let Some(open) = self.opens.get_mut(token) else { return };
        if identity(open, &response) == Identity::Other {
            self.close_stranger(token, response.file_id);
            self.ask_afresh(token);
            return;
        }
        self.returns.note_answer(token, msg);
        let (granted, epoch) = resume(open, &response);
        open.had_by = node;
        let file = open.file();
        self.out.file(FileEvent::Identified { open: token, file });
        self.opens.set_node_id(token, response.file_id);
        self.note_place(token, Under::Recorded, false);
        self.take_level(now, token, granted, epoch);
        if let State::Recovering(recovery) = &mut self.state {
            recovery.progress.opens_kept += 1;
        }
        self.unlock_in_flight(token);
        if self.opens.get(token).is_some_and(|open| open.owes_locks) {
            self.unlock_all(token);
            self.unlocked(token);
        } else {
            self.reclaimed(token);
        }
    }

    /// A range is not locked any more. The locks come when none is that is to be unlocked: a node may do first what it was asked
    /// last.
    pub(super) fn unlocked(&mut self, token: OpenToken) {
        let is_unlocking = self.own_leg().is_some_and(|leg| leg.is_unlocking(token));
        if !is_unlocking && self.opens.get(token).is_some_and(|open| open.owes_locks) {
            self.lock_again(token);
        }
    }

    /// The node has not kept an Open: it is opened anew, unless others may have had the file since the client was gone.
    fn ask_afresh(&mut self, token: OpenToken) {
        if self.returns.may_be_fresh(token) {
            self.ask_for(Op::Reclaim(token));
        } else {
            self.give_up(token);
        }
    }

    /// The locks of an Open that was opened anew are refused. If its node was asked for it and lost before it had answered, it
    /// may have it still, with its locks: then it is asked once more. True if so.
    fn reconnect_again(&mut self, token: OpenToken) -> bool {
        let lives = matches!(&self.state, State::Recovering(r) if r.progress.is_on_the_lost_node());
        let Some(open) = self.opens.get_mut(token).filter(|_| lives) else { return false };
        let Some(kept) = open.reconnecting.as_deref().copied().filter(|kept| kept.tries < TRIES) else {
            return false;
        };
        let fresh = open.node_id.0;
        open.durable = kept.durable;
        self.close_stranger(token, fresh);
        self.opens.set_node_id(token, kept.node_id.0);
        self.ask_for(Op::Reconnect(token));
        true
    }

    /// An answer that another process of the same node is the reason for: the question is put again later. True if so.
    pub(crate) fn comes_too_early(&mut self, now: Instant, op: &Op, status: Status) -> bool {
        if let Op::Locks(open) = op
            && REFUSED.contains(&status)
            && self.reconnect_again(*open)
        {
            return true;
        }
        let may_be_held = match (&self.state, op) {
            (State::Recovering(recovery), _) => recovery.progress.is_on_the_lost_node(),
            (State::Bridge(_), Op::Reclaim(open)) => self.returns.has(*open),
            _ => false,
        };
        let (is_in_the_way, patience) = match op {
            Op::Reclaim(_) | Op::ReclaimRenamed(..) | Op::ReclaimElsewhere(_) => {
                (NOT_FREE.contains(&status) && may_be_held, PATIENCE)
            }
            Op::Locks(_) => (REFUSED.contains(&status), LOCK_PATIENCE),
            _ => return false,
        };
        let retries = &mut self.retries;
        if !is_in_the_way || now >= *retries.since.get_or_insert(now) + patience {
            return false;
        }
        retries.ops.push(op.clone());
        retries.at.get_or_insert(now + AGAIN);
        true
    }

    /// Asks again what is due.
    pub(crate) fn retry_reclaims(&mut self, now: Instant) {
        if self.retries.at.is_none_or(|at| now < at) {
            return;
        }
        self.retries.at = None;
        let ops = std::mem::take(&mut self.retries.ops);
        if let Some(leg) = self.own_leg() {
            leg.todo.extend(ops);
        }
        match self.state {
            State::Recovering(_) => self.recovery_advance(now),
            _ => self.pump(),
        }
    }
}

/// Takes what the node has kept into the record; what is durable stays so. The level of the oplock or lease, and its epoch.
fn resume(open: &mut Open, response: &create::Response<'_>) -> (Level, Option<u16>) {
    let lease = response.contexts().filter_map(Result::ok).find_map(|c| match ResponseContext::parse(&c) {
        ResponseContext::Lease(lease) => Some(lease),
        _ => None,
    });
    open.state = OpenState::Live;
    open.birth = Birth::of(response);
    open.has_key = false;
    match open.lease {
        Some(_) => (Level::Lease(lease.map_or(0, |l| l.state)), lease.map(|l| l.epoch)),
        None => (Level::Oplock(response.oplock_level), None),
    }
}
