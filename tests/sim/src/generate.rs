//! Which step comes next, by a seed.

use crate::{
    aim::Aim,
    chance::Chance,
    plan::{Act, CACHES, CHANGES, Change, Hop, Step},
    users::User,
    world::{PASSING_NAMES, SHARED_NAMES, World},
};

const HOPS: [Hop; 6] =
    [Hop::ToProxy, Hop::ToNode, Hop::FromNode, Hop::ToClient, Hop::ToNodeBeside, Hop::FromNodeBeside];
/// How many Opens a client has at most.
const SLOTS: usize = 4;
/// One in so many runs is devoted to something rare.
const AIMED: usize = 8;
/// The kinds of request, as the replay table has them, that are seldom sent again.
const SELDOM: [&str; 6] = ["append", "link", "overwrite", "delete", "rename", "teardown"];

/// How likely what is, which differs from run to run.
#[derive(Debug, Clone)]
pub struct Mood {
    acts: usize,
    faults: usize,
    waits: usize,
    evil: usize,
    /// What clients do more often than others: what is rare elsewhere.
    focus: Option<Focus>,
    /// Whether nodes die more often while something is being made good.
    storm: bool,
    /// What all of the run is about, if it is devoted to something rare.
    aim: Option<Aim>,
}

/// See [`Mood`].
#[derive(Debug, Clone, Copy)]
enum Focus {
    Append,
    Rename,
    Notify,
    Teardown,
    Create,
    Link,
    Delete,
    Overwrite,
}

impl Mood {
    /// The mood of a run.
    pub fn drawn(chance: &mut Chance) -> Self {
        if chance.one_in(AIMED) {
            let aim = Some(Aim::drawn(chance));
            return Self { acts: 25, faults: 0, waits: 3, evil: 0, focus: None, storm: false, aim };
        }
        Self {
            acts: chance.pick(&[15, 25, 40]),
            faults: chance.pick(&[5, 15, 30, 60]),
            waits: chance.pick(&[3, 10, 25]),
            evil: chance.pick(&[0, 0, 0, 3]),
            focus: chance.pick(&[
                None,
                None,
                None,
                Some(Focus::Append),
                Some(Focus::Append),
                Some(Focus::Append),
                Some(Focus::Rename),
                Some(Focus::Notify),
                Some(Focus::Teardown),
                Some(Focus::Create),
                Some(Focus::Link),
                Some(Focus::Delete),
                Some(Focus::Delete),
                Some(Focus::Overwrite),
            ]),
            storm: chance.one_in(2),
            aim: None,
        }
    }

    /// The next step.
    pub fn next(&self, world: &World, chance: &mut Chance) -> Step {
        if let Some(step) = self.aim.and_then(|aim| aim.step(world, chance)) {
            return step;
        }
        let draw = chance.below(1000);
        if self.storm && draw < 300 && world.is_sent_again(&SELDOM) {
            let node = world.serving_node().unwrap_or(0);
            return Step::Crash { node, kept: chance.below(2) };
        }
        if draw < self.faults || self.storm && draw < 80 && world.is_replaying() {
            return fault(world, chance);
        }
        if self.evil > 0 && draw >= 990 {
            return Step::Tamper(chance.below(world.pairs.len()));
        }
        if draw < self.faults + self.waits {
            return match chance.below(4) {
                0 => Step::Tick,
                1 => Step::Storage,
                _ => Step::Wait(chance.pick(&[1, 50, 300, 1100, 5200, 11_000])),
            };
        }
        if chance.below(100) < self.acts {
            let client = chance.below(world.pairs.len());
            return Step::Client(client, self.act(chance));
        }
        let mut steps: Vec<Step> = Vec::with_capacity(16);
        for at in 0..world.pairs.len() {
            steps.extend(HOPS.into_iter().filter(|hop| world.has(at, *hop)).map(|hop| Step::Hop(at, hop)));
            // Late enough for others to log in and look before.
            if world.has(at, Hop::ToNodeLate) && chance.one_in(10) {
                steps.push(Step::Hop(at, Hop::ToNodeLate));
            }
            if world.has_news(at) {
                steps.push(Step::Tell(at));
            }
            if world.pairs[at].client.has_acks() && chance.one_in(3) {
                steps.push(Step::Client(at, Act::Ack));
            }
        }
        if world.has_decision() {
            steps.push(Step::Decide);
        }
        if steps.is_empty() {
            return Step::Client(chance.below(world.pairs.len()), self.act(chance));
        }
        let at = chance.below(steps.len());
        steps.swap_remove(at)
    }

    fn act(&self, chance: &mut Chance) -> Act {
        let slot = u8::try_from(chance.below(SLOTS)).unwrap_or(0);
        if let Some(aim) = self.aim {
            return aim.act(slot, chance);
        }
        let block = chance.below(2) as u64;
        if chance.below(100) < self.evil {
            return if chance.one_in(2) { Act::EvilWrite { slot } } else { Act::EvilCreate };
        }
        if let Some(act) = self.focus.filter(|_| chance.one_in(3)).and_then(|focus| focus.act(slot, chance)) {
            return act;
        }
        let shared = SHARED_NAMES[chance.below(SHARED_NAMES.len())].to_owned();
        if chance.one_in(8) {
            let any = [SHARED_NAMES, PASSING_NAMES].concat();
            let name = any[chance.below(any.len())].to_owned();
            return Act::Name { name, change: CHANGES[chance.below(CHANGES.len())].1 };
        }
        match chance.below(64) {
            0..14 => create(slot, shared, chance),
            14..22 => Act::Read { slot, block },
            22..32 => Act::Write { slot, block },
            32..35 => Act::Append { slot },
            35 => Act::Flush { slot },
            36..40 => Act::Close { slot },
            40..44 => {
                let (exclusive, wait) = (!chance.one_in(3), chance.one_in(4));
                let blocks = if wait { vec![block] } else { blocks(block, chance) };
                Act::Lock { slot, blocks, exclusive, wait }
            }
            44..46 => Act::Unlock { slot, blocks: blocks(block, chance) },
            46..49 => Act::Rename { slot },
            49 if chance.one_in(2) => Act::Link { slot },
            49 => Act::Delete { slot },
            50..54 => Act::List { slot },
            54 if chance.one_in(2) => Act::Query { slot },
            54 => Act::Fsctl { slot },
            55 => Act::Notify { slot },
            56 => Act::Cancel,
            57 => Act::Echo,
            58 => Act::Fsctl { slot },
            59..62 => Act::Compound { name: shared, block, writes: chance.one_in(2) },
            62 if chance.one_in(3) => Act::Create {
                name: ".".to_owned(),
                disposition: 1,
                cache: 4 + chance.below(4),
                share: 7,
                slot,
                delete: false,
                more: false,
            },
            62 if chance.one_in(4) => Act::Leave,
            62 if chance.one_in(4) => Act::LogOff,
            _ if chance.one_in(4) => {
                Act::Login(chance.pick(&[User::Alice, User::Bob, User::Nobody, User::Mallory]))
            }
            _ => Act::Read { slot, block },
        }
    }
}

/// What a LOCK names: mostly one block.
fn blocks(first: u64, chance: &mut Chance) -> Vec<u64> {
    match chance.below(6) {
        0 => vec![first, 1 - first],
        1 => vec![first, first],
        _ => vec![first],
    }
}

impl Focus {
    fn act(self, slot: u8, chance: &mut Chance) -> Option<Act> {
        Some(match self {
            Self::Append if chance.one_in(6) => Act::Delete { slot },
            Self::Append if chance.one_in(8) => Act::Fsctl { slot },
            Self::Append if chance.one_in(3) => create(slot, "*".into(), chance),
            Self::Append => Act::Append { slot },
            Self::Rename => Act::Rename { slot },
            Self::Notify if chance.one_in(2) => Act::Notify { slot },
            Self::Notify => create(slot, ".".into(), chance),
            Self::Teardown if chance.one_in(3) => Act::LogOff,
            Self::Teardown if chance.one_in(2) => Act::Login(chance.pick(&[User::Alice, User::Bob])),
            Self::Teardown => return None,
            Self::Create if chance.one_in(4) => Act::Rename { slot },
            Self::Create => create(slot, "*".into(), chance),
            Self::Link if chance.one_in(6) => Act::Delete { slot },
            Self::Link if chance.one_in(6) => Act::Fsctl { slot },
            Self::Link if chance.one_in(3) => {
                let name = SHARED_NAMES[chance.below(SHARED_NAMES.len())].to_owned();
                Act::Name { name, change: Change::Link }
            }
            Self::Link => Act::Link { slot },
            Self::Delete => {
                let name = PASSING_NAMES[chance.below(PASSING_NAMES.len())].to_owned();
                let changes = [Change::Make, Change::Make, Change::Delete, Change::Dispose, Change::Rename];
                Act::Name { name, change: chance.pick(&changes) }
            }
            Self::Overwrite if chance.one_in(4) => Act::Close { slot },
            Self::Overwrite => {
                let name = SHARED_NAMES[chance.below(SHARED_NAMES.len())].to_owned();
                let disposition = chance.pick(&[0, 4, 5]);
                let cache = chance.below(CACHES.len());
                Act::Create { name, disposition, cache, share: 7, slot, delete: false, more: false }
            }
        })
    }
}

fn create(slot: u8, shared: String, chance: &mut Chance) -> Act {
    let (name, disposition) = match chance.below(10) {
        _ if shared == "*" => (shared, if chance.one_in(3) { 3 } else { 2 }),
        _ if shared == "." => (shared, 1),
        0..3 => ("*".to_owned(), if chance.one_in(3) { 3 } else { 2 }),
        3 => (".".to_owned(), 1),
        4 => (shared, 1),
        5 => (shared, chance.pick(&[0, 4, 5])),
        _ => (shared, 3),
    };
    Act::Create {
        name,
        disposition,
        cache: chance.below(CACHES.len()),
        share: if chance.one_in(5) { chance.below(8) as u32 } else { 7 },
        slot,
        delete: chance.one_in(16),
        more: disposition == 3 && chance.one_in(3),
    }
}

fn fault(world: &World, chance: &mut Chance) -> Step {
    let node = chance.below(world.nodes.len());
    let client = chance.below(world.pairs.len());
    let kept = chance.below(4);
    match chance.below(26) {
        0..7 => Step::Crash { node: world.serving_node().unwrap_or(node), kept },
        7 => Step::Crash { node, kept },
        8..12 => Step::Start(node),
        12 => Step::Stop(world.serving_node().unwrap_or(node)),
        13 => Step::GoOn(node),
        14 | 15 => Step::Fence(node),
        16..19 => Step::Cut { client, beside: false, kept },
        19 => Step::Cut { client, beside: true, kept },
        20 | 21 => Step::Probe(world.serving_node().unwrap_or(node)),
        22 => Step::Probe(node),
        23 => Step::Refuse(node, PASSING_NAMES[chance.below(PASSING_NAMES.len())].to_owned()),
        24 => {
            let names: Vec<&str> = world.pairs[client].client.open_names().collect();
            match names.len() {
                0 => Step::Probe(node),
                count => Step::Refuse(node, names[chance.below(count)].to_owned()),
            }
        }
        _ => Step::FenceFails(world.serving_node().unwrap_or(node)),
    }
}
