//! A store in a directory of the local disk, on redb. A commit is on disk when it is acknowledged.

use std::{fs, io::ErrorKind, path::Path, sync::Arc};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition, TableError};

use crate::store::{Batch, BoxFuture, Change, Entry, Key, Store, StoreError};

/// The only table.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// The file in the store's directory.
const FILE: &str = "understudy.redb";

/// Keeps everything in one file. Only one process can have it open.
#[derive(Debug)]
pub struct Embedded {
    db: Arc<Database>,
}

impl Embedded {
    /// Opens the store in `dir`, or makes it there.
    ///
    /// # Errors
    /// The directory cannot be made, the file is no store, is damaged, or another process has it open.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let fail = |what: String| StoreError::Open { place: dir.display().to_string(), what };
        fs::create_dir_all(dir).map_err(|e| fail(format!("the directory cannot be made: {e}")))?;
        let db = Database::create(dir.join(FILE)).map_err(|e| fail(why(&e)))?;
        Ok(Self { db: Arc::new(db) })
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let db = Arc::clone(&self.db);
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || work(&db)).await {
                Ok(result) => result.map_err(|e| StoreError::Failed(e.to_string())),
                Err(e) => Err(StoreError::Failed(e.to_string())),
            }
        })
    }
}

/// What keeps a store from being opened, and what may help.
fn why(error: &DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another process has it open; only one understudy can use a store at a time".into()
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            format!("{error}; the user that runs understudy must be able to write there")
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
            format!("{FILE} is no store of this kind, or damaged ({error})")
        }
        other => other.to_string(),
    }
}

impl Store for Embedded {
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(move |db| {
            let write = db.begin_write()?;
            {
                let mut table = write.open_table(RECORDS)?;
                for change in &batch.0 {
                    match change {
                        Change::Put(key, value) => table.insert(key.0.as_str(), value.as_slice())?,
                        Change::Delete(key) => table.remove(key.0.as_str())?,
                    };
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        self.run(move |db| match db.begin_read()?.open_table(RECORDS) {
            Ok(table) => Ok(table.get(key.0.as_str())?.map(|value| value.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        })
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.run(move |db| {
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
