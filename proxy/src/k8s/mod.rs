//! Kubernetes: its API server as a fence, the label of the proxy that leads, and nodes that are found by their Service. Apart, for few
//! need it and it brings a hundred crates (feature `k8s`).

mod fence;
mod leader;
mod ledger;
mod slices;
#[cfg(test)]
mod stand_in;

use std::fmt::Debug;

use anyhow::Context as _;
use k8s_openapi::{api::core::v1::Pod, serde::de::DeserializeOwned};
use kube::{
    Api, Client, Config, Resource,
    api::{ListParams, WatchParams},
};

pub(crate) use self::{
    fence::PodFence,
    leader::{RoleLabel, try_out},
    slices::Slices,
};

/// A client by the account of the pod that this runs in, or by the kubeconfig of whoever runs it. `option`: what of the
/// configuration it is for.
pub(crate) async fn client(option: &str) -> anyhow::Result<Client> {
    let config = Config::infer().await.with_context(|| {
        format!(
            "{option}: the API server cannot be reached: in a pod it takes a service account whose token is mounted, elsewhere a kubeconfig"
        )
    })?;
    connect(config).with_context(|| option.to_owned())
}

fn connect(mut config: Config) -> anyhow::Result<Client> {
    if config.cluster_url.scheme_str() == Some("http") {
        // Without TLS nobody asks for certificates, and an image may have none.
        config.root_cert = Some(Vec::new());
    }
    let names_ca = config.root_cert.is_some() || config.root_cert_file.is_some();
    let remedy = if names_ca {
        ""
    } else {
        "; the kubeconfig names no certificate-authority: where the system trusts none, name the cluster's"
    };
    let url = config.cluster_url.clone();
    Client::try_from(config).with_context(|| format!("the API server at {url} cannot be reached{remedy}"))
}

/// Whether watching is granted too: with what is listed alone, nothing would be heard of changes. Changes nothing.
///
/// # Errors
/// The API server's.
async fn try_watch<K>(api: &Api<K>, selected: WatchParams) -> anyhow::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    // A refusal comes before anything else; what there is to be heard does not matter.
    api.watch(&selected.timeout(1), "0").await.map(|_| ()).context("they can be listed, but not watched")
}

/// Which of these pods there are not.
pub(crate) async fn missing<'a>(
    namespace: &str,
    names: impl Iterator<Item = &'a str>,
) -> anyhow::Result<Vec<String>> {
    missing_of(&Api::namespaced(client("[fence] kubernetes").await?, namespace), namespace, names).await
}

async fn missing_of<'a>(
    pods: &Api<Pod>,
    namespace: &str,
    names: impl Iterator<Item = &'a str>,
) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for name in names {
        // Listed, as the fence does it, so that a role that is too narrow is found out.
        let only = format!("metadata.name={name}");
        let found = pods.list(&ListParams::default().fields(&only)).await;
        if found.with_context(|| format!("pod {namespace}/{name}"))?.items.is_empty() {
            missing.push(name.to_owned());
        }
        try_watch(pods, WatchParams::default().fields(&only))
            .await
            .with_context(|| format!("pod {namespace}/{name}"))?;
    }
    Ok(missing)
}

#[cfg(test)]
mod tests;
