//! What a commit costs in each store: `cargo run --release -p understudy-state --all-features --example commit_bench [SECONDS]`.
//! One record of 500 bytes under a guard each; the embedded store lies in the working directory's `target`.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a measurement, not a product")]

#[path = "../tests/contract/rig/mod.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod rig;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use understudy_state::{Batch, Change, Embedded, Etcd, Guard, Key, Memory, Store};

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(3, |text| text.parse().unwrap());
    let time = Duration::from_secs(seconds);
    println!(
        "{:<18} {:>10} {:>9} {:>9} {:>9} {:>11}",
        "store", "committers", "p50 us", "p99 us", "max us", "commits/s"
    );
    measure("memory", Arc::new(Memory::default()), time).await;
    let dir = tempfile::tempdir_in("target").unwrap();
    measure("embedded", Arc::new(Embedded::open(dir.path()).unwrap()), time).await;
    for members in [1, 3] {
        let dir = tempfile::tempdir_in("target").unwrap();
        let Some(mut cluster) = rig::Cluster::start_in(dir, members, &[]).await else { return };
        let store = Arc::new(Etcd::open(cluster.options()).await.unwrap());
        measure(&format!("etcd, {members} member(s)"), store.clone(), time).await;
        if members == 3 {
            let leader = cluster.leader().await.unwrap();
            for (who, at) in [("a follower", (leader + 1) % 3), ("the leader", leader)] {
                // The member that is used is the one that dies.
                let mut options = cluster.options();
                options.members.rotate_left(at);
                let store = Etcd::open(options).await.unwrap();
                cluster.kill(at);
                outage(who, &store).await;
                cluster.restart(at);
                while store.commit(Batch::new(vec![])).await.is_err() {}
            }
        }
    }
}

/// One commit after the other for four seconds after a member was killed.
async fn outage(who: &str, store: &Etcd) {
    let (began, mut failed, mut works, mut longest) = (Instant::now(), 0, None, Duration::ZERO);
    let put = || Batch::new(vec![Change::Put(Key::from("k"), vec![b'v'; 500])]);
    while began.elapsed() < Duration::from_secs(4) {
        let at = Instant::now();
        match store.commit(put()).await {
            Ok(()) => _ = works.get_or_insert(began.elapsed()),
            Err(error) => {
                println!("  {error}");
                failed += 1;
            }
        }
        longest = longest.max(at.elapsed());
    }
    println!("{who} killed: commits again after {works:?}; failed {failed}, longest {longest:?}");
}

async fn measure(name: &str, store: Arc<dyn Store>, time: Duration) {
    let guard = Guard { key: Key::from("leader"), value: b"us".to_vec() };
    store.commit(Batch::new(vec![Change::Put(guard.key.clone(), guard.value.clone())])).await.unwrap();
    for committers in [1, 64] {
        let until = Instant::now() + time;
        let tasks: Vec<_> = (0..committers)
            .map(|number| {
                let (store, guard) = (Arc::clone(&store), guard.clone());
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < until {
                        let key = Key(format!("open/{number:02}/{:04}", took.len() % 1000));
                        let batch =
                            Batch::new(vec![Change::Put(key, vec![b'v'; 500])]).guarded(guard.clone());
                        let began = Instant::now();
                        store.commit(batch).await.unwrap();
                        took.push(began.elapsed());
                    }
                    took
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.unwrap());
        }
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        let rate = took.len() as f64 / time.as_secs_f64();
        println!(
            "{name:<18} {committers:>10} {:>9.1} {:>9.1} {:>9.1} {rate:>11.0}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
