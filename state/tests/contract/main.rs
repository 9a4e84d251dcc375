//! What every store must do, run against each of them.
#![cfg(all(feature = "embedded", feature = "etcd"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod election;
mod etcd;
mod rig;

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
};

use understudy_state::{
    Batch, Change, Embedded, Etcd, EtcdOptions, Guard, Key, Limits, Listed, Memory, Store, StoreError,
};

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put(Key::from(key), value.to_vec())
}

fn delete(key: &str) -> Change {
    Change::Delete(Key::from(key))
}

fn guard(key: &str, value: &[u8]) -> Guard {
    Guard { key: Key::from(key), value: value.to_vec() }
}

async fn get(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(Key::from(key)).await.unwrap()
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix.into()).await.unwrap().into_iter().map(|(key, _)| key.0).collect()
}

/// Everything that needs no store of a particular kind. The store is empty before.
async fn contract(store: Arc<dyn Store>) {
    what_is_put_is_there(&*store).await;
    changes_are_in_order(&*store).await;
    a_guard_holds_or_nothing_happens(&*store).await;
    large_values(&*store).await;
    limits_are_refused(&*store).await;
    many_records_are_listed_in_order(&*store).await;
    committers_do_not_disturb_each_other(store).await;
}

async fn what_is_put_is_there(store: &dyn Store) {
    assert_eq!(get(store, "a").await, None);
    assert!(store.list(String::new()).await.unwrap().is_empty());
    store.commit(Batch::default()).await.unwrap();
    store.commit(Batch::new(vec![put("o/1", b"one"), put("o/2", b""), put("p", b"\0\xff")])).await.unwrap();
    assert_eq!(get(store, "o/1").await.as_deref(), Some(&b"one"[..]));
    assert_eq!(get(store, "p").await.as_deref(), Some(&b"\0\xff"[..]));
    let listed = store.list("o/".into()).await.unwrap();
    assert_eq!(listed, [(Key::from("o/1"), b"one".to_vec()), (Key::from("o/2"), Vec::new())]);
    assert_eq!(keys(store, "").await, ["o/1", "o/2", "p"]);
    assert_eq!(keys(store, "o/2").await, ["o/2"]);
    assert!(keys(store, "o/3").await.is_empty());
    store.commit(Batch::new(vec![delete("never"), delete("p")])).await.unwrap();
    assert_eq!(keys(store, "").await, ["o/1", "o/2"]);
}

/// The last change of a key counts.
async fn changes_are_in_order(store: &dyn Store) {
    let changes = vec![
        delete("o/1"),
        put("o/2", b"x"),
        put("o/2", b"y"),
        put("o/3", b"z"),
        delete("o/3"),
        delete("o/4"),
        put("o/4", b"w"),
    ];
    store.commit(Batch::new(changes)).await.unwrap();
    assert_eq!(keys(store, "o/").await, ["o/2", "o/4"]);
    assert_eq!(get(store, "o/2").await.as_deref(), Some(&b"y"[..]));
    for value in 0..50_u8 {
        store.commit(Batch::new(vec![put("o/2", &[value])])).await.unwrap();
    }
    assert_eq!(get(store, "o/2").await.as_deref(), Some(&[49][..]));
}

async fn a_guard_holds_or_nothing_happens(store: &dyn Store) {
    store.commit(Batch::new(vec![put("leader", b"one"), put("g", b"0")])).await.unwrap();
    store.commit(Batch::new(vec![put("g", b"1")]).guarded(guard("leader", b"one"))).await.unwrap();
    assert_eq!(get(store, "g").await.as_deref(), Some(&b"1"[..]));
    for (key, value) in [("leader", &b"two"[..]), ("leader", b"on"), ("leader", b""), ("nobody", b"")] {
        let batch = Batch::new(vec![put("g", b"2"), delete("leader")]).guarded(guard(key, value));
        let error = store.commit(batch).await.unwrap_err();
        assert!(matches!(&error, StoreError::Fenced(by) if by.0 == key), "{error}");
        assert_eq!(get(store, "g").await.as_deref(), Some(&b"1"[..]));
        assert_eq!(get(store, "leader").await.as_deref(), Some(&b"one"[..]));
    }
    // What is guarded by may be changed in the same batch, and is compared as it was before.
    let succession = Batch::new(vec![put("leader", b"two"), put("g", b"3")]).guarded(guard("leader", b"one"));
    store.commit(succession.clone()).await.unwrap();
    assert!(matches!(store.commit(succession).await, Err(StoreError::Fenced(_))));
    let nothing = |value| Batch::default().guarded(guard("leader", value));
    store.commit(nothing(b"two")).await.unwrap();
    assert!(matches!(store.commit(nothing(b"one")).await, Err(StoreError::Fenced(_))));
}

async fn large_values(store: &dyn Store) {
    let value: Vec<u8> = (0..1_u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
    for key in ["large/0", "large/1", "large/2"] {
        store.commit(Batch::new(vec![put(key, &value)])).await.unwrap();
    }
    let listed = store.list("large/".into()).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|(_, found)| *found == value));
}

/// What the store says it takes it takes, and what is more is refused whole.
async fn limits_are_refused(store: &dyn Store) {
    let limits = store.limits();
    if limits == Limits::NONE {
        return;
    }
    let full: Vec<_> = (0..limits.operations).map(|at| put(&format!("limit/{at}"), b"v")).collect();
    let more = [&full[..], &[put("limit/more", b"v")]].concat();
    store.commit(Batch::new(vec![put("leader", b"three")])).await.unwrap();
    store.commit(Batch::new(full.clone()).guarded(guard("leader", b"three"))).await.unwrap();
    assert_eq!(keys(store, "limit/").await.len(), limits.operations);
    store.commit(Batch::new(full.iter().map(|change| delete(&change.key().0)).collect())).await.unwrap();
    let error = store.commit(Batch::new(more)).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains(&format!("takes {}", limits.operations)), "{error}");
    assert!(keys(store, "limit/").await.is_empty());

    // As many bytes as fit, in as many changes as fit.
    let share = limits.bytes / limits.operations;
    let sized = |at: usize, size: usize| {
        let key = format!("limit/{at:05}");
        put(&key, &vec![b'v'; size - key.len()])
    };
    let mut full: Vec<_> = (1..limits.operations).map(|at| sized(at, share)).collect();
    full.push(sized(0, limits.bytes - share * full.len()));
    assert_eq!(Batch::new(full.clone()).bytes(), limits.bytes);
    store.commit(Batch::new(full.clone())).await.unwrap();
    assert_eq!(keys(store, "limit/").await.len(), limits.operations);
    full.pop();
    full.push(sized(0, limits.bytes - share * full.len() + 1));
    assert!(matches!(store.commit(Batch::new(full)).await, Err(StoreError::TooLarge { .. })));
}

async fn many_records_are_listed_in_order(store: &dyn Store) {
    const RECORDS: usize = 3_000;
    let all: Vec<_> = (0..RECORDS).map(|at| format!("many/{at:05}")).collect();
    for keys in all.chunks(store.limits().operations.min(100)) {
        store.commit(Batch::new(keys.iter().map(|key| put(key, key.as_bytes())).collect())).await.unwrap();
    }
    store.commit(Batch::new(vec![put("manz", b"beside"), put("many0", b"beside")])).await.unwrap();
    let listed = store.list("many/".into()).await.unwrap();
    assert!(listed.iter().all(|(key, value)| key.0.as_bytes() == value));
    assert_eq!(listed.iter().map(|(key, _)| &key.0).collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
    let (to, told) = mpsc::channel();
    store.list_to("many/".into(), to).await.unwrap();
    let told: Vec<_> = told.into_iter().collect();
    let told = told.into_iter().fold(Vec::new(), |mut so_far, told| match told {
        Listed::More(more) => {
            so_far.extend(more);
            so_far
        }
        Listed::Anew => Vec::new(),
    });
    assert_eq!(told, listed);
    assert_eq!(keys(store, "many/0012").await.len(), 10);
}

/// Batches that are committed at the same time are each applied whole, and all of them.
async fn committers_do_not_disturb_each_other(store: Arc<dyn Store>) {
    const COMMITTERS: usize = 64;
    const ROUNDS: u8 = 20;
    store.commit(Batch::new(vec![put("leader", b"many")])).await.unwrap();
    let committers: Vec<_> = (0..COMMITTERS)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let own = format!("c/{number:02}");
                    let who = format!("{number:02}");
                    let changes = vec![
                        put(&own, &[round]),
                        put("both/1", who.as_bytes()),
                        put("both/2", who.as_bytes()),
                    ];
                    store
                        .commit(Batch::new(changes.clone()).guarded(guard("leader", b"many")))
                        .await
                        .unwrap();
                    // One that fails takes none of its neighbours with it.
                    let late = Batch::new(vec![delete(&own)]).guarded(guard("leader", b"nobody"));
                    assert!(matches!(store.commit(late).await, Err(StoreError::Fenced(_))));
                    assert_eq!(get(&*store, &own).await.as_deref(), Some(&[round][..]));
                }
            })
        })
        .collect();
    for committer in committers {
        committer.await.unwrap();
    }
    let own = store.list("c/".into()).await.unwrap();
    assert_eq!(own.len(), COMMITTERS);
    assert!(own.iter().all(|(_, value)| *value == [ROUNDS - 1]));
    let both: BTreeSet<_> =
        store.list("both/".into()).await.unwrap().into_iter().map(|(_, who)| who).collect();
    assert_eq!(both.len(), 1, "a batch was torn apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    contract(Arc::new(Memory::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(Arc::new(Embedded::open(dir.path()).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract_and_what_it_has_been_given() {
    let Some(mut cluster) = rig::Cluster::start(1, &[]).await else { return };
    let store = Arc::new(Etcd::open(cluster.options()).await.unwrap());
    contract(store.clone()).await;
    let before = store.list(String::new()).await.unwrap();
    cluster.kill(0);
    cluster.restart(0);
    let after = Etcd::open(EtcdOptions { timeout: rig::PATIENCE, ..cluster.options() }).await.unwrap();
    assert!(after.list(String::new()).await.unwrap() == before, "records are lost");
    assert!(store.list(String::new()).await.unwrap() == before, "records are lost");
}

#[tokio::test]
async fn embedded_survives_a_restart_and_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Embedded::open(dir.path()).unwrap();
        store.commit(Batch::new(vec![put("k", b"v")])).await.unwrap();
        for second in [Embedded::open(dir.path()), Embedded::open_existing(dir.path())] {
            let second = second.unwrap_err();
            assert!(
                matches!(&second, StoreError::InUse { place } if dir.path().ends_with(place)),
                "{second}"
            );
        }
    }
    let nothing = dir.path().join("nothing");
    let absent = Embedded::open_existing(&nothing).unwrap_err();
    assert!(absent.to_string().contains("there is none"), "{absent}");
    assert!(!nothing.exists(), "to look has made it");
    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some(&b"v"[..]));
}

/// A batch whose future was dropped is not applied after a later one.
#[tokio::test]
async fn embedded_keeps_the_order_of_what_nobody_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    for round in 0..20_u8 {
        for value in 0..10 {
            drop(store.commit(Batch::new(vec![put("k", &[round, value])])));
        }
        store.commit(Batch::new(vec![put("k", &[round, 10])])).await.unwrap();
        assert_eq!(get(&store, "k").await.as_deref(), Some(&[round, 10][..]));
    }
    drop(store.commit(Batch::new(vec![put("k", b"last")])));
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some(&b"last"[..]));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("understudy.redb"), b"not a database at all").unwrap();
    assert!(Embedded::open(dir.path()).is_err());
}
