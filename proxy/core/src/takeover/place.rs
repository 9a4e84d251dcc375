//! Under which name an Open is looked for. The Link follows its own renames; those of other Links it learns from Files before
//! it reclaims, and again when an Open is not where it should be.
//!
//! 1. Under the name that Files has for it.
//! 2. Under those that renames of this Link in flight may have given to it (see [`probe`](super::probe)).
//! 3. Under those that other renames may have given to it: in flight in another Link, answered while this Open was being
//!    opened, heard of in another order than the node did them ([`Files::elsewhere`]). There only the very file counts.
//!
//! What was found so is told to Files as a rename, so that others find it at once.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use super::{Stage, State};
use crate::{
    files::{FileKey, Files, Name},
    ids::{MessageId, OpenToken},
    link::{Link, node_leg::Op, open::OpenState},
};

/// By which name an Open was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    /// The last known one.
    Recorded,
    /// The one after that rename of this Link's.
    Renamed(MessageId),
    /// One that Files knows.
    Elsewhere,
}

impl Under {
    /// What has an Open again there.
    pub(super) fn reclaim(self, open: OpenToken) -> Op {
        match self {
            Self::Recorded => Op::Reclaim(open),
            Self::Renamed(rename) => Op::ReclaimRenamed(open, rename),
            Self::Elsewhere => Op::ReclaimElsewhere(open),
        }
    }
}

/// Opens that are not where they should be.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Files is to be asked about these.
    missing: Vec<OpenToken>,
    /// These could not be looked at somewhere: whether their files are there is not known.
    refused: HashSet<OpenToken>,
    /// These were to be deleted on close, and are not there, or soon will not be: their node has closed them when it lost its leg.
    closed: HashSet<OpenToken>,
    /// Where each was looked for, the last name last.
    tried: HashMap<OpenToken, Vec<Name>>,
}

impl Search {
    pub(super) fn is_waiting(&self) -> bool {
        !self.missing.is_empty()
    }

    /// It could not be looked at.
    pub(super) fn note_refusal(&mut self, open: OpenToken) {
        self.refused.insert(open);
    }

    pub(super) fn was_refused(&self, open: OpenToken) -> bool {
        self.refused.contains(&open)
    }

    /// Whether its node has closed it, by what was seen last.
    pub(super) fn note_closed_by_node(&mut self, open: OpenToken, closed: bool) {
        if closed {
            self.closed.insert(open);
        } else {
            self.closed.remove(&open);
        }
    }

    pub(super) fn was_closed_by_node(&self, open: OpenToken) -> bool {
        self.closed.contains(&open)
    }

    /// Where it is looked for now.
    pub(super) fn name(&self, open: OpenToken) -> Option<&Name> {
        self.tried.get(&open)?.last()
    }
}

impl super::Recovery {
    /// Whether it goes on only with what Files says.
    pub(crate) fn wants_files(&self) -> bool {
        matches!(self.stage, Stage::Asking(_)) || self.search.is_waiting()
    }
}

impl Link {
    /// Files as they are, while a node is sought.
    pub(crate) fn recovery_files(&mut self, now: Instant, files: &Files) {
        let State::Recovering(recovery) = &mut self.state else { return };
        match std::mem::replace(&mut recovery.stage, Stage::Waiting(0)) {
            Stage::Asking(leg) => {
                let opens = self.opens.iter().filter(|open| open.state == OpenState::Unreclaimed);
                for token in opens.map(|open| open.token).collect::<Vec<_>>() {
                    self.take_place(token, files);
                }
                let attempts = self.attempts();
                if let State::Recovering(recovery) = &mut self.state {
                    recovery.attempts = attempts;
                }
                let stage = self.begin_reclaim(leg);
                if let State::Recovering(recovery) = &mut self.state {
                    recovery.stage = stage;
                }
            }
            stage => {
                recovery.stage = stage;
                for token in std::mem::take(&mut recovery.search.missing) {
                    self.take_place(token, files);
                    self.look_on(token, files);
                }
            }
        }
        self.recovery_advance(now);
    }

    /// The name by which an Open is looked for there, if it is not the recorded one.
    pub(super) fn name_under(&self, token: OpenToken, under: Under) -> Option<&[u8]> {
        match (&self.state, under) {
            (State::Recovering(recovery), Under::Renamed(rename)) => recovery.attempts.name(token, rename),
            (State::Recovering(recovery), Under::Elsewhere) => {
                recovery.search.name(token).map(|name| &*name.path)
            }
            _ => None,
        }
    }

    /// What others have made of the file of an Open.
    fn take_place(&mut self, token: OpenToken, files: &Files) {
        let Some(place) = files.place(self.id, token) else { return };
        let Some(open) = self.opens.get_mut(token) else { return };
        if open.name.path != place.name.path {
            open.name = place.name.clone();
            open.called = None;
            open.moved_at = Some(place.since);
        }
        open.birth = place.birth;
        open.delete_pending &= place.doomed;
    }

    /// An Open is not there. What is known here of other names is tried first.
    pub(super) fn look_elsewhere(&mut self, token: OpenToken, tried: Under) {
        let next = match tried {
            Under::Recorded => self.next_attempt(token, None),
            Under::Renamed(rename) => self.next_attempt(token, Some(rename)),
            Under::Elsewhere => None,
        };
        let Some(open) = self.opens.get(token) else { return };
        let State::Recovering(recovery) = &mut self.state else { return self.give_up(token) };
        let name = match tried {
            Under::Recorded => Some(open.name.clone()),
            Under::Renamed(rename) => {
                recovery.attempts.name(token, rename).map(|path| Name::new(&open.share, path))
            }
            Under::Elsewhere => None,
        };
        recovery.search.tried.entry(token).or_default().extend(name);
        match next {
            Some(rename) => {
                self.ask_for(Op::Look(token, Under::Renamed(rename)));
            }
            None => recovery.search.missing.push(token),
        }
    }

    /// The next name that Files knows; if there is none, the Open is lost.
    fn look_on(&mut self, token: OpenToken, files: &Files) {
        let State::Recovering(recovery) = &mut self.state else { return };
        let tried = recovery.search.tried.entry(token).or_default();
        let keys: Vec<FileKey> = tried.iter().map(|name| name.key.clone()).collect();
        let Some(name) = files.elsewhere(self.id, token, &keys) else {
            if files.is_removed(self.id, token) {
                // Another has deleted it while the connection was lost, and was told so.
                self.forget_deletion(token);
            }
            self.give_up(token);
            return;
        };
        tried.push(name);
        self.ask_for(Op::Look(token, Under::Elsewhere));
    }
}
