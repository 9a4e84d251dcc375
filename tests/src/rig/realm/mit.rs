//! A realm kept by MIT's KDC.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{ADDRESS, GHOST, HOST, KEYTAB, NAME, REALM, STALE_KEYTAB, WRONG_KEYTAB, config, run};
use crate::rig::{
    net::Net,
    node::{PASSWORD, STRANGER, USER},
    wait_until,
};

/// A running KDC. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Mit {
    dir: PathBuf,
    child: Child,
}

impl Mit {
    /// Makes the realm and starts its KDC.
    pub(super) fn start(net: &Net, dir: &Path) -> Result<Self> {
        fs::write(dir.join("kdc.conf"), configuration(dir))?;
        let mut create = tool(dir, "/usr/sbin/kdb5_util");
        run(create.args(["create", "-s", "-r", REALM, "-P", "master"]), "").context("kdb5_util")?;
        for user in [USER, STRANGER, GHOST] {
            administer(dir, &["addprinc", "-pw", PASSWORD, user])?;
        }
        // A server that stands alone refuses a ticket with a PAC, which no domain controller has signed for it.
        administer(dir, &["addprinc", "-randkey", "+no_auth_data_required", &service()])?;
        add_service_key(dir, STALE_KEYTAB)?;
        add_service_key(dir, KEYTAB)?;
        let log = fs::File::create(dir.join("kdc.stdout"))?;
        let child = net
            .command(HOST, "/usr/sbin/krb5kdc")
            .args(["-n", "-r", REALM])
            .envs(environment(dir))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting krb5kdc")?;
        let started = Self { dir: dir.to_owned(), child };
        write_wrong_keytab(dir)?;
        let address = format!("{ADDRESS}:88");
        wait_until("the KDC listens", Duration::from_secs(20), || net.connect("client", &address).is_ok())?;
        Ok(started)
    }

    /// A new key of the service, under the next number, added to a keytab.
    pub(super) fn add_service_key(&self, keytab: &str) -> Result<()> {
        add_service_key(&self.dir, keytab)
    }

    /// The same, of one encryption type alone.
    pub(super) fn add_service_key_of(&self, keytab: &str, encryption_type: &str) -> Result<()> {
        let keytab = self.dir.join(keytab).display().to_string();
        let salted = format!("{encryption_type}:normal");
        administer(&self.dir, &["ktadd", "-k", &keytab, "-e", &salted, &service()]).map(drop)
    }

    /// Tickets for the service last no longer.
    pub(super) fn limit_tickets(&self, lifetime: Duration) -> Result<()> {
        let words = ["modprinc", "-maxlife", &format!("{}s", lifetime.as_secs()), &service()];
        administer(&self.dir, &words).map(drop)
    }
}

impl Drop for Mit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn service() -> String {
    format!("cifs/{NAME}")
}

fn add_service_key(dir: &Path, keytab: &str) -> Result<()> {
    administer(dir, &["ktadd", "-k", &dir.join(keytab).display().to_string(), &service()])?;
    Ok(())
}

/// A keytab with the number of the service's present key, and another key.
fn write_wrong_keytab(dir: &Path) -> Result<()> {
    let shown = run(tool(dir, "klist").arg("-k").arg(dir.join(KEYTAB)), "").context("klist")?;
    let last = shown.lines().last().and_then(|line| line.split_whitespace().next());
    let number: u32 = last.and_then(|word| word.parse().ok()).context("no key number")?;
    let path = dir.join(WRONG_KEYTAB);
    let service = service();
    let orders = format!(
        "addent -password -p {service} -k {number} -e aes256-cts-hmac-sha1-96\nwrong\nwkt {}\n",
        path.display()
    );
    run(&mut tool(dir, "ktutil"), &orders).context("ktutil")?;
    fs::metadata(&path).context("ktutil wrote no keytab")?;
    Ok(())
}

fn administer(dir: &Path, words: &[&str]) -> Result<String> {
    let mut command = tool(dir, "/usr/sbin/kadmin.local");
    run(command.args(["-r", REALM]).args(words), "").with_context(|| format!("kadmin.local {words:?}"))
}

fn tool(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.envs(environment(dir));
    command
}

fn environment(dir: &Path) -> [(&'static str, PathBuf); 2] {
    [("KRB5_CONFIG", config(dir)), ("KRB5_KDC_PROFILE", dir.join("kdc.conf"))]
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[kdcdefaults]
  kdc_listen = {ADDRESS}:88
  kdc_tcp_listen = {ADDRESS}:88
[realms]
  {REALM} = {{
    database_name = {dir}/principal
    key_stash_file = {dir}/stash
    acl_file = {dir}/acl
    max_life = 10h
    supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal
  }}
[logging]
  kdc = FILE:{dir}/kdc.log
"
    )
}
