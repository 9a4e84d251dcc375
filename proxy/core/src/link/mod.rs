//! One Link: a client leg and the node leg that serves it now.
//!
//! # Contract
//!
//! The owner feeds inputs by `handle_*`, in the order in which they happened, and after each of them drains
//! [`Link::poll_transmit`], [`Link::poll_event`] and [`Link::poll_effect`]. While [`Link::wants_files`] is true it calls
//! [`Link::handle_files`], at once, whenever [`Files::version`] has changed, and when [`Link::has_fresh_frames`].
//! [`Link::poll_timeout`] says when [`Link::handle_timeout`] is due. After [`Effect::CloseClient`] the Link is over.
//!
//! # States
//!
//! | state | node leg | client frames |
//! |---|---|---|
//! | Opening | none yet, nothing sent | held, unread |
//! | Relay | one, shared session | forwarded byte for byte, watched |
//! | Recovering | lost, a new one in the making | kept; ECHO answered |
//! | Bridge | one of our own | verified, translated, signed or sealed |
//!
//! Opening leads to Relay, Relay to Recovering, Recovering to Bridge and Bridge to Recovering; never back to Relay.

pub(crate) mod answer;
pub(crate) mod birth;
pub(crate) mod breaks;
pub(crate) mod bridge;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod cover;
pub(crate) mod credit;
mod directory;
pub(crate) mod dispatch;
mod fsctl;
mod judge;
mod leg_loss;
pub(crate) mod lock_sequence;
pub(crate) mod locks;
pub(crate) mod node_leg;
mod observe;
pub(crate) mod open;
pub(crate) mod outbox;
pub(crate) mod persist;
mod relay;
pub(crate) mod request;
mod resilience;
mod resume_key;
pub(crate) mod returning;
pub(crate) mod session;
mod side_channel;
mod succession;
mod timers;
pub(crate) mod watch;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use smb_parse::{
    FileId,
    frame::{MAX_LEN, PREFIX},
};
use understudy_state::record::SessionRecord;

pub use self::config::{Counters, LinkConfig, SideChannelMode};
use self::{
    connection::Connection,
    credit::ClientCredits,
    judge::Judging,
    node_leg::{Clock, NodeLeg},
    open::{Opens, minted_file_id},
    outbox::Outbox,
    persist::Persist,
    request::Requests,
    returning::Returns,
    session::Sessions,
    side_channel::SideChannel,
};
use crate::{
    auth::Credentials,
    effect::{Close, CloseReason, Effect, Role, Transmit},
    event::{Cause, Event, LegLoss},
    files::Files,
    fleet::Assignment,
    ids::{LegId, LinkId, MessageId, NodeId, OpenToken, SessionId},
    random::Random,
    takeover::{Progress, Recovery, probe::Doubt, reconnect::Retries},
};

/// How long a process of a node that has died may live on. Its leg is not cut before: on a leg that is cut, smbd deletes
/// what is to be deleted on close, and that must not come after the reclaim.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many bytes of a client are held before it has a node.
const OPENING_BYTES: usize = 256 << 10;

/// A client leg and the node leg that serves it now. See the module's contract.
pub struct Link {
    pub(crate) id: LinkId,
    pub(crate) config: Arc<LinkConfig>,
    pub(crate) credentials: Arc<dyn Credentials + Send + Sync>,
    pub(crate) random: Box<dyn Random + Send>,
    pub(crate) out: Outbox,
    pub(crate) state: State,
    pub(crate) conn: Connection,
    pub(crate) sessions: Sessions,
    pub(crate) opens: Opens,
    pub(crate) requests: Requests,
    pub(crate) credits: ClientCredits,
    pub(crate) assignment: Option<Assignment>,
    pub(crate) counters: Counters,
    side: SideChannel,
    /// Frames of the client that no node has had, while Opening.
    held: VecDeque<BytesMut>,
    held_bytes: usize,
    /// Frames sent before the node's first answer: sent again if it dies before that. `None` once it has answered.
    handshake: Option<Vec<BytesMut>>,
    /// Frames that wait for a barrier or for credits, in order: the MessageIds of each.
    pub(crate) parked: VecDeque<Vec<MessageId>>,
    /// Whether some of them have not been looked at yet: they may be free.
    fresh: bool,
    /// Frames that nobody here can read, kept back by a barrier.
    unread: relay::Unread,
    /// How long at most the client waits for the end of its earlier session.
    succeeds_until: Option<Instant>,
    /// Some Open of some Link is unreclaimed, as far as this Link knows.
    pub(crate) barrier: bool,
    /// Some file is held for a client that is to acknowledge a break, as far as this Link knows.
    file_held: bool,
    /// When the first break is over that the client owes only us an acknowledgement of.
    break_due: Option<Instant>,
    /// Opens that came back with nothing but a cache for reading, of which it is not known yet whether it may be stale; and
    /// whether their node lived on.
    doubted: Vec<(OpenToken, bool)>,
    /// When the client last asked for what may change a file.
    wrote: Option<Instant>,
    /// Since when the node is silent and may not be left.
    silent_since: Option<Instant>,
    /// Another node serves, but the process at the end of our leg is not gone yet: until then it is waited for.
    leaving: Option<Instant>,
    /// When a leg that is not in use yet stood, or was last heard of.
    heard: Option<Instant>,
    stopping: Option<Instant>,
    /// When the leg was lost to a node that lived on, within the last minute.
    pub(crate) leg_losses: VecDeque<Instant>,
    pub(crate) next_leg: u64,
    /// Logins in Bridge.
    pub(crate) judging: Judging,
    /// Sessions to end as soon as there is a node again.
    succeeded: Vec<SessionId>,
    /// Opens that are back, but for their delete-on-close flags.
    pub(crate) unflagged: BTreeSet<OpenToken>,
    /// Opens whose delete-on-close flag is on its way to the node.
    pub(crate) flagging: BTreeSet<OpenToken>,
    /// The clock of the node that has, or had, what is in flight.
    pub(crate) clock: Option<Clock>,
    /// Whether it is open what became of requests.
    pub(crate) doubt: Doubt,
    /// How many names are being looked at: what was opened for that is not closed yet.
    pub(crate) looks: u32,
    /// What was last tried to be found out waits for what others do.
    pub(crate) defers: bool,
    /// Whether a node lets requests wait that were open to doubt.
    pub(crate) pends: bool,
    /// The takeover whose replay is under way, for its report.
    pub(crate) replaying: Option<Progress>,
    /// Numbers FileIds, TreeIds and SessionIds of our making.
    pub(crate) minted: u64,
    /// What FileIds of our making begin with, once there are any.
    lot: Option<u32>,
    pub(crate) persist: Persist,
    /// Opens that the client has come back to.
    pub(crate) returns: Returns,
    /// Sessions that a proxy before this one had for this client: to be ended by logins of its users.
    pub(crate) bygone: Vec<SessionRecord>,
    /// A session stands since Files was last seen.
    arrived: bool,
    /// Reclaims to be asked for again.
    pub(crate) retries: Retries,
}

/// The four states. See the module's table.
#[derive(Debug)]
pub(crate) enum State {
    Opening(Opening),
    Relay(Attached),
    Recovering(Box<Recovery>),
    Bridge(Box<NodeLeg>),
    Closed,
}

/// No node has had a byte yet.
#[derive(Debug)]
pub(crate) struct Opening {
    since: Instant,
    dialling: Option<Attached>,
    /// Only an assignment of a later generation is of use.
    after: u64,
}

/// A node leg and how the Link came to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached {
    pub(crate) leg: LegId,
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

impl Link {
    /// A client has connected. Nothing is sent before an assignment comes.
    pub fn new(
        id: LinkId,
        config: Arc<LinkConfig>,
        credentials: Arc<dyn Credentials + Send + Sync>,
        random: Box<dyn Random + Send>,
        now: Instant,
    ) -> Self {
        Self {
            id,
            config,
            credentials,
            random,
            out: Outbox::default(),
            state: State::Opening(Opening { since: now, dialling: None, after: 0 }),
            conn: Connection::new(),
            sessions: Sessions::default(),
            opens: Opens::default(),
            requests: Requests::default(),
            credits: ClientCredits::new(),
            assignment: None,
            counters: Counters::default(),
            side: SideChannel::default(),
            held: VecDeque::new(),
            held_bytes: 0,
            handshake: Some(Vec::new()),
            parked: VecDeque::new(),
            fresh: false,
            unread: relay::Unread::default(),
            succeeds_until: None,
            barrier: false,
            file_held: false,
            break_due: None,
            doubted: Vec::new(),
            wrote: None,
            silent_since: None,
            leaving: None,
            heard: None,
            stopping: None,
            leg_losses: VecDeque::new(),
            next_leg: 0,
            judging: Judging::default(),
            succeeded: Vec::new(),
            unflagged: BTreeSet::new(),
            flagging: BTreeSet::new(),
            clock: None,
            doubt: Doubt::None,
            looks: 0,
            defers: false,
            pends: false,
            replaying: None,
            minted: 0,
            lot: None,
            persist: Persist::default(),
            returns: Returns::default(),
            bygone: Vec::new(),
            arrived: false,
            retries: Retries::default(),
        }
    }

    /// One whole frame of the client, its length prefix included.
    pub fn handle_client_frame(&mut self, now: Instant, frame: BytesMut) {
        match &self.state {
            State::Opening(opening) => {
                let idle = opening.dialling.is_none();
                self.held_bytes += frame.len();
                self.held.push_back(frame);
                if idle {
                    self.dial();
                }
            }
            State::Relay(attached) => {
                let attached = *attached;
                self.relay_client_frame(now, attached, frame);
            }
            State::Bridge(_) | State::Recovering(_) => self.bridge_client_frame(now, frame),
            State::Closed => {}
        }
        self.write_touched(now);
    }

    /// One whole frame of a node. Frames of legs given up are ignored.
    pub fn handle_node_frame(&mut self, now: Instant, leg: LegId, frame: BytesMut) {
        match &self.state {
            State::Relay(attached) if attached.leg == leg => self.relay_node_frame(now, frame),
            State::Bridge(node) if node.id == leg => self.bridge_node_frame(now, frame),
            State::Recovering(recovery) if recovery.leg() == Some(leg) => {
                self.heard = Some(now);
                self.recovery_node_frame(now, leg, frame);
            }
            State::Bridge(_) if self.judging.leg() == Some(leg) => self.judge_frame(now, leg, frame),
            _ if self.side.leg() == Some(leg) => self.side_frame(now, frame),
            _ => {}
        }
        self.write_touched(now);
    }

    /// The client has closed its leg, or it broke.
    pub fn handle_client_closed(&mut self, _now: Instant) {
        self.close(Close::Graceful, CloseReason::ClientClosed);
    }

    /// A leg asked for by [`Effect::Connect`] stands.
    pub fn handle_connected(&mut self, now: Instant, leg: LegId) {
        match &self.state {
            State::Opening(Opening { dialling: Some(attached), .. }) if attached.leg == leg => {
                self.heard = Some(now);
                self.state = State::Relay(*attached);
                self.held_bytes = 0;
                for frame in std::mem::take(&mut self.held) {
                    self.handle_client_frame(now, frame);
                }
            }
            State::Recovering(recovery) if recovery.leg() == Some(leg) => {
                self.heard = Some(now);
                self.recovery_connected(now, leg);
            }
            State::Bridge(_) if self.judging.leg() == Some(leg) => self.judge_connected(now, leg),
            _ if self.side.leg() == Some(leg) => self.side_connected(now),
            _ => {}
        }
    }

    /// A leg ended, or could not be had.
    pub fn handle_leg_lost(&mut self, now: Instant, leg: LegId, loss: LegLoss) {
        self.leg_lost(now, leg, loss);
    }

    /// The Fleet names the node that serves.
    pub fn handle_assignment(&mut self, now: Instant, assignment: Assignment, cause: Cause) {
        if self.assignment.is_some_and(|known| known.generation > assignment.generation) {
            return;
        }
        let before = self.assignment.replace(assignment);
        let stays = self.leaving.is_none() && before.is_none_or(|before| before.epoch == assignment.epoch);
        self.silent_since = None;
        match &mut self.state {
            State::Opening(opening) => match opening.dialling {
                None => self.dial(),
                Some(attached) if attached.node != assignment.node => self.abandon_node(now, cause),
                Some(attached) => {
                    opening.dialling = Some(Attached { generation: assignment.generation, ..attached });
                }
            },
            State::Relay(attached) if stays && attached.node == assignment.node => {
                attached.generation = assignment.generation;
            }
            State::Bridge(node) if stays && node.node == assignment.node => {
                node.generation = assignment.generation;
            }
            State::Relay(_) | State::Bridge(_) if cause == Cause::Crash && self.handshake.is_none() => {
                self.leaving.get_or_insert(now + LAST_WORDS);
            }
            State::Relay(_) | State::Bridge(_) => self.abandon_node(now, cause),
            State::Recovering(_) => self.recovery_assignment(now, assignment, stays),
            State::Closed => {}
        }
    }

    /// The client leg cannot go on, for this reason.
    pub fn handle_client_failed(&mut self, _now: Instant, reason: CloseReason) {
        self.close(Close::Graceful, reason);
    }

    /// The node is silent and may not be left: the Link waits for it until the deadline.
    pub fn handle_node_silent(&mut self, now: Instant) {
        if self.silent_since.is_none() {
            self.silent_since = Some(now);
            self.out.event(Event::Waiting("the node is silent and no fence lets the Link leave it"));
        }
    }

    /// The silent node speaks again.
    pub fn handle_node_answers(&mut self, _now: Instant) {
        self.silent_since = None;
    }

    /// The owner shows which files are behind a barrier.
    pub fn handle_files(&mut self, now: Instant, files: &Files) {
        self.look_for_absent(now, files);
        self.recovery_files(now, files);
        if matches!(self.state, State::Recovering(_)) {
            return;
        }
        self.go_on_returning(files);
        self.barrier = files.is_opening_blocked() || files.is_in_doubt() || self.is_behind(files);
        self.file_held = files.is_something_held();
        if matches!(self.state, State::Bridge(_)) {
            self.drop_stale_caches(now, files);
        }
        self.send_unread();
        self.set_delete_flags(files);
        self.dispatch_parked(now, files);
        self.write_touched(now);
    }

    /// Whether something waits for files: [`Self::handle_files`] is to be called, now and at every change. At other
    /// times it is enough to call it before the next client frame, if the version has changed since.
    pub fn wants_files(&self) -> bool {
        match &self.state {
            State::Relay(_) | State::Bridge(_) => {
                self.arrived
                    || self.returns.wants_files()
                    || !self.parked.is_empty()
                    || !self.unread.is_empty()
                    || !self.unflagged.is_empty()
                    || !self.doubted.is_empty()
                    || self.replaying.is_some()
            }
            State::Recovering(recovery) => recovery.wants_files(),
            State::Opening(_) | State::Closed => false,
        }
    }

    /// Whether [`Self::handle_files`] is to be called although nothing has changed: frames have come that may be free.
    pub fn has_fresh_frames(&self) -> bool {
        self.fresh && self.wants_files()
    }

    /// The largest frame that is taken from the client, prefix included: little before it has logged in.
    pub fn client_frame_limit(&self) -> usize {
        if self.sessions.is_empty() { OPENING_BYTES } else { PREFIX + MAX_LEN }
    }

    /// The proxy stops: no new work; what is in flight may be answered for a while.
    pub fn handle_shutdown(&mut self, now: Instant) {
        self.stopping = Some(now);
        self.finish_shutdown(now);
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_timers(now);
        self.write_touched(now);
    }

    /// The next frame to write.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.poll_transmit()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.poll_effect()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.poll_event()
    }

    /// When [`Self::handle_timeout`] is due, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.next_timer()
    }

    /// Whether the client may be read. False while too much of it is kept.
    pub fn wants_client_frames(&self) -> bool {
        match self.state {
            State::Opening(_) => self.held_bytes < OPENING_BYTES,
            State::Closed => false,
            _ => self.stopping.is_none() && self.kept_bytes() < self.config.in_flight_bytes,
        }
    }

    /// How many bytes of the client's are kept.
    pub fn kept_bytes(&self) -> usize {
        self.held_bytes + self.requests.bytes() + self.unread.bytes()
    }

    /// The node that serves now, if any.
    pub fn node(&self) -> Option<NodeId> {
        match &self.state {
            State::Relay(attached) => Some(attached.node),
            State::Bridge(node) => Some(node.node),
            _ => None,
        }
    }

    /// The state in a word, for the operator.
    pub fn mode(&self) -> &'static str {
        match self.state {
            State::Opening(_) => "handshake",
            State::Relay(_) => "relay",
            State::Recovering(_) => "takeover",
            State::Bridge(_) => "bridge",
            State::Closed => "closed",
        }
    }

    /// Where a takeover stands, in a word; `None` if there is none.
    pub fn stage(&self) -> Option<&'static str> {
        match &self.state {
            State::Recovering(recovery) => Some(recovery.stage()),
            State::Bridge(_) if self.replaying.is_some() => Some("barrier"),
            _ => None,
        }
    }

    /// Messages counted since the last call.
    pub fn take_counters(&mut self) -> Counters {
        self.counters.take()
    }

    pub(crate) fn new_leg(&mut self) -> LegId {
        self.next_leg += 1;
        LegId(self.next_leg)
    }

    /// A FileId towards the client that no node has given out.
    pub(crate) fn mint_file_id(&mut self) -> FileId {
        let random = &mut self.random;
        let lot = *self.lot.get_or_insert_with(|| {
            let mut lot = [0; 4];
            random.fill(&mut lot);
            u32::from_le_bytes(lot)
        });
        minted_file_id(lot, self.mint())
    }

    /// An id towards the client that no node has given out.
    pub(crate) fn mint(&mut self) -> u64 {
        self.minted += 1;
        self.minted
    }

    /// Goes to the node that serves, once the client has said something: who only connects costs no node a process.
    fn dial(&mut self) {
        let State::Opening(opening) = &self.state else { return };
        let after = opening.after;
        let Some(assignment) = self.assignment.filter(|a| a.generation > after && !self.held.is_empty())
        else {
            return;
        };
        let leg = self.new_leg();
        if let State::Opening(opening) = &mut self.state {
            opening.dialling =
                Some(Attached { leg, node: assignment.node, generation: assignment.generation });
            self.out.effect(Effect::Connect { leg, node: assignment.node, role: Role::Main });
        }
    }

    /// Ends both legs.
    pub(crate) fn close(&mut self, how: Close, reason: CloseReason) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.end_succession();
        self.leave_what_is_under_way();
        self.forget_judging();
        self.end_side_channel();
        self.end_returns();
        self.leave(|_, _| true);
        let leg = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return,
            State::Opening(opening) => opening.dialling.map(|a| a.leg),
            State::Relay(attached) => Some(attached.leg),
            State::Bridge(node) => Some(node.id),
            State::Recovering(recovery) => recovery.leg(),
        };
        for session in self.sessions.iter() {
            self.out.event(Event::SessionEnded(session.protection));
        }
        self.unwrite();
        if let Some(leg) = leg {
            self.out.close_leg(leg, Close::Graceful);
        }
        self.out.close_client(how, reason);
    }

    fn finish_shutdown(&mut self, now: Instant) {
        let Some(since) = self.stopping else { return };
        let late = now >= since + self.config.shutdown_grace;
        if !self.requests.owes_answers() || late || !matches!(self.state, State::Relay(_) | State::Bridge(_))
        {
            self.close(Close::Graceful, CloseReason::Shutdown);
        }
    }

    /// Whether `since` is longer ago than `limit`.
    fn is_past(now: Instant, since: Option<Instant>, limit: Duration) -> bool {
        since.is_some_and(|since| now >= since + limit)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("mode", &self.mode()).finish_non_exhaustive()
    }
}
