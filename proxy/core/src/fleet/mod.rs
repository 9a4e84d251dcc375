//! Which node serves. One for all clients at a time; pure, like the rest of the core.
//!
//! | state | meaning | leaves by |
//! |---|---|---|
//! | Searching | no node has an assignment; all are asked | an answer |
//! | Serving | one node has it | a lost leg, a refused probe, silence |
//! | Verifying | a leg was lost: the same node is asked afresh | its answer |
//! | Stuck | the node is silent and may not be left (yet) | its answer, proof of death, a fence |
//! | Storing | the choice is being written down | the store's answer |
//!
//! Death is proved by the host itself: it refuses a connection. Silence proves nothing, so a silent node is left only
//! after a fence, or if the operator accepts the risk; in the latter case it is dirty and not chosen again until its
//! host proves that the process is gone, or the operator clears it.
//!
//! Each assignment has a generation; news about legs of older generations is old news. The epoch counts how often
//! clients' Opens had to be made anew.
//!
//! Nodes should be alike. What each says of itself is its [`Profile`]; one on which clients would break is chosen only if
//! there is no other.

mod comparison;
mod config;
mod found;
pub mod interview;
mod node;
pub mod profile;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use understudy_state::{Phase, PlacementRecord, record};

use self::node::Node;
pub use self::{
    config::{FenceMode, FleetConfig, FleetEffect, ProbeReport, Token},
    found::Found,
    node::Health,
    profile::{Difference, Profile, Severity, What},
};
use crate::{
    event::{Cause, LegLoss},
    ids::NodeId,
};

/// How long a fence that failed is left alone before it is tried again.
const FENCE_RETRY: Duration = Duration::from_secs(1);
/// How long a node has for an answer while a node is sought.
const SEARCH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the node of the stored placement is preferred when the proxy starts.
const PREFERENCE: Duration = Duration::from_millis(500);

/// A node, and the number of times it was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// Grows with every assignment, also of the same node.
    pub generation: u64,
    /// Grows when clients' Opens must be made anew.
    pub epoch: u64,
    /// The node.
    pub node: NodeId,
}

#[derive(Debug)]
enum State {
    Searching { since: Instant, next: Instant, cause: Cause },
    Serving,
    Verifying { token: Token, since: Instant, again: Option<Instant> },
    Stuck(Stuck),
    Storing { token: Token, next: Assignment, cause: Cause },
}

#[derive(Debug)]
struct Stuck {
    fencing: Option<Token>,
    retry: Option<Instant>,
}

/// The nodes and the choice among them.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    nodes: Vec<Node>,
    current: Option<Assignment>,
    /// The profile of the node that serves, or served last: what clients were told. It does not change with the node once
    /// that is lost.
    promised: Option<Profile>,
    /// In what two nodes were last said to differ.
    differences: BTreeMap<[NodeId; 2], Vec<Difference>>,
    /// The node of the stored placement, while the proxy has just started. It may not have been found yet.
    stored: Option<(String, u64)>,
    /// Nodes that the stored placement calls dirty, and that were not found yet.
    dirty_before: BTreeSet<String>,
    state: State,
    /// Questions of a search that are not answered yet, one per node at most.
    asked: Vec<(Token, NodeId)>,
    /// The stored placement still says that clients' Opens are being made anew.
    reclaiming: bool,
    generation: u64,
    epoch: u64,
    tokens: u64,
    effects: VecDeque<FleetEffect>,
}

impl Fleet {
    /// A Fleet that has no assignment yet. `placement` is what the store holds; a node of it that is configured no
    /// longer is ignored.
    pub fn new(config: FleetConfig, placement: Option<&PlacementRecord>, now: Instant) -> Self {
        let mut dirty: BTreeSet<_> = placement.into_iter().flat_map(|p| p.dirty.iter().cloned()).collect();
        let are_found = config.nodes.is_empty();
        let nodes = config.nodes.iter().map(|name| Node::new(name.clone(), dirty.remove(name))).collect();
        let stored = placement.filter(|p| are_found || config.nodes.contains(&p.node));
        dirty.retain(|_| are_found);
        let mut fleet = Self {
            nodes,
            current: None,
            promised: None,
            differences: BTreeMap::new(),
            stored: stored.map(|p| (p.node.clone(), p.epoch)),
            dirty_before: dirty,
            state: State::Searching { since: now, next: now, cause: Cause::Crash },
            asked: Vec::new(),
            reclaiming: false,
            generation: 0,
            epoch: placement.map_or(0, |p| p.epoch),
            tokens: 0,
            effects: VecDeque::new(),
            config,
        };
        fleet.ask_all();
        fleet
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<FleetEffect> {
        self.effects.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Searching { next, .. } => Some(*next),
            State::Stuck(stuck) => stuck.retry,
            State::Verifying { again, .. } => *again,
            State::Serving | State::Storing { .. } => None,
        }
    }

    /// The node that serves, if any.
    pub fn assignment(&self) -> Option<Assignment> {
        match self.state {
            State::Serving | State::Verifying { .. } | State::Stuck(_) => self.current,
            State::Searching { .. } | State::Storing { .. } => None,
        }
    }

    /// What is thought of each node that is asked: its health, and whether it is dirty.
    pub fn status(&self, now: Instant) -> Vec<(NodeId, Health, bool)> {
        let config = &self.config;
        let health = |node: &Node| node.health(now, config.silence_after, config.answers_to_recover);
        let all = self.nodes.iter().zip((0..).map(NodeId)).filter(|(node, _)| !node.gone);
        all.map(|(node, id)| (id, health(node), node.dirty)).collect()
    }

    /// A Link lost a leg to `node`, to which it had gone by the assignment of `generation`.
    pub fn handle_leg_lost(&mut self, now: Instant, node: NodeId, generation: u64, loss: LegLoss) {
        let serving = self.current.filter(|a| a.node == node && a.generation == generation);
        if serving.is_none() || !matches!(self.state, State::Serving) {
            return;
        }
        match loss {
            LegLoss::Refused => self.node_died(now, node),
            LegLoss::Closed | LegLoss::Silent => self.verify(node, now, self.config.same_node_probe),
        }
    }

    /// The regular probe of a node.
    pub fn handle_probe(&mut self, now: Instant, node: NodeId, report: ProbeReport) {
        // Of one that is gone this is old news, or another one's that has its address.
        let asked = self.nodes.get_mut(usize::from(node.0)).filter(|entry| !entry.gone);
        let Some(entry) = asked else { return };
        entry.report(now, report);
        let silent = entry.is_silent(now, self.config.silence_after);
        let is_current = self.current.is_some_and(|a| a.node == node);
        match &self.state {
            State::Searching { .. } => self.choose(now),
            State::Serving | State::Verifying { .. } if is_current => match report {
                ProbeReport::Refused => self.node_died(now, node),
                ProbeReport::Silent if silent => self.node_silent(now, node),
                _ => {}
            },
            State::Stuck(_) if is_current => match report {
                ProbeReport::Refused => self.node_died(now, node),
                ProbeReport::Answer => {
                    self.effects.push_back(FleetEffect::NodeAnswers { node });
                    self.assign_again(node);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// The answer to [`FleetEffect::Verify`].
    pub fn handle_verify(&mut self, now: Instant, node: NodeId, token: Token, report: ProbeReport) {
        if let Some(at) = self.asked.iter().position(|(asked, _)| *asked == token) {
            self.asked.swap_remove(at);
            if let Some(entry) = self.nodes.get_mut(usize::from(node.0)).filter(|entry| !entry.gone) {
                entry.report(now, report);
            }
            if let (State::Searching { .. }, ProbeReport::Answer) = (&self.state, report) {
                self.choose(now);
            }
            return;
        }
        let State::Verifying { token: expected, since, .. } = self.state else { return };
        if expected != token {
            return;
        }
        // The regular probe speaks for the node too: one that is slow to accept is not silent.
        let entry = self.nodes.get(usize::from(node.0));
        let answers = entry.is_some_and(|entry| entry.has_answered_since(since));
        let late = now >= since + self.config.silence_after && !answers;
        match report {
            ProbeReport::Answer => self.assign_again(node),
            ProbeReport::Refused => self.node_died(now, node),
            // A host that closes what it accepts may be dying, or busy: it proves nothing.
            ProbeReport::Closed | ProbeReport::Silent if late => self.node_silent(now, node),
            ProbeReport::Silent => self.verify(node, since, SEARCH_TIMEOUT),
            ProbeReport::Closed => {
                self.state =
                    State::Verifying { token, since, again: Some(now + self.config.search_interval) };
            }
        }
    }

    /// The answer to [`FleetEffect::Fence`]: whether it succeeded.
    pub fn handle_fenced(&mut self, now: Instant, node: NodeId, token: Token, success: bool) {
        let State::Stuck(stuck) = &mut self.state else { return };
        if stuck.fencing != Some(token) {
            return;
        }
        stuck.fencing = None;
        if success {
            self.leave(now, Cause::Silence);
        } else {
            stuck.retry = Some(now + FENCE_RETRY);
            self.effects
                .push_back(FleetEffect::NodeSilent { node, why: "the fence has failed; it is tried again" });
        }
    }

    /// The answer to [`FleetEffect::StorePlacement`]. The move is made whether the store worked or not: a client that
    /// waits for a store that is down would lose its files to no purpose.
    pub fn handle_placement_stored(&mut self, now: Instant, token: Token) {
        let State::Storing { token: expected, next, cause } = self.state else { return };
        if expected != token {
            return;
        }
        let from = self.current.map(|a| a.node);
        self.current = Some(next);
        self.promise(next.node);
        self.state = State::Serving;
        self.effects.push_back(FleetEffect::Move { assignment: next, cause, from, state_lost: true });
        from.into_iter().for_each(|from| self.left(from));
        self.leave_displaced(now, next.node);
    }

    /// No Open of any client is unreclaimed.
    pub fn handle_reclaimed(&mut self) {
        if let (State::Serving, true, Some(current)) = (&self.state, self.reclaiming, self.current) {
            self.reclaiming = false;
            self.store(current.node, Phase::Serving);
        }
    }

    /// The operator vouches that a dirty node executes nothing of its past.
    pub fn handle_cleared(&mut self, now: Instant, node: NodeId) {
        if let Some(entry) = self.nodes.get_mut(usize::from(node.0)) {
            entry.dirty = false;
        }
        if matches!(self.state, State::Searching { .. }) {
            self.choose(now);
        }
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Searching { next, .. } if now >= *next => {
                *next = now + self.config.search_interval;
                self.choose(now);
                if matches!(self.state, State::Searching { .. }) {
                    self.ask_all();
                }
            }
            State::Verifying { since, again: Some(at), .. } if now >= *at => {
                let since = *since;
                if let Some(node) = self.current.map(|a| a.node) {
                    self.verify(node, since, SEARCH_TIMEOUT);
                }
            }
            State::Stuck(stuck) if stuck.retry.is_some_and(|at| now >= at) => {
                stuck.retry = None;
                self.fence();
            }
            _ => {}
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Asks the node afresh whether it lives.
    fn verify(&mut self, node: NodeId, since: Instant, timeout: Duration) {
        let token = self.token();
        self.state = State::Verifying { token, since, again: None };
        self.effects.push_back(FleetEffect::Verify { node, token, timeout });
    }

    /// It lives: only connections were lost.
    fn assign_again(&mut self, node: NodeId) {
        self.generation += 1;
        let assignment = Assignment { generation: self.generation, epoch: self.epoch, node };
        let from = self.current.replace(assignment).map(|a| a.node);
        self.state = State::Serving;
        self.effects.push_back(FleetEffect::Move {
            assignment,
            cause: Cause::Crash,
            from,
            state_lost: false,
        });
    }

    fn node_died(&mut self, now: Instant, node: NodeId) {
        if let Some(entry) = self.nodes.get_mut(usize::from(node.0)) {
            entry.report(now, ProbeReport::Refused);
        }
        self.leave(now, Cause::Crash);
    }

    fn node_silent(&mut self, now: Instant, node: NodeId) {
        self.state = State::Stuck(Stuck { fencing: None, retry: None });
        match self.config.fence {
            FenceMode::Fence => self.fence(),
            FenceMode::None => self.effects.push_back(FleetEffect::NodeSilent {
                node,
                why: "no fence is configured, and unfenced_silence is false",
            }),
            FenceMode::Unfenced => {
                if let Some(entry) = self.nodes.get_mut(usize::from(node.0)) {
                    entry.dirty = true;
                }
                self.leave(now, Cause::Silence);
            }
        }
    }

    fn fence(&mut self) {
        let Some(node) = self.current.map(|a| a.node) else { return };
        let token = self.token();
        if let State::Stuck(stuck) = &mut self.state {
            stuck.fencing = Some(token);
            self.effects.push_back(FleetEffect::Fence { node, token });
        }
    }

    fn leave(&mut self, now: Instant, cause: Cause) {
        self.stored = None;
        self.asked.clear();
        self.state = State::Searching { since: now, next: now + self.config.search_interval, cause };
        self.choose(now);
        if matches!(self.state, State::Searching { .. }) {
            self.ask_all();
        }
    }

    /// Takes the best node that answers, if there is one.
    fn choose(&mut self, now: Instant) {
        let State::Searching { since, cause, .. } = self.state else { return };
        let needed = self.config.answers_to_recover;
        let first = self.current.map_or(0, |a| usize::from(a.node.0) + 1);
        let count = self.nodes.len();
        let order = (0..count).map(|at| (first + at) % count);
        let is_stored = |name: &str| self.nodes.iter().rposition(|node| node.name == name && !node.gone);
        let preferred = self
            .stored
            .as_ref()
            .map(|(name, _)| is_stored(name).and_then(|at| Some((at, self.nodes.get(at)?))));
        let found = match preferred {
            Some(Some((at, node))) if node.may_stay(1) => Some(at),
            Some(node) if now < since + PREFERENCE && node.is_none_or(|(_, n)| !n.dirty) => return,
            _ => {
                // A search that finds no proven node takes the first that answers at all; and one on which clients
                // would break only if there is no other.
                let fleet = &*self;
                let answering = |answers| order.clone().filter(move |at| fleet.is_eligible(*at, answers));
                let all = answering(needed).chain(answering(1));
                all.clone().find(|at| fleet.breaking(*at).is_empty()).or_else(|| all.clone().next())
            }
        };
        let Some(node) = found.and_then(|at| u16::try_from(at).ok()).map(NodeId) else { return };
        self.take(node, cause);
    }

    fn is_eligible(&self, at: usize, answers: u32) -> bool {
        self.nodes.get(at).is_some_and(|node| node.is_eligible(answers))
    }

    fn take(&mut self, node: NodeId, cause: Cause) {
        self.generation += 1;
        let name = self.nodes.get(usize::from(node.0)).map(|node| node.name.as_str());
        let kept = self.stored.take().filter(|(stored, _)| Some(stored.as_str()) == name);
        if let Some((_, epoch)) = kept {
            let assignment = Assignment { generation: self.generation, epoch, node };
            self.current = Some(assignment);
            self.promise(node);
            self.state = State::Serving;
            self.effects.push_back(FleetEffect::Move { assignment, cause, from: None, state_lost: false });
            return;
        }
        let differences = self.breaking(usize::from(node.0));
        if let Some(from) = self.current.map(|a| a.node).filter(|_| !differences.is_empty()) {
            self.effects.push_back(FleetEffect::Compromise { from, to: node, differences });
        }
        self.epoch += 1;
        let next = Assignment { generation: self.generation, epoch: self.epoch, node };
        self.reclaiming = self.current.is_some();
        let phase = if self.reclaiming { Phase::Reclaiming } else { Phase::Serving };
        let token = self.store(node, phase);
        self.state = State::Storing { token, next, cause };
    }

    fn store(&mut self, node: NodeId, phase: Phase) -> Token {
        let token = self.token();
        let name = self.nodes.get(usize::from(node.0)).map(|node| node.name.clone());
        let record = PlacementRecord {
            v: record::VERSION,
            epoch: self.epoch,
            node: name.unwrap_or_default(),
            phase,
            dirty: self.dirty_names(),
        };
        self.effects.push_back(FleetEffect::StorePlacement { record, token });
        token
    }

    fn ask_all(&mut self) {
        let count = u16::try_from(self.nodes.len()).unwrap_or(u16::MAX);
        for node in (0..count).map(NodeId) {
            let is_out = self.nodes.get(usize::from(node.0)).is_some_and(|n| n.dirty || n.gone);
            if is_out || self.asked.iter().any(|(_, asked)| *asked == node) {
                continue;
            }
            let token = self.token();
            self.asked.push((token, node));
            self.effects.push_back(FleetEffect::Verify { node, token, timeout: SEARCH_TIMEOUT });
        }
    }
}

#[cfg(test)]
mod tests;
