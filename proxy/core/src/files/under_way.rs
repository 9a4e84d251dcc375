//! What a node that lives may still do of which no answer is heard yet, while a Link whose connection alone was lost finds out what
//! became of its requests there.
//!
//! | of whom | until |
//! |---|---|
//! | a Link that has lost its leg: what was in flight | it is back, and its logins have ended the sessions of before (PreviousSessionId) |
//! | a Link that has a leg: what is in flight | it has told which names that may change; fresh requests wait meanwhile, for somebody is in doubt |
//!
//! Invariants:
//!
//! - Who finds out on a node that lives does so when nobody's requests may still run there unseen, or else believes nothing that
//!   it sees.
//! - Nor does it believe what it sees of a name that another Link has told of.
//! - All of that is over when the node is lost.

use std::collections::{HashSet, VecDeque};

use super::{Deed, FileKey, Files, remembered::leaf};
use crate::ids::LinkId;

/// What others have under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnderWay {
    /// They have not been asked.
    Unasked,
    /// It is not known yet.
    Awaited,
    /// Something of which nobody will ever know.
    Anything,
    /// Nothing but what was told.
    Known,
}

/// All that is under way.
#[derive(Debug, Default)]
pub(super) struct Ongoing {
    /// Links that have lost their legs, and are on their way back.
    lost: HashSet<LinkId>,
    /// One of those is gone, or has not ended its sessions: what it had in flight may be done at any time.
    loose: bool,
    /// Who has asked.
    asker: Option<LinkId>,
    /// Those who have still to answer.
    untold: HashSet<LinkId>,
    /// Those of them who have still to hear of it.
    to_ask: VecDeque<LinkId>,
    told: Vec<(FileKey, Deed)>,
}

impl Files {
    /// A Link that is to be asked by `handle_asked` what it has in flight.
    pub fn poll_asked(&mut self) -> Option<LinkId> {
        self.ongoing.to_ask.pop_front()
    }

    /// What others than this Link may still do on the node that lives.
    pub(crate) fn under_way(&self, link: LinkId) -> UnderWay {
        let Ongoing { lost, loose, asker, untold, .. } = &self.ongoing;
        if *loose {
            UnderWay::Anything
        } else if *asker != Some(link) {
            UnderWay::Unasked
        } else if untold.is_empty() && lost.is_empty() {
            UnderWay::Known
        } else {
            UnderWay::Awaited
        }
    }

    /// Whether another Link has something in flight that changes a name like this, or one above it.
    pub(crate) fn may_be_changing(&self, key: &FileKey) -> bool {
        let is_told = |name: &FileKey| self.ongoing.told.iter().any(|(told, _)| leaf(told) == leaf(name));
        key.and_directories_above().any(|name| is_told(&name))
    }

    /// Requests of a Link that change names were in flight when it lost its leg to the node of that assignment.
    pub(super) fn left_running(&mut self, link: LinkId, generation: u64) {
        if !self.is_over(generation) {
            self.ongoing.lost.insert(link);
        }
    }

    /// The Link is back on a node. `ended`: what it had in flight when it lost its leg is done by now, or never will be.
    pub(super) fn runs_no_more(&mut self, link: LinkId, ended: bool) {
        if self.ongoing.lost.remove(&link) {
            self.ongoing.loose |= !ended;
            self.version += 1;
        }
    }

    /// The Link wants to know of others.
    pub(super) fn asked_by(&mut self, link: LinkId) {
        let ongoing = &mut self.ongoing;
        if ongoing.asker == Some(link) {
            return;
        }
        let others = self.served.keys().copied().filter(|other| *other != link);
        ongoing.untold = others.collect();
        ongoing.to_ask = ongoing.untold.iter().copied().collect();
        ongoing.told.clear();
        ongoing.asker = Some(link);
        self.version += 1;
    }

    /// A Link has told what it has in flight.
    pub(super) fn told_by(&mut self, link: LinkId, deeds: Vec<(FileKey, Deed)>) {
        if self.ongoing.untold.remove(&link) {
            self.ongoing.told.extend(deeds);
            self.version += 1;
        }
    }

    /// The Link is done, or its turn has passed.
    pub(super) fn asks_no_more(&mut self, link: LinkId) {
        if self.ongoing.asker == Some(link) {
            let Ongoing { lost, loose, .. } = std::mem::take(&mut self.ongoing);
            self.ongoing = Ongoing { lost, loose, ..Ongoing::default() };
        }
    }

    /// A Link has lost its leg, or is gone: what it has in flight it tells otherwise.
    pub(super) fn need_not_tell(&mut self, link: LinkId) {
        self.version += u64::from(self.ongoing.untold.remove(&link));
    }

    /// The node does nothing any more.
    pub(super) fn nothing_runs(&mut self) {
        self.ongoing = Ongoing::default();
    }
}
