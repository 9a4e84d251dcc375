//! One Samba node: its own directories, configuration, PID namespace and address; a data directory shared with others.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    net::Net,
    realm,
    samba::Samba,
    tap::{Ears, Tap},
    wait_until,
};

/// The test user and its password.
pub(crate) const USER: &str = "alice";
/// See [`USER`].
pub(crate) const PASSWORD: &str = "Sunshine-4711";
/// A second user.
pub(crate) const SECOND: &str = "bob";
/// A third one, whom the proxy does not know.
pub(crate) const STRANGER: &str = "mallory";

/// The nodes' workgroup, or domain.
pub(crate) const WORKGROUP: &str = "TESTGROUP";
/// The ids of the nodes' own users begin here.
const FIRST_ID: u32 = 60_100;

/// smbd with winbindd beside it. Samba's programs look for winbindd in one place only, so that a directory of the node is
/// mounted there. What enters a Samba of another version comes after the first three arguments.
const WITH_WINBIND: &str = r#"
set -e
place=$1 run=$2 config=$3
shift 3
mkdir -p "$place"
mount --bind "$run" "$place"
"$@" /usr/sbin/winbindd -D -s "$config"
exec "$@" /usr/sbin/smbd --foreground --no-process-group -s "$config"
"#;

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Where the proxy finds it.
    pub(crate) front: String,
    /// Its namespace.
    space: String,
    dir: PathBuf,
    samba: Samba,
    environment: Vec<(&'static str, PathBuf)>,
    winbind: bool,
    child: Option<Child>,
}

impl Node {
    /// Lays out the node's directories. `passdb` of a first node is copied, so that all know the same users.
    pub(crate) fn new(
        net: &mut Net,
        root: &Path,
        index: usize,
        data: &Path,
        settings: &Settings,
    ) -> Result<Self> {
        let name = format!("samba-{index}");
        let address = format!("10.77.0.{}", 11 + index);
        net.add_host(&name, &address)?;
        let own = [USER, SECOND, STRANGER].map(str::to_owned).into_iter().zip(FIRST_ID..);
        let of_domain = settings.membership.accounts.iter().cloned();
        net.add_accounts(&name, &own.chain(of_domain).collect::<Vec<_>>())?;
        net.add_names(&name, realm::NAMES)?;
        let dir = root.join(&name);
        for sub in ["private", "run", "lock", "state", "cache", "pid", "ncalrpc", "log"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let space = net.space(&name);
        let samba = Samba::from_environment();
        let environment = settings.environment.clone();
        let winbind = settings.membership.winbind;
        let front = address.clone();
        let node = Self { name, address, front, space, dir, samba, environment, winbind, child: None };
        node.write_config(data, settings)?;
        Ok(node)
    }

    /// Puts a tap before it, of which the proxy is told instead of it.
    pub(super) fn tap(&mut self, net: &Net) -> Result<Tap> {
        let (net_of, host) = self.address.rsplit_once('.').context("no address")?;
        self.front = format!("{net_of}.{}", host.parse::<u8>()? + 10);
        net.add_hub_address(&self.front)?;
        let to = format!("{}:445", self.address);
        Tap::start(net, "hub", &format!("{}:445", self.front), &to, Ears::default())
    }

    fn write_config(&self, data: &Path, settings: &Settings) -> Result<()> {
        let dir = self.dir.display();
        let data = data.display();
        let (global, share) = (settings.global.join("\n   "), settings.share.join("\n   "));
        let realm = settings.membership.global.join("\n   ");
        let address = &self.address;
        let text = format!(
            "[global]
   netbios name = CLUSTER
   workgroup = {WORKGROUP}
   server role = standalone server
   security = user
   map to guest = Bad User
   guest account = nobody
   passdb backend = tdbsam:{dir}/private/passdb.tdb
   private dir = {dir}/private
   lock directory = {dir}/lock
   state directory = {dir}/state
   cache directory = {dir}/cache
   pid directory = {dir}/pid
   ncalrpc dir = {dir}/ncalrpc
   log file = {dir}/log/smbd.log
   log level = {level}
   max log size = 0
   interfaces = {address}
   bind interfaces only = yes
   smb ports = 445
   disable netbios = yes
   disable spoolss = yes
   load printers = no
   printcap name = /dev/null
   rpc start on demand helpers = no
   server multi channel support = yes
   smb2 leases = yes
   server min protocol = SMB2_02
   kernel oplocks = no
   kernel share modes = no
   posix locking = no
   {realm}
   {global}
[share]
   path = {data}
   read only = no
   guest ok = yes
   force user = root
   {share}
",
            level = settings.log_level
        );
        fs::write(self.config(), text).context("writing smb.conf")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("smb.conf")
    }

    /// One of Samba's programs, in the node's namespace: there the test users are known.
    pub(super) fn tool(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space]).args(self.samba.words(program));
        command.arg("-s").arg(self.config());
        command
    }

    /// What smbd calls itself.
    pub(crate) fn version(&self) -> Result<String> {
        let output = self.tool("/usr/sbin/smbd").arg("--version").output().context("smbd --version")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.trim().replace("Version", "Samba"))
    }

    /// What smbstatus says of the node's sessions: user, dialect, encryption, signing. Only among the node's own
    /// processes does it see that they live.
    pub(crate) fn sessions(&self) -> Result<String> {
        self.smbstatus("--brief")
    }

    /// What smbstatus says of the open files: name, and when it was opened.
    pub(crate) fn open_files(&self) -> Result<String> {
        self.smbstatus("--locks")
    }

    fn smbstatus(&self, what: &str) -> Result<String> {
        let init = self.pids().first().context("smbd has no process")?.as_raw_nonzero().to_string();
        let output = Command::new("nsenter")
            .args(["--target", &init, "--pid", "--net", "--mount"])
            .args(self.samba.words("/usr/bin/smbstatus"))
            .args([what, "-s"])
            .arg(self.config())
            .output()
            .context("smbstatus")?;
        if !output.status.success() {
            bail!("smbstatus: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What smbd has logged.
    pub(crate) fn log(&self) -> Result<String> {
        let bytes = fs::read(self.dir.join("log/smbd.log")).context("smbd's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes the test users known.
    pub(crate) fn add_users(&self) -> Result<()> {
        use std::io::Write;
        for user in [USER, SECOND, STRANGER] {
            let mut child = self
                .tool("/usr/bin/pdbedit")
                .args(["-a", "-t", "-u", user])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("pdbedit")?;
            let mut input = child.stdin.take().context("pdbedit has no stdin")?;
            write!(input, "{PASSWORD}\n{PASSWORD}\n")?;
            drop(input);
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("pdbedit: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }

    /// Takes over another node's users.
    pub(crate) fn copy_users(&self, from: &Self) -> Result<()> {
        for file in ["passdb.tdb", "secrets.tdb"] {
            let source = from.dir.join("private").join(file);
            if source.exists() {
                fs::copy(source, self.dir.join("private").join(file))?;
            }
        }
        Ok(())
    }

    /// Makes a user unknown here.
    pub(crate) fn remove_user(&self, user: &str) -> Result<()> {
        let output = self.tool("/usr/bin/pdbedit").args(["-x", "-u", user]).output().context("pdbedit -x")?;
        ensure!(output.status.success(), "pdbedit -x: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// `pdbedit -L -w`, without users that the proxy is not to know.
    pub(crate) fn smbpasswd(&self) -> Result<String> {
        let output = self.tool("/usr/bin/pdbedit").args(["-L", "-w"]).output().context("pdbedit -L -w")?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter(|l| !l.starts_with(STRANGER)).map(|l| format!("{l}\n")).collect())
    }

    /// Starts smbd and waits until it listens.
    pub(crate) fn start(&mut self, net: &Net) -> Result<()> {
        let log = fs::File::create(self.dir.join("log/stdout"))?;
        let mut command = net.command(&self.name, "unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        if self.winbind {
            command.args(["sh", "-c", WITH_WINBIND, "start"]);
            command.arg(self.samba.directory("run/samba")).arg(self.dir.join("run")).arg(self.config());
            command.args(self.samba.entrance());
        } else {
            command.args(self.samba.words("/usr/sbin/smbd"));
            command.args(["--foreground", "--no-process-group", "-s"]).arg(self.config());
        }
        let child = command
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting smbd")?;
        self.child = Some(child);
        let address = format!("{}:445", self.address);
        wait_until("smbd listens", Duration::from_secs(20), || net.connect("hub", &address).is_ok())?;
        // Without it smbd refuses the domain's users.
        let winbind = self.dir.join("run/winbindd/pipe");
        wait_until("winbindd listens", Duration::from_secs(20), || {
            !self.winbind || UnixStream::connect(&winbind).is_ok()
        })?;
        let init = self.pids().first().context("smbd has no process")?.as_raw_nonzero();
        fs::write(self.dir.join("init.pid"), init.to_string()).context("init.pid")
    }

    /// Whether it was started and not killed.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// `kill -9` of every process of the node; they are gone when it returns.
    pub(crate) fn kill(&mut self) {
        // With the init of the PID namespace the kernel kills all others, and it is gone last.
        let init = self.pids().into_iter().next();
        if let Some(mut child) = self.child.take() {
            let killed = init.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
            if !killed {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }

    /// The process that has this file of the share open. It may know it by another path.
    pub(crate) fn pid_with(&self, file: &Path) -> Option<Pid> {
        let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        let wanted = identity(file)?;
        let holds = |pid: &Pid| {
            let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
            open.into_iter().flatten().flatten().any(|fd| identity(&fd.path()) == Some(wanted))
        };
        self.pids().into_iter().find(holds)
    }

    /// Kills the process that has this file open, and nothing else of the node. False if there is none.
    pub(crate) fn kill_child_with(&self, file: &Path) -> bool {
        self.pid_with(file).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }

    /// Stops every process of the node where it stands, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        for pid in self.pids() {
            let _ = kill_process(pid, signal);
        }
    }

    /// The processes of the node, the first one first.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let Some(child) = &self.child else { return Vec::new() };
        let Ok(wanted) = fs::read_link(format!("/proc/{}/ns/pid_for_children", child.id())) else {
            return Vec::new();
        };
        let mut found: Vec<(u32, Pid)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == wanted))
            .filter_map(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let inner = status.lines().find(|l| l.starts_with("NSpid:"))?.split_whitespace().last()?;
                Some((inner.parse().ok()?, Pid::from_raw(pid)?))
            })
            .collect();
        found.sort_by_key(|(inner, _)| *inner);
        found.into_iter().map(|(_, pid)| pid).collect()
    }
}

/// A fence: kills the init of the named node's PID namespace, and with it the kernel kills all its processes. It ends well
/// only once they are gone, for an init is gone last.
pub(super) fn write_fence(root: &Path) -> Result<PathBuf> {
    let text = format!(
        "#!/bin/sh
pid=$(cat '{}'/\"$1\"/init.pid) || exit 1
kill -9 \"$pid\"
while kill -0 \"$pid\" 2>/dev/null; do sleep 0.01; done
",
        root.display()
    );
    let path = root.join("fence");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a realm makes of the nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Membership {
    /// Added to the global part of smb.conf.
    pub(crate) global: Vec<String>,
    /// Accounts that its users have on the nodes, with their ids.
    pub(crate) accounts: Vec<(String, u32)>,
    /// Whether winbindd is needed.
    pub(crate) winbind: bool,
}

/// What a case changes in smb.conf.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) global: Vec<&'static str>,
    pub(crate) share: Vec<&'static str>,
    pub(crate) membership: Membership,
    pub(crate) log_level: u32,
    /// Added to smbd's environment.
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
}
