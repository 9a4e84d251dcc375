use std::collections::BTreeSet;

use super::*;
use crate::k8s::stand_in::{NAMESPACE, StandIn, assert_exact, rendered};

const OWN: &str = "understudy-0";
const OTHER: &str = "understudy-1";

/// Two proxies' pods, the other one with the label, and this one's follower.
async fn site() -> (StandIn, watch::Sender<bool>) {
    let (server, client) = StandIn::start(Vec::new()).await;
    for (name, uid) in [(OWN, "own"), (OTHER, "other")] {
        server.run(name, uid, "machine-1");
    }
    server.label(OTHER, LABEL, ACTIVE);
    let (leads, follows) = watch::channel(false);
    tokio::spawn(follow(client, proxies(), follows));
    (server, leads)
}

fn proxies() -> PodsConfig {
    PodsConfig { namespace: NAMESPACE.into(), selector: "app=x".into(), own: OWN.into() }
}

fn has(server: &StandIn, names: &[&str]) -> bool {
    server.labelled(LABEL) == names.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
}

fn patched(server: &StandIn) -> Vec<String> {
    server.deeds().into_iter().filter(|deed| deed.0 == "patch").filter_map(|deed| deed.2).collect()
}

#[tokio::test]
async fn who_leads_takes_the_label_from_whoever_has_it_before_it_has_it_itself() {
    let (server, leads) = site().await;
    server.until(|server| patched(server) == [OWN]).await;
    leads.send_replace(true);
    server.until(|server| has(server, &[OWN])).await;
    assert_eq!(patched(&server), [OWN, OTHER, OWN]);
    let verbs: Vec<_> = server.deeds().into_iter().map(|deed| deed.0).collect();
    assert_eq!(verbs, ["patch", "list", "patch", "list", "patch"], "it is seen that the other one's is gone");
}

#[tokio::test]
async fn who_does_not_lead_has_no_label() {
    let (server, leads) = site().await;
    leads.send_replace(true);
    server.until(|server| has(server, &[OWN])).await;
    leads.send_replace(false);
    server.until(|server| has(server, &[])).await;
}

#[tokio::test]
async fn a_follower_takes_no_label_but_its_own() {
    let (server, _leads) = site().await;
    server.until(|server| patched(server) == [OWN]).await;
    assert!(has(&server, &[OTHER]));
}

#[tokio::test]
async fn what_fails_is_tried_again() {
    let (server, leads) = site().await;
    server.until(|server| patched(server) == [OWN]).await;
    server.fail(3);
    leads.send_replace(true);
    server.until(|server| has(server, &[OWN])).await;
}

#[tokio::test]
async fn who_leads_no_longer_gives_up_what_could_not_be_done() {
    let (server, leads) = site().await;
    server.until(|server| patched(server) == [OWN]).await;
    server.fail(usize::MAX);
    leads.send_replace(true);
    server.until(|server| server.count("list") > 1).await;
    leads.send_replace(false);
    server.fail(0);
    let before = server.count("patch");
    server.until(|server| server.count("patch") > before).await;
    server.until(|server| has(server, &[OTHER])).await;
    assert!(patched(&server).iter().all(|name| name == OWN));
}

#[tokio::test]
async fn who_goes_waits_for_the_other_one_and_leaves_no_label() {
    let (server, client) = StandIn::start(Vec::new()).await;
    for name in [OWN, OTHER] {
        server.run(name, name, "machine-1");
    }
    let label = RoleLabel::start(client, proxies());
    label.take();
    server.until(|server| has(server, &[OWN])).await;
    let (asked, moved) = (server.count("list"), label.moved());
    tokio::pin!(moved);
    tokio::select! {
        () = &mut moved => panic!("nobody else has it"),
        () = server.until(|server| server.count("list") > asked + 2) => {}
    }
    server.label(OTHER, LABEL, ACTIVE);
    moved.await;
    label.give_up().await.unwrap();
    assert!(has(&server, &[OTHER]));
}

#[tokio::test]
async fn what_would_be_refused_is_found_out_and_nothing_changed() {
    let rule = |verbs: &[&str]| json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
    for (verbs, is_good) in [(&["list", "patch"][..], true), (&["list"], false), (&["patch"], false)] {
        let (server, client) = StandIn::start(vec![rule(verbs)]).await;
        server.run(OWN, "own", "machine-1");
        let before = server.pod(OWN)["metadata"]["labels"].clone();
        assert_eq!(try_out(client.clone(), &proxies()).await.ok(), is_good.then_some(1), "{verbs:?}");
        assert_eq!(server.pod(OWN)["metadata"]["labels"], before);
        let other = PodsConfig { own: OTHER.into(), ..proxies() };
        assert!(try_out(client, &other).await.is_err());
    }
}

#[tokio::test]
async fn the_chart_grants_what_the_label_takes_and_nothing_else() {
    let rules = rendered(include_str!("../../../../tests/chart/golden/two-proxies.json"), "-label");
    let (server, client) = StandIn::start(rules.clone()).await;
    for name in [OWN, OTHER] {
        server.run(name, name, "machine-1");
    }
    server.label(OTHER, LABEL, ACTIVE);
    try_out(client.clone(), &proxies()).await.unwrap();
    let label = RoleLabel::start(client, proxies());
    label.take();
    server.until(|server| has(server, &[OWN])).await;
    server.label(OTHER, LABEL, ACTIVE);
    label.moved().await;
    label.give_up().await.unwrap();
    assert!(has(&server, &[OTHER]));
    assert_exact(&server.deeds(), &rules);
}
