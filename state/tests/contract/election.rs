//! Elections: who leads, and that nobody else believes so.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use understudy_state::{
    Batch, Candidate, Change, Election, Elections, Etcd, EtcdOptions, Key, LeaderRecord, Memory, Store,
    StoreError, Term,
};

use crate::rig::{Cluster, PATIENCE};

/// What is asked for; etcd gives no less.
const TTL: Duration = Duration::from_secs(2);

fn candidate(name: &str) -> Candidate {
    Candidate { name: name.into(), heartbeat: format!("{name}:1"), instance: 1 }
}

async fn open(cluster: &Cluster) -> Etcd {
    Etcd::open(EtcdOptions { timeout: Duration::from_secs(4), ..cluster.options() }).await.unwrap()
}

async fn campaign(store: &Etcd, name: &str) -> Election {
    store.campaign(candidate(name), TTL).await.unwrap()
}

async fn wins(store: &Etcd, name: &str) -> Term {
    let won = match campaign(store, name).await {
        Election::Won(term) => Ok(term),
        Election::Lost(leader) => Err(leader),
    };
    won.unwrap()
}

fn put(term: &Term, value: &str) -> Batch {
    Batch::new(vec![Change::Put(Key::from("k"), value.into())]).guarded(term.guard.clone())
}

fn is_fenced(result: &Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::Fenced(key)) if key.0 == LeaderRecord::KEY)
}

#[tokio::test]
async fn one_of_two_candidates_leads_and_the_other_after_it_is_deposed() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let (a, b) = (open(&cluster).await, open(&cluster).await);
    assert_eq!(a.leader().await.unwrap(), None);
    let term = wins(&a, "a").await;
    assert!(!term.handed_over);
    assert_eq!((term.record.name.as_str(), term.record.heartbeat.as_str()), ("a", "a:1"));
    assert_eq!(campaign(&b, "b").await, Election::Lost(term.record.clone()));
    assert_eq!(campaign(&a, "a").await, Election::Lost(term.record.clone()), "it leads twice");
    assert_eq!(b.leader().await.unwrap(), Some(term.record.clone()));
    assert!(a.confirm(&term).await.unwrap());
    a.commit(put(&term, "a")).await.unwrap();

    b.depose(term.record.lease).await.unwrap();
    assert!(!a.confirm(&term).await.unwrap());
    assert!(is_fenced(&a.commit(put(&term, "late")).await));
    let next = wins(&b, "b").await;
    assert!(!next.handed_over && next.record.lease != term.record.lease);
    assert!(!a.confirm(&term).await.unwrap());
    assert!(is_fenced(&a.commit(put(&term, "late")).await));
    assert!(is_fenced(&a.release(&term).await), "it gives away what it has not");
    b.commit(put(&next, "b")).await.unwrap();
    assert!(b.confirm(&next).await.unwrap());
    assert_eq!(a.get(Key::from("k")).await.unwrap().as_deref(), Some(&b"b"[..]));
    // Once more, and of what was never there.
    b.depose(term.record.lease).await.unwrap();
    b.depose(4711).await.unwrap();
    assert!(b.confirm(&next).await.unwrap());
}

#[tokio::test]
async fn of_many_candidates_one_leads() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let mut candidates = Vec::new();
    for number in 0..8 {
        let store = open(&cluster).await;
        candidates.push(tokio::spawn(async move { campaign(&store, &format!("p{number}")).await }));
    }
    let mut elections = Vec::new();
    for candidate in candidates {
        elections.push(candidate.await.unwrap());
    }
    let won: Vec<_> = elections
        .iter()
        .filter_map(|election| match election {
            Election::Won(term) => Some(&term.record),
            Election::Lost(_) => None,
        })
        .collect();
    let [leader] = won[..] else { panic!("{won:?} lead") };
    for election in &elections {
        assert!(matches!(election, Election::Won(_)) || *election == Election::Lost(leader.clone()));
    }
    // What the others had is not left to expire.
    let leases = cluster.client(0).await.leases().await.unwrap();
    assert_eq!(leases.leases().len(), 1);
}

#[tokio::test]
async fn a_leader_that_is_gone_loses_its_lease_and_one_that_confirms_keeps_it() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let (a, b) = (open(&cluster).await, open(&cluster).await);
    let term = wins(&a, "a").await;
    let began = Instant::now();
    while began.elapsed() < TTL * 2 {
        assert!(a.confirm(&term).await.unwrap());
        tokio::time::sleep(TTL / 8).await;
    }
    let confirmed = Instant::now();
    assert!(a.confirm(&term).await.unwrap());
    let next = b.changed(Some(term.record.clone()));
    assert_eq!(tokio::time::timeout(PATIENCE, next).await.unwrap().unwrap(), None);
    assert!(confirmed.elapsed() >= TTL, "the lease ended after {:?}", confirmed.elapsed());
    assert!(!a.confirm(&term).await.unwrap());
    assert!(is_fenced(&a.commit(put(&term, "late")).await), "nobody leads, least of all this one");
    wins(&b, "b").await;
}

#[tokio::test]
async fn what_is_given_away_is_had_at_once() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let (a, b) = (open(&cluster).await, open(&cluster).await);
    let term = wins(&a, "a").await;
    let seen = b.changed(None).await.unwrap();
    assert_eq!(seen, Some(term.record.clone()));
    let (found, released) = tokio::join!(b.changed(seen), a.release(&term));
    released.unwrap();
    assert_eq!(found.unwrap(), Some(LeaderRecord { released: true, ..term.record.clone() }));
    assert!(!a.confirm(&term).await.unwrap());
    assert!(is_fenced(&a.commit(put(&term, "late")).await));
    // Not while the lease lives alone: it hangs on none any more.
    tokio::time::sleep(TTL * 2).await;
    assert!(b.leader().await.unwrap().unwrap().released);
    let next = wins(&b, "b").await;
    assert!(next.handed_over);
    assert_eq!(campaign(&a, "a").await, Election::Lost(next.record.clone()));
    b.depose(next.record.lease).await.unwrap();
    assert!(!wins(&a, "a").await.handed_over, "the one before was deposed");
}

#[tokio::test]
async fn nobody_is_confirmed_without_a_majority() {
    let Some(mut cluster) = Cluster::start(3, &[]).await else { return };
    let (a, b) = (open(&cluster).await, open(&cluster).await);
    let term = wins(&a, "a").await;
    // One member fewer, and it is the leading one: only a pause.
    let leader = cluster.leader().await.unwrap();
    cluster.kill(leader);
    let began = Instant::now();
    loop {
        match a.confirm(&term).await {
            Ok(stands) => break assert!(stands),
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
    }
    // Two fewer: the one that is left answers nothing, or no.
    let other = (leader + 1) % 3;
    cluster.signal(other, Signal::STOP);
    for store in [&a, &b] {
        assert!(store.leader().await.is_err());
    }
    for _ in 0..5 {
        assert!(a.confirm(&term).await.is_err());
        assert!(b.campaign(candidate("b"), TTL).await.is_err());
    }
    cluster.signal(other, Signal::CONT);
    let began = Instant::now();
    let stands = loop {
        match a.confirm(&term).await {
            Ok(stands) => break stands,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
    };
    assert_eq!(matches!(campaign(&b, "b").await, Election::Lost(leader) if leader == term.record), stands);
}

#[tokio::test]
async fn a_change_is_heard_of_although_a_member_hangs() {
    let Some(cluster) = Cluster::start(3, &[]).await else { return };
    let a = open(&cluster).await;
    let term = wins(&a, "a").await;
    let follower = (cluster.leader().await.unwrap() + 1) % 3;
    let mut options = cluster.options();
    options.members.rotate_left(follower);
    let b = Etcd::open(options).await.unwrap();
    let change = tokio::spawn(async move {
        let mut seen = None;
        loop {
            match b.changed(seen.clone()).await {
                Ok(Some(leader)) if leader.name == "a" => seen = Some(leader),
                Ok(leader) => break leader,
                Err(error) => println!("{error}"),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.signal(follower, Signal::STOP);
    let options = EtcdOptions { members: options_without(&cluster, follower), ..cluster.options() };
    Etcd::open(options).await.unwrap().depose(term.record.lease).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, change).await.unwrap().unwrap(), None);
    cluster.signal(follower, Signal::CONT);
}

fn options_without(cluster: &Cluster, at: usize) -> Vec<String> {
    let mut members = cluster.addresses();
    members.remove(at);
    members
}

#[test]
fn what_one_process_has_for_itself_elects_nobody() {
    assert!(Memory::default().elections().is_none());
}
