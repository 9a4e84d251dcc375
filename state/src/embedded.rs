//! A store in a directory of the local disk, on redb. A commit is on disk when it is acknowledged.

use std::{fs, io::ErrorKind, path::Path, sync::Arc, sync::mpsc, thread};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError,
};
use tokio::sync::oneshot;

use crate::store::{Batch, BoxFuture, Change, Entry, Guard, Key, Limits, Store, StoreError};

/// The only table.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// How much of the file is kept in memory: it is read once, at the start (redb would take up to 1 GiB).
const CACHE: usize = 8 << 20;
/// The file in the store's directory.
const FILE: &str = "understudy.redb";
/// Changes that share a commit, if so many wait.
const GROUP: usize = 4096;

/// Keeps everything in one file. Only one process can have it open.
///
/// One thread writes. What is waiting when a commit returns shares the next one, so that many committers cost few of them.
#[derive(Debug)]
pub struct Embedded {
    db: Arc<Database>,
    /// Taken by drop only.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<thread::JoinHandle<()>>,
}

/// A batch, and who waits for it.
#[derive(Debug)]
struct Job {
    batch: Batch,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Embedded {
    /// Opens the store in `dir`, or makes it there.
    ///
    /// # Errors
    /// The directory cannot be made, the file is no store, is damaged, or another process has it open.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|e| fail(dir, format!("the directory cannot be made: {e}")))?;
        Self::start(dir, builder().create(dir.join(FILE)))
    }

    /// Opens the store in `dir` if there is one.
    ///
    /// # Errors
    /// There is no such file, it is no store, is damaged, or another process has it open.
    pub fn open_existing(dir: &Path) -> Result<Self, StoreError> {
        Self::start(dir, builder().open(dir.join(FILE)))
    }

    fn start(dir: &Path, db: Result<Database, DatabaseError>) -> Result<Self, StoreError> {
        let db = match db {
            Ok(db) => Arc::new(db),
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(StoreError::InUse { place: dir.display().to_string() });
            }
            Err(error) => return Err(fail(dir, why(&error))),
        };
        let (jobs, queue) = mpsc::channel();
        let writer = {
            let db = Arc::clone(&db);
            let thread = thread::Builder::new().name("store".into());
            thread.spawn(move || write(&db, &queue)).map_err(|e| fail(dir, e.to_string()))?
        };
        Ok(Self { db, jobs: Some(jobs), writer: Some(writer) })
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let db = Arc::clone(&self.db);
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || work(&db)).await {
                Ok(result) => result.map_err(|e| failed(&e)),
                Err(e) => Err(StoreError::Failed(e.to_string())),
            }
        })
    }
}

impl Drop for Embedded {
    /// What is waiting is still written; then the file is free for the next.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Commits until nobody can send any more.
fn write(db: &Database, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut size = first.batch.changes.len();
        let mut jobs = vec![first];
        while size < GROUP
            && let Ok(next) = queue.try_recv()
        {
            size += next.batch.changes.len();
            jobs.push(next);
        }
        let results = commit(db, jobs.iter().map(|job| &job.batch));
        match results {
            Ok(results) => {
                for (job, result) in jobs.into_iter().zip(results) {
                    // Who does not wait any more does not care.
                    let _ = job.done.send(result);
                }
            }
            Err(error) => {
                for job in jobs {
                    let _ = job.done.send(Err(failed(&error)));
                }
            }
        }
    }
}

/// One transaction of the engine. A batch whose guard does not hold is left out, the others are applied.
fn commit<'a>(
    db: &Database,
    batches: impl Iterator<Item = &'a Batch>,
) -> Result<Vec<Result<(), StoreError>>, redb::Error> {
    let write = db.begin_write()?;
    let mut results = Vec::new();
    {
        let mut table = write.open_table(RECORDS)?;
        for batch in batches {
            if let Some(Guard { key, value }) = &batch.guard
                && table.get(key.0.as_str())?.is_none_or(|found| found.value() != value)
            {
                results.push(Err(StoreError::Fenced(key.clone())));
                continue;
            }
            for change in &batch.changes {
                match change {
                    Change::Put(key, value) => table.insert(key.0.as_str(), value.as_slice())?,
                    Change::Delete(key) => table.remove(key.0.as_str())?,
                };
            }
            results.push(Ok(()));
        }
    }
    write.commit()?;
    Ok(results)
}

/// What the engine said, and what may help.
fn failed(error: &redb::Error) -> StoreError {
    let remedy = match error {
        redb::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            "; make room on its disk"
        }
        redb::Error::PreviousIo => {
            "; an earlier write failed: restart understudy when the disk is well again"
        }
        _ => "",
    };
    StoreError::Failed(format!("{error}{remedy}"))
}

fn fail(dir: &Path, what: String) -> StoreError {
    StoreError::Open { place: dir.display().to_string(), what }
}

/// How the file is opened.
fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// What keeps a store from being opened, and what may help.
fn why(error: &DatabaseError) -> String {
    match error {
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            format!("{error}; the user that runs understudy must be able to write there")
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == ErrorKind::NotFound => {
            format!("there is none; understudy has not run with it yet ({error})")
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
            format!("{FILE} is no store of this kind, or damaged ({error})")
        }
        other => other.to_string(),
    }
}

impl Store for Embedded {
    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        let (done, outcome) = oneshot::channel();
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { batch, done }).is_ok());
        Box::pin(async move {
            match (sent, outcome.await) {
                (true, Ok(result)) => result,
                _ => Err(StoreError::Failed("its thread is gone; restart understudy".into())),
            }
        })
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        self.read(move |db| match db.begin_read()?.open_table(RECORDS) {
            Ok(table) => Ok(table.get(key.0.as_str())?.map(|value| value.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        })
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.read(move |db| {
            let table = match db.begin_read()?.open_table(RECORDS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            };
            let mut found = Vec::new();
            for entry in table.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                found.push((Key::from(key.value()), value.value().to_vec()));
            }
            Ok(found)
        })
    }
}
