//! What a [`Link`](crate::link::Link) tells the code that drives it: for the Fleet, for Files, for log and metrics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smb_parse::FileId;
use understudy_state::record::{OpenKey, OpenRecord};

use crate::{
    auth::LoginError,
    files::{Deed, FileIdentity, FileKey, Name},
    ids::{LegId, MessageId, NodeId, OpenToken, SessionId},
    link::birth::Birth,
};

/// News of a Link, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node leg ended or could not be had: to be told to the Fleet (`handle_leg_lost`).
    LegLost {
        /// The leg.
        leg: LegId,
        /// Its node.
        node: NodeId,
        /// The generation of the assignment by which the Link had gone there.
        generation: u64,
        /// What the host itself said of it.
        loss: LegLoss,
    },
    /// The Link's Opens changed: to be told to [`Files`](crate::files::Files).
    File(FileEvent),
    /// A session was established, or its protection changed.
    Session(SessionNews),
    /// A session ended. Its protection was this.
    SessionEnded(Protection),
    /// A session did not come along to the new node: its user is told that it is over.
    SessionLost {
        /// As in [`SessionNews::user`].
        user: String,
        /// Why not.
        loss: SessionLoss,
    },
    /// A user has logged in in the place of a session of an earlier connection: every other Link is to be told.
    Succession(Succession),
    /// A takeover ended, well or badly.
    Takeover(Box<TakeoverReport>),
    /// What became of a request that was in flight when its node was lost was decided.
    Replay(Replay),
    /// The Link waits for a node; the text says what for. Said once a wait.
    Waiting(&'static str),
    /// A frame was refused because its signature was missing or wrong.
    SignatureRefused,
    /// A frame or context was passed on without being understood.
    NotUnderstood,
    /// A side channel stands, is gone, or could not be had.
    SideChannel(SideChannelNews),
    /// The node's process that serves the client does not answer, although its node does; or it answers again.
    Stuck(bool),
}

/// What became of a side channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideChannelNews {
    /// It is bound to the client's session.
    Bound,
    /// One that was bound is closed.
    Closed,
    /// It failed, before or after it was bound. The client does not notice.
    Failed(SideChannelFailure),
}

/// Why a side channel failed. Doubles as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SideChannelFailure {
    /// The node refused to bind it: `server multi channel support = no`, or the connection was not alike.
    Refused,
    /// The connection could not be had, or ended.
    Lost,
    /// The node did not answer in time.
    Silent,
    /// An answer was not signed or sealed as it must be.
    NotProved,
    /// Nobody can log in as the user any more.
    NoAuthority,
    /// With AES-GMAC the session's key may have signed the MessageIds that the binding would take.
    Nonce,
}

impl SideChannelFailure {
    /// Every value, for metrics.
    pub const ALL: [Self; 6] =
        [Self::Refused, Self::Lost, Self::Silent, Self::NotProved, Self::NoAuthority, Self::Nonce];

    /// Whether trying again is of no use.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Lost | Self::Silent)
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::NotProved => "not_proved",
            Self::NoAuthority => "no_authority",
            Self::Nonce => "nonce",
        }
    }
}

/// PreviousSessionId of a login that has succeeded (MS-SMB2 2.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// The session that is to end, as its client knows it.
    pub session: SessionId,
    /// Who has logged in: `DOMAIN\user` as the client named it.
    pub user: String,
}

/// How a node leg was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegLoss {
    /// FIN or RST by the host: its process is gone, or it closed this connection.
    Closed,
    /// ECONNREFUSED on connect: the host lives, nobody listens.
    Refused,
    /// No answer: connect timed out, TCP_USER_TIMEOUT, EHOSTUNREACH, ENETUNREACH. Proves nothing.
    Silent,
}

/// Changes of a Link's Opens as [`Files`](crate::files::Files) counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileEvent {
    /// A new Open.
    Opened {
        /// Which.
        open: OpenToken,
        /// By what name.
        name: Name,
        /// Of which file.
        file: FileIdentity,
        /// When the client asked for it.
        asked: Instant,
        /// The generation of the assignment by which the Link had gone to the node that has answered.
        generation: u64,
        /// The file is to be deleted when it is closed.
        deletes: bool,
    },
    /// The Open is closed.
    Closed {
        /// Which.
        open: OpenToken,
    },
    /// It is known better which file the Open is of.
    Identified {
        /// Which.
        open: OpenToken,
        /// The file.
        file: FileIdentity,
    },
    /// The file's time of creation was set.
    Born {
        /// The Open by which it was set.
        open: OpenToken,
        /// The time.
        birth: Birth,
    },
    /// It was settled whether the file is to be deleted when the last of its Opens is closed.
    Doomed {
        /// The Open by which it was.
        open: OpenToken,
        /// Whether it is.
        doomed: bool,
    },
    /// The node is asked to rename a file, by an Open or by one that is still to come.
    Renaming {
        /// The Open.
        open: Option<OpenToken>,
        /// What it is called, if there is no Open.
        from: Name,
        /// What it is to be called.
        to: Name,
        /// When the client asked for it.
        asked: Instant,
        /// The request.
        id: MessageId,
    },
    /// The client has its answer to that.
    RenameOver {
        /// The request.
        id: MessageId,
        /// Whether the node has said what became of it, or that was found out.
        known: bool,
    },
    /// The node is asked to delete the file of an Open when it is closed.
    Deleting {
        /// The Open.
        open: OpenToken,
        /// The request.
        id: MessageId,
    },
    /// The client has its answer to that.
    DeletingOver {
        /// The request.
        id: MessageId,
    },
    /// The file was renamed: every Open of it, and of what is beneath, has another name from now on.
    Renamed {
        /// The Open by which it was renamed.
        open: OpenToken,
        /// The new name.
        to: Name,
        /// When the client asked for it.
        asked: Instant,
        /// It was found under that name: whose rename that was, and whether it was answered, is not known.
        found: bool,
    },
    /// The node leg is gone: every Open of this Link is unreclaimed.
    Lost,
    /// The Open is back on the present node, but for its delete-on-close flag.
    Unflagged {
        /// Which.
        open: OpenToken,
        /// The generation of the assignment by which the Link has gone to the node.
        generation: u64,
    },
    /// The Open is back on the present node.
    Reclaimed {
        /// Which.
        open: OpenToken,
        /// The generation of the assignment by which the Link has gone to the node.
        generation: u64,
    },
    /// By this Open the file's data may be changed.
    Writes {
        /// Which.
        open: OpenToken,
    },
    /// Where the file of a new Open ends, in bytes.
    Sized {
        /// Which.
        open: OpenToken,
        /// `None`: by now that may be changed in ways that are not followed.
        end: Option<u64>,
        /// When the client asked for it.
        asked: Instant,
    },
    /// The node is asked to write something to the end of the file.
    Appending {
        /// By which Open.
        open: OpenToken,
        /// The request.
        id: MessageId,
        /// What.
        data: Bytes,
    },
    /// That is answered.
    Appended {
        /// By which Open.
        open: OpenToken,
        /// The request.
        id: MessageId,
        /// How many bytes were written. `None`: nobody knows.
        written: Option<u64>,
    },
    /// It may have been changed by this Open just before the node leg was lost.
    Wrote {
        /// Which.
        open: OpenToken,
    },
    /// Nobody else opens the file, or works on it, until the client has acknowledged a break: it may have changes in its cache.
    Held {
        /// The Open by which it may cache.
        open: OpenToken,
    },
    /// It has, or its time is over.
    Released {
        /// Which.
        open: OpenToken,
    },
    /// The Open is lost for good.
    GivenUp {
        /// Which.
        open: OpenToken,
        /// Its file is gone, and its client is told that it has deleted that.
        deleted: bool,
    },
    /// A file stands under a name since now: it was created, renamed to it, or linked.
    Made {
        /// The name.
        key: FileKey,
        /// When the file was created.
        birth: Birth,
        /// When the client asked for it.
        at: Instant,
    },
    /// No file stands under a name any more that did: it was deleted, or has another name. That was answered, to a request
    /// which had opened it by the name.
    Gone {
        /// The name.
        key: FileKey,
        /// When the file was created. `None`: it was gone when that could be looked at; it is the one that had the name last.
        birth: Option<Birth>,
    },
    /// What had a name before the file that has it now was deleted by a request in flight: that is known now.
    LeftGone {
        /// The name.
        key: FileKey,
        /// When the file was created that has it now, if one has.
        but: Option<Birth>,
    },
    /// A request of which nobody will know what became may have done this to a name: it was in flight when its node was lost, or
    /// when its client went, or was answered without its node.
    Perhaps {
        /// The name.
        key: FileKey,
        /// What.
        deed: Deed,
        /// The node is not lost, and may still do it.
        coming: bool,
    },
    /// Requests that change names were in flight when the leg was lost to the node that this assignment had named. If it lives, it
    /// may still do them.
    LeftRunning {
        /// Its generation.
        generation: u64,
    },
    /// The Link is back on that node.
    RunsNoMore {
        /// Its logins have ended the sessions of before, and with them all that was in flight.
        ended: bool,
    },
    /// The Link finds out on a node that lives: the others are to be asked, by [`Files::poll_asked`](crate::files::Files::poll_asked),
    /// what they have in flight.
    Asking,
    /// What requests that are in flight may do to names.
    Told {
        /// The names.
        deeds: Vec<(FileKey, Deed)>,
    },
    /// Names may be made and removed that nobody here sees.
    Unseen,
    /// The client has opened a file afresh, and not come back to it: what is known of absent clients on it may be over.
    Met {
        /// Which Open.
        open: OpenToken,
        /// LeaseKey.
        lease: Option<[u8; 16]>,
    },
    /// The client has a session, or what it had was had again, on the node that was named by this assignment.
    Served {
        /// Its generation.
        generation: u64,
    },
    /// This is the Link of a client with that ClientGuid.
    Client {
        /// ClientGuid.
        guid: [u8; 16],
    },
    /// The client is gone, and may come back to its Open.
    Left {
        /// Which.
        open: OpenToken,
        /// What is recorded of it.
        record: Box<OpenRecord>,
        /// Its node is lost: nobody keeps the file for it.
        lost: bool,
    },
    /// The client has come back to an Open: the owner is to say by [`Files::claimed`](crate::files::Files) whether it may have it.
    Claim {
        /// By which name the Link will have it.
        open: OpenToken,
        /// What the client has named.
        claim: Box<Claim>,
    },
    /// A claim came to an end.
    ClaimEnded {
        /// As in [`Self::Claim`].
        open: OpenToken,
        /// The Open is this Link's, and is stored with this key. `None`: it is lost.
        kept: Option<OpenKey>,
    },
    /// A session that a proxy before this one had is ended at its node.
    BygoneEnded {
        /// ClientGuid.
        client: [u8; 16],
        /// SessionId, as the client knew it.
        session: SessionId,
    },
    /// A claim is given up, for the node is lost: the Open may be claimed again.
    Unclaim {
        /// As in [`Self::Claim`].
        open: OpenToken,
    },
    /// Requests of this Link that change names were in flight when their node was lost. What became of them is open.
    Doubtful,
    /// The Link is ready to find out, or to go on with that.
    Deciding,
    /// It can go on only when it is known what has become of a rename in flight: others find out before it.
    Deferring,
    /// Of a request that was open to doubt the node says that it waits. Nobody else opens a file of this name meanwhile.
    Pending {
        /// The name.
        key: FileKey,
    },
    /// None of this Link's waits so any more.
    NonePending,
    /// Nothing is left to be found out.
    Decided,
}

/// DHnC or DH2C (MS-SMB2 2.2.13.2.4, 2.2.13.2.12), and who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The FileId; only its persistent part counts.
    pub file_id: FileId,
    /// CreateGuid of DH2C; `None`: DHnC.
    pub create_guid: Option<[u8; 16]>,
    /// LeaseKey, if the request has one.
    pub lease_key: Option<[u8; 16]>,
    /// ClientGuid.
    pub client: [u8; 16],
    /// `DOMAIN\user` as the client named it.
    pub user: String,
    /// The share's name in lower case.
    pub share: Arc<str>,
    /// The name that the request gives.
    pub key: FileKey,
}

/// A session and whether it can be moved to another node.
#[derive(Debug, Clone)]
pub struct SessionNews {
    /// `DOMAIN\user` as the client named it; empty for anonymous.
    pub user: String,
    /// Whether, and if not why not.
    pub protection: Protection,
    /// What it was before, if this is a change.
    pub was: Option<Protection>,
}

/// Whether a session survives its node, and why not. Doubles as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protection {
    /// A guest session: no key needed.
    Guest,
    /// An anonymous session: no key needed.
    Anonymous,
    /// NTLM, the user's NT hash is at hand and the derived key was proved.
    Ntlm,
    /// Kerberos, the client's ticket could be read and the key was proved.
    Kerberos,
    /// No: the user is not in the smbpasswd file.
    NoUserUnknown,
    /// No: no smbpasswd file is configured or it cannot be read.
    NoCredentials,
    /// No: the login was neither NTLM nor Kerberos with a ticket for a service.
    NoMechanism,
    /// No: Kerberos, and no keytab is configured.
    NoKeytab,
    /// No: the key that the ticket was made for is not in the keytab.
    NoServiceKey,
    /// No: the keytab has the principal, version and type, but another key.
    NoTicketOpened,
    /// No: the ticket or its key is of an encryption type that cannot be worked with.
    NoEncType,
    /// No: the proxy's clock and the client's differ by more than five minutes: a login by the proxy would be refused.
    NoClock,
    /// No: the ticket has expired by the proxy's clock.
    NoTicketExpired,
    /// No: the key that was derived does not verify the node's answer (stale hash, or a key of
    /// Kerberos that was chosen in a way not known here).
    NoKeyMismatch,
    /// No: the login was not understood (NTLMv1, malformed, a further mechanism).
    NoLogin,
}

impl Protection {
    /// Every value, for metrics.
    pub const ALL: [Self; 15] = [
        Self::Guest,
        Self::Anonymous,
        Self::Ntlm,
        Self::Kerberos,
        Self::NoUserUnknown,
        Self::NoCredentials,
        Self::NoMechanism,
        Self::NoKeytab,
        Self::NoServiceKey,
        Self::NoTicketOpened,
        Self::NoEncType,
        Self::NoClock,
        Self::NoTicketExpired,
        Self::NoKeyMismatch,
        Self::NoLogin,
    ];

    /// Whether a takeover can move the session.
    pub fn is_protected(self) -> bool {
        matches!(self, Self::Guest | Self::Anonymous | Self::Ntlm | Self::Kerberos)
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Anonymous => "anonymous",
            Self::Ntlm => "ntlm",
            Self::Kerberos => "kerberos",
            Self::NoUserUnknown => "user_unknown",
            Self::NoCredentials => "no_credentials",
            Self::NoMechanism => "mechanism",
            Self::NoKeytab => "no_keytab",
            Self::NoServiceKey => "service_key",
            Self::NoTicketOpened => "ticket",
            Self::NoEncType => "encryption_type",
            Self::NoClock => "clock",
            Self::NoTicketExpired => "ticket_expired",
            Self::NoKeyMismatch => "key_mismatch",
            Self::NoLogin => "login_not_understood",
        }
    }
}

/// Why a session did not come along to another node. Doubles as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionLoss {
    /// It was not protected; why not was said when it was established.
    Unprotected,
    /// The user's ticket has expired.
    TicketExpired,
    /// The user's hash is no longer known.
    HashGone,
    /// The node refused the login, gave less than the first node had given, or did not prove that it knows the key.
    Refused,
}

impl SessionLoss {
    /// Every value, for metrics.
    pub const ALL: [Self; 4] = [Self::Unprotected, Self::TicketExpired, Self::HashGone, Self::Refused];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unprotected => "unprotected",
            Self::TicketExpired => "ticket_expired",
            Self::HashGone => "hash_gone",
            Self::Refused => "refused",
        }
    }
}

impl From<LoginError> for SessionLoss {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::TicketExpired => Self::TicketExpired,
            LoginError::NoHash => Self::HashGone,
            LoginError::NoChallenge
            | LoginError::Weak
            | LoginError::NotProved
            | LoginError::TicketUnusable => Self::Refused,
        }
    }
}

/// What made a Link leave its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The leg ended.
    Crash,
    /// The node was silent and has been fenced, or may be left without.
    Silence,
    /// The node lives: the Link wanted a leg of the proxy's own from the start.
    EarlyBridge,
}

impl Cause {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Silence => "silence",
            Self::EarlyBridge => "early_bridge",
        }
    }
}

/// One takeover of one Link, for one log line.
#[derive(Debug, Clone)]
pub struct TakeoverReport {
    /// Why.
    pub cause: Cause,
    /// The node that was lost.
    pub from: NodeId,
    /// The node that serves now; the one tried last if it failed.
    pub to: Option<NodeId>,
    /// `None` if the Link goes on; else why it ended.
    pub failed: Option<crate::effect::CloseReason>,
    /// Sessions established again.
    pub sessions: u32,
    /// Sessions ended because nobody could act for their user.
    pub sessions_lost: u32,
    /// Opens that are back.
    pub opens_reclaimed: u32,
    /// Those of them that a node which lives had kept, with their locks.
    pub opens_kept: u32,
    /// Opens that are lost.
    pub opens_lost: u32,
    /// Requests in flight that were sent again.
    pub replayed: u32,
    /// Requests in flight that were answered with an error.
    pub failed_requests: u32,
    /// How long each phase took, in order of execution.
    pub phases: [(Phase, Duration); Phase::ALL.len()],
}

/// A row of the replay table, as it was taken for one request. Metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replay {
    /// The kind of request.
    pub request: &'static str,
    /// What was known: whether it was done, that its Open is lost, or that it was in flight at two deaths.
    pub known: &'static str,
    /// What became of it.
    pub verdict: &'static str,
}

/// The phases of a takeover, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// From the loss of the leg until a node was named.
    Assign,
    /// TCP connect.
    Connect,
    /// NEGOTIATE.
    Negotiate,
    /// SESSION_SETUP of every session.
    Authenticate,
    /// TREE_CONNECT of every tree.
    Trees,
    /// CREATE of every Open, locks and flags.
    Reclaim,
    /// Waiting for the other Links' Opens of the same files.
    Barrier,
}

impl Phase {
    /// Every phase in order.
    pub const ALL: [Self; 7] = [
        Self::Assign,
        Self::Connect,
        Self::Negotiate,
        Self::Authenticate,
        Self::Trees,
        Self::Reclaim,
        Self::Barrier,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Assign => "assign",
            Self::Connect => "connect",
            Self::Negotiate => "negotiate",
            Self::Authenticate => "authenticate",
            Self::Trees => "trees",
            Self::Reclaim => "reclaim",
            Self::Barrier => "barrier",
        }
    }
}
