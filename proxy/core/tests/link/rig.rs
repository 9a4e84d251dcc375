//! A client, a Link and two nodes on virtual time. The client checks what it gets as a real one would.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::{create, negotiate, session_setup},
    compound::elements,
    encode::{self, CreateParams, NegotiateParams, SessionSetupParams},
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status, Target},
    transform,
};
use understudy_core::{
    auth::{Credentials, Identity, Kind, Login, UnixTime, keys::NtHash},
    crypto::{
        Dialect, kdf,
        preauth::Preauth,
        sealing::{Cipher, HEADROOM, Nonces},
        signing::SigningKey,
    },
    effect::{CloseReason, Effect, Leg, Mutation, Role},
    event::{Cause, Event, FileEvent, LegLoss, SessionLoss, SideChannelNews, Succession, TakeoverReport},
    files::{Birth, FileIdentity, Files, Name},
    fleet::Assignment,
    ids::{LegId, LinkId, NodeId, OpenToken, StoreToken},
    link::{Link, LinkConfig},
    random::Random,
};

use crate::node::{Disk, ENCRYPTION, Habits, Node, Seals, seal, signing_alg};

/// What the client says of itself in NEGOTIATE.
pub(crate) const CLIENT_GUID: [u8; 16] = [5; 16];
/// `SMB2_GLOBAL_CAP_LARGE_MTU`.
pub(crate) const CLIENT_CAPABILITIES: u32 = 0x4;

/// Who is known, with a hash made of one byte.
#[derive(Clone, Default)]
pub(crate) struct Users(pub(crate) BTreeMap<String, u8>);

impl Credentials for Users {
    fn nt_hash(&self, _domain: &str, user: &str) -> Option<NtHash> {
        self.0.get(user).map(|byte| NtHash::new([*byte; 16]))
    }

    fn configured(&self) -> bool {
        true
    }

    fn now(&self) -> UnixTime {
        UnixTime::default()
    }
}

/// Bytes that do not repeat soon.
pub(crate) struct Counting(u64);

impl From<u64> for Counting {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random for Counting {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

/// A session as the client has it.
#[derive(Clone)]
pub(crate) struct ClientSession {
    pub(crate) id: u64,
    pub(crate) tree: u32,
    pub(crate) key: Option<Rc<SigningKey>>,
    pub(crate) seals: Option<Rc<Seals>>,
}

/// A login of the client under way.
pub(crate) struct Exchange {
    pub(crate) login: Login,
    keyed: bool,
    pub(crate) preauth: Preauth,
    /// The security buffer to send next.
    pub(crate) token: Vec<u8>,
    pub(crate) id: u64,
    pub(crate) previous: u64,
}

impl Exchange {
    /// Whether this is a challenge that the client goes on with.
    pub(crate) fn is_answerable(&self, token: &[u8]) -> bool {
        let identity =
            Identity { user: "a".into(), domain: "b".into(), workstation: "c".into(), kind: Kind::Ntlm };
        let mut trial = Login::ntlm(&identity, Some(NtHash::new([0; 16])), true);
        trial.start(&mut Counting(1)).is_ok() && trial.step(token, &mut Counting(1)).is_ok()
    }
}

/// Everything.
pub(crate) struct Rig {
    pub(crate) link: Link,
    pub(crate) now: Instant,
    pub(crate) disk: Disk,
    pub(crate) nodes: Vec<Node>,
    /// Who can be dialled.
    pub(crate) up: Vec<bool>,
    /// The node that is dialled next is as it was.
    pub(crate) stays: bool,
    pub(crate) leg: Option<(LegId, usize)>,
    /// Connections beside the main one: which, to which node, and what is at its end. Also those that are over.
    pub(crate) beside: Vec<(LegId, usize, Node)>,
    /// Those of them that stand.
    pub(crate) open_beside: BTreeSet<LegId>,
    /// How nodes are on such connections.
    pub(crate) beside_habits: Habits,
    /// The leg of a side channel.
    pub(crate) side: Option<(LegId, usize)>,
    /// The legs that the Link closed, in order.
    pub(crate) given_up: Vec<LegId>,
    pub(crate) side_news: Vec<SideChannelNews>,
    pub(crate) stuck: bool,
    /// One bit is flipped on its way: in an answer of the connections beside, or of the main one; in which of them, at
    /// which byte. `None` once it is done.
    pub(crate) tamper: Option<(bool, usize, usize)>,
    /// Answers since then: of the main connection, of those beside.
    answers: [usize; 2],
    pub(crate) files: Rc<RefCell<Files>>,
    id: LinkId,
    generation: u64,
    users: Users,
    preauth: Preauth,
    next: u64,
    pub(crate) sessions: Vec<ClientSession>,
    /// Messages for the client that no scenario has looked at.
    pub(crate) inbox: Vec<Vec<u8>>,
    /// What the client sent and what the node got, and the other way: frames as they were.
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) closed: Option<CloseReason>,
    /// What the Link wants stored, in order.
    pub(crate) stored: Vec<Mutation>,
    /// The store does not answer; the last that it was asked.
    pub(crate) store_waits: bool,
    pub(crate) unstored: Option<StoreToken>,
    pub(crate) client_guid: [u8; 16],
    pub(crate) takeovers: Vec<TakeoverReport>,
    /// Why sessions were lost.
    pub(crate) losses: Vec<SessionLoss>,
    pub(crate) refused: usize,
    /// The cipher that the client offers.
    pub(crate) cipher: Option<Cipher>,
    /// The client seals what it says in a session that has keys for it.
    pub(crate) seals: bool,
    nonces: Nonces,
    /// The nonces under which the client was told something: none may come twice.
    heard: BTreeSet<[u8; 16]>,
    /// MessageIds of sealed requests: their answers are to be sealed, too.
    sealed: BTreeSet<u64>,
    pub(crate) successions: Vec<Succession>,
    /// The dialect that the client asks for.
    pub(crate) dialect: Dialect,
    /// The ServerGuid that the client was told.
    pub(crate) server_guid: [u8; 16],
    /// The node that is named when the present one has died of its first frame.
    pub(crate) later_node: Option<u16>,
    /// Why the other node is named while NEGOTIATE is not answered.
    pub(crate) moves: Option<Cause>,
    /// How long the client waits for the node, which is then named again.
    pub(crate) patience: Option<Duration>,
    finals: BTreeSet<u64>,
    interims: BTreeSet<u64>,
    asked: u32,
    credits: u32,
}

impl Rig {
    /// A client and its Link; the first node serves.
    pub(crate) fn new() -> Self {
        Self::with(LinkId(1), Self::known_to_the_proxy(), &Disk::default(), &Rc::default())
    }

    fn known_to_the_proxy() -> Users {
        Users([("alice".to_owned(), 3), ("bob".to_owned(), 4)].into())
    }

    /// The same with other knobs.
    pub(crate) fn configured(config: LinkConfig) -> Self {
        let mut rig = Self::new();
        let (users, random) = (Arc::new(Self::known_to_the_proxy()), Box::new(Counting(1)));
        rig.link = Link::new(LinkId(1), Arc::new(config), users, random, rig.now);
        rig.assign(0);
        rig
    }

    /// The same with a disk and Files that others use too. `users` is what the proxy knows; the nodes know more.
    pub(crate) fn with(id: LinkId, users: Users, disk: &Disk, files: &Rc<RefCell<Files>>) -> Self {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let known = Users([("alice".to_owned(), 3), ("bob".to_owned(), 4), ("mallory".to_owned(), 5)].into());
        let nodes = ["a", "b"].map(str::to_owned).into_iter().collect();
        let config = Arc::new(LinkConfig { persist: true, nodes, ..LinkConfig::default() });
        let mut rig = Self {
            link: Link::new(id, config, Arc::new(users.clone()), Box::new(Counting(id.0)), now),
            now,
            disk: Rc::clone(disk),
            nodes: (1..3).map(|n| Node::new(n * 0x1000 + id.0 * 0x100, disk, &known)).collect(),
            up: vec![true, true],
            stays: false,
            leg: None,
            beside: Vec::new(),
            open_beside: BTreeSet::new(),
            beside_habits: Habits::default(),
            side: None,
            given_up: Vec::new(),
            side_news: Vec::new(),
            stuck: false,
            tamper: None,
            answers: [0; 2],
            files: Rc::clone(files),
            id,
            generation: 0,
            users: known,
            preauth: Preauth::new(),
            next: 0,
            sessions: Vec::new(),
            inbox: Vec::new(),
            sent: Vec::new(),
            delivered: Vec::new(),
            closed: None,
            stored: Vec::new(),
            store_waits: false,
            unstored: None,
            client_guid: CLIENT_GUID,
            takeovers: Vec::new(),
            losses: Vec::new(),
            refused: 0,
            cipher: None,
            seals: false,
            nonces: Nonces::default(),
            heard: BTreeSet::new(),
            sealed: BTreeSet::new(),
            successions: Vec::new(),
            dialect: Dialect::SMB311,
            server_guid: [0; 16],
            later_node: None,
            moves: None,
            patience: None,
            finals: BTreeSet::new(),
            interims: BTreeSet::new(),
            asked: 0,
            credits: 1,
        };
        rig.assign(0);
        rig
    }

    /// The Fleet names a node.
    pub(crate) fn assign(&mut self, node: u16) {
        self.assign_for(node, Cause::Crash);
    }

    /// The same, for this cause.
    pub(crate) fn assign_for(&mut self, node: u16, cause: Cause) {
        self.generation += 1;
        let assignment =
            Assignment { generation: self.generation, epoch: self.generation, node: NodeId(node) };
        self.link.handle_assignment(self.now, assignment, cause);
        self.pump();
    }

    /// Time passes; timers that are due act.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        while self.link.poll_timeout().is_some_and(|(at, _)| at <= self.now) && self.closed.is_none() {
            self.link.handle_timeout(self.now);
            self.pump();
        }
    }

    /// The node that serves dies, and with it all it had not written to disk.
    pub(crate) fn crash(&mut self) {
        let (leg, node) = self.leg.take().expect("a node serves");
        self.up[node] = false;
        self.side = None;
        self.link.handle_leg_lost(self.now, leg, LegLoss::Closed);
        self.pump();
        self.lose_beside();
    }

    /// The main connection breaks; its node lives, and is named again.
    pub(crate) fn cut(&mut self) {
        let (leg, node) = self.leg.take().expect("a node serves");
        self.stays = true;
        self.link.handle_leg_lost(self.now, leg, LegLoss::Closed);
        self.pump();
        self.assign(u16::try_from(node).unwrap());
    }

    /// Every connection beside the main one breaks.
    pub(crate) fn lose_beside(&mut self) {
        for leg in std::mem::take(&mut self.open_beside) {
            self.link.handle_leg_lost(self.now, leg, LegLoss::Closed);
        }
        self.pump();
    }

    /// The node dies, the other one serves.
    pub(crate) fn fail_over(&mut self) {
        let other = 1 - self.leg.expect("a node serves").1;
        self.crash();
        self.assign(u16::try_from(other).unwrap());
    }

    /// Does what the Link wants until it wants nothing.
    pub(crate) fn pump(&mut self) {
        let mut shown = false;
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.link.poll_transmit() {
                quiet = false;
                match transmit.to {
                    Leg::Client => self.receive(&transmit.frame),
                    Leg::Node(to) => self.hand_to_node(to, &transmit.frame),
                }
            }
            while let Some(event) = self.link.poll_event() {
                quiet = false;
                self.event(event);
            }
            while let Some(effect) = self.link.poll_effect() {
                quiet = false;
                self.effect(effect);
            }
            if quiet && (shown || !self.link.wants_files()) {
                return;
            }
            if quiet {
                self.show_files();
            }
            shown = quiet;
        }
    }

    /// The Link sees Files as they are.
    pub(crate) fn show_files(&mut self) {
        let files = Rc::clone(&self.files);
        self.link.handle_files(self.now, &files.borrow());
    }

    fn hand_to_node(&mut self, to: LegId, frame: &[u8]) {
        if let Some((_, node)) = self.side.filter(|(leg, _)| *leg == to) {
            for answer in self.nodes[node].handle_aside(frame) {
                self.link.handle_node_frame(self.now, to, BytesMut::from(&answer[..]));
            }
            return;
        }
        if self.open_beside.contains(&to) {
            let (_, _, node) = self.beside.iter_mut().find(|(leg, ..)| *leg == to).unwrap();
            for answer in node.handle(frame) {
                let answer = self.on_its_way(true, answer);
                self.link.handle_node_frame(self.now, to, BytesMut::from(&answer[..]));
            }
            return;
        }
        let Some((_, node)) = self.leg.filter(|(leg, _)| *leg == to) else { return };
        self.sent.push(frame.to_vec());
        for answer in self.nodes[node].handle(frame) {
            let answer = self.on_its_way(false, answer);
            self.delivered.push(answer.clone());
            self.link.handle_node_frame(self.now, to, BytesMut::from(&answer[..]));
        }
    }

    /// An answer as it arrives.
    fn on_its_way(&mut self, beside: bool, mut answer: Vec<u8>) -> Vec<u8> {
        if let Some((which, number, at)) = self.tamper {
            let count = &mut self.answers[usize::from(beside)];
            if (which, number) == (beside, *count)
                && let Some(byte) = answer.get_mut(PREFIX + at)
            {
                *byte ^= 1;
                self.tamper = None;
            }
            *count += 1;
        }
        answer
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::File(event) => {
                let moved = {
                    let mut files = self.files.borrow_mut();
                    files.handle(self.now, self.id, event);
                    std::iter::from_fn(|| files.poll_moved()).collect::<Vec<_>>()
                };
                for (_, open, path) in moved.into_iter().filter(|(link, ..)| *link == self.id) {
                    self.link.handle_moved(self.now, open, path);
                }
            }
            Event::Takeover(report) => self.takeovers.push(*report),
            Event::SignatureRefused => self.refused += 1,
            Event::SessionLost { loss, .. } => self.losses.push(loss),
            Event::SideChannel(news) => self.side_news.push(news),
            Event::Stuck(stuck) => {
                assert_ne!(self.stuck, stuck, "said twice");
                self.stuck = stuck;
            }
            Event::Succession(succession) => self.successions.push(succession),
            _ => {}
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { leg, node, role: Role::Auxiliary } => {
                let at = usize::from(node.0);
                if self.link.mode() == "relay" {
                    assert!(self.side.is_none(), "two side channels");
                    self.nodes[at].connect_aside();
                    self.side = Some((leg, at));
                    self.link.handle_connected(self.now, leg);
                } else if self.up[at] {
                    let mut node = Node::new(0x100_0000 * leg.0, &self.disk, &self.users);
                    node.habits = self.beside_habits.clone();
                    self.beside.push((leg, at, node));
                    self.open_beside.insert(leg);
                    self.link.handle_connected(self.now, leg);
                } else {
                    self.link.handle_leg_lost(self.now, leg, LegLoss::Refused);
                }
            }
            Effect::Connect { leg, node, role: Role::Main } => {
                let node = usize::from(node.0);
                if self.up[node] {
                    if !self.nodes[node].seen.is_empty() {
                        let base = 0x1_0000 * leg.0;
                        let (kept, habits) =
                            (self.nodes[node].disconnected(), self.nodes[node].habits.clone());
                        self.nodes[node] = Node::new(base, &self.disk, &self.users);
                        self.nodes[node].kept = kept;
                        if std::mem::take(&mut self.stays) {
                            self.nodes[node].habits = habits;
                        }
                    }
                    self.leg = Some((leg, node));
                    self.link.handle_connected(self.now, leg);
                } else {
                    self.link.handle_leg_lost(self.now, leg, LegLoss::Refused);
                }
            }
            Effect::CloseLeg { leg, .. } => {
                self.open_beside.remove(&leg);
                self.leg = self.leg.filter(|(open, _)| *open != leg);
                self.side = self.side.filter(|(open, _)| *open != leg);
                self.given_up.push(leg);
            }
            Effect::Store { token, mutation } => {
                self.stored.push(mutation);
                if self.store_waits {
                    self.unstored = Some(token);
                } else {
                    self.link.handle_stored(self.now, token);
                }
            }
            Effect::CloseClient { reason, .. } => self.closed = Some(reason),
        }
    }

    /// The client takes a frame in: one final answer and at most one interim each, rightly signed, credits kept.
    fn receive(&mut self, frame: &[u8]) {
        let body = &frame[PREFIX..];
        let opened = (protocol(body) == Protocol::Transform).then(|| {
            let header = transform::Header::parse(body).unwrap();
            assert!(self.heard.insert(header.nonce), "a nonce was used twice");
            let session = self.sessions.iter().find(|s| s.id == header.session_id).expect("a session");
            let keys = session.seals.as_ref().expect("a session that seals");
            keys.to_client.open(body).expect("sealed wrongly").split_off(HEADROOM)
        });
        for element in elements(opened.as_deref().unwrap_or(body)) {
            let element = element.expect("whole messages");
            let header = element.header;
            assert!(header.is_response());
            let sealed = self.sealed.contains(&header.message_id);
            // Whoever has ended a session may have no key of it any more.
            let keyless = opened.is_none() && header.status == Status::USER_SESSION_DELETED.0;
            assert!(sealed == opened.is_some() || keyless, "{} is covered otherwise", header.command.name());
            assert!(!sealed || !header.flags.contains(Flags::SIGNED), "sealed and signed");
            self.credits += u32::from(header.credits);
            if header.message_id != u64::MAX {
                let interim = header.status == Status::PENDING.0;
                let fresh =
                    if interim { &mut self.interims } else { &mut self.finals }.insert(header.message_id);
                assert!(fresh, "MessageId {} was answered twice", header.message_id);
                assert!(header.message_id < self.next, "an answer to nothing");
                assert!(!interim || !self.finals.contains(&header.message_id), "an interim after the final");
            }
            let known = self.sessions.iter().find(|s| s.id == header.session_id);
            if header.flags.contains(Flags::SIGNED)
                && Status(header.status) != Status::USER_SESSION_DELETED
                && let Some(key) = known.and_then(|s| s.key.as_ref())
            {
                assert!(key.verify_mut(&mut element.msg.to_vec()), "a wrong signature");
            }
            self.inbox.push(element.msg.to_vec());
        }
    }

    /// A request header on a session. It is numbered when it is sent.
    pub(crate) fn header(&self, command: Command, session: usize) -> Header {
        let session = &self.sessions[session];
        let mut header = Header::request(command, 0);
        (header.session_id, header.credit_charge) = (session.id, 1);
        header.target = Target::Sync { reserved: 0, tree_id: session.tree };
        header.credits = 8;
        header
    }

    /// A CREATE of what exists, to read and write, shared with everybody.
    pub(crate) fn open_request(
        &self,
        name: &str,
        oplock_level: u8,
        contexts: &[(&[u8], Vec<u8>)],
    ) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let params = CreateParams {
            oplock_level,
            impersonation_level: 2,
            desired_access: 3,
            file_attributes: 0,
            share_access: 7,
            create_disposition: 1,
            create_options: 0,
            name_utf16: &name,
            contexts,
        };
        encode::create(&self.header(Command::CREATE, 0), &params)
    }

    /// The header of a break notification: of an oplock in this session, of a lease in none (MS-SMB2 3.3.4.6, 3.3.4.7).
    pub(crate) fn break_header(session_id: u64) -> Header {
        Header {
            credit_charge: 0,
            status: 0,
            command: Command::OPLOCK_BREAK,
            credits: 0,
            flags: Flags::SERVER_TO_REDIR,
            next_command: 0,
            message_id: u64::MAX,
            target: Target::Sync { reserved: 0, tree_id: 0 },
            session_id,
            signature: [0; 16],
        }
    }

    /// Numbers and signs messages as one frame and sends it; the MessageIds.
    pub(crate) fn send(&mut self, msgs: &[Vec<u8>]) -> Vec<u64> {
        let first = self.next;
        let frame = self.cover(msgs);
        let charges = msgs.iter().map(|msg| u64::from(Header::parse(msg).unwrap().credit_charge.max(1)));
        let ids = charges.scan(first, |next, charge| Some(std::mem::replace(next, *next + charge))).collect();
        self.send_raw(&frame);
        ids
    }

    /// The store has taken everything that it was asked to.
    pub(crate) fn take_stored(&mut self) {
        if let Some(token) = self.unstored.take() {
            self.link.handle_stored(self.now, token);
            self.pump();
        }
    }

    /// A frame as it is.
    pub(crate) fn send_raw(&mut self, frame: &[u8]) {
        self.link.handle_client_frame(self.now, BytesMut::from(frame));
        self.pump();
    }

    /// Numbers messages, and signs or seals them as one frame.
    pub(crate) fn cover(&mut self, msgs: &[Vec<u8>]) -> Vec<u8> {
        let mut chain = encode::compound(msgs);
        let mut sealing = None;
        let places: Vec<_> = elements(&chain).map(|e| e.unwrap()).map(|e| (e.range, e.header)).collect();
        for (range, mut header) in places {
            header.message_id = self.next;
            self.next += u64::from(header.credit_charge.max(1));
            self.asked += u32::from(header.credit_charge.max(1));
            let msg = &mut chain[range];
            header.write(msg);
            let session = self.sessions.iter().find(|s| s.id == header.session_id);
            if let Some(seals) = session.and_then(|s| s.seals.clone()).filter(|_| self.seals) {
                sealing = Some((header.session_id, seals));
                self.sealed.insert(header.message_id);
            } else if let Some(key) = session.and_then(|s| s.key.as_ref()) {
                key.sign(msg);
            }
        }
        match sealing {
            Some((session, seals)) => seal(&seals.to_server, session, &mut self.nonces, &chain),
            None => encode::frame(chain),
        }
    }

    /// The final answer to a MessageId, which must have come.
    pub(crate) fn answer(&self, id: u64) -> (Header, &[u8]) {
        self.final_answer(id).unwrap_or_else(|| panic!("MessageId {id} is not answered"))
    }

    /// The final answer to a MessageId, if it has come.
    pub(crate) fn final_answer(&self, id: u64) -> Option<(Header, &[u8])> {
        self.inbox
            .iter()
            .map(|msg| (Header::parse(msg).unwrap(), &msg[..]))
            .find(|(h, _)| h.message_id == id && h.status != Status::PENDING.0)
    }

    /// Sends one message; its final answer's status and bytes.
    pub(crate) fn ask(&mut self, msg: Vec<u8>) -> (Status, Vec<u8>) {
        let id = self.send(&[msg])[0];
        let (header, msg) = self.answer(id);
        (Status(header.status), msg.to_vec())
    }

    /// NEGOTIATE.
    pub(crate) fn negotiate(&mut self) {
        let newest = self.dialect == Dialect::SMB311;
        let ciphers: Vec<_> = self.cipher.filter(|_| newest).map(Cipher::wire).into_iter().collect();
        let params = NegotiateParams {
            dialects: &[self.dialect.0],
            security_mode: 1,
            capabilities: CLIENT_CAPABILITIES | if self.cipher.is_some() { ENCRYPTION } else { 0 },
            client_guid: self.client_guid,
            preauth_salt: &[1; 32],
            ciphers: &ciphers,
            signing_algs: &[2],
            netname: None,
        };
        let frame = self.cover(&[encode::negotiate(&Header::request(Command::NEGOTIATE, 0), &params)]);
        self.preauth.update(&frame[PREFIX..]);
        self.send_raw(&frame);
        if let Some(cause) = self.moves.take() {
            self.assign_for(1, cause);
        }
        if let Some(time) = self.patience.take() {
            self.wait(time);
            self.assign(0);
        }
        if let Some(node) = self.later_node.take() {
            self.crash();
            self.assign(node);
        }
        let (_, answer) = self.answer(0);
        let answer = answer.to_vec();
        self.server_guid = negotiate::Response::parse(&answer).unwrap().server_guid;
        self.preauth.update(&answer);
    }

    /// Begins a login as `user`. `nobody` is a guest.
    pub(crate) fn exchange(&self, user: &str) -> Exchange {
        let kind = if user == "nobody" { Kind::Guest } else { Kind::Ntlm };
        let identity = Identity { user: user.into(), domain: "WG".into(), workstation: "PC".into(), kind };
        let mut login = Login::ntlm(&identity, self.users.nt_hash("WG", user), true);
        let token = login.start(&mut Counting(76)).unwrap();
        Exchange {
            login,
            keyed: kind == Kind::Ntlm,
            preauth: self.preauth.clone(),
            token,
            id: 0,
            previous: 0,
        }
    }

    /// Sends the next SESSION_SETUP of a login; its MessageId.
    pub(crate) fn send_login(&mut self, login: &mut Exchange) -> u64 {
        let mut header = Header::request(Command::SESSION_SETUP, 0);
        (header.session_id, header.credits, header.credit_charge) = (login.id, 64, 1);
        let params = SessionSetupParams {
            flags: 0,
            security_mode: 1,
            capabilities: 0,
            previous_session_id: login.previous,
            token: &login.token,
        };
        let frame = self.cover(&[encode::session_setup(&header, &params)]);
        login.preauth.update(&frame[PREFIX..]);
        self.send_raw(&frame);
        Header::parse(&frame[PREFIX..]).unwrap().message_id
    }

    /// Takes the answer to a SESSION_SETUP in.
    pub(crate) fn take_login(&mut self, login: &mut Exchange, id: u64) -> Status {
        let (header, answer) = self.answer(id);
        let answer = answer.to_vec();
        login.id = header.session_id;
        let status = Status(header.status);
        if status == Status::MORE_PROCESSING_REQUIRED {
            login.preauth.update(&answer);
            let challenge = session_setup::Response::parse(&answer).unwrap().security_buffer.to_vec();
            login.token = login.login.step(&challenge, &mut Counting(77)).unwrap();
        }
        if status == Status::SUCCESS && !self.sessions.iter().any(|s| s.id == login.id) {
            let key = login.login.session_key().map(|key| {
                let bytes = kdf::signing_key(self.dialect, key, &login.preauth.value());
                Rc::new(SigningKey::new(signing_alg(self.dialect), &bytes))
            });
            let key = key.filter(|_| login.keyed);
            let session_key = login.login.session_key().filter(|_| login.keyed).zip(self.cipher);
            let seals = session_key
                .map(|(key, cipher)| Rc::new(Seals::new(self.dialect, cipher, key, &login.preauth)));
            if let Some(key) = &key {
                assert!(header.flags.contains(Flags::SIGNED), "the last answer of a login is not signed");
                assert!(key.verify_mut(&mut answer.clone()), "the last answer is signed wrongly");
            }
            self.sessions.push(ClientSession { id: login.id, tree: 0, key, seals });
        }
        status
    }

    /// A login to its end.
    pub(crate) fn finish_login(&mut self, login: &mut Exchange) -> Status {
        loop {
            let id = self.send_login(login);
            let status = self.take_login(login, id);
            if status != Status::MORE_PROCESSING_REQUIRED {
                return status;
            }
        }
    }

    /// Proves anew, or for the first time, to be `user` on a session that stands.
    pub(crate) fn reauthenticate(&mut self, session: usize, user: &str) -> Status {
        let mut login = self.exchange(user);
        login.id = self.sessions[session].id;
        self.finish_login(&mut login)
    }

    /// Logs a user in and connects to the share. `nobody` is a guest.
    pub(crate) fn log_in(&mut self, user: &str) -> usize {
        let mut login = self.exchange(user);
        assert_eq!(self.finish_login(&mut login), Status::SUCCESS, "{user} is refused");
        let at = self.sessions.len() - 1;
        self.connect(at);
        at
    }

    /// Connects a session to the share.
    pub(crate) fn connect(&mut self, at: usize) {
        let path: Vec<u8> = r"\\server\share".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let asked = encode::tree_connect(&self.header(Command::TREE_CONNECT, at), &path);
        let tree = self.send(&[asked])[0];
        self.sessions[at].tree = self.answer(tree).0.tree_id().unwrap();
    }

    /// Another Link's client has logged in in the place of a session.
    pub(crate) fn succeed(&mut self, session: u64, user: &str) {
        let succession = Succession { session, user: user.into() };
        self.link.handle_succession(self.now, &succession);
        self.pump();
    }

    /// LOGOFF.
    pub(crate) fn log_off(&mut self, session: usize) -> (Status, Vec<u8>) {
        self.ask(encode::logoff(&self.header(Command::LOGOFF, session)))
    }

    /// A CREATE by this disposition: 1 opens, 2 creates, 3 does either.
    pub(crate) fn create(&self, session: usize, name: &str, disposition: u32) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let params = CreateParams {
            oplock_level: 9,
            impersonation_level: 2,
            desired_access: 3,
            file_attributes: 0,
            share_access: 7,
            create_disposition: disposition,
            create_options: 0,
            name_utf16: &name,
            contexts: &[],
        };
        encode::create(&self.header(Command::CREATE, session), &params)
    }

    /// Opens a file; its FileId.
    pub(crate) fn open(&mut self, session: usize, name: &str) -> FileId {
        let (status, msg) = self.ask(self.create(session, name, 1));
        assert_eq!(status, Status::SUCCESS, "{name}");
        create::Response::parse(&msg).unwrap().file_id
    }

    /// A READ.
    pub(crate) fn read(&self, session: usize, file: FileId, offset: u64, length: u32) -> Vec<u8> {
        encode::read(&self.header(Command::READ, session), file, offset, length, 0)
    }

    /// A WRITE.
    pub(crate) fn write(&self, session: usize, file: FileId, offset: u64, data: &[u8]) -> Vec<u8> {
        encode::write(&self.header(Command::WRITE, session), file, offset, 0, data)
    }

    /// A SET_INFO that gives a file another name, or one more: FileRenameInformation is 10, FileLinkInformation 11.
    pub(crate) fn set_name(
        &self,
        session: usize,
        file: FileId,
        class: u8,
        name: &str,
        replace: bool,
    ) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let length = u32::try_from(name.len()).unwrap().to_le_bytes();
        let buffer = [&[u8::from(replace)][..], &[0; 15], &length, &name].concat();
        encode::set_info(&self.header(Command::SET_INFO, session), 1, class, 0, file, &buffer)
    }

    /// Puts a file on the disk that all nodes share.
    pub(crate) fn put(&self, name: &str, number: u64, data: &[u8]) {
        self.disk.borrow_mut().insert(name.into(), (number, data.to_vec()));
    }

    /// What is on the disk.
    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        self.disk.borrow().get(name).map(|(_, data)| data.clone()).unwrap_or_default()
    }

    /// Whom the nodes know.
    pub(crate) fn users(&self) -> Users {
        self.users.clone()
    }

    /// MessageIds the client may still use, as it counts them itself.
    pub(crate) fn credits(&self) -> u32 {
        self.credits - self.asked
    }

    /// The nonces under which the client was told something.
    pub(crate) fn heard(&self) -> &BTreeSet<[u8; 16]> {
        &self.heard
    }

    /// Another Link's news of files, as the owner would apply it.
    pub(crate) fn file_event(&self, link: LinkId, event: FileEvent) {
        self.files.borrow_mut().handle(self.now, link, event);
    }

    /// Another Link has opened a file of the share.
    pub(crate) fn opened_elsewhere(&self, link: LinkId, open: OpenToken, name: &str) {
        let path: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let file = FileIdentity { birth: Birth::set(1), number: None };
        let (name, asked) = (Name::new("share", &path), self.now);
        let event = FileEvent::Opened { open, name, file, asked, generation: u64::MAX, deletes: false };
        self.file_event(link, event);
    }
}
