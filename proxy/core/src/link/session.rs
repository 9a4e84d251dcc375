//! Sessions and tree connects (MS-SMB2 3.3.1.8, 3.3.1.9), and the logins that lead to them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use smb_parse::{
    cmd::{session_setup, tree_connect},
    header::{Header, Status},
};

use crate::{
    auth::{Authority, Credentials, LoginObserver, LoginOutcome},
    crypto::{preauth::Preauth, sealing::Nonces},
    event::Protection,
    ids::{Client, MessageId, Node, NodeId, SessionId, TreeId},
    link::{
        connection::{Connection, SIGNING_REQUIRED},
        cover::{SessionKeys, proved_key},
    },
};

/// `SMB2_SESSION_FLAG_ENCRYPT_DATA` (MS-SMB2 2.2.6).
pub(crate) const SESSION_ENCRYPT_DATA: u16 = 0x0004;

/// `SMB2_SHAREFLAG_ENCRYPT_DATA` (MS-SMB2 2.2.10).
const SHARE_ENCRYPT_DATA: u32 = 0x0000_8000;

/// How many sessions that are over are still read.
const BYGONE: usize = 4;

/// One user's session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client_id: Client<SessionId>,
    /// Its id on the present node.
    pub(crate) node_id: Node<SessionId>,
    /// Its last id on each node that was lost: to be named there as the one that a new login succeeds.
    pub(crate) known_as: BTreeMap<NodeId, Node<SessionId>>,
    /// SessionFlags of the node's answer; a further node must give the same.
    pub(crate) flags: u16,
    pub(crate) user: String,
    pub(crate) protection: Protection,
    /// How to log in on a further node. `None` for a session that is not protected.
    pub(crate) authority: Option<Authority>,
    /// The keys of the client leg. `None`: none, or not known.
    pub(crate) client_keys: Option<Arc<SessionKeys>>,
    /// The keys of the node leg. In Relay the client's own.
    pub(crate) node_keys: Option<Arc<SessionKeys>>,
    /// For what the proxy seals towards the client.
    pub(crate) client_nonces: Nonces,
    /// For what the proxy seals towards the node.
    pub(crate) node_nonces: Nonces,
    /// The client has sealed: what the proxy asks in its name is sealed too.
    pub(crate) seals: bool,
    /// Sealed frames passed that nobody here can read: its requests in flight are not known.
    pub(crate) opaque: bool,
    /// MessageId of the request that completed its login. The client has signed nothing before it with this session's
    /// keys.
    pub(crate) login_message_id: MessageId,
    /// MessageIds below this one were signed with this session's keys on a side channel.
    pub(crate) signed_aside: MessageId,
    /// Frames without signature are refused.
    pub(crate) signing_required: bool,
    pub(crate) trees: BTreeMap<Client<TreeId>, Tree>,
    /// The node was lost and nobody could act for the user: all that is left is to say so.
    pub(crate) ended: bool,
    /// Its leg was lost, and no login has ended it since on the node that had it: if that lives, it may still do what was in
    /// flight.
    pub(crate) still_runs: bool,
}

impl Session {
    /// A session that has no id and no authority yet.
    pub(crate) fn new(conn: &Connection, login: &Login, outcome: &LoginOutcome, flags: u16) -> Self {
        Self {
            client_id: Client(0),
            node_id: Node(0),
            known_as: BTreeMap::new(),
            flags,
            user: name(outcome),
            protection: Protection::NoLogin,
            authority: None,
            client_keys: None,
            node_keys: None,
            client_nonces: Nonces::default(),
            node_nonces: Nonces::default(),
            seals: false,
            opaque: false,
            login_message_id: 0,
            signed_aside: 0,
            signing_required: login.security_mode & SIGNING_REQUIRED != 0
                || conn.server_security_mode & SIGNING_REQUIRED != 0,
            trees: BTreeMap::new(),
            ended: false,
            still_runs: false,
        }
    }

    /// A re-authentication has succeeded (MS-SMB2 3.3.5.5.2). No key changes, but the user may be another: Samba lets a
    /// session pass to whoever proves to be someone. Authority follows the user whom the node has accepted, or is lost.
    pub(crate) fn renew(&mut self, outcome: LoginOutcome, flags: u16) {
        self.user = name(&outcome);
        if !self.protection.is_protected() {
            // Nobody knows its keys, and they stay.
            return;
        }
        let is_keyed = self.client_keys.is_some();
        self.authority = None;
        match outcome.result {
            Ok(derived) if derived.session_keys.is_empty() != is_keyed => {
                self.protection = derived.protection;
                self.authority = Some(derived.authority);
                self.flags = flags & !SESSION_ENCRYPT_DATA | self.flags & SESSION_ENCRYPT_DATA;
            }
            // A signed session of a guest, or the other way round: no further node would give the same.
            Ok(_) => self.protection = Protection::NoLogin,
            Err(reason) => self.protection = reason,
        }
    }
}

/// The user as the client has named them.
pub(crate) fn name(outcome: &LoginOutcome) -> String {
    if outcome.domain.is_empty() {
        outcome.user.clone()
    } else {
        format!("{}\\{}", outcome.domain, outcome.user)
    }
}

/// One share in use.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) client_id: Client<TreeId>,
    pub(crate) node_id: Node<TreeId>,
    /// `\\server\share` as the client asked for it, UTF-16LE.
    pub(crate) path: Vec<u8>,
    /// The share's name in lower case.
    pub(crate) share: Arc<str>,
    pub(crate) share_type: u8,
    /// Requests that are not sealed are refused.
    pub(crate) encrypt_data: bool,
    /// The node refused it after a takeover.
    pub(crate) lost: bool,
}

impl Tree {
    /// `SMB2_SHARE_TYPE_PIPE` (MS-SMB2 2.2.10).
    pub(crate) fn is_pipe(&self) -> bool {
        self.share_type == 2
    }
}

impl Session {
    /// Whether the keys are known by which its frames are sealed.
    pub(crate) fn can_seal(&self) -> bool {
        self.client_keys.as_ref().is_some_and(|keys| keys.can_seal())
    }

    /// Whether it may have requests in flight that nobody here has read. A guest or anonymous user can be moved without a
    /// key, and has none.
    pub(crate) fn has_passed_unread(&self) -> bool {
        self.opaque && !(self.protection.is_protected() && self.can_seal())
    }

    /// Whether a request must be sealed: by the session's policy, or by that of the tree it names (MS-SMB2 3.3.5.2.9,
    /// 3.3.5.2.11).
    pub(crate) fn encrypts(&self, tree: Option<TreeId>) -> bool {
        let tree = tree.and_then(|id| self.trees.get(&Client(id)));
        self.flags & SESSION_ENCRYPT_DATA != 0 || tree.is_some_and(|t| t.encrypt_data)
    }
}

/// A login of the client's under way, as it is observed on the client leg.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) observer: LoginObserver,
    pub(crate) preauth: Preauth,
    security_mode: u16,
    /// PreviousSessionId: a session of an earlier connection, which is to end.
    pub(crate) previous: SessionId,
}

impl Login {
    pub(crate) fn new(conn: &Connection) -> Self {
        Self {
            observer: LoginObserver::default(),
            preauth: conn.preauth.clone(),
            security_mode: 0,
            previous: 0,
        }
    }

    /// Takes a SESSION_SETUP of the client in: `msg`, as it came.
    pub(crate) fn take_request(&mut self, request: &session_setup::Request<'_>, msg: &[u8]) {
        self.security_mode = u16::from(request.security_mode);
        self.previous = request.previous_session_id;
        self.observer.client_token(request.security_buffer);
        self.preauth.update(msg);
    }
}

/// A login is known by the MessageId of its first request until the node has named the session.
#[derive(Debug, PartialEq, Eq, Hash)]
enum LoginKey {
    Message(MessageId),
    Session(SessionId),
}

/// What a SESSION_SETUP answer meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoginStep {
    /// The exchange goes on, or failed.
    Nothing,
    /// The session stands, in the place of that one.
    Established(Client<SessionId>, SessionId),
    /// A session that stood is authenticated anew. Its protection was this.
    Renewed(Client<SessionId>, Protection),
    /// A session that stood could not be authenticated anew: the node has ended it.
    Ended(Client<SessionId>),
}

/// All sessions of a Link.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<Client<SessionId>, Session>,
    logins: HashMap<LoginKey, Login>,
    /// Sessions that are over once the answer that says so is signed.
    parting: Vec<SessionId>,
    /// Sessions that are over in Relay, and keys to read what the node still answers in them.
    bygone: VecDeque<(SessionId, Arc<SessionKeys>)>,
}

impl Sessions {
    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&Client(id))
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&Client(id))
    }

    /// The session that the present node knows by this id.
    pub(crate) fn by_node_id(&self, id: SessionId) -> Option<&Session> {
        self.by_id.values().find(|s| s.node_id == Node(id) && !s.ended)
    }

    pub(crate) fn insert(&mut self, session: Session) {
        self.by_id.insert(session.client_id, session);
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.by_id.remove(&Client(id))?;
        if let Some(keys) = session.client_keys.as_ref().filter(|_| session.seals) {
            self.bygone.truncate(BYGONE - 1);
            self.bygone.push_front((id, Arc::clone(keys)));
        }
        Some(session)
    }

    /// The keys to read a session's sealed frames with in Relay, though it may be over.
    pub(crate) fn reading_keys(&self, id: SessionId) -> Option<&Arc<SessionKeys>> {
        let bygone = || self.bygone.iter().find(|(of, _)| *of == id).map(|(_, keys)| keys);
        self.get(id).map_or_else(bygone, |session| session.client_keys.as_ref())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.by_id.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.by_id.values_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether there are sessions, and nobody can act for any of them.
    pub(crate) fn none_protected(&self) -> bool {
        !self.by_id.is_empty() && !self.by_id.values().any(|s| s.protection.is_protected() && !s.ended)
    }

    pub(crate) fn tree(&self, session: SessionId, tree: TreeId) -> Option<&Tree> {
        self.get(session)?.trees.get(&Client(tree))
    }

    /// The session is over, but the answer to its LOGOFF is yet to be signed.
    pub(crate) fn part(&mut self, id: SessionId) {
        self.parting.push(id);
    }

    pub(crate) fn take_parting(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.parting)
    }

    /// The node was lost: no login that was under way can be finished.
    pub(crate) fn forget_logins(&mut self) {
        self.logins.clear();
        self.bygone.clear();
    }

    /// A SESSION_SETUP request passes (Relay).
    pub(crate) fn request(&mut self, conn: &Connection, header: &Header, msg: &[u8]) -> bool {
        let Ok(request) = session_setup::Request::parse(msg) else { return false };
        let key = match header.session_id {
            0 => LoginKey::Message(header.message_id),
            id => LoginKey::Session(id),
        };
        let login = self.logins.entry(key).or_insert_with(|| Login::new(conn));
        login.take_request(&request, msg);
        true
    }

    /// The answer to a SESSION_SETUP passes (Relay). `request_id` is the request's SessionId.
    pub(crate) fn response(
        &mut self,
        conn: &Connection,
        credentials: &dyn Credentials,
        request_id: SessionId,
        header: &Header,
        msg: &mut [u8],
    ) -> LoginStep {
        let key = match request_id {
            0 => LoginKey::Message(header.message_id),
            id => LoginKey::Session(id),
        };
        let Some(mut login) = self.logins.remove(&key) else { return LoginStep::Nothing };
        let status = Status(header.status);
        if status == Status::MORE_PROCESSING_REQUIRED {
            if let Ok(response) = session_setup::Response::parse(msg) {
                login.observer.server_token(response.security_buffer);
            }
            login.preauth.update(msg);
            self.logins.insert(LoginKey::Session(header.session_id), login);
            return LoginStep::Nothing;
        }
        let id = Client(request_id);
        if status != Status::SUCCESS {
            return if self.by_id.contains_key(&id) { LoginStep::Ended(id) } else { LoginStep::Nothing };
        }
        let Ok(response) = session_setup::Response::parse(msg) else { return LoginStep::Nothing };
        let flags = response.session_flags;
        let outcome = login.observer.finish(flags, response.security_buffer, credentials);
        if let Some(session) = self.by_id.get_mut(&id) {
            let was = session.protection;
            session.renew(outcome, flags);
            return LoginStep::Renewed(id, was);
        }
        let session = establish(conn, outcome, &login, header, flags, msg);
        let id = session.client_id;
        self.by_id.insert(id, session);
        LoginStep::Established(id, login.previous)
    }
}

/// Derives the keys of a session that the node has just accepted, and proves them by the signature of its answer.
fn establish(
    conn: &Connection,
    outcome: LoginOutcome,
    login: &Login,
    header: &Header,
    flags: u16,
    msg: &mut [u8],
) -> Session {
    let mut session = Session::new(conn, login, &outcome, flags);
    (session.client_id, session.node_id) = (Client(header.session_id), Node(header.session_id));
    session.login_message_id = header.message_id;
    match outcome.result {
        Err(reason) => session.protection = reason,
        Ok(derived) => {
            session.protection = derived.protection;
            session.authority = Some(derived.authority);
            if derived.session_keys.is_empty() {
                session.signing_required = false;
            } else if let Some((_, keys)) =
                proved_key(conn, &derived.session_keys, &login.preauth, header, msg)
            {
                let keys = Arc::new(keys);
                session.client_keys = Some(Arc::clone(&keys));
                session.node_keys = Some(keys);
            } else {
                session.protection = Protection::NoKeyMismatch;
                session.authority = None;
            }
        }
    }
    session
}

/// A tree connect's record from its request and the node's answer.
pub(crate) fn tree_from(request: &[u8], header: &Header, response: &[u8]) -> Option<Tree> {
    let asked = tree_connect::Request::parse(request).ok()?;
    let granted = tree_connect::Response::parse(response).ok()?;
    let id = header.tree_id()?;
    let path = asked.path.to_string_lossy();
    let share = path.rsplit('\\').next().unwrap_or_default().to_lowercase();
    Some(Tree {
        client_id: Client(id),
        node_id: Node(id),
        path: asked.path.0.to_vec(),
        share: share.into(),
        share_type: granted.share_type,
        encrypt_data: granted.share_flags & SHARE_ENCRYPT_DATA != 0,
        lost: false,
    })
}
