//! `[fence] kubernetes`: a silent node's pod is deleted, and the node is fenced when no pod of its name may be at work any
//! more (`ledger.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::Notify, task::AbortHandle, time::timeout};

use super::ledger::{Ledger, Life, is_out_of_service};

/// What a pod has to end, in seconds. Never 0: that deletes it from the API server at once, and asks nobody whether it has
/// ended. More would only give its smbd time to close files that clients have open.
const GRACE: u32 = 1;
/// When the API server is asked again, should nothing be heard from it.
const AGAIN: Duration = Duration::from_millis(500);

/// Watches the nodes' pods from the beginning, for of one that is gone nobody tells how.
#[derive(Clone)]
pub(crate) struct PodFence {
    client: Client,
    namespace: String,
    watches: Arc<Mutex<BTreeMap<String, Watched>>>,
}

struct Watched {
    watch: Arc<Watch>,
    task: AbortHandle,
}

#[derive(Default)]
struct Watch {
    ledger: Mutex<Ledger>,
    changed: Notify,
}

impl Watch {
    fn with<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        let done = act(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
        done
    }
}

impl fmt::Debug for PodFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodFence").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl PodFence {
    /// Begins to watch the pods of these names.
    pub(crate) fn start(client: Client, namespace: &str, nodes: impl IntoIterator<Item = String>) -> Self {
        let fence = Self { client, namespace: namespace.to_owned(), watches: Arc::default() };
        fence.watch_only(&nodes.into_iter().collect());
        fence
    }

    /// Watches the pods of these names, and of no others. Those that were watched before are watched on.
    pub(crate) fn watch_only(&self, names: &BTreeSet<String>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|name, watched| {
            let stays = names.contains(name);
            if !stays {
                watched.task.abort();
            }
            stays
        });
        for name in names {
            watches.entry(name.clone()).or_insert_with(|| {
                let watch = Arc::new(Watch::default());
                let task = tokio::spawn(self.clone().keep(name.clone(), Arc::clone(&watch)));
                Watched { watch, task: task.abort_handle() }
            });
        }
    }

    fn watch(&self, name: &str) -> Option<Arc<Watch>> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.get(name).map(|watched| Arc::clone(&watched.watch))
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Keeps the ledger of one name, for ever.
    async fn keep(self, name: String, watch: Arc<Watch>) {
        let events = watcher(self.pods(), watcher::Config::default().fields(&only(&name))).default_backoff();
        pin_mut!(events);
        let (mut listed, mut said) = (Vec::new(), false);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(pod)) => watch.with(|ledger| ledger.saw(&pod)),
                Ok(watcher::Event::Delete(pod)) => watch.with(|ledger| ledger.lost(&pod)),
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => listed.push(pod),
                Ok(watcher::Event::InitDone) => {
                    said = false;
                    watch.with(|ledger| ledger.listed(&listed));
                }
                Err(error) if !std::mem::replace(&mut said, true) => {
                    tracing::error!(pod = name, %error, "the pod cannot be watched; a fence may not be able to tell that it has ended");
                }
                Err(_) => {}
            }
        }
    }

    /// Makes sure that no pod of this name executes anything any more, or that one alone which has this uid. Returns when that
    /// is so; whoever calls gives up when it takes too long.
    ///
    /// # Errors
    /// The API server's, or that nothing is known of such a pod.
    pub(crate) async fn fence(&self, name: &str, uid: Option<&str>) -> anyhow::Result<()> {
        let watch = self.watch(name).ok_or_else(|| anyhow::anyhow!("{name} is not watched"))?;
        loop {
            // What is watched may be old; this is what the API server knows now.
            let pods = self.pods().list(&ListParams::default().fields(&only(name))).await?;
            let alive = watch.with(|ledger| {
                ledger.listed(&pods.items);
                ledger.alive(uid)
            });
            let alive = alive.ok_or_else(|| {
                anyhow::anyhow!("there is no pod {}/{name}, and none was seen", self.namespace)
            })?;
            let mut left = 0;
            for life in alive {
                if self.is_vouched_for(&life).await? {
                    watch.with(|ledger| ledger.vouched(&life.uid));
                    continue;
                }
                left += 1;
                if !life.is_ending && !life.is_gone {
                    self.end(name, &life.uid).await?;
                }
            }
            if left == 0 {
                return Ok(());
            }
            let _ = timeout(AGAIN, watch.changed.notified()).await;
        }
    }

    async fn is_vouched_for(&self, life: &Life) -> kube::Result<bool> {
        let Some(machine) = &life.machine else { return Ok(false) };
        let found = Api::<Node>::all(self.client.clone()).get_opt(machine).await?;
        Ok(found.as_ref().is_some_and(is_out_of_service))
    }

    /// Deletes this very pod, not one that has taken its name.
    async fn end(&self, name: &str, uid: &str) -> kube::Result<()> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let orders = DeleteParams::default().grace_period(GRACE).preconditions(preconditions);
        match self.pods().delete(name, &orders).await {
            // It is gone, or is another one by now: the next list shows it.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

fn only(name: &str) -> String {
    format!("metadata.name={name}")
}

#[cfg(test)]
mod tests;
