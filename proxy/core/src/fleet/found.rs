//! Nodes that are found, and not listed by the operator: they come, go, and come back as others.
//!
//! A node is one process of many that may have had its name: the name, its uid and its address together say which. One that is
//! found under a name with another uid or address is another node, with an id of its own; what clients have open they
//! have at the one before, and whether that is dead is for probes and fences to say, as ever: that nobody finds it any more
//! proves nothing.
//!
//! | membership | may be chosen | is asked how it is | leaves by |
//! |---|---|---|---|
//! | Listed | yes | yes | the next list |
//! | Leaving | no; stays if it serves, or served before the proxy was started | yes | the next list |
//! | Removed | no; stays if it serves | only while clients are there | a list that has it again |
//! | Displaced | no; if it serves it is silent from now on | no: another one has its address | a list that has it again |
//!
//! A list that is empty says nothing of nodes that are known: it may be a mistake, and they are still asked how they are.

use std::time::Instant;

use super::{Fleet, FleetEffect, State, node::Node};
use crate::ids::NodeId;

/// A node as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is called, in records too. Others may have been called so before it.
    pub name: String,
    /// Which of those it is, where that can be told: the uid of a pod.
    pub uid: Option<String>,
    /// Where it is.
    pub address: String,
    /// It is to end: nobody is to be moved there.
    pub leaving: bool,
}

impl Found {
    fn is(&self, other: &Self) -> bool {
        (&self.name, &self.uid, &self.address) == (&other.name, &other.uid, &other.address)
    }
}

/// What the last list said of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Membership {
    Listed,
    Leaving,
    Removed,
    Displaced,
}

impl Fleet {
    /// These nodes were found, and no others. New ones get ids, in the order of the list; there are 65,535.
    pub fn handle_nodes(&mut self, now: Instant, list: &[Found]) {
        if list.is_empty() {
            return;
        }
        if self.nodes.is_empty()
            && let State::Searching { since, .. } = &mut self.state
        {
            // From now on the node of the stored placement can answer.
            *since = now;
        }
        for at in 0..self.nodes.len() {
            self.look_up(at, list);
        }
        for found in list {
            self.add(found);
        }
        let in_use = self.current.map(|a| a.node);
        match (&self.state, in_use) {
            (State::Searching { .. }, _) => self.choose(now),
            (State::Serving | State::Verifying { .. }, Some(node)) => self.leave_displaced(now, node),
            _ => {}
        }
    }

    /// Whether clients are at this node, or are about to be moved there.
    fn is_in_use(&self, node: NodeId) -> bool {
        let next = matches!(self.state, State::Storing { next, .. } if next.node == node);
        next || self.current.is_some_and(|a| a.node == node)
    }

    /// The node that serves, or did so last, and those that may be asked and connected to have these names.
    pub fn names(&self) -> Vec<&str> {
        let last = self.current.map(|a| usize::from(a.node.0));
        let meant = |(at, node): &(usize, &Node)| !node.gone || last == Some(*at);
        self.nodes.iter().enumerate().filter(meant).map(|(_, node)| node.name.as_str()).collect()
    }

    fn look_up(&mut self, at: usize, list: &[Found]) {
        let Some(id) = u16::try_from(at).ok().map(NodeId) else { return };
        let in_use = self.is_in_use(id);
        let Some(node) = self.nodes.get_mut(at) else { return };
        let Some(own) = node.found.clone() else { return };
        let membership = match list.iter().find(|found| found.is(&own)) {
            Some(found) if found.leaving => Membership::Leaving,
            Some(_) => Membership::Listed,
            None if node.membership == Membership::Displaced => return,
            None if list.iter().any(|found| found.address == own.address) => Membership::Displaced,
            None => Membership::Removed,
        };
        let before = std::mem::replace(&mut node.membership, membership);
        match membership {
            Membership::Listed | Membership::Leaving => {
                if std::mem::take(&mut node.gone) {
                    node.forget();
                    self.effects.push_back(FleetEffect::NodeFound { node: id, found: own });
                }
            }
            Membership::Displaced => self.tell_gone(id),
            Membership::Removed if !in_use => self.tell_gone(id),
            Membership::Removed => {}
        }
        let why = match membership {
            _ if !in_use || before == membership => return,
            Membership::Listed => return,
            Membership::Leaving => "it is to end",
            Membership::Removed => "it is not found any more",
            Membership::Displaced => "another one has its address",
        };
        self.effects.push_back(FleetEffect::NodeLeaving { node: id, why });
    }

    fn add(&mut self, found: &Found) {
        let is_known = |node: &Node| node.found.as_ref().is_some_and(|own| own.is(found));
        let free = u16::try_from(self.nodes.len()).ok().filter(|at| *at < u16::MAX);
        let Some(id) = free.map(NodeId).filter(|_| !self.nodes.iter().any(is_known)) else { return };
        let mut node = Node::new(found.name.clone(), self.dirty_before.remove(&found.name));
        node.membership = if found.leaving { Membership::Leaving } else { Membership::Listed };
        node.found = Some(found.clone());
        self.nodes.push(node);
        self.effects.push_back(FleetEffect::NodeFound { node: id, found: found.clone() });
    }

    /// Nobody asks this node any more, nor connects to it.
    fn tell_gone(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(usize::from(id.0)).filter(|node| !node.gone);
        let Some(node) = node else { return };
        node.gone = true;
        node.profile = None;
        self.differences.retain(|pair, _| !pair.contains(&id));
        self.effects.push_back(FleetEffect::NodeGone { node: id });
    }

    /// Clients have left a node.
    pub(super) fn left(&mut self, id: NodeId) {
        let is_removed =
            self.nodes.get(usize::from(id.0)).is_some_and(|node| node.membership >= Membership::Removed);
        if is_removed && !self.is_in_use(id) {
            self.tell_gone(id);
        }
    }

    /// What answers at the address of a displaced node is another one: it can be heard of no more.
    pub(super) fn leave_displaced(&mut self, now: Instant, id: NodeId) {
        let node = self.nodes.get(usize::from(id.0));
        if node.is_some_and(|node| node.membership == Membership::Displaced) {
            self.node_silent(now, id);
        }
    }

    /// What is to be stored of dirty nodes. A node that was found under the name of a dirty one that is gone is another one.
    pub(super) fn dirty_names(&self) -> Vec<String> {
        let has_successor = |node: &Node| self.nodes.iter().any(|n| n.name == node.name && !n.gone);
        let counts = |node: &&Node| node.dirty && (!node.gone || !has_successor(node));
        let mut names: Vec<_> = self.nodes.iter().filter(counts).map(|node| node.name.clone()).collect();
        names.extend(self.dirty_before.iter().cloned());
        names
    }
}

#[cfg(test)]
mod tests;
