//! A small SMB2 client of our own: for what smbclient cannot be asked for. One message at a time or many in flight,
//! chosen dialect and ClientGuid, leases, frames that are wrong on purpose.
//!
//! It is strict where a server has to be right: every MessageId gets one final answer and at most one interim,
//! answers of a signed session carry the right signature, and credits never run dry. What it sends is what it is told.

mod files;
mod inbox;
mod login;
mod sealing;

use std::{
    collections::{BTreeMap, HashMap},
    io::BufReader,
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{SendFlags, send},
};
use smb_parse::{
    compound::elements,
    encode,
    header::{Command, Flags, Header, Target},
    patch,
};
use understudy_core::crypto::{
    Dialect,
    preauth::Preauth,
    sealing::Cipher,
    signing::{SigningAlg, SigningKey},
};

use self::sealing::Seals;
pub(crate) use self::{
    files::{DELETE_ON_CLOSE, FILE_CREATE, FILE_OPEN_IF, File, Open, READ, build_query, data, written},
    inbox::{Answer, Break, End},
    login::{Exchange, User, now, utf16},
    sealing::Secret,
};
use crate::rig::net::Net;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// What one credit pays for (MS-SMB2 3.1.5.2).
const CREDIT: usize = 65_536;

/// How a connection is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) dialect: Dialect,
    pub(crate) client_guid: [u8; 16],
    /// Sign, and take no answer that is not signed.
    pub(crate) signing: bool,
    /// Credits asked for with every request.
    pub(crate) credits: u16,
    /// The only cipher offered. `None`: no encryption is.
    pub(crate) cipher: Option<Cipher>,
    /// Seal whole sessions, whether the server asks for it or not.
    pub(crate) sealing: bool,
    /// Offered in 3.1.1, the best first (MS-SMB2 2.2.3.1.7).
    pub(crate) signing_algs: &'static [u16],
    /// Say that the client can do more than one connection a session.
    pub(crate) multi_channel: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dialect: Dialect::SMB311,
            client_guid: guid(),
            signing: true,
            credits: 64,
            cipher: None,
            sealing: false,
            signing_algs: &[2, 1, 0],
            multi_channel: false,
        }
    }
}

/// Bytes that nobody else has.
pub(crate) fn guid() -> [u8; 16] {
    let mut bytes = [0; 16];
    login::fill(&mut bytes);
    bytes
}

/// A session and a share: where requests go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) session: u64,
    pub(crate) tree: u32,
}

/// What one session signs and seals with.
#[derive(Debug)]
struct Session {
    seals: Option<Seals>,
    /// The keys themselves, for who looks for them where they must not be.
    secrets: Vec<Secret>,
    key: Option<Arc<SigningKey>>,
    /// The same whether it is used or not: what shows that a further connection belongs to the session.
    proof: Option<Arc<SigningKey>>,
}

/// A request that waits for its answer.
#[derive(Debug, Default)]
struct InFlight {
    session: u64,
    sealed: bool,
    /// AsyncId of its interim, if there was one.
    interim: Option<u64>,
}

/// A message that is numbered but not sent.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    /// The messages of one frame, without the prefix. Unsigned as built.
    pub(crate) bytes: Vec<u8>,
    /// Their MessageIds.
    pub(crate) ids: Vec<u64>,
    session: u64,
    /// To be sealed: then it is not signed (MS-SMB2 3.2.4.1.1).
    sealed: bool,
}

/// Makes a message of its header.
type Build<'a> = &'a dyn Fn(&Header) -> Vec<u8>;

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    setup: Setup,
    signing: SigningAlg,
    preauth: Preauth,
    /// Capabilities, ServerGuid and SecurityMode of the server's NEGOTIATE.
    server_said: Vec<u8>,
    sessions: BTreeMap<u64, Session>,
    next_id: u64,
    /// Credits in hand.
    credits: u64,
    in_flight: HashMap<u64, InFlight>,
    answers: HashMap<u64, Answer>,
    /// Break notifications, in the order in which they came.
    pub(crate) breaks: Vec<Break>,
    /// Final answers received.
    pub(crate) finals: u64,
    /// Interim answers received.
    pub(crate) interims: u64,
    /// Bytes of frames sent, and received.
    pub(crate) traffic: (u64, u64),
}

impl Client {
    /// Connects from the clients' namespace and negotiates.
    pub(crate) fn connect(net: &Net, host: &str, setup: &Setup) -> Result<Self> {
        let stream = net.connect("client", &format!("{host}:445"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self {
            stream: BufReader::with_capacity(256 << 10, stream),
            setup: *setup,
            signing: SigningAlg::HmacSha256,
            preauth: Preauth::new(),
            server_said: Vec::new(),
            sessions: BTreeMap::new(),
            next_id: 0,
            credits: 1,
            in_flight: HashMap::new(),
            answers: HashMap::new(),
            breaks: Vec::new(),
            finals: 0,
            interims: 0,
            traffic: (0, 0),
        };
        client.negotiate()?;
        Ok(client)
    }

    /// The ClientGuid that it goes by.
    pub(crate) fn guid(&self) -> [u8; 16] {
        self.setup.client_guid
    }

    /// The connection will end with RST.
    pub(crate) fn reset_on_drop(&self) -> Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(self.stream.get_ref(), Some(Duration::ZERO))?)
    }

    /// Numbers a request that costs `charge` credits; waits for credits if there are too few.
    pub(crate) fn draft(
        &mut self,
        at: At,
        command: Command,
        charge: u16,
        build: impl FnOnce(&Header) -> Vec<u8>,
    ) -> Result<Draft> {
        let header = self.number(at, command, charge)?;
        let sealed = self.is_sealed(at);
        Ok(Draft { bytes: build(&header), ids: vec![header.message_id], session: at.session, sealed })
    }

    /// Numbers related members of one frame, one credit each (MS-SMB2 3.2.4.1.4).
    pub(crate) fn draft_compound(&mut self, at: At, members: &[(Command, Build<'_>)]) -> Result<Draft> {
        let (mut messages, mut ids) = (Vec::new(), Vec::new());
        for (index, (command, build)) in members.iter().enumerate() {
            let mut header = self.number(at, *command, 1)?;
            if index > 0 {
                header.flags = header.flags | Flags::RELATED;
            }
            ids.push(header.message_id);
            messages.push(build(&header));
        }
        let sealed = self.is_sealed(at);
        Ok(Draft { bytes: encode::compound(&messages), ids, session: at.session, sealed })
    }

    /// Signs each message of a draft, if the session has a key and the draft is not to be sealed.
    pub(crate) fn sign(&self, draft: &mut Draft) {
        if draft.sealed {
            return;
        }
        let Some(key) = self.sessions.get(&draft.session).and_then(|s| s.key.as_ref()) else { return };
        let ranges: Vec<_> = elements(&draft.bytes).flatten().map(|element| element.range).collect();
        for range in ranges {
            if let Some(message) = draft.bytes.get_mut(range) {
                key.sign(message);
            }
        }
    }

    /// Whether it seals whole sessions.
    pub(crate) fn is_sealing(&self) -> bool {
        self.setup.sealing
    }

    /// Sends a draft as it is, or sealed if it is to be.
    pub(crate) fn post(&mut self, draft: &Draft) -> Result<()> {
        let frame = self.frame(draft)?;
        self.post_frame(draft, &frame)
    }

    /// A draft as it goes on the wire.
    pub(crate) fn frame(&mut self, draft: &Draft) -> Result<Vec<u8>> {
        if draft.sealed { self.sealed_frame(draft) } else { Ok(encode::frame(&draft.bytes)) }
    }

    /// Sends a frame that was made of a draft.
    pub(crate) fn post_frame(&mut self, draft: &Draft, frame: &[u8]) -> Result<()> {
        for id in &draft.ids {
            let request = InFlight { session: draft.session, sealed: draft.sealed, interim: None };
            self.in_flight.insert(*id, request);
        }
        self.raw(frame)
    }

    /// Sends any bytes. Takes answers in meanwhile: a server that cannot get rid of its answers may stop reading.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.traffic.0 += u64::try_from(bytes.len())?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let socket = self.stream.get_ref();
            let mut polled = [PollFd::new(socket, PollFlags::IN | PollFlags::OUT)];
            poll(&mut polled, None)?;
            let ready = polled[0].revents();
            if ready.contains(PollFlags::OUT) {
                let sent =
                    send(socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).context("sending")?;
                rest = rest.get(sent..).unwrap_or_default();
            } else {
                self.receive()?;
            }
        }
        Ok(())
    }

    /// Sends a request, signed if the session is; its answer is waited for later.
    pub(crate) fn send(
        &mut self,
        at: At,
        command: Command,
        charge: u16,
        build: impl FnOnce(&Header) -> Vec<u8>,
    ) -> Result<u64> {
        let mut draft = self.draft(at, command, charge, build)?;
        self.sign(&mut draft);
        self.post(&draft)?;
        draft.ids.first().copied().context("an empty draft")
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call(
        &mut self,
        at: At,
        command: Command,
        charge: u16,
        build: impl FnOnce(&Header) -> Vec<u8>,
    ) -> Result<Answer> {
        let id = self.send(at, command, charge, build)?;
        self.wait(id)
    }

    /// CANCEL of a request in flight (MS-SMB2 3.2.4.24): no credit, no id of its own, no answer.
    pub(crate) fn cancel(&mut self, at: At, id: u64) -> Result<()> {
        let mut header = Header::request(Command::CANCEL, id);
        header.session_id = at.session;
        header.credits = 0;
        let mut bytes = encode::cancel(&header);
        if let Some(async_id) = self.in_flight.get(&id).and_then(|f| f.interim) {
            patch::set_flags(&mut bytes, Flags::ASYNC);
            patch::set_async_id(&mut bytes, async_id);
        }
        let mut draft = Draft { bytes, ids: Vec::new(), session: at.session, sealed: self.is_sealed(at) };
        self.sign(&mut draft);
        self.post(&draft)
    }

    /// ECHO.
    pub(crate) fn echo(&mut self, at: At) -> Result<()> {
        self.call(at, Command::ECHO, 1, encode::echo)?.success().map(|_| ())
    }

    /// The next header for `at`, its credits paid.
    fn number(&mut self, at: At, command: Command, charge: u16) -> Result<Header> {
        let charge = charge.max(1);
        while self.credits < u64::from(charge) {
            self.receive().context("no credits left")?;
        }
        self.credits -= u64::from(charge);
        let mut header = Header::request(command, self.next_id);
        self.next_id += u64::from(charge);
        header.credit_charge = if self.setup.dialect > Dialect::SMB202 { charge } else { 0 };
        header.credits = self.setup.credits.max(charge);
        header.session_id = at.session;
        header.target = Target::Sync { reserved: 0xfeff, tree_id: at.tree };
        Ok(header)
    }
}

/// What so many bytes cost.
pub(crate) fn charge(len: usize) -> u16 {
    u16::try_from(len.div_ceil(CREDIT).max(1)).unwrap_or(u16::MAX)
}
