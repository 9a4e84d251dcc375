//! A takeover, in order of execution: a node is named, connected, negotiated with; sessions are authenticated, trees
//! connected, Opens reclaimed, locks taken. Then the Link is in Bridge: delete flags are set, and what was in flight is
//! replayed as its files' barriers lift.
//!
//! [`Recovery`] holds the stage, consumed by value; a stage has only its own data.

pub(crate) mod append;
mod claim;
mod compound;
mod copies;
pub(crate) mod cursor;
mod delete_flags;
pub(crate) mod login;
mod look;
pub(crate) mod place;
pub(crate) mod probe;
mod read_only;
mod reclaim;
pub(crate) mod reconnect;
mod traces;
pub(crate) mod verdict;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use smb_parse::{
    compound::{ElementMut, next_mut},
    header::{Command, Flags, Header, Status},
};

use self::{
    login::Logins,
    place::{Search, Under},
    probe::Attempts,
    read_only::Handles,
    reconnect::Retries,
};
use crate::{
    crypto::sealing::HEADROOM,
    effect::{Close, CloseReason, Effect, Role},
    event::{Cause, Event, FileEvent, LegLoss, Phase, TakeoverReport},
    fleet::Assignment,
    ids::{LegId, NodeId, SessionId},
    link::{
        Attached, Link, State,
        bridge::Unreadable,
        cover::{Cover, Outgoing, cover_for_node},
        node_leg::{Clock, NodeLeg, Op, Pending},
        open::OpenState,
    },
};

/// A leg lost and got back on the same node within this time was a lost leg, not a lost node.
const SAME_NODE: Duration = Duration::from_millis(200);

/// A takeover under way.
#[derive(Debug)]
pub(crate) struct Recovery {
    stage: Stage,
    pub(crate) progress: Progress,
    /// The names under which Opens are looked for, if they are not there under the last known one.
    attempts: Attempts,
    /// Opens that are not there under any of those.
    search: Search,
    handles: Handles,
}

/// Where it stands.
#[derive(Debug)]
enum Stage {
    /// For an assignment later than this generation.
    Waiting(u64),
    Connecting(Attached),
    Negotiating(NodeLeg),
    Authenticating(NodeLeg, Logins),
    ConnectingTrees(NodeLeg),
    /// For what Files says of the Opens' names.
    Asking(NodeLeg),
    Reclaiming(NodeLeg),
}

/// What is told of it at the end.
#[derive(Debug)]
pub(crate) struct Progress {
    cause: Cause,
    lost_at: Instant,
    phase_since: Instant,
    from: NodeId,
    to: Option<NodeId>,
    sessions: u32,
    pub(crate) sessions_lost: u32,
    opens_reclaimed: u32,
    opens_kept: u32,
    opens_lost: u32,
    replayed: u32,
    failed_requests: u32,
    /// What was in flight may still be done by the node that had it, or what another Link has there; as it was seen last.
    may_still_run: bool,
    phases: [(Phase, Duration); Phase::ALL.len()],
}

impl Progress {
    /// Whether it goes to the node that was lost.
    pub(crate) fn is_on_the_lost_node(&self) -> bool {
        self.to == Some(self.from)
    }

    /// The phase that ran until now is over.
    fn ended(&mut self, now: Instant, phase: Phase) {
        let took = now.saturating_duration_since(self.phase_since);
        self.phase_since = now;
        if let Some(slot) = self.phases.iter_mut().find(|(p, _)| *p == phase) {
            slot.1 += took;
        }
    }

    fn report(&self, failed: Option<CloseReason>) -> TakeoverReport {
        TakeoverReport {
            cause: self.cause,
            from: self.from,
            to: self.to,
            failed,
            sessions: self.sessions,
            sessions_lost: self.sessions_lost,
            opens_reclaimed: self.opens_reclaimed,
            opens_kept: self.opens_kept,
            opens_lost: self.opens_lost,
            replayed: self.replayed,
            failed_requests: self.failed_requests,
            phases: self.phases,
        }
    }
}

impl Recovery {
    /// The leg is lost; nothing is known yet of where to go.
    pub(crate) fn begin(now: Instant, lost: Attached, cause: Cause) -> Self {
        Self {
            stage: Stage::Waiting(lost.generation),
            attempts: Attempts::default(),
            search: Search::default(),
            handles: Handles::default(),
            progress: Progress {
                cause,
                lost_at: now,
                phase_since: now,
                from: lost.node,
                to: None,
                sessions: 0,
                sessions_lost: 0,
                opens_reclaimed: 0,
                opens_kept: 0,
                opens_lost: 0,
                replayed: 0,
                failed_requests: 0,
                may_still_run: true,
                phases: Phase::ALL.map(|phase| (phase, Duration::ZERO)),
            },
        }
    }

    pub(crate) fn lost_at(&self) -> Instant {
        self.progress.lost_at
    }

    /// The leg in the making.
    pub(crate) fn leg(&self) -> Option<LegId> {
        self.attached().map(|a| a.leg)
    }

    /// The leg in the making, if it stands and the node is to answer what needs no storage. Whatever touches a file may
    /// take as long as the storage, or as another client's acknowledgement of a break.
    pub(crate) fn greeting(&self) -> Option<LegId> {
        match &self.stage {
            Stage::Negotiating(leg) | Stage::Authenticating(leg, _) => Some(leg.id),
            _ => None,
        }
    }

    pub(crate) fn attached(&self) -> Option<Attached> {
        match &self.stage {
            Stage::Waiting(_) => None,
            Stage::Connecting(attached) => Some(*attached),
            Stage::Negotiating(leg)
            | Stage::Authenticating(leg, _)
            | Stage::ConnectingTrees(leg)
            | Stage::Asking(leg)
            | Stage::Reclaiming(leg) => {
                Some(Attached { leg: leg.id, node: leg.node, generation: leg.generation })
            }
        }
    }

    fn node_leg(&mut self) -> Option<&mut NodeLeg> {
        match &mut self.stage {
            Stage::Waiting(_) | Stage::Connecting(_) => None,
            Stage::Negotiating(leg)
            | Stage::Authenticating(leg, _)
            | Stage::ConnectingTrees(leg)
            | Stage::Asking(leg)
            | Stage::Reclaiming(leg) => Some(leg),
        }
    }

    /// Where it stands, in a word.
    pub(crate) fn stage(&self) -> &'static str {
        match self.stage {
            Stage::Waiting(_) => "waiting",
            Stage::Connecting(_) => "connecting",
            Stage::Negotiating(_) => "negotiating",
            Stage::Authenticating(..) => "authenticating",
            Stage::ConnectingTrees(_) => "trees",
            Stage::Asking(_) => "asking",
            Stage::Reclaiming(_) => "reclaiming",
        }
    }

    /// The report of a takeover that ends here.
    pub(crate) fn report(&self, now: Instant, failed: Option<CloseReason>) -> TakeoverReport {
        let mut report = self.progress.report(failed);
        let phase = match self.stage {
            Stage::Waiting(_) => Phase::Assign,
            Stage::Connecting(_) => Phase::Connect,
            Stage::Negotiating(_) => Phase::Negotiate,
            Stage::Authenticating(..) => Phase::Authenticate,
            Stage::ConnectingTrees(_) => Phase::Trees,
            Stage::Asking(_) | Stage::Reclaiming(_) => Phase::Reclaim,
        };
        if let Some(slot) = report.phases.iter_mut().find(|(p, _)| *p == phase) {
            slot.1 += now.saturating_duration_since(self.progress.phase_since);
        }
        report
    }
}

impl Link {
    /// A node is named while the Link has none. `stays`: if it is the node of before, so is all that was had again there.
    pub(crate) fn recovery_assignment(&mut self, now: Instant, assignment: Assignment, stays: bool) {
        let State::Recovering(recovery) = &mut self.state else { return };
        match &recovery.stage {
            Stage::Waiting(after) if assignment.generation <= *after => return,
            Stage::Waiting(_) => {}
            _ => {
                let Some(attached) = recovery.attached() else { return };
                // A leg that stands may be that of a process which is no more.
                let connects = matches!(recovery.stage, Stage::Connecting(_));
                if attached.node == assignment.node && (stays || connects) {
                    // While it connects, a refusal may be that of the process before: it must not count against this one.
                    if let Some(leg) = recovery.node_leg() {
                        leg.generation = assignment.generation;
                    }
                    return;
                }
                self.out.close_leg(attached.leg, Close::Reset);
                self.unreclaim(now);
            }
        }
        self.go_to(now, assignment);
    }

    /// A leg was given up for another one on a node that lives.
    pub(crate) fn recovery_begin_on(&mut self, now: Instant, assignment: Assignment) {
        if matches!(&self.state, State::Recovering(recovery) if matches!(recovery.stage, Stage::Waiting(_))) {
            self.go_to(now, assignment);
        }
    }

    fn go_to(&mut self, now: Instant, assignment: Assignment) {
        let leg = self.new_leg();
        let State::Recovering(recovery) = &mut self.state else { return };
        recovery.progress.ended(now, Phase::Assign);
        let quick = now < recovery.progress.lost_at + SAME_NODE;
        let same = recovery.progress.from == assignment.node && recovery.progress.cause == Cause::Crash;
        recovery.progress.to = Some(assignment.node);
        recovery.stage =
            Stage::Connecting(Attached { leg, node: assignment.node, generation: assignment.generation });
        if quick && same && self.too_many_losses(now) {
            self.fail_takeover(now, CloseReason::TooManyTakeovers, Close::Reset);
            return;
        }
        self.out.effect(Effect::Connect { leg, node: assignment.node, role: Role::Main });
    }

    /// What was reclaimed on a node since lost is not reclaimed.
    fn unreclaim(&mut self, now: Instant) {
        for open in self.opens.iter_mut().filter(|o| o.state == OpenState::Live) {
            open.state = OpenState::Unreclaimed;
        }
        self.opens.forget_node_ids();
        self.unflagged.clear();
        self.flagging.clear();
        self.retries = Retries::default();
        self.out.file(FileEvent::Lost);
        // It may have told of breaks.
        self.inherit_breaks(now);
        self.answer_own_breaks(now, &self.requests.ids());
        if let State::Recovering(recovery) = &mut self.state {
            recovery.search = Search::default();
            recovery.handles = Handles::default();
            recovery.progress.sessions = 0;
            recovery.progress.opens_reclaimed = 0;
            recovery.progress.opens_kept = 0;
        }
    }

    /// The leg in the making broke: wait for the next assignment.
    pub(crate) fn recovery_leg_lost(&mut self, now: Instant, leg: LegId, loss: LegLoss) {
        let State::Recovering(recovery) = &mut self.state else { return };
        let Some(attached) = recovery.attached().filter(|a| a.leg == leg) else { return };
        let in_login = matches!(recovery.stage, Stage::Authenticating(..));
        recovery.stage = Stage::Waiting(attached.generation);
        recovery.progress.phase_since = now;
        if in_login && loss == LegLoss::Silent {
            self.name_no_session_of(attached.node);
        }
        self.unreclaim(now);
        self.report_loss(attached, loss);
        if let Some(assignment) = self.assignment.filter(|a| a.generation > attached.generation) {
            self.recovery_assignment(now, assignment, true);
        }
    }

    /// TCP stands: NEGOTIATE.
    pub(crate) fn recovery_connected(&mut self, now: Instant, leg: LegId) {
        let State::Recovering(recovery) = &mut self.state else { return };
        let Stage::Connecting(attached) = recovery.stage else { return };
        if attached.leg != leg {
            return;
        }
        recovery.progress.ended(now, Phase::Connect);
        let named = self.assignment.filter(|named| named.node == attached.node);
        let generation = named.map_or(attached.generation, |named| named.generation.max(attached.generation));
        let mut node = NodeLeg::new(leg, attached.node, generation);
        let msg = self.conn.renegotiate(&mut *self.random);
        let sent = node.send_own(&mut self.out, msg, None, Op::Negotiate);
        node.conn.request(&sent);
        recovery.stage = Stage::Negotiating(node);
    }

    /// Answers of the node in the making.
    pub(crate) fn recovery_node_frame(&mut self, now: Instant, leg: LegId, frame: BytesMut) {
        let (opened, mut body, mut at) = match self.read_answer(frame) {
            Ok(read) => read,
            Err(Unreadable::Other) => return,
            Err(Unreadable::Tampered) => {
                // As with one that is signed wrongly.
                self.fail_takeover(now, CloseReason::TakeoverFailed, Close::Reset);
                return;
            }
        };
        while let Some(element) = next_mut(&mut body, &mut at) {
            let Ok(ElementMut { header, msg, .. }) = element else {
                self.out.event(Event::NotUnderstood);
                break;
            };
            self.recovery_answer(now, leg, opened, &header, msg);
        }
        self.recovery_advance(now);
    }

    /// `opened`: whose keys opened it, if it came sealed.
    fn recovery_answer(
        &mut self,
        now: Instant,
        leg: LegId,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        if header.message_id == u64::MAX {
            // A break of what has just been reclaimed: the client hears of it as of any other.
            if self.translate_break(now, msg) {
                self.out.send_client(smb_parse::encode::frame(msg).into());
            }
            return;
        }
        let State::Recovering(recovery) = &mut self.state else { return };
        let Some(node) = recovery.node_leg().filter(|node| node.id == leg) else { return };
        node.granted(header.credits);
        if header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING {
            return;
        }
        let Some(Pending::Ours(op)) = node.pending(header.message_id).cloned() else { return };
        node.answered(header.message_id);
        match op {
            Op::Negotiate => self.negotiated(now, msg),
            Op::Login(session) => self.login_answer(now, session, header, msg),
            // Whoever says it: nothing comes of it.
            Op::Discard => {}
            _ if !self.is_ours(&op, opened, header, msg) => {
                self.out.event(Event::SignatureRefused);
                self.fail_takeover(now, CloseReason::TakeoverFailed, Close::Reset);
            }
            Op::Tree(session, tree) => self.tree_answer(session, tree, header),
            _ if self.comes_too_early(now, &op, Status(header.status)) => {}
            op => self.reclaim_op_answer(now, op, header, msg),
        }
    }

    /// The node's answer to what is asked for an Open that is to be had again.
    pub(crate) fn reclaim_op_answer(&mut self, now: Instant, op: Op, header: &Header, msg: &[u8]) {
        match op {
            Op::Reconnect(open) => self.reconnect_answer(now, open, header, msg),
            Op::Reclaim(open) => self.reclaim_answer(now, open, Under::Recorded, header, msg),
            Op::ReclaimRenamed(open, rename) => {
                self.reclaim_answer(now, open, Under::Renamed(rename), header, msg);
            }
            Op::ReclaimElsewhere(open) => self.reclaim_answer(now, open, Under::Elsewhere, header, msg),
            Op::Look(open, under) => self.look_answer(open, under, header, msg),
            Op::LookClose(open, under) => self.look_closed(open, under),
            Op::Access(open) => self.access_answer(open, header, msg),
            Op::Attributes(open) => self.attributes_answer(open, header, msg),
            Op::TakeOff(open) => self.taken_off(open, header),
            Op::PutOn(open) => self.put_on(open, header),
            Op::Unlock(open, _) => self.unlocked(open),
            Op::Locks(open) => self.locks_answer(open, header),
            // Answered elsewhere, or not on a leg that is to serve the client, or of no consequence.
            Op::Negotiate
            | Op::Login(_)
            | Op::Tree(..)
            | Op::Judge
            | Op::Ending
            | Op::Discard
            | Op::Acknowledge(..)
            | Op::Bind
            | Op::Identity(_)
            | Op::Probe(..)
            | Op::ProbeClose(_)
            | Op::Tail(..)
            | Op::Disposition(_) => {}
        }
    }

    /// Whether an answer to a request of ours was sealed or signed as it must be.
    pub(crate) fn is_ours(
        &self,
        op: &Op,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> bool {
        let session = match op {
            Op::Tree(session, _) => Some(*session),
            Op::Reconnect(open)
            | Op::Reclaim(open)
            | Op::ReclaimRenamed(open, _)
            | Op::ReclaimElsewhere(open)
            | Op::Look(open, _)
            | Op::LookClose(open, _)
            | Op::Access(open)
            | Op::Attributes(open)
            | Op::TakeOff(open)
            | Op::PutOn(open)
            | Op::Unlock(open, _)
            | Op::Locks(open)
            | Op::Disposition(open) => self.opens.get(*open).map(|o| o.session.0),
            _ => None,
        };
        self.is_of_session(session, opened, header, msg)
    }

    /// Whether an answer to a request of ours was sealed by the session in whose name it was sent, or signed with its key.
    /// `opened`: whose keys opened it, if it came sealed.
    pub(crate) fn is_of_session(
        &self,
        session: Option<SessionId>,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) -> bool {
        if opened.is_some() {
            return opened == session;
        }
        let keys = session.and_then(|id| self.sessions.get(id)).and_then(|s| s.node_keys.as_ref());
        keys.is_none_or(|keys| header.flags.contains(Flags::SIGNED) && keys.verify_mut(msg))
    }

    fn negotiated(&mut self, now: Instant, msg: &[u8]) {
        let wanted = self.conn.dialect;
        let State::Recovering(recovery) = &mut self.state else { return };
        let asked = recovery.progress.phase_since;
        let Some(node) = recovery.node_leg() else { return };
        let agreed = Header::parse(msg).is_ok_and(|h| h.command == Command::NEGOTIATE)
            && node.conn.response(msg)
            && node.conn.dialect == wanted
            && node.conn.max_read_size >= self.conn.max_read_size
            && node.conn.max_write_size >= self.conn.max_write_size;
        node.clock = Clock::of(&node.conn, asked);
        if !agreed {
            self.fail_takeover(now, CloseReason::TakeoverFailed, Close::Reset);
        }
    }

    /// Sends what credits allow, and goes to the next stage when one is done.
    fn recovery_advance(&mut self, now: Instant) {
        loop {
            self.pump();
            let State::Recovering(recovery) = &mut self.state else { return };
            let waits = !self.retries.is_empty() || recovery.wants_files();
            if waits || !recovery.node_leg().is_some_and(|leg| leg.is_settled()) {
                return;
            }
            let stage = std::mem::replace(&mut recovery.stage, Stage::Waiting(0));
            let progress = &mut recovery.progress;
            let next = match stage {
                Stage::Negotiating(leg) => {
                    progress.ended(now, Phase::Negotiate);
                    self.begin_logins(leg)
                }
                Stage::Authenticating(leg, _) => {
                    progress.ended(now, Phase::Authenticate);
                    self.begin_trees(leg)
                }
                Stage::ConnectingTrees(leg) => {
                    progress.ended(now, Phase::Trees);
                    Stage::Asking(leg)
                }
                Stage::Reclaiming(leg) => {
                    progress.ended(now, Phase::Reclaim);
                    self.finish_recovery(leg);
                    return;
                }
                waiting => waiting,
            };
            let State::Recovering(recovery) = &mut self.state else { return };
            recovery.stage = next;
            if self.sessions.none_protected() {
                self.fail_takeover(now, CloseReason::TakeoverFailed, Close::Reset);
                return;
            }
        }
    }

    /// Asks the node for what is to do, as far as credits go.
    pub(crate) fn pump(&mut self) {
        loop {
            let Some(leg) = self.own_leg().filter(|leg| leg.can_send(1)) else { return };
            let Some(op) = leg.todo.pop_front() else { return };
            match op {
                Op::Login(session) => self.send_login(session),
                Op::Tree(session, tree) => self.send_tree(session, tree),
                Op::Reconnect(open) => self.send_reconnect(open),
                Op::Reclaim(open) => self.send_reclaim(open, Under::Recorded),
                Op::ReclaimRenamed(open, rename) => self.send_reclaim(open, Under::Renamed(rename)),
                Op::ReclaimElsewhere(open) => self.send_reclaim(open, Under::Elsewhere),
                Op::Look(open, under) => self.send_look(open, under),
                Op::Access(open) => self.send_access(open),
                Op::Attributes(open) => self.send_attributes(open),
                Op::TakeOff(open) => self.send_read_only(open, false),
                Op::PutOn(open) => self.send_read_only(open, true),
                Op::Acknowledge(open, level) => self.acknowledge_late(open, level),
                Op::Unlock(open, range) => self.send_unlock(open, range),
                Op::Locks(open) => self.send_locks(open),
                Op::Negotiate
                | Op::Judge
                | Op::Ending
                | Op::Discard
                | Op::Disposition(_)
                | Op::Bind
                | Op::Identity(_)
                | Op::Probe(..)
                | Op::ProbeClose(_)
                | Op::LookClose(..)
                | Op::Tail(..) => {}
            }
        }
    }

    /// The leg of our own, in use or in the making.
    pub(crate) fn own_leg(&mut self) -> Option<&mut NodeLeg> {
        match &mut self.state {
            State::Recovering(recovery) => recovery.node_leg(),
            State::Bridge(leg) => Some(&mut **leg),
            _ => None,
        }
    }

    /// Sends a message of ours in a session's name.
    pub(crate) fn send_in_session(&mut self, session: SessionId, msg: &[u8], op: Op) {
        let Some(known) = self.sessions.get(session) else { return };
        let cover = if known.seals || known.encrypts(None) { Cover::Sealed } else { Cover::Signed };
        let Some(leg) = self.own_leg() else { return };
        let mut frame = BytesMut::zeroed(HEADROOM);
        frame.extend_from_slice(msg);
        let range = HEADROOM..frame.len();
        let charge = Header::parse(msg).map_or(0, |h| h.credit_charge);
        if let Some(msg) = frame.get_mut(range.clone()) {
            leg.stamp(msg, charge, Pending::Ours(op));
        }
        let id = leg.id;
        let outgoing = [Outgoing { range, cover, session }];
        if let Some(frame) = cover_for_node(&mut self.sessions, &mut *self.random, frame, &outgoing) {
            self.out.send_node(id, frame);
        }
    }

    /// Everything is back that can be: Bridge. What was in flight waits for its barriers.
    fn finish_recovery(&mut self, leg: NodeLeg) {
        let State::Recovering(recovery) = std::mem::replace(&mut self.state, State::Bridge(Box::new(leg)))
        else {
            return;
        };
        let ended = !self.sessions.iter().any(|session| session.still_runs);
        self.out.file(FileEvent::RunsNoMore { ended });
        self.out.file(FileEvent::Served { generation: self.generation() });
        self.replaying = Some(recovery.progress);
        self.barrier = true;
        self.persist.sessions_touched = true;
        self.end_all_succeeded();
        let units = self.requests.units().into_values();
        self.parked = units.flat_map(|ids| self.in_parts(ids)).collect();
    }

    /// The last request in flight has been replayed: the takeover is over.
    pub(crate) fn finish_barrier(&mut self, now: Instant) {
        let waits = |id: &u64| self.requests.get(*id).is_some_and(|r| r.deaths > 0);
        if self.parked.iter().flatten().any(waits) {
            return;
        }
        if let Some(mut progress) = self.replaying.take() {
            progress.ended(now, Phase::Barrier);
            self.out.event(Event::Takeover(Box::new(progress.report(None))));
        }
    }

    /// A request in flight was sent again.
    pub(crate) fn note_replayed(&mut self) {
        if let Some(progress) = &mut self.replaying {
            progress.replayed += 1;
        }
    }

    /// A request in flight was answered without the node.
    pub(crate) fn note_failed(&mut self, failed: bool) {
        if let Some(progress) = self.replaying.as_mut().filter(|_| failed) {
            progress.failed_requests += 1;
        }
    }
}
