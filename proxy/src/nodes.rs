//! All nodes by their ids: what they are called and where they are. Those that are found come and go while clients are served.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use understudy_core::ids::{NodeId, NodeNames};

use crate::config::NodeConfig;

/// A list that only grows.
pub(crate) struct Nodes {
    /// For those who know nothing else of nodes.
    names: NodeNames,
    list: RwLock<Vec<Entry>>,
}

struct Entry {
    node: NodeConfig,
    /// Nobody asks it any more, nor connects to it.
    gone: bool,
}

impl Nodes {
    /// Those that are listed in the configuration; `names` has them already.
    pub(crate) fn new(nodes: Vec<NodeConfig>, names: NodeNames) -> Self {
        let list = nodes.into_iter().map(|node| Entry { node, gone: false }).collect();
        Self { names, list: RwLock::new(list) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is there, anew or again.
    pub(crate) fn found(&self, id: NodeId, node: NodeConfig) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        match list.get_mut(usize::from(id.0)) {
            Some(entry) => entry.gone = false,
            None => {
                self.names.push(&node.name);
                list.push(Entry { node, gone: false });
            }
        }
    }

    /// A node is gone.
    pub(crate) fn gone(&self, id: NodeId) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = list.get_mut(usize::from(id.0)) {
            entry.gone = true;
        }
    }

    /// A node that is there, or was.
    pub(crate) fn get(&self, id: NodeId) -> Option<NodeConfig> {
        self.read().get(usize::from(id.0)).map(|entry| entry.node.clone())
    }

    /// Where a node is, unless it is gone.
    pub(crate) fn address(&self, id: NodeId) -> Option<String> {
        let list = self.read();
        let entry = list.get(usize::from(id.0)).filter(|entry| !entry.gone)?;
        Some(entry.node.address.clone())
    }

    /// Those that are there.
    pub(crate) fn there(&self) -> Vec<(NodeId, NodeConfig)> {
        let list = self.read();
        let all = list.iter().zip((0..).map(NodeId)).filter(|(entry, _)| !entry.gone);
        all.map(|(entry, id)| (id, entry.node.clone())).collect()
    }

    /// Those that have, or had, this name.
    pub(crate) fn called(&self, name: &str) -> Vec<NodeId> {
        let list = self.read();
        let all = list.iter().zip((0..).map(NodeId)).filter(|(entry, _)| entry.node.name == name);
        all.map(|(_, id)| id).collect()
    }
}
