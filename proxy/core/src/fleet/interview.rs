//! Finding out a node's [`Profile`]: what to ask it, one question at a time, and what its answers mean.
//!
//! An answer to NEGOTIATE names one dialect, one cipher and one signing algorithm, the ones that the node likes best of
//! those offered. So each is offered alone, on a connection of its own. On the last connection a login is begun, for the
//! node's CHALLENGE names it; it is gone through with only if a user was given, for whom volumes are looked at.
//!
//! The owner's loop: do what [`Interview::ask`] says, give the answer to [`Interview::handle_answer`] or tell
//! [`Interview::handle_closed`]; when there is nothing left to ask, [`Interview::finish`].

use std::collections::VecDeque;

use smb_parse::{
    FileId,
    cmd::{create, negotiate, query_info, session_setup},
    encode::{self, CreateParams, NegotiateParams, QueryInfoParams, SessionSetupParams},
    header::{Command, Flags, Header, Status, Target},
};

use super::profile::{Granted, Profile, Volume};
use crate::{
    auth::{
        Identity, Kind, Login,
        keys::NtHash,
        ntlm::message::{Challenge, utf16},
        spnego,
    },
    crypto::{Dialect, kdf, preauth::Preauth, signing::SigningKey},
    link::connection::Connection,
    random::Random,
};

/// The dialects that clients use, but for 3.1.1, which is asked for by its algorithms.
const OLDER: [Dialect; 4] = [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302];
/// Ciphers (MS-SMB2 2.2.3.1.2).
const CIPHERS: [u16; 4] = [4, 3, 2, 1];
/// Signing algorithms (MS-SMB2 2.2.3.1.7). Samba refuses a NEGOTIATE for want of one in common, so that a cipher is asked
/// for with all of these.
const SIGNING: [u16; 3] = [2, 1, 0];
/// All capabilities: a node names its own only to a client that has them too.
const CAPABILITIES: u32 = 0x7f;
/// `SIGNING_ENABLED` (MS-SMB2 2.2.3).
const SIGNING_ENABLED: u16 = 1;
/// READ_CONTROL, FILE_READ_ATTRIBUTES (MS-SMB2 2.2.13.1).
const LOOK: u32 = 0x0002_0080;
/// Nobody is kept out.
const SHARE_ALL: u32 = 7;
/// FILE_OPEN, and FILE_DIRECTORY_FILE (MS-SMB2 2.2.13).
const OPEN: u32 = 1;
const DIRECTORY: u32 = 1;
/// Impersonation (MS-SMB2 2.2.13).
const IMPERSONATION: u32 = 2;
/// FileFsVolumeInformation (MS-FSCC 2.5.9).
const VOLUME_INFORMATION: u8 = 1;

/// In whose name volumes are looked at.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The user.
    pub user: String,
    /// Their hash.
    pub hash: NtHash,
    /// How the node is called in paths.
    pub host: String,
    /// The shares.
    pub shares: Vec<String>,
}

/// What the owner has to do. A message is without the length prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// End the connection, if there is one, and send this on a new one.
    Fresh(Vec<u8>),
    /// Send this on the same connection.
    Same(Vec<u8>),
    /// Nothing to send: the answer is still to come.
    Wait,
}

/// One question. Not to be printed: it may hold a user's proof.
enum Question {
    Dialect(Dialect),
    /// 3.1.1 with one cipher alone.
    Cipher(u16),
    /// 3.1.1 with one signing algorithm alone.
    Signing(u16),
    /// NEGOTIATE for the connection of the login.
    Session(Dialect),
    Challenge,
    Authenticate(Vec<u8>),
    Tree(String),
    Root(String),
    Volume(String, FileId),
}

/// The connection of the login.
struct Talk {
    conn: Connection,
    preauth: Preauth,
    login: Login,
    next_message: u64,
    session: u64,
    tree: u32,
    key: Option<SigningKey>,
}

/// An interview under way. It asks each question once.
pub struct Interview {
    profile: Profile,
    /// To be asked, in order.
    plan: VecDeque<Question>,
    /// Asked, and not answered yet.
    asked: Option<Question>,
    /// Interim answers are not counted as one.
    waits: bool,
    visitor: Option<Visitor>,
    talk: Option<Talk>,
}

impl std::fmt::Debug for Interview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interview").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Interview {
    /// An interview that has not begun. Without a visitor nobody logs in.
    pub fn new(visitor: Option<Visitor>) -> Self {
        let older = OLDER.map(Question::Dialect).into_iter();
        let plan = older.chain(CIPHERS.map(Question::Cipher)).chain(SIGNING.map(Question::Signing)).collect();
        Self { profile: Profile::default(), plan, asked: None, waits: false, visitor, talk: None }
    }

    /// What to do next. `None`: that was all.
    pub fn ask(&mut self, random: &mut dyn Random) -> Option<Ask> {
        if self.asked.is_some() {
            return if std::mem::take(&mut self.waits) { Some(Ask::Wait) } else { None };
        }
        if self.plan.is_empty() && self.talk.is_none() {
            // The newest dialect that it has.
            let newest = self.profile.dialects.keys().next_back().copied()?;
            self.plan.push_back(Question::Session(newest));
        }
        let question = self.plan.pop_front()?;
        let ask = match &question {
            Question::Dialect(dialect) => Ask::Fresh(negotiate(*dialect, &[], &[], random)),
            Question::Cipher(cipher) => Ask::Fresh(negotiate(Dialect::SMB311, &[*cipher], &SIGNING, random)),
            Question::Signing(alg) => Ask::Fresh(negotiate(Dialect::SMB311, &CIPHERS, &[*alg], random)),
            Question::Session(dialect) => {
                let msg = negotiate(*dialect, &CIPHERS, &SIGNING, random);
                self.talk = Some(Talk::new(&msg, self.visitor.as_ref()));
                Ask::Fresh(msg)
            }
            rest => Ask::Same(self.talk.as_mut()?.request(rest, self.visitor.as_ref(), random)),
        };
        self.asked = Some(question);
        Some(ask)
    }

    /// The answer, without the length prefix. It may be anything.
    pub fn handle_answer(&mut self, msg: &mut [u8], random: &mut dyn Random) {
        let Ok(header) = Header::parse(msg) else { return self.handle_closed() };
        if header.flags.contains(Flags::ASYNC) && Status(header.status) == Status::PENDING {
            self.waits = self.asked.is_some();
            return;
        }
        match self.asked.take() {
            None => {}
            Some(Question::Dialect(dialect)) => self.granted(dialect, msg),
            Some(question @ (Question::Cipher(_) | Question::Signing(_))) => {
                self.granted(Dialect::SMB311, msg);
                self.agreed(&question, msg);
            }
            Some(Question::Session(_)) if self.talk.as_mut().is_some_and(|talk| talk.conn.response(msg)) => {
                self.plan.push_back(Question::Challenge);
            }
            Some(Question::Session(_)) => {}
            Some(Question::Challenge) => self.challenged(&header, msg, random),
            Some(Question::Authenticate(_)) => self.authenticated(&header, msg),
            Some(Question::Tree(share) | Question::Root(share) | Question::Volume(share, _))
                if !self.is_trusted(msg) =>
            {
                self.refused(share, Status::ACCESS_DENIED.0);
            }
            Some(Question::Tree(share) | Question::Root(share) | Question::Volume(share, _))
                if Status(header.status) != Status::SUCCESS =>
            {
                self.refused(share, header.status);
            }
            Some(Question::Tree(share)) => {
                if let (Some(talk), Some(tree)) = (&mut self.talk, header.tree_id()) {
                    talk.tree = tree;
                    self.plan.push_front(Question::Root(share));
                }
            }
            Some(Question::Root(share)) => match create::Response::parse(msg) {
                Ok(root) => self.plan.push_front(Question::Volume(share, root.file_id)),
                Err(_) => self.refused(share, Status::INTERNAL_ERROR.0),
            },
            Some(Question::Volume(share, _)) => {
                let volume = match serial(msg) {
                    Some(serial) => Volume::Serial(serial),
                    None => Volume::Refused(Status::INTERNAL_ERROR.0),
                };
                self.profile.volumes.insert(share, volume);
            }
        }
    }

    /// The node ended the connection instead of answering.
    pub fn handle_closed(&mut self) {
        match self.asked.take() {
            Some(Question::Dialect(_) | Question::Cipher(_) | Question::Signing(_)) | None => {}
            Some(_) => self.plan.clear(),
        }
    }

    /// What was found out. `None` if the node accepts no dialect at all.
    pub fn finish(self) -> Option<Profile> {
        (!self.profile.dialects.is_empty()).then_some(self.profile)
    }

    fn granted(&mut self, dialect: Dialect, msg: &[u8]) {
        let Ok(response) = negotiate::Response::parse(msg) else { return };
        if response.dialect_revision != dialect.0 {
            return;
        }
        let granted = Granted {
            server_guid: response.server_guid,
            security_mode: response.security_mode,
            capabilities: response.capabilities,
            max_transact: response.max_transact_size,
            max_read: response.max_read_size,
            max_write: response.max_write_size,
        };
        self.profile.dialects.insert(dialect, granted);
    }

    /// Whether the node has taken the algorithm that was the only one of its kind.
    fn agreed(&mut self, question: &Question, msg: &[u8]) {
        let Ok(response) = negotiate::Response::parse(msg) else { return };
        for context in response.contexts().filter_map(Result::ok) {
            match (question, context) {
                (Question::Cipher(offered), negotiate::Context::Encryption { ciphers })
                    if ciphers.iter().eq([*offered]) =>
                {
                    self.profile.ciphers.insert(*offered);
                }
                (Question::Signing(offered), negotiate::Context::Signing { algorithms })
                    if algorithms.iter().eq([*offered]) =>
                {
                    self.profile.signing.insert(*offered);
                }
                _ => {}
            }
        }
    }

    fn challenged(&mut self, header: &Header, msg: &[u8], random: &mut dyn Random) {
        let Ok(response) = session_setup::Response::parse(msg) else { return };
        if Status(header.status) != Status::MORE_PROCESSING_REQUIRED {
            return;
        }
        let token = response.security_buffer;
        self.profile.names = spnego::unwrap(token).token.and_then(Challenge::parse).map(|c| c.names());
        let (Some(talk), Some(visitor)) = (&mut self.talk, &self.visitor) else { return };
        talk.preauth.update(msg);
        talk.session = header.session_id;
        match talk.login.step(token, random) {
            Ok(token) => self.plan.push_back(Question::Authenticate(token)),
            Err(_) => visitor
                .shares
                .clone()
                .into_iter()
                .for_each(|share| self.refused(share, Status::LOGON_FAILURE.0)),
        }
    }

    /// SUCCESS counts only signed under the key that we derived: as guest one may see another volume.
    fn authenticated(&mut self, header: &Header, msg: &mut [u8]) {
        let shares = self.visitor.as_ref().map(|visitor| visitor.shares.clone()).unwrap_or_default();
        let status = Status(header.status);
        if let Some(talk) = &mut self.talk
            && status == Status::SUCCESS
            && let Ok(response) = session_setup::Response::parse(msg)
            && talk.login.finish(response.security_buffer).is_ok()
            && let Some(key) = talk.login.session_key()
        {
            let dialect = talk.conn.dialect.unwrap_or(Dialect::SMB202);
            let key =
                SigningKey::new(talk.conn.signing, &kdf::signing_key(dialect, key, &talk.preauth.value()));
            if header.flags.contains(Flags::SIGNED) && key.verify_mut(msg) {
                talk.key = Some(key);
                self.plan.extend(shares.into_iter().map(Question::Tree));
                return;
            }
        }
        let status = if status == Status::SUCCESS { Status::LOGON_FAILURE } else { status };
        shares.into_iter().for_each(|share| self.refused(share, status.0));
    }

    fn is_trusted(&self, msg: &mut [u8]) -> bool {
        self.talk.as_ref().and_then(|talk| talk.key.as_ref()).is_some_and(|key| key.verify_mut(msg))
    }

    fn refused(&mut self, share: String, status: u32) {
        self.profile.volumes.insert(share, Volume::Refused(status));
    }
}

impl Talk {
    fn new(negotiate: &[u8], visitor: Option<&Visitor>) -> Self {
        let identity = Identity {
            user: visitor.map(|visitor| visitor.user.clone()).unwrap_or_default(),
            domain: String::new(),
            workstation: "UNDERSTUDY".into(),
            kind: Kind::Ntlm,
        };
        let login = Login::ntlm(&identity, visitor.map(|visitor| visitor.hash.clone()), true);
        let mut conn = Connection::new();
        conn.request(negotiate);
        Self { conn, preauth: Preauth::new(), login, next_message: 1, session: 0, tree: 0, key: None }
    }

    /// The message that asks this.
    fn request(
        &mut self,
        question: &Question,
        visitor: Option<&Visitor>,
        random: &mut dyn Random,
    ) -> Vec<u8> {
        let header = |command, talk: &Self| Header {
            credit_charge: u16::from(talk.conn.dialect > Some(Dialect::SMB202)),
            session_id: talk.session,
            target: Target::Sync { reserved: 0, tree_id: talk.tree },
            flags: if talk.key.is_some() { Flags::SIGNED } else { Flags::default() },
            ..Header::request(command, talk.next_message)
        };
        let mut msg = match question {
            Question::Tree(share) => {
                self.tree = 0;
                let host = visitor.map(|visitor| visitor.host.as_str()).unwrap_or_default();
                encode::tree_connect(
                    &header(Command::TREE_CONNECT, self),
                    &utf16(&format!("\\\\{host}\\{share}")),
                )
            }
            Question::Root(_) => encode::create(&header(Command::CREATE, self), &ROOT),
            Question::Volume(_, file_id) => {
                encode::query_info(&header(Command::QUERY_INFO, self), &volume_query(*file_id))
            }
            Question::Authenticate(token) => self.session_setup(&header(Command::SESSION_SETUP, self), token),
            _ => {
                self.preauth = self.conn.preauth.clone();
                let token = self.login.start(random).unwrap_or_default();
                self.session_setup(&header(Command::SESSION_SETUP, self), &token)
            }
        };
        self.next_message += 1;
        if let Some(key) = &self.key {
            key.sign(&mut msg);
        }
        msg
    }

    fn session_setup(&mut self, header: &Header, token: &[u8]) -> Vec<u8> {
        let params =
            SessionSetupParams { flags: 0, security_mode: 1, capabilities: 0, previous_session_id: 0, token };
        let msg = encode::session_setup(header, &params);
        self.preauth.update(&msg);
        msg
    }
}

const ROOT: CreateParams<'_> = CreateParams {
    oplock_level: 0,
    impersonation_level: IMPERSONATION,
    desired_access: LOOK,
    file_attributes: 0,
    share_access: SHARE_ALL,
    create_disposition: OPEN,
    create_options: DIRECTORY,
    name_utf16: &[],
    contexts: &[],
};

fn volume_query(file_id: FileId) -> QueryInfoParams<'static> {
    QueryInfoParams {
        info_type: query_info::FILESYSTEM,
        file_info_class: VOLUME_INFORMATION,
        output_buffer_length: 1024,
        additional_information: 0,
        flags: 0,
        file_id,
        input: &[],
    }
}

/// Behind VolumeCreationTime.
fn serial(msg: &[u8]) -> Option<u32> {
    let response = query_info::Response::parse(msg).ok()?;
    response.buffer.get(8..12)?.try_into().ok().map(u32::from_le_bytes)
}

/// Each as a client of its own: Samba gathers connections with one ClientGuid in one process.
fn negotiate(dialect: Dialect, ciphers: &[u16], signing_algs: &[u16], random: &mut dyn Random) -> Vec<u8> {
    let (mut salt, mut client_guid) = ([0; 32], [0; 16]);
    random.fill(&mut salt);
    random.fill(&mut client_guid);
    let params = NegotiateParams {
        dialects: &[dialect.0],
        security_mode: SIGNING_ENABLED,
        capabilities: CAPABILITIES,
        client_guid,
        preauth_salt: &salt,
        ciphers,
        signing_algs,
        netname: None,
    };
    encode::negotiate(&Header::request(Command::NEGOTIATE, 0), &params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ntlm::message::{SIGNATURE, flags};

    struct Zeros;

    impl Random for Zeros {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.fill(0);
        }
    }

    /// What a node has, and what it does to who asks for something else.
    struct Server {
        dialects: Vec<u16>,
        ciphers: Vec<u16>,
        signing: Vec<u16>,
        hangs_up: bool,
        /// Its challenge agrees to all that a proof needs. Then it takes whoever comes, as guest.
        strong: bool,
    }

    fn header(request: &[u8], status: Status) -> Vec<u8> {
        let asked = Header::parse(request).unwrap();
        let mut msg = vec![0; Header::LEN];
        Header { flags: Flags::SERVER_TO_REDIR, status: status.0, session_id: 7, ..asked }.write(&mut msg);
        msg
    }

    fn words(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    impl Server {
        /// `None`: it ends the connection.
        fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
            let asked = Header::parse(request).unwrap();
            if asked.command == Command::SESSION_SETUP && asked.session_id == 0 {
                return Some(challenge(request, self.strong));
            }
            if asked.command == Command::SESSION_SETUP {
                return Some([header(request, Status::SUCCESS), words(&[9, 0, 72, 0])].concat());
            }
            let asked = negotiate::Request::parse(request).unwrap();
            let mut signing = asked.contexts().filter_map(|context| match context.unwrap() {
                negotiate::Context::Signing { algorithms } => Some(algorithms),
                _ => None,
            });
            // As Samba does it.
            let nothing_in_common = signing.any(|list| !list.iter().any(|id| self.signing.contains(&id)));
            let mut dialects = asked.dialects().filter(|dialect| self.dialects.contains(dialect));
            let dialect = dialects.next().filter(|_| !nothing_in_common);
            let Some(dialect) = dialect else {
                let refusal =
                    [header(request, Status::NOT_SUPPORTED), vec![9, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
                return (!self.hangs_up).then_some(refusal);
            };
            let mut contexts = Vec::new();
            for context in asked.contexts() {
                let (kind, offered, had) = match context.unwrap() {
                    negotiate::Context::Encryption { ciphers } => (2, ciphers, &self.ciphers),
                    negotiate::Context::Signing { algorithms } => (8, algorithms, &self.signing),
                    _ => continue,
                };
                // Cipher 0 says that there is none in common.
                let id = offered.iter().find(|id| had.contains(id)).unwrap_or(0);
                contexts.push([words(&[kind, 4, 0, 0, 1, id]), vec![0; 4]].concat());
            }
            let mut msg = header(request, Status::SUCCESS);
            msg.extend(words(&[65, 3, dialect, u16::try_from(contexts.len()).unwrap()]));
            msg.extend([9; 16]);
            for value in [7, 1 << 20, 2 << 20, u32::from(dialect)] {
                msg.extend(value.to_le_bytes());
            }
            msg.extend([0; 16]);
            msg.extend(words(&[128, 0]));
            msg.extend(128_u32.to_le_bytes());
            msg.extend(contexts.concat());
            Some(msg)
        }
    }

    fn challenge(request: &[u8], strong: bool) -> Vec<u8> {
        let mut token = SIGNATURE.to_vec();
        token.extend(2_u32.to_le_bytes());
        token.extend([0; 8]);
        let agreed = flags::UNICODE | flags::EXTENDED_SECURITY | flags::KEY_EXCH | flags::KEY_128;
        token.extend(if strong { agreed } else { flags::UNICODE }.to_le_bytes());
        token.resize(40, 0);
        token.extend([8, 0, 8, 0, 48, 0, 0, 0]);
        token.extend([1, 0, 4, 0, b'N', 0, b'1', 0]);
        let mut msg = header(request, Status::MORE_PROCESSING_REQUIRED);
        msg.extend(words(&[9, 0, 72, u16::try_from(token.len()).unwrap()]));
        msg.extend(token);
        msg
    }

    /// The whole interview: what came of it, and on how many connections.
    fn interview(server: &Server, visitor: Option<Visitor>) -> (Option<Profile>, usize) {
        let (mut interview, mut connections) = (Interview::new(visitor), 0);
        while let Some(ask) = interview.ask(&mut Zeros) {
            let request = match ask {
                Ask::Fresh(request) => {
                    connections += 1;
                    request
                }
                Ask::Same(request) => request,
                Ask::Wait => panic!("nothing is to come"),
            };
            match server.answer(&request) {
                Some(mut answer) => interview.handle_answer(&mut answer, &mut Zeros),
                None => interview.handle_closed(),
            }
        }
        (interview.finish(), connections)
    }

    #[test]
    fn each_dialect_and_algorithm_is_found_out() {
        for hangs_up in [false, true] {
            let server = Server {
                dialects: vec![0x210, 0x300, 0x311],
                ciphers: vec![2, 3],
                signing: vec![1],
                hangs_up,
                strong: false,
            };
            let (profile, connections) = interview(&server, None);
            let profile = profile.unwrap();
            assert_eq!(
                profile.dialects.keys().copied().collect::<Vec<_>>(),
                [Dialect::SMB210, Dialect::SMB300, Dialect::SMB311]
            );
            assert_eq!((profile.ciphers, profile.signing), ([2, 3].into(), [1].into()));
            let granted = Granted {
                server_guid: [9; 16],
                security_mode: 3,
                capabilities: 7,
                max_transact: 1 << 20,
                max_read: 2 << 20,
                max_write: 0x300,
            };
            assert_eq!(profile.dialects[&Dialect::SMB300], granted);
            assert_eq!(profile.names.unwrap().computer, "N1");
            assert_eq!(connections, OLDER.len() + CIPHERS.len() + SIGNING.len() + 1);
        }
    }

    #[test]
    fn a_node_of_old_is_asked_for_its_names_in_its_own_dialect() {
        for hangs_up in [false, true] {
            let server =
                Server { dialects: vec![0x202], ciphers: vec![], signing: vec![], hangs_up, strong: false };
            let profile = interview(&server, None).0.unwrap();
            assert!(profile.dialects.keys().eq([&Dialect::SMB202]) && profile.signing.is_empty());
            assert_eq!(profile.names.unwrap().computer, "N1");
            let nothing = Server { dialects: vec![], ..server };
            assert_eq!(interview(&nothing, None).0, None);
        }
    }

    /// To the one no proof is given, and of the other's success none is believed.
    #[test]
    fn what_a_weak_node_or_one_that_maps_to_guest_shows_is_no_volume() {
        for strong in [false, true] {
            let visitor = Visitor {
                user: "u".into(),
                hash: NtHash::new([1; 16]),
                host: "h".into(),
                shares: vec!["s".into()],
            };
            let server =
                Server { dialects: vec![0x311], ciphers: vec![1], signing: vec![2], hangs_up: false, strong };
            let profile = interview(&server, Some(visitor)).0.unwrap();
            let refused = Volume::Refused(Status::LOGON_FAILURE.0);
            assert_eq!(profile.volumes, [("s".into(), refused)].into(), "strong: {strong}");
        }
    }

    #[test]
    fn an_interim_answer_is_waited_for() {
        let mut interview = Interview::new(None);
        let Some(Ask::Fresh(request)) = interview.ask(&mut Zeros) else { panic!("a question") };
        let mut interim = header(&request, Status::PENDING);
        interim[16..20].copy_from_slice(&(Flags::SERVER_TO_REDIR | Flags::ASYNC).0.to_le_bytes());
        interview.handle_answer(&mut interim, &mut Zeros);
        assert_eq!(interview.ask(&mut Zeros), Some(Ask::Wait));
    }
}
