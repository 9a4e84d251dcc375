//! What every store can do.

use std::{fmt, future::Future, pin::Pin, sync::mpsc::Sender};

use crate::election::Elections;

/// A boxed future, so that stores can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key with its value.
pub type Entry = (Key, Vec<u8>);

/// What a listing has found so far.
#[derive(Debug)]
pub enum Listed {
    /// The next of them, in order.
    More(Vec<Entry>),
    /// Those so far are to be forgotten; it begins again.
    Anew,
}

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

impl Change {
    /// What it changes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    /// Its share of [`Limits::bytes`]: key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.0.len() + value.len(),
            Self::Delete(key) => key.0.len(),
        }
    }
}

/// The condition of a [`Batch`]: this key has exactly this value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Vec<u8>,
}

/// Changes that are applied whole or not at all, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Compared in the same transaction; if it does not hold nothing is changed.
    pub guard: Option<Guard>,
    /// What to change.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Changes without a condition.
    #[must_use]
    pub fn new(changes: Vec<Change>) -> Self {
        Self { guard: None, changes }
    }

    /// The same changes under a condition.
    #[must_use]
    pub fn guarded(self, guard: Guard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// What counts against [`Limits::bytes`]: keys and values, the guard's too.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let guard = self.guard.as_ref().map_or(0, |guard| guard.key.0.len() + guard.value.len());
        guard + self.changes.iter().map(Change::bytes).sum::<usize>()
    }
}

/// How large a [`Batch`] may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Changes.
    pub operations: usize,
    /// [`Batch::bytes`].
    pub bytes: usize,
}

impl Limits {
    /// None.
    pub const NONE: Self = Self { operations: usize::MAX, bytes: usize::MAX };

    /// Refuses what is larger.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn check(&self, batch: &Batch) -> Result<(), StoreError> {
        let (operations, bytes) = (batch.changes.len(), batch.bytes());
        if operations > self.operations || bytes > self.bytes {
            return Err(StoreError::TooLarge { operations, bytes, limits: *self });
        }
        Ok(())
    }
}

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
    /// Another process has it open.
    #[error("the store {place} is open in another process; only one understudy can use it at a time")]
    InUse {
        /// The path.
        place: String,
    },
    /// It was open and failed: a full disk, a lost connection. The batch was applied or not; if it was not, it will not be
    /// once a later one of the same [`Store`] is acknowledged.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The guard did not hold, and nothing was changed: someone else leads.
    #[error("the store has another owner: {0} is not what this proxy wrote")]
    Fenced(Key),
    /// The batch is larger than [`Store::limits`], and nothing was changed.
    #[error(
        "a batch of {operations} changes and {bytes} bytes is too large for the store, which takes {} and {}",
        limits.operations, limits.bytes
    )]
    TooLarge {
        /// Changes of the batch.
        operations: usize,
        /// Its [`Batch::bytes`].
        bytes: usize,
        /// What the store takes.
        limits: Limits,
    },
}

/// A place for records.
///
/// A [`Batch`] that was acknowledged survives whatever the store's kind promises to survive: [`crate::Memory`] nothing,
/// `Embedded` a crash of proxy and machine. Batches of one caller that awaits each take effect in order, those that failed
/// or whose future was dropped included. Batches that are committed at the same time are applied in any order.
///
/// A store is written by one process at a time. Whoever may have a predecessor that still runs begins by changing the
/// record that all its batches are guarded by: what the predecessor still has under way is [`StoreError::Fenced`] then.
pub trait Store: Send + Sync {
    /// How large a batch may be; what is larger is refused.
    fn limits(&self) -> Limits;

    /// Applies all changes, or none.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The value of a key.
    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>>;

    /// Every key that begins with `prefix`, in order, with its value.
    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;

    /// The same, told while it goes on, so that it can be read meanwhile. When it ends well, all have been told.
    fn list_to(&self, prefix: String, to: Sender<Listed>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let all = self.list(prefix).await?;
            // Whoever does not listen any more does not care.
            let _ = to.send(Listed::More(all));
            Ok(())
        })
    }

    /// Finds out where it is served best. To be asked for now and then; in between nothing changes but for failures.
    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Elections, where several processes may share the store.
    fn elections(&self) -> Option<&dyn Elections> {
        None
    }
}
