//! A frame's requests, run in order (MS-SMB2 3.3.5.2.7): the whole chain waits where one of them must.

use std::{collections::VecDeque, rc::Rc};

use smb_parse::{
    FileId,
    cmd::session_setup,
    encode,
    header::{Command, Flags, Header, Status, Target},
    patch,
};

use super::{ConnId, Out, Server, login::u16s};
use crate::disk::Disk;

/// What was true at the proxy when it sent a frame.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// Its Link was not in Relay: what is wrong with the frame is the proxy's doing.
    pub bridge: bool,
    /// Its Link was taking over: it may reclaim.
    pub reclaims: bool,
    /// The files of which some other Link had Opens that were not back.
    pub blocked: Rc<[u64]>,
    /// What its client had, of each of its Opens, if it had heard and given back nothing more by then.
    pub had: Option<Rc<[Had]>>,
    /// How many steps had been taken.
    pub at: u64,
}

/// What a client had of an Open.
#[derive(Debug, Clone)]
pub struct Had {
    /// The file's number.
    pub number: u64,
    /// The name it was opened by.
    pub name: String,
    /// The oplock.
    pub oplock: u8,
    /// The state of the lease.
    pub lease: u32,
}

/// The requests of one frame, and what has come of them.
pub struct Chain {
    pub(crate) conn: ConnId,
    pub(crate) sealed: Option<u64>,
    pub(crate) mark: Mark,
    /// It waits for slow storage.
    pub(crate) slow: bool,
    left: VecDeque<(Header, Vec<u8>)>,
    answers: Vec<(Header, u64, Vec<u8>)>,
    session: u64,
    tree: u32,
    pub(crate) file: FileId,
    /// The status of the CREATE before, if it failed: related requests fail alike.
    failed: Option<Status>,
    /// The first of `left` has had a STATUS_PENDING with this AsyncId.
    pub(crate) announced: Option<u64>,
    cancelled: bool,
    delayed: bool,
    /// The signature of the first of `left` was found to be right.
    checked: bool,
}

/// What becomes of a request.
pub(super) enum Step {
    Done(Status, Vec<u8>),
    Answer(Vec<u8>),
    /// It cannot go on until something happens.
    Wait,
}

impl Chain {
    pub(super) fn new(conn: ConnId, sealed: Option<u64>, mark: Mark) -> Self {
        Self {
            conn,
            sealed,
            mark,
            slow: false,
            left: VecDeque::new(),
            answers: Vec::new(),
            session: 0,
            tree: 0,
            file: FileId::ALL_ONES,
            failed: None,
            announced: None,
            cancelled: false,
            delayed: false,
            checked: false,
        }
    }

    pub(super) fn push(&mut self, header: Header, msg: Vec<u8>) {
        self.left.push_back((header, msg));
    }

    /// Whether what it waits with ends by a CANCEL. All else is done all the same: no client has to fear that a CLOSE is not.
    fn can_be_cancelled(&self) -> bool {
        const ENDS: [Command; 5] =
            [Command::CREATE, Command::READ, Command::WRITE, Command::LOCK, Command::CHANGE_NOTIFY];
        self.left.front().is_some_and(|(header, _)| ENDS.contains(&header.command))
    }
}

impl Server {
    pub(super) fn run(&mut self, mut chain: Chain, disk: &mut Disk) {
        while let Some((mut header, mut msg)) = chain.left.pop_front() {
            if header.command == Command::CANCEL {
                self.cancel(&chain, &header, &msg, disk);
                continue;
            }
            let original = header;
            if header.flags.contains(Flags::RELATED) {
                header.session_id = chain.session;
                header.target = Target::Sync { reserved: 0, tree_id: chain.tree };
            }
            (chain.session, chain.tree) = (header.session_id, header.tree_id().unwrap_or(0));
            self.credited = chain.announced.is_some();
            let (status, answer) = match self.execute(&mut chain, &header, &msg, disk) {
                Step::Done(status, body) => {
                    let ok = self.response(chain.conn, &header, status);
                    (status, super::login::body(&ok, &body))
                }
                Step::Answer(answer) => {
                    (Header::parse(&answer).map_or(Status::SUCCESS, |h| Status(h.status)), answer)
                }
                Step::Wait => {
                    self.credited = false;
                    self.announce(&mut chain, &header);
                    msg.shrink_to_fit();
                    chain.left.push_front((original, msg));
                    self.park(chain);
                    return;
                }
            };
            if header.command == Command::CREATE {
                chain.failed = status.is_error().then_some(status);
            }
            self.note(&header, status);
            let mut answer = answer;
            if let Some(id) = chain.announced.take() {
                patch::set_async_id(&mut answer, id);
            }
            self.credited = false;
            (chain.cancelled, chain.delayed, chain.checked) = (false, false, false);
            let session =
                if header.command == Command::SESSION_SETUP { chain.session } else { header.session_id };
            chain.answers.push((header, session, answer));
            if self.splits(&header) {
                self.flush(&mut chain);
            }
        }
        self.flush(&mut chain);
    }

    /// Whether the answers so far are sent before the rest.
    fn splits(&self, header: &Header) -> bool {
        self.setup.split_every != 0
            && (header.message_id ^ self.setup.seed).is_multiple_of(self.setup.split_every)
    }

    fn flush(&mut self, chain: &mut Chain) {
        if !chain.answers.is_empty() {
            let answers = std::mem::take(&mut chain.answers);
            self.send(chain.conn, chain.sealed, &answers);
        }
    }

    fn note(&mut self, header: &Header, status: Status) {
        if self.setup.trace {
            let line = format!(
                "node {} executes {} {}: {:08x}",
                self.id + 1,
                header.command.name(),
                header.message_id,
                status.0
            );
            self.out.push(Out::Note(line));
        }
    }

    /// STATUS_PENDING, once, and never in the middle of a compound.
    fn announce(&mut self, chain: &mut Chain, header: &Header) {
        if chain.announced.is_some() || !chain.left.is_empty() {
            return;
        }
        self.flush(chain);
        let id = self.fresh();
        chain.announced = Some(id);
        let answer = self.interim(chain.conn, header, id);
        self.send(chain.conn, chain.sealed, &[(*header, header.session_id, answer)]);
    }

    fn park(&mut self, chain: Chain) {
        self.waiting.push_back(chain);
    }

    /// MS-SMB2 3.3.5.16; of what a CANCEL ends, as Samba does it.
    fn cancel(&mut self, from: &Chain, header: &Header, msg: &[u8], disk: &mut Disk) {
        if header.session_id != 0 && self.check_cover(from, header, msg).is_err() {
            return;
        }
        let is_meant = |chain: &Chain| {
            chain.conn == from.conn
                && chain.can_be_cancelled()
                && chain.left.front().is_some_and(|(h, _)| match header.async_id() {
                    Some(id) => chain.announced == Some(id),
                    None => h.message_id == header.message_id,
                })
        };
        if let Some(at) = self.waiting.iter().position(is_meant)
            && let Some(mut chain) = self.waiting.remove(at)
        {
            chain.cancelled = true;
            chain.slow = false;
            self.run(chain, disk);
        }
    }

    /// As Samba does it: what waits in a session is answered before its LOGOFF.
    fn cancel_all(&mut self, session: u64, disk: &mut Disk) {
        while let Some(at) = self.waiting.iter().position(|chain| chain.session == session)
            && let Some(mut chain) = self.waiting.remove(at)
        {
            (chain.cancelled, chain.slow) = (chain.can_be_cancelled(), false);
            self.run(chain, disk);
            self.credited = false;
        }
    }

    fn execute(&mut self, chain: &mut Chain, header: &Header, msg: &[u8], disk: &mut Disk) -> Step {
        let conn = chain.conn;
        let fail = |status| Step::Done(status, u16s(&[9, 0, 0, 0]));
        match header.command {
            Command::NEGOTIATE => return Step::Answer(self.negotiate(conn, header, msg)),
            Command::ECHO => return Step::Done(Status::SUCCESS, u16s(&[4, 0])),
            Command::SESSION_SETUP => {
                if let Err(status) = self.check_cover(chain, header, msg) {
                    return fail(status);
                }
                let (answer, session) = self.session_setup(conn, header, msg);
                chain.session = session;
                let previous =
                    session_setup::Request::parse(msg).map_or(0, |asked| asked.previous_session_id);
                if Header::parse(&answer).is_ok_and(|h| h.status == Status::SUCCESS.0) {
                    self.end_previous(previous, session, disk);
                }
                return Step::Answer(answer);
            }
            _ => {}
        }
        if chain.mark.bridge && header.session_id != 0 && !self.is_mine(conn, header.session_id) {
            self.offend("foreign id", format!("SessionId {:x} is not of this node", header.session_id));
        }
        if !self.sessions.contains_key(&header.session_id) {
            // As Samba does it: with the flags and the signature of the request.
            let mut answer = self.response(conn, header, Status::USER_SESSION_DELETED);
            answer.flags = answer.flags | header.flags;
            answer.signature = header.signature;
            return Step::Answer(encode::error_response(&answer));
        }
        if !chain.checked
            && let Err(status) = self.check_cover(chain, header, msg)
        {
            return fail(status);
        }
        chain.checked = true;
        match header.command {
            Command::LOGOFF => {
                self.cancel_all(header.session_id, disk);
                return Step::Answer(self.logoff(conn, header, disk));
            }
            Command::TREE_CONNECT => return Step::Answer(self.tree_connect(conn, header)),
            Command::OPLOCK_BREAK => return self.acknowledge(chain, msg),
            _ => {}
        }
        let tree = header.tree_id();
        if !self.sessions.get(&header.session_id).is_some_and(|s| tree.is_some_and(|t| s.trees.contains(&t)))
        {
            if chain.mark.bridge {
                self.offend("foreign id", format!("TreeId {tree:x?} is not of this session"));
            }
            return fail(Status::NETWORK_NAME_DELETED);
        }
        if std::mem::take(&mut chain.cancelled) {
            return fail(Status::CANCELLED);
        }
        if self.is_delayed(header, chain) {
            return Step::Wait;
        }
        if header.command == Command::CREATE {
            return self.create(chain, header, msg, disk);
        }
        let id = match patch::request_file_id(msg) {
            Some(FileId::ALL_ONES) => match chain.failed {
                Some(status) => return fail(status),
                None => chain.file,
            },
            Some(id) => id,
            None => return fail(Status::INVALID_PARAMETER),
        };
        chain.file = id;
        if chain.mark.bridge && id != FileId::ALL_ONES && !self.is_mine(conn, id.volatile) {
            self.offend("foreign id", format!("FileId {:x} is not of this node", id.volatile));
        }
        if self.opens.get(&id.volatile).is_none_or(|o| o.session != header.session_id) {
            return fail(Status::FILE_CLOSED);
        }
        self.on_open(chain, header, msg, id, disk)
    }

    /// Some requests take longer.
    fn is_delayed(&self, header: &Header, chain: &mut Chain) -> bool {
        let every = self.setup.slow_every;
        if every == 0 || chain.delayed || !(header.message_id ^ self.setup.seed).is_multiple_of(every) {
            return false;
        }
        // As Samba does it: between the members of a compound it looks at nothing else, and lets what changes a name wait
        // only while others may have to give back a handle lease (smb2_setinfo.c).
        let is_amid = header.command == Command::SET_INFO && !chain.left.is_empty();
        if is_amid && !self.others_cache_handles(chain.file.volatile) {
            return false;
        }
        (chain.delayed, chain.slow) = (true, true);
        true
    }
}
