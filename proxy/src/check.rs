//! `understudy check`: everything that can be found out without serving, all of it at once.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use tokio::{net::TcpListener, time::timeout};

use crate::{
    config::{Config, StoreUrl},
    credentials::CredentialsFile,
    probe,
};

/// How long a node has for its answer.
const NODE: Duration = Duration::from_secs(3);

/// Prints a line per finding. True if nothing was wrong.
pub(crate) async fn check(config: &Config) -> bool {
    let mut good = true;
    let mut say = |ok: bool, what: String| {
        println!("{} {what}", if ok { "ok   " } else { "WRONG" });
        good &= ok;
    };
    match &config.ntlm {
        None => say(true, "no [credentials] ntlm: only guests and anonymous users survive a node".into()),
        Some(path) => match CredentialsFile::open(path) {
            Ok(file) => {
                say(true, format!("{}: {} users can be moved to another node", path.display(), file.users()))
            }
            Err(error) => say(false, format!("the smbpasswd file {} {error}", path.display())),
        },
    }
    match &config.store {
        StoreUrl::Memory => say(true, "the store is memory: nothing survives a restart".into()),
        StoreUrl::File(dir) => {
            let (ok, what) = store(dir);
            say(ok, what);
        }
    }
    if let Some(program) = config.fence_exec.as_ref().and_then(|words| words.first()) {
        let runs = std::fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0);
        let remedy = if runs { "" } else { " is no program that can be run; look at [fence] exec" };
        say(runs, format!("the fence {program}{remedy}"));
    } else if config.unfenced_silence {
        say(
            true,
            "unfenced_silence: a silent node is left without a fence; it may execute old writes later".into(),
        );
    } else {
        say(true, "no fence: clients of a silent node wait for it".into());
    }
    let mut answering = 0;
    for node in &config.nodes {
        match timeout(NODE, probe::open(&node.address)).await {
            Ok(Ok(_)) => {
                answering += 1;
                say(true, format!("node {} at {} answers", node.name, node.address));
            }
            Ok(Err(error)) => say(false, format!("node {} at {}: {error}", node.name, node.address)),
            Err(_) => say(
                false,
                format!("node {} at {}: no answer; is a firewall between?", node.name, node.address),
            ),
        }
    }
    if answering == 0 {
        say(false, "no node answers: clients would wait, and be disconnected after takeover_deadline".into());
    }
    for (what, address) in [("listen", Some(config.listen)), ("[admin] listen", config.admin)] {
        let Some(address) = address else { continue };
        match TcpListener::bind(address).await {
            Ok(_) => say(true, format!("{what} {address} is free")),
            Err(error) => say(
                false,
                format!("{what} {address}: {error} (in use by another server, or by a running understudy?)"),
            ),
        }
    }
    good
}

/// The store's directory, looked at without opening what a running proxy may have open.
fn store(dir: &Path) -> (bool, String) {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => (true, format!("the store is {}", dir.display())),
        Ok(_) => (false, format!("{} is no directory; look at [store] url", dir.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (true, format!("the store {} will be made", dir.display()))
        }
        Err(error) => (false, format!("the store {}: {error}", dir.display())),
    }
}
