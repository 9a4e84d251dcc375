//! Sending a client's request to a node of ours: first to its barrier, then translated and signed.

use std::{collections::HashSet, time::Instant};

use bytes::BytesMut;
use smb_parse::{
    cmd::{close, create, ioctl, set_info, write},
    encode,
    frame::PREFIX,
    fsctl,
    header::{Command, Flags, Header, Status},
    patch,
};

use super::{
    Link, State,
    answer::{Check, needs_tree},
    cover::{Cover, Outgoing, cover_for_node},
    credit::charge,
    fsctl::refused_fsctl,
    node_leg::{NodeLeg, Pending},
    open::{OpenState, file_key},
    request::{Request, keep},
    resilience::asks_for_resilience,
    returning::is_reconnect,
};
use crate::{
    crypto::sealing::HEADROOM,
    effect::{Close, CloseReason},
    event::Event,
    files::{FileKey, Files},
    ids::{MessageId, OpenToken, RELATED_FILE_ID, SessionId},
    takeover::{
        append::is_append,
        probe::{Finding, new_name},
        verdict::{Facts, Verdict, verdict},
    },
};

/// FILE_OPEN (MS-SMB2 2.2.13).
const FILE_OPEN: u32 = 1;

impl Request {
    pub(crate) fn is_echo(&self) -> bool {
        self.header.command == Command::ECHO
    }
}

impl Link {
    /// Sends every parked frame whose files are free, in order. A frame that must wait holds back only what would take
    /// from it what it works on: CLOSE of its Open, TREE_DISCONNECT and LOGOFF of its session.
    pub(super) fn dispatch_parked(&mut self, now: Instant, files: &Files) {
        let units = std::mem::take(&mut self.parked);
        self.fresh = false;
        let mut full = false;
        let (mut waiting, mut behind) = (Waiting::default(), Waiting::default());
        let mut told = false;
        let (mut deferred, mut undecided) = (false, false);
        for ids in units {
            self.defers = false;
            let doubtful = ids.iter().any(|id| self.requests.get(*id).is_some_and(|r| r.doubtful));
            let mut blocked = self.is_blocked(&ids, files)
                || self.is_in_grace(&ids, files)
                || self.takes_from(&ids, &waiting)
                || doubtful && told;
            // What is held is not found out before it can be sent: others would not know of it.
            let is_held = !blocked && self.is_held(&ids, files);
            blocked = blocked || !is_held && !self.is_decided(&ids, files);
            let is_kept = blocked || is_held;
            deferred |= self.defers;
            undecided |= doubtful && (is_kept || full) && !self.defers;
            if is_kept {
                self.note_waiting(&ids, &mut waiting);
                for id in &ids {
                    if let Some(request) = self.requests.get_mut(*id) {
                        // As a node would, it waits as long as the acknowledgement takes.
                        request.parked = blocked.then(|| request.parked.unwrap_or(now));
                    }
                }
                self.parked.push_back(ids);
            } else if full {
                self.acknowledge_ahead(now, ids, &mut behind);
            } else if matches!(self.state, State::Relay(_)) {
                self.relay_parked(&ids);
            } else if !self.send_unit(now, &ids) {
                full = true;
                undecided |= doubtful;
                self.note_waiting(&ids, &mut behind);
                self.parked.push_back(ids);
            } else if doubtful && ids.iter().all(|id| self.requests.get(*id).is_none()) {
                // It was answered from here. What that did to names Files is to know before the next is decided.
                (told, self.fresh) = (true, true);
            }
        }
        if deferred && !undecided && !told {
            self.defer();
        }
        self.end_doubt();
        self.finish_barrier(now);
    }

    /// After answers of the node: credits may have come for what is to be asked, and for what is parked.
    pub(super) fn after_answers(&mut self, now: Instant) {
        for id in self.sessions.take_parting() {
            self.forget_session(id);
        }
        self.end_unowed_breaks(now);
        self.send_admission();
        self.pump();
        self.go_on_deciding();
        if self.barrier || self.file_held {
            self.fresh |= !self.parked.is_empty();
        } else if !self.parked.is_empty() {
            let units = std::mem::take(&mut self.parked);
            let mut full = false;
            let mut behind = Waiting::default();
            for ids in units {
                if full {
                    self.acknowledge_ahead(now, ids, &mut behind);
                } else if !self.send_unit(now, &ids) {
                    full = true;
                    self.note_waiting(&ids, &mut behind);
                    self.parked.push_back(ids);
                }
            }
        }
        self.finish_shutdown(now);
    }

    /// Frames wait for credits, or for an answer, and `behind` is what they work on. They may wait for just the acknowledgement
    /// of a break, so that goes ahead of them: but not of what its client does with the file before it has given that back.
    fn acknowledge_ahead(&mut self, now: Instant, ids: Vec<MessageId>, behind: &mut Waiting) {
        let request = ids.first().and_then(|id| self.requests.get(*id));
        let is_ack = |r: &&Request| r.header.command == Command::OPLOCK_BREAK && ids.len() == 1;
        let given_back = request.filter(is_ack).map_or(Vec::new(), |r| self.acknowledged_opens(r));
        let goes_ahead = !given_back.is_empty() && given_back.iter().all(|open| !behind.opens.contains(open));
        if !goes_ahead || !self.send_unit(now, &ids) {
            behind.opens.extend(given_back);
            self.note_waiting(&ids, behind);
            self.parked.push_back(ids);
        }
    }

    /// Whether the node that this Link is on serves no more, which it is still to be told.
    pub(super) fn is_behind(&self, files: &Files) -> bool {
        match &self.state {
            State::Relay(attached) => files.is_over(attached.generation),
            State::Bridge(leg) => files.is_over(leg.generation),
            _ => false,
        }
    }

    /// Whether a frame must wait for the Opens of other Links, or for the node that serves by now.
    fn is_blocked(&self, ids: &[MessageId], files: &Files) -> bool {
        if self.is_behind(files) {
            return true;
        }
        let blocked = |request: &Request| {
            // What was in flight when its node was lost has a turn, or changes no name.
            files.is_opening_blocked() || files.is_in_doubt() && request.deaths == 0
        };
        ids.iter().filter_map(|id| self.requests.get(*id)).any(|request| match request.header.command {
            Command::CREATE => blocked(request),
            // What is found out of others rests on where the file ends.
            Command::WRITE if request.deaths == 0 && files.is_in_doubt() && is_append(request) => true,
            Command::READ | Command::WRITE | Command::LOCK => self.is_file_blocked(request, files),
            Command::SET_INFO if renames(&request.msg) => blocked(request),
            Command::SET_INFO => self.is_file_blocked(request, files),
            _ => self.closes_unflagged(request),
        })
    }

    /// Whether a frame must wait for a client that is to acknowledge a break of what it opens or works on.
    fn is_held(&self, ids: &[MessageId], files: &Files) -> bool {
        if !self.file_held {
            return false;
        }
        if self.is_behind_pending(ids, files) {
            return true;
        }
        ids.iter().filter_map(|id| self.requests.get(*id)).any(|request| match request.header.command {
            Command::CREATE => {
                self.is_held_from_itself(request)
                    || self.create_key(request).is_some_and(|key| files.is_name_held(self.id, &key))
            }
            Command::READ | Command::WRITE | Command::LOCK | Command::SET_INFO => {
                self.opens.of(request).is_some_and(|open| files.is_held(self.id, open.token))
            }
            _ => false,
        })
    }

    /// Whether a frame must wait for a client that is away.
    fn is_in_grace(&self, ids: &[MessageId], files: &Files) -> bool {
        if !self.file_held {
            return false;
        }
        ids.iter().filter_map(|id| self.requests.get(*id)).any(|request| match request.header.command {
            // Whether it may have it is for Files to say, or the node.
            Command::CREATE => {
                !is_reconnect(request)
                    && self.create_key(request).is_some_and(|key| files.is_name_in_grace(self.id, &key))
            }
            Command::READ | Command::WRITE | Command::LOCK => {
                self.opens.of(request).is_some_and(|open| files.is_in_grace(self.id, open.token))
            }
            _ => false,
        })
    }

    /// The file that a CREATE names.
    pub(crate) fn create_key(&self, request: &Request) -> Option<FileKey> {
        let asked = create::Request::parse(&request.msg).ok()?;
        let tree = self.sessions.tree(request.header.session_id, request.header.tree_id()?)?;
        Some(file_key(&tree.share, asked.name.0))
    }

    /// By the name that the file has now: another Link may have renamed it.
    fn is_file_blocked(&self, request: &Request, files: &Files) -> bool {
        self.opens.of(request).is_some_and(|open| files.is_open_blocked(self.id, open.token))
    }

    /// Whether a frame would close, disconnect or log off what one that waits works on.
    fn takes_from(&self, ids: &[MessageId], waiting: &Waiting) -> bool {
        ids.iter().filter_map(|id| self.requests.get(*id)).any(|request| match request.header.command {
            Command::CLOSE => self.opens.of(request).is_some_and(|open| waiting.opens.contains(&open.token)),
            Command::TREE_DISCONNECT | Command::LOGOFF => {
                waiting.sessions.contains(&request.header.session_id)
            }
            _ => false,
        })
    }

    fn note_waiting(&self, ids: &[MessageId], waiting: &mut Waiting) {
        for request in ids.iter().filter_map(|id| self.requests.get(*id)) {
            waiting.sessions.insert(request.header.session_id);
            waiting.opens.extend(self.opens.of(request).map(|open| open.token));
        }
    }

    /// Sends a frame's requests to the node. False if it has to wait: for credits, or for the answer to one before.
    pub(super) fn send_unit(&mut self, now: Instant, ids: &[MessageId]) -> bool {
        let wanted: u32 = ids.iter().filter_map(|id| self.requests.get(*id)).map(Request::charge).sum();
        let keys = self.keys_wanted(ids);
        let for_keys = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let is_payable = |leg: &NodeLeg| leg.can_send(wanted.saturating_add(for_keys));
        if !matches!(&self.state, State::Bridge(leg) if is_payable(leg)) || self.waits_for_names(ids) {
            return false;
        }
        if self.settle_compound(ids) {
            return true;
        }
        self.ask_for_keys(&keys);
        let mut send = Vec::with_capacity(ids.len());
        for id in ids {
            if self.requests.get(*id).is_none() || self.verify_kept(*id) != Check::Passed {
                continue;
            }
            match self.settle_here(now, *id) {
                Settled::Send => send.push(*id),
                Settled::Here => {}
                Settled::LinkOver => return true,
            }
        }
        if send.len() == ids.len() {
            self.transmit_unit(&send);
        } else {
            self.transmit_rest(&send);
        }
        true
    }

    /// A compound of which some members are answered: what leans on a CREATE goes with it, the rest alone.
    fn transmit_rest(&mut self, send: &[MessageId]) {
        let mut together: Vec<MessageId> = Vec::new();
        for id in send {
            let leans = self.requests.get(*id).is_some_and(Request::leans);
            if leans && together.is_empty() {
                self.fail_request(*id, Status::INTERNAL_ERROR);
                continue;
            }
            if !leans && !together.is_empty() {
                self.transmit_unit(&std::mem::take(&mut together));
            }
            together.push(*id);
        }
        if !together.is_empty() {
            self.transmit_unit(&together);
        }
    }

    /// What of a request can be answered without the node.
    fn settle_here(&mut self, now: Instant, id: MessageId) -> Settled {
        let Some(request) = self.requests.get(id) else { return Settled::Here };
        let command = request.header.command;
        if self.begin_return(id) {
            return Settled::Here;
        }
        let Some(request) = self.requests.get(id) else { return Settled::Here };
        if let Some(status) = request.fails.filter(|_| request.deaths > 0) {
            return self.settle(id, status);
        }
        if request.deaths > 0 {
            let facts = Facts::of(request, &self.opens);
            let verdict = verdict(&facts);
            self.out.event(Event::Replay(facts.row(verdict)));
            match verdict {
                Verdict::Resend => {}
                Verdict::Closed => {
                    self.answer_closed(id);
                    return Settled::Here;
                }
                Verdict::Synthesize(Status::SUCCESS) => {
                    self.answer_done(id);
                    return Settled::Here;
                }
                // Whatever could be found out, was.
                Verdict::Probe => {
                    self.note_failed(true);
                    self.fail_request(id, Status::INTERNAL_ERROR);
                    return Settled::Here;
                }
                Verdict::Synthesize(status) | Verdict::Fail(status) => {
                    if status == Status::NOTIFY_ENUM_DIR {
                        self.note_told_of_changes(id);
                    }
                    self.note_failed(status.is_error());
                    self.fail_request(id, status);
                    return Settled::Here;
                }
            }
            self.note_replayed();
        }
        match command {
            Command::NEGOTIATE => {
                self.close(Close::Graceful, CloseReason::ProtocolError);
                Settled::LinkOver
            }
            Command::SESSION_SETUP => {
                self.judge_request(now, id);
                Settled::Here
            }
            Command::CLOSE if self.is_closed_without_node(id) => {
                self.answer_closed(id);
                Settled::Here
            }
            Command::OPLOCK_BREAK if self.answer_own_break(now, id) => Settled::Here,
            Command::LOCK if self.requests.get(id).is_some_and(|r| self.is_lock_repeated(r)) => {
                self.answer_done(id);
                Settled::Here
            }
            Command::IOCTL => self.settle_ioctl(id),
            Command::CHANGE_NOTIFY if self.has_missed_changes(id) => self.settle(id, Status::NOTIFY_ENUM_DIR),
            Command::QUERY_DIRECTORY if self.has_ended_enumeration(id) => {
                self.settle(id, Status::NO_MORE_FILES)
            }
            _ => Settled::Send,
        }
    }

    /// A pipe that has lost its other end can still be closed; and a node that lives has closed, and so deleted, what was to be
    /// deleted by that.
    fn is_closed_without_node(&self, id: MessageId) -> bool {
        let open = self.requests.get(id).and_then(|request| self.opens.of(request));
        open.is_some_and(|open| match open.state {
            OpenState::ClosedByNode => true,
            OpenState::Lost => open.is_pipe,
            _ => false,
        })
    }

    /// CLOSE of an Open that is lost, in flight when it was lost: success, without attributes (MS-SMB2 2.2.16).
    fn answer_closed(&mut self, id: MessageId) {
        let Some(request) = self.requests.remove(id) else { return };
        let header = self.response_header(&request, Status::SUCCESS);
        self.observe_close(&request);
        self.answer(&request, &encode::close_response(&header, &close::Response::default()));
    }

    /// SET_INFO that the lost node had done, an append, or UNLOCK.
    fn answer_done(&mut self, id: MessageId) {
        let Some(request) = self.requests.remove(id) else { return };
        if request.header.command == Command::LOCK {
            let header = self.response_header(&request, Status::SUCCESS);
            self.answer(&request, &encode::lock_response(&header));
            return;
        }
        if let Ok(asked) = write::Request::parse(&request.msg) {
            let header = self.response_header(&request, Status::SUCCESS);
            let answer = encode::write_response(&header, asked.length);
            self.note_appended(&request, Status::SUCCESS, Some(&answer));
            self.answer(&request, &answer);
            return;
        }
        if let (Some(open), Some((_, name))) = (self.request_open(&request), new_name(&request)) {
            self.note_made(request.at, open, name);
        }
        self.tell_name_change_is_over(&request, true);
        let header = self.response_header(&request, Status::SUCCESS);
        self.answer(&request, &encode::set_info_response(&header));
    }

    fn settle(&mut self, id: MessageId, status: Status) -> Settled {
        self.fail_request(id, status);
        Settled::Here
    }

    fn settle_ioctl(&mut self, id: MessageId) -> Settled {
        let Some(request) = self.requests.get(id) else { return Settled::Here };
        if asks_for_resilience(&request.msg) && self.offers_resilience(request.header.session_id) {
            let Some(request) = self.requests.remove(id) else { return Settled::Here };
            let granted = self.response_header(&request, Status::SUCCESS);
            let header = |status: Status| Header { status: status.0, ..granted };
            let msg = self.answer_resilience(&request, header);
            self.answer(&request, &msg);
            return Settled::Here;
        }
        if let Some(status) = refused_fsctl(&request.msg) {
            return self.settle(id, status);
        }
        let msg = request.msg.clone();
        let Ok(parsed) = ioctl::Request::parse(&msg) else { return Settled::Send };
        if parsed.ctl_code != fsctl::VALIDATE_NEGOTIATE_INFO {
            return Settled::Send;
        }
        let Some(request) = self.requests.remove(id) else { return Settled::Here };
        match self.validate_negotiate(&request, &parsed) {
            Some(answer) => {
                self.answer(&request, &answer);
                Settled::Here
            }
            None => {
                self.close(Close::Graceful, CloseReason::ProtocolError);
                Settled::LinkOver
            }
        }
    }

    /// Translates, stamps and covers the members of one frame, and sends it. None is sent if one cannot be translated.
    fn transmit_unit(&mut self, ids: &[MessageId]) {
        let mut frame = BytesMut::zeroed(HEADROOM);
        let mut members = Vec::with_capacity(ids.len());
        let mut messages = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(request) = self.requests.get(*id) else { continue };
            let start = frame.len();
            frame.extend_from_slice(&request.msg);
            let Some(msg) = frame.get_mut(start..) else { continue };
            if ids.last() == Some(id) {
                patch::set_next_command(msg, 0);
            }
            if let Err(status) = self.translate(request, msg, start == HEADROOM) {
                for id in ids {
                    self.fail_request(*id, status);
                }
                return;
            }
            let range = start..frame.len();
            let session = request.header.session_id;
            members.push((*id, request.header.credit_charge));
            messages.push(Outgoing { range, cover: request.cover(), session });
        }
        self.tell_name_changes(ids);
        self.tell_what_was_made(ids);
        self.tell_appends(ids);
        let State::Bridge(leg) = &mut self.state else { return };
        for ((id, charge), Outgoing { range, .. }) in members.iter().zip(&messages) {
            let Some(msg) = frame.get_mut(range.clone()) else { continue };
            let sent = (leg.id, leg.stamp(msg, *charge, Pending::Client(*id)));
            if let Some(request) = self.requests.get_mut(*id) {
                request.sent = Some(sent);
                request.parked = None;
            }
        }
        let leg = leg.id;
        let sealed = messages.iter().any(|m| m.cover == Cover::Sealed);
        let Some(frame) = cover_for_node(&mut self.sessions, &mut *self.random, frame, &messages) else {
            for id in ids {
                self.fail_request(*id, Status::INTERNAL_ERROR);
            }
            return;
        };
        // One copy is kept: what was sent, if it can be read again.
        for ((id, _), Outgoing { range, .. }) in members.iter().zip(messages).filter(|_| !sealed) {
            let range = range.start + PREFIX - HEADROOM..range.end + PREFIX - HEADROOM;
            self.requests.replace_msg(*id, keep(&frame.slice(range)), false);
        }
        self.out.send_node(leg, frame);
    }

    /// SessionId, TreeId and FileIds become the node's. `first`: nothing stands before it in its frame.
    fn translate(&self, request: &Request, msg: &mut [u8], first: bool) -> Result<(), Status> {
        let header = &request.header;
        if header.async_id().is_some() {
            // It names no tree, whose policy it might evade. Only CANCEL may have one (MS-SMB2 2.2.1.1).
            return Err(Status::INVALID_PARAMETER);
        }
        if first && request.is_related() {
            self.stand_alone(request, msg)?;
        }
        if header.session_id != 0 {
            let session = self
                .sessions
                .get(header.session_id)
                .filter(|s| !s.ended)
                .ok_or(Status::USER_SESSION_DELETED)?;
            patch::set_session_id(msg, session.node_id.0);
            if let Some(tree) = header.tree_id().filter(|_| needs_tree(header.command))
                && (first || tree != u32::MAX)
            {
                let tree = self.sessions.tree(header.session_id, tree).filter(|t| !t.lost);
                patch::set_tree_id(msg, tree.ok_or(Status::NETWORK_NAME_DELETED)?.node_id.0);
            }
        }
        if header.command == Command::CREATE && request.finding == Finding::Done {
            patch::set_create_disposition(msg, FILE_OPEN);
        }
        if charge(header.credit_charge) > 1 && header.command == Command::NEGOTIATE {
            return Err(Status::INVALID_PARAMETER);
        }
        self.ids_for_node(msg)
    }

    /// The members before it in its compound were answered by a node since lost: what it took from them is spelt out.
    fn stand_alone(&self, request: &Request, msg: &mut [u8]) -> Result<(), Status> {
        patch::set_flags(msg, request.header.flags.without(Flags::RELATED));
        if request.file_id() == Some(RELATED_FILE_ID) {
            let file = request.related_file.ok_or(Status::INTERNAL_ERROR)?;
            patch::set_request_file_id(msg, file);
        }
        Ok(())
    }
}

/// What the frames that wait work on.
#[derive(Default)]
struct Waiting {
    sessions: HashSet<SessionId>,
    opens: HashSet<OpenToken>,
}

enum Settled {
    Send,
    Here,
    LinkOver,
}

/// Whether a SET_INFO changes names: rename or link (MS-FSCC 2.4.42, 2.4.27).
fn renames(msg: &[u8]) -> bool {
    set_info::Request::parse(msg)
        .is_ok_and(|r| r.info_type == 1 && matches!(r.file_info_class, 10 | 11 | 65 | 72))
}

/// The disposition of a CREATE, for the verdict.
pub(crate) fn create_disposition(msg: &[u8]) -> Option<u32> {
    create::Request::parse(msg).ok().map(|r| r.create_disposition)
}
