//! What requests may do to names, of which nobody will know, or which another Link has to know: for [`crate::files::Files`].

use smb_parse::{cmd::create, header::Command};

use super::{
    probe::{FILE_CREATE, deletes_on_close, makes, new_name},
    verdict::{Facts, Kind},
};
use crate::{
    event::FileEvent,
    files::{Deed, FileKey},
    link::{
        Link,
        dispatch::create_disposition,
        open::{Open, OpenState},
        request::Request,
    },
};

impl Link {
    /// The Link is over: what its node has of it may still be done.
    pub(crate) fn leave_what_is_under_way(&mut self) {
        self.leave_traces(true);
    }

    /// Another Link finds out on this node what became of its requests: what are those doing that are in flight here?
    pub fn handle_asked(&mut self) {
        let deeds = self.deeds(|request| request.sent.is_some(), |_| false);
        self.out.file(FileEvent::Told { deeds });
    }

    /// Tells what requests that a node has, or had when it was lost, may have done to names. Whether that is anything.
    pub(super) fn leave_traces(&mut self, left: bool) -> bool {
        // Of what was in flight before it was told then.
        let had = |request: &Request| if left { request.sent.is_some() } else { request.deaths > 0 };
        // Also of one that is not closed, if only its connection was lost.
        let closes = |open: &Open| (!left || open.state == OpenState::Live) && open.is_to_be_deleted();
        let deeds = self.deeds(had, closes);
        let is_any = !deeds.is_empty();
        for (key, deed) in deeds {
            self.out.file(FileEvent::Perhaps { key, deed, coming: left });
        }
        is_any
    }

    /// What these requests may do to names, and the end of Opens: of these, and of those that a request in flight closes.
    fn deeds(&self, had: impl Fn(&Request) -> bool, closes: impl Fn(&Open) -> bool) -> Vec<(FileKey, Deed)> {
        let requests = self.requests.iter().filter(|request| had(request));
        let opens = self.opens.iter().filter(|open| closes(open) || self.may_be_deleted(open.token));
        let by_requests = requests.flat_map(|request| self.traces(request));
        by_requests.chain(opens.map(|open| (open.key(), Deed::Deleted))).collect()
    }

    /// A request that its node has is answered otherwise: nobody will know what becomes of it.
    pub(crate) fn leave_traces_of(&mut self, request: &Request) {
        if request.sent.is_some() {
            for (key, deed) in self.traces(request) {
                self.out.file(FileEvent::Perhaps { key, deed, coming: true });
            }
        }
    }

    /// What a request may do to names.
    fn traces(&self, request: &Request) -> impl Iterator<Item = (FileKey, Deed)> + use<> {
        let made = self.may_have_made(request).map(|key| (key, Deed::Made));
        let changed =
            self.may_have_removed(request).into_iter().chain(self.may_have_opened_to_delete(request));
        made.into_iter().chain(changed).chain(self.may_have_emptied(request))
    }

    /// The name whose file a request has opened to delete it: a node that lives closes that, by whatever name it is called then.
    fn may_have_opened_to_delete(&self, request: &Request) -> Option<(FileKey, Deed)> {
        let is_new = create_disposition(&request.msg) == Some(FILE_CREATE);
        let is_meant = request.header.command == Command::CREATE && !is_new && deletes_on_close(request);
        self.create_key(request).filter(|_| is_meant).map(|key| (key, Deed::Deleted))
    }

    /// The name whose file a request may have emptied when it opened it.
    fn may_have_emptied(&self, request: &Request) -> Option<(FileKey, Deed)> {
        let is_create = request.header.command == Command::CREATE;
        let empties = is_create && Facts::of(request, &self.opens).kind == Kind::Overwrite;
        self.create_key(request).filter(|_| empties).map(|key| (key, Deed::Emptied))
    }

    /// The name that a request may have given to a file.
    fn may_have_made(&self, request: &Request) -> Option<FileKey> {
        match new_name(request) {
            Some((_, name)) => self.key_of(request, name),
            None => self.create_key(request).filter(|_| makes(request)),
        }
    }

    /// The name that a request may have removed: by a rename, or by deleting what has it.
    fn may_have_removed(&self, request: &Request) -> Option<(FileKey, Deed)> {
        let renames = matches!(new_name(request), Some((true, _)));
        let deletes = match request.header.command {
            // What must be new is nobody else's.
            Command::CREATE if create_disposition(&request.msg) == Some(FILE_CREATE) => request.deletes,
            Command::CREATE => deletes_on_close(request),
            Command::SET_INFO => Facts::of(request, &self.opens).kind == Kind::Delete,
            _ => false,
        };
        if !renames && !deletes {
            return None;
        }
        if let Some(open) = self.opens.of(request) {
            return Some((open.key(), if renames { Deed::Taken } else { Deed::Deleted }));
        }
        let create =
            if request.header.command == Command::CREATE { request } else { self.own_create(request)? };
        let name = create::Request::parse(&create.msg).ok()?.name.0;
        Some((self.key_of(create, name)?, Deed::Taken))
    }
}
