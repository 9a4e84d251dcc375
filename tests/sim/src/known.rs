//! What the core is known to do wrong. A run goes on past it, and counts it; with `--strict` it fails.
//!
//! Each has a scenario in `scenarios/known/`, which fails as soon as the core does it right: then its entry goes.

/// A rule that is known to be broken in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// A file that another Link renames while a CREATE of it is being answered is recorded by its old name: that Link does
    /// not see the file's barrier.
    RenamedElsewhere,
}

impl Known {
    /// Every one.
    pub const ALL: [Self; 1] = [Self::RenamedElsewhere];

    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::RenamedElsewhere => "renamed-elsewhere",
        }
    }
}
