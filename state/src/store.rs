//! What every store can do.

use std::{fmt, future::Future, pin::Pin};

/// A boxed future, so that stores can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key with its value.
pub type Entry = (Key, Vec<u8>);

/// A key: words joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub String);

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Key, Vec<u8>),
    /// Removes a key, if it is there.
    Delete(Key),
}

/// Changes that are applied whole or not at all, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Change>);

/// A store that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The place cannot be opened: what, and what the system said.
    #[error("cannot open the store {place}: {what}")]
    Open {
        /// The path or address.
        place: String,
        /// The reason.
        what: String,
    },
    /// It was open and failed: a full disk, a lost connection.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A place for records.
///
/// A [`Batch`] that was acknowledged survives whatever the store's kind promises to survive: [`crate::Memory`] nothing,
/// `Embedded` a crash of proxy and machine. Batches of one caller that awaits each take effect in order.
pub trait Store: Send + Sync {
    /// Applies all changes, or none.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The value of a key.
    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>>;

    /// Every key that begins with `prefix`, in order, with its value.
    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;
}
