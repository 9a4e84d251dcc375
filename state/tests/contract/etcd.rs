//! What only a store in etcd has to survive: members that die, stop, and come back; users, certificates, a full disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, Permission, PutOptions};
use rustix::process::Signal;
use understudy_state::{Batch, Change, Etcd, EtcdOptions, EtcdTls, Guard, Key, Store, StoreError};

use crate::rig::{
    Cluster, PATIENCE, TIMEOUT, certificates,
    tap::{Mode, Tap},
};

/// What may come on top of a timeout where other processes want the machine.
const SLACK: Duration = Duration::from_secs(1);

fn put(key: &str, value: &str) -> Batch {
    Batch::new(vec![Change::Put(Key::from(key), value.into())])
}

async fn get(store: &Etcd, key: &str) -> Option<String> {
    store.get(Key::from(key)).await.unwrap().map(|value| String::from_utf8(value).unwrap())
}

/// Commits until it works, and says how long that took.
async fn recovers(store: &Etcd) -> Duration {
    let began = Instant::now();
    while let Err(error) = store.commit(put("again", "yes")).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
    began.elapsed()
}

/// Commits a number of times, and says how often that took as long as a member is waited for.
async fn slow_commits(store: &Etcd) -> usize {
    let mut slow = 0;
    for round in 0..20 {
        let began = Instant::now();
        store.commit(put("k", &round.to_string())).await.unwrap();
        slow += usize::from(began.elapsed() >= TIMEOUT / 8);
    }
    assert_eq!(get(store, "k").await.as_deref(), Some("19"));
    slow
}

/// A store that uses a follower, and which one that is.
async fn at_a_follower(cluster: &Cluster) -> (Etcd, usize) {
    let follower = (cluster.leader().await.unwrap() + 1) % 3;
    let mut options = cluster.options();
    options.members.rotate_left(follower);
    let store = Etcd::open(options).await.unwrap();
    store.commit(put("k", "before")).await.unwrap();
    (store, follower)
}

#[tokio::test]
async fn a_dead_member_is_passed_over_at_once() {
    let Some(mut cluster) = Cluster::start(3, &[]).await else { return };
    let (store, follower) = at_a_follower(&cluster).await;
    cluster.kill(follower);
    assert_eq!(slow_commits(&store).await, 0);
}

#[tokio::test]
async fn a_member_that_does_not_answer_is_waited_for_once() {
    let Some(cluster) = Cluster::start(3, &[]).await else { return };
    let (store, follower) = at_a_follower(&cluster).await;
    cluster.signal(follower, Signal::STOP);
    assert_eq!(slow_commits(&store).await, 1);
    cluster.signal(follower, Signal::CONT);
}

#[tokio::test]
async fn who_has_settled_asks_the_leader() {
    let Some(cluster) = Cluster::start(3, &[]).await else { return };
    let (store, follower) = at_a_follower(&cluster).await;
    store.settle().await;
    cluster.signal(follower, Signal::STOP);
    assert_eq!(slow_commits(&store).await, 0);
    // Another that does not answer does no harm.
    store.settle().await;
    assert_eq!(slow_commits(&store).await, 0);
    cluster.signal(follower, Signal::CONT);
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_with_the_leader() {
    let Some(mut cluster) = Cluster::start(3, &[]).await else { return };
    let store = Etcd::open(cluster.options()).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..2 {
        let leader = cluster.leader().await.unwrap();
        for number in 0..50 {
            let key = format!("{round}/{number}");
            if number == 25 {
                cluster.kill(leader);
            }
            let began = Instant::now();
            match store.commit(put(&key, &key)).await {
                Ok(()) => acknowledged.push(key),
                Err(error) => {
                    assert!(matches!(error, StoreError::Failed(_)), "{error}");
                    assert!(began.elapsed() < TIMEOUT + SLACK, "{:?}", began.elapsed());
                }
            }
        }
        cluster.restart(leader);
        recovers(&store).await;
    }
    assert!(acknowledged.len() >= 90, "{}", acknowledged.len());
    for key in acknowledged {
        assert_eq!(get(&store, &key).await.as_ref(), Some(&key));
    }
}

#[tokio::test]
async fn when_all_are_down_that_is_said_in_time_and_not_for_ever() {
    let Some(mut cluster) = Cluster::start(3, &[]).await else { return };
    let timeout = Duration::from_secs(1);
    let options = EtcdOptions { timeout, ..cluster.options() };
    let store = Etcd::open(EtcdOptions { timeout: TIMEOUT, ..options.clone() }).await.unwrap();
    store.commit(put("k", "0")).await.unwrap();
    let hasty = Etcd::open(options.clone()).await.unwrap();
    for at in 0..3 {
        cluster.kill(at);
    }
    for _ in 0..2 {
        for what in ["commit", "get", "list"] {
            let began = Instant::now();
            let result = match what {
                "commit" => hasty.commit(put("k", "1")).await,
                "get" => hasty.get(Key::from("k")).await.map(|_| ()),
                _ => hasty.list(String::new()).await.map(|_| ()),
            };
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Failed(_)), "{error}");
            assert!(began.elapsed() < timeout + SLACK, "{what}: {:?}", began.elapsed());
        }
    }
    let error = Etcd::open(options).await.unwrap_err().to_string();
    for word in ["cannot open the store etcd://127.0.0.1:", "none of 3 members", "refused"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    // Two of three are enough.
    cluster.restart(0);
    cluster.restart(2);
    for store in [&hasty, &store] {
        recovers(store).await;
    }
    store.commit(put("k", "2")).await.unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some("2"));
}

/// A member may have a request in its hands when the store has turned to another one.
#[tokio::test]
async fn what_was_given_up_is_not_applied_later() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let member = cluster.addresses().remove(0);
    let tap = Tap::new(member.clone()).await;
    let options = EtcdOptions { members: vec![tap.address.clone(), member], ..cluster.options() };
    let store = Etcd::open(options).await.unwrap();
    store.commit(put("k", "before")).await.unwrap();
    tap.set(Mode::HoldRequests);
    store.commit(put("k", "held")).await.unwrap();
    assert!(tap.held() > 0, "the request went another way");
    store.commit(put("k", "after")).await.unwrap();
    let answers = tap.answers();
    tap.set(Mode::Pass);
    tap.wait_for_answers(answers + 1).await;
    assert_eq!(get(&store, "k").await.as_deref(), Some("after"));
}

/// The same, if its future was dropped: the caller had a deadline of its own.
#[tokio::test]
async fn what_nobody_waits_for_is_not_applied_later() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let member = cluster.addresses().remove(0);
    let tap = Tap::new(member.clone()).await;
    let options = EtcdOptions { members: vec![tap.address.clone(), member], ..cluster.options() };
    let store = Etcd::open(options).await.unwrap();
    store.commit(put("k", "before")).await.unwrap();
    tap.set(Mode::HoldRequests);
    {
        let mut given_up = store.commit(put("k", "held"));
        while tap.held() < 2 {
            let answer = tokio::time::timeout(Duration::from_millis(1), &mut given_up).await;
            assert!(answer.is_err(), "the request went another way");
        }
    }
    store.commit(put("k", "after")).await.unwrap();
    let answers = tap.answers();
    tap.set(Mode::Pass);
    tap.wait_for_answers(answers + 1).await;
    assert_eq!(get(&store, "k").await.as_deref(), Some("after"));
}

/// An answer that is not seen says nothing. If the batch changes its own guard, its second attempt finds the first one's work.
#[tokio::test]
async fn a_batch_that_was_applied_unseen_is_not_taken_for_someone_elses() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let member = cluster.addresses().remove(0);
    let tap = Tap::new(member.clone()).await;
    let options = EtcdOptions { members: vec![tap.address.clone(), member], ..cluster.options() };
    let store = Etcd::open(options).await.unwrap();
    store.commit(put("leader", "one")).await.unwrap();
    let guard = |value: &str| Guard { key: Key::from("leader"), value: value.into() };
    tap.set(Mode::HoldAnswers);
    let answers = tap.answers();
    store.commit(put("leader", "two").guarded(guard("one"))).await.unwrap();
    assert_eq!(tap.answers(), answers + 1, "the first attempt was not applied");
    assert_eq!(get(&store, "leader").await.as_deref(), Some("two"));
    let error = store.commit(put("leader", "three").guarded(guard("one"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
}

#[tokio::test]
async fn a_listing_survives_compaction() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let store = Arc::new(Etcd::open(cluster.options()).await.unwrap());
    for chunk in (0..3000).collect::<Vec<_>>().chunks(100) {
        let changes =
            chunk.iter().map(|at| Change::Put(Key(format!("o/{at:04}")), vec![b'v'; 100])).collect();
        store.commit(Batch::new(changes)).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut client = cluster.client(0).await;
    let compactor = {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let mut compacted = 0;
            while !stop.load(Ordering::SeqCst) {
                let revision =
                    client.put("/understudy/x", "", None).await.unwrap().header().unwrap().revision();
                client.compact(revision, None).await.unwrap();
                compacted += 1;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            compacted
        })
    };
    for _ in 0..20 {
        assert_eq!(store.list("o/".into()).await.unwrap().len(), 3000);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(compactor.await.unwrap() > 5);
    assert_eq!(store.list("o/".into()).await.unwrap().len(), 3000);
}

#[tokio::test]
async fn prefixes_keep_stores_apart_and_records_are_readable() {
    let Some(cluster) = Cluster::start(1, &[]).await else { return };
    let one = Etcd::open(cluster.options()).await.unwrap();
    let other = Etcd::open(EtcdOptions { prefix: "/under".into(), ..cluster.options() }).await.unwrap();
    one.commit(put("placement", "{}")).await.unwrap();
    let found = cluster.client(0).await.get("/understudy/placement", None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"{}");
    assert_eq!(get(&other, "study/placement").await.as_deref(), Some("{}"));
    assert_eq!(get(&other, "placement").await, None);
    cluster.client(0).await.put("/understudy/.late/0/0", "", Some(PutOptions::new())).await.unwrap();
    assert_eq!(one.list(String::new()).await.unwrap().len(), 1, "what is no record is listed");
}

#[tokio::test]
async fn a_full_disk_is_said_with_its_remedy() {
    let Some(cluster) = Cluster::start(1, &["--quota-backend-bytes=8388608"]).await else { return };
    let store = Etcd::open(cluster.options()).await.unwrap();
    let value = "v".repeat(1 << 20);
    let mut rounds = 0;
    let error = loop {
        match store.commit(put("k", &value)).await {
            Ok(()) => rounds += 1,
            Err(error) => break error,
        }
        assert!(rounds < 64, "the quota is never used up");
    };
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    assert!(error.to_string().contains("alarm disarm"), "{error}");
    // It can still be read, and after what was said it can be written again.
    assert_eq!(get(&store, "k").await.as_ref(), Some(&value));
    let mut client = cluster.client(0).await;
    let revision = client.get("k", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    client.defragment().await.unwrap();
    let member = client.status().await.unwrap().header().unwrap().member_id();
    let mut alarm = AlarmOptions::new();
    alarm.with_member(member);
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(alarm)).await.unwrap();
    store.commit(put("k", "small")).await.unwrap();
}

#[tokio::test]
async fn users_log_in_again_when_they_have_to() {
    let Some(mut cluster) = Cluster::start(1, &[]).await else { return };
    let password_file = cluster.dir().join("password");
    std::fs::write(&password_file, "secret\n").unwrap();
    let options = EtcdOptions { user: Some(("proxy".into(), password_file.clone())), ..cluster.options() };
    let error = Etcd::open(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("leave out user"), "{error}");

    let mut client = cluster.client(0).await;
    for user in ["root", "proxy"] {
        client.user_add(user, "secret", None).await.unwrap();
        client.role_add(user).await.unwrap();
        client.user_grant_role(user, user).await.unwrap();
    }
    let all = Permission::read_write("/understudy/").with_prefix();
    client.role_grant_permission("proxy", all).await.unwrap();
    client.auth_enable().await.unwrap();

    let error = Etcd::open(cluster.options()).await.unwrap_err().to_string();
    assert!(error.contains("password_file"), "{error}");
    std::fs::write(&password_file, "wrong").unwrap();
    let error = Etcd::open(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("look at user and password_file") && !error.contains("wrong"), "{error}");
    std::fs::write(&password_file, "secret\n").unwrap();
    let elsewhere = EtcdOptions { prefix: "/else/".into(), ..options.clone() };
    let error = Etcd::open(elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("grant the user readwrite on the prefix /else/"), "{error}");

    let store = Etcd::open(options).await.unwrap();
    store.commit(put("k", "1")).await.unwrap();
    // The member forgets the tokens it has given out.
    cluster.kill(0);
    cluster.restart(0);
    recovers(&store).await;
    assert_eq!(get(&store, "k").await.as_deref(), Some("1"));
    // Tokens are void when users are changed.
    let mut root = etcd_client::Client::connect(
        cluster.addresses(),
        Some(etcd_client::ConnectOptions::new().with_user("root", "secret")),
    )
    .await
    .unwrap();
    root.user_change_password("proxy", "changed").await.unwrap();
    std::fs::write(&password_file, "changed").unwrap();
    store.commit(put("k", "2")).await.unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn certificates_are_asked_for_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let at = dir.path().to_owned();
    let file = |name: &str| at.join(name);
    let option = |name: &str, path: &str| format!("--{name}={}", at.join(path).display());
    let options = [
        option("cert-file", "server.pem"),
        option("key-file", "server.key"),
        option("trusted-ca-file", "ca.pem"),
        "--client-cert-auth".into(),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let Some(cluster) = Cluster::start_in(dir, 1, &options).await else { return };
    let with = |ca: &str, identity: Option<(&str, &str)>| {
        let identity = identity.map(|(cert, key)| (file(cert), file(key)));
        EtcdOptions { tls: Some(EtcdTls { ca: file(ca), identity }), ..cluster.options() }
    };
    let ours = Some(("client.pem", "client.key"));
    let store = Etcd::open(with("ca.pem", ours)).await.unwrap();
    store.commit(put("k", "1")).await.unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some("1"));
    for (options, word) in [
        (with("other.pem", ours), "UnknownIssuer"),
        (with("ca.pem", Some(("other.pem", "other.key"))), ""),
        (with("ca.pem", None), ""),
        (with("ca.pem", Some(("client.pem", "server.key"))), "key"),
        (with("absent.pem", ours), "absent.pem"),
        (cluster.options(), ""),
    ] {
        let error = Etcd::open(options.clone()).await.unwrap_err().to_string();
        assert!(error.contains(word), "{options:?}: {error}");
        println!("{error}");
    }
}
