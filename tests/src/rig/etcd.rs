//! An etcd of the site's own: members that are hosts with an address each, and can be killed, cut off and filled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{net::Net, wait_until};

/// The proxy's keys are below this.
const PREFIX: &str = "understudy";
/// What fills it.
const BALLAST: &str = "ballast";
/// etcd takes requests of 1.5 MiB.
const STONE: usize = 1 << 20;

/// The members. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Etcd {
    members: Vec<Member>,
    dir: PathBuf,
    /// Bytes of its data; 0: etcd's own limit.
    quota: u64,
}

#[derive(Debug)]
struct Member {
    name: String,
    address: String,
    child: Option<Child>,
}

impl Etcd {
    /// So many members, which have elected a leader.
    pub(crate) fn start(net: &mut Net, dir: &Path, count: usize, quota: u64) -> Result<Self> {
        let dir = dir.join("etcd");
        fs::create_dir_all(&dir)?;
        let mut members = Vec::new();
        for index in 0..count {
            let (name, address) = (format!("etcd-{index}"), format!("10.77.0.{}", 31 + index));
            net.add_host(&name, &address)?;
            members.push(Member { name, address, child: None });
        }
        let mut etcd = Self { members, dir, quota };
        for index in 0..count {
            etcd.restart(net, index)?;
        }
        etcd.await_leader(net)?;
        Ok(etcd)
    }

    /// As the proxy is told of it.
    pub(crate) fn url(&self) -> String {
        format!("etcd://{}/{PREFIX}", self.endpoints())
    }

    fn endpoints(&self) -> String {
        let all = self.members.iter().map(|member| format!("{}:2379", member.address));
        all.collect::<Vec<_>>().join(",")
    }

    /// The members' addresses.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.address.as_str()).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    /// The processes of its members.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().filter_map(|member| member.child.as_ref()).map(Child::id)
    }

    /// Starts a member that does not run. It may not be ready yet.
    pub(crate) fn restart(&mut self, net: &Net, index: usize) -> Result<()> {
        let cluster =
            self.members.iter().map(|member| format!("{}=http://{}:2380", member.name, member.address));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let member = self.members.get_mut(index).context("no such member")?;
        let Member { name, address, .. } = &*member;
        let log = fs::File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let child = net
            .command(name, "etcd")
            .args(["--name", name, "--data-dir"])
            .arg(self.dir.join(name))
            .args(["--listen-client-urls", &format!("http://{address}:2379,http://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &format!("http://{address}:2379")])
            .args(["--listen-peer-urls", &format!("http://{address}:2380")])
            .args(["--initial-advertise-peer-urls", &format!("http://{address}:2380")])
            .args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"])
            .args(["--quota-backend-bytes", &self.quota.to_string(), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd")?;
        member.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) -> Result<()> {
        let member = self.members.get_mut(index).context("no such member")?;
        let mut child = member.child.take().context("it does not run")?;
        child.kill()?;
        child.wait().context("killing a member").map(|_| ())
    }

    /// Cuts a member's cable, or mends it.
    pub(crate) fn set_link(&self, net: &Net, index: usize, up: bool) -> Result<()> {
        net.set_link(&self.members.get(index).context("no such member")?.name, up)
    }

    /// Waits until a leader is elected and takes writes.
    pub(crate) fn await_leader(&self, net: &Net) -> Result<()> {
        wait_until("etcd has a leader", Duration::from_secs(30), || {
            self.ctl(net, &["endpoint", "health", "--cluster=false"]).is_ok() && self.leader(net).is_ok()
        })
    }

    /// The member that leads.
    pub(crate) fn leader(&self, net: &Net) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.child.is_some()) {
            let endpoint = format!("{}:2379", member.address);
            let told = self.ask(net, &endpoint, &["endpoint", "status", "--write-out=json"])?;
            let told: Value = serde_json::from_slice(&told)?;
            let status = &told[0]["Status"];
            if status["leader"] == status["header"]["member_id"] {
                return Ok(index);
            }
        }
        bail!("nobody leads")
    }

    /// etcdctl, by any member.
    fn ctl(&self, net: &Net, words: &[&str]) -> Result<Vec<u8>> {
        let running = self.members.iter().filter(|member| member.child.is_some());
        let endpoints: Vec<_> = running.map(|member| format!("{}:2379", member.address)).collect();
        self.ask(net, &endpoints.join(","), words)
    }

    fn ask(&self, net: &Net, endpoints: &str, words: &[&str]) -> Result<Vec<u8>> {
        let mut command = net.command("hub", "etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--endpoints",
            endpoints,
            "--dial-timeout=2s",
            "--command-timeout=5s",
        ]);
        let output = command.args(words).output().context("etcdctl")?;
        if !output.status.success() {
            bail!("etcdctl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }

    /// Writes to it until it takes nothing more, and has said so to all its members (the alarm NOSPACE).
    pub(crate) fn fill(&self, net: &Net) -> Result<()> {
        ensure!(self.quota > 0, "this takes too long");
        let stone = "x".repeat(STONE);
        let stones = usize::try_from(self.quota)? / STONE + 2;
        for number in 0..stones {
            let mut child = net
                .command("hub", "etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.endpoints(), "put", &format!("{BALLAST}/{number}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            std::io::Write::write_all(&mut child.stdin.take().context("no stdin")?, stone.as_bytes())?;
            let output = child.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(said.contains("database space exceeded"), "filling etcd: {said}");
                return Ok(());
            }
        }
        bail!("etcd is not full")
    }

    /// Does what an operator does when it is full.
    pub(crate) fn make_room(&self, net: &Net) -> Result<()> {
        self.ctl(net, &["del", "--prefix", BALLAST])?;
        self.compact(net)?;
        self.ctl(net, &["alarm", "disarm"]).map(|_| ())
    }

    /// Forgets what was, and gives the room back.
    pub(crate) fn compact(&self, net: &Net) -> Result<()> {
        let told = self.ctl(net, &["get", "--prefix", "--limit=1", "--write-out=json", ""])?;
        let told: Value = serde_json::from_slice(&told)?;
        let revision = told["header"]["revision"].as_u64().context("no revision")?;
        self.ctl(net, &["compact", "--physical", &revision.to_string()])?;
        for member in self.members.iter().filter(|member| member.child.is_some()) {
            self.ask(net, &format!("{}:2379", member.address), &["defrag"])?;
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
