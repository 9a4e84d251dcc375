//! A node leg of the proxy's own: its MessageIds, its credits, and whose answers it waits for.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use smb_parse::{cmd::lock::Lock, encode, header::Header, patch};

use super::{connection::Connection, credit::charge, outbox::Outbox};
use crate::{
    crypto::Dialect,
    ids::{LegId, MessageId, Node, NodeId, OpenToken, SessionId, TreeId},
    link::{breaks::Level, cover::SessionKeys},
    takeover::place::Under,
};

/// How many credits the proxy would like to hold on a node leg.
const WANTED: u32 = 8192;

/// Who gets the answer to a MessageId of the node leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pending {
    /// The client, for its request of this MessageId.
    Client(MessageId),
    /// The proxy.
    Ours(Op),
}

/// A node's clock, as its answer to NEGOTIATE shows it (MS-SMB2 2.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    at: Instant,
    /// In units of 100 ns since 1601.
    time: u64,
}

impl Clock {
    /// The clock of the node that said `conn.system_time` to what was asked `at`; fast by as much as it took to answer.
    pub(crate) fn of(conn: &Connection, at: Instant) -> Option<Self> {
        (conn.system_time > 0).then_some(Self { at, time: conn.system_time })
    }

    /// What it shows, or has shown, then.
    pub(crate) fn time(self, at: Instant) -> u64 {
        let units = |time: Duration| u64::try_from(time.as_nanos() / 100).unwrap_or(u64::MAX);
        let (later, earlier) = (at.saturating_duration_since(self.at), self.at.saturating_duration_since(at));
        self.time.saturating_add(units(later)).saturating_sub(units(earlier))
    }
}

/// What the proxy asks a node for in its own right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// NEGOTIATE.
    Negotiate,
    /// SESSION_SETUP for the session that the client knows by this id.
    Login(SessionId),
    /// TREE_CONNECT.
    Tree(SessionId, TreeId),
    /// CREATE that asks the node for an Open it may have kept.
    Reconnect(OpenToken),
    /// CREATE of a recorded Open.
    Reclaim(OpenToken),
    /// The same, by the name it has if that rename was done.
    ReclaimRenamed(OpenToken, MessageId),
    /// The same, by a name that Files knows.
    ReclaimElsewhere(OpenToken),
    /// CREATE for the attributes of what may be a recorded Open's file.
    Look(OpenToken, Under),
    /// CLOSE of what that has opened.
    LookClose(OpenToken, Under),
    /// CREATE of a handle of our own on an Open's file, for its attributes.
    Attributes(OpenToken),
    /// By that handle the read-only attribute is taken off.
    TakeOff(OpenToken),
    /// And put on again.
    PutOn(OpenToken),
    /// That an Open caches no more than this, which is what its client was told.
    Acknowledge(OpenToken, Level),
    /// A range that an Open which the node has kept may have locked, and is not to have.
    Unlock(OpenToken, Lock),
    /// The byte-range locks of an Open.
    Locks(OpenToken),
    /// The delete-on-close flag of an Open.
    Disposition(OpenToken),
    /// What a client's login is judged by.
    Judge,
    /// LOGOFF of a session that its user has succeeded on another connection.
    Ending,
    /// On a side channel: a SESSION_SETUP that binds it.
    Bind,
    /// On a side channel: which file on the disk an Open is.
    Identity(OpenToken),
    /// On a side channel: the access an Open was granted.
    Access(OpenToken),
    /// Whether the name of a request in flight exists: the request, whose session it is, and the node's TreeId.
    Probe(MessageId, SessionId, TreeId),
    /// CLOSE of what that has opened.
    ProbeClose(MessageId),
    /// Where the file of an append in flight ends, or what stands there: the request, and whose session it is.
    Tail(MessageId, SessionId),
    /// Something whose outcome changes nothing.
    Discard,
}

/// A node leg in Bridge or on its way there, or that of a side channel.
#[derive(Debug)]
pub(crate) struct NodeLeg {
    pub(crate) id: LegId,
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    /// What NEGOTIATE settled on this leg.
    pub(crate) conn: Connection,
    /// The node's clock.
    pub(crate) clock: Option<Clock>,
    next_id: MessageId,
    credits: u32,
    pending: BTreeMap<Node<MessageId>, Pending>,
    /// What is still to be asked, when credits allow.
    pub(crate) todo: VecDeque<Op>,
}

impl NodeLeg {
    pub(crate) fn new(id: LegId, node: NodeId, generation: u64) -> Self {
        Self {
            id,
            node,
            generation,
            conn: Connection::new(),
            clock: None,
            next_id: 0,
            credits: 1,
            pending: BTreeMap::new(),
            todo: VecDeque::new(),
        }
    }

    /// The MessageId of the next request.
    pub(crate) fn next_id(&self) -> MessageId {
        self.next_id
    }

    /// Whether the node allows requests of this much charge.
    pub(crate) fn can_send(&self, charge: u32) -> bool {
        self.credits >= charge
    }

    /// CreditCharge of what costs least: 2.0.2 knows none.
    pub(crate) fn least_charge(conn: &Connection) -> u16 {
        u16::from(conn.dialect > Some(Dialect::SMB202))
    }

    /// The node granted credits.
    pub(crate) fn granted(&mut self, credits: u16) {
        self.credits = self.credits.saturating_add(u32::from(credits));
    }

    /// Gives a message its MessageId and CreditRequest here, takes the credits, and remembers who asked.
    pub(crate) fn stamp(&mut self, msg: &mut [u8], credit_charge: u16, pending: Pending) -> MessageId {
        let cost = charge(credit_charge);
        let id = self.next_id;
        self.next_id += u64::from(cost);
        self.credits = self.credits.saturating_sub(cost);
        let wish = WANTED.saturating_sub(self.credits).max(cost);
        patch::set_message_id(msg, id);
        patch::set_credits(msg, u16::try_from(wish).unwrap_or(u16::MAX));
        self.pending.insert(Node(id), pending);
        id
    }

    /// Sends a message of the proxy's own, signed if there are keys; returns it as it was sent.
    pub(crate) fn send_own(
        &mut self,
        out: &mut Outbox,
        mut msg: Vec<u8>,
        keys: Option<&SessionKeys>,
        op: Op,
    ) -> Vec<u8> {
        let charge = Header::parse(&msg).map_or(0, |h| h.credit_charge);
        self.stamp(&mut msg, charge, Pending::Ours(op));
        if let Some(keys) = keys {
            keys.sign(&mut msg);
        }
        out.send_node(self.id, encode::frame(&msg).into());
        msg
    }

    /// Who waits for this MessageId; it stays known until [`Self::answered`].
    pub(crate) fn pending(&self, id: MessageId) -> Option<&Pending> {
        self.pending.get(&Node(id))
    }

    /// The final answer has come.
    pub(crate) fn answered(&mut self, id: MessageId) {
        self.pending.remove(&Node(id));
    }

    /// Whether an answer to this is still to come.
    pub(crate) fn waits_for(&self, op: &Op) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Ours(asked) if asked == op))
    }

    /// Whether ranges of an Open are still to be unlocked.
    pub(crate) fn is_unlocking(&self, open: OpenToken) -> bool {
        let is_it = |op: &Op| matches!(op, Op::Unlock(of, _) if *of == open);
        let asked = self.pending.values().any(|p| matches!(p, Pending::Ours(op) if is_it(op)));
        asked || self.todo.iter().any(is_it)
    }

    /// Whether every question of the proxy's own is asked and answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.todo.is_empty() && !self.pending.values().any(|p| matches!(p, Pending::Ours(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_tells_the_time_before_and_after_it_was_seen() {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let at = Instant::now() + Duration::from_secs(100);
        let mut conn = Connection::new();
        assert_eq!(Clock::of(&conn, at), None, "it does not say");
        conn.system_time = 1_000_000_000;
        let clock = Clock::of(&conn, at).unwrap();
        assert_eq!(clock.time(at + Duration::from_secs(1)), 1_010_000_000);
        assert_eq!(clock.time(at - Duration::from_secs(1)), 990_000_000);
    }
}
