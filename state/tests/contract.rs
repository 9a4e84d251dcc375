//! What every store must do, run against each of them.
#![cfg(feature = "embedded")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use understudy_state::{Batch, Change, Embedded, Key, Memory, Store};

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put(Key::from(key), value.to_vec())
}

async fn contract(store: &dyn Store) {
    assert_eq!(store.get(Key::from("a")).await.unwrap(), None);
    assert!(store.list(String::new()).await.unwrap().is_empty());

    store.commit(Batch(vec![put("o/1", b"one"), put("o/2", b"two"), put("p", b"p")])).await.unwrap();
    assert_eq!(store.get(Key::from("o/1")).await.unwrap().as_deref(), Some(&b"one"[..]));
    let listed = store.list("o/".into()).await.unwrap();
    assert_eq!(listed, [(Key::from("o/1"), b"one".to_vec()), (Key::from("o/2"), b"two".to_vec())]);

    // In order within a batch: the last change of a key counts.
    store
        .commit(Batch(vec![Change::Delete(Key::from("o/1")), put("o/2", b"x"), put("o/2", b"y")]))
        .await
        .unwrap();
    assert_eq!(store.get(Key::from("o/1")).await.unwrap(), None);
    assert_eq!(store.get(Key::from("o/2")).await.unwrap().as_deref(), Some(&b"y"[..]));
    store.commit(Batch(vec![Change::Delete(Key::from("never"))])).await.unwrap();
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(&Memory::default()).await;
}

#[tokio::test]
async fn embedded_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&Embedded::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn embedded_survives_a_restart_and_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Embedded::open(dir.path()).unwrap();
        store.commit(Batch(vec![put("k", b"v")])).await.unwrap();
        let second = Embedded::open(dir.path()).unwrap_err();
        assert!(second.to_string().contains("cannot open the store"), "{second}");
    }
    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(store.get(Key::from("k")).await.unwrap().as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("understudy.redb"), b"not a database at all").unwrap();
    assert!(Embedded::open(dir.path()).is_err());
}
