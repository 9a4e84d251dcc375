//! The queues by which a Link speaks to its owner.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    effect::{Close, CloseReason, Effect, Leg, Transmit},
    event::{Event, FileEvent},
    ids::LegId,
};

/// Everything a Link has to say and its owner has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    transmits: VecDeque<Transmit>,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
    /// What is for the client and has to wait, while it has.
    held: Option<Vec<Bytes>>,
}

impl Outbox {
    pub(crate) fn send_client(&mut self, frame: Bytes) {
        match &mut self.held {
            Some(held) => held.push(frame),
            None => self.transmits.push_back(Transmit { to: Leg::Client, frame }),
        }
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
        self.transmits.pop_front()
    }

    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
