//! The queues by which a Link speaks to its owner.

use std::collections::VecDeque;

use bytes::Bytes;
use smb_parse::{
    FileId,
    cmd::oplock_break::Notification,
    frame::{PREFIX, Protocol, protocol},
    header::Header,
};

use crate::{
    effect::{Close, CloseReason, Effect, Leg, Transmit},
    event::{Event, FileEvent},
    ids::{LegId, StoreToken},
};

/// Everything a Link has to say and its owner has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    transmits: VecDeque<Transmit>,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
    /// What is for the client and has to wait, while it has.
    held: Option<Vec<Bytes>>,
    /// What was said since the last poll waits for this.
    awaits: Option<StoreToken>,
    /// The Opens that it is about.
    about: Vec<Named>,
    /// What waits for the store, in order.
    unstored: VecDeque<Unstored>,
}

/// By what a break notification names an Open (MS-SMB2 2.2.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    File(FileId),
    Lease([u8; 16]),
}

/// A frame that waits for the store.
#[derive(Debug)]
struct Unstored {
    token: StoreToken,
    frame: Bytes,
    about: Vec<Named>,
}

impl Outbox {
    pub(crate) fn send_client(&mut self, frame: Bytes) {
        if let Some(token) = self.awaits {
            self.unstored.push_back(Unstored { token, frame, about: self.about.clone() });
            return;
        }
        // A notification may name what the client has not heard of yet.
        if !self.unstored.is_empty()
            && let Some(named) = notified(&frame)
            && let Some(token) = self.last_about(named)
        {
            let about = vec![named];
            self.unstored.push_back(Unstored { token, frame, about });
            return;
        }
        match &mut self.held {
            Some(held) => held.push(frame),
            None => self.transmits.push_back(Transmit { to: Leg::Client, frame }),
        }
    }

    /// What the client is told from now on until the next poll waits until this is stored, and so do notifications of the same
    /// Open behind it.
    pub(crate) fn wait_for(&mut self, token: StoreToken, about: impl IntoIterator<Item = Named>) {
        self.awaits = self.awaits.max(Some(token));
        self.about.extend(about);
    }

    /// The same, if something about this waits: what is told of it must not come in another order.
    pub(crate) fn wait_behind(&mut self, named: Named) {
        if let Some(behind) = self.last_about(named) {
            self.awaits = self.awaits.max(Some(behind));
            self.about.push(named);
        }
    }

    /// What the last frame about this waits for.
    fn last_about(&self, named: Named) -> Option<StoreToken> {
        self.unstored.iter().filter(|waits| waits.about.contains(&named)).map(|waits| waits.token).max()
    }

    /// Everything up to this is stored.
    pub(crate) fn stored(&mut self, token: StoreToken) {
        self.awaits = self.awaits.filter(|awaited| *awaited > token);
        let mut left = VecDeque::new();
        for waits in std::mem::take(&mut self.unstored) {
            if waits.token > token {
                left.push_back(waits);
            } else {
                self.send_client(waits.frame);
            }
        }
        self.unstored = left;
    }

    /// Whether something waits for the store.
    pub(crate) fn waits_for_store(&self) -> bool {
        !self.unstored.is_empty()
    }

    /// From now on what is for the client waits, in order.
    pub(crate) fn hold_client(&mut self) {
        self.held.get_or_insert_default();
    }

    /// What was held goes out.
    pub(crate) fn release_client(&mut self) {
        for frame in self.held.take().unwrap_or_default() {
            self.send_client(frame);
        }
    }

    pub(crate) fn send_node(&mut self, leg: LegId, frame: Bytes) {
        self.transmits.push_back(Transmit { to: Leg::Node(leg), frame });
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn file(&mut self, event: FileEvent) {
        self.events.push_back(Event::File(event));
    }

    pub(crate) fn close_leg(&mut self, leg: LegId, how: Close) {
        self.effects.push_back(Effect::CloseLeg { leg, how });
    }

    pub(crate) fn close_client(&mut self, how: Close, reason: CloseReason) {
        self.effects.push_back(Effect::CloseClient { how, reason });
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.awaits = None;
        self.about.clear();
        self.transmits.pop_front()
    }

    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

/// What a frame for the client is about, if it is a break notification: those are never sealed.
fn notified(frame: &[u8]) -> Option<Named> {
    let body = frame.get(PREFIX..).filter(|body| protocol(body) == Protocol::Smb2)?;
    if Header::parse(body).ok()?.message_id != u64::MAX {
        return None;
    }
    match Notification::parse(body).ok()? {
        Notification::Oplock { file_id, .. } => Some(Named::File(file_id)),
        Notification::Lease { lease_key, .. } => Some(Named::Lease(lease_key)),
    }
}
