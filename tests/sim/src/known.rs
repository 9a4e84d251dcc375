//! What the core is known to do wrong. A run goes on past it, and counts it; with `--strict` it fails.
//!
//! Each has a scenario in `scenarios/known/`, which fails as soon as the core does it right: then its entry goes.

/// A rule that is known to be broken in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// A sealed request that was tampered with in Relay makes the node close its connection. The Link takes that for a lost
    /// leg and goes on, but nobody ever answers the request.
    TamperedSealNotAnswered,
    /// LOGOFF overtakes what its session has sent before, if that waits for a barrier: it is then sealed for a session that
    /// the node does not have any more.
    LogoffOvertakes,
    /// What may not be done twice and waits for a barrier for longer than `grace_park` is answered
    /// STATUS_SHARING_VIOLATION, although the lost node may have done it.
    ParkedToldUndone,
    /// A file that another Link has renamed is known to a Link by its old name: it does not see the file's barrier.
    RenamedElsewhere,
    /// Opens with one LeaseKey each remember the state that their own CREATE brought: when the last of them is closed, the
    /// others are reclaimed with less, and the client is not told.
    LeaseOfSeveralOpens,
    /// What waits for a barrier too long in a session that nobody can act for is refused by an answer that is not signed.
    ParkedNotSigned,
}

impl Known {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::TamperedSealNotAnswered,
        Self::LogoffOvertakes,
        Self::ParkedToldUndone,
        Self::RenamedElsewhere,
        Self::LeaseOfSeveralOpens,
        Self::ParkedNotSigned,
    ];

    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::TamperedSealNotAnswered => "tampered-seal-not-answered",
            Self::LogoffOvertakes => "logoff-overtakes",
            Self::ParkedToldUndone => "parked-told-undone",
            Self::RenamedElsewhere => "renamed-elsewhere",
            Self::LeaseOfSeveralOpens => "lease-of-several-opens",
            Self::ParkedNotSigned => "parked-not-signed",
        }
    }
}
