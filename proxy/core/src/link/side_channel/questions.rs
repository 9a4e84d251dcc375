//! What is asked of an Open: which file on the disk it is, and what access it was granted (MS-FSCC 2.4.22, 2.4.1).

use std::time::Instant;

use bytes::BytesMut;
use smb_parse::{
    cmd::query_info,
    encode::{self, QueryInfoParams},
    header::{Command, Flags, Header, Status, Target},
};

use super::{Stage, framed};
use crate::{
    crypto::sealing::HEADROOM,
    event::{FileEvent, SideChannelFailure},
    ids::OpenToken,
    link::{
        Link, State,
        config::SideChannelMode,
        node_leg::{Op, Pending},
        open::{Open, known_id},
    },
};

/// `SMB2_0_INFO_FILE` (MS-SMB2 2.2.37).
const INFO_FILE: u8 = 1;
/// FileInternalInformation: IndexNumber, 8 bytes.
const INTERNAL: u8 = 6;
/// FileAccessInformation: AccessFlags, 4 bytes.
const ACCESS: u8 = 8;

impl Open {
    fn wants_identity(&self) -> bool {
        self.on_disk_id.is_none()
    }
}

/// Takes FileInternalInformation in. The number is what QFid has in its first 8 bytes; its volume is not told here.
pub(super) fn identity(open: &mut Open, buffer: &[u8]) {
    if let (None, Some(number)) = (open.on_disk_id, buffer.get(..8)) {
        let mut id = [0; 32];
        id.iter_mut().zip(number).for_each(|(to, from)| *to = *from);
        open.on_disk_id = known_id(id);
    }
}

/// Takes FileAccessInformation in.
pub(super) fn access(open: &mut Open, buffer: &[u8]) {
    open.take_access(buffer);
}

impl Link {
    /// An Open was recorded at `at`.
    pub(in crate::link) fn side_open_recorded(&mut self, at: Instant, token: OpenToken) {
        let may = matches!(self.state, State::Relay(_))
            && self.config.side_channel != SideChannelMode::Off
            && !matches!(self.side.stage, Stage::Barred(_));
        if may && self.has_question(token) {
            self.side.due.push_back((at + self.config.side_channel_after, token));
        }
    }

    /// Whether there is something to ask about an Open. One that its client may still replay is left alone: by our question
    /// the node would forget its CreateGuid (MS-SMB2 3.3.5.9.10), and open the file a second time.
    pub(super) fn has_question(&self, token: OpenToken) -> bool {
        let may_ask = |o: &&Open| !o.is_pipe && !o.unused && (o.wants_identity() || o.wants_access());
        let open = self.opens.get(token).filter(may_ask);
        open.is_some_and(|open| self.can_bind(open.session.0))
    }

    /// Asks what is due; for the first of it a side channel is opened.
    pub(super) fn take_questions(&mut self, now: Instant) {
        while let Some((_, token)) = self.side.due.front().copied().filter(|(at, _)| *at <= now) {
            let session = self.opens.get(token).map(|o| o.session.0).filter(|_| self.has_question(token));
            match (&mut self.side.stage, session) {
                (_, None) => {}
                (Stage::Closed, Some(session)) => {
                    self.open_side_channel(now, session);
                    return;
                }
                (Stage::Bound(bound), Some(session)) if bound.session == session => {
                    bound.leg.todo.extend([Op::Identity(token), Op::Access(token)]);
                }
                // Another session's.
                (Stage::Bound(_), Some(_)) => {}
                _ => return,
            }
            self.side.due.pop_front();
        }
        self.pump_side();
    }

    /// Sends what is to be asked, as far as credits go.
    pub(super) fn pump_side(&mut self) {
        loop {
            let Stage::Bound(bound) = &mut self.side.stage else { return };
            if !bound.leg.can_send(1) {
                return;
            }
            let Some(op) = bound.leg.todo.pop_front() else { return };
            match op {
                Op::Identity(token) if self.opens.get(token).is_some_and(Open::wants_identity) => {
                    self.ask(token, INTERNAL, 8, op);
                }
                Op::Access(token) if self.opens.get(token).is_some_and(Open::wants_access) => {
                    self.ask(token, ACCESS, 4, op);
                }
                _ => {}
            }
        }
    }

    /// QUERY_INFO of a client's Open, sealed if its requests are, else signed.
    fn ask(&mut self, token: OpenToken, class: u8, length: u32, op: Op) {
        let Stage::Bound(bound) = &mut self.side.stage else { return };
        let Some(open) = self.opens.get(token) else { return };
        let Some(session) = self.sessions.get_mut(bound.session) else { return };
        let mut header = Header::request(Command::QUERY_INFO, 0);
        (header.session_id, header.credit_charge) = (session.node_id.0, 1);
        header.target = Target::Sync { reserved: 0xfeff, tree_id: open.tree.0 };
        let params = QueryInfoParams {
            info_type: INFO_FILE,
            file_info_class: class,
            output_buffer_length: length,
            additional_information: 0,
            flags: 0,
            file_id: open.node_id.0,
            input: &[],
        };
        let mut msg = encode::query_info(&header, &params);
        bound.leg.stamp(&mut msg, 1, Pending::Ours(op));
        if !session.seals && !session.encrypts(Some(open.tree.0)) {
            bound.keys.sign(&mut msg);
            self.out.send_node(bound.leg.id, framed(&msg));
            return;
        }
        let mut frame = BytesMut::zeroed(HEADROOM);
        frame.extend_from_slice(&msg);
        let nonce = session.node_nonces.next(&mut *self.random);
        let key = session.node_keys.as_ref().and_then(|keys| keys.to_server());
        if key.is_some_and(|key| key.seal(&mut frame, session.node_id.0, nonce)) {
            self.out.send_node(bound.leg.id, frame.freeze());
        }
    }

    /// An answer of the node: it counts only if it is sealed or rightly signed. One that is no success teaches nothing,
    /// for the client may have closed the Open meanwhile.
    pub(super) fn learn(
        &mut self,
        now: Instant,
        token: OpenToken,
        sealed: bool,
        header: &Header,
        msg: &mut [u8],
        take: impl FnOnce(&mut Open, &[u8]),
    ) {
        let Stage::Bound(bound) = &self.side.stage else { return };
        if !Status(header.status).is_success() {
            return;
        }
        let proved = sealed || header.flags.contains(Flags::SIGNED) && bound.keys.verify_mut(msg);
        if !proved {
            self.fail_side_channel(now, SideChannelFailure::NotProved);
            return;
        }
        if let (Ok(response), Some(open)) = (query_info::Response::parse(msg), self.opens.get_mut(token)) {
            let before = open.file();
            take(open, response.buffer);
            let file = open.file();
            if file != before {
                self.out.file(FileEvent::Identified { open: token, file });
            }
            self.counters.aside();
        }
    }
}
