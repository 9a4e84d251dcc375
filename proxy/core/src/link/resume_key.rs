//! Resume keys for server-side copies (MS-SMB2 3.3.5.15.5, 3.3.5.15.6). A key is the FileId of the source and something that
//! Samba makes alike everywhere, so a key of one node is translated for the next one like any FileId. But an smbd that has
//! given out no key crashes over one (found with 4.17), so it is asked for one first.

use smb_parse::{
    FileId,
    cmd::ioctl,
    encode::{self, IoctlParams},
    fsctl,
    header::Command,
};

use super::{Link, node_leg::Op, open::OpenState};
use crate::ids::{MessageId, OpenToken};

/// `SMB2_SRV_REQUEST_RESUME_KEY` Response (MS-SMB2 2.2.32.3).
const ANSWER: u32 = 32;

impl Link {
    /// The Opens that requests copy from by a key of which the present node does not know.
    pub(super) fn keys_wanted(&self, ids: &[MessageId]) -> Vec<OpenToken> {
        let requests = ids.iter().filter_map(|id| self.requests.get(*id));
        let sources = requests.filter(|r| r.header.command == Command::IOCTL).filter_map(|request| {
            let asked = ioctl::Request::parse(&request.msg).ok()?;
            let copies = matches!(asked.ctl_code, fsctl::SRV_COPYCHUNK | fsctl::SRV_COPYCHUNK_WRITE);
            let key = asked.input.get(..16).filter(|_| copies)?;
            let id = FileId::from_bytes(key.try_into().ok()?);
            let open = if request.raw { self.opens.by_client(id) } else { self.opens.by_node(id) }?;
            (open.state == OpenState::Live && !open.has_key).then_some(open.token)
        });
        sources.collect()
    }

    pub(super) fn ask_for_keys(&mut self, sources: &[OpenToken]) {
        for token in sources {
            let Some(open) = self.opens.get_mut(*token) else { continue };
            open.has_key = true;
            let (session, tree, file_id) = (open.session.0, open.tree.0, open.node_id.0);
            let Some(tree) = self.sessions.tree(session, tree).map(|tree| tree.node_id.0) else { continue };
            let header = self.own_header(Command::IOCTL, session, tree);
            let params = IoctlParams {
                ctl_code: fsctl::SRV_REQUEST_RESUME_KEY,
                file_id,
                input: &[],
                max_output: ANSWER,
            };
            self.send_in_session(session, &encode::ioctl(&header, &params), Op::Discard);
        }
    }
}
