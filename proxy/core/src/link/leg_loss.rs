//! A node leg ended. Which of the Link's parts can go on, and how it begins to look for another node.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use smb_parse::header::Command;

use super::{Attached, Link, Opening, State, request::Request, session::Session};
use crate::{
    effect::{Close, CloseReason},
    event::{Cause, Event, FileEvent, LegLoss, SessionLoss},
    ids::LegId,
    link::{open::OpenState, watch::Watch},
    takeover::Recovery,
};

/// Within this time a Link may lose its leg to a living node only so often.
const MINUTE: Duration = Duration::from_secs(60);

impl Link {
    pub(super) fn leg_lost(&mut self, now: Instant, leg: LegId, loss: LegLoss) {
        match &self.state {
            State::Opening(opening) => {
                if let Some(attached) = opening.dialling.filter(|a| a.leg == leg) {
                    self.reopen(now, attached, loss);
                }
            }
            State::Relay(attached) if attached.leg == leg => {
                let attached = *attached;
                self.relay_leg_lost(now, attached, loss);
            }
            State::Bridge(node) if node.id == leg => {
                let attached = Attached { leg, node: node.node, generation: node.generation };
                self.report_loss(attached, loss);
                self.begin_recovery(now, attached, Cause::Crash);
            }
            State::Bridge(_) if self.judging.leg() == Some(leg) => self.judge_lost(now),
            State::Recovering(_) => self.recovery_leg_lost(now, leg, loss),
            _ if self.side.leg() == Some(leg) => self.side_lost(now),
            _ => {}
        }
    }

    pub(crate) fn report_loss(&mut self, attached: Attached, loss: LegLoss) {
        self.out.event(Event::LegLost {
            leg: attached.leg,
            node: attached.node,
            generation: attached.generation,
            loss,
        });
    }

    /// What the client has said, and no node has answered, is held for another node, as if nobody had heard it.
    fn hold_handshake(&mut self) {
        self.requests = super::Requests::default();
        self.conn = super::Connection::new();
        self.credits = super::ClientCredits::new();
        self.held.extend(self.handshake.replace(Vec::new()).into_iter().flatten());
        self.held_bytes = self.held.iter().map(BytesMut::len).sum();
    }

    /// The node went before it had answered anything: the client never notices, the next one is dialled.
    fn reopen(&mut self, now: Instant, attached: Attached, loss: LegLoss) {
        self.open_again(now, attached);
        self.report_loss(attached, loss);
        self.dial();
    }

    fn open_again(&mut self, now: Instant, attached: Attached) {
        let since = match &self.state {
            State::Opening(opening) => opening.since,
            _ => now,
        };
        self.state = State::Opening(Opening { since, dialling: None, after: attached.generation });
    }

    fn relay_leg_lost(&mut self, now: Instant, attached: Attached, loss: LegLoss) {
        if self.handshake.is_some() {
            if self.too_many_losses(now) {
                // It is what the client says that makes nodes close, and would for ever.
                self.report_loss(attached, loss);
                self.close(Close::Reset, CloseReason::NodeClosed);
                return;
            }
            self.hold_handshake();
            self.reopen(now, attached, loss);
            return;
        }
        self.report_loss(attached, loss);
        if self.sessions.is_empty() && !self.only_begins_to_log_in() {
            let reason = if self.requests.is_empty() && self.conn.dialect.is_some() {
                CloseReason::NodeClosed
            } else {
                CloseReason::LostInHandshake
            };
            self.close(Close::Reset, reason);
            return;
        }
        self.begin_recovery(now, attached, Cause::Crash);
    }

    /// Whether all that the client waits for is the answer to the first token of its first login: another node can judge it
    /// afresh, although NEGOTIATE was answered by the one that is lost.
    fn only_begins_to_log_in(&self) -> bool {
        let begins = |r: &Request| {
            r.header.command == Command::SESSION_SETUP && r.header.session_id == 0 && !r.compounded
        };
        self.conn.dialect.is_some() && !self.requests.is_empty() && self.requests.iter().all(begins)
    }

    /// The Fleet has moved everyone: the leg is given up although it stands.
    pub(super) fn abandon_node(&mut self, now: Instant, cause: Cause) {
        let attached = match &self.state {
            State::Opening(Opening { dialling: Some(attached), .. }) | State::Relay(attached) => *attached,
            State::Bridge(node) => Attached { leg: node.id, node: node.node, generation: node.generation },
            _ => return,
        };
        self.leaving = None;
        self.end_side_channel();
        self.out.close_leg(attached.leg, Close::Reset);
        if self.handshake.is_some() {
            self.hold_handshake();
            self.open_again(now, attached);
            self.dial();
            return;
        }
        if self.sessions.is_empty() && !self.only_begins_to_log_in() {
            self.close(Close::Reset, CloseReason::LostInHandshake);
            return;
        }
        self.begin_recovery(now, attached, cause);
    }

    /// From Relay or Bridge to Recovering.
    pub(crate) fn begin_recovery(&mut self, now: Instant, lost: Attached, cause: Cause) {
        self.leaving = None;
        self.end_side_channel();
        self.end_returns();
        if !self.open_kept() {
            self.out.event(Event::SignatureRefused);
            self.close(Close::Graceful, CloseReason::SignatureInvalid);
            return;
        }
        self.forget_judging();
        if let State::Bridge(leg) = &self.state {
            self.clock = leg.clock;
        }
        self.restore_client_ids();
        self.sessions.forget_logins();
        for request in self.requests.iter_mut() {
            request.parked = None;
            request.filler = None;
            request.forget_finding();
            if request.sent.take().is_some() {
                request.deaths = request.deaths.saturating_add(1);
            }
        }
        self.settle_locks_in_flight();
        self.parked.clear();
        self.begin_doubt(lost.generation);
        for session in self.sessions.iter_mut().filter(|s| !s.ended) {
            session.known_as.insert(lost.node, session.node_id);
            session.still_runs = true;
        }
        for open in self.opens.iter_mut().filter(|o| o.state == OpenState::Live) {
            open.state = OpenState::Unreclaimed;
            open.had_by = Some(lost.node);
            if open.watch == Watch::On {
                open.watch = Watch::Lost;
            }
        }
        self.inherit_breaks(now);
        self.tell_what_was_written(now);
        self.opens.forget_node_ids();
        self.unflagged.clear();
        self.flagging.clear();
        self.out.file(FileEvent::Lost);
        let unread = !std::mem::take(&mut self.unread).is_empty();
        let opaque = unread || self.sessions.iter().any(Session::has_passed_unread);
        let ended = self.end_unprotected();
        let mut recovery = Recovery::begin(now, lost, cause);
        recovery.progress.sessions_lost = ended;
        self.state = State::Recovering(Box::new(recovery));
        // A request that cannot be read cannot be answered: its client would wait for ever.
        if opaque || self.sessions.none_protected() {
            self.fail_takeover(now, CloseReason::Unprotected, Close::Reset);
            return;
        }
        self.answer_ended_sessions();
        self.answer_own_breaks(now, &self.requests.ids());
        for id in self.requests.ids() {
            if self.requests.get(id).is_some_and(|r| r.is_echo() && !r.compounded) {
                self.check_and_answer_echo(id);
            }
        }
        if let Some(assignment) = self.assignment.filter(|a| a.generation > lost.generation) {
            self.recovery_assignment(now, assignment, true);
        }
    }

    /// Sessions nobody can act for end here; says how many.
    fn end_unprotected(&mut self) -> u32 {
        let mut ended = 0;
        for session in self.sessions.iter_mut().filter(|s| !s.protection.is_protected() && !s.ended) {
            session.ended = true;
            ended += 1;
            let loss = SessionLoss::Unprotected;
            self.out.event(Event::SessionLost { user: session.user.clone(), loss });
        }
        ended
    }

    /// Requests of ended sessions are answered, their Opens are gone.
    pub(crate) fn answer_ended_sessions(&mut self) {
        let is_ended = |link: &Self, id| link.sessions.get(id).is_some_and(|s| s.ended);
        for id in self.requests.ids() {
            if self.requests.get(id).is_some_and(|r| is_ended(self, r.header.session_id)) {
                self.answer_session_deleted(id);
            }
        }
        let gone: Vec<_> =
            self.opens.iter().filter(|o| is_ended(self, o.session.0)).map(|o| o.token).collect();
        for token in gone {
            self.opens.remove(token);
            self.out.file(FileEvent::GivenUp { open: token, deleted: false });
        }
    }

    /// Counts losses of a leg to a living node. True if there were too many: a poison request must not go on.
    pub(crate) fn too_many_losses(&mut self, now: Instant) -> bool {
        self.leg_losses.push_back(now);
        while self.leg_losses.front().is_some_and(|at| now > *at + MINUTE) {
            self.leg_losses.pop_front();
        }
        self.leg_losses.len() > self.config.leg_losses_per_minute
    }

    /// No node can be had for this Link: reports the takeover as failed, and ends it.
    pub(crate) fn fail_takeover(&mut self, now: Instant, reason: CloseReason, how: Close) {
        if let State::Recovering(recovery) = &self.state {
            let mut report = recovery.report(now, None);
            report.failed = Some(reason);
            self.out.event(Event::Takeover(Box::new(report)));
        }
        self.close(how, reason);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;
    use crate::{
        auth::NoCredentials,
        effect::Effect,
        fleet::Assignment,
        ids::{LinkId, NodeId},
        link::LinkConfig,
        random::Random,
    };

    struct Zeros;

    impl Random for Zeros {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.fill(0);
        }
    }

    fn link(now: Instant) -> Link {
        let config = Arc::new(LinkConfig::default());
        Link::new(LinkId(1), config, Arc::new(NoCredentials), Box::new(Zeros), now)
    }

    /// Names a node, and connects.
    fn connect(link: &mut Link, now: Instant) -> LegId {
        link.handle_assignment(now, Assignment { generation: 1, epoch: 1, node: NodeId(0) }, Cause::Crash);
        let Some(Effect::Connect { leg, .. }) = link.poll_effect() else { panic!("it does not connect") };
        link.handle_connected(now, leg);
        leg
    }

    /// What was sent to a node that died unheard counts like what has never been sent, however the node went.
    #[test]
    fn what_is_held_for_another_node_is_counted() {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let half = || BytesMut::zeroed(super::super::OPENING_BYTES / 2);
        for silent in [false, true] {
            let mut link = link(now);
            link.handle_client_frame(now, half());
            let leg = connect(&mut link, now);
            link.handle_client_frame(now, half());
            assert_eq!(link.kept_bytes(), 0, "it is the node's business");
            if silent {
                let next = Assignment { generation: 2, epoch: 2, node: NodeId(1) };
                link.handle_assignment(now, next, Cause::Silence);
            } else {
                link.handle_leg_lost(now, leg, LegLoss::Closed);
            }
            assert_eq!(link.kept_bytes(), super::super::OPENING_BYTES);
            assert!(!link.wants_client_frames(), "more is read than may be held");
        }
    }

    #[test]
    fn what_makes_every_node_close_is_not_sent_for_ever() {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let mut link = link(now);
        let allowed = link.config.leg_losses_per_minute;
        link.handle_client_frame(now, BytesMut::from(&b"\0\0\0\x05noise"[..]));
        let mut dialled = 0;
        for generation in 1..100 {
            link.handle_assignment(now, Assignment { generation, epoch: 1, node: NodeId(0) }, Cause::Crash);
            match link.poll_effect() {
                Some(Effect::Connect { leg, .. }) => {
                    dialled += 1;
                    link.handle_connected(now, leg);
                    assert!(link.poll_transmit().is_some(), "the node is not told what the client said");
                    link.handle_leg_lost(now, leg, LegLoss::Closed);
                }
                Some(Effect::CloseLeg { .. }) => {
                    let end = Effect::CloseClient { how: Close::Reset, reason: CloseReason::NodeClosed };
                    assert_eq!(link.poll_effect(), Some(end));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dialled, allowed + 1);
    }
}
