//! Batches that were given up must not be applied later.
//!
//! A member that is stopped, or behind a network that is cut, may still have a request in its hands when the client has
//! turned to another member: it would write an old value over a newer one. So every batch carries the condition that a
//! certain key, its *ticket*, does not exist. As long as all is well it never does. When an answer has not come, the ticket
//! is made void before anything else is committed: the key is put, and whatever still has that ticket fails.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use etcd_client::{Compare, CompareOp, PutOptions};
use tokio::sync::Mutex;

use super::member::{Attempts, Failure, Members};
use crate::store::Key;

/// Where tickets are, below the prefix of the records.
const TICKETS: &str = ".late/";
/// How long a void ticket is remembered, in seconds: longer than any request can be held up.
const REMEMBERED: i64 = 24 * 60 * 60;

/// The tickets of one opened store.
pub(super) struct Late {
    /// What the keys begin with; no other store has the same.
    base: String,
    /// The ticket that is given out.
    number: AtomicU64,
    /// Tickets below this one are to be made void.
    doubtful: AtomicU64,
    /// One at a time makes them so.
    voiding: Mutex<()>,
}

/// What a batch is committed with. If it is dropped without an answer, nothing is known of the batch.
pub(super) struct Ticket<'a> {
    late: &'a Late,
    number: u64,
    answered: bool,
}

/// Whether a key is of ours, and no record.
pub(super) fn is_own(key: &Key) -> bool {
    key.0.starts_with('.')
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Late").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Late {
    pub(super) fn new(prefix: &str) -> Self {
        // Each hasher of the standard library has keys of its own, from the system's random numbers.
        let [high, low] = [0_u8, 1].map(|which| RandomState::new().hash_one(which));
        let base = format!("{prefix}{TICKETS}{high:016x}{low:016x}/");
        Self { base, number: AtomicU64::new(0), doubtful: AtomicU64::new(0), voiding: Mutex::new(()) }
    }

    /// The ticket for a batch. What was given up before is void then.
    pub(super) async fn ticket(
        &self,
        members: &Members,
        attempts: &mut Attempts,
    ) -> Result<Ticket<'_>, Failure> {
        if self.is_doubtful() {
            let _one = attempts.bounded(self.voiding.lock()).await?;
            // Others may have done it while we waited.
            if self.is_doubtful() {
                self.void(members, attempts).await?;
            }
        }
        Ok(Ticket { late: self, number: self.number.load(Ordering::SeqCst), answered: false })
    }

    fn is_doubtful(&self) -> bool {
        self.number.load(Ordering::SeqCst) < self.doubtful.load(Ordering::SeqCst)
    }

    async fn void(&self, members: &Members, attempts: &mut Attempts) -> Result<(), Failure> {
        let number = self.number.load(Ordering::SeqCst);
        let key = self.key(number);
        members
            .ask(attempts, |mut member| {
                let key = key.clone();
                async move {
                    let lease = member.lease.grant(REMEMBERED, None).await?.id();
                    member.kv.put(key, "", Some(PutOptions::new().with_lease(lease))).await
                }
            })
            .await?;
        self.number.store(number + 1, Ordering::SeqCst);
        Ok(())
    }

    fn key(&self, number: u64) -> String {
        format!("{}{number}", self.base)
    }
}

impl Ticket<'_> {
    /// What must hold for the batch to be applied.
    pub(super) fn condition(&self) -> Compare {
        Compare::version(self.late.key(self.number), CompareOp::Equal, 0)
    }

    /// It is known what became of the batch.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.late.doubtful.fetch_max(self.number + 1, Ordering::SeqCst);
        }
    }
}
