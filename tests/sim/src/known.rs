//! What the core is known to do wrong: nothing at present. A run goes on past it, and counts it; with `--strict` it fails.
//!
//! Each has a scenario in `scenarios/known/`, named after it, which fails as soon as the core does it right: then its entry
//! goes.

/// A rule that is known to be broken in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {}

impl Known {
    /// Every one.
    pub const ALL: [Self; 0] = [];

    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {}
    }
}
