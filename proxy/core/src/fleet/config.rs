//! What the Fleet is told at the start, and what it asks for.

use std::time::Duration;

use understudy_state::PlacementRecord;

use super::{Assignment, found::Found, profile::Difference};
use crate::{event::Cause, ids::NodeId};

/// The Fleet's configuration.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// The names of listed nodes, in order of preference. None: nodes are found (`Fleet::handle_nodes`).
    pub nodes: Vec<String>,
    /// A node that has not answered for this long is silent.
    pub silence_after: Duration,
    /// How long a node is given to answer a fresh connection after it has ended a leg.
    pub same_node_probe: Duration,
    /// Pause between two rounds of asking every node, while none answers.
    pub search_interval: Duration,
    /// Answers in a row before a node that was down is eligible again.
    pub answers_to_recover: u32,
    /// What makes sure that a silent node executes nothing any more.
    pub fence: FenceMode,
}

impl FleetConfig {
    /// The defaults for these nodes.
    pub fn new(nodes: Vec<String>) -> Self {
        Self {
            nodes,
            silence_after: Duration::from_millis(1500),
            same_node_probe: Duration::from_millis(100),
            search_interval: Duration::from_millis(100),
            answers_to_recover: 2,
            fence: FenceMode::None,
        }
    }
}

/// What may be done about a silent node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceMode {
    /// Nothing: clients wait for it.
    None,
    /// A fence is configured; the node is left once it has succeeded.
    Fence,
    /// The operator accepts that a silent node may later execute what it had received.
    Unfenced,
}

/// What one attempt to reach a node came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeReport {
    /// It answered a NEGOTIATE or an ECHO.
    Answer,
    /// Its host refused the connection: nobody listens.
    Refused,
    /// Its host ended the connection.
    Closed,
    /// Nothing came within the time given.
    Silent,
}

/// Names one question of the Fleet's, so that late answers are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What the Fleet asks of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetEffect {
    /// Connect afresh and NEGOTIATE; answer with `handle_verify`.
    Verify {
        /// The node.
        node: NodeId,
        /// To be given back.
        token: Token,
        /// After this the answer is [`ProbeReport::Silent`].
        timeout: Duration,
    },
    /// Make sure that the node executes nothing any more; answer with `handle_fenced`.
    Fence {
        /// The node.
        node: NodeId,
        /// To be given back.
        token: Token,
    },
    /// Store the placement; answer with `handle_placement_stored`.
    StorePlacement {
        /// What to store.
        record: PlacementRecord,
        /// To be given back.
        token: Token,
    },
    /// The assignment is this from now on. Tell Files first if the node has changed, then every Link.
    Move {
        /// The assignment.
        assignment: Assignment,
        /// Why.
        cause: Cause,
        /// The node before, if there was one.
        from: Option<NodeId>,
        /// The clients' Opens are not on this node: it is another one, or it has died in between.
        state_lost: bool,
    },
    /// The next move is to a node on which clients will break, for want of a better one. For the log.
    Compromise {
        /// The node before.
        from: NodeId,
        /// The node that is taken.
        to: NodeId,
        /// Those differences that break.
        differences: Vec<Difference>,
    },
    /// Two nodes were compared, and the outcome is news. For the log and the metrics.
    Compared {
        /// The nodes, in the order in which they are configured.
        nodes: [NodeId; 2],
        /// In what they differ. Nothing: they did before, and do no longer.
        differences: Vec<Difference>,
    },
    /// This node is asked how it is from now on, and may be connected to. Ids are given in order, from 0; a node that was gone
    /// may be there again.
    NodeFound {
        /// Its id.
        node: NodeId,
        /// How it was found.
        found: Found,
    },
    /// This node is neither asked nor connected to any more.
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// Clients are at a node that is to end, or is not found any more; they stay until it is dead. For the log.
    NodeLeaving {
        /// The node.
        node: NodeId,
        /// What has happened to it.
        why: &'static str,
    },
    /// The node is silent and may not be left. For the Links and the log.
    NodeSilent {
        /// The node.
        node: NodeId,
        /// Why it may not be left.
        why: &'static str,
    },
    /// The silent node answers again.
    NodeAnswers {
        /// The node.
        node: NodeId,
    },
}
