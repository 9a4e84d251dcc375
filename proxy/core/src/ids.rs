//! Identifiers, and the types that keep those of the two legs apart.
//!
//! A SessionId, TreeId or FileId means one thing on the client leg and, once the legs are independent,
//! another on the node leg. [`Client`] and [`Node`] make mixing them up a type error.

use std::sync::{Arc, PoisonError, RwLock};

use smb_parse::FileId;

/// One Link: a client leg and the node leg that serves it now. Unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// One node leg of one Link. A takeover gives the Link a new one; numbers are never reused in a Link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LegId(pub u64);

/// A Samba node: its place in the list of all that there ever were while this process runs. Never given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// What the nodes are called, by their ids. A list that only grows, and is one for all who have a clone of it.
#[derive(Debug, Clone, Default)]
pub struct NodeNames(Arc<RwLock<Vec<Arc<str>>>>);

impl NodeNames {
    /// The next node is called so.
    pub fn push(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(name.into());
    }

    /// What a node is called.
    pub fn get(&self, node: NodeId) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(node.0)).cloned()
    }
}

impl FromIterator<String> for NodeNames {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        Self(Arc::new(RwLock::new(names.into_iter().map(Into::into).collect())))
    }
}

/// Names one recorded Open within its Link, whatever its FileIds are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpenToken(pub u64);

/// Numbers what a Link wants stored, upwards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreToken(pub u64);

/// An id as the client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client<T>(pub T);

/// An id as the present node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node<T>(pub T);

/// MS-SMB2 SessionId (2.2.1).
pub type SessionId = u64;
/// MS-SMB2 TreeId (2.2.1.2).
pub type TreeId = u32;
/// MS-SMB2 MessageId (2.2.1).
pub type MessageId = u64;

/// The FileId that stands for "the one opened earlier in this compound" (MS-SMB2 3.3.5.2.7.2).
pub const RELATED_FILE_ID: FileId = FileId { persistent: u64::MAX, volatile: u64::MAX };
