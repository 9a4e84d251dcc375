//! What a [`Link`](crate::link::Link) asks of the code that drives it. The list is closed.

use std::time::Duration;

use bytes::Bytes;
use understudy_state::record::{OpenKey, OpenRecord, SessionRecord};

use crate::ids::{LegId, NodeId, SessionId, StoreToken};

/// How many auxiliary legs a Link has at most at one time. One more is reported as lost at once.
pub const AUXILIARY_LEGS: usize = 4;

/// Which leg a frame leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// To the client.
    Client,
    /// To a node, by the leg of that number.
    Node(LegId),
}

/// One whole frame to write, its 4-byte length prefix included.
#[derive(Debug, Clone)]
pub struct Transmit {
    /// The leg.
    pub to: Leg,
    /// The bytes. Frames of one leg are written in the order in which they were polled.
    pub frame: Bytes,
}

/// Something to do beside writing frames. Frames polled before an effect are to be handed to the socket before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open a TCP connection to `node`; answer with `handle_connected` or `handle_leg_lost`.
    Connect {
        /// The number the new leg shall have.
        leg: LegId,
        /// Where to.
        node: NodeId,
        /// What for.
        role: Role,
    },
    /// Give a node leg up. Nothing that arrives on it later may reach the Link.
    CloseLeg {
        /// The leg.
        leg: LegId,
        /// How.
        how: Close,
    },
    /// Store this, in order with what else was to be stored, of whatever Link; answer with `handle_stored`, or with
    /// `handle_store_failed` if the client is not to be served without.
    Store {
        /// Which.
        token: StoreToken,
        /// What.
        mutation: Mutation,
    },
    /// End the client leg; the Link is over and is to be dropped.
    CloseClient {
        /// How.
        how: Close,
        /// Why: a metric label and a word for the log line.
        reason: CloseReason,
    },
}

/// A change of what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// An Open is as this says.
    PutOpen(Box<OpenRecord>),
    /// An Open is as this says, and its client is away: it may come back for so long.
    PutAway(Box<OpenRecord>, Duration),
    /// An Open is no more.
    RemoveOpen(OpenKey),
    /// A session is as this says.
    PutSession(Box<SessionRecord>),
    /// A session is no more.
    RemoveSession {
        /// ClientGuid.
        client: [u8; 16],
        /// The client's SessionId.
        session: SessionId,
    },
}

/// What a node leg is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves the client. It takes the place of the main leg before it, which is closed if it still stands.
    Main,
    /// It stands beside the main leg, for purposes of the Link's own, until it is lost or given up.
    Auxiliary,
}

/// How a TCP connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// FIN, after what is queued has been written.
    Graceful,
    /// RST at once (`SO_LINGER` 0): the peer learns of it immediately and reconnects.
    Reset,
}

/// Why a client leg was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed it.
    ClientClosed,
    /// The client sent what no SMB client sends (oversized, malformed, an id twice).
    ProtocolError,
    /// A frame that must be signed was not, or its signature was wrong.
    SignatureInvalid,
    /// The node ended the connection although it is alive and no session stood on it.
    NodeClosed,
    /// The node was lost and no session of the Link can be moved.
    Unprotected,
    /// The node was lost in the middle of NEGOTIATE or of the first login.
    LostInHandshake,
    /// No node was found within `takeover_deadline`.
    Deadline,
    /// The Link lost its leg too often within a minute.
    TooManyTakeovers,
    /// The takeover failed for good: no session could be established on the new node.
    TakeoverFailed,
    /// The proxy is stopping.
    Shutdown,
    /// What the client was promised could not be stored, and it is not to be served without.
    StoreFailed,
    /// The client was silent in the middle of a frame, or never began to speak.
    Idle,
}

impl CloseReason {
    /// Every reason, for metrics.
    pub const ALL: [Self; 12] = [
        Self::ClientClosed,
        Self::ProtocolError,
        Self::SignatureInvalid,
        Self::NodeClosed,
        Self::Unprotected,
        Self::LostInHandshake,
        Self::Deadline,
        Self::TooManyTakeovers,
        Self::TakeoverFailed,
        Self::Shutdown,
        Self::StoreFailed,
        Self::Idle,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ProtocolError => "protocol_error",
            Self::SignatureInvalid => "signature_invalid",
            Self::NodeClosed => "node_closed",
            Self::Unprotected => "unprotected",
            Self::LostInHandshake => "lost_in_handshake",
            Self::Deadline => "deadline",
            Self::TooManyTakeovers => "too_many_takeovers",
            Self::TakeoverFailed => "takeover_failed",
            Self::Shutdown => "shutdown",
            Self::StoreFailed => "store_failed",
            Self::Idle => "idle",
        }
    }
}
