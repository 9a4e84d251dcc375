//! The proxy under test, as its own process in the hub.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    net::{FLOATING, Net},
    node::Node,
    wait_until,
};

/// Where a proxy is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    pub(crate) address: &'static str,
    pub(crate) admin: &'static str,
    /// The namespace that it runs in.
    pub(crate) space: &'static str,
}

impl Door {
    /// The floating address.
    pub(crate) const MAIN: Self = Self { address: FLOATING, admin: "127.0.0.1:9645", space: "hub" };
}

/// What a proxy is told beside its nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Orders<'a> {
    /// The end of its configuration: keys first, then tables.
    pub(crate) config: &'a str,
    pub(crate) keytab: Option<PathBuf>,
    /// How far its clock is off, as libfaketime is told.
    pub(crate) clock: Option<&'a str>,
    /// Whether every Link is in Bridge from its first session on.
    pub(crate) bridge: bool,
    /// The lines of the table `store`; `None`: a file in the proxy's directory.
    pub(crate) store: Option<String>,
}

/// libfaketime, as Debian installs it.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// The running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    environment: Vec<(&'static str, String)>,
    admin: &'static str,
    pub(crate) space: &'static str,
}

impl Proxy {
    /// Writes a configuration for these nodes, and starts the proxy.
    pub(crate) fn start(net: &Net, dir: &Path, nodes: &[Node], orders: &Orders<'_>) -> Result<Self> {
        Self::start_at(net, dir, nodes, orders, Door::MAIN)
    }

    /// The same, elsewhere; `dir` is for its files alone.
    pub(crate) fn start_at(
        net: &Net,
        dir: &Path,
        nodes: &[Node],
        orders: &Orders<'_>,
        door: Door,
    ) -> Result<Self> {
        let mut proxy = Self::spawn_at(net, dir, nodes, orders, door)?;
        proxy.await_ready(net)?;
        Ok(proxy)
    }

    /// The same, not waited for.
    pub(crate) fn spawn_at(
        net: &Net,
        dir: &Path,
        nodes: &[Node],
        orders: &Orders<'_>,
        door: Door,
    ) -> Result<Self> {
        let config = dir.join("understudy.toml");
        fs::write(&config, configuration(dir, nodes, orders, door)?)?;
        let log = dir.join("proxy.log");
        fs::File::create(&log)?;
        let environment = environment(orders);
        let child = spawn(net, door.space, &config, &log, &environment)?;
        Ok(Self { child, config, log, environment, admin: door.admin, space: door.space })
    }

    /// Starts it again after its end, as it was started: what it wrote is still there, and its log goes on.
    pub(crate) fn start_again(&mut self, net: &Net) -> Result<()> {
        self.spawn_again(net)?;
        self.await_ready(net)
    }

    /// The same, not waited for.
    pub(crate) fn spawn_again(&mut self, net: &Net) -> Result<()> {
        self.child = spawn(net, self.space, &self.config, &self.log, &self.environment)?;
        Ok(())
    }

    /// Waits until it stands by, and has seen who leads.
    pub(crate) fn await_standby(&self, net: &Net) -> Result<()> {
        wait_until("the proxy stands by", Duration::from_secs(20), || {
            self.get(net, "/ready").is_ok_and(|(status, text)| status == 503 && text.contains("leads"))
        })
    }

    /// Its configuration says this from its next start on, instead of that.
    pub(crate) fn rewrite(&self, that: &str, this: &str) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        ensure!(text.contains(that), "the configuration does not say {that}");
        Ok(fs::write(&self.config, text.replace(that, this))?)
    }

    /// Starts it again without these capabilities, as `setpriv` names them.
    pub(crate) fn spawn_without(&mut self, net: &Net, capabilities: &str) -> Result<()> {
        let file = fs::File::options().append(true).open(&self.log)?;
        let mut command = net.command(self.space, "setpriv");
        command.arg(format!("--bounding-set={capabilities}")).arg(format!("--inh-caps={capabilities}"));
        command.arg(binary()?).args(["run", "--config"]).arg(&self.config);
        self.child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(())
    }

    /// Has a signal sent to it.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, signal).context("signalling the proxy")
    }

    pub(crate) fn await_ready(&mut self, net: &Net) -> Result<()> {
        let listens = wait_until("the proxy is ready", Duration::from_secs(20), || {
            self.get(net, "/ready").is_ok_and(|r| r.0 == 200)
        });
        if listens.is_err() {
            bail!("the proxy does not start: {}", self.log_text());
        }
        self.child.try_wait()?;
        Ok(())
    }

    /// `kill -9`; it is gone when this returns, and the kernel has ended its connections.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing the proxy")?;
        self.child.wait().context("killing the proxy").map(|_| ())
    }

    /// Asks the admin page.
    pub(crate) fn get(&self, net: &Net, path: &str) -> Result<(u16, String)> {
        self.ask(net, "GET", path)
    }

    /// Asks the admin page by another method.
    pub(crate) fn ask(&self, net: &Net, method: &str, path: &str) -> Result<(u16, String)> {
        let mut stream = net.connect(self.space, self.admin)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    /// The metrics, by name with labels.
    pub(crate) fn metrics(&self, net: &Net) -> Result<BTreeMap<String, f64>> {
        let (_, page) = self.get(net, "/metrics")?;
        Ok(page
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// Everything logged so far.
    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The log's records.
    pub(crate) fn log(&self) -> Vec<serde_json::Value> {
        self.log_text().lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// What was logged as an error, and panics.
    pub(crate) fn errors(&self) -> Vec<String> {
        let is_panic = |line: &&str| line.contains("panicked at");
        let panics = self.log_text().lines().filter(is_panic).map(str::to_owned).collect::<Vec<_>>();
        let errors = self.log().into_iter().filter(|line| line["level"] == "ERROR");
        errors.map(|line| line.to_string()).chain(panics).collect()
    }

    /// `understudy check` with this proxy's configuration: whether all is well, and what it printed. Beside a running
    /// proxy its addresses are in use.
    pub(crate) fn check(&self, net: &Net) -> Result<(bool, String)> {
        let output = net
            .command(self.space, &binary()?.display().to_string())
            .args(["check", "--config"])
            .arg(&self.config)
            .output()
            .context("understudy check")?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    }

    /// The process that `ip netns exec` became.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and what became of it.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        self.terminate()?;
        self.wait()
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        wait_until("the proxy has ended", Duration::from_secs(60), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("no exit status")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What libfaketime leaves when its process is killed.
        for left in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = fs::remove_file(format!("/dev/shm/{left}{}", self.child.id()));
        }
    }
}

/// What these orders add to a proxy's environment.
fn environment(orders: &Orders<'_>) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if let Some(clock) = orders.clock {
        all.push(("LD_PRELOAD", FAKETIME.to_owned()));
        all.push(("FAKETIME", clock.to_owned()));
        all.push(("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()));
    }
    if orders.bridge {
        all.push(("UNDERSTUDY_TEST_BRIDGE", "1".to_owned()));
    }
    all
}

/// Starts a proxy in a namespace.
fn spawn(
    net: &Net,
    space: &str,
    config: &Path,
    log: &Path,
    environment: &[(&'static str, String)],
) -> Result<Child> {
    let file = fs::File::options().append(true).open(log)?;
    let mut command = net.command(space, &binary()?.display().to_string());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("starting the proxy")
}

/// Writes the file of passwords, and the configuration that names it.
fn configuration(dir: &Path, nodes: &[Node], orders: &Orders<'_>, door: Door) -> Result<String> {
    let passwords = dir.join("smbpasswd");
    let known = nodes.first().context("no nodes")?.smbpasswd()?;
    fs::write(&passwords, known)?;
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600))?;
    let (top, tables) = orders.config.split_at(orders.config.find('[').unwrap_or(orders.config.len()));
    let mut text = format!("listen = \"{}:445\"\n{top}", door.address);
    for node in nodes {
        text += &format!("[[nodes]]\nname = \"{}\"\naddress = \"{}:445\"\n", node.name, node.front);
    }
    text += &format!("[credentials]\nntlm = \"{}\"\n", passwords.display());
    if let Some(keytab) = &orders.keytab {
        text += &format!("keytab = \"{}\"\n", keytab.display());
    }
    let file = || format!("url = \"file:{}\"", dir.join("store").display());
    text += &format!("[store]\n{}\n", orders.store.clone().unwrap_or_else(file));
    text += &format!("[admin]\nlisten = \"{}\"\n", door.admin);
    if !tables.contains("[log]") {
        text += "[log]\nformat = \"json\"\nlevel = \"info\"\n";
    }
    Ok(text + tables)
}

/// The text of a log record.
pub(crate) fn message(record: &serde_json::Value) -> &str {
    record["message"].as_str().unwrap_or_default()
}

/// `understudy` beside this program, or `UNDERSTUDY_BIN`.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERSTUDY_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("understudy");
    if !path.exists() {
        bail!("{} is not there: build it (cargo build --release), or set UNDERSTUDY_BIN", path.display());
    }
    Ok(path)
}

/// `understudy` with what a cluster needs, as `make k8s` builds it, or `UNDERSTUDY_K8S_BIN`.
pub(crate) fn binary_for_clusters() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERSTUDY_K8S_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("no target directory")?;
    let path = target.join("debug/understudy");
    if !path.exists() {
        bail!("{} is not there: build it (make k8s), or set UNDERSTUDY_K8S_BIN", path.display());
    }
    Ok(path)
}
