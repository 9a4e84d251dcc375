//! Oplock and lease breaks (MS-SMB2 3.3.4.6, 3.3.4.7, 3.3.5.22).

use smb_parse::{
    cmd::oplock_break,
    encode,
    header::{Command, Flags, Header, Status, Target},
    patch,
};

use super::{
    Link,
    open::{OPLOCK_LEASE, Open},
    request::Request,
};
use crate::ids::{MessageId, OpenToken};

/// Lease states that a client must acknowledge losing: write or handle caching.
const ACKNOWLEDGED: u32 = 0x2 | 0x4;
/// `SMB2_NOTIFY_BREAK_LEASE_FLAG_ACK_REQUIRED`.
const ACK_REQUIRED: u32 = 0x1;
/// Oplock levels (MS-SMB2 2.2.13).
const LEVEL_II: u8 = 0x01;

impl Link {
    /// A break notification passes to the client: from now on no more than the new level may be asked for.
    pub(super) fn watch_break(&mut self, msg: &[u8]) {
        match oplock_break::Notification::parse(msg) {
            Ok(oplock_break::Notification::Oplock { oplock_level, file_id }) => {
                if let Some(open) = self.opens.by_node_mut(file_id) {
                    open.break_pending = open.oplock_level > LEVEL_II;
                    open.oplock_level = oplock_level;
                    open.break_is_ours = false;
                }
            }
            Ok(oplock_break::Notification::Lease {
                new_epoch, flags, lease_key, new_lease_state, ..
            }) => {
                for open in self.opens.with_lease_mut(lease_key) {
                    open.break_is_ours = false;
                    open.break_pending = flags & ACK_REQUIRED != 0;
                    if let Some(lease) = &mut open.lease {
                        lease.state = new_lease_state;
                        lease.epoch = new_epoch.max(lease.epoch);
                    }
                }
            }
            Err(_) => self.out.event(crate::event::Event::NotUnderstood),
        }
    }

    /// A notification of the node in Bridge, its ids made the client's. False if the client has no such Open.
    pub(crate) fn translate_break(&mut self, msg: &mut [u8]) -> bool {
        self.watch_break(msg);
        if let Ok(oplock_break::Notification::Oplock { file_id, .. }) = oplock_break::Notification::parse(msg)
        {
            let Some(open) = self.opens.by_node(file_id) else { return false };
            patch::set_session_id(msg, open.session.0);
            let client_id = open.client_id.0;
            return patch::set_response_file_id(msg, client_id);
        }
        true
    }

    /// The client acknowledges a break that the present node never asked for: it is ours to answer.
    /// True if it was.
    pub(super) fn answer_own_break(&mut self, id: MessageId) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let Ok(ack) = oplock_break::Ack::parse(&request.msg) else { return false };
        let ours = match ack {
            oplock_break::Ack::Oplock { file_id, .. } => {
                self.opens.by_client(file_id).is_some_and(|o| o.break_is_ours)
            }
            oplock_break::Ack::Lease { lease_key, .. } => {
                self.opens.with_lease_mut(lease_key).any(|o| o.break_is_ours)
            }
        };
        if !ours {
            return false;
        }
        let Some(request) = self.requests.remove(id) else { return false };
        self.acknowledge(&request, &ack);
        true
    }

    fn acknowledge(&mut self, request: &Request, ack: &oplock_break::Ack) {
        let header = self.response_header(request, Status::SUCCESS);
        let msg = match *ack {
            oplock_break::Ack::Oplock { oplock_level, file_id } => {
                if let Some(open) = self.opens.by_client_mut(file_id) {
                    open.break_is_ours = false;
                }
                encode::oplock_break_ack_response(&header, file_id, oplock_level)
            }
            oplock_break::Ack::Lease { lease_key, lease_state, .. } => {
                for open in self.opens.with_lease_mut(lease_key) {
                    open.break_is_ours = false;
                }
                encode::lease_break_ack_response(&header, lease_key, lease_state)
            }
        };
        self.answer(request, &msg);
    }

    /// An Open came back with less than the client believes it has: a real break tells it.
    /// `had` is what it had: oplock level and lease state.
    pub(crate) fn break_to_present_level(&mut self, token: OpenToken, had: (u8, u32)) {
        let Some(open) = self.opens.get_mut(token) else { return };
        let (level, state) = had;
        let header = |session| Header {
            credit_charge: 0,
            status: Status::SUCCESS.0,
            command: Command::OPLOCK_BREAK,
            credits: 0,
            flags: Flags::SERVER_TO_REDIR,
            next_command: 0,
            message_id: u64::MAX,
            target: Target::Sync { reserved: 0, tree_id: 0 },
            session_id: session,
            signature: [0; 16],
        };
        let msg = match &mut open.lease {
            Some(lease) if level == OPLOCK_LEASE => {
                if lease.state & state == state {
                    return;
                }
                let flags = if state & ACKNOWLEDGED != 0 { ACK_REQUIRED } else { 0 };
                lease.epoch = lease.epoch.wrapping_add(1);
                open.break_is_ours = flags != 0;
                let notice = encode::LeaseBreak {
                    epoch: if lease.version == 2 { lease.epoch } else { 0 },
                    flags,
                    key: lease.key,
                    current: state,
                    new: lease.state & state,
                };
                encode::lease_break_notification(&header(0), &notice)
            }
            _ => {
                if level == open.oplock_level || level == 0 {
                    return;
                }
                open.break_is_ours = level > LEVEL_II;
                encode::oplock_break_notification(
                    &header(open.session.0),
                    open.client_id.0,
                    open.oplock_level,
                )
            }
        };
        self.out.send_client(encode::frame(&msg).into());
    }
}

/// What an Open has: oplock level and lease state.
pub(crate) fn level_of(open: &Open) -> (u8, u32) {
    (open.oplock_level, open.lease.as_ref().map_or(0, |l| l.state))
}
