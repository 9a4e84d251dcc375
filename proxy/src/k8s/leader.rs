//! The label by which a Service finds the proxy that leads: of all proxies' pods only the leader's has it. Two for a moment
//! do no harm, for a proxy that does not lead accepts nobody.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, serde_json::json};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::config::PodsConfig;

/// The label, and its value at the leader.
const LABEL: &str = "understudy/role";
const ACTIVE: &str = "active";
/// When an API server that failed is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// How often it is looked whether somebody else has it.
const LOOK: Duration = Duration::from_millis(50);

/// The label, kept as this proxy leads or not.
pub(crate) struct RoleLabel {
    pods: Api<Pod>,
    proxies: PodsConfig,
    leads: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RoleLabel {
    /// Takes it from the own pod, should a process before have left it there.
    pub(crate) fn start(client: Client, proxies: PodsConfig) -> Self {
        let (leads, follows) = watch::channel(false);
        let pods = Api::namespaced(client.clone(), &proxies.namespace);
        let task = tokio::spawn(follow(client, proxies.clone(), follows));
        Self { pods, proxies, leads, task }
    }

    /// This proxy leads now.
    pub(crate) fn take(&self) {
        self.leads.send_replace(true);
    }

    /// Waits until another pod has the label.
    pub(crate) async fn moved(&self) {
        loop {
            if labelled(&self.pods, &self.proxies).await.is_ok_and(|others| !others.is_empty()) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes it from the own pod, for the last time.
    ///
    /// # Errors
    /// The API server's.
    pub(crate) async fn give_up(&self) -> anyhow::Result<()> {
        self.task.abort();
        Ok(set(&self.pods, &self.proxies.own, None).await?)
    }
}

/// Looks whether all that [`follow`] does may be done, and changes nothing. How many pods there are.
///
/// # Errors
/// What may not be done, or that the own pod is not one of them.
pub(crate) async fn try_out(client: Client, proxies: &PodsConfig) -> anyhow::Result<usize> {
    let pods: Api<Pod> = Api::namespaced(client, &proxies.namespace);
    let found = pods.list(&ListParams::default().labels(&proxies.selector)).await?.items;
    let names: Vec<_> = found.into_iter().filter_map(|pod| pod.metadata.name).collect();
    anyhow::ensure!(
        names.contains(&proxies.own),
        "[ha] selector = \"{}\" selects {names:?} in {}, and not {}, which is this proxy's [ha] name",
        proxies.selector,
        proxies.namespace,
        proxies.own
    );
    let nothing = Patch::Merge(json!({"metadata": {"labels": {}}}));
    pods.patch(&proxies.own, &PatchParams { dry_run: true, ..PatchParams::default() }, &nothing).await?;
    Ok(names.len())
}

/// Follows leadership until nobody tells of it any more. A failure is told once, and tried again until it is good or
/// leadership has changed.
async fn follow(client: Client, proxies: PodsConfig, mut leads: watch::Receiver<bool>) {
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
async fn settle(pods: &Api<Pod>, proxies: &PodsConfig, is_leader: bool) -> kube::Result<()> {
    if !is_leader {
        return set(pods, &proxies.own, None).await;
    }
    loop {
        let others = labelled(pods, proxies).await?;
        if others.is_empty() {
            break;
        }
        for name in others {
            set(pods, &name, None).await?;
        }
    }
    set(pods, &proxies.own, Some(ACTIVE)).await
}

/// Which others have it.
async fn labelled(pods: &Api<Pod>, proxies: &PodsConfig) -> kube::Result<Vec<String>> {
    let having = ListParams::default().labels(&format!("{},{LABEL}={ACTIVE}", proxies.selector));
    let names = pods.list(&having).await?.items.into_iter().filter_map(|pod| pod.metadata.name);
    Ok(names.filter(|name| *name != proxies.own).collect())
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
