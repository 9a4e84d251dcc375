//! The label on the pod of the proxy that serves, by which a Service finds it (`[ha] kubernetes`).

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::config::PodsConfig;
#[cfg(feature = "k8s")]
use crate::k8s::{self, RoleLabel};

/// How long another proxy has to take the label.
const HAND_OVER: Duration = Duration::from_secs(4);
/// Whatever leads clients to the pod that has it hears of that a moment later.
const HEARD: Duration = Duration::from_millis(500);
/// How long the API server has to take it from a pod whose process ends.
const GIVE_UP: Duration = Duration::from_secs(1);

/// The label of this proxy's pod.
pub(crate) struct Label {
    role: RoleLabel,
}

/// Without Kubernetes there is none.
#[cfg(not(feature = "k8s"))]
enum RoleLabel {}

#[cfg(not(feature = "k8s"))]
impl RoleLabel {
    fn take(&self) {
        match *self {}
    }

    async fn moved(&self) {
        match *self {}
    }

    async fn give_up(&self) -> anyhow::Result<()> {
        match *self {}
    }
}

impl Label {
    /// Begins to keep it.
    ///
    /// # Errors
    /// It is not known where the API server is.
    #[cfg(feature = "k8s")]
    pub(crate) async fn start(pods: &PodsConfig) -> anyhow::Result<Self> {
        Ok(Self { role: RoleLabel::start(k8s::client("[ha] kubernetes").await?, pods.clone()) })
    }

    #[cfg(not(feature = "k8s"))]
    pub(crate) async fn start(_: &PodsConfig) -> anyhow::Result<Self> {
        anyhow::bail!("this understudy was built without Kubernetes")
    }

    /// This proxy serves.
    pub(crate) fn take(&self) {
        self.role.take();
    }

    /// Waits until another proxy can be found by it, which is not for ever.
    pub(crate) async fn moved(&self) {
        match timeout(HAND_OVER, self.role.moved()).await {
            Ok(()) => sleep(HEARD).await,
            Err(_) => {
                tracing::warn!("no other proxy's pod has the label yet; clients may not find one at once")
            }
        }
    }

    /// The pod of a process that ends has none.
    pub(crate) async fn give_up(&self) {
        let error = match timeout(GIVE_UP, self.role.give_up()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer in time".into(),
        };
        tracing::warn!(error, "the own pod keeps its label until another proxy takes it");
    }
}

/// For `check`: whether the label can be kept.
pub(crate) async fn check(pods: &PodsConfig) -> (bool, String) {
    #[cfg(feature = "k8s")]
    let tried = match k8s::client("[ha] kubernetes").await {
        Ok(client) => k8s::try_out(client, pods).await,
        Err(error) => Err(error),
    };
    #[cfg(not(feature = "k8s"))]
    let tried: anyhow::Result<usize> = Err(anyhow::anyhow!("built without it"));
    match tried {
        Ok(count) => {
            (true, format!("[ha] kubernetes: {count} pod(s) of proxies, and {} can have the label", pods.own))
        }
        Err(error) => (false, format!("[ha] kubernetes: {error:#}")),
    }
}
