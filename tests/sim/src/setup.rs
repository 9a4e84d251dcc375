//! What stays the same throughout a run.

use understudy_core::{crypto::Dialect, link::SideChannelMode};

use crate::{chance::Chance, users::User};

/// How a client's messages are covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Only what must be signed is.
    Unsigned,
    /// Signing is required.
    Signed,
    /// The client seals although nobody demands it.
    Sealed,
    /// The node demands it for every session.
    Demanded,
}

impl Protection {
    const WORDS: [(Self, &'static str); 4] = [
        (Self::Unsigned, "unsigned"),
        (Self::Signed, "signed"),
        (Self::Sealed, "sealed"),
        (Self::Demanded, "sealing-demanded"),
    ];

    /// Whether clients seal.
    pub fn seals(self) -> bool {
        matches!(self, Self::Sealed | Self::Demanded)
    }
}

/// The knobs of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// What small decisions of nodes hang on.
    pub seed: u64,
    /// What clients negotiate.
    pub dialect: Dialect,
    /// How they cover what they say.
    pub protection: Protection,
    /// Whether 3.1.1 signs by GMAC; else by CMAC.
    pub gmac: bool,
    /// Each client, and as whom it logs in.
    pub clients: Vec<User>,
    /// How many nodes there are.
    pub nodes: usize,
    /// The most credits that a node grants.
    pub window: u32,
    /// One in so many requests takes its time; 0: none.
    pub slow_every: u64,
    /// A compound's answers are cut after one in so many; 0: never.
    pub split_every: u64,
    /// The store answers after one in so many steps.
    pub store_every: u64,
    /// When a side channel is opened.
    pub side: SideChannelMode,
    /// Whether every other node lets nobody write or keep handles in a cache.
    pub stingy: bool,
    /// Whether what is known to be wrong fails, too.
    pub strict: bool,
    /// Whether the story is kept.
    pub trace: bool,
}

const DIALECTS: [(Dialect, &str); 5] = [
    (Dialect::SMB202, "2.0.2"),
    (Dialect::SMB210, "2.1"),
    (Dialect::SMB300, "3.0"),
    (Dialect(0x0302), "3.0.2"),
    (Dialect::SMB311, "3.1.1"),
];
const SIDES: [(SideChannelMode, &str); 3] =
    [(SideChannelMode::Off, "off"), (SideChannelMode::Auto, "auto"), (SideChannelMode::Always, "always")];

fn word<T: PartialEq>(table: &[(T, &'static str)], value: &T) -> &'static str {
    table.iter().find(|(v, _)| v == value).map_or("?", |(_, word)| *word)
}

fn value<T: Copy>(table: &[(T, &'static str)], word: &str) -> Option<T> {
    table.iter().find(|(_, w)| *w == word).map(|(v, _)| *v)
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 0,
            dialect: Dialect::SMB311,
            protection: Protection::Signed,
            gmac: false,
            clients: vec![User::Alice],
            nodes: 2,
            window: 64,
            slow_every: 0,
            split_every: 0,
            store_every: 1,
            side: SideChannelMode::Off,
            stingy: false,
            strict: false,
            trace: false,
        }
    }
}

impl Setup {
    /// The setup of a seed.
    pub fn drawn(seed: u64, chance: &mut Chance) -> Self {
        let dialect = chance.pick(&[
            DIALECTS[0].0,
            DIALECTS[1].0,
            DIALECTS[2].0,
            DIALECTS[3].0,
            DIALECTS[4].0,
            DIALECTS[4].0,
            DIALECTS[4].0,
        ]);
        let mut protection = chance.pick(&Protection::WORDS).0;
        if dialect < Dialect::SMB300 && protection.seals() {
            protection = Protection::Signed;
        }
        let count = chance.pick(&[1, 2, 2, 3, 3]);
        let users =
            [User::Alice, User::Alice, User::Bob, User::Alice, User::Nobody, User::Bob, User::Mallory];
        let user = |chance: &mut Chance| loop {
            let user = chance.pick(&users);
            if !(protection.seals() && user == User::Nobody) {
                return user;
            }
        };
        Self {
            seed,
            dialect,
            protection,
            gmac: chance.one_in(2),
            clients: (0..count).map(|_| user(chance)).collect(),
            nodes: 2 + chance.below(2),
            window: chance.pick(&[8, 32, 64, 512]),
            slow_every: chance.pick(&[0, 0, 4, 9]),
            split_every: chance.pick(&[0, 2, 5]),
            store_every: [1, 1, 3, 10][usize::try_from(seed % 4).unwrap_or(0)],
            side: chance.pick(&SIDES).0,
            stingy: chance.one_in(4),
            strict: false,
            trace: false,
        }
    }

    /// SecurityMode, as both ends say it.
    pub fn security_mode(&self) -> u16 {
        if self.protection == Protection::Signed { 3 } else { 1 }
    }

    /// As a line of a scenario.
    pub fn text(&self) -> String {
        let users: Vec<_> = self.clients.iter().map(|u| u.name()).collect();
        format!(
            "setup: dialect {} cover {} gmac {} clients {} nodes {} credits {} slow {} split {} store {} side-channel {} stingy {} seed {}",
            word(&DIALECTS, &self.dialect),
            word(&Protection::WORDS, &self.protection),
            if self.gmac { "yes" } else { "no" },
            users.join(","),
            self.nodes,
            self.window,
            self.slow_every,
            self.split_every,
            self.store_every,
            word(&SIDES, &self.side),
            if self.stingy { "yes" } else { "no" },
            self.seed
        )
    }

    /// Reads such a line; what it leaves out is as usual.
    pub fn parse(words: &[&str]) -> Option<Self> {
        let mut setup = Self::default();
        for pair in words.chunks(2) {
            let [name, text] = pair else { return None };
            match *name {
                "dialect" => setup.dialect = value(&DIALECTS, text)?,
                "cover" => setup.protection = value(&Protection::WORDS, text)?,
                "gmac" => setup.gmac = *text == "yes",
                "clients" => {
                    let user = |name| User::ALL.into_iter().find(|u| u.name() == name);
                    setup.clients = text.split(',').map(user).collect::<Option<_>>()?;
                }
                "nodes" => setup.nodes = text.parse().ok()?,
                "credits" => setup.window = text.parse().ok()?,
                "slow" => setup.slow_every = text.parse().ok()?,
                "split" => setup.split_every = text.parse().ok()?,
                "store" => setup.store_every = text.parse().ok().filter(|every| *every > 0)?,
                "side-channel" => setup.side = value(&SIDES, text)?,
                "stingy" => setup.stingy = *text == "yes",
                "seed" => setup.seed = text.parse().ok()?,
                _ => return None,
            }
        }
        Some(setup)
    }
}
