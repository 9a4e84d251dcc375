//! Running the operator's fence.

use std::{fs, os::unix::fs::MetadataExt, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::config::NodeConfig;

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
        NodeConfig { name: "samba-0".into(), address: "10.0.0.10:445".into() }
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
