use std::time::Duration;

use k8s_openapi::serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::k8s::stand_in::{NAMESPACE, StandIn, assert_exact, rendered};

const NODE: &str = "samba-0";

async fn site() -> (StandIn, PodFence) {
    let (server, client) = StandIn::start(Vec::new()).await;
    server.run(NODE, "first", "machine-1");
    let fence = PodFence::start(client, NAMESPACE, [NODE.to_owned()]);
    watched(&server).await;
    (server, fence)
}

/// The pod is watched: what happens to it from now on is seen.
async fn watched(server: &StandIn) {
    server.until(|server| server.count("watch") > 0).await;
}

fn begin(fence: &PodFence) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    let fence = fence.clone();
    tokio::spawn(async move { fence.fence(NODE, None).await })
}

/// It has asked again, several times, and is not done.
async fn is_not_done(server: &StandIn, task: &tokio::task::JoinHandle<anyhow::Result<()>>) {
    let before = server.count("list");
    server.until(|server| server.count("list") > before + 2).await;
    assert!(!task.is_finished());
}

async fn is_done(task: tokio::task::JoinHandle<anyhow::Result<()>>) {
    timeout(Duration::from_secs(20), task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_pod_is_deleted_and_its_kubelet_believed() {
    let (server, fence) = site().await;
    let task = begin(&fence);
    server.until(|server| server.count("delete") == 1).await;
    is_not_done(&server, &task).await;
    server.terminate(NODE);
    is_done(task).await;
    assert_eq!(server.bodies()[0]["gracePeriodSeconds"], 1);
    assert_eq!(server.bodies()[0]["preconditions"]["uid"], "first");
    assert_eq!(server.count("delete"), 1);
}

#[tokio::test]
async fn a_pod_that_has_ended_before_needs_no_deletion() {
    let (server, fence) = site().await;
    server.end(NODE);
    server.terminate(NODE);
    server.remove(NODE);
    is_done(begin(&fence)).await;
    assert_eq!(server.count("delete"), 0);
}

#[tokio::test]
async fn a_pod_deleted_by_force_is_not_fenced_until_somebody_vouches_for_its_machine() {
    let (server, fence) = site().await;
    server.remove(NODE);
    let task = begin(&fence);
    is_not_done(&server, &task).await;
    assert_eq!(server.count("delete"), 0);
    server.taint("machine-1");
    is_done(task).await;
}

#[tokio::test]
async fn a_successor_is_ended_too_for_nobody_knows_whom_it_has_served() {
    let (server, fence) = site().await;
    server.end(NODE);
    server.terminate(NODE);
    server.remove(NODE);
    server.run(NODE, "second", "machine-2");
    let task = begin(&fence);
    server.until(|server| server.count("delete") == 1).await;
    assert_eq!(server.bodies()[0]["preconditions"]["uid"], "second");
    server.terminate(NODE);
    is_done(task).await;
}

#[tokio::test]
async fn a_pod_that_has_taken_the_name_meanwhile_is_not_deleted_for_the_one_before() {
    let (server, fence) = site().await;
    server.remove(NODE);
    server.run(NODE, "second", "machine-2");
    fence.end(NODE, "first").await.unwrap();
    assert_eq!(server.pod(NODE)["metadata"].get("deletionTimestamp"), None);
}

#[tokio::test]
async fn a_node_that_was_found_is_one_pod_and_its_successor_is_left_alone() {
    let (server, fence) = site().await;
    server.end(NODE);
    server.terminate(NODE);
    server.remove(NODE);
    server.run(NODE, "second", "machine-2");
    let alone = |uid: &'static str| {
        let fence = fence.clone();
        tokio::spawn(async move { fence.fence(NODE, Some(uid)).await })
    };
    is_done(alone("first")).await;
    assert_eq!(server.count("delete"), 0);
    let task = alone("second");
    server.until(|server| server.count("delete") == 1).await;
    server.terminate(NODE);
    is_done(task).await;
    assert!(fence.fence(NODE, Some("third")).await.unwrap_err().to_string().contains("none was seen"));
}

#[tokio::test]
async fn nodes_that_are_found_later_are_watched_from_then_on() {
    let (server, fence) = site().await;
    server.run("samba-9", "ninth", "machine-1");
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    fence.watch_only(&names(&[NODE, "samba-9"]));
    server.until(|server| server.count("watch") == 2).await;
    server.remove("samba-9");
    fence.watch_only(&names(&["samba-9"]));
    assert!(fence.fence(NODE, None).await.unwrap_err().to_string().contains("not watched"));
    let task = {
        let fence = fence.clone();
        tokio::spawn(async move { fence.fence("samba-9", Some("ninth")).await })
    };
    is_not_done(&server, &task).await;
    server.taint("machine-1");
    is_done(task).await;
}

#[tokio::test]
async fn of_a_pod_that_was_never_seen_nothing_is_known() {
    let (server, client) = StandIn::start(Vec::new()).await;
    let fence = PodFence::start(client, NAMESPACE, [NODE.to_owned()]);
    watched(&server).await;
    assert!(fence.fence(NODE, None).await.unwrap_err().to_string().contains("none was seen"));
    assert!(fence.fence("other", None).await.unwrap_err().to_string().contains("not watched"));
}

#[tokio::test]
async fn what_the_api_server_refuses_is_no_fence() {
    let rules = vec![json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]})];
    let (server, client) = StandIn::start(rules).await;
    server.run(NODE, "first", "machine-1");
    let fence = PodFence::start(client, NAMESPACE, [NODE.to_owned()]);
    watched(&server).await;
    assert!(fence.fence(NODE, None).await.is_err());
    assert_eq!(server.count("delete"), 0, "the machine is asked for first, and that is refused");
}

#[tokio::test]
async fn the_chart_grants_what_the_fence_does_and_nothing_else() {
    let rules = rendered(include_str!("../../../../tests/chart/golden/fence-kubernetes.json"), "-fence");
    let (server, client) = StandIn::start(rules.clone()).await;
    server.run(NODE, "first", "machine-1");
    let fence = PodFence::start(client, NAMESPACE, [NODE.to_owned()]);
    watched(&server).await;
    let task = begin(&fence);
    server.until(|server| server.count("delete") == 1).await;
    server.terminate(NODE);
    is_done(task).await;
    assert_exact(&server.deeds(), &rules);
}
