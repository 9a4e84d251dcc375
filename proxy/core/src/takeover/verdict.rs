//! What becomes of a request that was in flight when its node was lost. One pure function, one table.

use smb_parse::{
    cmd::{ioctl, set_info, write},
    header::{Command, Status},
};

use super::{copies, probe::Finding};
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
    /// CREATE of what exists (FILE_OPEN), or one that every node refuses.
    Open,
    /// CREATE of what exists, or else of a new file (FILE_OPEN_IF).
    OpenIf,
    /// CREATE that must be the one to create it (FILE_CREATE).
    Exclusive,
    /// CREATE that empties what exists (FILE_OVERWRITE, FILE_OVERWRITE_IF, FILE_SUPERSEDE).
    Overwrite,
    /// WRITE to the end of the file, wherever that is.
    Append,
    /// Rename.
    Rename,
    /// Hard link.
    Link,
    /// A file is to be deleted: by its disposition, or by a CREATE whose own compound closes what it deletes.
    Delete,
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
    /// What it works on.
    pub(crate) subject: Subject,
    /// Its outcome is known: an UNLOCK's, from the table of locks.
    pub(crate) known: Option<Status>,
}

/// What a request works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An Open that is back, or none.
    Live,
    /// What a CREATE of its own compound opens, which was in flight too.
    OwnCreate,
    /// An Open that is lost.
    Lost,
    /// A pipe: none outlives its node.
    LostPipe,
}

/// CreateDisposition (MS-SMB2 2.2.13).
const FILE_SUPERSEDE: u32 = 0;
const FILE_CREATE: u32 = 2;
const FILE_OPEN_IF: u32 = 3;
const FILE_OVERWRITE: u32 = 4;
const FILE_OVERWRITE_IF: u32 = 5;
/// FileRenameInformation and FileLinkInformation with their Ex forms (MS-FSCC 2.4).
const RENAME_CLASSES: [u8; 2] = [10, 65];
const LINK_CLASSES: [u8; 2] = [11, 72];
/// FileDispositionInformation and its Ex form (MS-FSCC 2.4.11, 2.4.12); both delete if the lowest bit is set.
const DISPOSITION_CLASSES: [u8; 2] = [13, 64];

impl Facts {
    pub(crate) fn of(request: &Request, opens: &Opens) -> Self {
        Self {
            kind: kind(request, opens),
            deaths: request.deaths,
            finding: request.finding,
            subject: subject(request, opens),
            known: request.known,
        }
    }
}

fn subject(request: &Request, opens: &Opens) -> Subject {
    match request.file_id() {
        None if request.deletes => return Subject::OwnCreate,
        None => return Subject::Live,
        // A related request whose CREATE is not answered either will work on what that opens.
        Some(RELATED_FILE_ID) if request.related_file.is_none() => return Subject::OwnCreate,
        Some(_) => {}
    }
    match opens.of(request) {
        Some(open) if open.state == OpenState::Live => Subject::Live,
        Some(open) if open.is_pipe => Subject::LostPipe,
        _ => Subject::Lost,
    }
}

fn kind(request: &Request, opens: &Opens) -> Kind {
    let msg = &request.msg;
    match request.header.command {
        Command::CREATE if request.deletes => Kind::Delete,
        Command::CREATE => match create_disposition(msg) {
            Some(FILE_OPEN_IF) => Kind::OpenIf,
            Some(FILE_CREATE) => Kind::Exclusive,
            Some(FILE_SUPERSEDE | FILE_OVERWRITE | FILE_OVERWRITE_IF) => Kind::Overwrite,
            _ => Kind::Open,
        },
        Command::WRITE => match write::Request::parse(msg) {
            Ok(w) if w.offset != u64::MAX => Kind::Idempotent,
            _ => Kind::Append,
        },
        Command::SET_INFO => match set_info::Request::parse(msg) {
            Ok(s) if s.info_type == 1 && RENAME_CLASSES.contains(&s.file_info_class) => Kind::Rename,
            Ok(s) if s.info_type == 1 && LINK_CLASSES.contains(&s.file_info_class) => Kind::Link,
            Ok(s) if s.info_type == 1 && DISPOSITION_CLASSES.contains(&s.file_info_class) => {
                if s.buffer.first().is_some_and(|flags| flags & 1 != 0) {
                    Kind::Delete
                } else {
                    Kind::Idempotent
                }
            }
            Ok(_) => Kind::Idempotent,
            // Refused by every node.
            Err(_) => Kind::Link,
        },
        Command::IOCTL => match ioctl::Request::parse(msg) {
            Ok(i) if copies::is_repeatable(&i, opens) => Kind::Idempotent,
            _ => Kind::OtherIoctl,
        },
        Command::CLOSE => Kind::Close,
        Command::CHANGE_NOTIFY => Kind::Notify,
        Command::LOGOFF | Command::TREE_DISCONNECT => Kind::Teardown,
        Command::SESSION_SETUP | Command::NEGOTIATE => Kind::Login,
        // Locks die with their node and are rebuilt from what was acknowledged, so a LOCK in flight has not been. Of an
        // UNLOCK it is known what became of it.
        _ => Kind::Idempotent,
    }
}

/// The table.
pub(crate) fn verdict(facts: &Facts) -> Verdict {
    if facts.deaths > 1 && facts.known.is_none() {
        return Verdict::Fail(Status::INTERNAL_ERROR);
    }
    match (facts.subject, facts.kind) {
        // Its file was to be deleted with that, and nobody can tell whether it was.
        (Subject::Lost, Kind::Close) if facts.finding == Finding::Unclear => {
            return Verdict::Fail(Status::INTERNAL_ERROR);
        }
        // The lost node may have closed it, and deleted the file with that.
        (Subject::Lost | Subject::LostPipe, Kind::Close) => return Verdict::Closed,
        (Subject::Lost, Kind::Delete) if facts.finding == Finding::Done => {
            return Verdict::Synthesize(Status::SUCCESS);
        }
        (Subject::Lost, _) => return Verdict::Synthesize(Status::FILE_CLOSED),
        (Subject::LostPipe, _) => return Verdict::Synthesize(Status::PIPE_DISCONNECTED),
        (Subject::Live | Subject::OwnCreate, _) => {}
    }
    if let Some(status) = facts.known {
        return Verdict::Synthesize(status);
    }
    match facts.kind {
        // A login is judged afresh, if nobody has answered its beginning.
        Kind::Idempotent | Kind::Open | Kind::Close | Kind::Teardown | Kind::Login => Verdict::Resend,
        // The Open is back, and its flag is set once more.
        Kind::Delete if facts.subject == Subject::Live => Verdict::Resend,
        Kind::Notify => Verdict::Synthesize(Status::NOTIFY_ENUM_DIR),
        // What it has created or emptied is opened for it.
        Kind::OpenIf | Kind::Exclusive | Kind::Overwrite if facts.finding == Finding::Done => Verdict::Resend,
        // Nothing is lost by it, and nobody is told that it has made what another has.
        Kind::OpenIf if facts.finding == Finding::Unclear => Verdict::Resend,
        // The reclaim of its Open has shown what there is to be known.
        Kind::Rename if facts.subject == Subject::Live && facts.finding == Finding::Unknown => {
            Verdict::Fail(Status::INTERNAL_ERROR)
        }
        Kind::OpenIf
        | Kind::Exclusive
        | Kind::Overwrite
        | Kind::Append
        | Kind::Rename
        | Kind::Link
        | Kind::Delete => match facts.finding {
            Finding::Unknown => Verdict::Probe,
            Finding::Undone => Verdict::Resend,
            Finding::Done => Verdict::Synthesize(Status::SUCCESS),
            Finding::Partly | Finding::Unclear => Verdict::Fail(Status::INTERNAL_ERROR),
        },
        Kind::OtherIoctl => Verdict::Fail(Status::INTERNAL_ERROR),
    }
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Idempotent => "idempotent",
            Self::Open => "open",
            Self::Exclusive => "exclusive_create",
            Self::OpenIf => "open_if",
            Self::Overwrite => "overwrite",
            Self::Delete => "delete",
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
            _ if self.deaths > 1 && self.known.is_none() => "second_death",
            _ if matches!(self.subject, Subject::Lost | Subject::LostPipe) => "open_lost",
            Finding::Unknown => "unknown",
            Finding::Undone => "undone",
            Finding::Done => "done",
            Finding::Partly => "partly",
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
        use Finding::{Done, Partly, Unclear, Undone, Unknown};
        use Subject::{Live, Lost, LostPipe, OwnCreate};
        let internal = Verdict::Fail(Status::INTERNAL_ERROR);
        let done = Verdict::Synthesize(Status::SUCCESS);
        let notify = Verdict::Synthesize(Status::NOTIFY_ENUM_DIR);
        // In the order of Unknown, Undone, Done, Partly, Unclear.
        let [resend, probe] = [Verdict::Resend, Verdict::Probe];
        let rows = [
            (Kind::Idempotent, Live, [resend; 5]),
            (Kind::Idempotent, OwnCreate, [resend; 5]),
            (Kind::Open, Live, [resend; 5]),
            (Kind::OpenIf, Live, [probe, resend, resend, internal, resend]),
            (Kind::Exclusive, Live, [probe, resend, resend, internal, internal]),
            (Kind::Overwrite, Live, [probe, resend, resend, internal, internal]),
            (Kind::Append, Live, [probe, resend, done, internal, internal]),
            (Kind::Rename, Live, [internal, resend, done, internal, internal]),
            (Kind::Rename, OwnCreate, [probe, resend, done, internal, internal]),
            (Kind::Link, Live, [probe, resend, done, internal, internal]),
            (Kind::Link, OwnCreate, [probe, resend, done, internal, internal]),
            (Kind::Delete, Live, [resend; 5]),
            (Kind::Delete, OwnCreate, [probe, resend, done, internal, internal]),
            (Kind::Close, Live, [resend; 5]),
            (Kind::Close, OwnCreate, [resend; 5]),
            (Kind::Notify, Live, [notify; 5]),
            (Kind::Teardown, Live, [resend; 5]),
            (Kind::Login, Live, [resend; 5]),
            (Kind::OtherIoctl, Live, [internal; 5]),
        ];
        for (kind, subject, expected) in rows {
            for (finding, expected) in [Unknown, Undone, Done, Partly, Unclear].into_iter().zip(expected) {
                let facts = Facts { kind, deaths: 1, finding, subject, known: None };
                assert_eq!(verdict(&facts), expected, "{facts:?}");
                let twice = Facts { deaths: 2, ..facts };
                assert_eq!(verdict(&twice), internal, "{twice:?}");
                let known = Facts { known: Some(Status::INVALID_PARAMETER), ..twice };
                assert_eq!(verdict(&known), Verdict::Synthesize(Status::INVALID_PARAMETER), "{known:?}");
                for (subject, status) in [(Lost, Status::FILE_CLOSED), (LostPipe, Status::PIPE_DISCONNECTED)]
                {
                    let expected = match (kind, subject, finding) {
                        (Kind::Close, Lost, Unclear) => internal,
                        (Kind::Close, ..) => Verdict::Closed,
                        (Kind::Delete, Lost, Done) => done,
                        _ => Verdict::Synthesize(status),
                    };
                    let lost = Facts { subject, ..facts };
                    assert_eq!(verdict(&lost), expected, "{lost:?}");
                }
            }
        }
    }
}
