//! When a commit begins. A commit costs a store much the same for one change as for many, and with etcd most of that is CPU time
//! of its members; so those whom the last commit has served, and who are about to come with their next request, are waited for a
//! little, and what nobody waits for goes with what somebody does.

use std::time::Duration;

use tokio::time::Instant;

/// How long a change for which nobody waits is kept back at most.
pub(super) const LINGER: Duration = Duration::from_millis(20);
/// How long others are waited for at most, however slow the store is.
const GATHER: Duration = Duration::from_millis(10);

/// What the last commit says of the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    ended: Instant,
    took: Duration,
    served: usize,
}

impl Pace {
    /// No commit so far.
    pub(super) fn new(now: Instant) -> Self {
        Self { ended: now, took: Duration::ZERO, served: 0 }
    }

    /// A commit for which so many changes had been waited for has ended.
    pub(super) fn committed(began: Instant, ended: Instant, served: usize) -> Self {
        Self { ended, took: ended.saturating_duration_since(began), served }
    }

    /// When the next begins, if so many changes are waited for, and the oldest came at `since`: when they are as many as the
    /// last time, or half as much time as that took is over since.
    pub(super) fn due(&self, waited_for: usize, since: Instant) -> Instant {
        if waited_for == 0 {
            since + LINGER
        } else if waited_for >= self.served {
            since
        } else {
            self.ended + (self.took / 2).min(GATHER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn who_is_alone_is_not_kept_waiting() {
        let now = Instant::now();
        assert_eq!(Pace::new(now).due(1, now), now);
        // Nor by those who were many, once they might have come.
        let pace = Pace::committed(now, now + 8 * MS, 64);
        assert!(pace.due(1, now + 12 * MS) <= now + 12 * MS);
        assert_eq!(Pace::committed(now, now + 8 * MS, 1).due(1, now + 8 * MS), now + 8 * MS);
    }

    #[test]
    fn those_who_were_served_are_waited_for_but_not_long() {
        let now = Instant::now();
        let pace = Pace::committed(now, now + 8 * MS, 32);
        assert_eq!(pace.due(31, now + 2 * MS), now + 12 * MS);
        assert!(pace.due(32, now + 2 * MS) <= now + 8 * MS);
        let slow = Pace::committed(now, now + 500 * MS, 32);
        assert_eq!(slow.due(1, now + 500 * MS), now + 510 * MS);
    }

    #[test]
    fn what_nobody_waits_for_is_stored_all_the_same() {
        let now = Instant::now();
        let pace = Pace::committed(now, now + 8 * MS, 32);
        assert_eq!(pace.due(0, now + 3 * MS), now + 3 * MS + LINGER);
    }
}
