//! Delete-on-close flags that clients have set by SET_INFO. A file that is to be deleted admits no further open, so its flags
//! wait, in Bridge, until all its Opens are back, of whatever Link; the file's barrier waits for the flags. What would close
//! the Open waits too until the flag is set, or the file would stay.

use smb_parse::{
    encode,
    header::{Command, Header},
};

use crate::{
    event::FileEvent,
    files::Files,
    ids::{OpenToken, SessionId},
    link::{Link, State, node_leg::Op, request::Request},
};

/// FileDispositionInformation (MS-FSCC 2.4.11).
const DISPOSITION: u8 = 13;

impl Link {
    /// Sets what may be set, as far as credits go.
    pub(crate) fn set_delete_flags(&mut self, files: &Files) {
        let due: Vec<_> =
            self.unflagged.iter().copied().filter(|open| files.may_flag(self.id, *open)).collect();
        for token in due {
            if !matches!(&self.state, State::Bridge(leg) if leg.can_send(1)) {
                return;
            }
            self.unflagged.remove(&token);
            let Some(open) = self.opens.get(token) else { continue };
            let (session, id) = (open.session.0, open.node_id.0);
            let header = self.own_header(Command::SET_INFO, session, self.node_tree(open));
            let msg = encode::set_info(&header, 1, DISPOSITION, 0, id, &[1]);
            self.send_in_session(session, &msg, Op::Disposition(token));
            self.flagging.insert(token);
        }
    }

    /// The node has answered. `opened`: whose keys opened it, if it came sealed.
    pub(crate) fn delete_flag_answer(
        &mut self,
        token: OpenToken,
        opened: Option<SessionId>,
        header: &Header,
        msg: &mut [u8],
    ) {
        self.flagging.remove(&token);
        let Some(session) = self.opens.get(token).map(|open| open.session.0) else { return };
        if !self.is_of_session(Some(session), opened, header, msg) {
            self.out.event(crate::event::Event::SignatureRefused);
        }
        let generation = self.generation();
        self.out.file(FileEvent::Reclaimed { open: token, generation });
    }

    /// Whether a request would close an Open whose flag is not set yet: a node may let it wait.
    pub(crate) fn closes_unflagged(&self, request: &Request) -> bool {
        let waits = |token: &OpenToken| self.unflagged.contains(token) || self.flagging.contains(token);
        if self.unflagged.is_empty() && self.flagging.is_empty() {
            return false;
        }
        match request.header.command {
            Command::CLOSE => self.opens.of(request).is_some_and(|open| waits(&open.token)),
            Command::TREE_DISCONNECT | Command::LOGOFF => true,
            _ => false,
        }
    }
}
