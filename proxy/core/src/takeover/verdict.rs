//! What becomes of a request that was in flight when its node was lost. One pure function, one table.

use smb_parse::{
    cmd::{ioctl, set_info, write},
    fsctl,
    header::{Command, Status},
};

use super::probe::Finding;
use crate::event::Replay;
use crate::ids::RELATED_FILE_ID;
use crate::link::{
    dispatch::create_disposition,
    open::{OpenState, Opens},
    request::Request,
};

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it to the new node: doing it twice is the same as once.
    Resend,
    /// Whether it was done is to be found out on the new node first.
    Probe,
    /// The answer is known without the node.
    Synthesize(Status),
    /// CLOSE of an Open that is gone: it is closed.
    Closed,
    /// Nobody can tell whether it was done: the client is told so.
    Fail(Status),
}

/// The kinds of request that differ in their verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads, or sets something to a value.
    Idempotent,
    /// CREATE by a disposition that neither fails nor truncates when it is run again.
    Open,
    /// CREATE that must be the one to create it (FILE_CREATE).
    Exclusive,
    /// CREATE by any other disposition.
    OtherCreate,
    /// WRITE to the end of the file, wherever that is.
    Append,
    /// Rename by an Open.
    Rename,
    /// Hard link.
    Link,
    /// CLOSE.
    Close,
    /// CHANGE_NOTIFY.
    Notify,
    /// LOGOFF and TREE_DISCONNECT.
    Teardown,
    /// SESSION_SETUP.
    Login,
    /// An IOCTL that does something of which nobody knows whether it was done.
    OtherIoctl,
}

/// All that the verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    /// Nodes lost while it was in flight.
    pub(crate) deaths: u8,
    /// Whether it was done, as far as that was found out.
    pub(crate) finding: Finding,
    /// The Open it works on is lost.
    pub(crate) open_lost: bool,
}

/// FILE_OPEN, FILE_OPEN_IF (MS-SMB2 2.2.13).
const REPEATABLE_DISPOSITIONS: [u32; 2] = [1, 3];
/// See [`REPEATABLE_DISPOSITIONS`].
const FILE_CREATE: u32 = 2;
/// SMB2_0_INFO_FILE; FileRenameInformation and FileLinkInformation with their Ex forms (MS-FSCC 2.4).
const RENAME_CLASSES: [u8; 2] = [10, 65];
const LINK_CLASSES: [u8; 2] = [11, 72];

impl Facts {
    pub(crate) fn of(request: &Request, opens: &Opens) -> Self {
        // A related request whose CREATE is not answered either will work on what that opens.
        let opened =
            request.file_id().is_some_and(|id| id != RELATED_FILE_ID || request.related_file.is_some());
        let lost = opened && opens.of(request).is_none_or(|o| o.state != OpenState::Live);
        Self { kind: kind(request), deaths: request.deaths, finding: request.finding, open_lost: lost }
    }
}

fn kind(request: &Request) -> Kind {
    let msg = &request.msg;
    match request.header.command {
        Command::CREATE => match create_disposition(msg) {
            Some(d) if REPEATABLE_DISPOSITIONS.contains(&d) => Kind::Open,
            Some(FILE_CREATE) => Kind::Exclusive,
            _ => Kind::OtherCreate,
        },
        Command::WRITE => match write::Request::parse(msg) {
            Ok(w) if w.offset != u64::MAX => Kind::Idempotent,
            _ => Kind::Append,
        },
        Command::SET_INFO => match set_info::Request::parse(msg) {
            Ok(s) if s.info_type == 1 && RENAME_CLASSES.contains(&s.file_info_class) => Kind::Rename,
            Ok(s) if s.info_type == 1 && LINK_CLASSES.contains(&s.file_info_class) => Kind::Link,
            Ok(_) => Kind::Idempotent,
            // Refused by every node.
            Err(_) => Kind::Link,
        },
        Command::IOCTL => match ioctl::Request::parse(msg) {
            Ok(i) if fsctl::is_repeatable(i.ctl_code) => Kind::Idempotent,
            _ => Kind::OtherIoctl,
        },
        Command::CLOSE => Kind::Close,
        Command::CHANGE_NOTIFY => Kind::Notify,
        Command::LOGOFF | Command::TREE_DISCONNECT => Kind::Teardown,
        Command::SESSION_SETUP | Command::NEGOTIATE => Kind::Login,
        // Locks die with their node and are rebuilt from what was acknowledged, so a LOCK in flight has not been.
        _ => Kind::Idempotent,
    }
}

/// The table.
pub(crate) fn verdict(facts: &Facts) -> Verdict {
    if facts.deaths > 1 {
        return Verdict::Fail(Status::INTERNAL_ERROR);
    }
    if facts.open_lost {
        // The lost node may have closed it, and deleted the file with that.
        if facts.kind == Kind::Close {
            return Verdict::Closed;
        }
        return Verdict::Synthesize(Status::FILE_CLOSED);
    }
    match facts.kind {
        // A login is judged afresh, if nobody has answered its beginning.
        Kind::Idempotent | Kind::Open | Kind::Close | Kind::Teardown | Kind::Login => Verdict::Resend,
        Kind::Notify => Verdict::Synthesize(Status::NOTIFY_ENUM_DIR),
        Kind::Rename => match facts.finding {
            Finding::Undone => Verdict::Resend,
            Finding::Done => Verdict::Synthesize(Status::SUCCESS),
            Finding::Unknown | Finding::Unclear => Verdict::Fail(Status::INTERNAL_ERROR),
        },
        // What it has created is opened for it.
        Kind::Exclusive if facts.finding == Finding::Done => Verdict::Resend,
        Kind::Exclusive | Kind::Link => match facts.finding {
            Finding::Unknown => Verdict::Probe,
            Finding::Undone => Verdict::Resend,
            Finding::Done => Verdict::Synthesize(Status::SUCCESS),
            Finding::Unclear => Verdict::Fail(Status::INTERNAL_ERROR),
        },
        Kind::OtherCreate | Kind::Append | Kind::OtherIoctl => Verdict::Fail(Status::INTERNAL_ERROR),
    }
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Idempotent => "idempotent",
            Self::Open => "open",
            Self::Exclusive => "exclusive_create",
            Self::OtherCreate => "other_create",
            Self::Append => "append",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Close => "close",
            Self::Notify => "notify",
            Self::Teardown => "teardown",
            Self::Login => "login",
            Self::OtherIoctl => "other_ioctl",
        }
    }
}

impl Verdict {
    fn label(self) -> &'static str {
        match self {
            Self::Resend => "resend",
            // It could not be asked.
            Self::Probe => "not_probed",
            Self::Synthesize(_) => "synthesize",
            Self::Closed => "closed",
            Self::Fail(_) => "fail",
        }
    }
}

impl Facts {
    /// The row of the table that was taken.
    pub(crate) fn row(&self, verdict: Verdict) -> Replay {
        let known = match self.finding {
            _ if self.deaths > 1 => "second_death",
            _ if self.open_lost => "open_lost",
            Finding::Unknown => "unknown",
            Finding::Undone => "undone",
            Finding::Done => "done",
            Finding::Unclear => "unclear",
        };
        Replay { request: self.kind.label(), known, verdict: verdict.label() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use Finding::{Done, Unclear, Undone, Unknown};
        let internal = Verdict::Fail(Status::INTERNAL_ERROR);
        let rows = [
            (Kind::Idempotent, Unknown, Verdict::Resend),
            (Kind::Open, Unknown, Verdict::Resend),
            (Kind::Close, Unknown, Verdict::Resend),
            (Kind::Teardown, Unknown, Verdict::Resend),
            (Kind::Notify, Unknown, Verdict::Synthesize(Status::NOTIFY_ENUM_DIR)),
            (Kind::Login, Unknown, Verdict::Resend),
            (Kind::OtherCreate, Unknown, internal),
            (Kind::Append, Unknown, internal),
            (Kind::Rename, Unknown, internal),
            (Kind::Rename, Undone, Verdict::Resend),
            (Kind::Rename, Done, Verdict::Synthesize(Status::SUCCESS)),
            (Kind::Rename, Unclear, internal),
            (Kind::Exclusive, Unknown, Verdict::Probe),
            (Kind::Exclusive, Undone, Verdict::Resend),
            (Kind::Exclusive, Done, Verdict::Resend),
            (Kind::Exclusive, Unclear, internal),
            (Kind::Link, Unknown, Verdict::Probe),
            (Kind::Link, Undone, Verdict::Resend),
            (Kind::Link, Done, Verdict::Synthesize(Status::SUCCESS)),
            (Kind::Link, Unclear, internal),
            (Kind::OtherIoctl, Unknown, internal),
        ];
        for (kind, finding, expected) in rows {
            let facts = Facts { kind, deaths: 1, finding, open_lost: false };
            assert_eq!(verdict(&facts), expected, "{facts:?}");
            let twice = Facts { deaths: 2, ..facts };
            assert_eq!(verdict(&twice), internal, "{twice:?}");
            let closed = match kind {
                Kind::Close => Verdict::Closed,
                _ => Verdict::Synthesize(Status::FILE_CLOSED),
            };
            let lost = Facts { open_lost: true, ..facts };
            assert_eq!(verdict(&lost), closed, "{lost:?}");
        }
    }
}
