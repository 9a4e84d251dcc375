//! Read-only files with a writable handle: created so, as git does it on a Linux mount, or made so since. The handle goes on,
//! but no node lets such a file be opened to write again. So the attribute is taken off by a handle of our own, the Open
//! is reclaimed, and the attribute is put on again, before the barrier lets anybody else come near.
//!
//! | the CREATE of a reclaim | then |
//! |---|---|
//! | ACCESS_DENIED, and the Open may write | `Attributes`: a handle for the attributes alone |
//! | the handle shows the very file, read-only | `TakeOff`; the Open owes the attribute since then; the reclaim again |
//! | it shows a file that is not (another Link may be at it) | the reclaim again, [`TRIES`] times in all |
//! | anything else | the Open is lost |
//! | the Open is back, or lost, and owes the attribute | `PutOn`; after another node was lost first `Attributes` |
//!
//! What an Open owes it owes to whatever node comes next.

use std::collections::BTreeMap;

use smb_parse::{
    FileId,
    cmd::create,
    encode,
    header::{Command, Header, Status},
};

use super::{
    place::Under,
    reclaim::{Identity, identity},
};
use crate::{
    ids::OpenToken,
    link::{
        Link, State,
        node_leg::Op,
        open::{Open, OpenState},
    },
};

/// FILE_READ_ATTRIBUTES with FILE_WRITE_ATTRIBUTES, which conflict with nothing and break no lease.
const ATTRIBUTES: u32 = 0x80 | 0x100;
/// FILE_WRITE_DATA, FILE_APPEND_DATA, MAXIMUM_ALLOWED, GENERIC_ALL and GENERIC_WRITE (MS-SMB2 2.2.13.1.1).
const WRITES: u32 = 0x0000_0006 | 0x0200_0000 | 0x1000_0000 | 0x4000_0000;
/// FileBasicInformation (MS-FSCC 2.4.7): four times, of which 0 is none, and the attributes.
const BASIC: u8 = 4;
/// FILE_ATTRIBUTE_READONLY, FILE_ATTRIBUTE_NORMAL (MS-FSCC 2.6).
const READONLY: u32 = 0x1;
const NORMAL: u32 = 0x80;
/// How often the file is looked at.
const TRIES: u8 = 3;

/// Handles of our own, by the Open that they are for.
#[derive(Debug, Default)]
pub(super) struct Handles(BTreeMap<OpenToken, Handle>);

#[derive(Debug, Default)]
struct Handle {
    id: Option<FileId>,
    /// The attributes of the file.
    attributes: u32,
    tries: u8,
}

impl Open {
    fn may_write(&self) -> bool {
        self.granted_access.unwrap_or(self.desired_access) & WRITES != 0
    }
}

impl Link {
    fn handle(&mut self, token: OpenToken) -> Option<&mut Handle> {
        match &mut self.state {
            State::Recovering(recovery) => Some(recovery.handles.0.entry(token).or_default()),
            _ => None,
        }
    }

    /// An Open was refused. True if that is looked into.
    pub(super) fn may_be_read_only(&mut self, token: OpenToken, status: Status) -> bool {
        let writes = self.opens.get(token).is_some_and(Open::may_write);
        let Some(handle) = self.handle(token).filter(|_| writes && status == Status::ACCESS_DENIED) else {
            return false;
        };
        handle.tries += 1;
        let op = if handle.id.is_some() { Op::TakeOff(token) } else { Op::Attributes(token) };
        let goes_on = handle.tries <= TRIES;
        if goes_on {
            self.ask_for(op);
        }
        goes_on
    }

    /// Opens the file for its attributes.
    pub(super) fn send_attributes(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token) else { return };
        let (session, msg) = (open.session.0, self.create_for_attributes(open, &open.name.path, ATTRIBUTES));
        self.send_in_session(session, &msg, Op::Attributes(token));
    }

    pub(super) fn attributes_answer(&mut self, token: OpenToken, header: &Header, msg: &[u8]) {
        let response = create::Response::parse(msg).ok().filter(|_| Status(header.status).is_success());
        let Some(open) = self.opens.get_mut(token) else { return };
        let is_back = open.state == OpenState::Live;
        let Some(response) = response else {
            return self.go_on_without(token, is_back);
        };
        let (id, attributes) = (response.file_id, response.file_attributes);
        let is_read_only = attributes & READONLY != 0;
        let is_it = identity(open, &response) != Identity::Other;
        if is_it {
            open.owes_read_only = if is_back { !is_read_only } else { open.owes_read_only || is_read_only };
        }
        if is_it && is_back != is_read_only {
            let op = if is_back { Op::PutOn(token) } else { Op::TakeOff(token) };
            if let Some(handle) = self.handle(token) {
                (handle.id, handle.attributes) = (Some(id), attributes);
            }
            return self.ask_for(op);
        }
        self.close_stranger(token, id);
        if is_back || !is_it {
            self.go_on_without(token, is_back);
        } else {
            self.ask_for(Op::Reclaim(token));
        }
    }

    /// Nothing can be done about the attribute, or needs to be.
    fn go_on_without(&mut self, token: OpenToken, is_back: bool) {
        if is_back {
            self.lock_again(token);
        } else {
            self.look_elsewhere(token, Under::Recorded);
        }
    }

    /// SET_INFO of the attribute.
    pub(super) fn send_read_only(&mut self, token: OpenToken, on: bool) {
        let Some(Handle { id: Some(id), attributes, .. }) = self.handle(token) else { return };
        let (id, others) = (*id, *attributes & !READONLY & !NORMAL);
        let attributes = match (on, others) {
            (true, others) => others | READONLY,
            (false, 0) => NORMAL,
            (false, others) => others,
        };
        let mut buffer = [0; 40];
        buffer[32..36].copy_from_slice(&attributes.to_le_bytes());
        let Some(open) = self.opens.get(token) else { return };
        let session = open.session.0;
        let header = self.own_header(Command::SET_INFO, session, self.node_tree(open));
        let msg = encode::set_info(&header, 1, BASIC, 0, id, &buffer);
        self.send_in_session(session, &msg, if on { Op::PutOn(token) } else { Op::TakeOff(token) });
    }

    pub(super) fn taken_off(&mut self, token: OpenToken, header: &Header) {
        if Status(header.status).is_success() {
            return self.ask_for(Op::Reclaim(token));
        }
        if let Some(open) = self.opens.get_mut(token) {
            open.owes_read_only = false;
        }
        self.close_handle(token);
        self.look_elsewhere(token, Under::Recorded);
    }

    pub(super) fn put_on(&mut self, token: OpenToken, header: &Header) {
        let Some(open) = self.opens.get_mut(token) else { return };
        open.owes_read_only &= !Status(header.status).is_success();
        let is_back = open.state == OpenState::Live;
        self.close_handle(token);
        if is_back {
            self.lock_again(token);
        }
    }

    /// The Open is back: first its file is made read-only again, if it was.
    pub(super) fn pay_read_only(&mut self, token: OpenToken) {
        let owes = self.opens.get(token).is_some_and(|open| open.owes_read_only);
        let has_handle = self.handle(token).is_some_and(|handle| handle.id.is_some());
        match (owes, has_handle) {
            (true, true) => self.ask_for(Op::PutOn(token)),
            (true, false) => self.ask_for(Op::Attributes(token)),
            (false, _) => self.lock_again(token),
        }
    }

    /// The Open is lost: its file is left as it was.
    pub(super) fn leave_read_only(&mut self, token: OpenToken) {
        let owes = self.opens.get(token).is_some_and(|open| open.owes_read_only);
        if owes && self.handle(token).is_some_and(|handle| handle.id.is_some()) {
            self.ask_for(Op::PutOn(token));
        }
    }

    fn close_handle(&mut self, token: OpenToken) {
        if let Some(id) = self.handle(token).and_then(|handle| handle.id.take()) {
            self.close_stranger(token, id);
        }
    }
}
