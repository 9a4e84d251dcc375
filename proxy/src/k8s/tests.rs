use k8s_openapi::serde_json::{Value, json};

use super::{
    stand_in::{NAMESPACE, StandIn},
    *,
};
use crate::config::SlicesConfig;

/// An API server that grants these verbs of pods and EndpointSlices.
async fn granting(verbs: &[&str]) -> Client {
    let rule =
        |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let rules: Vec<Value> = vec![rule("", "pods"), rule("discovery.k8s.io", "endpointslices")];
    let (server, client) = StandIn::start(rules).await;
    server.run("samba-0", "a", "machine-1");
    client
}

async fn tried(verbs: &[&str]) -> [anyhow::Result<usize>; 2] {
    let client = granting(verbs).await;
    let pods = Api::namespaced(client.clone(), NAMESPACE);
    let missing = missing_of(&pods, NAMESPACE, ["samba-0", "samba-9"].into_iter()).await;
    let wanted = SlicesConfig { namespace: NAMESPACE.into(), service: "samba".into(), port: 445 };
    let found = Slices::new(client, &wanted).try_out().await;
    [missing.map(|names| names.len()), found.map(|nodes| nodes.len())]
}

#[tokio::test]
async fn check_finds_out_what_is_not_granted() {
    let [missing, found] = tried(&["list", "watch"]).await;
    assert_eq!((missing.unwrap(), found.unwrap()), (1, 0));
    for (verbs, words) in [(&["list"][..], "not watched"), (&["watch"], "Forbidden")] {
        for result in tried(verbs).await {
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains(words), "{verbs:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_kubeconfig_without_a_ca_is_named_where_that_may_be_the_cause() {
    let error = |mut config: Config| {
        // Something that is wrong on every machine, whatever certificates it has.
        config.proxy_url = Some("socks5://127.0.0.1:1".parse().unwrap());
        format!("{:#}", connect(config).err().unwrap())
    };
    let plain = Config::new("http://127.0.0.1:1".parse().unwrap());
    let without = Config::new("https://127.0.0.1:1".parse().unwrap());
    let mut with = without.clone();
    with.root_cert = Some(Vec::new());
    for (config, is_named) in [(plain, false), (without, true), (with, false)] {
        let error = error(config);
        assert!(error.contains("://127.0.0.1:1/ cannot be reached"), "{error}");
        assert_eq!(error.contains("certificate-authority"), is_named, "{error}");
    }
}
