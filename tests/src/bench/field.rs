//! The site that is measured: a rig, with HAProxy and a second Understudy beside the first.

use std::{fmt, fs, slice};

use anyhow::{Context, Result};

use super::cpu;
use crate::rig::{
    Rig, Site,
    haproxy::HaProxy,
    net::FLOATING,
    proxy::{Door, Orders, Proxy},
};

const HAPROXY: &str = "10.77.0.101";
const ONE_WORKER: Door = Door { address: "10.77.0.102", admin: "127.0.0.1:9646", space: "hub" };

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
        let node = rig.nodes.get(serving).context("no such node")?;
        let haproxy = HaProxy::start(&rig.net, rig.dir.path(), HAPROXY, slice::from_ref(node))?;
        let node = node.address.clone();
        let dir = rig.dir.path().join("one-worker");
        fs::create_dir_all(&dir)?;
        let one = Orders { config: "workers = 1\n", ..Orders::default() };
        let one_worker = Proxy::start_at(&rig.net, &dir, &rig.nodes, &one, ONE_WORKER)?;
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
            Road::HaProxy => self.haproxy.pid(),
            Road::Understudy => self.rig.proxy.pid(),
            Road::OneWorker => self.one_worker.pid(),
        };
        cpu::seconds(pid).map(Some)
    }
}
