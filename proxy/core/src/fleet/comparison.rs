//! What nodes say of themselves, held against each other and against what clients were told.

use super::{Difference, Fleet, FleetEffect, Profile, Severity, What};
use crate::ids::NodeId;

impl Fleet {
    /// Takes in what a node says of itself: when it is first seen, and after every restart.
    pub fn handle_profile(&mut self, node: NodeId, profile: Profile) {
        let at = usize::from(node.0);
        if self.assignment().is_some_and(|a| a.node == node) {
            self.promised = Some(profile.clone());
        }
        let Some(entry) = self.nodes.get_mut(at).filter(|entry| !entry.gone) else { return };
        entry.profile = Some(profile);
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            self.compare(at.min(other), at.max(other));
        }
    }

    /// Compares two nodes, and says so if the outcome is not what it was.
    fn compare(&mut self, one: usize, other: usize) {
        let profile = |at: usize| self.nodes.get(at).and_then(|node| node.profile.as_ref());
        let (Some(a), Some(b)) = (profile(one), profile(other)) else { return };
        let differences = a.differences(b);
        let (Ok(one), Ok(other)) = (u16::try_from(one), u16::try_from(other)) else { return };
        let nodes = [NodeId(one), NodeId(other)];
        let before = self.differences.insert(nodes, differences.clone()).unwrap_or_default();
        if before != differences {
            self.effects.push_back(FleetEffect::Compared { nodes, differences });
        }
    }

    /// In what each node differs from the one that serves, and whether the serving one's clients would break there.
    /// Nothing while none serves.
    pub fn deviations(&self) -> Vec<(NodeId, What, Severity)> {
        let Some(serving) = self.assignment().map(|a| a.node) else { return Vec::new() };
        let mut all = Vec::new();
        for ([one, other], differences) in &self.differences {
            let seen_from_one = match serving {
                _ if serving == *one => true,
                _ if serving == *other => false,
                _ => continue,
            };
            let deviant = if seen_from_one { *other } else { *one };
            all.extend(differences.iter().map(|difference| {
                let severity = if seen_from_one { difference.there } else { difference.back };
                (deviant, difference.what, severity)
            }));
        }
        all
    }

    /// Those differences that would break the clients of the node that served last, if this one were taken.
    pub(super) fn breaking(&self, at: usize) -> Vec<Difference> {
        let profile = self.nodes.get(at).and_then(|node| node.profile.as_ref());
        let (Some(promised), Some(profile)) = (&self.promised, profile) else { return Vec::new() };
        let mut differences = promised.differences(profile);
        differences.retain(|difference| difference.there == Severity::Breaks);
        differences
    }

    /// Clients are told from now on what this node says. Those that could be moved there have to live with it too.
    pub(super) fn promise(&mut self, node: NodeId) {
        self.promised = self.nodes.get(usize::from(node.0)).and_then(|node| node.profile.clone());
    }
}
