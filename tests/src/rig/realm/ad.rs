//! A realm kept by Samba's own domain controller, and nodes that are members of its domain under one account.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use super::{ADDRESS, CONTROLLER, GHOST, HOST, KEYTAB, REALM, config, run};
use crate::rig::{
    Scratch,
    net::{self, Net},
    node::{Membership, Node, PASSWORD, USER, WORKGROUP},
    wait_until,
};

/// Winbind gives domain users the ids that begin here.
const FIRST_ID: u32 = 80_000;

/// Samba's programs look for winbindd in one place only, so that a directory of our own is mounted there.
const START: &str = r#"
set -e
mkdir -p /run/samba
mount --bind "$1" /run/samba
exec samba --interactive --no-process-group --configfile="$2"
"#;

/// A running domain controller. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Ad {
    dir: PathBuf,
    child: Child,
    /// Of the domain's users that the nodes are to know.
    accounts: Vec<(String, u32)>,
}

impl Ad {
    /// Makes the domain and starts its controller.
    pub(super) fn start(net: &Net, dir: &Path) -> Result<Self> {
        let (template, user) = template()?;
        let domain = dir.join("domain");
        let [from, to] = [&template, &domain].map(|path| path.display().to_string());
        net::run(&["cp", "-r", &from, &to])?;
        fs::create_dir_all(dir.join("run"))?;
        let settings = dir.join("controller.conf");
        fs::write(&settings, configuration(&domain))?;
        let log = fs::File::create(dir.join("controller.stdout"))?;
        let child = net
            .command(HOST, "unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", START, "controller"])
            .arg(dir.join("run"))
            .arg(&settings)
            .env("KRB5_CONFIG", config(dir))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the domain controller")?;
        let accounts = vec![(format!("{WORKGROUP}\\{USER}"), FIRST_ID + user)];
        let started = Self { dir: dir.to_owned(), child, accounts };
        for port in [88, 389, 445] {
            let address = format!("{ADDRESS}:{port}");
            wait_until(&format!("the domain controller listens at {port}"), Duration::from_secs(30), || {
                net.connect("client", &address).is_ok()
            })?;
        }
        Ok(started)
    }

    /// What the members of the domain have.
    pub(super) fn membership(&self) -> Membership {
        let global = vec![
            format!("realm = {REALM}"),
            "server role = member server".into(),
            "security = ads".into(),
            format!("password server = {CONTROLLER}"),
            // It is one account's password that all nodes have: none of them may change it alone.
            "machine password timeout = 0".into(),
            "idmap config * : backend = tdb".into(),
            "idmap config * : range = 70000-79999".into(),
            format!("idmap config {WORKGROUP} : backend = rid"),
            format!("idmap config {WORKGROUP} : range = {FIRST_ID}-99999"),
            "winbindd socket directory = /run/samba/winbindd".into(),
        ];
        Membership { global, accounts: self.accounts.clone(), winbind: true }
    }

    /// Makes the node's computer account; the others take it over with the node's secrets.
    pub(super) fn join(&self, node: &Node) -> Result<()> {
        let mut command = self.administer(node);
        command.args(["join", "-U", &format!("Administrator%{PASSWORD}"), "--no-dns-updates"]);
        run(&mut command, "").context("joining the domain")?;
        self.write_keytab(node)
    }

    /// A new password of the nodes' account.
    pub(super) fn rotate(&self, nodes: &[Node]) -> Result<()> {
        let (first, others) = nodes.split_first().context("no nodes")?;
        run(self.administer(first).args(["changetrustpw"]), "").context("net ads changetrustpw")?;
        for node in others {
            node.copy_users(first)?;
        }
        self.write_keytab(first)
    }

    fn write_keytab(&self, node: &Node) -> Result<()> {
        let mut command = self.administer(node);
        command.args(["keytab", "create", "--machine-pass"]);
        // The nodes themselves use their secrets.
        command.arg("--option=kerberos method=secrets and keytab");
        run(&mut command, "").context("net ads keytab create")?;
        fs::metadata(self.dir.join(KEYTAB)).context("no keytab was written")?;
        Ok(())
    }

    fn administer(&self, node: &Node) -> Command {
        let mut command = node.tool("/usr/bin/net");
        command.env("KRB5_CONFIG", config(&self.dir));
        command.env("KRB5_KTNAME", format!("FILE:{}", self.dir.join(KEYTAB).display()));
        command.args(["-S", CONTROLLER, "ads"]);
        command
    }
}

impl Drop for Ad {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A domain with our users, that has never run, and the last part of the test user's SID. It is made once by a process,
/// since that takes seconds.
fn template() -> Result<(PathBuf, u32)> {
    static MADE: Mutex<Option<(Scratch, u32)>> = Mutex::new(None);
    let mut made = MADE.lock().map_err(|_| anyhow!("making the domain failed before"))?;
    if let Some((scratch, user)) = made.as_ref() {
        return Ok((scratch.path().to_owned(), *user));
    }
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let mut provision = Command::new("samba-tool");
    provision.args(["domain", "provision", "--server-role=dc", "--dns-backend=NONE", "--host-name=dc"]);
    provision.args([format!("--realm={REALM}"), format!("--domain={WORKGROUP}")]);
    provision.args([format!("--adminpass={PASSWORD}"), format!("--host-ip={ADDRESS}")]);
    provision.arg(format!("--targetdir={}", dir.display()));
    run(&mut provision, "").context("samba-tool domain provision")?;
    let settings = dir.join("etc/smb.conf");
    fs::write(&settings, configuration(dir))?;
    for user in [USER, GHOST] {
        let mut create = Command::new("samba-tool");
        create.args(["user", "create", user, PASSWORD, "--configfile"]).arg(&settings);
        run(&mut create, "").context("samba-tool user create")?;
    }
    for dir in ["cache", "pid", "ncalrpc"].map(|name| dir.join(name)) {
        fs::create_dir_all(dir)?;
    }
    let path = dir.to_owned();
    let user = relative_id(&settings, USER)?;
    *made = Some((scratch, user));
    Ok((path, user))
}

/// The last part of a user's SID.
fn relative_id(settings: &Path, user: &str) -> Result<u32> {
    let mut show = Command::new("samba-tool");
    show.args(["user", "show", user, "--attributes=objectSid", "--configfile"]).arg(settings);
    let shown = run(&mut show, "").context("samba-tool user show")?;
    let sid =
        shown.lines().find_map(|line| line.strip_prefix("objectSid: ")).context("a user without SID")?;
    sid.rsplit('-').next().and_then(|id| id.trim().parse().ok()).with_context(|| format!("the SID {sid}"))
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[global]
   netbios name = DC
   workgroup = {WORKGROUP}
   realm = {REALM}
   server role = active directory domain controller
   server services = s3fs, rpc, ldap, cldap, kdc, winbindd
   tls enabled = no
   private dir = {dir}/private
   lock directory = {dir}
   state directory = {dir}/state
   cache directory = {dir}/cache
   pid directory = {dir}/pid
   ncalrpc dir = {dir}/ncalrpc
   winbindd socket directory = /run/samba/winbindd
   log file = {dir}/samba.log
   interfaces = {ADDRESS}
   bind interfaces only = yes
   disable netbios = yes
   rpc start on demand helpers = no
[sysvol]
   path = {dir}/state/sysvol
   read only = no
"
    )
}
