//! What must survive the proxy: records, their codec, and the stores that hold them.
//!
//! A [`Store`] keeps opaque values under [`Key`]s and applies a [`Batch`] of changes whole or not at all, on
//! condition that its [`Guard`] holds. Records are JSON with a version, so that an operator can read them.

pub mod dump;
mod election;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
mod etcd_options;
mod memory;
pub mod record;
mod store;

pub use election::{Candidate, Election, Elections, LeaderRecord, Term};
#[cfg(feature = "embedded")]
pub use embedded::Embedded;
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
pub use etcd_options::{EtcdOptions, EtcdTls};
pub use memory::Memory;
pub use record::{Phase, PlacementRecord, RecordError};
pub use store::{Batch, BoxFuture, Change, Entry, Guard, Key, Limits, Listed, Store, StoreError};
