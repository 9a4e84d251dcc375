//! What is open at a server.

use std::collections::BTreeMap;

use smb_parse::cmd::lock;

use super::{
    ConnId,
    durable::{Disconnected, Durable},
};

/// What an Open may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// An oplock of this level, or none.
    Oplock(u8),
    /// By a lease with this key.
    Lease([u8; 16]),
}

/// One Open (MS-SMB2 3.3.1.10).
#[derive(Debug, Clone)]
pub struct Open {
    /// The file.
    pub number: u64,
    /// How it was asked for.
    pub name: String,
    /// Its session.
    pub session: u64,
    /// The connection of that session.
    pub conn: ConnId,
    /// By which it may be had again.
    pub(crate) persistent: u64,
    /// What it was granted to outlive its connection.
    pub(crate) durable: Option<Durable>,
    /// Its connection is gone; it was this user's.
    pub(crate) disconnected: Option<Disconnected>,
    pub(crate) user: String,
    pub(crate) guid: [u8; 16],
    /// Read 1, write 2, delete 4: what it does, and what others may do.
    pub access: u32,
    pub(crate) share: u32,
    /// What it caches.
    pub caching: Caching,
    /// A break to this level is not acknowledged.
    pub breaking: Option<u8>,
    /// Blocks that it has locked.
    pub locks: Vec<lock::Lock>,
    /// LockSequences: the last number of each index that was done.
    pub(crate) sequences: BTreeMap<u32, u32>,
    /// They were taken again after a takeover.
    pub(crate) relocked: bool,
    pub(crate) delete_on_close: bool,
    /// The last name told, of a directory.
    pub(crate) cursor: Option<String>,
    pub(crate) listed: bool,
    pub(crate) directory: bool,
}

/// One lease (3.3.1.12).
#[derive(Debug, Clone)]
pub struct Lease {
    /// Of what.
    pub number: u64,
    /// 1 read, 2 handle, 4 write.
    pub state: u32,
    pub(crate) epoch: u16,
    pub(crate) version: u8,
    /// A break to this state is not acknowledged.
    pub breaking: Option<u32>,
    pub(crate) conn: ConnId,
}
