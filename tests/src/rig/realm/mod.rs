//! Kerberos realms of the rig's own, and what nodes, proxy and clients have to know of them.
//!
//! The KDC lives in a namespace of its own. Nothing asks a name server: the clients know the one name by their hosts file.

mod mit;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

use self::mit::Mit;
use super::{
    net::{FLOATING, Net},
    node::PASSWORD,
};

/// The name of the floating address. Tickets are for it, whichever node serves.
pub(crate) const NAME: &str = "cluster.understudy.test";
/// The realm.
pub(crate) const REALM: &str = "UNDERSTUDY.TEST";
/// A user whom the realm knows, and no node.
pub(crate) const GHOST: &str = "ghost";
/// The keytab that the nodes have, in the realm's directory.
pub(crate) const KEYTAB: &str = "service.keytab";

/// The namespace of the KDC, and its address.
const HOST: &str = "kdc";
const ADDRESS: &str = "10.77.0.5";

/// Which software keeps the realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MIT's KDC, and nodes that stand alone.
    Mit,
}

/// A running realm. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Realm {
    dir: PathBuf,
    keeper: Keeper,
}

#[derive(Debug)]
enum Keeper {
    Mit(Mit),
}

impl Realm {
    /// Starts a KDC that knows the test user and the service, and waits until it answers.
    pub(crate) fn start(net: &mut Net, root: &Path, kind: Kind) -> Result<Self> {
        let dir = root.join("realm");
        fs::create_dir_all(&dir)?;
        fs::write(config(&dir), client_configuration())?;
        net.add_host(HOST, ADDRESS)?;
        net.add_names("client", &[(FLOATING, NAME)])?;
        let keeper = match kind {
            Kind::Mit => Keeper::Mit(Mit::start(net, &dir)?),
        };
        Ok(Self { dir, keeper })
    }

    /// A file in its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What it adds to the `[global]` of each node.
    pub(crate) fn node_lines(&self) -> Vec<String> {
        match &self.keeper {
            Keeper::Mit(_) => vec![
                format!("realm = {REALM}"),
                "kerberos method = dedicated keytab".into(),
                format!("dedicated keytab file = {}", self.file(KEYTAB).display()),
            ],
        }
    }

    /// What it adds to the environment of whoever speaks Kerberos.
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("KRB5_CONFIG", config(&self.dir))]
    }

    /// Gets a user's first ticket by the password, as one does after logging in. The credential cache is new.
    pub(crate) fn log_in(&self, net: &Net, user: &str, lifetime: &str) -> Result<Cache> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.file(&format!("ccache-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let cache = Cache { path, config: config(&self.dir) };
        cache.log_in(net, user, lifetime)?;
        Ok(cache)
    }

    /// Gives the service a new key, under the next number, in the keytab of the nodes beside the old ones.
    pub(crate) fn rotate(&self) -> Result<()> {
        match &self.keeper {
            Keeper::Mit(mit) => mit.add_service_key(KEYTAB),
        }
    }
}

/// The tickets of a user.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    config: PathBuf,
}

impl Cache {
    /// What programs call it.
    pub(crate) fn name(&self) -> String {
        format!("FILE:{}", self.path.display())
    }

    /// Replaces what is there by a new first ticket.
    pub(crate) fn log_in(&self, net: &Net, user: &str, lifetime: &str) -> Result<()> {
        let mut command = self.command(net, "kinit");
        command.args(["-l", lifetime, user]);
        run(&mut command, &format!("{PASSWORD}\n")).context("kinit")?;
        Ok(())
    }

    /// What `klist` says of it.
    pub(crate) fn list(&self, net: &Net) -> Result<String> {
        run(&mut self.command(net, "klist"), "")
    }

    /// A program of the clients that finds these tickets.
    pub(crate) fn command(&self, net: &Net, program: &str) -> Command {
        let mut command = net.command("client", program);
        command.env("KRB5_CONFIG", &self.config).env("KRB5CCNAME", self.name());
        command
    }
}

/// Runs a program to its end, with this to read. What it printed; an error is its own.
fn run(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("spawn")?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {} {printed}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(printed)
}

/// Where a realm's krb5.conf is.
fn config(dir: &Path) -> PathBuf {
    dir.join("krb5.conf")
}

fn client_configuration() -> String {
    let domain = REALM.to_lowercase();
    format!(
        "[libdefaults]
  default_realm = {REALM}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
[realms]
  {REALM} = {{
    kdc = {ADDRESS}
  }}
[domain_realm]
  .{domain} = {REALM}
"
    )
}
