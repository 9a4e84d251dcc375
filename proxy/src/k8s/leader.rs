//! The label by which a Service finds the proxy that leads: of all proxies' pods only the leader's has it. Two for a moment
//! do no harm, for a proxy that does not lead accepts nobody.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, serde_json::json};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use tokio::{sync::watch, time::timeout};

/// The label, and its value at the leader.
const LABEL: &str = "understudy/role";
const ACTIVE: &str = "active";
/// When an API server that failed is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Whose label it is.
#[derive(Debug, Clone)]
pub(crate) struct Proxies {
    pub(crate) namespace: String,
    /// What selects the pods of all proxies.
    pub(crate) selector: String,
    /// This proxy's own pod.
    pub(crate) own: String,
}

/// Follows leadership until nobody tells of it any more. A failure is told once, and tried again until it is good or
/// leadership has changed.
pub(crate) async fn follow(client: Client, proxies: Proxies, mut leads: watch::Receiver<bool>) {
    let pods = Api::namespaced(client, &proxies.namespace);
    loop {
        let is_leader = *leads.borrow_and_update();
        let mut said = false;
        // A news of leadership interrupts what the one before has begun.
        let work = async {
            while let Err(error) = settle(&pods, &proxies, is_leader).await {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(%error, is_leader, "the pods' labels cannot be set; the Service may lead clients elsewhere");
                }
                tokio::time::sleep(AGAIN).await;
            }
            tracing::info!(is_leader, "the pods' labels are set");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => {}
            changed = leads.changed() => if changed.is_err() { return },
        }
    }
}

/// Takes the label from whoever has it and should not, sees that it is gone, and gives it to the leader.
async fn settle(pods: &Api<Pod>, proxies: &Proxies, is_leader: bool) -> kube::Result<()> {
    if !is_leader {
        return set(pods, &proxies.own, None).await;
    }
    let labelled = ListParams::default().labels(&format!("{},{LABEL}={ACTIVE}", proxies.selector));
    loop {
        let others = pods.list(&labelled).await?.items.into_iter().filter_map(|pod| pod.metadata.name);
        let others: Vec<_> = others.filter(|name| *name != proxies.own).collect();
        if others.is_empty() {
            break;
        }
        for name in others {
            set(pods, &name, None).await?;
        }
    }
    set(pods, &proxies.own, Some(ACTIVE)).await
}

/// A pod that is gone has no label.
async fn set(pods: &Api<Pod>, name: &str, value: Option<&str>) -> kube::Result<()> {
    let patch = json!({"metadata": {"labels": {LABEL: value}}});
    match timeout(Duration::from_secs(5), pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch)))
        .await
    {
        Ok(Err(kube::Error::Api(status))) if status.code == 404 && value.is_none() => Ok(()),
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(kube::Error::Service("no answer in time".into())),
    }
}

#[cfg(test)]
mod tests;
