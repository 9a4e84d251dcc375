//! A store in etcd, which outlives the machine and can have several proxies.
//!
//! A request that a member does not answer is asked of the next one, until [`EtcdOptions::timeout`]. Whether the first
//! member did it after all is not known then, or whether it will, when its process goes on or the network is back; so every
//! batch has a condition that can be made false for ever, see [`late`].

mod election;
mod late;
mod member;

use std::{collections::BTreeMap, sync::mpsc::Sender, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::time::Instant;

use crate::election::Elections;
use crate::etcd_options::EtcdOptions;
use crate::store::{Batch, BoxFuture, Change, Entry, Guard, Key, Limits, Listed, Store, StoreError};
use late::Late;
use member::{Attempts, Failure, Member, Members};

/// What etcd takes in one transaction, unless it is started with other options (`--max-txn-ops`).
const OPERATIONS: usize = 128;
/// What etcd takes in one request (`--max-request-bytes`).
const REQUEST: usize = 3 << 19;
/// What a request needs besides keys and values, at most: for each operation, and in all.
const FRAMING: (usize, usize) = (32, 4096);
/// Bytes of a listing that are asked for at a time, and records of which nothing is known yet. etcd 3.4 looks at all keys that are
/// still to come for each page, so few pages are better.
const PAGE: usize = 8 << 20;
const FIRST: usize = 512;
/// Records that are asked for at a time at most.
const MOST: usize = 32 * FIRST;

/// Keeps everything in etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Members,
    prefix: String,
    limits: Limits,
    late: Late,
}

impl Etcd {
    /// Connects, and sees that the records can be read.
    ///
    /// # Errors
    /// No member answers in time, or none lets us in.
    pub async fn open(options: EtcdOptions) -> Result<Self, StoreError> {
        let place = options.to_string();
        let (per_operation, once) = FRAMING;
        let overhead = once + (OPERATIONS + 2) * (options.prefix.len() + per_operation);
        let store = Self {
            prefix: options.prefix.clone(),
            limits: Limits { operations: OPERATIONS, bytes: REQUEST.saturating_sub(overhead) },
            late: Late::new(&options.prefix),
            members: Members::new(options),
        };
        match store.page(&mut store.members.attempts(), "", None, 0, 1).await {
            Ok(_) => Ok(store),
            Err(failure) => Err(StoreError::Open { place, what: failure.what }),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// As many records as `limit` of those that begin with `prefix` and come after the key `after`, as they were at
    /// `revision` (0: now).
    async fn page(
        &self,
        attempts: &mut Attempts,
        prefix: &str,
        after: Option<&Key>,
        revision: i64,
        limit: usize,
    ) -> Result<Page, Failure> {
        let first = self.key(prefix);
        // The next key that there can be.
        let from = after.map_or_else(|| first.clone(), |key| format!("{}\0", self.key(&key.0)));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_range(end_of(first)).with_revision(revision).with_limit(limit);
        let ask = |mut member: Member| {
            let (from, options) = (from.clone(), options.clone());
            async move { member.kv.get(from, Some(options)).await }
        };
        let mut found = self.members.ask(attempts, ask).await?;
        let revision = found.header().map_or(0, ResponseHeader::revision);
        let more = found.more();
        let records = found.take_kvs().into_iter().map(|pair| {
            let (key, value) = pair.into_key_value();
            let key = String::from_utf8_lossy(&key).into_owned();
            (Key(key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned()), value)
        });
        Ok(Page { records: records.collect(), revision, more })
    }

    /// All as they were at one moment, page by page; from the beginning again if that moment is compacted away meanwhile.
    async fn list_all(&self, prefix: &str, mut each: impl FnMut(Listed)) -> Result<(), Failure> {
        let mut after: Option<Key> = None;
        let (mut revision, mut limit, mut most) = (0, FIRST, MOST);
        loop {
            match self.page(&mut self.members.attempts(), prefix, after.as_ref(), revision, limit).await {
                Ok(Page { mut records, revision: at, more }) => {
                    let bytes: usize = records.iter().map(|(key, value)| key.0.len() + value.len()).sum();
                    limit = (PAGE * records.len() / bytes.max(1)).clamp(1, most);
                    after = records.last().map(|(key, _)| key.clone());
                    records.retain(|(key, _)| !late::is_own(key));
                    each(Listed::More(records));
                    if !more {
                        return Ok(());
                    }
                    if revision == 0 {
                        revision = at;
                    }
                }
                Err(failure) if failure.compacted && revision != 0 => {
                    (after, revision) = (None, 0);
                    each(Listed::Anew);
                }
                // So much does not come in time.
                Err(failure) if failure.passes && limit > FIRST => (limit, most) = (FIRST, FIRST),
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn commit_all(&self, batch: &Batch) -> Result<(), StoreError> {
        self.limits.check(batch)?;
        let mut attempts = self.members.attempts();
        // An attempt whose answer was never seen.
        let mut unseen = false;
        loop {
            let ticket = self.late.ticket(&self.members, &mut attempts).await?;
            let txn = self.txn(batch, ticket.condition());
            let ask = |mut member: Member| async move { member.kv.txn(txn).await };
            let outcome = self.members.ask_once(&attempts, ask).await;
            match outcome {
                Ok(answer) => {
                    ticket.answered();
                    match self.judge(batch, &answer, unseen) {
                        Verdict::Done => return Ok(()),
                        Verdict::Fenced(key) => return Err(StoreError::Fenced(key)),
                        // Not applied: the ticket was declared void while this was under way.
                        Verdict::Void => {}
                    }
                }
                Err(failure) => {
                    if failure.applied_nothing {
                        ticket.answered();
                    } else {
                        unseen = true;
                    }
                    if !failure.passes {
                        return Err(failure.into());
                    }
                    attempts.again(failure).await?;
                }
            }
        }
    }

    /// The batch as etcd takes it: no key twice.
    fn txn(&self, batch: &Batch, condition: Compare) -> Txn {
        let last: BTreeMap<&Key, &Change> =
            batch.changes.iter().map(|change| (change.key(), change)).collect();
        let operations: Vec<_> = last
            .into_values()
            .map(|change| match change {
                Change::Put(key, value) => TxnOp::put(self.key(&key.0), value.as_slice(), None),
                Change::Delete(key) => TxnOp::delete(self.key(&key.0), None),
            })
            .collect();
        let Some(Guard { key, value }) = &batch.guard else {
            return Txn::new().when(vec![condition]).and_then(operations);
        };
        let guard = Compare::value(self.key(&key.0), CompareOp::Equal, value.as_slice());
        Txn::new()
            .when(vec![condition, guard])
            .and_then(operations)
            .or_else(vec![TxnOp::get(self.key(&key.0), None)])
    }

    fn judge(&self, batch: &Batch, answer: &TxnResponse, unseen: bool) -> Verdict {
        let Some(Guard { key, value }) = batch.guard.as_ref().filter(|_| !answer.succeeded()) else {
            return if answer.succeeded() { Verdict::Done } else { Verdict::Void };
        };
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop().map(|pair| pair.into_key_value().1),
            _ => None,
        });
        if found.as_ref() == Some(value) {
            return Verdict::Void;
        }
        // The batch may have changed its own guard in an attempt whose answer was not seen.
        let ours = batch.changes.iter().rev().find(|change| change.key() == key);
        match ours {
            Some(Change::Put(_, ours)) if unseen && found.as_ref() == Some(ours) => Verdict::Done,
            Some(Change::Delete(_)) if unseen && found.is_none() => Verdict::Done,
            _ => Verdict::Fenced(key.clone()),
        }
    }
}

/// Some of many records.
struct Page {
    records: Vec<Entry>,
    /// etcd's own, when they were read.
    revision: i64,
    more: bool,
}

/// What etcd made of a batch.
enum Verdict {
    Done,
    Fenced(Key),
    Void,
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: String) -> Vec<u8> {
    let mut end = prefix.into_bytes();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's word for "to the very last".
    vec![0]
}

impl Store for Etcd {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.commit_all(&batch).await })
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(async move {
            let key = self.key(&key.0);
            let mut found = self
                .members
                .ask(&mut self.members.attempts(), |mut member| {
                    let key = key.clone();
                    async move { member.kv.get(key, None).await }
                })
                .await?;
            Ok(found.take_kvs().pop().map(|pair| pair.into_key_value().1))
        })
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        Box::pin(async move {
            let mut all = Vec::new();
            let each = |listed| match listed {
                Listed::More(records) => all.extend(records),
                Listed::Anew => all.clear(),
            };
            self.list_all(&prefix, each).await?;
            Ok(all)
        })
    }

    fn list_to(&self, prefix: String, to: Sender<Listed>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            // Whoever does not listen any more does not care.
            Ok(self.list_all(&prefix, |listed| _ = to.send(listed)).await?)
        })
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.members.turn_to_leader())
    }

    fn elections(&self) -> Option<&dyn Elections> {
        Some(self)
    }
}

/// When a request has to be done.
fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout
}
