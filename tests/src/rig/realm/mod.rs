//! Kerberos realms of the rig's own, and what nodes, proxy and clients have to know of them.
//!
//! The KDC lives in a namespace of its own. Nothing asks a name server: the clients know the one name by their hosts file.

mod ad;
mod mit;
mod presented;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use understudy_core::auth::kerberos::Ticket;

use self::{ad::Ad, mit::Mit};
use super::{
    net::{FLOATING, Net},
    node::{Membership, Node, PASSWORD},
};

/// The name of the floating address. Tickets are for it, whichever node serves.
pub(crate) const NAME: &str = "cluster.understudy.test";
/// The realm.
pub(crate) const REALM: &str = "UNDERSTUDY.TEST";
/// A user whom the realm knows, and no node.
pub(crate) const GHOST: &str = "ghost";
/// The keytab that the nodes have, in the realm's directory.
pub(crate) const KEYTAB: &str = "service.keytab";
/// One with a former key only. MIT's realm has it.
pub(crate) const STALE_KEYTAB: &str = "stale.keytab";
/// One with another key under the present number. MIT's realm has it.
pub(crate) const WRONG_KEYTAB: &str = "wrong.keytab";

/// The namespace of the KDC, and its address.
const HOST: &str = "kdc";
const ADDRESS: &str = "10.77.0.5";
/// What the nodes of a domain call its controller.
const CONTROLLER: &str = "dc.understudy.test";

/// What stands in the hosts files.
pub(crate) const NAMES: &[(&str, &str)] = &[(FLOATING, NAME), (ADDRESS, CONTROLLER)];

/// Which software keeps the realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// MIT's KDC, and nodes that stand alone.
    Mit,
    /// Samba's domain controller, and nodes that are members of the domain under one account.
    Ad,
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
    Ad(Ad),
}

impl Realm {
    /// Starts a KDC that knows the test user and the service, and waits until it answers.
    pub(crate) fn start(net: &mut Net, root: &Path, kind: Kind) -> Result<Self> {
        let dir = root.join("realm");
        fs::create_dir_all(&dir)?;
        fs::write(config(&dir), client_configuration())?;
        net.add_host(HOST, ADDRESS)?;
        net.add_names("client", NAMES)?;
        let keeper = match kind {
            Kind::Mit => Keeper::Mit(Mit::start(net, &dir)?),
            Kind::Ad => Keeper::Ad(Ad::start(net, &dir)?),
        };
        Ok(Self { dir, keeper })
    }

    /// A file in its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the first node a member, for all of them.
    pub(crate) fn join(&self, node: &Node) -> Result<()> {
        match &self.keeper {
            Keeper::Mit(_) => Ok(()),
            Keeper::Ad(ad) => ad.join(node),
        }
    }

    /// What it makes of the nodes.
    pub(crate) fn membership(&self) -> Membership {
        match &self.keeper {
            Keeper::Mit(_) => Membership {
                global: vec![
                    format!("realm = {REALM}"),
                    "kerberos method = dedicated keytab".into(),
                    format!("dedicated keytab file = {}", self.file(KEYTAB).display()),
                ],
                ..Membership::default()
            },
            Keeper::Ad(ad) => ad.membership(),
        }
    }

    /// What it adds to the environment of whoever speaks Kerberos.
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("KRB5_CONFIG", config(&self.dir))]
    }

    /// Gives the service a new key of this encryption type only. Of MIT's realm only.
    pub(crate) fn rotate_to(&self, encryption_type: &str) -> Result<()> {
        match &self.keeper {
            Keeper::Mit(mit) => mit.add_service_key_of(KEYTAB, encryption_type),
            Keeper::Ad(_) => bail!("the domain controller makes a key of each type"),
        }
    }

    /// From now on tickets for the service are so short-lived. Of MIT's realm only.
    pub(crate) fn limit_tickets(&self, lifetime: Duration) -> Result<()> {
        match &self.keeper {
            Keeper::Mit(mit) => mit.limit_tickets(lifetime),
            Keeper::Ad(_) => bail!("the domain controller has one lifetime for all"),
        }
    }

    /// Gets a user's first ticket by the password, as one does after logging in. The credential cache is new.
    pub(crate) fn log_in(&self, net: &Net, user: &str) -> Result<Cache> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.log_in_to(self.file(&format!("ccache-{}", COUNT.fetch_add(1, Ordering::Relaxed))), net, user)
    }

    /// The same, with a file for them.
    pub(crate) fn log_in_to(&self, path: PathBuf, net: &Net, user: &str) -> Result<Cache> {
        let cache = Cache { path, config: config(&self.dir) };
        run(cache.command(net, "kinit").arg(user), &format!("{PASSWORD}\n")).context("kinit")?;
        Ok(cache)
    }

    /// A user's ticket for the service, for [`Client`](crate::client::Client), to be presented to any node of the site.
    pub(crate) fn ticket(&self, net: &Net, node: &Node, user: &str) -> Result<Arc<Ticket>> {
        let token = presented::to(net, node, &self.log_in(net, user)?)?;
        presented::open(&token, &self.file(KEYTAB))
    }

    /// Gives the service a new key, under the next number, in the keytab of the nodes beside the old ones.
    pub(crate) fn rotate(&self, nodes: &[Node]) -> Result<()> {
        match &self.keeper {
            Keeper::Mit(mit) => mit.add_service_key(KEYTAB),
            Keeper::Ad(ad) => ad.rotate(nodes),
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
    fn name(&self) -> String {
        format!("FILE:{}", self.path.display())
    }

    /// What `klist` says of it, with encryption types.
    pub(crate) fn list(&self, net: &Net) -> Result<String> {
        run(self.command(net, "klist").arg("-e"), "")
    }

    /// smbclient with these tickets. Its cache of names is not the machine's.
    pub(crate) fn smbclient(&self, net: &Net) -> Command {
        self.samba(net, "smbclient")
    }

    /// The same for another client of Samba's.
    pub(crate) fn samba(&self, net: &Net, program: &str) -> Command {
        let mut command = self.command(net, program);
        command.arg(format!("--use-krb5-ccache={}", self.name()));
        command.arg(format!("--option=lock directory={}.lock", self.path.display()));
        command
    }

    /// A program of the clients that finds these tickets.
    fn command(&self, net: &Net, program: &str) -> Command {
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
    kpasswd_server = {ADDRESS}
  }}
[domain_realm]
  .{domain} = {REALM}
"
    )
}
