//! Running the fence that is configured: the operator's program, or the API server of Kubernetes.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, process::Stdio, time::Duration};

use anyhow::bail;
use tokio::{process::Command, time::timeout};

use crate::config::{Config, FenceMeans, NodeConfig};
#[cfg(feature = "k8s")]
use crate::k8s::{self, PodFence};

/// A fence that is ready.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    means: Means,
    timeout: Duration,
}

#[derive(Debug, Clone)]
enum Means {
    Exec(Vec<String>),
    #[cfg(feature = "k8s")]
    Pods(PodFence),
}

impl Fence {
    /// Gets the configured fence ready, if there is one.
    ///
    /// # Errors
    /// It could not be used.
    pub(crate) async fn prepare(config: &Config) -> anyhow::Result<Option<Self>> {
        let means = match &config.fence {
            None => return Ok(None),
            Some(FenceMeans::Exec(words)) => {
                if let Some(mistake) = mistake(words) {
                    bail!("{mistake}");
                }
                Means::Exec(words.clone())
            }
            #[cfg(feature = "k8s")]
            Some(FenceMeans::Kubernetes(namespace)) => {
                let names = config.nodes.iter().map(|node| node.name.clone());
                Means::Pods(PodFence::start(k8s::client("[fence] kubernetes").await?, namespace, names))
            }
            #[cfg(not(feature = "k8s"))]
            Some(FenceMeans::Kubernetes(_)) => bail!("this understudy was built without Kubernetes"),
        };
        Ok(Some(Self { means, timeout: config.fence_timeout }))
    }

    /// These nodes may have to be fenced, and no others.
    #[cfg_attr(
        not(feature = "k8s"),
        allow(unused_variables, reason = "a program needs to know nothing before")
    )]
    pub(crate) fn know(&self, names: &BTreeSet<String>) {
        match &self.means {
            Means::Exec(_) => {}
            #[cfg(feature = "k8s")]
            Means::Pods(pods) => pods.watch_only(names),
        }
    }

    /// Fences a node. True only if it succeeded within the time given.
    pub(crate) async fn run(&self, node: &NodeConfig) -> bool {
        match &self.means {
            Means::Exec(words) => run(words, node, self.timeout).await,
            #[cfg(feature = "k8s")]
            Means::Pods(pods) => fence_pod(pods, node, self.timeout).await,
        }
    }
}

#[cfg(feature = "k8s")]
async fn fence_pod(pods: &PodFence, node: &NodeConfig, limit: Duration) -> bool {
    tracing::warn!(node = node.name, "fencing: its pod is deleted");
    match timeout(limit, pods.fence(&node.name, node.uid.as_deref())).await {
        Ok(Ok(())) => {
            tracing::warn!(node = node.name, "fenced: its kubelet says that the pod has ended");
            true
        }
        Ok(Err(error)) => {
            let error = format!("{error:#}");
            tracing::error!(node = node.name, error, "the fence failed");
            false
        }
        Err(_) => {
            tracing::error!(
                node = node.name,
                "the fence failed: nobody says that the pod has ended; if its machine is shut down, taint it: kubectl taint \
                 nodes NAME node.kubernetes.io/out-of-service=:NoExecute"
            );
            false
        }
    }
}

/// For `check`: whether the nodes' pods can be asked for.
pub(crate) async fn pods(namespace: &str, nodes: &[NodeConfig]) -> (bool, String) {
    #[cfg(feature = "k8s")]
    let missing = k8s::missing(namespace, nodes.iter().map(|node| node.name.as_str())).await;
    #[cfg(not(feature = "k8s"))]
    let missing: anyhow::Result<Vec<String>> = Err(anyhow::anyhow!("built without it"));
    match missing {
        Ok(missing) if missing.is_empty() => (
            true,
            format!("the fence: the API server deletes pods in {namespace}, {} are known", nodes.len()),
        ),
        Ok(missing) => (false, format!("the fence: there is no pod {} in {namespace}", missing.join(", "))),
        Err(error) => (false, format!("the fence: {error:#}")),
    }
}

/// Runs the fence for a node. True only if it ended with status 0 within the time given.
pub(crate) async fn run(words: &[String], node: &NodeConfig, limit: Duration) -> bool {
    let words: Vec<String> = words.iter().map(|word| fill(word, node)).collect();
    let Some((program, arguments)) = words.split_first() else { return false };
    tracing::warn!(node = node.name, program, "fencing");
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match timeout(limit, child).await {
        Ok(Ok(output)) if output.status.success() => {
            tracing::warn!(node = node.name, "fenced");
            true
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().chars().take(500).collect::<String>();
            tracing::error!(node = node.name, program, status = %output.status, said, "the fence failed");
            false
        }
        Ok(Err(error)) => {
            tracing::error!(node = node.name, program, %error, "the fence cannot be run; look at [fence] exec");
            false
        }
        Err(_) => {
            tracing::error!(node = node.name, program, "the fence did not end within [fence] timeout");
            false
        }
    }
}

/// What is wrong with the command, as far as it can be told without running it.
pub(crate) fn mistake(words: &[String]) -> Option<String> {
    let program = words.first()?;
    let runs = fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0);
    (!runs).then(|| format!("the fence {program} is no program that can be run; look at [fence] exec"))
}

fn fill(word: &str, node: &NodeConfig) -> String {
    word.replace("{name}", &node.name).replace("{address}", &node.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeConfig {
        NodeConfig { name: "samba-0".into(), address: "10.0.0.10:445".into(), uid: None }
    }

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_fence_that_cannot_be_run_is_named() {
        assert_eq!(mistake(&words(&["/bin/sh", "-c", "true"])), None);
        assert!(mistake(&words(&["/etc/passwd"])).is_some_and(|m| m.contains("/etc/passwd")));
        assert!(mistake(&words(&["/nonexistent"])).is_some());
    }

    #[tokio::test]
    async fn only_status_0_in_time_is_success() {
        let limit = Duration::from_secs(20);
        assert!(
            run(
                &words(&["/bin/sh", "-c", "test {name} = samba-0 && test {address} = 10.0.0.10:445"]),
                &node(),
                limit
            )
            .await
        );
        assert!(!run(&words(&["/bin/false"]), &node(), limit).await);
        assert!(!run(&words(&["/nonexistent"]), &node(), limit).await);
        assert!(!run(&words(&["/bin/sleep", "60"]), &node(), Duration::from_millis(50)).await);
    }
}
