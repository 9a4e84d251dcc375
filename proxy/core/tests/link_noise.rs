//! A whole Link between two peers that say anything: real messages of a recorded session, in order, out of order and
//! damaged, from both sides, with legs that end in between. Nothing panics, and a Link that is over stays quiet.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a recording that cannot be read stops the test")]

mod support;
#[path = "support/zeros.rs"]
mod zeros;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use proptest::prelude::*;
use smb_parse::{encode, header::Header};
use support::{Known, part, recording};
use understudy_core::{
    effect::{Effect, Role},
    event::{Cause, LegLoss},
    files::Files,
    fleet::Assignment,
    ids::{LegId, LinkId, NodeId},
    link::{Link, LinkConfig, SideChannelMode},
};
use zeros::Zeros;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// The next message of the recording, from whom it came.
    Next,
    /// Any message of the recording, damaged: a byte, another byte, and how much of it is left.
    Damaged { which: prop::sample::Index, at: prop::sample::Index, byte: u8, left: prop::sample::Index },
    /// The node leg ends, and another node is named.
    Lost(bool),
    /// So many milliseconds pass.
    Time(u16),
    /// The owner shows the files.
    Files,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        8 => Just(Step::Next),
        6 => (index(), index(), any::<u8>(), index())
            .prop_map(|(which, at, byte, left)| Step::Damaged { which, at, byte, left }),
        1 => any::<bool>().prop_map(Step::Lost),
        1 => (0..20_000_u16).prop_map(Step::Time),
        2 => Just(Step::Files),
    ];
    prop::collection::vec(step, 1..60)
}

/// A Link, and what its owner would do for it.
struct Owner {
    link: Link,
    now: Instant,
    files: Files,
    leg: Option<LegId>,
    side: Option<LegId>,
    generation: u64,
    over: bool,
}

impl Owner {
    fn new(hash: [u8; 16]) -> Self {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let config = Arc::new(LinkConfig { side_channel: SideChannelMode::Always, ..LinkConfig::default() });
        let link = Link::new(LinkId(1), config, Arc::new(Known(hash)), Box::new(Zeros), now);
        let mut owner =
            Self { link, now, files: Files::default(), leg: None, side: None, generation: 0, over: false };
        owner.name();
        owner
    }

    /// Another node serves.
    fn name(&mut self) {
        self.generation += 1;
        let node = NodeId((self.generation % 2) as u16);
        let assignment = Assignment { generation: self.generation, epoch: self.generation, node };
        self.link.handle_assignment(self.now, assignment, Cause::Crash);
    }

    fn take(&mut self, step: &Step, messages: &[(bool, Vec<u8>)], next: &mut usize) {
        match step {
            Step::Next => {
                let (from_node, message) = &messages[*next % messages.len()];
                *next += 1;
                self.frame(*from_node, self.leg, message);
            }
            Step::Damaged { which, at, byte, left } => {
                let (from_node, message) = &messages[which.index(messages.len())];
                let mut message = message.clone();
                let at = at.index(message.len());
                message[at] ^= byte;
                // Mostly whole.
                let left = left.index(message.len() * 4).min(message.len());
                message.truncate(left);
                let leg = if byte % 3 == 0 { self.side.or(self.leg) } else { self.leg };
                self.frame(*from_node, leg, &message);
            }
            Step::Lost(refused) => {
                if let Some(leg) = self.leg.take() {
                    let loss = if *refused { LegLoss::Silent } else { LegLoss::Closed };
                    self.link.handle_leg_lost(self.now, leg, loss);
                    self.name();
                }
            }
            Step::Time(ms) => {
                self.now += Duration::from_millis((*ms).into());
                self.link.handle_timeout(self.now);
            }
            Step::Files => self.link.handle_files(self.now, &self.files),
        }
        self.drain();
    }

    fn frame(&mut self, from_node: bool, leg: Option<LegId>, message: &[u8]) {
        let frame = BytesMut::from(&encode::frame(message)[..]);
        match (from_node, leg) {
            (true, Some(leg)) => self.link.handle_node_frame(self.now, leg, frame),
            (true, None) => {}
            (false, _) => self.link.handle_client_frame(self.now, frame),
        }
    }

    /// Everything that the Link wants, until it wants nothing more.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if let Some(transmit) = self.link.poll_transmit() {
                assert!(!self.over, "a Link that is over sends {transmit:?}");
                continue;
            }
            match self.link.poll_effect() {
                Some(Effect::Connect { leg, role: Role::Auxiliary, .. }) => {
                    assert!(self.side.is_none(), "two side channels");
                    self.side = Some(leg);
                    self.link.handle_connected(self.now, leg);
                }
                Some(Effect::Connect { leg, role: Role::Main, .. }) => {
                    self.leg = Some(leg);
                    self.link.handle_connected(self.now, leg);
                }
                Some(Effect::CloseLeg { leg, .. }) => {
                    self.leg = self.leg.filter(|open| *open != leg);
                    self.side = self.side.filter(|open| *open != leg);
                }
                Some(Effect::Store { token, .. }) => self.link.handle_stored(self.now, token),
                Some(Effect::CloseClient { .. }) => {
                    assert!(self.side.is_none(), "a side channel outlives its client");
                    self.over = true;
                }
                None if self.link.poll_event().is_some() => {}
                None => return,
            }
        }
        panic!("a Link that never rests");
    }
}

/// The messages of a recording, and whether the node sent them.
fn messages(text: &str) -> (Vec<(bool, Vec<u8>)>, [u8; 16]) {
    let parts = recording(text);
    let hash = part(&parts, "nt-hash").try_into().unwrap();
    let messages = (parts.into_iter())
        .filter_map(|(_, bytes)| Header::parse(&bytes).ok().map(|header| (header.is_response(), bytes)))
        .collect();
    (messages, hash)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_link_survives_anything(steps in steps(), new in any::<bool>()) {
        let text = if new { include_str!("data/samba-3.1.1-gmac.txt") } else { include_str!("data/samba-2.1-hmac.txt") };
        let (messages, hash) = messages(text);
        let mut owner = Owner::new(hash);
        let mut next = 0;
        for step in &steps {
            if owner.over {
                break;
            }
            owner.take(step, &messages, &mut next);
        }
    }
}

/// The same as it was recorded, undisturbed: the session is understood, and nothing is refused.
#[test]
fn the_recording_itself_passes() {
    for text in [include_str!("data/samba-3.1.1-gmac.txt"), include_str!("data/samba-2.1-hmac.txt")] {
        let (messages, hash) = messages(text);
        let mut owner = Owner::new(hash);
        let mut next = 0;
        for _ in &messages {
            owner.take(&Step::Next, &messages, &mut next);
        }
        assert!(!owner.over && owner.leg.is_some());
    }
}
