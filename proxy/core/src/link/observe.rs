//! What a successful answer teaches, in Relay and in Bridge alike.

use std::{sync::Arc, time::Instant};

use smb_parse::{
    FileId,
    cmd::{create, query_directory, set_info},
    create_context::ResponseContext,
    header::{Command, Header, Status},
    patch,
};

use super::{
    Link, State,
    birth::Birth,
    breaks::may_write,
    node_leg::Clock,
    open::{OpenState, Place, file_key, open_from},
    request::Request,
    session::{LoginStep, Tree, tree_from},
};
use crate::{
    event::{Event, FileEvent, Protection, SessionNews},
    ids::{Client, SessionId},
    takeover::probe::new_name,
};

/// FileInformationClass values (MS-FSCC 2.4).
mod class {
    pub(super) const BASIC: u8 = 4;
    pub(super) const RENAME: u8 = 10;
    pub(super) const LINK: u8 = 11;
    pub(super) const DISPOSITION: u8 = 13;
    pub(super) const DISPOSITION_EX: u8 = 64;
    pub(super) const RENAME_EX: u8 = 65;
    pub(super) const LINK_EX: u8 = 72;
}
/// `SMB2_0_INFO_FILE` (MS-SMB2 2.2.39).
const INFO_FILE: u8 = 1;
/// FILE_DELETE_ON_CLOSE, a CreateOption (MS-SMB2 2.2.13).
const DELETE_ON_CLOSE: u32 = 0x1000;
/// FILE_SUPERSEDED, FILE_CREATED, FILE_OVERWRITTEN, CreateActions (MS-SMB2 2.2.14).
const SUPERSEDED: u32 = 0;
const OVERWRITTEN: u32 = 3;
const CREATED: u32 = 2;

impl Link {
    /// Takes an answer in. `msg` is the answer with the client's ids; `request` what it answers.
    pub(super) fn observe(&mut self, request: &Request, header: &Header, msg: &mut [u8]) {
        let status = Status(header.status);
        match header.command {
            Command::NEGOTIATE => {
                self.observe_negotiate(status, msg);
                self.clock = Clock::of(&self.conn, request.at);
            }
            Command::SESSION_SETUP => self.observe_session_setup(request, header, msg),
            Command::QUERY_DIRECTORY => self.observe_query_directory(request, status, msg),
            Command::LOCK => self.observe_lock(request, status),
            _ if !status.is_success() => {}
            Command::LOGOFF => self.forget_session(request.header.session_id),
            Command::TREE_CONNECT => self.observe_tree_connect(request, header, msg),
            Command::TREE_DISCONNECT => self.forget_tree(request),
            Command::CREATE => self.observe_create(request, msg),
            Command::CLOSE => self.observe_close(request),
            Command::SET_INFO => self.observe_set_info(request),
            Command::OPLOCK_BREAK => self.observe_break_ack(request, msg),
            _ => {}
        }
    }

    pub(super) fn observe_negotiate(&mut self, status: Status, msg: &[u8]) {
        if status.is_success() && !self.conn.response(msg) {
            self.out.event(Event::NotUnderstood);
        }
    }

    fn observe_session_setup(&mut self, request: &Request, header: &Header, msg: &mut [u8]) {
        let step =
            self.sessions.response(&self.conn, &*self.credentials, request.header.session_id, header, msg);
        match step {
            LoginStep::Nothing => {}
            LoginStep::Established(id, previous) => {
                self.note_arrival();
                self.tell_session(id.0, None);
                self.tell_succession(request.at, id.0, previous);
                self.side_session_established(request.at, id.0);
            }
            LoginStep::Renewed(id, was) => self.tell_session(id.0, Some(was)),
            LoginStep::Ended(id) => self.forget_session(id.0),
        }
    }

    /// Tells of a session that stands since now, or whose protection was another.
    pub(super) fn tell_session(&mut self, id: SessionId, was: Option<Protection>) {
        self.persist.sessions_touched = true;
        let Some(session) = self.sessions.get(id) else { return };
        if was != Some(session.protection) {
            let news = SessionNews { user: session.user.clone(), protection: session.protection, was };
            self.out.event(Event::Session(news));
        }
    }

    /// The session is over, with all that it had open.
    pub(super) fn forget_session(&mut self, id: SessionId) {
        self.side_session_ended(id);
        self.answer_rest_of(id);
        self.persist.sessions_touched = true;
        self.leave(|session, _| session == id);
        if let Some(session) = self.sessions.remove(id) {
            self.out.event(Event::SessionEnded(session.protection));
        }
        self.forget_opens(|session, _| session == id);
    }

    /// In Bridge what a session that ends has in flight is answered while there are keys to do it with: the node's answers
    /// could not be opened any more, nor sealed for the client. In Relay the node answers.
    fn answer_rest_of(&mut self, id: SessionId) {
        if !matches!(self.state, State::Bridge(_)) || self.sessions.get(id).is_none() {
            return;
        }
        let rest = self.requests.iter().filter(|r| r.header.session_id == id).map(Request::message_id);
        for id in rest.collect::<Vec<_>>() {
            self.give_up_request(id, Status::USER_SESSION_DELETED);
        }
    }

    fn forget_tree(&mut self, request: &Request) {
        let Some(tree) = request.header.tree_id() else { return };
        let id = request.header.session_id;
        if let Some(session) = self.sessions.get_mut(id) {
            session.trees.remove(&Client(tree));
        }
        self.forget_opens(|s, t| s == id && t == tree);
    }

    fn forget_opens(&mut self, which: impl Fn(u64, u32) -> bool) {
        self.leave(&which);
        let tokens: Vec<_> =
            self.opens.iter().filter(|o| which(o.session.0, o.tree.0)).map(|o| o.token).collect();
        for open in tokens {
            self.opens.remove(open);
            self.out.file(FileEvent::Closed { open });
        }
    }

    fn observe_tree_connect(&mut self, request: &Request, header: &Header, msg: &[u8]) {
        let Some(tree) = tree_from(&request.msg, header, msg) else { return };
        self.add_tree(request, tree);
    }

    /// Records a tree connect.
    pub(super) fn add_tree(&mut self, request: &Request, tree: Tree) {
        self.requests.connected(request, tree.client_id.0);
        if let Some(session) = self.sessions.get_mut(request.header.session_id) {
            session.trees.insert(tree.client_id, tree);
        }
    }

    fn observe_create(&mut self, request: &Request, msg: &[u8]) {
        let Ok(response) = create::Response::parse(msg) else { return };
        self.record_open(request, msg, response.file_id, response.file_id);
    }

    /// A CREATE that is replayed (MS-SMB2 3.3.5.9.10) brings an Open that is known, and changes no oplock whatever it asks for.
    /// True if it is one.
    fn observe_replayed(&mut self, request: &Request, msg: &[u8], client: FileId, node: FileId) -> bool {
        let Some(token) = self.opens.by_node(node).filter(|open| open.client_id.0 == client).map(|o| o.token)
        else {
            return false;
        };
        let Ok(response) = create::Response::parse(msg) else { return false };
        self.requests.opened(request, client);
        for context in response.contexts().filter_map(Result::ok) {
            if let ResponseContext::Lease(lease) = ResponseContext::parse(&context) {
                self.opens.share_lease(lease);
            }
        }
        self.wait_for_open(token);
        true
    }

    /// Records an Open. `msg` is the answer as the node gave it.
    pub(super) fn record_open(&mut self, request: &Request, msg: &[u8], client: FileId, node: FileId) {
        let session = request.header.session_id;
        let Some(tree_id) = request.header.tree_id() else { return };
        if self.observe_replayed(request, msg, client, node) {
            return;
        }
        let Some(tree) = self.sessions.tree(session, tree_id) else { return };
        let (share, is_pipe) = (Arc::clone(&tree.share), tree.is_pipe());
        let place = Place { session, tree: tree_id, share, is_pipe };
        let token = self.opens.next_token();
        let Some(mut open) = open_from(token, place, &request.msg, msg, Client(client)) else { return };
        open.node_id = crate::ids::Node(node);
        if let Some(lease) = open.lease {
            self.opens.share_lease(lease);
            if let Some(mate) = self.opens.with_lease(lease.key).next() {
                open.share(mate);
                open.keep_to_break();
            }
        }
        self.requests.opened(request, client);
        let (name, file, asked) = (open.name.clone(), open.file(), request.at);
        let (generation, deletes) = (self.generation(), open.create_options & DELETE_ON_CLOSE != 0);
        self.out.file(FileEvent::Opened { open: token, name, file, asked, generation, deletes });
        let response = create::Response::parse(msg).ok();
        let writes = |r: &Request| r.unit == request.unit && r.header.command == Command::WRITE;
        let is_written = request.compounded && self.requests.iter().any(writes);
        let has_emptied = |r: &create::Response<'_>| [SUPERSEDED, OVERWRITTEN].contains(&r.create_action);
        let end = response.filter(|r| !is_written && !has_emptied(r)).map(|r| r.end_of_file);
        if !is_pipe && !open.is_directory {
            self.out.file(FileEvent::Sized { open: token, end, asked });
        }
        if may_write(open.desired_access) {
            self.out.file(FileEvent::Writes { open: token });
        }
        if create::Response::parse(msg).is_ok_and(|response| response.create_action == CREATED) {
            self.out.file(FileEvent::Made { key: open.key(), birth: open.birth, at: request.at });
        }
        let lease = open.lease.map(|lease| lease.key);
        self.opens.insert(open);
        if !self.note_given(request, token) {
            self.out.file(FileEvent::Met { open: token, lease });
        }
        self.wait_for_open(token);
        self.side_open_recorded(request.at, token);
    }

    pub(super) fn observe_close(&mut self, request: &Request) {
        let Some(token) = self.request_open(request) else { return };
        let closed = self.opens.remove(token);
        self.out.file(FileEvent::Closed { open: token });
        if let Some(open) = closed {
            self.left_by(request.at, &open);
        }
    }

    /// The Open a request is about.
    pub(super) fn request_open(&self, request: &Request) -> Option<crate::ids::OpenToken> {
        self.opens.of(request).map(|o| o.token)
    }

    fn observe_set_info(&mut self, request: &Request) {
        let Ok(parsed) = set_info::Request::parse(&request.msg) else { return };
        let Some(token) = self.request_open(request) else { return };
        if parsed.info_type != INFO_FILE {
            return;
        }
        match parsed.file_info_class {
            class::RENAME | class::RENAME_EX => {
                if let Some(name) = parsed.new_name() {
                    let taken = self.opens.get(token).filter(|_| request.is_related());
                    let taken = taken.map(|open| (open.key(), open.birth));
                    self.observe_rename(request.at, token, name, false);
                    if let Some((key, birth)) = taken {
                        self.out.file(FileEvent::Gone { key, birth: Some(birth) });
                    }
                    self.note_made(request.at, token, name);
                }
            }
            class::LINK | class::LINK_EX => {
                if let Some(name) = parsed.new_name() {
                    self.note_made(request.at, token, name);
                }
            }
            class::DISPOSITION | class::DISPOSITION_EX => {
                if let (Some(open), Some(flag)) = (self.opens.get_mut(token), parsed.buffer.first()) {
                    open.delete_pending = flag & 1 != 0;
                    self.out.file(FileEvent::Doomed { open: token, doomed: open.delete_pending });
                }
            }
            class::BASIC => {
                let time = parsed.buffer.get(..8).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes);
                if let (Some(open), Some(time)) = (self.opens.get_mut(token), time.filter(|t| *t > 0)) {
                    open.birth = Birth::set(time.unsigned_abs());
                    self.out.file(FileEvent::Born { open: token, birth: open.birth });
                }
            }
            _ => {}
        }
    }

    /// The file of an Open has this name since now. `at`: when the client asked for it.
    pub(crate) fn note_made(&mut self, at: Instant, token: crate::ids::OpenToken, name: &[u8]) {
        let Some(open) = self.opens.get(token) else { return };
        let (key, birth) = (file_key(&open.share, &open.full_name(name)), open.birth);
        self.out.file(FileEvent::Made { key, birth, at });
    }

    /// An Open has another name now, and with it every Open of the same file and of what is beneath it, of whatever Link:
    /// those hear of it before they are reclaimed. `asked`: when the client asked for it. `found`: it may have been the
    /// rename of another, not answered yet.
    pub(crate) fn observe_rename(
        &mut self,
        asked: Instant,
        token: crate::ids::OpenToken,
        name: &[u8],
        found: bool,
    ) {
        let Some(open) = self.opens.get_mut(token) else { return };
        open.set_path(&open.full_name(name));
        open.called = None;
        let to = open.name.clone();
        self.out.file(FileEvent::Renamed { open: token, to, asked, found });
    }

    /// Of the requests that go to the node now, others may have to know what changes names before their answers are known.
    pub(crate) fn tell_name_changes(&mut self, ids: &[crate::ids::MessageId]) {
        for id in ids {
            let Some(request) = self.requests.get(*id) else { continue };
            if let Some(event) = self.renaming(request).or_else(|| self.deleting(request)) {
                self.out.file(event);
            }
        }
    }

    fn deleting(&self, request: &Request) -> Option<FileEvent> {
        let open = self.opens.of(request).filter(|_| is_disposition(request))?.token;
        Some(FileEvent::Deleting { open, id: request.message_id() })
    }

    fn renaming(&self, request: &Request) -> Option<FileEvent> {
        let (_, to) = new_name(request).filter(|(is_rename, _)| *is_rename)?;
        let (from, to) = self.old_and_new_name(request, to)?;
        let open = self.opens.of(request).map(|open| open.token);
        Some(FileEvent::Renaming { open, from, to, asked: request.at, id: request.message_id() })
    }

    /// The client is answered. `known`: the node has said what became of the request, or that was found out.
    pub(crate) fn tell_name_change_is_over(&mut self, request: &Request, known: bool) {
        if new_name(request).is_some_and(|(is_rename, _)| is_rename) {
            self.out.file(FileEvent::RenameOver { id: request.message_id(), known });
        } else if is_disposition(request) {
            self.out.file(FileEvent::DeletingOver { id: request.message_id() });
        }
    }

    /// By which assignment the Link has come to its node.
    pub(crate) fn generation(&self) -> u64 {
        match &self.state {
            State::Relay(attached) => attached.generation,
            State::Recovering(recovery) => recovery.attached().map_or(0, |attached| attached.generation),
            State::Bridge(leg) => leg.generation,
            _ => 0,
        }
    }

    /// Remembers which names of a directory the client has had.
    pub(super) fn observe_query_directory(&mut self, request: &Request, status: Status, msg: &[u8]) {
        let Ok(asked) = query_directory::Request::parse(&request.msg) else { return };
        let Some(token) = self.request_open(request) else { return };
        let Some(open) = self.opens.get_mut(token) else { return };
        open.cursor.note(&asked, status, msg);
    }

    /// FileIds in kept requests are turned back into the client's, before the node's lose their meaning.
    pub(super) fn restore_client_ids(&mut self) {
        let translated: Vec<_> = self.requests.iter().filter(|r| !r.raw).map(Request::message_id).collect();
        for id in translated {
            self.restore_ids_of(id);
        }
    }

    /// The same for one request.
    pub(super) fn restore_ids_of(&mut self, id: crate::ids::MessageId) {
        let Some(request) = self.requests.get(id).filter(|r| !r.raw) else { return };
        let mut msg = request.msg.to_vec();
        patch::rewrite_file_ids(&mut msg, &mut |node| {
            self.opens.by_node(node).map_or(node, |o| o.client_id.0)
        });
        self.requests.replace_msg(id, msg.into(), true);
    }

    /// Whether an Open of the client's can be used on the present node.
    pub(super) fn is_live(&self, id: FileId) -> bool {
        self.opens.by_client(id).is_some_and(|o| o.state == OpenState::Live)
    }
}

/// Whether a request says whether a file is to be deleted when it is closed.
fn is_disposition(request: &Request) -> bool {
    let asked = set_info::Request::parse(&request.msg).ok().filter(|asked| asked.info_type == INFO_FILE);
    request.header.command == Command::SET_INFO
        && asked
            .is_some_and(|asked| [class::DISPOSITION, class::DISPOSITION_EX].contains(&asked.file_info_class))
}
