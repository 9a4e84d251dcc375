use std::time::Duration;

use k8s_openapi::serde_json::{Value, from_str, from_value, json};
use tokio::time::timeout;

use super::*;
use crate::{
    find::{self, List},
    k8s::stand_in::{NAMESPACE, StandIn},
};

/// An endpoint as a Service has it for a pod.
fn pod(name: &str, uid: &str, address: &str) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "targetRef": {"kind": "Pod", "name": name, "namespace": NAMESPACE, "uid": uid}
    })
}

/// The same when its pod is to end.
fn ending(name: &str, uid: &str, address: &str) -> Value {
    let mut endpoint = pod(name, uid, address);
    endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    endpoint
}

fn slices(all: &[(&str, Vec<Value>)]) -> Vec<EndpointSlice> {
    let slice = |(family, endpoints): &(&str, Vec<Value>)| {
        from_value(json!({"addressType": family, "endpoints": endpoints, "metadata": {}})).unwrap()
    };
    all.iter().map(slice).collect()
}

/// What is found: name, uid, address, and whether it leaves.
fn told(found: &[Found]) -> Vec<String> {
    let line = |node: &Found| {
        let uid = node.uid.as_deref().unwrap_or("-");
        format!("{} {uid} {}{}", node.name, node.address, if node.leaving { " leaving" } else { "" })
    };
    found.iter().map(line).collect()
}

#[test]
fn endpoints_are_nodes() {
    let v4 = || vec![pod("samba-10", "k", "10.0.0.10"), pod("samba-9", "j", "10.0.0.9")];
    let v6 = || vec![pod("samba-9", "j", "fd00::9")];
    let in_order = ["samba-9 j 10.0.0.9:445", "samba-10 k 10.0.0.10:445"];
    for (what, all, expected) in [
        ("pods in the order of their numbers", vec![("IPv4", v4())], &in_order[..]),
        ("of two families one", vec![("IPv6", v6()), ("IPv4", v4())], &in_order),
        (
            "that one if there is no other",
            vec![("IPv6", v6()), ("IPv4", vec![])],
            &["samba-9 j [fd00::9]:445"],
        ),
        ("names are no addresses", vec![("FQDN", vec![json!({"addresses": ["a.example"]})])], &[]),
        (
            "a pod in two slices is one node, and leaves if one of them says so",
            vec![("IPv4", v4()), ("IPv4", vec![ending("samba-9", "j", "10.0.0.9")])],
            &["samba-9 j 10.0.0.9:445 leaving", "samba-10 k 10.0.0.10:445"],
        ),
        (
            "of two pods of one name there are two nodes",
            vec![("IPv4", v4()), ("IPv4", vec![pod("samba-9", "new", "10.0.0.99")])],
            &["samba-9 j 10.0.0.9:445", "samba-9 new 10.0.0.99:445", "samba-10 k 10.0.0.10:445"],
        ),
        (
            "what is no pod goes by its name, or its address",
            vec![(
                "IPv4",
                vec![
                    json!({"addresses": ["10.0.0.1"], "hostname": "a"}),
                    json!({"addresses": ["10.0.0.2"], "targetRef": {"kind": "Node", "name": "x", "uid": "y"}}),
                ],
            )],
            &["a - 10.0.0.1:445", "10.0.0.2 - 10.0.0.2:445"],
        ),
        (
            "one that is not ready is a node",
            vec![(
                "IPv4",
                vec![json!({"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": false}})],
            )],
            &["10.0.0.1 - 10.0.0.1:445"],
        ),
    ] {
        assert_eq!(told(&nodes(slices(&all).iter(), 445)), expected, "{what}");
    }
}

struct Site {
    server: StandIn,
    list: List,
}

impl Site {
    /// A Service that is watched from the beginning.
    async fn new(prepare: impl FnOnce(&StandIn)) -> Self {
        let (server, client) = StandIn::start(Vec::new()).await;
        prepare(&server);
        let wanted = SlicesConfig { namespace: NAMESPACE.into(), service: "samba".into(), port: 445 };
        let (news, list) = find::tests::news();
        tokio::spawn(Slices::new(client, &wanted).watch(news));
        Self { server, list }
    }

    /// Until this is what is found.
    async fn until(&mut self, expected: &[&str]) {
        let list = self.list.wait_for(|list| told(list) == expected);
        let found = timeout(Duration::from_secs(20), list).await.is_ok();
        assert!(found, "{expected:?} was not found, but {:?}", told(&self.list.borrow()));
    }
}

fn two_pods(server: &StandIn) {
    let endpoints = [pod("samba-0", "a", "10.0.0.1"), pod("samba-1", "b", "10.0.0.2")];
    server.slice("samba", "samba-x", "IPv4", &endpoints);
    server.slice("other", "other-x", "IPv4", &[pod("other-0", "o", "10.0.0.7")]);
}

const BOTH: [&str; 2] = ["samba-0 a 10.0.0.1:445", "samba-1 b 10.0.0.2:445"];

#[tokio::test]
async fn every_change_is_heard_of() {
    let mut site = Site::new(two_pods).await;
    site.until(&BOTH).await;
    let second = pod("samba-1", "b", "10.0.0.2");
    site.server.slice("samba", "samba-x", "IPv4", &[ending("samba-0", "a", "10.0.0.1"), second.clone()]);
    site.until(&["samba-0 a 10.0.0.1:445 leaving", BOTH[1]]).await;
    site.server.slice("samba", "samba-x", "IPv4", std::slice::from_ref(&second));
    site.until(&BOTH[1..]).await;
    // Its successor comes in another slice.
    site.server.slice("samba", "samba-y", "IPv4", &[pod("samba-0", "c", "10.0.0.3")]);
    site.until(&["samba-0 c 10.0.0.3:445", BOTH[1]]).await;
    site.server.remove_slice("samba-x");
    site.until(&["samba-0 c 10.0.0.3:445"]).await;
    site.server.remove_slice("samba-y");
    site.until(&[]).await;
    assert_eq!(site.server.count("list"), 1, "the rest was watched");
}

#[tokio::test]
async fn a_service_without_endpoints_is_waited_for() {
    let mut site = Site::new(|_| {}).await;
    site.server.until(|server| server.count("watch") == 1).await;
    two_pods(&site.server);
    site.until(&BOTH).await;
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_from_the_last_bookmark() {
    let mut site = Site::new(two_pods).await;
    site.until(&BOTH).await;
    site.server.until(|server| server.count("watch") == 1).await;
    let bookmark = site.server.bookmark();
    site.server.end_watch();
    site.server.until(|server| server.count("watch") == 2).await;
    assert_eq!(site.server.watched_from().last(), Some(&bookmark));
    site.server.slice("samba", "samba-x", "IPv4", &[pod("samba-1", "b", "10.0.0.2")]);
    site.until(&BOTH[1..]).await;
    assert_eq!(site.server.count("list"), 1);
}

#[tokio::test]
async fn what_is_too_long_ago_is_listed_anew() {
    let mut site = Site::new(two_pods).await;
    site.until(&BOTH).await;
    site.server.until(|server| server.count("watch") == 1).await;
    site.server.expire();
    site.server.until(|server| server.count("list") == 2).await;
    site.server.slice("samba", "samba-x", "IPv4", &[pod("samba-1", "b", "10.0.0.2")]);
    site.until(&BOTH[1..]).await;
}

#[tokio::test]
async fn while_the_api_server_fails_the_known_nodes_stay() {
    let mut site = Site::new(|server| {
        server.fail(1);
        two_pods(server);
    })
    .await;
    site.until(&BOTH).await;
    site.server.until(|server| server.count("watch") == 1).await;
    site.list.mark_unchanged();
    site.server.fail(2);
    site.server.expire();
    // Two lists have failed, and the third has told nothing new.
    site.server.until(|server| server.count("watch") == 2).await;
    assert!(!site.list.has_changed().unwrap(), "{:?}", site.list.borrow());
    site.server.slice("samba", "samba-x", "IPv4", &[pod("samba-1", "b", "10.0.0.2")]);
    site.until(&BOTH[1..]).await;
}

#[tokio::test]
async fn the_chart_grants_what_is_watched_and_nothing_else() {
    let render = include_str!("../../../../tests/chart/golden/endpoint-slices.json");
    let documents: Vec<Value> = from_str(render).unwrap();
    let rules: Vec<Value> =
        documents.iter().filter_map(|document| document["rules"].as_array()).flatten().cloned().collect();
    let (server, client) = StandIn::start(rules.clone()).await;
    two_pods(&server);
    let wanted = SlicesConfig { namespace: NAMESPACE.into(), service: "samba".into(), port: 445 };
    let (news, mut list) = find::tests::news();
    tokio::spawn(Slices::new(client, &wanted).watch(news));
    timeout(Duration::from_secs(20), list.wait_for(|list| told(list) == BOTH)).await.unwrap().unwrap();
    server.until(|server| server.count("watch") > 0).await;
    let used: Vec<_> = server.deeds().into_iter().map(|(verb, resource, _)| (verb, resource)).collect();
    assert_eq!(used, [("list", "endpointslices"), ("watch", "endpointslices")]);
    // What the fence may do has a test of its own.
    let ours = rules.iter().filter(|rule| rule["apiGroups"] == json!(["discovery.k8s.io"]));
    let granted: Vec<_> = ours.map(|rule| (&rule["resources"], &rule["verbs"])).collect();
    assert_eq!(granted, [(&json!(["endpointslices"]), &json!(["list", "watch"]))]);
}
