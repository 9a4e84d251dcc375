//! What the core is known to do wrong. A run goes on past it, and counts it; with `--strict` it fails.
//!
//! Each has a scenario in `scenarios/known/`, which fails as soon as the core does it right: then its entry goes.

/// A rule that is known to be broken in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Files are known by name. One that another Link renames while a CREATE of it is being answered is recorded by its old
    /// name, and that Link does not see its barrier; and an Open of a new file under the old name is taken along by the
    /// rename, if that is heard of later.
    RenamedElsewhere,
    /// The last answers of a node that is gone are read after every Open was declared lost: an Open that they bring counts as
    /// one of the new node's, and holds nobody back until its Link hears of the loss.
    OpenedAfterAllLost,
}

impl Known {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::RenamedElsewhere, Self::OpenedAfterAllLost];

    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::RenamedElsewhere => "renamed-elsewhere",
            Self::OpenedAfterAllLost => "opened-after-all-lost",
        }
    }
}
