//! The wall clock's time, which tickets and authenticators carry.

use std::time::Duration;

/// Time since 1970-01-01 00:00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(pub Duration);

impl UnixTime {
    /// Of whole seconds.
    pub fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// How far apart two times are, whichever is the later.
    pub fn distance(self, other: Self) -> Duration {
        self.0.abs_diff(other.0)
    }
}
