//! Seeds that are devoted to one rare situation: a request of one kind, in flight when its node dies, once or twice, or on an
//! Open that does not come back. What is about it stays tame, for most of what goes on leaves nobody able to tell what became
//! of such a request.

use crate::{
    chance::Chance,
    client::Awaited,
    plan::{Act, CACHES, Change, Step},
    users::User,
    world::{PASSING_NAMES, SHARED_NAMES, World},
};

/// What such a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aim {
    what: Awaited,
    how: How,
}

/// What is to befall it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Its node dies when it has it.
    Once,
    /// The next node dies of it, too.
    Twice,
    /// The same, and the next node lets nobody open its file.
    Refused,
}

/// Of every kind, in which ways it is rare.
const AIMS: [(Awaited, How); 18] = [
    (Awaited::Append, How::Once),
    (Awaited::Append, How::Once),
    (Awaited::Append, How::Twice),
    (Awaited::Close, How::Refused),
    (Awaited::Close, How::Refused),
    (Awaited::Delete, How::Once),
    (Awaited::Delete, How::Twice),
    (Awaited::Exclusive, How::Twice),
    (Awaited::More, How::Once),
    (Awaited::Link, How::Once),
    (Awaited::Link, How::Twice),
    (Awaited::Link, How::Refused),
    (Awaited::Rename, How::Refused),
    (Awaited::Overwrite, How::Twice),
    (Awaited::Login, How::Twice),
    (Awaited::Login, How::Twice),
    (Awaited::Notify, How::Refused),
    (Awaited::Ioctl, How::Refused),
];
/// After so long a Link may be taken over as often again, in ms.
const A_WHILE: u64 = 61_000;

impl Aim {
    /// One of them.
    pub(crate) fn drawn(chance: &mut Chance) -> Self {
        let (what, how) = chance.pick(&AIMS);
        Self { what, how }
    }

    /// What is done for it now, if anything is.
    pub(crate) fn step(self, world: &World, chance: &mut Chance) -> Option<Step> {
        let serving = world.serving_node();
        let again = || self.how == How::Twice && world.is_sent_again(&[self.what.row()]);
        let is_due = || world.is_in_flight(self.what, self.how != How::Twice) || again();
        if let Some(node) = serving.filter(|_| is_due() && chance.one_in(3)) {
            return Some(Step::Crash { node, kept: 0 });
        }
        if let Some(node) = world.fallen_node().filter(|_| chance.one_in(12)) {
            return Some(Step::Start(node));
        }
        if self.how == How::Refused && chance.one_in(12) {
            return self.refuse(world, serving, chance);
        }
        if !world.is_replaying() && chance.one_in(25) {
            return Some(Step::Wait(A_WHILE));
        }
        None
    }

    fn refuse(self, world: &World, serving: Option<usize>, chance: &mut Chance) -> Option<Step> {
        let node = chance.below(world.nodes.len());
        let client = chance.below(world.pairs.len());
        let names: Vec<&str> = world.pairs[client].client.open_names().collect();
        let is_next = Some(node) != serving && !names.is_empty();
        is_next.then(|| Step::Refuse(node, names[chance.below(names.len())].to_owned()))
    }

    /// What a client does.
    pub(crate) fn act(self, slot: u8, chance: &mut Chance) -> Act {
        let name = |chance: &mut Chance, of: &[&str]| of[chance.below(of.len())].to_owned();
        let (about, beside) = (chance.below(8), chance.one_in(3));
        match self.what {
            Awaited::Append if about < 4 => Act::Append { slot },
            Awaited::Link if about < 4 => Act::Link { slot },
            Awaited::Rename if about < 4 => Act::Rename { slot },
            Awaited::Notify if about < 3 => Act::Notify { slot },
            Awaited::Notify if about < 7 => open(".".to_owned(), 1, slot, chance),
            Awaited::Ioctl if about < 4 => Act::Fsctl { slot },
            Awaited::Close if about < 4 => Act::Close { slot },
            Awaited::Close if about < 5 => Act::Delete { slot },
            Awaited::Login if about < 4 => Act::Login(chance.pick(&[User::Alice, User::Bob])),
            Awaited::Login if about < 5 => Act::LogOff,
            Awaited::Delete if about < 7 => {
                let changes = [Change::Make, Change::Make, Change::Delete, Change::Dispose];
                Act::Name { name: name(chance, &PASSING_NAMES), change: chance.pick(&changes) }
            }
            Awaited::Exclusive | Awaited::More | Awaited::Overwrite if about < 3 => Act::Close { slot },
            Awaited::Exclusive if about < 7 => open("*".to_owned(), 2, slot, chance),
            Awaited::More if about < 7 => {
                let mut act = open("*".to_owned(), 3, slot, chance);
                if let Act::Create { more, .. } = &mut act {
                    *more = true;
                }
                act
            }
            Awaited::Overwrite if about < 7 => {
                let disposition = chance.pick(&[0, 4, 5]);
                open(name(chance, &SHARED_NAMES), disposition, slot, chance)
            }
            _ if beside => Act::Read { slot, block: chance.below(2) as u64 },
            _ if chance.one_in(6) => Act::Close { slot },
            _ => {
                let mut act = open(name(chance, &SHARED_NAMES), 3, slot, chance);
                if let Act::Create { delete, .. } = &mut act {
                    *delete = self.what == Awaited::Close && chance.one_in(2);
                }
                act
            }
        }
    }
}

/// CREATE that shares everything, and mostly asks for no caching.
fn open(name: String, disposition: u32, slot: u8, chance: &mut Chance) -> Act {
    let cache = if chance.one_in(4) { chance.below(CACHES.len()) } else { 0 };
    Act::Create { name, disposition, cache, share: 7, slot, delete: false, more: false }
}
