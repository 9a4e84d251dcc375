//! Looking before an Open is had again under a name that it may not have. What stands there may be another file, and to open
//! that as the Open was would break what others cache of it, the same client too. A handle for the attributes alone is in
//! nobody's way (Samba asks no oplock or lease over it, and compares no share modes).
//!
//! An Open with FILE_DELETE_ON_CLOSE is looked for so under its recorded name, too: that may have been given to another file by
//! then, since a rename of which nobody knows the outcome, and what was opened with that option is deleted when it is closed. So
//! is one whose file the lost node may have deleted: to have another file open instead would keep its own clients from it.
//!
//! | the look finds | then |
//! |---|---|
//! | the very file; or under the recorded name one against which nothing speaks | it is closed; when that is answered, lest it keep the Open from what it had, the reclaim |
//! | another file | it is closed; the Open is looked for elsewhere |
//! | nothing | the Open is looked for elsewhere |
//! | that it may not look | the reclaim: its own answer shows which file it is |

use smb_parse::{
    cmd::create,
    create_context::tag,
    encode::{self, CreateParams},
    header::{Command, Header, Status},
};

use super::{
    place::Under,
    reclaim::{Identity, identity},
};
use crate::{
    ids::OpenToken,
    link::{Link, node_leg::Op, open::Open},
};

/// FILE_OPEN, FILE_DELETE_ON_CLOSE, FILE_OPEN_REPARSE_POINT (MS-SMB2 2.2.13).
const FILE_OPEN: u32 = 1;
const DELETE_ON_CLOSE: u32 = 0x1000;
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
/// FILE_READ_ATTRIBUTES (MS-SMB2 2.2.13.1.1); sharing everything.
const READ_ATTRIBUTES: u32 = 0x80;
const SHARE_ALL: u32 = 7;

impl Link {
    /// How an Open begins to be looked for under its recorded name.
    pub(super) fn first_op(&self, open: &Open) -> Op {
        if self.reclaim_options(open) & DELETE_ON_CLOSE != 0 || self.may_be_deleted(open.token) {
            Op::Look(open.token, Under::Recorded)
        } else {
            Op::Reclaim(open.token)
        }
    }

    pub(super) fn send_look(&mut self, token: OpenToken, under: Under) {
        let Some(open) = self.opens.get(token) else { return };
        let name = self.name_under(token, under).unwrap_or(&open.name.path);
        let (session, msg) = (open.session.0, self.create_for_attributes(open, name, READ_ATTRIBUTES));
        self.send_in_session(session, &msg, Op::Look(token, under));
    }

    /// CREATE of a handle on what stands under a name, with this access, which is to attributes alone: it is in nobody's way.
    pub(super) fn create_for_attributes(&self, open: &Open, name: &[u8], desired_access: u32) -> Vec<u8> {
        let header = self.own_header(Command::CREATE, open.session.0, self.node_tree(open));
        encode::create(
            &header,
            &CreateParams {
                oplock_level: 0,
                impersonation_level: open.impersonation_level,
                desired_access,
                file_attributes: 0,
                share_access: SHARE_ALL,
                create_disposition: FILE_OPEN,
                create_options: open.create_options & OPEN_REPARSE_POINT,
                name_utf16: name,
                contexts: &[(tag::QFID, Vec::new())],
            },
        )
    }

    pub(super) fn look_answer(&mut self, token: OpenToken, under: Under, header: &Header, msg: &[u8]) {
        let status = Status(header.status);
        let gone = [Status::OBJECT_NAME_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND].contains(&status);
        let found = create::Response::parse(msg).ok().filter(|_| status.is_success());
        let Some(open) = self.opens.get(token) else { return };
        let is_it = |identity| match identity {
            Identity::Same => true,
            Identity::Alike => under == Under::Recorded && !self.may_be_deleted(token),
            Identity::Other => false,
        };
        match found.map(|response| (response.file_id, identity(open, &response))) {
            Some((id, identity)) if is_it(identity) => {
                let session = open.session.0;
                let header = self.own_header(Command::CLOSE, session, self.node_tree(open));
                self.send_in_session(session, &encode::close(&header, 0, id), Op::LookClose(token, under));
            }
            Some((id, _)) => {
                self.close_stranger(token, id);
                self.note_absence(token, status, true);
                self.look_elsewhere(token, under);
            }
            None if gone => {
                self.note_absence(token, status, false);
                self.look_elsewhere(token, under);
            }
            None => self.ask_for(under.reclaim(token)),
        }
    }

    /// What was looked at is closed.
    pub(super) fn look_closed(&mut self, token: OpenToken, under: Under) {
        self.ask_for(under.reclaim(token));
    }
}
