//! A node in memory: it keeps what MS-SMB2 says a server keeps, as far as the scenarios need it, and is strict about it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use smb_parse::{
    FileId, Utf16,
    cmd::{
        create, negotiate, query_directory, query_info, read, session_setup, set_info, tree_connect, write,
    },
    compound::elements,
    create_context::{Lease, RequestContext, tag},
    encode,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status, Target},
    patch, transform,
};
use understudy_core::{
    auth::{LoginObserver, keys::SessionKey, spnego},
    crypto::{
        Dialect,
        kdf::{self, Direction},
        preauth::Preauth,
        sealing::{Cipher, HEADROOM, Nonces, SealingKey},
        signing::{SigningAlg, SigningKey},
    },
};

use crate::rig::{Counting, Users};

/// The files that all nodes share: name, contents; and the number of each file.
pub(crate) type Disk = Rc<RefCell<BTreeMap<String, (u64, Vec<u8>)>>>;

/// What every node says of itself in NEGOTIATE: signing enabled, large MTU.
pub(crate) const SECURITY_MODE: u16 = 1;
pub(crate) const CAPABILITIES: u32 = 0x4;
/// `SMB2_GLOBAL_CAP_ENCRYPTION`.
pub(crate) const ENCRYPTION: u32 = 0x40;

/// What every node's clock shows, in units of 100 ns: the number of a file is the time at which it was created.
pub(crate) const NOW: u64 = 10 * MINUTE;
/// A minute by that clock.
pub(crate) const MINUTE: u64 = 600_000_000;

/// FILE_WRITE_DATA (MS-SMB2 2.2.13.1.1).
const WRITE_DATA: u32 = 2;
/// FILE_ATTRIBUTE_READONLY and FILE_ATTRIBUTE_ARCHIVE (MS-FSCC 2.6).
const READONLY: u32 = 1;
const ARCHIVE: u32 = 0x20;

/// The access that every Open has, as the node tells whoever asks.
pub(crate) const GRANTED: u32 = 0x0012_019f;

/// The keys that seal a session, either way.
pub(crate) struct Seals {
    pub(crate) to_server: SealingKey,
    pub(crate) to_client: SealingKey,
}

impl Seals {
    pub(crate) fn new(dialect: Dialect, cipher: Cipher, key: &SessionKey, preauth: &Preauth) -> Self {
        let one =
            |way| SealingKey::new(cipher, &kdf::sealing_key(dialect, cipher, way, key, &preauth.value()));
        Self { to_server: one(Direction::ToServer), to_client: one(Direction::ToClient) }
    }
}

/// A sealed frame around these messages.
pub(crate) fn seal(key: &SealingKey, session: u64, nonces: &mut Nonces, body: &[u8]) -> Vec<u8> {
    let mut frame = [&[0; HEADROOM], body].concat();
    assert!(key.seal(&mut frame, session, nonces.next(&mut Counting::from(session))));
    frame
}

struct Session {
    key: Option<Rc<SigningKey>>,
    seals: Option<Rc<Seals>>,
    nonces: Nonces,
    /// MessageIds that were signed with it: with GMAC it is never to be done twice.
    signed: BTreeSet<u64>,
    user: String,
    trees: BTreeSet<u32>,
}

/// What a node knows of one connection.
struct Wire {
    dialect: Dialect,
    cipher: Option<Cipher>,
    preauth: Preauth,
    logins: BTreeMap<u64, Login>,
    message_ids: BTreeSet<u64>,
    /// The keys of sessions of the other connection that this one is bound to.
    channels: BTreeMap<u64, Rc<SigningKey>>,
}

impl Wire {
    fn new() -> Self {
        Self {
            dialect: Dialect::SMB311,
            cipher: None,
            preauth: Preauth::new(),
            logins: BTreeMap::new(),
            message_ids: BTreeSet::new(),
            channels: BTreeMap::new(),
        }
    }
}

struct Login {
    observer: LoginObserver,
    preauth: Preauth,
}

/// What a node shall do out of the ordinary.
#[derive(Clone, Default)]
pub(crate) struct Habits {
    /// Neither executes nor answers these.
    pub(crate) mute: Vec<Command>,
    /// Executes these, but never answers.
    pub(crate) swallows: Vec<Command>,
    /// Says STATUS_PENDING to these before the answer.
    pub(crate) pends: Vec<Command>,
    /// Maps whoever logs in to guest.
    pub(crate) maps_to_guest: bool,
    /// Has no cipher.
    pub(crate) seals_nothing: bool,
    /// Lets no session go on that does not seal.
    pub(crate) encrypts_sessions: bool,
    /// The share is only for those who seal.
    pub(crate) encrypts_share: bool,
    /// Its sessions have expired: all but LOGOFF, CLOSE and LOCK is refused until they are authenticated anew.
    pub(crate) expired: bool,
    /// Signs the last answer of a login wrongly.
    pub(crate) signs_wrongly: bool,
    /// Grants this oplock level, whatever was asked.
    pub(crate) oplock: Option<u8>,
    /// Grants no more than this lease state, with this epoch.
    pub(crate) lease: Option<(u32, u16)>,
    /// Says of every file that it was created then.
    pub(crate) birth: Option<u64>,
    /// Says of every file that it is number 0.
    pub(crate) hides_numbers: bool,
    /// Binds no connection to a session.
    pub(crate) single_channel: bool,
    /// Signs no answer.
    pub(crate) forgets_to_sign: bool,
    /// Tells the names of a directory from the last to the first.
    pub(crate) counts_down: bool,
    /// Says of every file that it was never changed; else that it was just now.
    pub(crate) unchanged: bool,
    /// Says of every file that it was written then.
    pub(crate) written: Option<u64>,
    /// Promises to keep each Open for which that is asked.
    pub(crate) keeps: bool,
    /// The share is one of pipes.
    pub(crate) pipes: bool,
    /// Answers to the next CREATEs, whatever they ask for.
    pub(crate) refuses: VecDeque<Status>,
    /// Denies that file to whoever opens it, so often.
    pub(crate) denies: Option<(String, u32)>,
    /// Names of files that nobody may open to write; shared with the other node.
    pub(crate) read_only: Rc<RefCell<BTreeSet<String>>>,
}

/// One server, its only client, and that client's connections: one, or one more that is bound to its sessions.
pub(crate) struct Node {
    /// Makes its ids unlike those of other nodes.
    base: u64,
    disk: Disk,
    users: Users,
    wire: Wire,
    /// The other connection.
    aside: Wire,
    sessions: BTreeMap<u64, Session>,
    pub(crate) opens: BTreeMap<u64, String>,
    /// The Opens with which their file is deleted.
    doomed: BTreeSet<u64>,
    /// The session of each Open.
    owners: BTreeMap<u64, u64>,
    /// How many names of the disk each Open has told.
    told: BTreeMap<u64, usize>,
    /// The key of a session that has just ended.
    parted: Option<Rc<SigningKey>>,
    /// What it has promised to keep: the CreateGuid, if it was told one, and the name.
    promised: BTreeMap<u64, (Option<[u8; 16]>, String)>,
    /// What it keeps of connections that are over.
    pub(crate) kept: BTreeMap<u64, (Option<[u8; 16]>, String)>,
    next: u64,
    pub(crate) habits: Habits,
    /// Every request it was sent, in order.
    pub(crate) seen: Vec<(Header, Vec<u8>)>,
    /// Which of them came sealed.
    pub(crate) sealed: Vec<bool>,
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Node {
    pub(crate) fn new(base: u64, disk: &Disk, users: &Users) -> Self {
        Self {
            base,
            disk: Rc::clone(disk),
            users: users.clone(),
            wire: Wire::new(),
            aside: Wire::new(),
            sessions: BTreeMap::new(),
            opens: BTreeMap::new(),
            doomed: BTreeSet::new(),
            owners: BTreeMap::new(),
            told: BTreeMap::new(),
            parted: None,
            promised: BTreeMap::new(),
            kept: BTreeMap::new(),
            next: 0,
            habits: Habits::default(),
            seen: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// The connection is over, the node lives.
    pub(crate) fn disconnected(&mut self) -> BTreeMap<u64, (Option<[u8; 16]>, String)> {
        let (opens, mut kept) = (&self.opens, std::mem::take(&mut self.kept));
        kept.extend(std::mem::take(&mut self.promised).into_iter().filter(|(id, _)| opens.contains_key(id)));
        kept
    }

    /// It keeps nothing of what it has promised.
    pub(crate) fn forget_promises(&mut self) {
        self.promised.clear();
    }

    /// The requests of one command it was sent.
    pub(crate) fn seen(&self, command: Command) -> Vec<&(Header, Vec<u8>)> {
        self.seen.iter().filter(|(header, _)| header.command == command).collect()
    }

    /// Takes a frame in on the second connection; the frames that go back.
    pub(crate) fn handle_aside(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        std::mem::swap(&mut self.wire, &mut self.aside);
        let answers = self.handle(frame);
        std::mem::swap(&mut self.wire, &mut self.aside);
        answers
    }

    /// The second connection is a fresh one.
    pub(crate) fn connect_aside(&mut self) {
        self.aside = Wire::new();
    }

    /// Takes a frame in; the frames that go back.
    pub(crate) fn handle(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let (mut chain, mut out) = (Vec::new(), Vec::new());
        let (mut session, mut tree, mut file) = (0, 0, FileId::ALL_ONES);
        let mut keep = false;
        let sealed = (protocol(&frame[PREFIX..]) == Protocol::Transform)
            .then(|| transform::Header::parse(&frame[PREFIX..]).unwrap().session_id);
        let opened = sealed.map(|id| {
            let keys = self.sessions[&id].seals.as_ref().expect("a session that seals");
            keys.to_server.open(&frame[PREFIX..]).expect("the proxy seals rightly").split_off(HEADROOM)
        });
        for element in elements(opened.as_deref().unwrap_or(&frame[PREFIX..])) {
            let element = element.expect("the proxy sends whole messages");
            let (mut header, msg) = (element.header, element.msg.to_vec());
            self.seen.push((header, msg.clone()));
            self.sealed.push(sealed.is_some());
            if header.command == Command::CANCEL {
                continue;
            }
            for id in header.message_id..header.message_id + u64::from(header.credit_charge.max(1)) {
                assert!(self.wire.message_ids.insert(id), "MessageId {id} came twice");
            }
            if header.flags.contains(Flags::RELATED) {
                assert!(!chain.is_empty() || keep, "the first of a compound is related to nothing");
                header.session_id = session;
                header.target = Target::Sync { reserved: 0, tree_id: tree };
            }
            (session, tree) = (header.session_id, header.tree_id().unwrap_or(tree));
            if self.habits.mute.contains(&header.command) {
                keep = true;
                continue;
            }
            if self.habits.pends.contains(&header.command) {
                out.push(self.frame(sealed, encode::error_response(&interim(&header))));
            }
            let answer = self.answer(&header, &msg, sealed.is_some(), &mut file);
            if let Some(answer_header) =
                Header::parse(&answer).ok().filter(|h| h.command == Command::SESSION_SETUP)
            {
                session = answer_header.session_id;
            }
            if self.habits.swallows.contains(&header.command) {
                keep = true;
            } else {
                chain.push((header, session, answer));
            }
        }
        let batches: Vec<&[_]> =
            if keep { chain.chunks(1).collect() } else { chain.chunks(chain.len().max(1)).collect() };
        for batch in batches {
            let answers: Vec<_> = batch.iter().map(|(_, _, answer)| answer).collect();
            let mut body = encode::compound(&answers);
            let ranges: Vec<_> = elements(&body).map(|e| e.unwrap().range).collect();
            for (range, (request, session, _)) in ranges.into_iter().zip(batch) {
                if sealed.is_none() {
                    self.sign(request, *session, &mut body[range]);
                }
            }
            out.push(self.frame(sealed, body));
        }
        out
    }

    /// A frame, sealed in that session if there is one.
    fn frame(&mut self, sealed: Option<u64>, body: Vec<u8>) -> Vec<u8> {
        match sealed.and_then(|id| Some((id, self.sessions.get_mut(&id)?))) {
            Some((id, session)) => {
                let keys = session.seals.clone().expect("keys");
                seal(&keys.to_client, id, &mut session.nonces, &body)
            }
            None => encode::frame(body),
        }
    }

    fn sign(&mut self, request: &Header, session: u64, answer: &mut [u8]) {
        let first = request.command == Command::SESSION_SETUP;
        let parted = self.parted.take();
        let channel = self.wire.channels.get(&session).cloned();
        let key = channel.or_else(|| self.sessions.get(&session)?.key.clone()).or(parted);
        let Some(key) = key.filter(|_| !self.habits.forgets_to_sign) else { return };
        if first || request.flags.contains(Flags::SIGNED) {
            key.sign(answer);
        }
        if first && self.habits.signs_wrongly {
            answer[48] ^= 1;
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.base + self.next
    }

    fn answer(&mut self, header: &Header, msg: &[u8], sealed: bool, file: &mut FileId) -> Vec<u8> {
        let ok = response(header, Status::SUCCESS);
        let fail = |status| encode::error_response(&response(header, status));
        match header.command {
            Command::NEGOTIATE => return self.negotiate(header, msg),
            Command::SESSION_SETUP => return self.session_setup(header, msg),
            Command::ECHO => return encode::echo_response(&ok),
            _ => {}
        }
        let Some(session) = self.sessions.get_mut(&header.session_id) else {
            // As Samba does it: with the flags and the signature of the request.
            let mut answer = response(header, Status::USER_SESSION_DELETED);
            answer.flags = answer.flags | header.flags;
            answer.signature = header.signature;
            return encode::error_response(&answer);
        };
        if self.habits.encrypts_sessions && !sealed {
            return fail(Status::ACCESS_DENIED);
        }
        if header.flags.contains(Flags::SIGNED) {
            let channel = self.wire.channels.get(&header.session_id);
            assert!(channel.is_some() || session.signed.insert(header.message_id), "a nonce came twice");
            let key = channel.or(session.key.as_ref()).expect("a signed request on a session without key");
            assert!(key.verify_mut(&mut msg.to_vec()), "a {} came wrongly signed", header.command.name());
        }
        if self.habits.expired && !matches!(header.command, Command::LOGOFF | Command::CLOSE | Command::LOCK)
        {
            return fail(Status::NETWORK_SESSION_EXPIRED);
        }
        if header.command == Command::LOGOFF {
            self.end_session(header.session_id);
            return body(&ok, &u16s(&[4, 0]));
        }
        if header.command == Command::TREE_CONNECT {
            tree_connect::Request::parse(msg).expect("TREE_CONNECT");
            let id = u32::try_from(self.next + self.base).unwrap() + 7;
            session.trees.insert(id);
            self.next += 1;
            let mut ok = ok;
            ok.target = Target::Sync { reserved: 0, tree_id: id };
            let flags = if self.habits.encrypts_share { 0x8000_u32 } else { 0 }.to_le_bytes();
            let kind = if self.habits.pipes { 2 } else { 1 };
            let access = 0x001f_01ff_u32.to_le_bytes();
            return body(&ok, &[&u16s(&[16])[..], &[kind, 0], &flags, &[0; 4], &access].concat());
        }
        if !header.tree_id().is_some_and(|tree| session.trees.contains(&tree)) {
            return fail(Status::NETWORK_NAME_DELETED);
        }
        if self.habits.encrypts_share && !sealed {
            return fail(Status::ACCESS_DENIED);
        }
        if header.command == Command::CREATE {
            return self.create(header, msg, file);
        }
        let id = match patch::request_file_id(msg) {
            Some(FileId::ALL_ONES) => *file,
            Some(id) => id,
            None => return fail(Status::NOT_SUPPORTED),
        };
        *file = id;
        let Some(name) = self.opens.get(&id.volatile).cloned() else { return fail(Status::FILE_CLOSED) };
        self.on_file(header, msg, id, &name)
    }

    fn on_file(&mut self, header: &Header, msg: &[u8], id: FileId, name: &str) -> Vec<u8> {
        let ok = response(header, Status::SUCCESS);
        if header.command == Command::QUERY_DIRECTORY {
            return self.names(header, msg, id);
        }
        if header.command == Command::SET_INFO {
            return self.set_info(header, msg, id, name);
        }
        let mut disk = self.disk.borrow_mut();
        let Some((number, data)) = disk.get_mut(name) else {
            return encode::error_response(&response(header, Status::DELETE_PENDING));
        };
        match header.command {
            Command::READ => {
                let asked = read::Request::parse(msg).expect("READ");
                let from = usize::try_from(asked.offset).unwrap().min(data.len());
                let to = (from + asked.length as usize).min(data.len());
                if from == to {
                    return encode::error_response(&response(header, Status::END_OF_FILE));
                }
                encode::read_response(&ok, &data[from..to])
            }
            Command::WRITE => {
                let asked = write::Request::parse(msg).expect("WRITE");
                let at = match asked.offset {
                    u64::MAX => data.len(),
                    offset => usize::try_from(offset).unwrap(),
                };
                data.resize(data.len().max(at + asked.data.len()), 0);
                data[at..at + asked.data.len()].copy_from_slice(asked.data);
                encode::write_response(&ok, u32::try_from(asked.data.len()).unwrap())
            }
            Command::CLOSE => {
                self.opens.remove(&id.volatile);
                if self.doomed.remove(&id.volatile) {
                    disk.remove(name);
                }
                body(&ok, &[&u16s(&[60])[..], &[0; 58]].concat())
            }
            Command::QUERY_INFO => {
                let asked = query_info::Request::parse(msg).expect("QUERY_INFO");
                let end = data.len() as u64;
                let info = match asked.file_info_class {
                    5 => [end, end, 1].into_iter().flat_map(u64::to_le_bytes).collect(),
                    6 if self.habits.hides_numbers => vec![0; 8],
                    6 => number.to_le_bytes().to_vec(),
                    8 => GRANTED.to_le_bytes().to_vec(),
                    _ => b"info".to_vec(),
                };
                let len = u32::try_from(info.len()).unwrap();
                body(&ok, &[&u16s(&[9, 72])[..], &len.to_le_bytes(), &info].concat())
            }
            Command::LOCK => body(&ok, &u16s(&[4, 0])),
            Command::FLUSH => body(&ok, &u16s(&[4, 0])),
            // It has too much to tell.
            Command::CHANGE_NOTIFY => encode::error_response(&response(header, Status::NOTIFY_ENUM_DIR)),
            _ => encode::error_response(&response(header, Status::NOT_SUPPORTED)),
        }
    }

    fn set_info(&mut self, header: &Header, msg: &[u8], id: FileId, name: &str) -> Vec<u8> {
        const BASIC: u8 = 4;
        const DISPOSITION: u8 = 13;
        const END_OF_FILE: u8 = 20;
        let asked = set_info::Request::parse(msg).expect("SET_INFO");
        match asked.file_info_class {
            END_OF_FILE => {
                let size: [u8; 8] = asked.buffer.try_into().expect("a size");
                let size = usize::try_from(u64::from_le_bytes(size)).unwrap();
                if let Some((_, data)) = self.disk.borrow_mut().get_mut(name) {
                    data.resize(size, 0);
                }
            }
            DISPOSITION if asked.buffer == [1] => {
                self.doomed.insert(id.volatile);
            }
            DISPOSITION => {
                self.doomed.remove(&id.volatile);
            }
            BASIC => {
                let attributes = u32::from_le_bytes(asked.buffer[32..36].try_into().expect("attributes"));
                let mut read_only = self.habits.read_only.borrow_mut();
                if attributes & READONLY != 0 {
                    read_only.insert(name.into());
                } else if attributes != 0 {
                    read_only.remove(name);
                }
            }
            _ => return self.change_name(header, msg, name),
        }
        encode::set_info_response(&response(header, Status::SUCCESS))
    }

    /// The next names of the disk, which is one directory, as FileNamesInformation: as many as have room in OutputBufferLength
    /// if each took 32 bytes.
    fn names(&mut self, header: &Header, msg: &[u8], id: FileId) -> Vec<u8> {
        const RESTART: u8 = 1;
        let asked = query_directory::Request::parse(msg).expect("QUERY_DIRECTORY");
        let mut names: Vec<String> = self.disk.borrow().keys().cloned().collect();
        if self.habits.counts_down {
            names.reverse();
        }
        let told = self.told.entry(id.volatile).or_default();
        if asked.flags & RESTART != 0 {
            *told = 0;
        }
        let count = usize::try_from(asked.output_buffer_length).unwrap() / 32;
        let page: Vec<_> = names.iter().skip(*told).take(count).collect();
        *told += page.len();
        if page.is_empty() {
            return encode::error_response(&response(header, Status::NO_MORE_FILES));
        }
        let mut out = Vec::new();
        for (index, name) in page.iter().enumerate() {
            let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let len = u32::try_from(name.len()).unwrap().to_le_bytes();
            let mut entry = [&[0; 8][..], &len, &name].concat();
            if index + 1 < page.len() {
                entry.resize(entry.len().next_multiple_of(8), 0);
                let next = u32::try_from(entry.len()).unwrap();
                entry[..4].copy_from_slice(&next.to_le_bytes());
            }
            out.extend(entry);
        }
        encode::query_directory_response(&response(header, Status::SUCCESS), &out)
    }

    /// Rename and link; streams and what is beneath move along.
    fn change_name(&mut self, header: &Header, msg: &[u8], name: &str) -> Vec<u8> {
        const LINK: u8 = 11;
        let asked = set_info::Request::parse(msg).expect("SET_INFO");
        let to = Utf16(asked.new_name().expect("a new name")).to_string_lossy();
        let mut disk = self.disk.borrow_mut();
        if disk.contains_key(&to) && asked.buffer[0] == 0 {
            return encode::error_response(&response(header, Status::OBJECT_NAME_COLLISION));
        }
        if asked.file_info_class == LINK {
            let file = disk[name].clone();
            disk.insert(to, file);
            return encode::set_info_response(&response(header, Status::SUCCESS));
        }
        let moved = |old: &String| {
            let rest = old.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(['\\', ':'])).then(|| format!("{to}{rest}"))
        };
        let names: Vec<_> = disk.keys().filter_map(|old| Some((old.clone(), moved(old)?))).collect();
        for (old, new) in names {
            let file = disk.remove(&old).expect("it was there");
            disk.insert(new, file);
        }
        for open in self.opens.values_mut() {
            *open = moved(open).unwrap_or_else(|| open.clone());
        }
        encode::set_info_response(&response(header, Status::SUCCESS))
    }

    fn create(&mut self, header: &Header, msg: &[u8], file: &mut FileId) -> Vec<u8> {
        const CREATED: u32 = 2;
        const DELETE_ON_CLOSE: u32 = 0x1000;
        let asked = create::Request::parse(msg).expect("CREATE");
        if let Some(status) = self.habits.refuses.pop_front() {
            return encode::error_response(&response(header, status));
        }
        let mut name = asked.name.to_string_lossy();
        let (mut promise, mut known) = (None, None);
        for context in asked.contexts().flatten() {
            match RequestContext::parse(&context) {
                RequestContext::Durable => promise = Some(None),
                RequestContext::DurableV2 { create_guid, .. } => promise = Some(Some(create_guid)),
                RequestContext::DurableReconnect { file_id } => known = Some((file_id, None)),
                RequestContext::DurableReconnectV2 { file_id, create_guid, .. } => {
                    known = Some((file_id, Some(create_guid)));
                }
                _ => {}
            }
        }
        if let Some((file_id, guid)) = known {
            let alone =
                asked.contexts().flatten().all(|c| [tag::DHNC, tag::DH2C, tag::RQLS].contains(&c.tag));
            match self.kept.remove(&file_id.persistent) {
                Some((promised, kept)) if alone && promised == guid => (promise, name) = (Some(guid), kept),
                _ => return encode::error_response(&response(header, Status::OBJECT_NAME_NOT_FOUND)),
            }
        }
        if let Some((denied, times)) = self.habits.denies.as_mut().filter(|(_, times)| *times > 0)
            && *denied == name
        {
            *times -= 1;
            return encode::error_response(&response(header, Status::ACCESS_DENIED));
        }
        let exists = self.disk.borrow().contains_key(&name);
        let read_only = self.habits.read_only.borrow().contains(&name);
        let writes = asked.desired_access & WRITE_DATA != 0;
        let status = match (asked.create_disposition, exists) {
            (1 | 4, false) => Status::OBJECT_NAME_NOT_FOUND,
            (CREATED, true) => Status::OBJECT_NAME_COLLISION,
            (_, true) if read_only && writes => Status::ACCESS_DENIED,
            _ => Status::SUCCESS,
        };
        if status != Status::SUCCESS {
            return encode::error_response(&response(header, status));
        }
        let id = self.fresh();
        let (number, size) = {
            let mut disk = self.disk.borrow_mut();
            let (number, data) = disk.entry(name.clone()).or_insert((NOW + id, Vec::new()));
            if matches!(asked.create_disposition, 0 | 4 | 5) {
                data.clear();
            }
            (*number, data.len() as u64)
        };
        let kept_name = name.clone();
        self.opens.insert(id, name);
        if asked.create_options & DELETE_ON_CLOSE != 0 {
            self.doomed.insert(id);
        }
        self.owners.insert(id, header.session_id);
        *file = FileId { persistent: id, volatile: id };
        let oplock = self.habits.oplock.unwrap_or(asked.requested_oplock_level);
        let birth = self.habits.birth.unwrap_or(number);
        let action: u32 = match asked.create_disposition {
            _ if !exists => CREATED,
            0 => 0,
            4 | 5 => 3,
            _ => 1,
        };
        let attributes = if read_only { READONLY } else { ARCHIVE };
        let mut out = [&u16s(&[89])[..], &[oplock, 0], &action.to_le_bytes(), &birth.to_le_bytes()].concat();
        let written = self.habits.written.unwrap_or(birth).to_le_bytes();
        let changed = if self.habits.unchanged { 0 } else { NOW }.to_le_bytes();
        // Never read; not allocated.
        out.extend([[0; 8], written, changed, [0; 8], size.to_le_bytes()].concat());
        out.extend([attributes.to_le_bytes(), [0; 4]].concat());
        out.extend(file.to_bytes());
        out.extend([0; 8]);
        let ok = response(header, Status::SUCCESS);
        let plain = body(&ok, &out);
        let mut contexts: Vec<(&[u8], Vec<u8>)> = Vec::new();
        if known.is_none() && asked.contexts().flatten().any(|context| context.tag == tag::QFID) {
            contexts.push((tag::QFID, [&number.to_le_bytes()[..], &[0; 24]].concat()));
        }
        if let Some(guid) = promise.filter(|_| self.habits.keeps || known.is_some()) {
            self.promised.insert(id, (guid, kept_name));
            match guid {
                _ if known.is_some() => {}
                None => contexts.push((tag::DHNQ, vec![0; 8])),
                Some(_) => contexts.push((tag::DH2Q, [60_000_u32.to_le_bytes(), [0; 4]].concat())),
            }
        }
        let lease = asked.contexts().flatten().find_map(|context| match RequestContext::parse(&context) {
            RequestContext::Lease(lease) => Some(lease),
            _ => None,
        });
        if let (Some(lease), Some((most, epoch))) = (lease, self.habits.lease) {
            let granted = Lease { state: lease.state & most, epoch, flags: 0, parent_key: [0; 16], ..lease };
            contexts.push((tag::RQLS, encode::lease(&granted)));
        }
        encode::create_response(&ok, &create::Response::parse(&plain).expect("an answer"), &contexts)
    }

    fn negotiate(&mut self, header: &Header, msg: &[u8]) -> Vec<u8> {
        self.wire.preauth.update(msg);
        let asked = negotiate::Request::parse(msg).expect("NEGOTIATE");
        self.wire.dialect = Dialect(asked.dialects().max().expect("a dialect"));
        let newest = self.wire.dialect == Dialect::SMB311;
        let offered = asked.contexts().filter_map(Result::ok).find_map(|context| match context {
            negotiate::Context::Encryption { ciphers } => ciphers.iter().next().and_then(Cipher::from_wire),
            _ => None,
        });
        let old = Dialect::SMB300..Dialect::SMB311;
        let old = old.contains(&self.wire.dialect) && asked.capabilities & ENCRYPTION != 0;
        let offered = offered.or(old.then_some(Cipher::Aes128Ccm));
        self.wire.cipher = offered.filter(|_| !self.habits.seals_nothing);
        let named = self.wire.cipher.filter(|_| newest);
        let contexts: u16 = if newest { 2 + u16::from(named.is_some()) } else { 0 };
        // Each connection says something else of itself than the last one did.
        let guid = [self.base.to_le_bytes(), [7; 8]].concat();
        let mut out = [&u16s(&[65, SECURITY_MODE, self.wire.dialect.0, contexts])[..], &guid].concat();
        let encryption = if self.wire.cipher.is_some() && !newest { ENCRYPTION } else { 0 };
        out.extend((CAPABILITIES | encryption).to_le_bytes());
        for _ in 0..3 {
            out.extend((8_u32 << 20).to_le_bytes());
        }
        out.extend([NOW.to_le_bytes(), [0; 8]].concat());
        out.extend([&u16s(&[128, 0])[..], &(if newest { 128_u32 } else { 0 }).to_le_bytes()].concat());
        if newest {
            // Preauthentication integrity, then signing by GMAC; each padded to 8 bytes.
            out.extend([&u16s(&[1, 8])[..], &[0; 4], &u16s(&[1, 2, 1]), &[9, 9]].concat());
            out.extend([&u16s(&[8, 4])[..], &[0; 4], &u16s(&[1, 2])].concat());
        }
        if let Some(cipher) = named {
            out.extend([&[0; 4][..], &u16s(&[2, 4]), &[0; 4], &u16s(&[1, cipher.wire()])].concat());
        }
        let answer = body(&response(header, Status::SUCCESS), &out);
        self.wire.preauth.update(&answer);
        answer
    }

    fn session_setup(&mut self, header: &Header, msg: &[u8]) -> Vec<u8> {
        let asked = session_setup::Request::parse(msg).expect("SESSION_SETUP");
        let known =
            self.wire.logins.contains_key(&header.session_id) || self.user(header.session_id).is_some();
        if header.session_id != 0 && !known {
            return encode::error_response(&response(header, Status::USER_SESSION_DELETED));
        }
        let id = if header.session_id == 0 { self.fresh() } else { header.session_id };
        let setup = |status, flags: u16, token: &[u8]| {
            let mut header = response(header, status);
            header.session_id = id;
            encode::session_setup_response(&header, flags, token)
        };
        let binds = asked.flags & session_setup::BINDING != 0;
        if binds && !self.may_bind(header, msg) {
            return setup(Status::REQUEST_NOT_ACCEPTED, 0, &[]);
        }
        let is_first = !self.wire.logins.contains_key(&id);
        let preauth = self.wire.preauth.clone();
        let login = self
            .wire
            .logins
            .entry(id)
            .or_insert_with(|| Login { observer: LoginObserver::default(), preauth });
        login.observer.client_token(asked.security_buffer);
        login.preauth.update(msg);
        if is_first {
            let challenge = spnego::response(&challenge(self.base), None);
            login.observer.server_token(&challenge);
            let mut answer = setup(Status::MORE_PROCESSING_REQUIRED, 0, &challenge);
            if let Some(key) = self.sessions.get(&id).and_then(|s| s.key.as_ref()).filter(|_| binds) {
                key.sign(&mut answer);
            }
            login.preauth.update(&answer);
            return answer;
        }
        let Some(mut login) = self.wire.logins.remove(&id) else {
            return setup(Status::LOGON_FAILURE, 0, &[]);
        };
        let outcome = login.observer.finish(0, &[], &self.users);
        let key = match outcome.result {
            Ok(derived) if !self.habits.maps_to_guest => derived.session_keys.into_iter().next(),
            Ok(_) => None,
            Err(_) if outcome.user == "nobody" || self.habits.maps_to_guest => None,
            Err(_) => {
                // As Samba does: whoever fails to prove anew who they are has no session any more.
                self.end_session(id);
                return setup(Status::LOGON_FAILURE, 0, &[]);
            }
        };
        let encrypts = self.habits.encrypts_sessions && key.is_some();
        let flags = u16::from(key.is_none()) | if encrypts { 4 } else { 0 };
        if binds {
            let same = self.user(id) == Some(&outcome.user);
            let Some(key) = key.filter(|_| same) else { return setup(Status::ACCESS_DENIED, 0, &[]) };
            let bytes = kdf::signing_key(self.wire.dialect, &key, &login.preauth.value());
            let key = Rc::new(SigningKey::new(signing_alg(self.wire.dialect), &bytes));
            self.wire.channels.insert(id, key);
            return setup(Status::SUCCESS, flags, &[]);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            self.habits.expired = false;
            session.user = outcome.user;
            return setup(Status::SUCCESS, flags, &[]);
        }
        let seals = key
            .as_ref()
            .zip(self.wire.cipher)
            .map(|(key, cipher)| Rc::new(Seals::new(self.wire.dialect, cipher, key, &login.preauth)));
        let key = key.map(|key| {
            let bytes = kdf::signing_key(self.wire.dialect, &key, &login.preauth.value());
            Rc::new(SigningKey::new(signing_alg(self.wire.dialect), &bytes))
        });
        let (user, trees, signed) = (outcome.user, BTreeSet::new(), BTreeSet::new());
        self.sessions.insert(id, Session { key, seals, nonces: Nonces::default(), signed, user, trees });
        setup(Status::SUCCESS, flags, &[])
    }

    /// Whether a connection may be bound to the session; the request must show that it knows the session's key.
    fn may_bind(&mut self, header: &Header, msg: &[u8]) -> bool {
        let Some(session) = self.sessions.get_mut(&header.session_id) else { return false };
        let Some(key) = &session.key else { return false };
        assert!(header.flags.contains(Flags::SIGNED), "a binding came unsigned");
        assert!(key.verify_mut(&mut msg.to_vec()), "a binding came wrongly signed");
        let is_nonce = signing_alg(self.wire.dialect) == SigningAlg::AesGmac;
        assert!(session.signed.insert(header.message_id) || !is_nonce, "a nonce came twice");
        !self.habits.single_channel
    }

    /// Whose session that is.
    pub(crate) fn user(&self, session: u64) -> Option<&str> {
        self.sessions.get(&session).map(|s| s.user.as_str())
    }

    /// The users of all sessions.
    pub(crate) fn users(&self) -> Vec<&str> {
        self.sessions.values().map(|s| s.user.as_str()).collect()
    }

    /// A session of that user.
    pub(crate) fn session_of(&self, user: &str) -> Option<u64> {
        self.sessions.iter().find(|(_, s)| s.user == user).map(|(id, _)| *id)
    }

    /// The key of the session that has just ended signs nothing.
    pub(crate) fn forget_key(&mut self) {
        self.parted = None;
    }

    /// Ends a session, with all that it has open. Its key signs one more answer.
    pub(crate) fn end_session(&mut self, id: u64) {
        if let Some(session) = self.sessions.remove(&id) {
            self.parted = session.key;
            self.aside.channels.remove(&id);
            let owners = &self.owners;
            self.opens.retain(|open, _| owners.get(open) != Some(&id));
        }
    }
}

/// How all nodes sign.
pub(crate) fn signing_alg(dialect: Dialect) -> SigningAlg {
    match dialect {
        Dialect::SMB202 | Dialect::SMB210 => SigningAlg::HmacSha256,
        Dialect::SMB311 => SigningAlg::AesGmac,
        _ => SigningAlg::AesCmac,
    }
}

/// An NTLM CHALLENGE (MS-NLMP 2.2.1.2) with an empty TargetInfo.
fn challenge(base: u64) -> Vec<u8> {
    use understudy_core::auth::ntlm::message::{SIGNATURE, flags};
    let flags = flags::UNICODE
        | flags::NTLM
        | flags::EXTENDED_SECURITY
        | flags::TARGET_INFO
        | flags::KEY_128
        | flags::KEY_EXCH;
    let mut out = SIGNATURE.to_vec();
    out.extend(2_u32.to_le_bytes());
    out.extend([0, 0, 0, 0, 48, 0, 0, 0]);
    out.extend(flags.to_le_bytes());
    out.extend(base.to_le_bytes());
    out.extend([0; 8]);
    out.extend([16, 0, 16, 0, 48, 0, 0, 0]);
    out.extend([7, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    out
}

/// The header of an answer that grants what was asked.
pub(crate) fn response(request: &Header, status: Status) -> Header {
    Header {
        status: status.0,
        flags: Flags::SERVER_TO_REDIR,
        next_command: 0,
        credits: request.credits.max(1),
        signature: [0; 16],
        ..*request
    }
}

/// The header of a STATUS_PENDING.
pub(crate) fn interim(request: &Header) -> Header {
    let mut header = response(request, Status::PENDING);
    header.flags = header.flags | Flags::ASYNC;
    header.target = Target::Async { async_id: request.message_id + 0x1_0000 };
    header
}

fn body(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut msg = vec![0; Header::LEN];
    header.write(&mut msg);
    msg.extend_from_slice(body);
    msg
}
