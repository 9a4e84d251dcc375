//! The site that is measured: a rig, with HAProxy and a second Understudy beside the first.

use std::{
    fmt, fs,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::cpu;
use crate::rig::{
    Rig, Site,
    net::{FLOATING, Net},
    proxy::{Door, Proxy},
    wait_until,
};

const HAPROXY: &str = "10.77.0.101";
const ONE_WORKER: Door = Door { address: "10.77.0.102", admin: "127.0.0.1:9646" };

/// By what a client reaches Samba.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    Direct,
    HaProxy,
    Understudy,
    OneWorker,
}

impl Road {
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::HaProxy, Self::Understudy, Self::OneWorker];
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::HaProxy => "haproxy",
            Self::Understudy => "understudy",
            Self::OneWorker => "understudy, 1 worker",
        })
    }
}

/// Everything that is compared. Dropped, nothing of it is left.
#[derive(Debug)]
pub(crate) struct Field {
    /// The address of the node that served in the beginning: direct access and HAProxy use the same.
    node: String,
    haproxy: HaProxy,
    one_worker: Proxy,
    pub(crate) rig: Rig,
}

impl Field {
    pub(crate) fn new() -> Result<Self> {
        let rig = Rig::new(&Site::default())?;
        let serving = rig.serving()?;
        for address in [HAPROXY, ONE_WORKER.address] {
            rig.net.add_hub_address(address)?;
        }
        let node = rig.nodes.get(serving).context("no such node")?.address.clone();
        let haproxy = HaProxy::start(&rig.net, rig.dir.path(), &node)?;
        let dir = rig.dir.path().join("one-worker");
        fs::create_dir_all(&dir)?;
        let one_worker = Proxy::start_at(&rig.net, &dir, &rig.nodes, "workers = 1\n", ONE_WORKER)?;
        Ok(Self { node, haproxy, one_worker, rig })
    }

    /// The address at the beginning of a road.
    pub(crate) fn address(&self, road: Road) -> &str {
        match road {
            Road::Direct => &self.node,
            Road::HaProxy => HAPROXY,
            Road::Understudy => FLOATING,
            Road::OneWorker => ONE_WORKER.address,
        }
    }

    /// CPU seconds that the proxy of a road has used so far.
    pub(crate) fn cpu(&self, road: Road) -> Result<Option<f64>> {
        let pid = match road {
            Road::Direct => return Ok(None),
            Road::HaProxy => self.haproxy.0.id(),
            Road::Understudy => self.rig.proxy.pid(),
            Road::OneWorker => self.one_worker.pid(),
        };
        cpu::seconds(pid).map(Some)
    }
}

/// HAProxy as one would set it up in front of Samba: layer 4, spliced where the kernel can.
#[derive(Debug)]
struct HaProxy(Child);

impl HaProxy {
    fn start(net: &Net, dir: &Path, node: &str) -> Result<Self> {
        let config = dir.join("haproxy.cfg");
        let text = format!(
            "global\n    nbthread 1\n    maxconn 1000\ndefaults\n    mode tcp\n    option splice-auto\n    \
             timeout connect 5s\n    timeout client 1h\n    timeout server 1h\nlisten smb\n    bind \
             {HAPROXY}:445\n    server n0 {node}:445\n"
        );
        fs::write(&config, text)?;
        let log = fs::File::create(dir.join("haproxy.log"))?;
        let child = net
            .command("hub", "/usr/sbin/haproxy")
            .args(["-db", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting HAProxy")?;
        let started = Self(child);
        wait_until("HAProxy listens", Duration::from_secs(10), || {
            net.connect("hub", &format!("{HAPROXY}:445")).is_ok()
        })?;
        Ok(started)
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
