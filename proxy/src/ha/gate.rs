//! Until when this process may serve.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A moment on a clock that goes on while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Self(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()))
    }

    pub(crate) fn after(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// How long it is until then.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }
}

/// Whoever is about to take something from a client, or to write to a node, looks at it before. Nothing is said when it is
/// shut: it shuts by itself.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Nanoseconds of [`Moment`]'s clock.
    until: AtomicU64,
}

/// Of one that is never shut.
const ALWAYS: u64 = u64::MAX;

impl Gate {
    /// That of a proxy that is the only one.
    pub(crate) fn always_open() -> Self {
        Self { until: AtomicU64::new(ALWAYS) }
    }

    pub(crate) fn shut() -> Self {
        Self { until: AtomicU64::new(0) }
    }

    pub(crate) fn open_until(&self, moment: Moment) {
        let until = u64::try_from(moment.0.as_nanos()).unwrap_or(ALWAYS).min(ALWAYS - 1);
        self.until.store(until, Ordering::SeqCst);
    }

    /// Whether it can be shut at all.
    pub(crate) fn is_guarded(&self) -> bool {
        self.until.load(Ordering::Relaxed) != ALWAYS
    }

    pub(crate) fn is_open(&self) -> bool {
        let until = self.until.load(Ordering::SeqCst);
        until == ALWAYS || Moment::now().0.as_nanos() < u128::from(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shuts_by_itself() {
        assert!(Gate::always_open().is_open() && !Gate::always_open().is_guarded());
        let gate = Gate::shut();
        assert!(!gate.is_open() && gate.is_guarded());
        let moment = Moment::now().after(Duration::from_millis(30));
        gate.open_until(moment);
        let mut was_open = false;
        while !moment.left().is_zero() {
            was_open |= gate.is_open();
        }
        assert!(was_open && !gate.is_open());
        gate.open_until(Moment::now().after(Duration::from_secs(60)));
        assert!(gate.is_open());
    }
}
