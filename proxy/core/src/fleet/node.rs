//! What is known of one node's health.

use std::time::{Duration, Instant};

use super::{
    config::ProbeReport,
    found::{Found, Membership},
    profile::Profile,
};

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// `None` for one that the operator has listed: it is always there.
    pub(super) found: Option<Found>,
    pub(super) membership: Membership,
    /// Nobody asks it any more, nor connects to it.
    pub(super) gone: bool,
    /// Answers in a row.
    answers: u32,
    last_answer: Option<Instant>,
    /// Since when it has been asked without an answer.
    unanswered_since: Option<Instant>,
    /// Left while silent, without a fence.
    pub(super) dirty: bool,
    /// What it said of itself when it was last asked.
    pub(super) profile: Option<Profile>,
}

/// What is thought of a node. Doubles as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It answers.
    Up,
    /// It has answered again, but not often enough yet.
    Recovering,
    /// Its host says that nobody listens.
    Down,
    /// It says nothing.
    Silent,
}

impl Health {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Recovering => "recovering",
            Self::Down => "down",
            Self::Silent => "silent",
        }
    }
}

impl Node {
    pub(super) fn new(name: String, dirty: bool) -> Self {
        Self {
            name,
            found: None,
            membership: Membership::Listed,
            gone: false,
            answers: 0,
            last_answer: None,
            unanswered_since: None,
            dirty,
            profile: None,
        }
    }

    /// It was not asked for a while.
    pub(super) fn forget(&mut self) {
        (self.answers, self.last_answer, self.unanswered_since) = (0, None, None);
    }

    /// Takes a report in.
    pub(super) fn report(&mut self, now: Instant, report: ProbeReport) {
        match report {
            ProbeReport::Answer => {
                self.answers = self.answers.saturating_add(1);
                self.last_answer = Some(now);
                self.unanswered_since = None;
            }
            ProbeReport::Refused | ProbeReport::Closed => {
                self.answers = 0;
                self.last_answer = None;
                self.unanswered_since = None;
                // Its host speaks for it: what it had in hand is gone with the process.
                self.dirty &= report != ProbeReport::Refused;
            }
            ProbeReport::Silent => {
                self.answers = 0;
                self.unanswered_since.get_or_insert(self.last_answer.unwrap_or(now));
            }
        }
    }

    /// Whether the regular probe had an answer since then.
    pub(super) fn has_answered_since(&self, since: Instant) -> bool {
        self.last_answer.is_some_and(|at| at > since)
    }

    /// Silent for long enough to be called so.
    pub(super) fn is_silent(&self, now: Instant, after: Duration) -> bool {
        self.unanswered_since.is_some_and(|since| now >= since + after)
    }

    /// Good enough to be chosen.
    pub(super) fn is_eligible(&self, needed: u32) -> bool {
        self.membership == Membership::Listed && self.may_stay(needed)
    }

    /// Good enough for clients who were there before the proxy was started.
    pub(super) fn may_stay(&self, needed: u32) -> bool {
        let is_there = self.membership <= Membership::Leaving;
        is_there && !self.dirty && self.answers >= needed && self.unanswered_since.is_none()
    }

    pub(super) fn health(&self, now: Instant, silence_after: Duration, needed: u32) -> Health {
        match () {
            () if self.is_silent(now, silence_after) => Health::Silent,
            () if self.answers >= needed => Health::Up,
            () if self.answers > 0 || self.unanswered_since.is_some() => Health::Recovering,
            () if self.last_answer.is_none() && self.unanswered_since.is_none() => Health::Down,
            () => Health::Unknown,
        }
    }
}
