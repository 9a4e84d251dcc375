//! What a Link waits for, and what happens when the time is over.

use std::time::{Duration, Instant};

use smb_parse::header::{Command, Status};

use super::{Link, State, cover::Cover, request::Request};
use crate::{
    effect::{Close, CloseReason},
    event::{Cause, LegLoss},
    ids::{LegId, MessageId},
    takeover::verdict::{Facts, Subject, Verdict, verdict},
};

/// How long a node may take over each answer until the client, or the proxy in its name, has logged in. A single process
/// of a healthy node may be stopped, or sit on a NEGOTIATE because another with the same ClientGuid is just ending; a
/// fresh leg is answered.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

impl Link {
    /// The leg that is not in use yet, and how long its node may still be silent on it.
    fn leg_in_the_making(&self) -> Option<(LegId, Instant)> {
        let leg = match &self.state {
            State::Relay(attached) => self.handshake.as_ref().map(|_| attached.leg),
            State::Recovering(recovery) => recovery.greeting(),
            _ => None,
        };
        Some((leg?, self.heard? + PATIENCE))
    }

    /// The earliest timer.
    pub(super) fn next_timer(&self) -> Option<(Instant, &'static str)> {
        let config = &self.config;
        let mut next: Option<(Instant, &'static str)> = None;
        let mut offer = |at: Option<Instant>, why| {
            if let Some(at) = at
                && next.is_none_or(|(earliest, _)| at < earliest)
            {
                next = Some((at, why));
            }
        };
        match &self.state {
            State::Closed => return None,
            State::Opening(opening) if self.held.is_empty() => {
                offer(Some(opening.since + config.handshake_timeout), "first frame");
            }
            State::Opening(opening) => offer(Some(opening.since + config.takeover_deadline), "no node"),
            State::Recovering(recovery) => {
                offer(Some(recovery.lost_at() + config.takeover_deadline), "takeover deadline");
                offer(self.requests.pending_due(config.pending_after), "interim response");
            }
            State::Bridge(_) if !self.parked.is_empty() || !self.returns.is_empty() => {
                offer(self.requests.pending_due(config.pending_after), "interim response");
            }
            State::Relay(_) => offer(self.side_timer(), "side channel"),
            State::Bridge(_) => {}
        }
        if !self.parked.is_empty() {
            let first = self.requests.iter().filter(|r| r.may_be_late()).filter_map(|r| r.parked).min();
            offer(first.map(|at| at + config.grace_park), "parked request");
        }
        offer(self.unread.since().map(|at| at + config.grace_park), "frames that nobody can read");
        offer(self.succeeds_until, "an earlier session's end");
        offer(self.silent_since.map(|at| at + config.takeover_deadline), "silent node");
        offer(self.leg_in_the_making().map(|(_, at)| at), "an answer of the node");
        offer(self.judging.due(config.handshake_timeout), "a login");
        offer(self.break_due, "the acknowledgement of a break");
        offer(self.retries.at(), "a file that is not free yet");
        offer(self.persist_timer(), "records of Opens");
        offer(self.leaving, "a dead node's last process");
        offer(self.stopping.map(|at| at + config.shutdown_grace), "shutdown");
        next
    }

    /// Acts on every timer that is due.
    pub(super) fn run_timers(&mut self, now: Instant) {
        let deadline = self.config.takeover_deadline;
        if let State::Opening(opening) = &self.state
            && self.held.is_empty()
        {
            if Self::is_past(now, Some(opening.since), self.config.handshake_timeout) {
                self.close(Close::Graceful, CloseReason::Idle);
            }
            self.finish_shutdown(now);
            return;
        }
        let overdue = match &self.state {
            State::Opening(opening) => Self::is_past(now, Some(opening.since), deadline),
            State::Recovering(recovery) => Self::is_past(now, Some(recovery.lost_at()), deadline),
            _ => false,
        };
        if overdue || Self::is_past(now, self.silent_since, deadline) {
            self.fail_takeover(now, CloseReason::Deadline, Close::Graceful);
            return;
        }
        if let Some((leg, _)) = self.leg_in_the_making().filter(|(_, at)| now >= *at) {
            self.out.close_leg(leg, Close::Reset);
            self.leg_lost(now, leg, LegLoss::Silent);
        }
        self.retry_reclaims(now);
        if self.judging.due(self.config.handshake_timeout).is_some_and(|at| now >= at) {
            self.judge_overdue(now);
        }
        if self.leaving.is_some_and(|at| now >= at) {
            self.abandon_node(now, Cause::Crash);
        }
        self.run_break_timers(now);
        self.run_side_timers(now);
        self.write_later(now);
        if self.succeeds_until.is_some_and(|at| now >= at) {
            self.end_succession();
        }
        self.give_up_parked(now);
        self.send_due_pendings(now);
        self.finish_shutdown(now);
    }

    /// Requests that waited too long for another Link's Open.
    fn give_up_parked(&mut self, now: Instant) {
        let limit = self.config.grace_park;
        if Self::is_past(now, self.unread.since(), limit) {
            // Nobody can answer them.
            self.close(Close::Graceful, CloseReason::Unprotected);
            return;
        }
        let late: Vec<_> = self
            .requests
            .iter()
            .filter(|r| r.may_be_late() && Self::is_past(now, r.parked, limit))
            .map(|r| (r.message_id(), self.late_status(r)))
            .collect();
        // What waits behind them may go now.
        self.fresh |= !late.is_empty();
        for (id, status) in late {
            match self.state {
                State::Relay(_) if self.cannot_be_answered(id) => {
                    self.close(Close::Reset, CloseReason::Unprotected);
                    return;
                }
                State::Relay(attached) => self.fill(attached, id, Status::SHARING_VIOLATION),
                _ => self.give_up_request(id, status),
            }
        }
        self.forget_unparked();
    }

    /// Whether a client would not believe our answer: it signs, and the keys of its session are not known.
    fn cannot_be_answered(&self, id: MessageId) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let session = self.sessions.get(request.header.session_id);
        request.cover() != Cover::Plain && session.is_some_and(|s| s.client_keys.is_none())
    }

    /// What a request is told that has waited for too long. One that the lost node may have done, or another of its compound,
    /// is not told that nothing was.
    fn late_status(&self, late: &Request) -> Status {
        let in_flight = |request: &&Request| request.unit == late.unit && request.deaths > 0;
        let is_undone = |request: &Request| verdict(&Facts::of(request, &self.opens)) == Verdict::Resend;
        // Of a compound whose CREATE the client has cancelled, that may have been done.
        let is_torn = late.header.command != Command::CREATE
            && Facts::of(late, &self.opens).subject == Subject::OwnCreate
            && self.own_create(late).is_none();
        if late.deaths == 0 || !is_torn && self.requests.iter().filter(in_flight).all(is_undone) {
            Status::SHARING_VIOLATION
        } else {
            Status::INTERNAL_ERROR
        }
    }

    /// Frames of which nothing waits any more are not parked.
    pub(super) fn forget_unparked(&mut self) {
        let requests = &self.requests;
        let waits = |id: &MessageId| requests.get(*id).is_some_and(|request| request.filler.is_none());
        self.parked.retain(|unit| unit.iter().any(waits));
    }

    /// Patience for clients: one STATUS_PENDING for each request that waits on us, never in Relay.
    fn send_due_pendings(&mut self, now: Instant) {
        let waiting = match &self.state {
            State::Recovering(_) => true,
            State::Bridge(_) => !self.parked.is_empty() || !self.returns.is_empty(),
            _ => false,
        };
        if !waiting {
            return;
        }
        let after = self.config.pending_after;
        let due: Vec<_> = self
            .requests
            .iter()
            .filter(|r| r.may_pend() && now >= r.at + after)
            .map(|r| r.message_id())
            .collect();
        for id in due {
            self.send_pending(id);
        }
    }
}
