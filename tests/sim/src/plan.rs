//! What happens in a run, step by step, and how that is written in a scenario file.
//!
//! A step that is not possible when its turn comes does nothing: so steps can be left out of a failing run, to see
//! which of them it takes.

use crate::users::User;

/// What a client may do with an Open's data while nobody is told.
pub const CACHES: [(&str, u8, u32); 9] = [
    ("none", 0, 0),
    ("ii", 1, 0),
    ("exclusive", 8, 0),
    ("batch", 9, 0),
    ("r", 0xff, 1),
    ("rh", 0xff, 3),
    ("rw", 0xff, 5),
    ("rwh", 0xff, 7),
    ("h", 0xff, 2),
];
/// The dispositions that are used.
pub const DISPOSITIONS: [(&str, u32); 6] =
    [("open", 1), ("create", 2), ("open-if", 3), ("supersede", 0), ("overwrite", 4), ("overwrite-if", 5)];
/// What a compound does to a name: CREATE(FILE_CREATE), CLOSE; CREATE(FILE_DELETE_ON_CLOSE), CLOSE; or with a SET_INFO
/// between CREATE and CLOSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Make,
    Delete,
    Dispose,
    Rename,
    Link,
}

/// A word for each.
pub const CHANGES: [(&str, Change); 5] = [
    ("make", Change::Make),
    ("delete", Change::Delete),
    ("dispose", Change::Dispose),
    ("rename", Change::Rename),
    ("link", Change::Link),
];

/// An act of a client. `slot` is the letter of an Open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A further user logs in.
    Login(User),
    /// `name` is `*` for a name that nobody has used: by dispositions `create` and `open-if` only. `.` is the directory.
    Create {
        name: String,
        disposition: u32,
        cache: usize,
        share: u32,
        slot: u8,
        delete: bool,
        /// It brings what a file does not show.
        more: bool,
    },
    Read {
        slot: u8,
        block: u64,
    },
    Write {
        slot: u8,
        block: u64,
    },
    Append {
        slot: u8,
    },
    Flush {
        slot: u8,
    },
    Close {
        slot: u8,
    },
    /// In one request. Only one block may be waited for (MS-SMB2 3.3.5.14.2).
    Lock {
        slot: u8,
        blocks: Vec<u64>,
        exclusive: bool,
        wait: bool,
    },
    /// In one request, which need not succeed.
    Unlock {
        slot: u8,
        blocks: Vec<u64>,
    },
    Rename {
        slot: u8,
    },
    Link {
        slot: u8,
    },
    Delete {
        slot: u8,
    },
    List {
        slot: u8,
    },
    Query {
        slot: u8,
    },
    Notify {
        slot: u8,
    },
    /// An FSCTL that nobody may repeat.
    Fsctl {
        slot: u8,
    },
    /// Of the oldest request that is not answered.
    Cancel,
    Echo,
    /// The oldest break that wants an acknowledgement.
    Ack,
    /// CREATE, READ or WRITE, CLOSE in one frame.
    Compound {
        name: String,
        block: u64,
        writes: bool,
    },
    /// One frame that changes a name.
    Name {
        name: String,
        change: Change,
    },
    /// A WRITE that somebody on the wire has changed.
    EvilWrite {
        slot: u8,
    },
    /// The same as a CREATE.
    EvilCreate,
    LogOff,
    /// The client closes its connection.
    Leave,
}

/// One frame's way over one of the four stretches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    ToProxy,
    ToNode,
    FromNode,
    ToClient,
    /// On a connection beside the main one.
    ToNodeBeside,
    FromNodeBeside,
    /// What a node that lives has got by a connection that is broken.
    ToNodeLate,
}

const HOPS: [(Hop, &str); 7] = [
    (Hop::ToProxy, "to-proxy"),
    (Hop::ToNode, "to-node"),
    (Hop::FromNode, "from-node"),
    (Hop::ToClient, "to-client"),
    (Hop::ToNodeBeside, "to-node-beside"),
    (Hop::FromNodeBeside, "from-node-beside"),
    (Hop::ToNodeLate, "to-node-late"),
];

/// One step. Clients and nodes count from 0 here and from 1 in scenario files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Client(usize, Act),
    Hop(usize, Hop),
    /// The Fleet acts on what it has heard.
    Decide,
    /// A Link hears which node serves.
    Tell(usize),
    /// So many answers that were under way still get out.
    Crash {
        node: usize,
        kept: usize,
    },
    Start(usize),
    /// It does nothing any more, and nobody knows.
    Stop(usize),
    GoOn(usize),
    /// A node that is silent is found to be, and killed: another one is named.
    Fence(usize),
    /// The fence that a silent node is to be killed by does not work.
    FenceFails(usize),
    /// A node is asked how it is, as it is regularly.
    Probe(usize),
    /// One connection to a node that lives breaks.
    Cut {
        client: usize,
        beside: bool,
        kept: usize,
    },
    /// Somebody between the node and the proxy changes the node's next frame.
    Tamper(usize),
    /// Slow storage answers.
    Storage,
    Wait(u64),
    /// Time passes until somebody's timer is due.
    Tick,
    /// Everything under way arrives, and breaks are acknowledged.
    Settle,
    /// Everything under way arrives.
    Arrive,
    /// A node lets nobody open that name.
    Refuse(usize, String),
    /// The last final answer of a client to such a request had this status.
    Expect(usize, String, u32),
    /// A client's request of that kind is not answered, but for a STATUS_PENDING if `told`.
    Unanswered {
        client: usize,
        command: String,
        told: bool,
    },
    /// So many break notifications have reached a client.
    Breaks(usize, u32),
}

fn letter(slot: u8) -> char {
    char::from(b'A' + slot)
}

fn slot(word: &str) -> Option<u8> {
    word.bytes().next().filter(|b| word.len() == 1 && b.is_ascii_uppercase()).map(|b| b - b'A')
}

fn list(blocks: &[u64]) -> String {
    blocks.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn parse_list(word: &str) -> Option<Vec<u64>> {
    word.split(',').map(|block| block.parse().ok()).collect()
}

impl Act {
    /// As it is written.
    pub fn text(&self) -> String {
        match self {
            Self::Login(user) => format!("login {}", user.name()),
            Self::Create { name, disposition, cache, share, slot, delete, more } => {
                let how = DISPOSITIONS.iter().find(|(_, d)| d == disposition).map_or("?", |(w, _)| w);
                let delete = if *delete { " delete-on-close" } else { "" };
                let more = if *more { " with-more" } else { "" };
                let to = letter(*slot);
                format!(
                    "create {name} {how} as {to} caching {} sharing {share}{delete}{more}",
                    CACHES[*cache].0
                )
            }
            Self::Read { slot, block } => format!("read {} {block}", letter(*slot)),
            Self::Write { slot, block } => format!("write {} {block}", letter(*slot)),
            Self::Append { slot } => format!("append {}", letter(*slot)),
            Self::Flush { slot } => format!("flush {}", letter(*slot)),
            Self::Close { slot } => format!("close {}", letter(*slot)),
            Self::Lock { slot, blocks, exclusive, wait } => {
                let how = if *exclusive { "exclusive" } else { "shared" };
                let wait = if *wait { "wait" } else { "now" };
                format!("lock {} {} {how} {wait}", letter(*slot), list(blocks))
            }
            Self::Unlock { slot, blocks } => format!("unlock {} {}", letter(*slot), list(blocks)),
            Self::Rename { slot } => format!("rename {}", letter(*slot)),
            Self::Link { slot } => format!("link {}", letter(*slot)),
            Self::Delete { slot } => format!("delete {}", letter(*slot)),
            Self::List { slot } => format!("list {}", letter(*slot)),
            Self::Query { slot } => format!("query {}", letter(*slot)),
            Self::Notify { slot } => format!("notify {}", letter(*slot)),
            Self::Fsctl { slot } => format!("fsctl {}", letter(*slot)),
            Self::Cancel => "cancel".into(),
            Self::Echo => "echo".into(),
            Self::Ack => "acknowledge".into(),
            Self::Compound { name, block, writes } => {
                format!("compound create {name} {} {block} close", if *writes { "write" } else { "read" })
            }
            Self::Name { name, change } => {
                let word = CHANGES.iter().find(|(_, c)| c == change).map_or("?", |(w, _)| w);
                format!("compound {word} {name}")
            }
            Self::EvilWrite { slot } => format!("tampered-write {}", letter(*slot)),
            Self::EvilCreate => "tampered-create".into(),
            Self::LogOff => "logoff".into(),
            Self::Leave => "leave".into(),
        }
    }

    fn parse(words: &[&str]) -> Option<Self> {
        Some(match words {
            ["login", user] => Self::Login(User::ALL.into_iter().find(|u| u.name() == *user)?),
            ["create", name, how, "as", to, "caching", cache, "sharing", share, rest @ ..] => Self::Create {
                name: (*name).into(),
                disposition: DISPOSITIONS.iter().find(|(w, _)| w == how)?.1,
                cache: CACHES.iter().position(|(w, ..)| w == cache)?,
                share: share.parse().ok()?,
                slot: slot(to)?,
                delete: rest.contains(&"delete-on-close"),
                more: rest.contains(&"with-more"),
            },
            ["read", s, block] => Self::Read { slot: slot(s)?, block: block.parse().ok()? },
            ["write", s, block] => Self::Write { slot: slot(s)?, block: block.parse().ok()? },
            ["append", s] => Self::Append { slot: slot(s)? },
            ["flush", s] => Self::Flush { slot: slot(s)? },
            ["close", s] => Self::Close { slot: slot(s)? },
            ["lock", s, blocks, how, wait] => Self::Lock {
                slot: slot(s)?,
                blocks: parse_list(blocks)?,
                exclusive: *how == "exclusive",
                wait: *wait == "wait",
            },
            ["unlock", s, blocks] => Self::Unlock { slot: slot(s)?, blocks: parse_list(blocks)? },
            ["rename", s] => Self::Rename { slot: slot(s)? },
            ["link", s] => Self::Link { slot: slot(s)? },
            ["delete", s] => Self::Delete { slot: slot(s)? },
            ["list", s] => Self::List { slot: slot(s)? },
            ["query", s] => Self::Query { slot: slot(s)? },
            ["notify", s] => Self::Notify { slot: slot(s)? },
            ["fsctl", s] => Self::Fsctl { slot: slot(s)? },
            ["cancel"] => Self::Cancel,
            ["echo"] => Self::Echo,
            ["acknowledge"] => Self::Ack,
            ["compound", "create", name, what, block, "close"] => {
                Self::Compound { name: (*name).into(), block: block.parse().ok()?, writes: *what == "write" }
            }
            ["compound", word, name] => {
                let change = CHANGES.iter().find(|(w, _)| w == word)?.1;
                Self::Name { name: (*name).into(), change }
            }
            ["tampered-write", s] => Self::EvilWrite { slot: slot(s)? },
            ["tampered-create"] => Self::EvilCreate,
            ["logoff"] => Self::LogOff,
            ["leave"] => Self::Leave,
            _ => return None,
        })
    }
}

impl Step {
    /// As it is written.
    pub fn text(&self) -> String {
        match self {
            Self::Client(at, act) => format!("client {}: {}", at + 1, act.text()),
            Self::Hop(at, hop) => {
                let word = HOPS.iter().find(|(h, _)| h == hop).map_or("?", |(_, w)| w);
                format!("client {} frame {word}", at + 1)
            }
            Self::Decide => "fleet decides".into(),
            Self::Tell(at) => format!("client {} link is told", at + 1),
            Self::Crash { node, kept } => format!("node {} crashes after {kept} answers", node + 1),
            Self::Start(node) => format!("node {} starts", node + 1),
            Self::Stop(node) => format!("node {} stops", node + 1),
            Self::GoOn(node) => format!("node {} goes on", node + 1),
            Self::Fence(node) => format!("node {} is fenced", node + 1),
            Self::FenceFails(node) => format!("node {} cannot be fenced", node + 1),
            Self::Probe(node) => format!("node {} is probed", node + 1),
            Self::Cut { client, beside, kept } => {
                let which = if *beside { "beside" } else { "main" };
                format!("client {} leg {which} breaks after {kept} answers", client + 1)
            }
            Self::Tamper(at) => format!("client {} answer is tampered with", at + 1),
            Self::Storage => "storage answers".into(),
            Self::Wait(ms) => format!("{ms} ms pass"),
            Self::Tick => "timer".into(),
            Self::Settle => "settle".into(),
            Self::Arrive => "everything arrives".into(),
            Self::Refuse(node, name) => format!("node {} refuses {name}", node + 1),
            Self::Expect(at, command, status) => format!("client {} expects {command} {status:08x}", at + 1),
            Self::Unanswered { client, command, told } => {
                let told = if *told { ", and is told so" } else { "" };
                format!("client {} waits for {command}{told}", client + 1)
            }
            Self::Breaks(at, count) => format!("client {} has heard of {count} breaks", at + 1),
        }
    }

    /// Reads one.
    pub fn parse(words: &[&str]) -> Option<Self> {
        let number = |word: &str| word.trim_end_matches(':').parse::<usize>().ok()?.checked_sub(1);
        Some(match words {
            ["client", at, "frame", hop] => Self::Hop(number(at)?, HOPS.iter().find(|(_, w)| w == hop)?.0),
            ["client", at, "answer", "is", "tampered", "with"] => Self::Tamper(number(at)?),
            ["client", at, "link", "is", "told"] => Self::Tell(number(at)?),
            ["client", at, "leg", which, "breaks", "after", kept, "answers"] => {
                Self::Cut { client: number(at)?, beside: *which == "beside", kept: kept.parse().ok()? }
            }
            ["client", at, "expects", command, status] => {
                Self::Expect(number(at)?, (*command).into(), u32::from_str_radix(status, 16).ok()?)
            }
            ["client", at, "waits", "for", command, told @ ..] => Self::Unanswered {
                client: number(at)?,
                command: command.trim_end_matches(',').into(),
                told: told == ["and", "is", "told", "so"],
            },
            ["client", at, "has", "heard", "of", count, "breaks"] => {
                Self::Breaks(number(at)?, count.parse().ok()?)
            }
            ["node", at, "refuses", name] => Self::Refuse(number(at)?, (*name).into()),
            ["client", at, act @ ..] => Self::Client(number(at)?, Act::parse(act)?),
            ["fleet", "decides"] => Self::Decide,
            ["node", at, "crashes", "after", kept, "answers"] => {
                Self::Crash { node: number(at)?, kept: kept.parse().ok()? }
            }
            ["node", at, "starts"] => Self::Start(number(at)?),
            ["node", at, "stops"] => Self::Stop(number(at)?),
            ["node", at, "goes", "on"] => Self::GoOn(number(at)?),
            ["node", at, "is", "fenced"] => Self::Fence(number(at)?),
            ["node", at, "cannot", "be", "fenced"] => Self::FenceFails(number(at)?),
            ["node", at, "is", "probed"] => Self::Probe(number(at)?),
            ["storage", "answers"] => Self::Storage,
            [ms, "ms", "pass"] => Self::Wait(ms.parse().ok()?),
            ["timer"] => Self::Tick,
            ["settle"] => Self::Settle,
            ["everything", "arrives"] => Self::Arrive,
            _ => return None,
        })
    }
}
