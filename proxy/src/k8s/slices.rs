//! `[nodes] endpoint_slices`: the nodes are the endpoints of a Service, pods as a rule.
//!
//! Whether an endpoint is ready is not asked: nodes are asked for that by the proxy itself, which knows it sooner. One whose
//! pod is to end is known until it has gone, and nobody is moved to it.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::{
    Api, Client,
    api::{ListParams, WatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use understudy_core::fleet::Found;

use super::try_watch;
use crate::{config::SlicesConfig, find::News};

/// By which label the slices of a Service are known.
const SERVICE: &str = "kubernetes.io/service-name";

/// The slices of a Service.
pub(crate) struct Slices {
    api: Api<EndpointSlice>,
    label: String,
    port: u16,
}

impl Slices {
    pub(crate) fn new(client: Client, wanted: &SlicesConfig) -> Self {
        let SlicesConfig { namespace, service, port } = wanted;
        let api = Api::namespaced(client, namespace);
        Self { api, label: format!("{SERVICE}={service}"), port: *port }
    }

    /// The nodes of now, and whether changes would be heard of.
    ///
    /// # Errors
    /// The API server's.
    pub(crate) async fn try_out(&self) -> anyhow::Result<Vec<Found>> {
        let slices = self.api.list(&ListParams::default().labels(&self.label)).await?;
        try_watch(&self.api, WatchParams::default().labels(&self.label)).await?;
        Ok(nodes(slices.items.iter(), self.port))
    }

    /// Tells of every change, for ever.
    pub(crate) async fn watch(self, mut news: News) {
        let config = watcher::Config::default().labels(&self.label);
        let events = watcher(self.api, config).default_backoff();
        pin_mut!(events);
        // By name. While they are listed anew the old ones count: a list that is half there would take nodes away.
        let (mut slices, mut listed) = (BTreeMap::new(), BTreeMap::new());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(slice)) => {
                    listed.insert(name(&slice), slice);
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    slices = std::mem::take(&mut listed);
                    news.found(nodes(slices.values(), self.port));
                }
                Ok(watcher::Event::Apply(slice)) => {
                    slices.insert(name(&slice), slice);
                    news.found(nodes(slices.values(), self.port));
                }
                Ok(watcher::Event::Delete(slice)) => {
                    slices.remove(&name(&slice));
                    news.found(nodes(slices.values(), self.port));
                }
                // What it remembers of changes is gone: they are listed anew, and nothing is wrong.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
                Err(error) => news.failed(&error),
            }
        }
    }
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// What these slices tell. A Service may have slices of both families, with the same pods in them; and for a moment a pod may be
/// in two slices.
fn nodes<'a>(slices: impl Iterator<Item = &'a EndpointSlice> + Clone, port: u16) -> Vec<Found> {
    let of = |family: &'static str| {
        let slices = slices.clone().filter(move |slice| slice.address_type == family);
        slices.flat_map(|slice| slice.endpoints.iter().flatten()).filter_map(|endpoint| node(endpoint, port))
    };
    let mut found: Vec<_> = of("IPv4").collect();
    if found.is_empty() {
        found = of("IPv6").collect();
    }
    // samba-10 comes after samba-9. Of the same node twice the one that leaves comes first, and stays.
    found.sort_by(|a, b| {
        let key = |f: &Found| (f.name.len(), f.name.clone(), f.uid.clone(), f.address.clone(), !f.leaving);
        key(a).cmp(&key(b))
    });
    found.dedup_by(|a, b| (&a.name, &a.uid, &a.address) == (&b.name, &b.uid, &b.address));
    found
}

fn node(endpoint: &Endpoint, port: u16) -> Option<Found> {
    // All addresses of an endpoint are alike, by definition.
    let ip: std::net::IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let name = pod.and_then(|pod| pod.name.clone()).or_else(|| endpoint.hostname.clone());
    Some(Found {
        name: name.unwrap_or_else(|| ip.to_string()),
        uid: pod.and_then(|pod| pod.uid.clone()),
        address: std::net::SocketAddr::new(ip, port).to_string(),
        leaving: endpoint.conditions.as_ref().and_then(|c| c.terminating).unwrap_or(false),
    })
}

#[cfg(test)]
mod tests;
