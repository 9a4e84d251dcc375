//! CHANGE_NOTIFY (MS-SMB2 3.3.5.19): what has changed in a directory that a client watches is lost with its node.

use smb_parse::header::Status;

use super::{Link, request::Request};
use crate::ids::{MessageId, OpenToken};

/// Whether a node gathers for an Open what changes in its directory. It does so from the first CHANGE_NOTIFY on, also while no
/// request waits (MS-FSA 2.1.5.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Watch {
    /// No.
    #[default]
    Off,
    /// The present node does.
    On,
    /// A node did that is lost, and the client does not know of that.
    Lost,
}

impl Link {
    /// What a node has answered to a CHANGE_NOTIFY: unless it was refused, the node gathers from now on.
    pub(super) fn note_watch(&mut self, request: &Request, status: Status) {
        if status.is_error() && status != Status::CANCELLED {
            return;
        }
        if let Some(token) = self.request_open(request) {
            self.set_watch(token, Watch::On);
        }
    }

    /// Whether changes were lost of which the client does not know. It is told once, by STATUS_NOTIFY_ENUM_DIR, that it has
    /// to look for itself.
    pub(super) fn has_missed_changes(&mut self, id: MessageId) -> bool {
        let Some(token) = self.watched_by(id) else { return false };
        let lost = self.opens.get(token).is_some_and(|open| open.watch == Watch::Lost);
        self.set_watch(token, if lost { Watch::Off } else { Watch::On });
        lost
    }

    /// A request that waited when its node was lost tells the client, too.
    pub(super) fn note_told_of_changes(&mut self, id: MessageId) {
        if let Some(token) = self.watched_by(id) {
            self.set_watch(token, Watch::Off);
        }
    }

    fn watched_by(&self, id: MessageId) -> Option<OpenToken> {
        self.request_open(self.requests.get(id)?)
    }

    fn set_watch(&mut self, token: OpenToken, watch: Watch) {
        if let Some(open) = self.opens.get_mut(token) {
            open.watch = watch;
        }
    }
}
