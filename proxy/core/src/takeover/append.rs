//! Whether an append (WRITE at offset 0xFFFFFFFFFFFFFFFF) that was in flight was done by the node that is lost. It is found
//! out on the new node, before the append is answered or sent again: the node is asked where the file ends (QUERY_INFO,
//! FileStandardInformation), and if it has grown, for what stands there (READ). Both by the Open of the append, which is
//! known to be of the very file, so nobody's lease or oplock is broken by it.
//!
//! | the file, beyond all answered appends | the append |
//! |---|---|
//! | has not grown | [`Finding::Undone`]: sent again |
//! | has grown by just the appends in flight that stand there | [`Finding::Done`] if it is one of them: answered with Count = Length; else undone |
//! | has grown by anything else, or is shorter | [`Finding::Unclear`] |
//! | has grown, but the Open may not read, or more than [`MOST`] bytes are in question | unclear |
//! | may have been changed by more than appends, and WRITEs before where it ended when it was opened | unclear |
//!
//! Where the file must end without the appends in flight, [`Tail`](crate::files::Tail) knows, of all Links. Equal data is
//! no matter unless some of those that brought it were done and some not. What was written in part is unclear.
//!
//! Invariants:
//!
//! - One Link at a time finds out, each append to its answer; fresh appends of all Links wait meanwhile. If something
//!   happens to the end of the file nonetheless, or is heard of only then, what was seen counts no more: it is looked at
//!   again.
//! - An append on the node that had it is never found out: the process that lost its leg may still do it.

use bytes::Bytes;
use smb_parse::{
    cmd::{query_info, read, write},
    encode::{self, QueryInfoParams},
    header::{Command, Header, Status},
};

use super::{
    Progress,
    probe::{Finding, Probe},
};
use crate::{
    event::{Event, FileEvent},
    files::Files,
    ids::{MessageId, SessionId},
    link::{Link, State, node_leg::Op, open::Open, request::Request},
};

/// How many bytes of a file are looked at.
const MOST: u64 = 65_536;
/// FileStandardInformation (MS-FSCC 2.4.47): EndOfFile is its second 8 bytes.
const STANDARD: u8 = 5;
const STANDARD_LEN: u32 = 24;
/// FILE_READ_DATA, GENERIC_ALL, GENERIC_READ (MS-SMB2 2.2.13.1.1).
const READS: u32 = 0x9000_0001;
/// FileAllocationInformation, FileEndOfFileInformation (MS-FSCC 2.4).
const SIZES: [u8; 2] = [19, 20];

/// What was seen of the file's end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Look {
    #[default]
    Unasked,
    /// The node was asked, when what was known had that version.
    Asked(u64),
    /// There it ends.
    End(u64, u64),
    /// The same, and the node is asked for what stands before it.
    Reading(u64, u64),
    /// And that stands there.
    Data(u64, u64, Bytes),
    /// It cannot be looked at.
    Obscure,
}

/// Whether a request writes to the end of its file, wherever that is.
pub(crate) fn is_append(request: &Request) -> bool {
    request.header.command == Command::WRITE
        && write::Request::parse(&request.msg).is_ok_and(|asked| asked.offset == u64::MAX)
}

impl Link {
    /// Of the requests that go to the node now, others have to know what they may do to the end of a file.
    pub(crate) fn tell_appends(&mut self, ids: &[MessageId]) {
        for id in ids {
            let Some(request) = self.requests.get_mut(*id) else { continue };
            let command = request.header.command;
            let data = match write::Request::parse(&request.msg) {
                Ok(asked) if asked.offset == u64::MAX => Some(request.msg.slice_ref(asked.data)),
                _ => None,
            };
            let resizes = || {
                let class = request.msg.get(Header::LEN + 3);
                class.is_some_and(|class| SIZES.contains(class))
            };
            // What is written before that changes nothing behind it.
            let ended = self.opens.of(request).map_or(0, |open| open.ended);
            let is_before = |asked: &write::Request<'_>| {
                asked.offset.checked_add(asked.length.into()).is_some_and(|to| to <= ended)
            };
            let spoils = match command {
                Command::WRITE => !write::Request::parse(&request.msg).is_ok_and(|asked| is_before(&asked)),
                Command::SET_INFO => resizes(),
                Command::IOCTL => true,
                _ => continue,
            };
            request.appends = data.is_some();
            let Some(open) = self.opens.of(request).filter(|open| !open.is_pipe && !open.spoilt) else {
                continue;
            };
            let (token, asked) = (open.token, request.at);
            match data {
                Some(data) => self.out.file(FileEvent::Appending { open: token, id: *id, data }),
                None if spoils => {
                    if let Some(open) = self.opens.get_mut(token) {
                        open.spoilt = true;
                    }
                    self.out.file(FileEvent::Sized { open: token, end: None, asked });
                }
                None => {}
            }
        }
    }

    /// An append is answered. `msg` is the answer, if it is to be believed.
    pub(crate) fn note_appended(&mut self, request: &Request, status: Status, msg: Option<&[u8]>) {
        let Some(open) = self.opens.of(request).filter(|_| request.appends) else { return };
        let refusals = [Status::ACCESS_DENIED, Status::INVALID_PARAMETER, Status::FILE_LOCK_CONFLICT];
        let written = match msg {
            Some(msg) if status.is_success() => {
                write::Response::parse(msg).ok().map(|answer| u64::from(answer.count))
            }
            Some(_) if refusals.contains(&status) => Some(0),
            _ => None,
        };
        self.out.file(FileEvent::Appended { open: open.token, id: request.message_id(), written });
    }

    /// Finds out whether an append was done. False until that is known.
    pub(super) fn is_append_found_out(&mut self, id: MessageId, files: &Files) -> bool {
        match self.find_append(id, files) {
            Some(finding) => {
                self.note_finding(id, finding, None);
                true
            }
            None => false,
        }
    }

    fn find_append(&mut self, id: MessageId, files: &Files) -> Option<Finding> {
        const UNCLEAR: Option<Finding> = Some(Finding::Unclear);
        let may_still_run = self.replaying.as_ref().is_none_or(Progress::is_on_the_lost_node);
        let Some(request) = self.requests.get(id).filter(|_| !may_still_run) else { return UNCLEAR };
        let Some(open) = self.opens.of(request) else { return UNCLEAR };
        let Some(tail) = files.tail(self.id, open.token) else { return UNCLEAR };
        if files.may_be_emptied_since(&open.key(), request.at) {
            return UNCLEAR;
        }
        let (version, end, data) = match &request.look {
            Look::Unasked => {
                self.ask_for_end(id, tail.version());
                return None;
            }
            Look::Asked(_) | Look::Reading(..) => return None,
            Look::End(version, end) => (*version, *end, None),
            Look::Data(version, end, data) => (*version, *end, Some(&data[..])),
            Look::Obscure => return UNCLEAR,
        };
        if version != tail.version() {
            self.ask_for_end(id, tail.version());
            return None;
        }
        if let Some(finding) = tail.judge(self.id, id, end, data) {
            return Some(finding);
        }
        let reads = open.granted_access.unwrap_or(open.desired_access) & READS != 0;
        let from = tail.begin().filter(|from| reads && end.saturating_sub(*from) <= MOST);
        let Some(from) = from else { return UNCLEAR };
        self.ask_for_tail(id, version, from, end);
        None
    }

    /// Asks where the file ends, when credits allow.
    fn ask_for_end(&mut self, id: MessageId, version: u64) {
        self.ask_of_tail(id, Look::Asked(version), |link, open| {
            let header = link.own_header(Command::QUERY_INFO, open.session.0, link.node_tree(open));
            let params = QueryInfoParams {
                info_type: 1,
                file_info_class: STANDARD,
                output_buffer_length: STANDARD_LEN,
                additional_information: 0,
                flags: 0,
                file_id: open.node_id.0,
                input: &[],
            };
            encode::query_info(&header, &params)
        });
    }

    /// Asks what stands before its end, when credits allow.
    fn ask_for_tail(&mut self, id: MessageId, version: u64, from: u64, end: u64) {
        let len = u32::try_from(end.saturating_sub(from)).unwrap_or(u32::MAX);
        self.ask_of_tail(id, Look::Reading(version, end), |link, open| {
            let header = link.own_header(Command::READ, open.session.0, link.node_tree(open));
            encode::read(&header, open.node_id.0, from, len, len)
        });
    }

    fn ask_of_tail(&mut self, id: MessageId, look: Look, message: impl Fn(&Self, &Open) -> Vec<u8>) {
        let can_send = matches!(&self.state, State::Bridge(leg) if leg.can_send(1));
        let open = self.requests.get(id).and_then(|request| self.opens.of(request));
        let Some(open) = open.filter(|_| can_send) else { return };
        let (session, msg) = (open.session.0, message(self, open));
        self.send_in_session(session, &msg, Op::Tail(id, session));
        if let Some(request) = self.requests.get_mut(id) {
            (request.look, request.probe) = (look, Probe::Asked);
        }
    }

    /// The node's answer to either question. `opened`: whose keys opened it, if it came sealed.
    pub(crate) fn tail_answer(
        &mut self,
        id: MessageId,
        session: SessionId,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        let is_genuine = self.is_of_session(Some(session), opened, header, msg);
        if !is_genuine {
            self.out.event(Event::SignatureRefused);
        }
        let Some(request) = self.requests.get_mut(id) else { return };
        let is_told = is_genuine && Status(header.status).is_success();
        request.probe = Probe::Unasked;
        request.look = match std::mem::take(&mut request.look) {
            Look::Asked(version) if is_told => {
                let answer = query_info::Response::parse(msg).ok();
                let end = answer.and_then(|a| a.buffer.get(8..16)?.try_into().ok()).map(u64::from_le_bytes);
                end.map_or(Look::Obscure, |end| Look::End(version, end))
            }
            Look::Reading(version, end) if is_told => match read::Response::parse(msg) {
                Ok(answer) => Look::Data(version, end, Bytes::copy_from_slice(answer.data)),
                Err(_) => Look::Obscure,
            },
            _ => Look::Obscure,
        };
    }
}
