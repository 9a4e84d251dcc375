//! Whether the process that serves the client still answers: it may be stopped, or sit in the storage, while the rest of
//! its node is well.
//!
//! It is told, and nothing is done about it: a stopped process executes what lies in its receive buffer when it wakes, even
//! after its connection was reset; to take the Link elsewhere without a fence would let it write over newer data.

use std::time::{Duration, Instant};

use smb_parse::{
    encode,
    header::{Command, Header},
};

use super::Stage;
use crate::{
    event::Event,
    link::{Link, node_leg::Op},
};

/// What is known of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// It was heard then.
    Heard(Instant),
    /// It was asked then, and has said nothing since.
    Asked(Instant),
    /// It has not answered in time.
    Stuck,
}

impl Watch {
    pub(super) fn heard(now: Instant) -> Self {
        Self::Heard(now)
    }

    pub(super) fn is_stuck(self) -> bool {
        self == Self::Stuck
    }

    /// When there is something to do.
    pub(super) fn due(self, after: Duration) -> Option<Instant> {
        match self {
            Self::Heard(at) | Self::Asked(at) => Some(at + after),
            Self::Stuck => None,
        }
    }
}

impl Link {
    /// Something came on the side channel.
    pub(super) fn heard_aside(&mut self, now: Instant) {
        if let Stage::Bound(bound) = &mut self.side.stage
            && std::mem::replace(&mut bound.watch, Watch::Heard(now)).is_stuck()
        {
            self.out.event(Event::Stuck(false));
        }
    }

    /// Asks the process for a sign of life, or misses it.
    pub(super) fn watch_process(&mut self, now: Instant) {
        let Stage::Bound(bound) = &mut self.side.stage else { return };
        if bound.watch.due(self.config.stuck_after).is_none_or(|at| now < at) {
            return;
        }
        match bound.watch {
            Watch::Heard(_) => {
                bound.watch = Watch::Asked(now);
                if bound.leg.can_send(1) {
                    let mut header = Header::request(Command::ECHO, 0);
                    header.credit_charge = 1;
                    bound.leg.send_own(&mut self.out, encode::echo(&header), None, Op::Discard);
                }
            }
            // The whole node is silent, and that is the Fleet's matter.
            Watch::Asked(_) if self.silent_since.is_some() => bound.watch = Watch::Asked(now),
            Watch::Asked(_) => {
                bound.watch = Watch::Stuck;
                self.out.event(Event::Stuck(true));
            }
            Watch::Stuck => {}
        }
    }
}
