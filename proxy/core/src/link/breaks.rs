//! Oplocks and leases, and their breaks (MS-SMB2 3.3.4.6, 3.3.4.7, 3.3.5.22).
//!
//! Two levels are kept of each oplock and lease. The *record* (`Open::oplock_level`, `Open::lease`) is what a reclaim asks
//! for: the last level granted, or the one that the client was last told to go down to. What the client *holds* is more than
//! that while a break is not acknowledged ([`Breaking`]): it may still have changes that nobody else has seen.
//!
//! | when the node dies | the record | others on the file | the acknowledgement |
//! |---|---|---|---|
//! | no break | as granted | the barrier, until it is back | |
//! | the break never reached the proxy | as granted | as above; the new node breaks it if it is asked to | the node's |
//! | the client was told, and has not acknowledged | the level it was told | wait until it does, or its time is over | ours |
//! | an acknowledgement is in flight | the level acknowledged | as without a break | ours, at once |
//! | the node gives less than the record | what it gave | wait, if the client may write | ours, to a break of ours |
//!
//! | in Bridge the node breaks | the client hears | the node gets an acknowledgement |
//! |---|---|---|
//! | to less than the client holds | a break from what it holds | the client's |
//! | to no less than the client holds | nothing | ours |
//! | while it has not acknowledged a break of ours or of a lost node | of that afterwards, if still needed | then |
//!
//! Invariants:
//!
//! - The client holds no more than the node has granted, or the file is *held* for it ([`FileEvent::Held`]): nobody else opens
//!   it, or works on it, until the client has acknowledged, or [`PATIENCE`] is over.
//! - A client hears of one break at a time, each from what it holds to less.
//! - The epoch of a lease that the client hears never falls, and grows by one with each change (3.3.4.7): `Open::epoch_shift`
//!   is what the client's is ahead of the node's.
//! - A reclaim never asks for more than the record. Directories are reclaimed without a lease, since what was changed in them
//!   meanwhile nobody knows; so are files that another client may have changed, if nothing but reading is cached of them
//!   (`Link::drop_stale_caches`): the lost node may have broken that cache, and the client not heard of it.

use std::time::{Duration, Instant};

use smb_parse::{
    cmd::{create, oplock_break},
    create_context::{RequestContext, ResponseContext},
    encode,
    header::{Command, Flags, Header, Status, Target},
    patch,
};

use super::{
    Link, State,
    node_leg::Op,
    open::{OPLOCK_LEASE, Open, OpenState, Opens},
    request::Request,
};
use crate::{
    event::{Event, FileEvent},
    files::Files,
    ids::{MessageId, OpenToken},
};

/// How long a client may take over an acknowledgement while others wait: as long as Samba's nodes give it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(35);
/// How long a node may take to send a break, and a client's leg to carry it, after what it was broken for was asked.
const LATELY: Duration = Duration::from_secs(5);
/// `SMB2_NOTIFY_BREAK_LEASE_FLAG_ACK_REQUIRED`.
const ACK_REQUIRED: u32 = 0x1;
/// Oplock level II (MS-SMB2 2.2.13).
const LEVEL_II: u8 = 0x01;
const BATCH: u8 = 0x09;
/// Lease states (MS-SMB2 2.2.13.2.8).
const READ: u32 = 0x1;
const HANDLE: u32 = 0x2;
const WRITE: u32 = 0x4;
/// `SMB2_LEASE_FLAG_BREAK_IN_PROGRESS` (MS-SMB2 2.2.14.2.10).
const BREAK_IN_PROGRESS: u32 = 0x2;
/// STATUS_INVALID_OPLOCK_PROTOCOL (MS-ERREF 2.3).
const INVALID_OPLOCK_PROTOCOL: Status = Status(0xc000_00e3);

/// What a client may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// An oplock of this level, or none.
    Oplock(u8),
    /// A lease in this state.
    Lease(u32),
}

impl Level {
    /// The record of an Open.
    pub(crate) fn of(open: &Open) -> Self {
        match &open.lease {
            Some(lease) => Self::Lease(lease.state),
            None if open.oplock_level == OPLOCK_LEASE => Self::Oplock(0),
            None => Self::Oplock(open.oplock_level),
        }
    }

    /// Nothing, in the same kind.
    fn none(self) -> Self {
        match self {
            Self::Oplock(_) => Self::Oplock(0),
            Self::Lease(_) => Self::Lease(0),
        }
    }

    /// Whether there may be changes that nobody else has seen.
    fn writes(self) -> bool {
        match self {
            Self::Oplock(level) => level > LEVEL_II,
            Self::Lease(state) => state & WRITE != 0,
        }
    }

    /// Whether there may be data that somebody else has changed since.
    fn only_reads(self) -> bool {
        match self {
            Self::Oplock(level) => level == LEVEL_II,
            Self::Lease(state) => state & (READ | WRITE) == READ,
        }
    }

    /// Whether losing some of it is to be acknowledged.
    fn is_acknowledged(self) -> bool {
        match self {
            Self::Oplock(level) => level > LEVEL_II,
            Self::Lease(state) => state & (HANDLE | WRITE) != 0,
        }
    }

    /// What both allow.
    fn meet(self, other: Self) -> Self {
        match (self, other) {
            (Self::Oplock(a), Self::Oplock(b)) => Self::Oplock(a.min(b)),
            (Self::Lease(a), Self::Lease(b)) => Self::Lease(a & b),
            _ => self.none(),
        }
    }

    fn is_within(self, other: Self) -> bool {
        self.meet(other) == self
    }
}

/// A break that the client has heard of, and has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Breaking {
    /// What it holds until then.
    had: Level,
    /// What it was told to go down to.
    told: Level,
    /// When others wait no longer.
    until: Instant,
    /// No node waits for it: the one that did is lost, or the break is ours.
    ours: bool,
    /// What it is to be told next, and whether the present node waits for that.
    next: Option<(Level, bool)>,
    /// The Open is of a CREATE answered since the client was told: it was opened with no more than that.
    joined: bool,
}

impl Breaking {
    fn new(had: Level, told: Level, now: Instant, ours: bool) -> Option<Self> {
        let until = now + PATIENCE;
        had.is_acknowledged().then_some(Self { had, told, until, ours, next: None, joined: false })
    }

    /// Whether the file is to be held for the client.
    fn holds(&self) -> bool {
        self.ours && self.had.writes() && !self.told.writes()
    }

    /// What the client may still have.
    fn allows(&self, level: Level) -> Level {
        level.meet(self.told)
    }
}

/// Whose caching a break is about: one Open's, or that of all that share a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cached {
    Oplock(OpenToken),
    Lease([u8; 16]),
}

impl Cached {
    fn by(open: &Open) -> Self {
        open.lease.as_ref().map_or(Self::Oplock(open.token), |lease| Self::Lease(lease.key))
    }

    /// The Opens that it is about.
    fn of(self, opens: &Opens) -> impl Iterator<Item = &Open> {
        let (alone, lease) = match self {
            Self::Oplock(token) => (opens.get(token), None),
            Self::Lease(key) => (None, Some(opens.with_lease(key))),
        };
        alone.into_iter().chain(lease.into_iter().flatten())
    }

    /// The same, to change them.
    fn of_mut(self, opens: &mut Opens) -> impl Iterator<Item = &mut Open> {
        let (alone, lease) = match self {
            Self::Oplock(token) => (opens.get_mut(token), None),
            Self::Lease(key) => (None, Some(opens.with_lease_mut(key))),
        };
        alone.into_iter().chain(lease.into_iter().flatten())
    }
}

/// A header of a notification.
fn notice(session: u64) -> Header {
    Header {
        credit_charge: 0,
        status: Status::SUCCESS.0,
        command: Command::OPLOCK_BREAK,
        credits: 0,
        flags: Flags::SERVER_TO_REDIR,
        next_command: 0,
        message_id: u64::MAX,
        target: Target::Sync { reserved: 0, tree_id: 0 },
        session_id: session,
        signature: [0; 16],
    }
}

fn set_level(open: &mut Open, level: Level) {
    match (level, &mut open.lease) {
        (Level::Lease(state), Some(lease)) => lease.state = state,
        (Level::Oplock(level), None) => open.oplock_level = level,
        _ => {}
    }
}

impl Link {
    /// A break notification passes to the client as it is.
    pub(super) fn watch_break(&mut self, now: Instant, msg: &[u8]) {
        let heard = match oplock_break::Notification::parse(msg) {
            Ok(oplock_break::Notification::Oplock { oplock_level, file_id }) => {
                let open = self.opens.by_node(file_id).map(Cached::by);
                open.map(|cached| (cached, Level::Oplock(oplock_level), None))
            }
            Ok(oplock_break::Notification::Lease { new_epoch, lease_key, new_lease_state, .. }) => {
                Some((Cached::Lease(lease_key), Level::Lease(new_lease_state), Some(new_epoch)))
            }
            Err(_) => return self.out.event(Event::NotUnderstood),
        };
        let Some((cached, told, epoch)) = heard else { return };
        for open in cached.of_mut(&mut self.opens) {
            let had = open.breaking.map_or(Level::of(open), |breaking| breaking.had);
            set_level(open, told);
            open.breaking = Breaking::new(had, told, now, false);
            if let (Some(epoch), Some(lease)) = (epoch, &mut open.lease) {
                lease.epoch = epoch;
            }
        }
    }

    /// A notification of the node in Bridge. True if it may pass as it is, for it is about nothing that is known.
    pub(crate) fn translate_break(&mut self, now: Instant, msg: &[u8]) -> bool {
        match oplock_break::Notification::parse(msg) {
            Ok(oplock_break::Notification::Oplock { oplock_level, file_id }) => {
                // Without an Open its FileId means nothing to the client.
                let Some(open) = self.opens.by_node(file_id) else { return false };
                let (cached, waits) = (Cached::by(open), Level::of(open).is_acknowledged());
                self.lower(now, cached, Level::Oplock(oplock_level), waits, None);
                false
            }
            Ok(oplock_break::Notification::Lease {
                new_epoch, flags, lease_key, new_lease_state, ..
            }) => {
                let cached = Cached::Lease(lease_key);
                if cached.of(&self.opens).next().is_none() {
                    return true;
                }
                let waits = flags & ACK_REQUIRED != 0;
                self.lower(now, cached, Level::Lease(new_lease_state), waits, Some(new_epoch));
                false
            }
            Err(_) => {
                self.out.event(Event::NotUnderstood);
                false
            }
        }
    }

    /// The client may not cache more than this from now on. `node_waits` for its acknowledgement; `epoch` is the node's, if the
    /// node has said so.
    fn lower(&mut self, now: Instant, cached: Cached, to: Level, node_waits: bool, epoch: Option<u16>) {
        let Some(open) = cached.of(&self.opens).next() else { return };
        let held = Level::of(open);
        let new = held.meet(to);
        if open.breaking.is_some_and(|breaking| breaking.ours) {
            for open in cached.of_mut(&mut self.opens) {
                set_level(open, new);
                if let Some(breaking) = &mut open.breaking {
                    let waits = node_waits || breaking.next.is_some_and(|(_, waits)| waits);
                    breaking.next = Some((new, waits));
                }
            }
            self.end_unowed_break(now, cached);
            return;
        }
        if new == held {
            if node_waits {
                self.acknowledge_to_node(cached, new);
            }
            return;
        }
        let breaking = Breaking::new(held, new, now, !node_waits);
        for open in cached.of_mut(&mut self.opens) {
            set_level(open, new);
            open.breaking = breaking;
            if let Some(lease) = &mut open.lease {
                let next = lease.epoch.wrapping_add(1);
                let theirs = epoch.map_or(next, |epoch| epoch.wrapping_add(open.epoch_shift));
                // Ahead by less than half of all numbers (RFC 1982).
                lease.epoch = if theirs.wrapping_sub(next) < 0x8000 { theirs } else { next };
                if epoch.is_none() {
                    open.epoch_shift = open.epoch_shift.wrapping_add(1);
                }
            }
        }
        self.notify_break(cached, held, new);
        if node_waits && breaking.is_none() {
            self.acknowledge_to_node(cached, new);
        }
        self.note_own_breaks();
        self.hold(cached);
    }

    /// Tells the client of a break.
    fn notify_break(&mut self, cached: Cached, held: Level, new: Level) {
        let Some(open) = cached.of(&self.opens).next() else { return };
        let msg = match (&open.lease, held, new) {
            (Some(lease), Level::Lease(current), Level::Lease(new)) => {
                let break_of = encode::LeaseBreak {
                    epoch: if lease.version == 2 { lease.epoch } else { 0 },
                    flags: if held.is_acknowledged() { ACK_REQUIRED } else { 0 },
                    key: lease.key,
                    current,
                    new,
                };
                encode::lease_break_notification(&notice(0), &break_of)
            }
            (None, _, Level::Oplock(level)) => {
                encode::oplock_break_notification(&notice(open.session.0), open.client_id.0, level)
            }
            _ => return,
        };
        self.out.send_client(encode::frame(&msg).into());
    }

    /// Others wait for a client that may have changes of its own.
    fn hold(&mut self, cached: Cached) {
        for open in cached.of(&self.opens) {
            if open.breaking.is_some_and(|breaking| breaking.holds()) {
                self.out.file(FileEvent::Held { open: open.token });
            }
        }
    }

    fn release(&mut self, cached: Cached) {
        for open in cached.of_mut(&mut self.opens) {
            if open.breaking.take().is_some_and(|breaking| breaking.holds()) {
                self.out.file(FileEvent::Released { open: open.token });
            }
        }
        // What the client itself has asked for may have waited for that, too, although Files held nothing.
        self.fresh |= !self.parked.is_empty();
        self.note_own_breaks();
    }

    /// When the first break that is ours is over.
    fn note_own_breaks(&mut self) {
        let ours = self.opens.iter().filter_map(|o| o.breaking.filter(|breaking| breaking.ours));
        self.break_due = ours.map(|breaking| breaking.until).min();
    }

    /// Breaks that were not acknowledged in time: others wait no longer.
    pub(super) fn run_break_timers(&mut self, now: Instant) {
        while self.break_due.is_some_and(|due| now >= due) {
            let late = |o: &&Open| o.breaking.is_some_and(|breaking| breaking.ours && now >= breaking.until);
            let Some(open) = self.opens.iter().find(late) else { return self.note_own_breaks() };
            let (cached, breaking, level) = (Cached::by(open), open.breaking, Level::of(open));
            self.release(cached);
            let Some(Breaking { told, next: Some((to, node_waits)), .. }) = breaking else { continue };
            if node_waits {
                self.acknowledge_to_node(cached, level);
            }
            // Late as it is, it is to hear of what came since.
            for open in cached.of_mut(&mut self.opens) {
                set_level(open, told);
            }
            self.lower(now, cached, to, false, None);
        }
    }

    /// In the client's name, which has less already. Not behind what closes its last Open: nothing is left there to break, the
    /// node may have ended the session, and the same lease may be another file's by then. A node may break what it has granted no
    /// credit for: then it waits for one.
    fn acknowledge_to_node(&mut self, cached: Cached, level: Level) {
        let is_closed = |open: &Open| self.closings(open).any(|request| request.sent.is_some());
        let live = |o: &&Open| o.state == OpenState::Live && !is_closed(o);
        let Some(open) = cached.of(&self.opens).find(live).map(|open| open.token) else { return };
        if let Some(leg) = self.own_leg().filter(|leg| !leg.can_send(1)) {
            leg.todo.push_front(Op::Acknowledge(open, level));
            return;
        }
        let Some(open) = self.opens.get(open) else { return };
        let (session, tree) = (open.session.0, self.sessions.tree(open.session.0, open.tree.0));
        let header = self.own_header(Command::OPLOCK_BREAK, session, tree.map_or(0, |t| t.node_id.0));
        let msg = match (&open.lease, level) {
            (Some(lease), Level::Lease(state)) => encode::lease_break_ack(&header, lease.key, state),
            (None, Level::Oplock(level)) => encode::oplock_break_ack(&header, open.node_id.0, level),
            _ => return,
        };
        self.send_in_session(session, &msg, Op::Discard);
    }

    /// The same, once there is a credit.
    pub(crate) fn acknowledge_late(&mut self, token: OpenToken, level: Level) {
        if let Some(open) = self.opens.get(token) {
            self.acknowledge_to_node(Cached::by(open), level);
        }
    }

    /// The client acknowledges a break that the present node does not wait for: it is ours to answer. True if it was.
    pub(super) fn answer_own_break(&mut self, now: Instant, id: MessageId) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let Ok(ack) = oplock_break::Ack::parse(&request.msg) else { return false };
        let (open, acked) = self.acknowledged_by(request, &ack);
        let Some(open) = open else { return false };
        let breaking = open.breaking.filter(|breaking| breaking.ours);
        // The one that nobody waited for any more: it has come to what the client has.
        let excused = open.excused.filter(|_| open.breaking.is_none());
        let Some(told) = breaking.map(|breaking| breaking.told).or(excused) else { return false };
        let (cached, client_id) = (Cached::by(open), open.client_id.0);
        if !acked.is_within(told) {
            let status = match acked {
                Level::Oplock(_) => INVALID_OPLOCK_PROTOCOL,
                Level::Lease(_) => Status::REQUEST_NOT_ACCEPTED,
            };
            self.fail_request(id, status);
            return true;
        }
        let Some(request) = self.requests.remove(id) else { return true };
        let header = self.response_header(&request, Status::SUCCESS);
        let msg = match ack {
            oplock_break::Ack::Oplock { oplock_level, .. } => {
                encode::oplock_break_ack_response(&header, client_id, oplock_level)
            }
            oplock_break::Ack::Lease { lease_key, lease_state, .. } => {
                encode::lease_break_ack_response(&header, lease_key, lease_state)
            }
        };
        self.answer(&request, &msg);
        self.release(cached);
        for open in cached.of_mut(&mut self.opens) {
            open.excused = None;
        }
        self.acknowledged(now, cached, acked, breaking.and_then(|breaking| breaking.next));
        true
    }

    /// What an acknowledgement of the client is about, and what it leaves to the client.
    fn acknowledged_by(&self, request: &Request, ack: &oplock_break::Ack) -> (Option<&Open>, Level) {
        match *ack {
            oplock_break::Ack::Oplock { oplock_level, file_id } => {
                let open =
                    if request.raw { self.opens.by_client(file_id) } else { self.opens.by_node(file_id) };
                (open, Level::Oplock(oplock_level))
            }
            oplock_break::Ack::Lease { lease_key, lease_state, .. } => {
                let cached = Cached::Lease(lease_key);
                (cached.of(&self.opens).next(), Level::Lease(lease_state))
            }
        }
    }

    /// The Opens that a request acknowledges a break of.
    pub(super) fn acknowledged_opens(&self, request: &Request) -> Vec<OpenToken> {
        let Ok(ack) = oplock_break::Ack::parse(&request.msg) else { return Vec::new() };
        let (open, _) = self.acknowledged_by(request, &ack);
        open.into_iter().flat_map(|open| Cached::by(open).of(&self.opens)).map(|open| open.token).collect()
    }

    /// What has come of an acknowledgement nobody can tell, for its answer is not the node's. The client has given back what it
    /// was told to all the same, and is told anew of what it gets afterwards.
    pub(super) fn settle_untold_ack(&mut self, id: MessageId) {
        let Some(request) = self.requests.get(id) else { return };
        let Ok(ack) = oplock_break::Ack::parse(&request.msg) else { return };
        let (Some(open), acked) = self.acknowledged_by(request, &ack) else { return };
        let (Some(breaking), asked) = (open.breaking, request.at) else { return };
        self.settle_break(Cached::by(open), breaking.told.meet(acked), asked);
    }

    /// The client has this now. `next`: what it is to be told since.
    fn acknowledged(&mut self, now: Instant, cached: Cached, acked: Level, next: Option<(Level, bool)>) {
        let Some((to, node_waits)) = next else {
            for open in cached.of_mut(&mut self.opens) {
                let level = Level::of(open).meet(acked);
                set_level(open, level);
            }
            return;
        };
        for open in cached.of_mut(&mut self.opens) {
            set_level(open, acked);
        }
        self.lower(now, cached, to, node_waits, None);
    }

    /// The requests in flight that close an Open.
    fn closings(&self, open: &Open) -> impl Iterator<Item = &Request> {
        let (token, session, tree) = (open.token, open.session.0, open.tree.0);
        self.requests.iter().filter(move |request| match request.header.command {
            Command::CLOSE => self.opens.of(request).is_some_and(|closed| closed.token == token),
            Command::TREE_DISCONNECT => {
                request.header.session_id == session && request.header.tree_id() == Some(tree)
            }
            Command::LOGOFF => request.header.session_id == session,
            _ => false,
        })
    }

    /// All Opens of which the client was told are closed: it has given back what it is to acknowledge, and may never do so.
    /// Nobody waits for that.
    fn end_unowed_break(&mut self, now: Instant, cached: Cached) {
        let Some(breaking) = cached.of(&self.opens).next().and_then(|o| o.breaking) else {
            return;
        };
        // What it writes before it closes an Open reaches the node first, so that only what holds no file is given back by then.
        // Of what was being closed when its node was lost nobody holds the file, for it is not cached any more.
        let gives_up =
            |open: &Open| open.closing || !breaking.holds() && self.closings(open).next().is_some();
        let is_owed = cached.of(&self.opens).any(|o| o.breaking.is_none_or(|b| !b.joined) && !gives_up(o));
        if breaking.ours && !is_owed && (breaking.next.is_some() || breaking.holds()) {
            self.release(cached);
            for open in cached.of_mut(&mut self.opens) {
                open.excused = Some(breaking.told);
            }
            self.acknowledged(now, cached, breaking.told, breaking.next);
        }
    }

    /// What a node may have closed without our being told: it waits for no acknowledgement of that.
    pub(super) fn forget_breaks_of_closed(&mut self) {
        for open in self.opens.iter_mut().filter(|o| o.closing) {
            open.breaking = open.breaking.filter(|breaking| breaking.ours);
        }
    }

    /// Sessions and trees may have ended: what Opens that are left share with those that went with them.
    pub(super) fn end_unowed_breaks(&mut self, now: Instant) {
        if self.break_due.is_none() {
            return;
        }
        let joined = self.opens.iter().filter(|o| o.breaking.is_some_and(|b| b.ours && b.joined));
        for cached in joined.map(Cached::by).collect::<Vec<_>>() {
            self.end_unowed_break(now, cached);
        }
    }

    /// An Open was closed: others may have shared its lease.
    pub(super) fn left_by(&mut self, now: Instant, closed: &Open) {
        if closed.breaking.is_some() {
            self.end_unowed_break(now, Cached::by(closed));
        }
    }

    /// The node has answered the client's acknowledgement.
    pub(super) fn observe_break_ack(&mut self, request: &Request, msg: &[u8]) {
        let (cached, level) = match oplock_break::Ack::parse(msg) {
            Ok(oplock_break::Ack::Oplock { oplock_level, file_id }) => {
                let Some(open) = self.opens.by_client(file_id) else { return };
                (Cached::by(open), Level::Oplock(oplock_level))
            }
            Ok(oplock_break::Ack::Lease { lease_key, lease_state, .. }) => {
                (Cached::Lease(lease_key), Level::Lease(lease_state))
            }
            Err(_) => return self.out.event(Event::NotUnderstood),
        };
        self.settle_break(cached, level, request.at);
    }

    /// The client has acknowledged the node's break, and has this now. If it did so before the last one, which the node has
    /// taken it for, it is told once more when it has acknowledged that, too. `asked`: when it did so.
    fn settle_break(&mut self, cached: Cached, level: Level, asked: Instant) {
        let is_bridge = matches!(self.state, State::Bridge(_));
        let is_later = |breaking: &Breaking| is_bridge && breaking.until > asked + PATIENCE;
        for open in cached.of_mut(&mut self.opens) {
            let later = open.breaking.filter(|breaking| is_later(breaking));
            let next = later.and_then(|later| later.next);
            let level = next.map_or(level, |(to, _)| to.meet(level));
            let next = Some((level, next.is_some_and(|(_, waits)| waits)));
            set_level(open, level);
            open.breaking = later.map(|later| Breaking { ours: true, next, ..later });
        }
        self.note_own_breaks();
        self.hold(cached);
        for open in cached.of(&self.opens).map(|o| o.token).collect::<Vec<_>>() {
            self.wait_for_open(open);
        }
    }

    /// The node is lost: by which Opens files may have been changed whose readers the node did not come to tell.
    pub(super) fn tell_what_was_written(&mut self, now: Instant) {
        if self.wrote.is_none_or(|at| now > at + LATELY) {
            return;
        }
        for open in self.opens.iter().filter(|o| may_write(o.desired_access)) {
            self.out.file(FileEvent::Wrote { open: open.token });
        }
    }

    /// What a request may change is a file's data.
    pub(super) fn note_writing(&mut self, now: Instant, command: Command) {
        if matches!(command, Command::WRITE | Command::SET_INFO | Command::IOCTL) {
            self.wrote = Some(now);
        }
    }

    /// The node is lost: nobody but us waits for acknowledgements now. What the client is still to be told it is told.
    pub(crate) fn inherit_breaks(&mut self, now: Instant) {
        for open in self.opens.iter_mut() {
            if let Some(breaking) = &mut open.breaking {
                breaking.ours = true;
                breaking.next = breaking.next.map(|(level, _)| (level, false));
            }
            open.breaking = open.breaking.filter(|breaking| now < breaking.until);
        }
        self.note_own_breaks();
    }

    /// Acknowledgements that only we wait for are answered while a node is sought.
    pub(crate) fn answer_own_breaks(&mut self, now: Instant, ids: &[MessageId]) {
        for id in ids {
            let is_ack = |r: &&Request| r.header.command == Command::OPLOCK_BREAK && !r.compounded;
            let Some(request) = self.requests.get(*id).filter(is_ack) else { continue };
            if self.is_genuine(request) {
                self.answer_own_break(now, *id);
            }
        }
    }

    /// An Open is back, and the node has given this. Less than the client has is told to it by a break; while it is to
    /// acknowledge that, or an earlier one, the file is held for it.
    pub(crate) fn take_level(&mut self, now: Instant, token: OpenToken, granted: Level, epoch: Option<u16>) {
        let Some(open) = self.opens.get(token) else { return };
        let cached = Cached::by(open);
        if self.returns.has(token) {
            return self.take_level_silently(cached, granted, epoch);
        }
        if let Some(epoch) = epoch {
            for open in cached.of_mut(&mut self.opens) {
                open.epoch_shift = open.lease.map_or(0, |lease| lease.epoch.wrapping_sub(epoch));
            }
        }
        self.lower(now, cached, granted, false, None);
        self.hold(cached);
        if self.opens.get(token).is_some_and(|o| Level::of(o).only_reads()) {
            let node_lives = match &self.state {
                State::Recovering(recovery) => recovery.progress.is_on_the_lost_node(),
                _ => false,
            };
            self.doubted.push((token, node_lives));
        }
    }

    /// The same for an Open that its client comes back to: it is told by the answer to its CREATE.
    fn take_level_silently(&mut self, cached: Cached, granted: Level, epoch: Option<u16>) {
        for open in cached.of_mut(&mut self.opens) {
            let level = Level::of(open).meet(granted);
            let is_less = level != Level::of(open);
            set_level(open, level);
            if let Some(lease) = &mut open.lease {
                lease.epoch = lease.epoch.wrapping_add(u16::from(is_less));
                open.epoch_shift = epoch.map_or(0, |epoch| lease.epoch.wrapping_sub(epoch));
            }
        }
    }

    /// Of files that others may have changed before their node was lost, nothing is cached for reading any more: the client may
    /// not have heard of the break. Asked when all Opens of the file are back.
    pub(super) fn drop_stale_caches(&mut self, now: Instant, files: &Files) {
        for (token, node_lives) in std::mem::take(&mut self.doubted) {
            if files.is_open_blocked(self.id, token) {
                self.doubted.push((token, node_lives));
                continue;
            }
            let Some(open) = self.opens.get(token).filter(|o| Level::of(o).only_reads()) else { continue };
            if files.may_others_have_written(self.id, token, node_lives) {
                let (cached, none) = (Cached::by(open), Level::of(open).none());
                self.lower(now, cached, none, false, None);
            }
        }
    }

    /// Whether some break of ours holds a file that this CREATE of the same client opens by another lease.
    pub(super) fn is_held_from_itself(&self, request: &Request) -> bool {
        if self.break_due.is_none() {
            return false;
        }
        let Some(key) = self.create_key(request) else { return false };
        let lease = lease_of_request(&request.msg);
        self.opens.iter().any(|o| {
            o.breaking.is_some_and(|breaking| breaking.holds())
                && o.key() == key
                && (lease.is_none() || o.lease.map(|l| l.key) != lease)
        })
    }

    /// A CREATE answered in Bridge: its lease becomes what the client may be told of it.
    pub(super) fn translate_lease(&mut self, msg: &mut [u8]) {
        let granted = create::Response::parse(msg).ok().and_then(|response| {
            response.contexts().filter_map(Result::ok).find_map(|c| match ResponseContext::parse(&c) {
                ResponseContext::Lease(lease) => Some(lease),
                _ => None,
            })
        });
        let Some(mut lease) = granted else { return };
        let cached = Cached::Lease(lease.key);
        let Some(open) = cached.of(&self.opens).next() else { return };
        let heard = open.lease.map_or(0, |known| known.epoch);
        if let Some(breaking) = open.breaking.filter(|breaking| breaking.ours)
            && let Level::Lease(state) = breaking.allows(Level::Lease(lease.state))
        {
            lease.state = state;
            lease.flags |= BREAK_IN_PROGRESS;
        }
        lease.epoch = lease.epoch.wrapping_add(open.epoch_shift);
        let behind = heard.wrapping_sub(lease.epoch);
        if (1..0x8000).contains(&behind) {
            // A lease that is new to the node, and old to the client: the Opens that it knows of it were lost.
            lease.epoch = heard;
            for open in cached.of_mut(&mut self.opens) {
                open.epoch_shift = open.epoch_shift.wrapping_add(behind);
            }
        }
        patch::set_response_lease(msg, &lease);
    }
}

/// The LeaseKey that a CREATE asks with.
fn lease_of_request(msg: &[u8]) -> Option<[u8; 16]> {
    let asked = create::Request::parse(msg).ok()?;
    asked.contexts().filter_map(Result::ok).find_map(|c| match RequestContext::parse(&c) {
        RequestContext::Lease(lease) => Some(lease.key),
        _ => None,
    })
}

/// Whether an Open with this access may change the file's data: by writing, appending, or whatever it may do at most.
pub(crate) fn may_write(access: u32) -> bool {
    const CHANGES: u32 = 0x2 | 0x4 | 0x0200_0000 | 0x1000_0000 | 0x4000_0000;
    access & CHANGES != 0
}

impl Open {
    /// What a CREATE with the same lease says of it, in the state in which the client has it.
    pub(super) fn share(&mut self, mate: &Open) {
        self.breaking = mate.breaking.map(|breaking| Breaking { joined: true, ..breaking });
        self.epoch_shift = mate.epoch_shift;
    }

    /// While a break of ours is not acknowledged, the client gets no more than it was told. One of the node's that grants more
    /// is over for the node: what the client is told then is what it has.
    pub(super) fn keep_to_break(&mut self) {
        let Some(breaking) = self.breaking else { return };
        let level = Level::of(self);
        if breaking.ours {
            set_level(self, breaking.allows(level));
        } else if !level.is_within(breaking.told) {
            self.breaking = None;
        }
    }

    /// Whether a server keeps it for a client that is away (MS-SMB2 3.3.7.1).
    pub(crate) fn keeps_handle(&self) -> bool {
        match Level::of(self) {
            Level::Oplock(level) => level == BATCH,
            Level::Lease(state) => state & HANDLE != 0,
        }
    }

    /// Others may have changed the file while nobody told the client: what it has read of it is worth nothing.
    pub(crate) fn drop_read_cache(&mut self) {
        let level = Level::of(self);
        if level.only_reads() {
            set_level(self, level.none());
            if let Some(lease) = &mut self.lease {
                lease.epoch = lease.epoch.wrapping_add(1);
            }
        }
    }

    /// The level that a reclaim asks for. A directory's lease is not had again, nor what is being closed cached.
    pub(crate) fn reclaimed_level(&self) -> Level {
        let level = Level::of(self);
        if self.closing || self.is_directory && self.lease.is_some() { level.none() } else { level }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let (rwh, rh, r, none) = (Level::Lease(7), Level::Lease(3), Level::Lease(1), Level::Lease(0));
        let (batch, exclusive, ii) = (Level::Oplock(9), Level::Oplock(8), Level::Oplock(1));
        for (level, writes, reads, acknowledged) in [
            (rwh, true, false, true),
            (Level::Lease(5), true, false, true),
            (rh, false, true, true),
            (Level::Lease(2), false, false, true),
            (r, false, true, false),
            (none, false, false, false),
            (batch, true, false, true),
            (exclusive, true, false, true),
            (ii, false, true, false),
            (Level::Oplock(0), false, false, false),
        ] {
            assert_eq!(level.writes(), writes, "{level:?}");
            assert_eq!(level.only_reads(), reads, "{level:?}");
            assert_eq!(level.is_acknowledged(), acknowledged, "{level:?}");
            assert!(level.none().is_within(level) && level.is_within(level));
        }
        assert_eq!(rwh.meet(rh), rh);
        assert_eq!(batch.meet(ii), ii);
        assert_eq!(ii.meet(rwh), Level::Oplock(0), "an oplock where a lease was");
    }
}
