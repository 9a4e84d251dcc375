//! Clients, Links, nodes and the wires between them, on virtual time. One [`Step`](crate::plan::Step) at a time.

mod checks;
mod deeds;
mod faults;
mod fleet;
mod legs;
mod links;
mod settle;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use smb_parse::{frame::PREFIX, header::Header};
use understudy_core::{
    effect::CloseReason,
    files::Files,
    ids::{LegId, LinkId, OpenToken},
    link::{Link, LinkConfig},
};

use self::legs::{Straggler, Wire};
use crate::{
    chance::Chance,
    client::Client,
    coverage::Coverage,
    disk::{Disk, START},
    node::{Out, Server},
    oracle::{Oracle, Violation},
    plan::{Hop, Step},
    setup::Setup,
    users::Known,
};

/// Names that are in the directory from the beginning to the end.
pub const STATIC_NAMES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];
/// Names that come and go.
pub const PASSING_NAMES: [&str; 2] = ["d0", "d1"];
/// Files that everybody uses.
pub const SHARED_NAMES: [&str; 2] = ["f0", "f1"];

/// A client, its Link, and what is under way between them.
pub struct Pair {
    /// The client.
    pub client: Client,
    /// Its Link.
    pub link: Link,
    to_proxy: VecDeque<Vec<u8>>,
    /// With whether the proxy has made it, else it is the node's own; and when it was sent.
    to_client: VecDeque<(Bytes, bool, Instant)>,
    wires: BTreeMap<LegId, Wire>,
    stragglers: VecDeque<Straggler>,
    /// The leg that serves the client, as the Link has it.
    main: Option<LegId>,
    /// Where its takeover stands.
    stage: Option<&'static str>,
    /// The generation that the Link was told.
    told: u64,
    files_seen: u64,
    /// How long the client has not heard, or not acknowledged, what may be a break.
    owes: Duration,
    /// So many of the frames on their way to it were sent so long ago: what they grant is over with what they break.
    late: usize,
    /// It is told of every change of Files.
    waits: bool,
    tokens: BTreeMap<OpenToken, u64>,
    /// When it was heard of last that what it has is lost: how many steps had been taken.
    lost: u64,
    /// The Opens whose files the Link holds for its client.
    held: BTreeSet<OpenToken>,
    /// The files that the answers which have just arrived say were opened.
    opened: VecDeque<u64>,
    /// Ids of that node up to that number may reach the client.
    relay: Option<(u64, u64)>,
    closed: Option<CloseReason>,
    /// It has heard that the client is gone.
    left: bool,
    /// Requests in flight when a node was lost: MessageId, command, deaths.
    in_flight: BTreeMap<u64, u32>,
    /// The kinds, as the replay table has them, of those that were sent again.
    sent_again: BTreeSet<&'static str>,
}

impl Pair {
    /// How many of the frames on their way to the client come with or before a break that was sent by then.
    fn before_a_break(&self, until: Instant) -> usize {
        let breaks = |(frame, _, at): &(Bytes, bool, Instant)| {
            let body = frame.get(PREFIX..).unwrap_or_default();
            *at <= until && Header::parse(body).is_ok_and(|header| header.message_id == u64::MAX)
        };
        self.to_client.iter().rposition(breaks).map_or(0, |at| at + 1)
    }

    /// Whether nothing is on its way to the client, nor waits for the store before it is.
    fn has_heard_all(&self) -> bool {
        self.to_client.is_empty() && !self.link.waits_for_store()
    }
}

/// Everything.
pub struct World {
    setup: Setup,
    pub(crate) now: Instant,
    start: Instant,
    /// Clients and Links.
    pub pairs: Vec<Pair>,
    pub(crate) nodes: Vec<Server>,
    up: Vec<bool>,
    stopped: Vec<bool>,
    disk: Disk,
    files: Files,
    store: store::Store,
    oracle: Oracle,
    placement: fleet::Placement,
    order: checks::Order,
    next_conn: u64,
    /// What was hit.
    pub coverage: Coverage,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
    /// The ladder, if it is kept.
    pub story: Vec<String>,
    /// Steps taken, those of settling included.
    pub steps: u64,
}

impl World {
    /// All nodes are up, the first serves, and every client has said NEGOTIATE.
    pub fn new(setup: &Setup) -> Self {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let mut disk = Disk::default();
        for name in SHARED_NAMES.iter().chain(&STATIC_NAMES) {
            let number = disk.create(name);
            if let Some(file) = disk.files.get_mut(&number) {
                file.padded = true;
            }
        }
        disk.now = START;
        let config = Arc::new(LinkConfig {
            side_channel: setup.side,
            persist: true,
            nodes: (0..setup.nodes).map(|node| format!("node {node}")).collect(),
            ..LinkConfig::default()
        });
        let pair = |at: usize| {
            let mut client = Client::new(at, setup);
            let first = client.greet();
            let known = Arc::new(Known { by_nodes: false });
            let id = LinkId(at as u64 + 1);
            let random = Box::new(Chance::new(setup.seed ^ (at as u64 + 1)));
            Pair {
                client,
                link: Link::new(id, Arc::clone(&config), known, random, now),
                to_proxy: VecDeque::from([first]),
                to_client: VecDeque::new(),
                wires: BTreeMap::new(),
                stragglers: VecDeque::new(),
                main: None,
                stage: None,
                told: 0,
                files_seen: 0,
                owes: Duration::ZERO,
                late: 0,
                waits: false,
                tokens: BTreeMap::new(),
                lost: 0,
                held: BTreeSet::new(),
                opened: VecDeque::new(),
                relay: None,
                closed: None,
                left: false,
                in_flight: BTreeMap::new(),
                sent_again: BTreeSet::new(),
            }
        };
        let mut world = Self {
            setup: setup.clone(),
            now,
            start: now,
            pairs: (0..setup.clients.len()).map(pair).collect(),
            nodes: (0..setup.nodes).map(|id| Server::new(id, setup)).collect(),
            up: vec![true; setup.nodes],
            stopped: vec![false; setup.nodes],
            disk,
            files: Files::default(),
            store: store::Store::default(),
            oracle: Oracle::default(),
            placement: fleet::Placement::new(setup.nodes, now),
            order: checks::Order::new(),
            next_conn: 0,
            coverage: Coverage::default(),
            violation: None,
            story: Vec::new(),
            steps: 0,
        };
        world.drain_fleet();
        world.decide();
        world
    }

    /// Takes one step. False if it is not possible now.
    pub fn step(&mut self, step: &Step) -> bool {
        if self.violation.is_some() {
            return false;
        }
        self.steps += 1;
        if self.setup.trace && !matches!(step, Step::Hop(..)) {
            self.tell(format!("* {}", step.text()));
        }
        let done = match step {
            Step::Client(at, act) => self.client_acts(*at, act),
            Step::Hop(at, hop) => self.hop(*at, *hop),
            Step::Decide => self.decide(),
            Step::Tell(at) => self.tell_link(*at),
            Step::Crash { node, kept } => self.crash(*node, *kept),
            Step::Start(node) => self.start_node(*node),
            Step::Stop(node) => self.stop_node(*node, true),
            Step::GoOn(node) => self.stop_node(*node, false),
            Step::Fence(node) => self.fence(*node),
            Step::FenceFails(node) => self.fenced(*node, false),
            Step::Probe(node) => self.probe(*node),
            Step::Cut { client, beside, kept } => self.cut(*client, *beside, *kept),
            Step::Tamper(at) => self.tamper(*at),
            Step::Storage => self.storage_answers(),
            Step::Wait(ms) => self.wait(Duration::from_millis(*ms)),
            Step::Tick => self.tick(),
            Step::Settle => {
                self.settle(true);
                true
            }
            Step::Arrive => {
                self.settle(false);
                true
            }
            Step::Refuse(node, name) => {
                self.nodes.get_mut(*node).is_some_and(|node| node.refused.insert(name.clone()))
            }
            Step::Expect(at, command, status) => self.expect(*at, command, *status),
            Step::Unanswered { client, command, told } => self.expect_unanswered(*client, command, *told),
            Step::Breaks(at, count) => self.expect_breaks(*at, *count),
        };
        if self.steps.is_multiple_of(self.setup.store_every) {
            self.store_answers();
        }
        self.look_at_links();
        self.check();
        done
    }

    fn expect(&mut self, at: usize, command: &str, status: u32) -> bool {
        let found = self.pairs.get(at).and_then(|p| p.client.last.get(command).copied());
        if found != Some(status) {
            let found = found.map_or("nothing".into(), |s| format!("{s:08x}"));
            self.fail(Violation::new("expectation", format!("client {}: {command}: {found}", at + 1)));
        }
        true
    }

    fn expect_unanswered(&mut self, at: usize, command: &str, told: bool) -> bool {
        let asked = self.pairs.get(at).and_then(|p| p.client.unanswered(command));
        if asked != Some(told) {
            let found = match asked {
                None => "is answered",
                Some(true) => "waits, and the client is told",
                Some(false) => "waits, and the client is not told",
            };
            self.fail(Violation::new("expectation", format!("client {}: {command} {found}", at + 1)));
        }
        true
    }

    fn expect_breaks(&mut self, at: usize, count: u32) -> bool {
        let heard = self.pairs.get(at).map_or(0, |p| p.client.breaks);
        if heard != count {
            self.fail(Violation::new("expectation", format!("client {}: {heard} breaks", at + 1)));
        }
        true
    }

    pub(crate) fn fail(&mut self, violation: Violation) {
        if let Some(known) = violation.known.filter(|_| !self.setup.strict) {
            self.coverage.count(format!("known: {}", known.label()));
            return self.tell(format!("~ {}: {}", known.label(), violation.text));
        }
        self.tell(format!("! {violation}"));
        self.violation.get_or_insert(violation);
    }

    fn tell(&mut self, line: String) {
        if self.setup.trace {
            let at = self.now.duration_since(self.start);
            self.story.push(format!("{:>9.3} {line}", at.as_secs_f64()));
        }
    }

    fn client_acts(&mut self, at: usize, act: &crate::plan::Act) -> bool {
        let Some(pair) = self.pairs.get_mut(at).filter(|p| p.client.alive) else { return false };
        if *act == crate::plan::Act::Leave {
            pair.client.close();
            return true;
        }
        let frame = pair.client.act(act, &mut self.oracle);
        let done = frame.is_some();
        pair.to_proxy.extend(frame);
        done
    }

    fn hop(&mut self, at: usize, hop: Hop) -> bool {
        // No two frames arrive at one instant.
        self.now += Duration::from_nanos(100);
        self.disk.now += 1;
        if at >= self.pairs.len() {
            return false;
        }
        match hop {
            Hop::ToProxy => self.carry_to_proxy(at),
            Hop::ToClient => self.carry_to_client(at),
            Hop::ToNode => self.carry_to_node(at, false),
            Hop::ToNodeBeside => self.carry_to_node(at, true),
            Hop::ToNodeLate => self.carry_straggler(at),
            Hop::FromNode => self.carry_from_node(at, false),
            Hop::FromNodeBeside => self.carry_from_node(at, true),
        }
    }

    /// Whether a hop has something to carry.
    pub fn has(&self, at: usize, hop: Hop) -> bool {
        let Some(pair) = self.pairs.get(at) else { return false };
        match hop {
            Hop::ToProxy => {
                pair.closed.is_none()
                    && (!pair.client.alive || !pair.to_proxy.is_empty() && pair.link.wants_client_frames())
                    && !pair.left
            }
            Hop::ToClient => !pair.to_client.is_empty() || pair.closed.is_some() && pair.client.alive,
            Hop::ToNode => self.wire(at, false, true).is_some(),
            Hop::ToNodeBeside => self.wire(at, true, true).is_some(),
            Hop::ToNodeLate => self.has_straggler(at),
            Hop::FromNode => self.wire(at, false, false).is_some(),
            Hop::FromNodeBeside => self.wire(at, true, false).is_some(),
        }
    }

    fn carry_to_proxy(&mut self, at: usize) -> bool {
        if !self.has(at, Hop::ToProxy) {
            return false;
        }
        let version = self.files.version();
        let pair = &mut self.pairs[at];
        let Some(frame) = pair.to_proxy.pop_front() else {
            pair.left = true;
            pair.link.handle_client_closed(self.now);
            self.drain(at);
            return true;
        };
        if pair.files_seen != version {
            pair.files_seen = version;
            pair.link.handle_files(self.now, &self.files);
            self.drain(at);
        }
        self.tell(format!("client {} -> proxy         {}", at + 1, crate::story::describe(&frame)));
        self.pairs[at].link.handle_client_frame(self.now, BytesMut::from(&frame[..]));
        self.drain(at);
        true
    }

    fn carry_to_client(&mut self, at: usize) -> bool {
        let pair = &mut self.pairs[at];
        let Some((frame, own, _)) = pair.to_client.pop_front() else {
            if pair.closed.is_some() && pair.client.alive {
                pair.client.close();
                return true;
            }
            return false;
        };
        if !pair.client.alive {
            return true;
        }
        self.tell(format!("proxy -> client {}         {}", at + 1, crate::story::describe(&frame)));
        let pair = &mut self.pairs[at];
        let relay = pair.relay;
        let foreign =
            |id: u64| relay.is_none_or(|(mark, limit)| id & !0xffff_ffff != mark || id & 0xffff_ffff > limit);
        let result = pair.client.hear(&frame, own, &foreign, &mut self.oracle);
        for (command, id, status) in std::mem::take(&mut pair.client.answers) {
            if let Some(deaths) = pair.in_flight.remove(&id) {
                self.coverage.replayed(command, deaths, status);
            }
        }
        if pair.late > 0 {
            pair.late -= 1;
            pair.client.be_late();
        }
        match result {
            Ok(frames) => pair.to_proxy.extend(frames),
            Err(violation) => self.fail(violation),
        }
        true
    }

    /// What nodes did.
    fn take_outs(&mut self, outs: Vec<Out>) {
        for out in outs {
            match out {
                Out::Frame(conn, frame, created) => self.arrive(conn, frame, created),
                Out::Close(conn) => self.node_closes(conn),
                Out::Deed(conn, mark, deed) => self.deed(conn, &mark, deed),
                Out::Offence(violation) => self.fail(violation),
                Out::NameChanged => self.oracle.names += 1,
                Out::Note(line) => self.tell(line),
            }
        }
    }
}
