//! Requests of the client that are not answered yet (MS-SMB2 3.3.1.13, Request).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smb_parse::{
    FileId,
    header::{Command, Flags, Header, Status, Target},
    patch,
};

use crate::{
    ids::{LegId, MessageId, RELATED_FILE_ID, SessionId, TreeId},
    link::credit::charge,
    takeover::{
        append::Look,
        probe::{Finding, Probe},
    },
};

/// Frames up to this size are copied when kept, so that a few bytes do not pin a large read buffer.
const COPY_LIMIT: usize = 4096;

/// One unanswered request.
#[derive(Debug)]
pub(crate) struct Request {
    /// Its header as the client sent it, but for ids that name an earlier member of the compound: those are spelt out.
    pub(crate) header: Header,
    /// The message, from its header on.
    pub(crate) msg: Bytes,
    /// Whether the FileIds in `msg` are the client's; else the node's.
    pub(crate) raw: bool,
    /// It came sealed.
    pub(crate) sealed: bool,
    /// The sealed frame as it came, where that is still needed: to be opened when the request is replayed, for `msg` is
    /// its header alone, or to be sent on as it is.
    pub(crate) frame: Option<Bytes>,
    /// Whether the client's signature or the frame's tag was checked. Until then `msg` is as the client sent it.
    pub(crate) verified: bool,
    /// The FileId it works on, as the client knows it, where its own says "the one before me in the compound".
    pub(crate) related_file: Option<FileId>,
    /// Which frame it came in: members of a compound share the number.
    pub(crate) unit: u64,
    /// Whether other requests came in the same frame.
    pub(crate) compounded: bool,
    /// When it came.
    pub(crate) at: Instant,
    /// Since when it waits for a barrier.
    pub(crate) parked: Option<Instant>,
    /// Which STATUS_PENDING the client has had.
    pub(crate) interim: Interim,
    /// The leg it was sent by, if any, and its MessageId there.
    pub(crate) sent: Option<(LegId, MessageId)>,
    /// How many nodes were lost while it was in flight.
    pub(crate) deaths: u8,
    /// Whether the last of them had done it, as far as that is found out.
    pub(crate) finding: Finding,
    /// The CreateAction that its client is to be told, if the node's is not.
    pub(crate) action: Option<u32>,
    /// What it opens is deleted by its own compound, or it is the member that says so.
    pub(crate) deletes: bool,
    /// The CREATE of its own compound has failed so, and it will fail alike.
    pub(crate) fails: Option<Status>,
    /// What is known of its outcome without asking a node, since one was lost.
    pub(crate) known: Option<Status>,
    /// It changes names, and until it is answered others wait.
    pub(crate) doubtful: bool,
    /// It was doubtful, and the node lets it wait.
    pub(crate) pends: bool,
    /// Its name is looked for on the new node.
    pub(crate) probe: Probe,
    /// A node was asked to write it to the end of a file.
    pub(crate) appends: bool,
    /// What of the file's end was seen on the new node.
    pub(crate) look: Look,
    /// The node got an ECHO instead, and the client gets this.
    pub(crate) filler: Option<Status>,
}

/// Whose STATUS_PENDING a request has had: one at most over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interim {
    None,
    /// The node's, with this AsyncId. Its credits are granted already.
    Node(u64),
    /// Ours, with the MessageId as AsyncId and no credits.
    Ours,
}

impl Interim {
    /// The AsyncId that the client knows the request by.
    pub(crate) fn async_id(self, message_id: MessageId) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Node(id) => Some(id),
            Self::Ours => Some(message_id),
        }
    }
}

impl Request {
    /// Whether its answer is under way, and does not wait for what may never happen: a change in a directory, or that somebody
    /// else unlocks.
    fn is_owed_an_answer(&self) -> bool {
        match self.header.command {
            Command::CHANGE_NOTIFY => false,
            Command::LOCK => self.interim == Interim::None,
            _ => true,
        }
    }

    pub(crate) fn new(header: Header, msg: &Bytes, unit: u64, compounded: bool, now: Instant) -> Self {
        Self {
            header,
            msg: keep(msg),
            raw: true,
            sealed: false,
            frame: None,
            verified: false,
            related_file: None,
            unit,
            compounded,
            at: now,
            parked: None,
            interim: Interim::None,
            sent: None,
            deaths: 0,
            finding: Finding::Unknown,
            action: None,
            deletes: false,
            fails: None,
            known: None,
            doubtful: false,
            pends: false,
            probe: Probe::Unasked,
            appends: false,
            look: Look::Unasked,
            filler: None,
        }
    }

    pub(crate) fn message_id(&self) -> MessageId {
        self.header.message_id
    }

    pub(crate) fn charge(&self) -> u32 {
        charge(self.header.credit_charge)
    }

    /// Bytes kept for it.
    fn kept(&self) -> usize {
        self.msg.len() + self.frame.as_ref().map_or(0, Bytes::len)
    }

    /// Whether it works on what an earlier member of its compound opened or connected.
    pub(crate) fn is_related(&self) -> bool {
        self.header.flags.contains(Flags::RELATED)
    }

    /// Whether it works on what an earlier member is still to open or to connect.
    pub(crate) fn leans(&self) -> bool {
        let on_create = self.file_id() == Some(RELATED_FILE_ID) && self.related_file.is_none();
        self.is_related() && (on_create || self.header.tree_id() == Some(u32::MAX))
    }

    /// The FileId in its fixed part, as it stands in `msg`.
    pub(crate) fn file_id(&self) -> Option<FileId> {
        patch::request_file_id(&self.msg)
    }
}

/// What the members of one frame hand down to those behind them (MS-SMB2 3.3.5.2.7.2): SessionId, TreeId, FileId.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    session: Option<SessionId>,
    tree: Option<TreeId>,
    file: Option<FileId>,
}

impl Chain {
    /// Spells out what a related member leaves to those before it. Members are to be given in order.
    pub(crate) fn link(&mut self, request: &mut Request) {
        let header = &mut request.header;
        let related = header.flags.contains(Flags::RELATED);
        if let Some(session) = self.session.filter(|_| related) {
            header.session_id = session;
        }
        if let (Target::Sync { tree_id, .. }, Some(tree)) =
            (&mut header.target, self.tree.filter(|_| related))
        {
            *tree_id = tree;
        }
        self.session = Some(header.session_id);
        // What TREE_CONNECT and CREATE bring is known with their answers.
        self.tree = header.tree_id().filter(|_| header.command != Command::TREE_CONNECT);
        match request.file_id() {
            Some(RELATED_FILE_ID) if related => request.related_file = self.file,
            Some(id) => self.file = Some(id),
            None if request.header.command == Command::CREATE => self.file = None,
            None => {}
        }
    }
}

/// A message as it is kept: a small one does not pin the buffer it came in.
pub(crate) fn keep(msg: &Bytes) -> Bytes {
    if msg.len() <= COPY_LIMIT { Bytes::copy_from_slice(msg) } else { msg.clone() }
}

/// All unanswered requests of a Link, by MessageId.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    by_id: BTreeMap<MessageId, Request>,
    bytes: usize,
    units: u64,
}

impl Requests {
    /// A number for the next frame.
    pub(crate) fn next_unit(&mut self) -> u64 {
        self.units += 1;
        self.units
    }

    /// Keeps a request. False if that MessageId is in use: no client does that.
    pub(crate) fn insert(&mut self, request: Request) -> bool {
        let id = request.message_id();
        if self.by_id.contains_key(&id) {
            return false;
        }
        self.bytes += request.kept();
        self.by_id.insert(id, request);
        true
    }

    pub(crate) fn get(&self, id: MessageId) -> Option<&Request> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: MessageId) -> Option<&mut Request> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: MessageId) -> Option<Request> {
        let request = self.by_id.remove(&id)?;
        self.bytes -= request.kept();
        Some(request)
    }

    /// Keeps a sealed frame as it came, to be sent on.
    pub(crate) fn keep_frame(&mut self, id: MessageId, frame: Bytes) {
        if let Some(request) = self.by_id.get_mut(&id) {
            self.bytes += frame.len();
            request.frame = Some(frame);
        }
    }

    /// Takes out the sealed frame as it came, which is of no more use then.
    pub(crate) fn take_frame(&mut self, id: MessageId) -> Option<Bytes> {
        let frame = self.by_id.get_mut(&id)?.frame.take()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Puts translated bytes in the place of a verified request's: `raw` says whose FileIds they have.
    pub(crate) fn replace_msg(&mut self, id: MessageId, msg: Bytes, raw: bool) {
        if let Some(request) = self.by_id.get_mut(&id) {
            self.bytes = self.bytes + msg.len() - request.msg.len();
            request.msg = msg;
            request.raw = raw;
            request.verified = true;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.by_id.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Request> {
        self.by_id.values_mut()
    }

    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.by_id.keys().copied().collect()
    }

    /// The MessageIds of every frame, in the order in which the frames came.
    pub(crate) fn units(&self) -> BTreeMap<u64, Vec<MessageId>> {
        let mut units: BTreeMap<u64, Vec<MessageId>> = BTreeMap::new();
        for request in self.by_id.values() {
            units.entry(request.unit).or_default().push(request.message_id());
        }
        units
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether there is one that a proxy which stops should still answer.
    pub(crate) fn owes_answers(&self) -> bool {
        self.by_id.values().any(Request::is_owed_an_answer)
    }

    /// The members behind `request` in its compound that lean on what it has brought.
    fn leaning_on<'a>(&'a mut self, request: &'a Request) -> impl Iterator<Item = &'a mut Request> {
        let behind = self.by_id.range_mut(request.message_id()..).map(|(_, behind)| behind);
        behind.take_while(|_| request.compounded).filter(|r| r.unit == request.unit && r.is_related())
    }

    /// A CREATE has brought this FileId: the related members behind it work on that.
    pub(crate) fn opened(&mut self, create: &Request, id: FileId) {
        for request in self.leaning_on(create) {
            if request.file_id() == Some(RELATED_FILE_ID) {
                request.related_file = Some(id);
            }
        }
    }

    /// A CREATE has failed: so will the related members behind it that work on what it was to open (MS-SMB2 3.3.5.2.7.2).
    pub(crate) fn failed(&mut self, create: &Request, status: Status) {
        for request in self.leaning_on(create) {
            if request.file_id() == Some(RELATED_FILE_ID) && request.related_file.is_none() {
                request.fails = Some(status);
            }
        }
    }

    /// A TREE_CONNECT has brought this TreeId: the related members behind it work on that.
    pub(crate) fn connected(&mut self, tree_connect: &Request, id: TreeId) {
        for request in self.leaning_on(tree_connect) {
            if let Target::Sync { tree_id, .. } = &mut request.header.target {
                *tree_id = id;
            }
        }
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The request a CANCEL means: by AsyncId if it has one, else by MessageId (MS-SMB2 3.3.5.16); one of its own session.
    pub(crate) fn cancelled_by(&self, cancel: &Header) -> Option<MessageId> {
        let meant = match cancel.async_id() {
            Some(async_id) => {
                self.by_id.values().find(|r| r.interim.async_id(r.message_id()) == Some(async_id))
            }
            None => self.by_id.get(&cancel.message_id),
        };
        meant.filter(|r| r.header.session_id == cancel.session_id).map(Request::message_id)
    }

    /// When the first request that may get our STATUS_PENDING is due for it.
    pub(crate) fn pending_due(&self, after: Duration) -> Option<Instant> {
        self.by_id.values().filter(|r| r.may_pend()).map(|r| r.at + after).min()
    }
}

impl Request {
    /// Whether a CANCEL may keep it from being done (MS-SMB2 3.3.5.16). What a client gives back it does not expect to have
    /// still, and what it acknowledges it has given up.
    pub(crate) fn may_be_cancelled(&self) -> bool {
        !matches!(
            self.header.command,
            Command::CLOSE | Command::LOGOFF | Command::TREE_DISCONNECT | Command::OPLOCK_BREAK
        )
    }

    /// Whether it may be refused when it has waited for too long. What is not cancelled is not refused either, but in a
    /// compound, which goes as a whole; unless the node that is lost has answered what it works on.
    pub(crate) fn may_be_late(&self) -> bool {
        self.compounded && (self.deaths == 0 || self.leans()) || self.may_be_cancelled()
    }

    /// Whether our STATUS_PENDING may be sent for it: one in its life, never in a compound, never where it must be
    /// signed or would confuse the handshake.
    pub(crate) fn may_pend(&self) -> bool {
        let allowed = !matches!(
            self.header.command,
            Command::NEGOTIATE | Command::SESSION_SETUP | Command::TREE_CONNECT | Command::LOGOFF
        );
        allowed && self.interim == Interim::None && !self.compounded && self.filler.is_none()
    }
}
