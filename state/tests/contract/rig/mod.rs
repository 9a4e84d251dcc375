//! A real etcd for the tests: members as processes of their own, on free ports, in a directory that goes away.

pub(crate) mod tap;

use std::{
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;
use understudy_state::EtcdOptions;

/// How long etcd may take over anything before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a store waits for etcd: longer than in practice, for a machine that runs tests is busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(12);

/// Several members, killed when dropped.
pub(crate) struct Cluster {
    members: Vec<Member>,
    dir: TempDir,
    tls: bool,
}

struct Member {
    port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

/// etcd's path. Without it the test says so and is over, or fails if it must not be missing.
fn etcd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("UNDERSTUDY_REQUIRE_ETCD").is_none(),
            "there is no etcd on this machine: install etcd-server (tests/setup.sh does)"
        );
        // Not by eprintln, which is kept from view when a test passes.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED, NOT TESTED: there is no etcd; install etcd-server");
    }
    found
}

impl Cluster {
    /// `None` if there is no etcd on this machine and it may be missing.
    pub(crate) async fn start(members: usize, options: &[&str]) -> Option<Self> {
        Self::start_in(tempfile::tempdir().unwrap(), members, options).await
    }

    /// The directory may have certificates; see [`certificates`].
    pub(crate) async fn start_in(dir: TempDir, members: usize, options: &[&str]) -> Option<Self> {
        let etcd = etcd()?;
        let tls = options.iter().any(|option| option.starts_with("--cert-file"));
        let mut cluster = Self { members: Vec::new(), dir, tls };
        let began = Instant::now();
        // A port may be taken by someone else before etcd has it.
        'anew: loop {
            assert!(began.elapsed() < PATIENCE, "etcd does not start, see {:?}", cluster.dir.keep());
            cluster.members = arguments(members, cluster.dir.path(), options, tls);
            for at in 0..members {
                cluster.spawn(&etcd, at);
            }
            while !cluster.all_listen().await {
                if cluster.members.iter_mut().any(Member::has_ended) || began.elapsed() > PATIENCE {
                    continue 'anew;
                }
                sleep(Duration::from_millis(20)).await;
            }
            return Some(cluster);
        }
    }

    fn spawn(&mut self, etcd: &Path, at: usize) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("m{at}.log")))
            .unwrap();
        let member = &mut self.members[at];
        let process = Command::new(etcd)
            .args(&member.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        member.process = Some(process);
    }

    async fn all_listen(&self) -> bool {
        for member in &self.members {
            if tokio::net::TcpStream::connect(("127.0.0.1", member.port)).await.is_err() {
                return false;
            }
        }
        // One that answers has elected a leader.
        self.tls || self.leader().await.is_some()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect()
    }

    /// How a store is opened in it.
    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions {
            members: self.addresses(),
            prefix: "/understudy/".into(),
            tls: None,
            user: None,
            timeout: TIMEOUT,
        }
    }

    /// A client for what a store does not do.
    pub(crate) async fn client(&self, at: usize) -> Client {
        let options = ConnectOptions::new().with_timeout(Duration::from_secs(5));
        Client::connect([&self.addresses()[at]], Some(options)).await.unwrap()
    }

    /// Who leads, if someone does and says so.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (at, member) in self.members.iter().enumerate() {
            if member.process.is_some()
                && let Ok(status) = self.client(at).await.status().await
                && status.leader() != 0
                && status.header().unwrap().member_id() == status.leader()
            {
                return Some(at);
            }
        }
        None
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, at: usize) {
        let mut process = self.members[at].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts what was killed.
    pub(crate) fn restart(&mut self, at: usize) {
        self.spawn(&etcd().unwrap(), at);
    }

    /// SIGSTOP, or SIGCONT.
    pub(crate) fn signal(&self, at: usize, signal: Signal) {
        let process = self.members[at].process.as_ref().unwrap();
        kill_process(Pid::from_child(process), signal).unwrap();
    }
}

impl Member {
    fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn arguments(members: usize, dir: &Path, options: &[&str], tls: bool) -> Vec<Member> {
    let held: Vec<_> = (0..members * 2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<_> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    let peer = |at: usize| format!("http://127.0.0.1:{}", ports[members + at]);
    let cluster: Vec<_> = (0..members).map(|at| format!("m{at}={}", peer(at))).collect();
    let scheme = if tls { "https" } else { "http" };
    (0..members)
        .map(|at| {
            let data = dir.join(format!("m{at}-{}", ports[at]));
            let client = format!("{scheme}://127.0.0.1:{}", ports[at]);
            let mut arguments = vec![
                format!("--name=m{at}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={}", peer(at)),
                format!("--initial-advertise-peer-urls={}", peer(at)),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--initial-cluster-token={}", dir.display()),
                "--logger=zap".into(),
            ];
            arguments.extend(options.iter().map(|&option| option.to_owned()));
            Member { port: ports[at], arguments, process: None }
        })
        .collect()
}

/// An authority, a certificate of it for 127.0.0.1 and one for a client, and one of somebody else's:
/// `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`, `other.pem`.
pub(crate) fn certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2"));
    }
    for (name, usage) in [("server", "serverAuth,clientAuth"), ("client", "clientAuth")] {
        std::fs::write(
            dir.join(format!("{name}.ext")),
            format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n"),
        )
        .unwrap();
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile {name}.ext"
        ));
    }
}
