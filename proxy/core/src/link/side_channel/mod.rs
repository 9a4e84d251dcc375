//! The side channel: a second connection of the proxy's own to the node that serves, bound to a session of the client's
//! (MS-SMB2 3.2.4.2.3.1). It asks there what passes on no connection unless the client asks it: which access was granted
//! where the client wanted MAXIMUM_ALLOWED, and which file on the disk an Open is. It runs in the process that serves
//! the client, so its ECHO also tells whether that process is stuck.
//!
//! # States
//!
//! | state | leg | leaves by |
//! |---|---|---|
//! | Closed | none | an Open of a certain age about which there is something to ask |
//! | Connecting, Binding | in the making | the node's yes; its no, or 5 s without one |
//! | Bound | stands | the end of its session, of the client leg or of the main node leg; its own end |
//! | Barred | none, for a while or for good | time, if it was no refusal |
//!
//! # Invariants
//!
//! - It exists only in Relay, where both legs share the session. Whatever ends Relay ends it first: a bound connection keeps
//!   the session's handles alive on the node, and with them delete-on-close and share modes.
//! - It never disturbs the client: whatever goes wrong closes it and nothing else, and is counted.
//! - It changes nothing on the node: it asks, and nothing else.
//! - What it learns is believed only if it is signed with the channel's key, or sealed with the session's.
//! - With AES-GMAC the session's key signs no MessageId twice: the binding uses only MessageIds at which the client
//!   cannot have had that key yet, and each but once. So there is mostly one binding in a session's life.
//! - A break that comes on either leg reaches the client once.
//! - Where it is wanted for every session and cannot be had (before 3.0), the Link becomes Bridge at the end of
//!   SESSION_SETUP instead: there the node leg itself is the proxy's own.
//! - It is bound to one session: that of the first Open with a question. Nothing is asked about others' while it stands.

mod binding;
mod breaks;
mod questions;
mod watch;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use smb_parse::{
    compound::{ElementMut, next_mut},
    frame::{PREFIX, Protocol, protocol},
    header::{Flags, Header, Status},
    transform,
};

pub(super) use self::breaks::From;
use self::{binding::Binding, breaks::Told, watch::Watch};
use super::{
    Link, State,
    answer::{body, body_mut},
    config::SideChannelMode,
    cover::SessionKeys,
    node_leg::{NodeLeg, Op, Pending},
};
use crate::{
    crypto::{Dialect, sealing::HEADROOM},
    effect::{Close, Effect, Role},
    event::{Cause, Event, SideChannelFailure, SideChannelNews},
    ids::{LegId, OpenToken, SessionId},
};

/// How long it may take to be bound.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long none is tried after a failure that may pass.
const RETRY: Duration = Duration::from_secs(60);

/// A Link's side channel, and what is to be asked on it.
#[derive(Debug, Default)]
pub(crate) struct SideChannel {
    stage: Stage,
    /// Opens with a question, and from when on it is asked: what is open for a moment only is not worth it.
    due: VecDeque<(Instant, OpenToken)>,
    told: Told,
    /// There can be none on this dialect, although there is to be one.
    early_bridge: bool,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Closed,
    /// Until then, or for good.
    Barred(Option<Instant>),
    Connecting {
        leg: LegId,
        session: SessionId,
        since: Instant,
    },
    Binding(Box<Binding>),
    Bound(Box<Bound>),
}

/// A side channel that stands.
#[derive(Debug)]
struct Bound {
    leg: NodeLeg,
    session: SessionId,
    /// What is signed on this connection is signed with these.
    keys: SessionKeys,
    watch: Watch,
}

impl SideChannel {
    /// Its leg, from the dial on.
    pub(super) fn leg(&self) -> Option<LegId> {
        match &self.stage {
            Stage::Closed | Stage::Barred(_) => None,
            Stage::Connecting { leg, .. } => Some(*leg),
            Stage::Binding(binding) => Some(binding.leg.id),
            Stage::Bound(bound) => Some(bound.leg.id),
        }
    }

    fn session(&self) -> Option<SessionId> {
        match &self.stage {
            Stage::Closed | Stage::Barred(_) => None,
            Stage::Connecting { session, .. } => Some(*session),
            Stage::Binding(binding) => Some(binding.session),
            Stage::Bound(bound) => Some(bound.session),
        }
    }

    pub(super) fn is_bound(&self) -> bool {
        matches!(self.stage, Stage::Bound(_))
    }
}

impl Link {
    /// When [`Self::run_side_timers`] is due.
    pub(super) fn side_timer(&self) -> Option<Instant> {
        let question = self.side.due.front().map(|(at, _)| *at);
        match &self.side.stage {
            Stage::Closed => question,
            Stage::Barred(until) => *until,
            Stage::Connecting { since, .. } => Some(*since + PATIENCE),
            Stage::Binding(binding) => Some(binding.since + PATIENCE),
            Stage::Bound(bound) => question.into_iter().chain(bound.watch.due(self.config.stuck_after)).min(),
        }
    }

    /// Acts on what is due.
    pub(super) fn run_side_timers(&mut self, now: Instant) {
        match &self.side.stage {
            Stage::Barred(Some(until)) if now >= *until => {
                self.side.stage = Stage::Closed;
                let open: Vec<_> = self.opens.iter().map(|o| o.token).collect();
                self.side.due =
                    open.into_iter().filter(|o| self.has_question(*o)).map(|o| (now, o)).collect();
            }
            Stage::Connecting { since, .. } if now >= *since + PATIENCE => {
                self.fail_side_channel(now, SideChannelFailure::Silent);
            }
            Stage::Binding(binding) if now >= binding.since + PATIENCE => {
                self.fail_side_channel(now, SideChannelFailure::Silent);
            }
            Stage::Bound(_) => self.watch_process(now),
            _ => {}
        }
        self.take_questions(now);
    }

    /// A session stands since now. Where every session is to be watched and this one cannot be bound to, the Link goes
    /// to Bridge, whose leg is the proxy's own, as soon as the client has its answer.
    pub(super) fn side_session_established(&mut self, now: Instant, session: SessionId) {
        if self.config.side_channel != SideChannelMode::Always {
            return;
        }
        self.side.early_bridge = self.conn.dialect < Some(Dialect::SMB300);
        self.open_side_channel(now, session);
    }

    /// Leaves Relay for a leg of the proxy's own on the same node, where no side channel can be had. Only before there
    /// is anything to be lost: no Opens, nothing in flight, and nobody whom the proxy cannot act for.
    pub(super) fn bridge_early(&mut self, now: Instant) {
        if std::mem::take(&mut self.side.early_bridge) {
            self.bridge_now(now);
        }
    }

    /// The same, whatever for.
    pub(in crate::link) fn bridge_now(&mut self, now: Instant) {
        let State::Relay(attached) = self.state else { return };
        let Some(assignment) = self.assignment.filter(|a| a.node == attached.node) else { return };
        let unprotected = self.sessions.iter().any(|s| !s.protection.is_protected());
        if unprotected || !self.requests.is_empty() || !self.opens.is_empty() || self.stopping.is_some() {
            return;
        }
        self.out.close_leg(attached.leg, Close::Graceful);
        self.begin_recovery(now, attached, Cause::EarlyBridge);
        self.recovery_begin_on(now, assignment);
    }

    /// Whether a session can have a side channel.
    fn can_bind(&self, session: SessionId) -> bool {
        let keyed = |s: &super::session::Session| s.client_keys.is_some() && s.authority.is_some();
        matches!(self.state, State::Relay(_))
            && self.config.side_channel != SideChannelMode::Off
            && self.stopping.is_none()
            && self.conn.dialect >= Some(Dialect::SMB300)
            && self.sessions.get(session).is_some_and(keyed)
    }

    /// Dials, if there is none and there may be one.
    fn open_side_channel(&mut self, now: Instant, session: SessionId) {
        let State::Relay(attached) = self.state else { return };
        if !matches!(self.side.stage, Stage::Closed) || !self.can_bind(session) {
            return;
        }
        let leg = self.new_leg();
        self.side.stage = Stage::Connecting { leg, session, since: now };
        self.out.effect(Effect::Connect { leg, node: attached.node, role: Role::Auxiliary });
    }

    /// Its leg ended, or could not be had.
    pub(super) fn side_lost(&mut self, now: Instant) {
        self.fail_side_channel(now, SideChannelFailure::Lost);
    }

    /// Relay is over, or about to be: so is the side channel, before anything else is.
    pub(super) fn end_side_channel(&mut self) {
        self.close_side_channel();
        self.side = SideChannel::default();
    }

    /// Closes it, if there is one.
    fn close_side_channel(&mut self) {
        let leg = self.side.leg();
        match std::mem::take(&mut self.side.stage) {
            Stage::Bound(bound) => {
                if bound.watch.is_stuck() {
                    self.out.event(Event::Stuck(false));
                }
                self.out.event(Event::SideChannel(SideChannelNews::Closed));
            }
            barred @ Stage::Barred(_) => self.side.stage = barred,
            _ => {}
        }
        if let Some(leg) = leg {
            self.out.close_leg(leg, Close::Reset);
        }
    }

    /// The session is over, and a channel that was bound to it.
    pub(super) fn side_session_ended(&mut self, session: SessionId) {
        if self.side.session() == Some(session) {
            self.close_side_channel();
        }
    }

    /// It failed. Nobody hears of it but the metrics.
    fn fail_side_channel(&mut self, now: Instant, why: SideChannelFailure) {
        self.close_side_channel();
        self.side.due.clear();
        self.side.stage = Stage::Barred((!why.is_final()).then(|| now + RETRY));
        self.out.event(Event::SideChannel(SideChannelNews::Failed(why)));
        if why.is_final() && self.config.side_channel == SideChannelMode::Always {
            self.side.early_bridge = true;
            self.bridge_early(now);
        }
    }

    /// A frame of the node on it.
    pub(super) fn side_frame(&mut self, now: Instant, mut frame: BytesMut) {
        match protocol(body(&frame)) {
            Protocol::Smb2 => {
                if self.is_notification(body(&frame)) {
                    self.side_break(now, frame);
                } else {
                    self.side_messages(now, false, body_mut(&mut frame));
                }
            }
            Protocol::Transform => match self.side_open(body(&frame)) {
                Some(mut opened) => {
                    self.side_messages(now, true, opened.get_mut(HEADROOM..).unwrap_or_default());
                }
                None => self.fail_side_channel(now, SideChannelFailure::NotProved),
            },
            _ => self.fail_side_channel(now, SideChannelFailure::NotProved),
        }
        self.pump_side();
    }

    /// Opens a sealed frame: the session's keys seal on all its connections.
    fn side_open(&self, body: &[u8]) -> Option<BytesMut> {
        let id = transform::Header::parse(body).ok()?.session_id;
        let session = self.sessions.get(id).filter(|s| self.side.session() == Some(s.client_id.0))?;
        session.node_keys.as_ref()?.to_client()?.open(body)
    }

    fn side_messages(&mut self, now: Instant, sealed: bool, messages: &mut [u8]) {
        let mut at = 0;
        while let Some(Ok(ElementMut { header, msg, .. })) = next_mut(messages, &mut at) {
            self.side_answer(now, sealed, &header, msg);
        }
    }

    fn side_answer(&mut self, now: Instant, sealed: bool, header: &Header, msg: &mut [u8]) {
        self.heard_aside(now);
        let leg = match &mut self.side.stage {
            Stage::Binding(binding) => &mut binding.leg,
            Stage::Bound(bound) => &mut bound.leg,
            _ => return,
        };
        leg.granted(header.credits);
        if header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING {
            return;
        }
        let Some(Pending::Ours(op)) = leg.pending(header.message_id).cloned() else { return };
        leg.answered(header.message_id);
        match op {
            Op::Negotiate => self.side_negotiated(now, msg),
            Op::Bind => self.side_bound(now, header, msg),
            Op::Identity(open) => self.learn(now, open, sealed, header, msg, questions::identity),
            Op::Access(open) => self.learn(now, open, sealed, header, msg, questions::access),
            _ => {}
        }
    }

    /// Whether a message is one that nobody asked for.
    fn is_notification(&self, msg: &[u8]) -> bool {
        Header::parse(msg).is_ok_and(|header| header.message_id == u64::MAX)
    }
}

/// A frame around one message.
fn framed(msg: &[u8]) -> bytes::Bytes {
    debug_assert!(msg.len() + PREFIX <= smb_parse::frame::MAX_LEN);
    smb_parse::encode::frame(msg).into()
}
