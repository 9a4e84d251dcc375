//! Writing what Links and Files want stored. One task, one commit at a time: what comes while a commit is under way goes into
//! the next, so that a commit costs about the same for one Open and for a hundred. When the next begins, [`pace`] says.

mod pace;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::{Instant, sleep, sleep_until, timeout},
};
use understudy_core::{
    effect::Mutation,
    files::Files,
    ids::{LinkId, StoreToken},
};
use understudy_state::{
    Batch, Change, Guard, Key, Limits, Listed, Store, StoreError,
    record::{OpenKey, OpenRecord, SessionRecord},
};

use crate::{
    config::StoreUrl,
    ha,
    shared::{Command, Shared},
};
use pace::Pace;

/// How long a commit may take before the store counts as failed, if it does not give up by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a store that has failed is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked how many changes have come while others are waited for.
const GLANCE: Duration = Duration::from_millis(1);
/// How often Opens of absent clients are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How often it is looked which part of the store answers soonest.
const SETTLE: Duration = Duration::from_secs(10);

/// What the task is told.
pub(crate) enum Item {
    /// Something to store, and who waits for it.
    Store(Mutation, Option<(LinkId, StoreToken)>),
    /// Somebody waits until what came before is stored, or cannot be.
    Flush(oneshot::Sender<()>),
}

/// What happens to clients whose Opens cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// They are served, and would lose them with the proxy.
    Serve,
    /// They are not.
    Refuse,
}

/// How long a commit may take at this store.
pub(crate) fn patience(url: &StoreUrl) -> Duration {
    match url {
        // It gives up by itself, and says more.
        StoreUrl::Etcd(options) => options.timeout + PATIENCE,
        StoreUrl::File(_) | StoreUrl::Memory => PATIENCE,
    }
}

/// The way to the task.
pub(crate) fn channel() -> (UnboundedSender<Item>, UnboundedReceiver<Item>) {
    unbounded_channel()
}

/// The task.
pub(crate) struct Persist {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) on_failure: OnFailure,
    /// How long a commit may take before the store counts as failed.
    pub(crate) patience: Duration,
    /// What all batches are guarded by, where there are several proxies.
    pub(crate) guard: Option<Guard>,
    pub(crate) items: UnboundedReceiver<Item>,
}

/// What is not stored yet: by key, so that only the last change of each counts.
#[derive(Default)]
struct Pending {
    changes: HashMap<Key, Change>,
    waiting: HashMap<LinkId, StoreToken>,
    flushes: Vec<oneshot::Sender<()>>,
    bytes: usize,
    /// How many changes are waited for.
    waited_for: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Pending {
    fn add(&mut self, item: Item) {
        self.since.get_or_insert_with(Instant::now);
        let (mutation, from) = match item {
            Item::Store(mutation, from) => (mutation, from),
            Item::Flush(done) => {
                self.flushes.push(done);
                return;
            }
        };
        self.waited_for += usize::from(is_waited_for(&mutation));
        // Nobody waits until something is gone, and each that is told costs something.
        let from = from.filter(|_| matches!(mutation, Mutation::PutOpen(_)));
        if let Some(change) = change(mutation) {
            self.bytes += change.bytes();
            self.changes.insert(change.key().clone(), change);
        }
        if let Some((link, token)) = from {
            self.waiting.insert(link, token);
        }
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.flushes.is_empty()
    }

    /// When it is to be committed.
    fn due(&self, pace: Pace, limits: Limits) -> Option<Instant> {
        let since = self.since.filter(|_| self.flushes.is_empty() && self.has_room(limits))?;
        Some(pace.due(self.waited_for, since))
    }

    fn has_room(&self, limits: Limits) -> bool {
        // A record is a few hundred bytes; a path may have 64 KiB.
        self.changes.len() < limits.operations && self.bytes < limits.bytes / 2
    }

    /// The changes as batches that the store takes.
    fn batches(&self, limits: Limits) -> Vec<Batch> {
        let (mut batches, mut changes, mut bytes) = (Vec::new(), Vec::new(), 0);
        for change in self.changes.values() {
            if !changes.is_empty()
                && (changes.len() >= limits.operations || bytes + change.bytes() > limits.bytes)
            {
                batches.push(Batch::new(std::mem::take(&mut changes)));
                bytes = 0;
            }
            bytes += change.bytes();
            changes.push(change.clone());
        }
        if !changes.is_empty() {
            batches.push(Batch::new(changes));
        }
        batches
    }
}

impl Persist {
    /// Runs until nobody can want anything stored any more.
    pub(crate) async fn run(mut self) {
        let limits = within(self.store.limits(), self.guard.as_ref());
        let mut pending = Pending::default();
        let mut failed_at: Option<Instant> = None;
        let mut pace = Pace::new(Instant::now());
        loop {
            if let Some(at) = failed_at {
                tokio::select! {
                    item = self.items.recv() => match item {
                        Some(item) => {
                            pending.add(item);
                            self.answer_failed(&mut pending);
                        }
                        None => return,
                    },
                    () = sleep_until(at + AGAIN) => {}
                }
                if Instant::now() < at + AGAIN {
                    continue;
                }
            } else if !gather(&mut self.items, &mut pending, pace, limits).await {
                return;
            }
            let began = Instant::now();
            match self.commit(&pending, limits).await {
                Ok(()) => {
                    pace = Pace::committed(began, Instant::now(), pending.waited_for);
                    if failed_at.take().is_some() {
                        tracing::warn!("the store works again; everything is stored");
                        self.shared.set_store_failed(false);
                    }
                    for (link, token) in std::mem::take(&mut pending).waiting {
                        self.shared.tell(link, Command::Stored(token));
                    }
                }
                Err(error) => {
                    self.shared.metrics.store_errors.inc();
                    if failed_at.replace(Instant::now()).is_none() {
                        let then = match self.on_failure {
                            OnFailure::Serve => {
                                "clients are served, but lose what they have open if this proxy dies"
                            }
                            OnFailure::Refuse => {
                                "clients that would have to be recorded are refused (on_store_failure)"
                            }
                        };
                        tracing::error!(error, "the store fails; {then}");
                        self.shared.set_store_failed(true);
                    }
                    self.answer_failed(&mut pending);
                }
            }
        }
    }

    /// Nobody waits for a store that fails.
    fn answer_failed(&self, pending: &mut Pending) {
        pending.flushes.clear();
        for (link, token) in std::mem::take(&mut pending.waiting) {
            let answer = match self.on_failure {
                OnFailure::Serve => Command::Stored(token),
                OnFailure::Refuse => Command::StoreFailed,
            };
            self.shared.tell(link, answer);
        }
    }

    async fn commit(&self, pending: &Pending, limits: Limits) -> Result<(), String> {
        for batch in pending.batches(limits) {
            let (began, changes) = (Instant::now(), batch.changes.len());
            let batch = guarded(batch, self.guard.as_ref());
            match timeout(self.patience, self.store.commit(batch)).await {
                Ok(Err(StoreError::Fenced(key))) => {
                    ha::deposed(&format!("the store takes nothing of it any more: {key} is another's"))
                }
                Ok(Ok(())) => self.shared.metrics.stored(began.elapsed(), changes),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("no answer within {} s", self.patience.as_secs())),
            }
        }
        Ok(())
    }
}

/// Waits until something is to be committed, and it is time for that. False if there is nothing, and never will be.
async fn gather(
    items: &mut UnboundedReceiver<Item>,
    pending: &mut Pending,
    pace: Pace,
    limits: Limits,
) -> bool {
    loop {
        while pending.has_room(limits)
            && let Ok(item) = items.try_recv()
        {
            pending.add(item);
        }
        let left = pending.due(pace, limits).map(|due| due.saturating_duration_since(Instant::now()));
        let item = if pending.is_empty() {
            items.recv().await
        } else if let Some(left) = left.filter(|left| !left.is_zero()) {
            if pending.waited_for > 0 {
                // To be woken by each that comes would cost as much as is saved.
                sleep(GLANCE.min(left)).await;
                continue;
            }
            match timeout(left, items.recv()).await {
                Ok(item) => item,
                Err(_) => return true,
            }
        } else {
            return true;
        };
        match item {
            Some(item) => pending.add(item),
            None => return !pending.is_empty(),
        }
    }
}

/// A batch that is applied only while this process leads.
pub(crate) fn guarded(batch: Batch, guard: Option<&Guard>) -> Batch {
    match guard {
        Some(guard) => batch.guarded(guard.clone()),
        None => batch,
    }
}

/// What is left for changes.
fn within(limits: Limits, guard: Option<&Guard>) -> Limits {
    let guard = guard.map_or(0, |guard| guard.key.0.len() + guard.value.len());
    Limits { bytes: limits.bytes.saturating_sub(guard), ..limits }
}

/// Whether a client waits until that is stored, or is worse off until it is; see `link/persist.rs` of the core.
fn is_waited_for(mutation: &Mutation) -> bool {
    match mutation {
        Mutation::PutOpen(record) => !record.durable.is_no() || record.resilient.is_some(),
        // Its client is gone, and may soon ask another proxy.
        Mutation::PutAway(..) => true,
        // Another proxy has only those clients notice at once that this one is gone of which it knows.
        Mutation::PutSession(_) => true,
        Mutation::RemoveOpen(_) | Mutation::RemoveSession { .. } => false,
    }
}

fn change(mutation: Mutation) -> Option<Change> {
    let change = match mutation {
        Mutation::PutOpen(record) => record.to_change(),
        Mutation::PutAway(mut record, left) => {
            record.away_until =
                Some(now_ms().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
            record.to_change()
        }
        Mutation::RemoveOpen(key) => return Some(key.to_removal()),
        Mutation::PutSession(record) => record.to_change(),
        Mutation::RemoveSession { client, session } => {
            return Some(Change::Delete(SessionRecord::key(client, session)));
        }
    };
    // A record has no value that JSON lacks.
    change.ok()
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What there was of an earlier run.
pub(crate) struct Loaded {
    /// How many Opens may be come back to.
    pub(crate) absent: usize,
    /// What is to be removed.
    pub(crate) stale: Vec<Change>,
    /// The clients that were connected.
    pub(crate) clients: Vec<SocketAddr>,
}

/// Takes the records of an earlier run into Files.
///
/// # Errors
/// The store fails, or has a record of a newer build.
pub(crate) async fn load(store: &dyn Store, files: &mut Files) -> anyhow::Result<Loaded> {
    let (now, now_ms) = (std::time::Instant::now(), now_ms());
    let mut stale = Vec::new();
    // They are read while the next come.
    let (to, listed) = mpsc::channel();
    let reader = tokio::task::spawn_blocking(move || read(&listed));
    store.list_to(OpenKey::PREFIX.into(), to).await?;
    for (key, record) in reader.await?? {
        match record.away_until {
            Some(until) if until <= now_ms => stale.push(Change::Delete(key)),
            until => files.load(now, record, until.map(|until| Duration::from_millis(until - now_ms))),
        }
    }
    let mut clients = BTreeSet::new();
    for (key, value) in store.list(SessionRecord::PREFIX.into()).await? {
        match SessionRecord::from_bytes(&value) {
            Ok(record) => {
                clients
                    .extend(record.address.as_ref().and_then(|address| address.parse::<SocketAddr>().ok()));
                files.load_session(now, record);
            }
            Err(_) => stale.push(Change::Delete(key)),
        }
    }
    Ok(Loaded { absent: files.absent(), stale, clients: clients.into_iter().collect() })
}

/// Reads the records of Opens as they are listed.
fn read(listed: &mpsc::Receiver<Listed>) -> anyhow::Result<Vec<(Key, OpenRecord)>> {
    let mut records = Vec::new();
    for listed in listed {
        let entries = match listed {
            Listed::More(entries) => entries,
            Listed::Anew => {
                records.clear();
                continue;
            }
        };
        for (key, value) in entries {
            match OpenRecord::from_bytes(&value) {
                Ok(record) => records.push((key, record)),
                Err(error @ understudy_state::RecordError::TooNew(_)) => {
                    return Err(error).with_context(|| format!("the record {key} in the store"));
                }
                Err(error) => {
                    tracing::error!(%key, %error, "a record in the store is unreadable, and is left there");
                }
            }
        }
    }
    Ok(records)
}

/// Removes what is of no use, in batches that the store takes.
pub(crate) async fn remove(store: &dyn Store, guard: Option<&Guard>, stale: Vec<Change>) {
    let limits = store.limits();
    for changes in stale.chunks(limits.operations.clamp(1, 100)) {
        if let Err(error) = store.commit(guarded(Batch::new(changes.to_vec()), guard)).await {
            tracing::warn!(%error, "old records could not be removed from the store");
            return;
        }
    }
}

/// Keeps to the part of the store that answers soonest.
pub(crate) async fn settle(store: Arc<dyn Store>) {
    loop {
        store.settle().await;
        sleep(SETTLE).await;
    }
}

/// Lets Opens of absent clients go when their time is over.
pub(crate) async fn keep_time(shared: Arc<Shared>) {
    loop {
        sleep(TICK).await;
        shared.files_timeout(std::time::Instant::now());
    }
}
