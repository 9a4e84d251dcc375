//! `understudy check`: everything that can be found out without serving, all of it at once.

use std::{io, path::Path, time::Duration};

use rustix::fs::{Access, access};
use tokio::time::timeout;
use understudy_core::{
    auth::{Credentials, NoCredentials},
    fleet::{Difference, Profile, profile::Volume},
};

use crate::{
    config::{Config, StoreUrl},
    credentials::CredentialsFile,
    fence,
    fleet::effect,
    net, probe,
};

/// How long a node has for its answer.
const NODE: Duration = Duration::from_secs(3);
/// How long it has to tell of itself.
const INTERVIEW: Duration = Duration::from_secs(30);

/// Prints a line per finding. True if nothing was wrong.
pub(crate) async fn check(config: &Config) -> bool {
    let mut good = true;
    let mut say = |ok: bool, what: String| {
        println!("{} {what}", if ok { "ok   " } else { "WRONG" });
        good &= ok;
    };
    let mut credentials: Box<dyn Credentials> = Box::new(NoCredentials);
    match &config.ntlm {
        None => say(true, "no [credentials] ntlm: only guests and anonymous users survive a node".into()),
        Some(path) => match CredentialsFile::open(path) {
            Ok(file) => {
                let users = file.users();
                say(users > 0, format!("{}: {users} user(s) can be moved to another node", path.display()));
                credentials = Box::new(file);
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
    let (mut answering, mut profiles) = (0, Vec::new());
    for node in &config.nodes {
        match timeout(NODE, probe::open(&node.address)).await {
            Ok(Ok(_)) => {
                answering += 1;
                say(true, format!("node {} at {} answers", node.name, node.address));
                let visitor = probe::visitor(config.compare.as_ref(), &*credentials, &node.address);
                match timeout(INTERVIEW, probe::interview(&node.address, visitor)).await {
                    Ok(Ok(profile)) => profiles.push((node.name.as_str(), profile)),
                    Ok(Err(error)) => {
                        say(false, format!("node {} does not tell of itself: {error}", node.name))
                    }
                    Err(_) => say(false, format!("node {} takes too long to tell of itself", node.name)),
                }
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
    alike(config, &*credentials, &profiles, &mut say);
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

/// Holds the nodes that told of themselves against each other.
fn alike(
    config: &Config,
    credentials: &dyn Credentials,
    profiles: &[(&str, Profile)],
    say: &mut impl FnMut(bool, String),
) {
    for (at, (one, profile)) in profiles.iter().enumerate() {
        for (other, their) in profiles.iter().skip(at + 1) {
            let differences = profile.differences(their);
            let (good, what) = table([one, other], &differences);
            say(good, what);
        }
    }
    match &config.compare {
        None => say(
            true,
            "volume serial numbers were not compared: that takes a user who logs in, see [compare] in README.md".into(),
        ),
        Some(compare) if credentials.nt_hash("", &compare.user).is_none() => {
            say(false, format!("[compare] user = \"{}\": the smbpasswd file has no such user", compare.user));
        }
        Some(_) => {
            for (node, profile) in profiles {
                for (share, volume) in &profile.volumes {
                    if let Volume::Refused(status) = volume {
                        say(false, format!("[compare] {share} at {node}: refused with {status:#010x}"));
                    }
                }
            }
        }
    }
}

/// In what two nodes differ, a row each.
fn table(nodes: [&str; 2], differences: &[Difference]) -> (bool, String) {
    let [one, other] = nodes;
    if differences.is_empty() {
        return (true, format!("{one} and {other} say the same of themselves"));
    }
    let breaks = differences.iter().any(Difference::breaks);
    let what =
        if breaks { ", and clients that are moved would break" } else { " in what clients do not mind" };
    let mut text = format!("{one} and {other} differ{what}:");
    for difference in differences {
        let (label, [a, b]) = (difference.what.label(), &difference.values);
        let (effect, remedy) = (effect(difference, nodes), difference.what.remedy());
        text += &format!("\n      {label:<20}  {a} | {b}\n      {:20}  {effect}; {remedy}", "");
    }
    (!breaks, text)
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
    use understudy_core::{
        crypto::Dialect,
        fleet::profile::{Granted, Profile},
    };

    use super::*;

    #[test]
    fn a_difference_that_breaks_clients_is_wrong() {
        let of = |max_read, server_guid| {
            let granted = Granted { max_read, server_guid, ..Granted::default() };
            Profile { dialects: [(Dialect::SMB311, granted)].into(), ..Profile::default() }
        };
        let good = of(8, [1; 16]);
        for (other, is_good, words) in [
            (of(8, [1; 16]), true, &["a and b say the same"][..]),
            (of(8, [2; 16]), true, &["do not mind", "server_guid"]),
            (
                of(4, [2; 16]),
                false,
                &[
                    "would break",
                    "max_read              8 (3.1.1) | 4 (3.1.1)",
                    "moved to b",
                    "`smb2 max read`",
                ],
            ),
        ] {
            let (fine, text) = table(["a", "b"], &good.differences(&other));
            assert_eq!(fine, is_good, "{text}");
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
    }

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
