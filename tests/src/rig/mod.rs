//! A small site: namespaces, Samba nodes on one shared directory, the proxy on a floating address.

pub(crate) mod copy;
pub(crate) mod etcd;
pub(crate) mod haproxy;
pub(crate) mod janitor;
pub(crate) mod kernel;
pub(crate) mod net;
pub(crate) mod node;
pub(crate) mod pair;
pub(crate) mod podman;
pub(crate) mod proxy;
pub(crate) mod puppet;
pub(crate) mod realm;
pub(crate) mod recorder;
mod samba;
pub(crate) mod storage;
pub(crate) mod tap;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::{
    etcd::Etcd,
    net::Net,
    node::{Node, Settings},
    proxy::{Orders, Proxy},
    realm::Realm,
    samba::Samba,
    tap::Tap,
};

/// The whole site. Dropped, nothing of it is left.
#[derive(Debug)]
pub(crate) struct Rig {
    /// The one that serves.
    pub(crate) proxy: Proxy,
    /// The one that stands by.
    pub(crate) standby: Option<Proxy>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) realm: Option<Realm>,
    /// Where the proxy keeps its records, if that is not a file.
    pub(crate) etcd: Option<Etcd>,
    /// What lies between the proxy and each node, if the site has it.
    pub(crate) taps: Arc<Vec<Tap>>,
    pub(crate) net: Net,
    pub(crate) dir: Scratch,
    expected: Vec<&'static str>,
}

/// Errors that proxies have logged and no case expected.
static UNEXPECTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes the errors that the proxies of rigs gone by have logged, but for those that their cases expected.
pub(crate) fn take_unexpected() -> Vec<String> {
    std::mem::take(&mut *UNEXPECTED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a case wants of its rig.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) nodes: usize,
    /// Appended to understudy.toml: keys first, then tables. `{fence}` becomes a program that kills the node it is told.
    pub(crate) config: String,
    pub(crate) samba: Settings,
    /// A Kerberos realm that the nodes and the clients belong to.
    pub(crate) realm: Option<realm::Kind>,
    /// The keytab that the proxy is told of, in the realm's directory.
    pub(crate) keytab: Option<&'static str>,
    /// How far the proxy's clock is off, as libfaketime is told.
    pub(crate) clock: Option<&'static str>,
    /// Whether the proxy reaches the nodes by taps, so that its legs can be cut.
    pub(crate) taps: bool,
    /// Whether every client is in Bridge from its first session on.
    pub(crate) bridge: bool,
    pub(crate) store: Store,
    /// Whether there are two proxies, each a host of its own, of which one takes the floating address.
    pub(crate) pair: bool,
}

/// Where the proxy keeps its records.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store {
    /// In a file of its own.
    File,
    /// In an etcd of the site's own: how many members, how many bytes each may keep (0: etcd's own limit), and further lines of
    /// the proxy's table.
    Etcd { members: usize, quota: u64, lines: &'static str },
}

impl Store {
    /// As most have it.
    pub(crate) const THREE: Self = Self::Etcd { members: 3, quota: 0, lines: "" };
}

impl Default for Site {
    fn default() -> Self {
        Self {
            nodes: 2,
            config: String::new(),
            samba: Settings::default(),
            realm: None,
            keytab: None,
            clock: None,
            taps: false,
            bridge: false,
            store: Store::File,
            pair: false,
        }
    }
}

impl Rig {
    /// Builds it all and waits until the proxy is ready.
    pub(crate) fn new(site: &Site) -> Result<Self> {
        let dir = Scratch::new()?;
        let mut net = Net::new()?;
        if site.pair {
            net.give_floating_away()?;
        }
        let data = dir.path().join("data");
        std::fs::create_dir_all(&data)?;
        let realm = site.realm.map(|kind| Realm::start(&mut net, dir.path(), kind)).transpose()?;
        let mut samba = site.samba.clone();
        if let Some(realm) = &realm {
            samba.membership = realm.membership();
            samba.environment.extend(realm.environment());
        }
        let mut nodes: Vec<Node> = Vec::new();
        for index in 0..site.nodes {
            let mut node = Node::new(&mut net, dir.path(), index, &data, &samba)?;
            match nodes.first() {
                None => {
                    node.add_users()?;
                    realm.as_ref().map_or(Ok(()), |realm| realm.join(&node))?;
                }
                Some(first) => node.copy_users(first)?,
            }
            node.start(&net)?;
            nodes.push(node);
        }
        let tapped = nodes.iter_mut().filter(|_| site.taps);
        let taps = Arc::new(tapped.map(|node| node.tap(&net)).collect::<Result<_>>()?);
        let fence = node::write_fence(dir.path())?;
        let config = site.config.replace("{fence}", &fence.display().to_string());
        let keytab = realm.as_ref().zip(site.keytab).map(|(realm, name)| realm.file(name));
        let (etcd, store) = match site.store {
            Store::File => (None, None),
            Store::Etcd { members, quota, lines } => {
                let etcd = Etcd::start(&mut net, dir.path(), members, quota)?;
                let table = format!("url = \"{}\"\n{lines}", etcd.url());
                (Some(etcd), Some(table))
            }
        };
        let orders = Orders { config: &config, keytab, clock: site.clock, bridge: site.bridge, store };
        let (proxy, standby) = if site.pair {
            let (proxy, standby) = pair::start(&mut net, dir.path(), &nodes, &orders)?;
            (proxy, Some(standby))
        } else {
            (Proxy::start(&net, dir.path(), &nodes, &orders)?, None)
        };
        Ok(Self { proxy, standby, nodes, realm, etcd, taps, net, dir, expected: Vec::new() })
    }

    /// The proxy may log errors that contain this.
    pub(crate) fn expect_error(&mut self, text: &'static str) {
        self.expected.push(text);
    }

    /// A metric of the proxy, by its name without `understudy_`, labels included. One that is not there is 0.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.proxy.metrics(&self.net)?;
        Ok(metrics.get(&format!("understudy_{name}")).copied().unwrap_or_default())
    }

    /// Waits until a metric has at least this value.
    pub(crate) fn await_metric(&self, name: &str, at_least: f64) -> Result<()> {
        let what = format!("{name} reaches {at_least}");
        wait_until(&what, Duration::from_secs(30), || self.metric(name).is_ok_and(|now| now >= at_least))
    }

    /// Waits until so many Links have been taken over in all.
    pub(crate) fn await_takeovers(&self, cause: &str, count: usize) -> Result<()> {
        let name = format!("takeovers_total{{cause=\"{cause}\",result=\"ok\"}}");
        self.await_metric(&name, f64::from(u32::try_from(count)?))
    }

    /// Waits until the proxy has logged a line that contains this.
    pub(crate) fn await_log(&self, text: &str) -> Result<()> {
        wait_until(&format!("the proxy logs: {text}"), Duration::from_secs(30), || self.has_logged(text))
    }

    /// Whether the proxy has logged a line that contains this.
    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.proxy.log().iter().any(|line| proxy::message(line).contains(text))
    }

    /// The directory that all nodes share.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The Kerberos realm.
    pub(crate) fn realm(&self) -> Result<&Realm> {
        self.realm.as_ref().context("this site has no realm")
    }

    /// The proxy's etcd.
    pub(crate) fn etcd(&mut self) -> Result<(&mut Etcd, &Net)> {
        Ok((self.etcd.as_mut().context("this site has no etcd")?, &self.net))
    }

    /// A directory of the clients.
    pub(crate) fn local(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("local");
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// One of Samba's programs that are no node's, in a namespace.
    pub(crate) fn samba_tool(&self, space: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.space(space)]);
        command.args(Samba::from_environment().words(program));
        command
    }

    /// The index of the node that serves now.
    pub(crate) fn serving(&self) -> Result<usize> {
        self.serving_of(&self.nodes)
    }

    /// The same among nodes that were taken out of the rig.
    pub(crate) fn serving_of(&self, nodes: &[Node]) -> Result<usize> {
        let metrics = self.proxy.metrics(&self.net)?;
        nodes
            .iter()
            .position(|n| {
                metrics.get(&format!("understudy_node_active{{node=\"{}\"}}", n.name)) == Some(&1.0)
            })
            .context("no node serves")
    }

    /// Waits until a node serves that is not this one.
    pub(crate) fn await_serving_other_than(&self, index: usize) -> Result<()> {
        wait_until("another node serves", Duration::from_secs(30), || {
            self.serving().is_ok_and(|serving| serving != index)
        })
    }

    /// Waits until the proxy has no client.
    pub(crate) fn await_no_client(&self) -> Result<()> {
        wait_until("the proxy has no client", Duration::from_secs(30), || {
            self.metric("connections").is_ok_and(|now| now == 0.0)
        })
    }

    /// Its name.
    pub(crate) fn serving_name(&self) -> Result<&str> {
        Ok(&self.nodes.get(self.serving()?).context("no such node")?.name)
    }

    /// Kills the node that serves.
    pub(crate) fn kill_serving(&mut self) -> Result<usize> {
        let index = self.serving()?;
        self.nodes.get_mut(index).context("no such node")?.kill();
        Ok(index)
    }

    /// Kills every node, the serving one last: else the next one might take over for a moment, and die too.
    pub(crate) fn kill_all(&mut self) -> Result<()> {
        let serving = self.serving()?;
        for index in (0..self.nodes.len()).filter(|index| *index != serving).chain([serving]) {
            self.nodes.get_mut(index).context("no such node")?.kill();
        }
        Ok(())
    }

    /// Cuts every connection of the proxy to a node. `unseen`: the node hears nothing of it.
    pub(crate) fn cut_legs(&self, index: usize, unseen: bool) -> Result<()> {
        let node = self.nodes.get(index).context("no such node")?;
        if unseen {
            self.net.set_link(&node.name, false)?;
        }
        let cut = ["-K", "-tn", "dst", &node.address, "dport", "=", ":445"];
        let output = self.net.command("hub", "ss").args(cut).output()?;
        if !output.status.success() {
            bail!("ss -K: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if unseen {
            self.net.set_link(&node.name, true)?;
        }
        Ok(())
    }

    /// Starts a killed node again.
    pub(crate) fn restart(&mut self, index: usize) -> Result<()> {
        self.nodes.get_mut(index).context("no such node")?.start(&self.net)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let is_expected = |text: &str| self.expected.iter().any(|known| text.contains(known));
        let errors = self.proxy.errors().into_iter().filter(|text| !is_expected(text));
        UNEXPECTED.lock().unwrap_or_else(PoisonError::into_inner).extend(errors);
    }
}

/// So much room is wanted in memory; a container has less, mostly, and gets the disk.
const ROOM: u64 = 2 << 30;

/// A directory that goes away, in memory if there is room.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let base = if rustix::fs::statvfs("/dev/shm").is_ok_and(|f| f.f_bavail * f.f_frsize >= ROOM) {
            "/dev/shm"
        } else {
            "/tmp"
        };
        let name = format!("understudy-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(base).join(name);
        // Whoever else has it would remove it in the middle of a case.
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Asks again and again, every few milliseconds, until it is so.
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
