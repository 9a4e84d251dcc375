//! A client that lost its connection comes back to its Opens by DHnC or DH2C (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
//!
//! | the Link | the node | what becomes of the request |
//! |---|---|---|
//! | Relay | has the Open, by the ids that the client names | passes; what was recorded is taken over |
//! | Bridge | has the Open, by ids of the proxy's | *claimed*, had by DHnC or DH2C of the proxy's own, answered from here |
//! | Bridge | has it no more | claimed, opened afresh with its locks, as in a takeover, answered from here |
//!
//! What is away is known to Files (`files/absent.rs`), and so is who may have it. A Link whose client may name what no node
//! knows becomes Bridge when its session stands ([`Link::look_for_absent`]).
//!
//! When a client goes, what it may come back to is left to Files ([`Link::leave`]); so it is if it logs off or disconnects the
//! tree, for nodes keep durable Opens then, too.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use smb_parse::{
    FileId,
    cmd::create,
    create_context::{RequestContext, tag},
    encode,
    header::{Command, Header, Status},
};

use understudy_state::record::SessionRecord;

use super::{
    Link, State,
    breaks::may_write,
    node_leg::Op,
    open::{Durable, Open, OpenState, Place},
    persist::{file_id, restore},
    request::Request,
};
use crate::{
    event::{Claim, Event, FileEvent},
    files::{Claimed, Files, bygone},
    ids::{Client, MessageId, Node, NodeId, OpenToken, SessionId},
    takeover::reconnect::Retries,
};

/// FILE_OPENED, a CreateAction (MS-SMB2 2.2.14).
const OPENED: u32 = 1;

/// An Open that a client has come back to.
#[derive(Debug)]
enum Returning {
    /// Files is asked for it.
    Asked(MessageId),
    /// The node is asked for it. `fresh`: it may be opened afresh; `answer`: the node's.
    Reclaiming { request: MessageId, fresh: bool, answer: Vec<u8> },
    /// In Relay the node has given it. What is recorded of it is to be taken over.
    Given,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Returns(BTreeMap<OpenToken, Returning>);

impl Returns {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether Files is asked for some.
    pub(super) fn wants_files(&self) -> bool {
        self.0.values().any(|returning| matches!(returning, Returning::Asked(_) | Returning::Given))
    }

    /// Whether the node is asked for this one.
    pub(crate) fn has(&self, open: OpenToken) -> bool {
        matches!(self.0.get(&open), Some(Returning::Reclaiming { .. }))
    }

    /// The same, and whether it may be opened afresh.
    pub(crate) fn may_be_fresh(&self, open: OpenToken) -> bool {
        !matches!(self.0.get(&open), Some(Returning::Reclaiming { fresh: false, .. }))
    }

    /// The node's answer to the CREATE that brought it.
    pub(crate) fn note_answer(&mut self, open: OpenToken, msg: &[u8]) {
        if let Some(Returning::Reclaiming { answer, .. }) = self.0.get_mut(&open) {
            *answer = msg.to_vec();
        }
    }
}

/// What a CREATE says of an Open that its client had.
struct Named {
    file_id: FileId,
    /// `None`: by DHnC.
    create_guid: Option<[u8; 16]>,
    lease_key: Option<[u8; 16]>,
}

/// Reads that, if there is such a thing.
fn reconnect(msg: &[u8]) -> Option<Result<Named, Status>> {
    let asked = create::Request::parse(msg).ok()?;
    let (mut v1, mut v2, mut lease_key, mut asks_v2, mut asks_v1) = (None, None, None, false, false);
    for context in asked.contexts().filter_map(Result::ok) {
        match RequestContext::parse(&context) {
            RequestContext::DurableReconnect { file_id } => v1 = Some(file_id),
            RequestContext::DurableReconnectV2 { file_id, create_guid, .. } => {
                v2 = Some((file_id, create_guid))
            }
            RequestContext::DurableV2 { .. } => asks_v2 = true,
            RequestContext::Durable => asks_v1 = true,
            RequestContext::Lease(lease) => lease_key = Some(lease.key),
            _ => {}
        }
    }
    match (v1, v2) {
        (None, None) => None,
        (Some(_), Some(_)) => Some(Err(Status::INVALID_PARAMETER)),
        (Some(_), None) if asks_v2 => Some(Err(Status::INVALID_PARAMETER)),
        (None, Some(_)) if asks_v1 || asks_v2 => Some(Err(Status::INVALID_PARAMETER)),
        (Some(file_id), None) => Some(Ok(Named { file_id, create_guid: None, lease_key })),
        (None, Some((file_id, guid))) => Some(Ok(Named { file_id, create_guid: Some(guid), lease_key })),
    }
}

impl Open {
    /// Whether its node keeps it for a client that is away.
    fn is_kept_by_node(&self) -> bool {
        self.durable != Durable::No && self.keeps_handle()
    }
}

/// Whether a request names an Open that its client had.
pub(super) fn is_reconnect(request: &Request) -> bool {
    request.header.command == Command::CREATE && reconnect(&request.msg).is_some()
}

impl Link {
    /// The session that a login of this user's on a node is to end there: one that a proxy before this one had.
    pub(crate) fn bygone_session(&self, user: &str, node: NodeId) -> Option<SessionId> {
        bygone::next(&self.bygone, user, self.node_name(node).as_deref())
    }

    /// The node has ended one of those.
    pub(crate) fn note_bygone_ended(&mut self, node_session: SessionId) {
        let is_it = |record: &SessionRecord| SessionId::from_be_bytes(record.node_session.0) == node_session;
        if let Some(at) = self.bygone.iter().position(is_it) {
            let record = self.bygone.swap_remove(at);
            let session = SessionId::from_be_bytes(record.session.0);
            self.out.file(FileEvent::BygoneEnded { client: record.client.0, session });
        }
    }

    /// A session stands: its client may have been here before.
    pub(super) fn note_arrival(&mut self) {
        self.out.file(FileEvent::Client { guid: self.conn.client_guid });
        self.out.file(FileEvent::Served { generation: self.generation() });
        self.arrived = true;
    }

    /// Whether the client that has logged in may name what the node does not know by that.
    pub(super) fn look_for_absent(&mut self, now: Instant, files: &Files) {
        if !std::mem::take(&mut self.arrived) || !matches!(self.state, State::Relay(_)) {
            return;
        }
        let guid = self.conn.client_guid;
        let users: Vec<_> = self.sessions.iter().map(|session| session.user.as_str()).collect();
        self.bygone = files.bygone(guid, &users);
        if self.config.bridge_always || self.sessions.iter().any(|s| files.wants_bridge(guid, &s.user)) {
            self.bridge_now(now);
        }
    }

    /// The client has gone, or is done with a session or tree: what it may come back to is left to Files.
    pub(super) fn leave(&mut self, which: impl Fn(SessionId, u32) -> bool) {
        let left: Vec<_> = self
            .opens
            .iter()
            .filter(|o| which(o.session.0, o.tree.0) && self.may_come_back(o))
            .map(|o| o.token)
            .collect();
        for open in left {
            let Some(known) = self.opens.get(open) else { continue };
            // The node closes what is only resilient.
            let lost =
                known.state != OpenState::Live || known.resilient.is_some() && !known.is_kept_by_node();
            let Some(record) = self.record_of(known) else { continue };
            self.opens.take(open);
            self.out.file(FileEvent::Left { open, record: Box::new(record), lost });
        }
    }

    /// Whether a server keeps an Open whose client has gone (MS-SMB2 3.3.7.1), and there is something to keep.
    fn may_come_back(&self, open: &Open) -> bool {
        let durable = open.promised != Durable::No && open.keeps_handle();
        let is_kept = open.state != OpenState::Live || open.is_kept_by_node();
        !matches!(open.state, OpenState::Lost | OpenState::ClosedByNode)
            && (open.resilient.is_some() || durable && is_kept)
            && !open.closing
            && !open.is_to_be_deleted()
            && self.sessions.get(open.session.0).is_some_and(|session| !session.ended)
    }

    /// The node is lost, or the client is: what was on its way back is not, and may be claimed again.
    pub(super) fn end_returns(&mut self) {
        for (open, returning) in std::mem::take(&mut self.returns).0 {
            if matches!(returning, Returning::Reclaiming { .. }) {
                self.opens.take(open);
            }
            self.out.file(FileEvent::Unclaim { open });
        }
    }

    /// Whether in Relay the node has given an Open back. `token`: what it is called here.
    pub(super) fn note_given(&mut self, request: &Request, token: OpenToken) -> bool {
        let Some(Ok(named)) = reconnect(&request.msg) else { return false };
        if let Some(claim) = self.claim(request, named) {
            self.returns.0.insert(token, Returning::Given);
            self.out.file(FileEvent::Claim { open: token, claim: Box::new(claim) });
        }
        true
    }

    fn claim(&self, request: &Request, named: Named) -> Option<Claim> {
        let Named { file_id, create_guid, lease_key } = named;
        let id = request.header.session_id;
        let (session, tree) = (self.sessions.get(id)?, self.sessions.tree(id, request.header.tree_id()?)?);
        let (client, user, share) = (self.conn.client_guid, session.user.clone(), Arc::clone(&tree.share));
        let key = self.create_key(request)?;
        Some(Claim { file_id, create_guid, lease_key, client, user, share, key })
    }

    /// In Bridge: a CREATE that names an Open which its client had is answered from here. True if it is one.
    pub(super) fn begin_return(&mut self, id: MessageId) -> bool {
        let Some(request) =
            self.requests.get(id).filter(|r| r.header.command == Command::CREATE && !r.compounded)
        else {
            return false;
        };
        let named = match reconnect(&request.msg) {
            None => return false,
            Some(Ok(named)) => named,
            Some(Err(status)) => {
                self.fail_request(id, status);
                return true;
            }
        };
        let Some(claim) = self.claim(request, named) else { return false };
        let open = self.opens.next_token();
        self.returns.0.insert(open, Returning::Asked(id));
        self.out.file(FileEvent::Claim { open, claim: Box::new(claim) });
        true
    }

    /// Files has an answer, perhaps.
    pub(super) fn go_on_returning(&mut self, files: &Files) {
        if !self.returns.wants_files() {
            return;
        }
        for token in self.returns.0.keys().copied().collect::<Vec<_>>() {
            let Some(claimed) = files.claimed(self.id, token) else { continue };
            match (self.returns.0.get(&token), claimed) {
                (Some(Returning::Asked(request)), Err(status)) => {
                    let request = *request;
                    self.return_refused(token, request, status);
                }
                (Some(Returning::Asked(request)), Ok(claimed)) => {
                    let request = *request;
                    if !self.ask_node(token, request, &claimed) {
                        self.return_refused(token, request, Status::OBJECT_NAME_NOT_FOUND);
                    }
                }
                (Some(Returning::Given), claimed) => {
                    self.returns.0.remove(&token);
                    self.take_over(token, claimed.ok());
                }
                _ => {}
            }
        }
        self.pump();
    }

    fn return_refused(&mut self, open: OpenToken, request: MessageId, status: Status) {
        self.returns.0.remove(&open);
        self.out.file(FileEvent::ClaimEnded { open, kept: None });
        self.fail_request(request, status);
    }

    /// In Relay: what is recorded of an Open that the node has given back.
    fn take_over(&mut self, token: OpenToken, claimed: Option<Claimed<'_>>) {
        let key = self.opens.get(token).map(|open| self.open_key(open.client_id.0));
        if let (Some(open), Some(claimed)) = (self.opens.get_mut(token), claimed) {
            let (oplock, lease, birth) = (open.oplock_level, open.lease, open.birth);
            restore(open, claimed.record);
            (open.oplock_level, open.lease, open.birth, open.epoch_shift) = (oplock, lease, birth, 0);
            open.name = claimed.name.clone();
        }
        self.out.file(FileEvent::ClaimEnded { open: token, kept: key });
    }

    /// Asks the node for a claimed Open. False if there is nothing to be had.
    fn ask_node(&mut self, token: OpenToken, id: MessageId, claimed: &Claimed<'_>) -> bool {
        let State::Bridge(leg) = &self.state else { return false };
        let (node, record) = (leg.node, claimed.record);
        let Some(request) = self.requests.get(id) else { return false };
        let (session, Some(tree_id)) = (request.header.session_id, request.header.tree_id()) else {
            return false;
        };
        let Some(tree) = self.sessions.tree(session, tree_id) else { return false };
        let place = Place { session, tree: tree_id, share: Arc::clone(&tree.share), is_pipe: tree.is_pipe() };
        let known = file_id(record.file_id);
        let is_free = self.opens.by_client(known).is_none();
        let client_id = if is_free { known } else { self.mint_file_id() };
        let mut open = Open::new(token, place, Client(client_id), Node(file_id(record.node_file_id)));
        restore(&mut open, record);
        open.name = claimed.name.clone();
        open.birth = claimed.birth;
        open.state = OpenState::Unreclaimed;
        let same_epoch = self.assignment.is_some_and(|a| a.node == node && a.epoch == record.epoch);
        if same_epoch && self.node_name(node).is_some_and(|name| *name == *record.node) {
            open.had_by = Some(node);
        }
        let op = if self.may_be_kept(&open, node) {
            Op::Reconnect(token)
        } else if claimed.fresh {
            Op::Reclaim(token)
        } else {
            return false;
        };
        if claimed.stale {
            open.drop_read_cache();
        }
        if self.retries.is_empty() {
            self.retries = Retries::default();
        }
        self.opens.insert_unreclaimed(open);
        let returning = Returning::Reclaiming { request: id, fresh: claimed.fresh, answer: Vec::new() };
        self.returns.0.insert(token, returning);
        self.ask_for(op);
        true
    }

    /// The node's answer to what was asked for an Open that is on its way back, in Bridge.
    pub(super) fn return_answer(
        &mut self,
        now: Instant,
        (op, token): (Op, OpenToken),
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        if !self.is_ours(&op, opened, header, msg) {
            self.out.event(Event::SignatureRefused);
            self.give_up(token);
        } else if !self.comes_too_early(now, &op, Status(header.status)) {
            self.reclaim_op_answer(now, op, header, msg);
        }
        self.pump();
    }

    /// The Open is back, with its locks.
    pub(crate) fn returned(&mut self, token: OpenToken) {
        if !self.returns.has(token) {
            return;
        }
        let Some(Returning::Reclaiming { request, answer, .. }) = self.returns.0.remove(&token) else {
            return;
        };
        let Some(request) = self.requests.remove(request) else { return };
        let Some(open) = self.opens.get(token) else { return };
        let (name, file, asked) = (open.name.clone(), open.file(), request.at);
        let (key, writes) = (open.client_id.0, may_write(open.desired_access));
        let generation = self.generation();
        self.out.file(FileEvent::Opened { open: token, name, file, asked, generation, deletes: false });
        self.out.file(FileEvent::Sized { open: token, end: None, asked });
        if writes {
            self.out.file(FileEvent::Writes { open: token });
        }
        self.out.file(FileEvent::ClaimEnded { open: token, kept: Some(self.open_key(key)) });
        self.wait_for_open(token);
        let Some(open) = self.opens.get(token) else { return };
        let Ok(mut granted) = create::Response::parse(&answer) else { return };
        let mut contexts: Vec<(&[u8], Vec<u8>)> = Vec::new();
        if let Some(lease) = &open.lease {
            contexts.push((tag::RQLS, encode::lease(lease)));
        }
        let asks = |what| {
            create::Request::parse(&request.msg).is_ok_and(|asked| {
                asked.contexts().filter_map(Result::ok).any(|context| RequestContext::parse(&context) == what)
            })
        };
        if asks(RequestContext::Durable) {
            contexts.push((tag::DHNQ, vec![0; 8]));
        }
        if let Some(id) = open.on_disk_id.filter(|_| asks(RequestContext::OnDiskId)) {
            contexts.push((tag::QFID, id.to_vec()));
        }
        granted.file_id = open.client_id.0;
        granted.oplock_level = open.oplock_level;
        granted.create_action = OPENED;
        let header = self.response_header(&request, Status::SUCCESS);
        self.answer(&request, &encode::create_response(&header, &granted, &contexts));
    }

    /// The Open is lost.
    pub(crate) fn not_returned(&mut self, token: OpenToken) {
        if let Some(Returning::Reclaiming { request, .. }) = self.returns.0.get(&token) {
            let request = *request;
            self.opens.take(token);
            self.return_refused(token, request, Status::OBJECT_NAME_NOT_FOUND);
        }
    }
}
