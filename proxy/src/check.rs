//! `understudy check`: everything that can be found out without serving, all of it at once.

use std::{io, path::Path, time::Duration};

use rustix::fs::{Access, access};
use tokio::time::timeout;

use crate::{
    config::{Config, StoreUrl},
    credentials::CredentialsFile,
    fence, net, probe,
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
            Ok(file) => say(
                file.users() > 0,
                format!("{}: {} user(s) can be moved to another node", path.display(), file.users()),
            ),
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
    if let Some(words) = &config.fence_exec {
        let mistake = fence::mistake(words);
        say(mistake.is_none(), mistake.unwrap_or_else(|| format!("the fence: {}", words.join(" "))));
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
            Ok(Err(error)) => {
                let remedy = remedy(&error);
                say(false, format!("node {} at {}: {error}{remedy}", node.name, node.address));
            }
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
        match net::listen(address) {
            Ok(_) => say(true, format!("{what} = \"{address}\" is free")),
            Err(error) => {
                say(false, format!("{what} = \"{address}\": {}", net::why_not(address, &error)));
            }
        }
    }
    good
}

/// What may help against a node that cannot be reached.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "; is smbd running there?",
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "; is the machine up, and no firewall between?"
        }
        _ => "",
    }
}

/// The store's directory, looked at without opening what a running proxy may have open.
fn store(dir: &Path) -> (bool, String) {
    let place = dir.display();
    // What does not exist yet will be made beneath the first directory that does.
    let Some(there) = dir.ancestors().find(|path| path.exists()) else {
        return (false, format!("the store {place} cannot be made; look at [store] url"));
    };
    if !there.is_dir() {
        return (
            false,
            format!("the store {place}: {} is no directory; look at [store] url", there.display()),
        );
    }
    match access(there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if there == dir => (true, format!("the store is {place}")),
        Ok(()) => (true, format!("the store {place} will be made")),
        Err(error) => {
            let error = io::Error::from(error);
            (
                false,
                format!(
                    "the store {place}: {error}; understudy must be able to write to {}",
                    there.display()
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_directory_that_can_be_written_or_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(store(dir.path()).0);
        assert!(store(&dir.path().join("a/b")).1.contains("will be made"));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(store(&file).1.contains("is no directory"));
        assert!(store(&file.join("a")).1.contains("is no directory"));
    }
}
