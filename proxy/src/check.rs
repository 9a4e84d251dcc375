//! `understudy check`: everything that can be found out without serving, all of it at once.

use std::{
    collections::BTreeMap, io, net::SocketAddr, os::unix::fs::MetadataExt as _, path::Path, time::Duration,
};

use rustix::fs::{Access, access};
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};
use understudy_core::{
    auth::{
        Credentials,
        kerberos::{Keytab, crypto::EncType},
        smbpasswd::Smbpasswd,
    },
    fleet::{Difference, Profile, profile::Volume},
};
use understudy_state::{Batch, Change, EtcdOptions, Guard, LeaderRecord, StoreError};

use crate::{
    config::{Config, FenceMeans, NodeConfig, StoreUrl, VipConfig},
    credentials::{Files, Format, KeyFile},
    fence, find,
    fleet::effect,
    ha, net,
    persist::OnFailure,
    probe, store,
    vip::Vip,
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
    for (ok, what) in key_files(config) {
        say(ok, what);
    }
    let credentials = Files::usable(config);
    match &config.store {
        StoreUrl::Memory => say(true, "the store is memory: nothing survives a restart".into()),
        StoreUrl::File(dir) => {
            let (ok, what) = directory(dir);
            say(ok, what);
        }
        StoreUrl::Etcd(options) => {
            for (ok, what) in etcd(options).await {
                say(ok, what);
            }
        }
    }
    say(true, on_store_failure(config.on_store_failure).into());
    if let Some(pods) = config.ha.as_ref().and_then(|ha| ha.pods.as_ref()) {
        let (ok, what) = ha::check(pods).await;
        say(ok, what);
    }
    let nodes = nodes(config, &mut say).await;
    if let Some(FenceMeans::Exec(words)) = &config.fence {
        let mistake = fence::mistake(words);
        say(mistake.is_none(), mistake.unwrap_or_else(|| format!("the fence: {}", words.join(" "))));
    } else if let Some(FenceMeans::Kubernetes(namespace)) = &config.fence {
        let (ok, what) = fence::pods(namespace, &nodes).await;
        say(ok, what);
    } else if config.unfenced_silence {
        say(
            true,
            "unfenced_silence: a silent node is left without a fence; it may execute old writes later".into(),
        );
    } else {
        say(true, "no fence: clients of a silent node wait for it".into());
    }
    let (mut answering, mut profiles) = (0, Vec::new());
    for node in &nodes {
        match timeout(NODE, probe::open(&node.address)).await {
            Ok(Ok(_)) => {
                answering += 1;
                say(true, format!("node {} at {} answers", node.name, node.address));
                let visitor = probe::visitor(config.compare.as_ref(), &credentials, &node.address);
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
    alike(config, &credentials, &profiles, &mut say);
    if config.ha.is_some()
        && let StoreUrl::Etcd(_) = &config.store
    {
        let (ok, what) = leader(&config.store).await;
        say(ok, what);
    }
    if let Some(vip) = &config.vip {
        for (ok, what) in floating_address(vip, config.ha.is_some()).await {
            say(ok, what);
        }
    }
    let heartbeat = config.ha.as_ref().map(|ha| ha.heartbeat);
    let floats = |address: SocketAddr| {
        config.vip.as_ref().is_some_and(|vip| vip.addresses.iter().any(|(ip, _)| *ip == address.ip()))
    };
    for (what, address) in
        [("listen", Some(config.listen)), ("[admin] listen", config.admin), ("[ha] heartbeat", heartbeat)]
    {
        let Some(address) = address else { continue };
        if floats(address) {
            say(true, format!("{what} = \"{address}\" is listened on while this proxy serves"));
            continue;
        }
        match net::listen(address) {
            Ok(_) => say(true, format!("{what} = \"{address}\" is free")),
            Err(error) => {
                say(false, format!("{what} = \"{address}\": {}", net::why_not(address, &error)));
            }
        }
    }
    good
}

/// The nodes that are listed, or that can be found.
async fn nodes(config: &Config, say: &mut impl FnMut(bool, String)) -> Vec<NodeConfig> {
    let Some(means) = &config.find else { return config.nodes.clone() };
    let found = match timeout(NODE, find::now(means)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            say(false, format!("{means}: {error:#}"));
            return Vec::new();
        }
        Err(_) => {
            say(false, format!("{means}: no answer"));
            return Vec::new();
        }
    };
    let names: Vec<_> = found
        .iter()
        .map(|node| {
            format!("{} at {}{}", node.name, node.address, if node.leaving { ", to end" } else { "" })
        })
        .collect();
    let is_empty = names.is_empty();
    say(
        !is_empty,
        format!("{means}: {}", if is_empty { "no node is found".into() } else { names.join(", ") }),
    );
    found.into_iter().map(NodeConfig::from).collect()
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
                    match volume {
                        Volume::Serial(serial) => {
                            say(true, format!("[compare] {share} at {node}: volume serial number {serial:08X}"));
                        }
                        Volume::Refused(status) => {
                            say(false, format!("[compare] {share} at {node}: refused with {status:#010x}"));
                        }
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

/// What the key files are good for.
fn key_files(config: &Config) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    if config.ntlm.is_none() && config.keytab.is_none() {
        found.push((true, "no [credentials]: only guests and anonymous users survive a node".into()));
    }
    if let Some(path) = &config.ntlm {
        found.push(match KeyFile::<Smbpasswd>::open(path) {
            Ok(file) => {
                let users = file.get().len();
                (users > 0, format!("{}: {users} user(s) can be moved to another node", path.display()))
            }
            Err(error) => (false, format!("the {} {} {error}", Smbpasswd::NAME, path.display())),
        });
    }
    if let Some(path) = &config.keytab {
        match KeyFile::<Keytab>::open(path) {
            Ok(file) => found.extend(keytab(path, &file.get())),
            Err(error) => found.push((false, format!("the {} {} {error}", Keytab::NAME, path.display()))),
        }
    }
    found
}

/// The principals of a keytab with their keys' versions and types, and what one would miss.
fn keytab(path: &Path, keytab: &Keytab) -> Vec<(bool, String)> {
    let path = path.display();
    if keytab.usable() == 0 {
        return vec![(false, format!("{path}: no key that can be worked with; export it again"))];
    }
    // What one key of each principal and version is called, in order of the names.
    let mut types: BTreeMap<(&str, u32), Vec<String>> = BTreeMap::new();
    for entry in keytab.entries() {
        let name = type_name(entry.etype, entry.key().is_some());
        types.entry((&entry.principal, entry.kvno)).or_default().push(name);
    }
    let line = |((principal, kvno), types): (&(&str, u32), &Vec<String>)| {
        (true, format!("{path}: {principal}, kvno {kvno}: {}", types.join(", ")))
    };
    let mut found: Vec<_> = types.iter().map(line).collect();
    let has = |etype: EncType| keytab.entries().iter().any(|entry| entry.etype == etype.number());
    let missing: Vec<_> = EncType::ALL.into_iter().filter(|etype| !has(*etype)).map(EncType::name).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        found.push((
            true,
            format!("{path}: no keys of {missing}: sessions by tickets of these are not protected"),
        ));
    }
    if !keytab.entries().iter().any(|entry| entry.principal.to_lowercase().starts_with("cifs/")) {
        found.push((true, format!("{path}: no principal of it begins with cifs/; it is good only if one of these accounts has that name as an alias")));
    }
    found
}

fn type_name(number: i32, usable: bool) -> String {
    match EncType::from_number(number.into()) {
        Some(etype) if usable => etype.name().into(),
        Some(etype) => format!("{} (its key has the wrong length)", etype.name()),
        None => format!("type {number} (not used)"),
    }
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

fn on_store_failure(then: OnFailure) -> &'static str {
    match then {
        OnFailure::Serve => {
            "on_store_failure: while the store fails, clients are served unprotected against the proxy's own death"
        }
        OnFailure::Refuse => "on_store_failure: while the store fails, clients are refused",
    }
}

/// Each member of etcd, by itself.
async fn etcd(options: &EtcdOptions) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    for member in &options.members {
        let alone = EtcdOptions { members: vec![member.clone()], ..options.clone() };
        found.push(match may_write(alone).await {
            Ok(records) => {
                (true, format!("etcd at {member} answers: {records} record(s) below {}", options.prefix))
            }
            Err(error) => (false, error.to_string()),
        });
    }
    if let Some(tls) = &options.tls
        && let Some((_, key)) = &tls.identity
    {
        found.extend(too_open("key", key));
    }
    if let Some((_, file)) = &options.user {
        found.extend(too_open("password_file", file));
    }
    if options.members.len() == 2 {
        found.push((true, "etcd with two members stands still when one is down; three bear it".into()));
    }
    found
}

/// How many records there are. A change under a condition that does not hold changes nothing, but shows whether it may.
async fn may_write(options: EtcdOptions) -> Result<usize, StoreError> {
    let store = store::open(&StoreUrl::Etcd(options)).await?;
    let nothing = Change::Delete("check".into());
    let never = Guard { key: "check".into(), value: b"never".to_vec() };
    match store.commit(Batch::new(vec![nothing]).guarded(never)).await {
        Ok(()) | Err(StoreError::Fenced(_)) => Ok(store.list(String::new()).await?.len()),
        Err(error) => Err(error),
    }
}

/// Who serves, as the store has it, and whether it can be heard from here.
async fn leader(url: &StoreUrl) -> (bool, String) {
    let found = async {
        let store = store::open(url).await.map_err(|error| error.to_string())?;
        let found = store.list(LeaderRecord::KEY.into()).await.map_err(|error| error.to_string())?;
        let record = found.into_iter().find(|(key, _)| key.0 == LeaderRecord::KEY);
        record
            .map(|(_, value)| LeaderRecord::from_bytes(&value).map_err(|error| error.to_string()))
            .transpose()
    };
    let record = match found.await {
        Ok(Some(record)) if !record.released => record,
        Ok(_) => return (true, "[ha]: no proxy serves now".into()),
        Err(error) => return (false, format!("[ha]: who serves is not known: {error}")),
    };
    let LeaderRecord { name, heartbeat, .. } = record;
    match timeout(NODE, TcpStream::connect(&heartbeat)).await {
        Ok(Ok(_)) => (true, format!("[ha]: {name} serves, and is heard at {heartbeat}")),
        Ok(Err(error)) => (
            false,
            format!(
                "[ha]: {name} serves, but is not heard at {heartbeat}: {error}; is that address reachable from here?"
            ),
        ),
        Err(_) => {
            (false, format!("[ha]: {name} serves, but is not heard at {heartbeat}; is a firewall between?"))
        }
    }
}

/// Whether the floating address could be taken.
async fn floating_address(vip: &VipConfig, is_shared: bool) -> Vec<(bool, String)> {
    let (config, interface) = (vip.clone(), &vip.interface);
    let owners = match spawn_blocking(move || Vip::owners(config)).await {
        Ok(Ok(owners)) => owners,
        Ok(Err(error)) => return vec![(false, format!("{error:#}"))],
        Err(error) => return vec![(false, error.to_string())],
    };
    let told = owners.into_iter().map(|(ip, owner)| match owner {
        None => (true, format!("[vip] address {ip}: nobody else has it on the network of {interface}")),
        Some(mac) if is_shared => {
            (true, format!("[vip] address {ip} is at {mac} now; that should be the proxy that serves"))
        }
        Some(mac) => (
            false,
            format!("[vip] address {ip} is in use by {mac} on the network of {interface}; take it away there, or choose another"),
        ),
    });
    told.collect()
}

/// A file with a secret that others can read.
fn too_open(option: &str, path: &Path) -> Option<(bool, String)> {
    let mode = std::fs::metadata(path).ok()?.mode();
    (mode & 0o007 != 0).then(|| {
        let path = path.display();
        (
            false,
            format!(
                "[store] {option} {path} has mode {:04o}: others can read it; chmod 600 {path}",
                mode & 0o7777
            ),
        )
    })
}

/// The store's directory, looked at without opening what a running proxy may have open.
fn directory(dir: &Path) -> (bool, String) {
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
    fn what_a_keytab_has_and_lacks_is_said() {
        let entry = |etype: u8, len: u8| {
            let mut entry = vec![0, 1, 0, 1, b'R', 0, 4];
            entry.extend(b"HOST");
            entry.extend([0, 0, 0, 1, 0, 0, 0, 0, 3, 0, etype, 0, len]);
            entry.extend(vec![0xa7; len.into()]);
            [&u32::try_from(entry.len()).unwrap().to_be_bytes()[..], &entry].concat()
        };
        let bytes = [vec![5, 2], entry(18, 32), entry(17, 9), entry(3, 8)].concat();
        let said = keytab(Path::new("k"), &Keytab::parse(&bytes).unwrap());
        let lines: Vec<_> = said.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            lines[0],
            "k: HOST@R, kvno 3: aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96 (its key has the wrong length), \
             type 3 (not used)"
        );
        assert!(lines[1].contains("no keys of") && lines[1].contains("arcfour-hmac"), "{}", lines[1]);
        assert!(!lines[1].contains("aes256-cts-hmac-sha1-96"), "{}", lines[1]);
        assert!(lines[2].contains("cifs/"), "{}", lines[2]);
        assert!(!keytab(Path::new("k"), &Keytab::parse(&[5, 2]).unwrap())[0].0);
    }

    #[test]
    fn a_store_is_a_directory_that_can_be_written_or_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(directory(dir.path()).0);
        assert!(directory(&dir.path().join("a/b")).1.contains("will be made"));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(directory(&file).1.contains("is no directory"));
        assert!(directory(&file.join("a")).1.contains("is no directory"));
    }
}
