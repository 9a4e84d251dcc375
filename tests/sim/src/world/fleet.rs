//! The real Fleet, and what its owner does for it: it asks nodes, fences them, and tells the Links.

use std::{collections::BTreeSet, time::Instant};

use understudy_core::{
    event::{Cause, LegLoss},
    fleet::{Assignment, FenceMode, Fleet, FleetConfig, FleetEffect, ProbeReport, Token},
    ids::NodeId,
};

use super::World;

/// A question of the Fleet's that is not answered yet.
struct Question {
    node: usize,
    token: Token,
    until: Instant,
}

/// The Fleet and what it waits for.
pub(super) struct Placement {
    fleet: Fleet,
    questions: Vec<Question>,
    fences: Vec<(usize, Token)>,
    /// The last move, and why.
    pub(super) assignment: Option<(Assignment, Cause)>,
    /// The life of the node that was named last, once it lives.
    life: Option<u32>,
    /// Nodes, and lives of them, whose epoch is over: nothing may be executed there any more.
    ended: BTreeSet<(usize, u32)>,
}

fn id(node: usize) -> NodeId {
    NodeId(u16::try_from(node).unwrap_or(u16::MAX))
}

impl Placement {
    pub(super) fn new(nodes: usize, now: Instant) -> Self {
        let mut config = FleetConfig::new((1..=nodes).map(|n| format!("node{n}")).collect());
        config.fence = FenceMode::Fence;
        // A probe without an answer is silence: how long it lasts is the steps' business.
        config.silence_after = std::time::Duration::ZERO;
        Self {
            fleet: Fleet::new(config, None, now),
            questions: Vec::new(),
            fences: Vec::new(),
            assignment: None,
            life: None,
            ended: BTreeSet::new(),
        }
    }

    /// The node that serves.
    pub(super) fn serving(&self) -> Option<usize> {
        self.fleet.assignment().map(|a| usize::from(a.node.0))
    }

    /// When time alone moves it.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let questions = self.questions.iter().map(|q| q.until);
        questions.chain(self.fleet.poll_timeout()).min()
    }

    /// Whether a node's epoch is over.
    pub(super) fn is_over(&self, node: usize, life: u32) -> bool {
        self.ended.contains(&(node, life))
    }

    /// Whether the node is to be fenced.
    pub(super) fn is_to_be_fenced(&self, node: usize) -> bool {
        self.fences.iter().any(|(at, _)| *at == node)
    }
}

impl World {
    /// Does what the Fleet wants.
    pub(super) fn drain_fleet(&mut self) {
        while let Some(effect) = self.placement.fleet.poll_effect() {
            match effect {
                FleetEffect::Verify { node, token, timeout } => {
                    let question = Question { node: usize::from(node.0), token, until: self.now + timeout };
                    self.placement.questions.push(question);
                }
                FleetEffect::Fence { node, token } => {
                    self.placement.fences.push((usize::from(node.0), token));
                }
                FleetEffect::StorePlacement { token, .. } => {
                    self.placement.fleet.handle_placement_stored(self.now, token);
                }
                FleetEffect::Move { assignment, cause, from, state_lost } => {
                    self.moved(assignment, cause, from, state_lost);
                }
                FleetEffect::NodeSilent { .. } => {
                    for at in 0..self.pairs.len() {
                        self.pairs[at].link.handle_node_silent(self.now);
                        self.drain(at);
                    }
                }
                FleetEffect::NodeAnswers { .. } => {
                    for at in 0..self.pairs.len() {
                        self.pairs[at].link.handle_node_answers(self.now);
                        self.drain(at);
                    }
                }
                FleetEffect::Compromise { .. } | FleetEffect::Compared { .. } => {}
                // Its nodes are listed.
                FleetEffect::NodeFound { .. }
                | FleetEffect::NodeGone { .. }
                | FleetEffect::NodeLeaving { .. } => {}
            }
        }
    }

    fn moved(&mut self, assignment: Assignment, cause: Cause, from: Option<NodeId>, state_lost: bool) {
        let node = usize::from(assignment.node.0);
        let life = self.up[node].then(|| self.nodes[node].life);
        if state_lost {
            self.files.all_lost(self.now, assignment.generation);
            if let (Some(from), Some(life)) = (from, self.placement.life) {
                self.placement.ended.insert((usize::from(from.0), life));
            }
        }
        let what = match (from == Some(assignment.node), self.placement.life == life) {
            (true, true) => "named again: same",
            (true, false) => "named again: restarted",
            (false, _) => "named: another",
        };
        self.coverage.count(what.into());
        self.tell(format!("the Fleet names node {}, epoch {}", node + 1, assignment.epoch));
        if let Some(life) = life {
            // It has started again before the loss was heard of: the new epoch is its own.
            self.placement.ended.remove(&(node, life));
        }
        self.placement.life = life;
        self.placement.assignment = Some((assignment, cause));
    }

    /// A node has started: if it was named while it was dead, it is by this life that it serves.
    pub(super) fn note_start(&mut self, node: usize) {
        if self.placement.serving() == Some(node) {
            self.placement.life.get_or_insert(self.nodes[node].life);
        }
    }

    /// What a node says to a question.
    fn report(&self, node: usize) -> ProbeReport {
        match (self.up[node], self.stopped[node]) {
            (false, _) => ProbeReport::Refused,
            (true, true) => ProbeReport::Silent,
            (true, false) => ProbeReport::Answer,
        }
    }

    fn next_answer(&self) -> Option<usize> {
        let now = self.now;
        let questions = &self.placement.questions;
        questions.iter().position(|q| q.until <= now || self.report(q.node) != ProbeReport::Silent)
    }

    /// A node that answers while the Fleet looks for one.
    fn found(&self) -> Option<usize> {
        let mut nodes = 0..self.nodes.len();
        nodes.find(|node| self.placement.serving().is_none() && self.report(*node) == ProbeReport::Answer)
    }

    /// Whether some question of the Fleet's can be answered, or a search would find somebody.
    pub fn has_decision(&self) -> bool {
        self.next_answer().is_some() || self.found().is_some()
    }

    /// The Fleet has its answers.
    pub(super) fn decide(&mut self) -> bool {
        let mut any = false;
        // Once each: of a search that finds nobody comes another one.
        for _ in 0..self.placement.questions.len() {
            let Some(at) = self.next_answer() else { break };
            let Question { node, token, .. } = self.placement.questions.swap_remove(at);
            let report = self.report(node);
            self.placement.fleet.handle_verify(self.now, id(node), token, report);
            self.drain_fleet();
            any = true;
        }
        if let Some(node) = self.found() {
            any |= self.probe(node);
        }
        any
    }

    /// The regular probe of a node.
    pub(super) fn probe(&mut self, node: usize) -> bool {
        if node >= self.nodes.len() {
            return false;
        }
        let report = self.report(node);
        self.placement.fleet.handle_probe(self.now, id(node), report);
        self.drain_fleet();
        true
    }

    /// A node that is silent, or was, is killed; nobody hears of that from its legs.
    pub(super) fn fence(&mut self, node: usize) -> bool {
        let silent = self.stopped.get(node).copied().unwrap_or(false);
        if silent && !self.placement.is_to_be_fenced(node) {
            self.probe(node);
        }
        let asked = self.placement.is_to_be_fenced(node);
        if !silent && !asked {
            return false;
        }
        if self.up[node] {
            self.kill(node, 0, false);
        }
        self.fenced(node, true);
        true
    }

    /// The fence has done its work, or failed.
    pub(super) fn fenced(&mut self, node: usize, success: bool) -> bool {
        let Some(at) = self.placement.fences.iter().position(|(of, _)| *of == node) else { return false };
        let (_, token) = self.placement.fences.swap_remove(at);
        self.placement.fleet.handle_fenced(self.now, id(node), token, success);
        self.drain_fleet();
        true
    }

    /// Time has passed for the Fleet.
    pub(super) fn fleet_timers(&mut self) {
        for _ in 0..10 {
            let late = self.placement.questions.iter().any(|q| q.until <= self.now);
            let due = self.placement.fleet.poll_timeout().is_some_and(|at| at <= self.now);
            if !late && !due {
                return;
            }
            if late {
                self.decide();
            }
            if due {
                self.placement.fleet.handle_timeout(self.now);
                self.drain_fleet();
            }
        }
    }

    pub(super) fn hear_of_loss(&mut self, node: NodeId, generation: u64, loss: LegLoss) {
        self.placement.fleet.handle_leg_lost(self.now, node, generation, loss);
        self.drain_fleet();
    }

    /// No Open is unreclaimed any more.
    pub(super) fn all_reclaimed(&mut self) {
        self.placement.fleet.handle_reclaimed();
        self.drain_fleet();
    }

    /// Fences that are still to be done succeed, what nobody hears of any more is lost (TCP_USER_TIMEOUT), and every node is
    /// asked how it is.
    pub(super) fn end_silence(&mut self) {
        for node in 0..self.nodes.len() {
            if self.placement.is_to_be_fenced(node) {
                self.fence(node);
            }
        }
        for wire in self.pairs.iter_mut().flat_map(|pair| pair.wires.values_mut()) {
            wire.time_out();
        }
        for node in 0..self.nodes.len() {
            self.probe(node);
        }
    }
}
