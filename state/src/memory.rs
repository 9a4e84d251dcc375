//! A store that is gone with the process.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::store::{Batch, BoxFuture, Change, Entry, Guard, Key, Limits, Store, StoreError};

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct Memory {
    map: Mutex<BTreeMap<Key, Vec<u8>>>,
}

impl Store for Memory {
    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Guard { key, value }) = batch.guard
            && map.get(&key) != Some(&value)
        {
            return Box::pin(async { Err(StoreError::Fenced(key)) });
        }
        for change in batch.changes {
            match change {
                Change::Put(key, value) => map.insert(key, value),
                Change::Delete(key) => map.remove(&key),
            };
        }
        Box::pin(async { Ok(()) })
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        let value = self.map.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        Box::pin(async { Ok(value) })
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let found = map
            .range(Key(prefix.clone())..)
            .take_while(|(key, _)| key.0.starts_with(&prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Box::pin(async { Ok(found) })
    }
}
