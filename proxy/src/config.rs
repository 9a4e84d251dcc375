//! The configuration file. Every mistake in it is found at once and named with its line and a remedy.

mod ha;
mod nodes;
mod read;
mod store;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use understudy_core::{fleet::Found, link::SideChannelMode};
use understudy_state::EtcdOptions;

#[cfg_attr(not(feature = "k8s"), allow(unused_imports, reason = "who watches them is not built"))]
pub(crate) use self::nodes::{FindMeans, SlicesConfig};
use crate::persist::OnFailure;

/// A whole configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// None if they are found.
    pub(crate) nodes: Vec<NodeConfig>,
    /// `[nodes]`: by what they are found.
    pub(crate) find: Option<FindMeans>,
    /// smbpasswd file.
    pub(crate) ntlm: Option<PathBuf>,
    /// `[compare]`: by whom, and on which shares, volumes are compared.
    pub(crate) compare: Option<CompareConfig>,
    /// The keytab of the nodes' service.
    pub(crate) keytab: Option<PathBuf>,
    pub(crate) store: StoreUrl,
    /// `[ha]`: this is one of several proxies.
    pub(crate) ha: Option<HaConfig>,
    /// `[vip]`: the addresses that this process takes itself.
    pub(crate) vip: Option<VipConfig>,
    pub(crate) fence: Option<FenceMeans>,
    pub(crate) fence_timeout: Duration,
    pub(crate) unfenced_silence: bool,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) probe_interval: Duration,
    pub(crate) silence_after: Duration,
    pub(crate) takeover_deadline: Duration,
    pub(crate) grace_park: Duration,
    /// How long the files of absent clients are kept from others, if their node or the proxy was lost.
    pub(crate) grace: Duration,
    /// What happens to clients whose Opens cannot be stored.
    pub(crate) on_store_failure: OnFailure,
    pub(crate) shutdown_grace: Duration,
    /// How often within a minute a client's leg to a node that lives on may be lost before the client's own is reset.
    pub(crate) leg_losses_per_minute: usize,
    /// `[clients] first_frame`: how long a client may be connected before it has sent a whole frame (default 30 s).
    pub(crate) first_frame: Duration,
    /// `[clients] half_frame`: how long it may take over a frame without sending a byte of it (default 60 s).
    pub(crate) half_frame: Duration,
    /// `[side_channel] open`: when a side channel is opened.
    pub(crate) side_channel: SideChannelMode,
    /// `[side_channel] stuck_after`: how long a client's process on its node may be silent (default 10 s).
    pub(crate) stuck_after: Duration,
    pub(crate) workers: usize,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: String,
}

/// One Samba node.
#[derive(Debug, Clone)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    /// `host:port`; the host is an address or a name.
    pub(crate) address: String,
    /// Of a pod that was found: which of all that are called so.
    #[cfg_attr(not(feature = "k8s"), allow(dead_code, reason = "who fences pods is not built"))]
    pub(crate) uid: Option<String>,
}

impl From<Found> for NodeConfig {
    fn from(found: Found) -> Self {
        Self { name: found.name, address: found.address, uid: found.uid }
    }
}

/// By what a node is fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FenceMeans {
    /// `[fence] exec`: a program and its arguments.
    Exec(Vec<String>),
    /// `[fence] kubernetes`: the API server; the nodes are called as their pods in this namespace are.
    Kubernetes(String),
}

/// Who looks at the nodes' volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompareConfig {
    /// A user of the smbpasswd file.
    pub(crate) user: String,
    pub(crate) shares: Vec<String>,
}

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    Memory,
    File(PathBuf),
    Etcd(EtcdOptions),
}

/// How one of several proxies is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HaConfig {
    /// What the others call this one.
    pub(crate) name: String,
    /// Where it answers them.
    pub(crate) heartbeat: SocketAddr,
    /// How long a leader stays one that nobody hears of any more.
    pub(crate) lease: Duration,
    /// How long a leader may be silent before it is deposed.
    pub(crate) silence: Duration,
    /// How long a leader trusts in that it is one; who follows a deposed one waits as long.
    pub(crate) confirm: Duration,
    /// `[ha] kubernetes`: the pod of the proxy that serves has a label.
    pub(crate) pods: Option<PodsConfig>,
}

/// The pods of several proxies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodsConfig {
    pub(crate) namespace: String,
    /// What selects all of them, and nothing else.
    pub(crate) selector: String,
    /// This proxy's own.
    pub(crate) own: String,
}

/// Addresses to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VipConfig {
    /// Each with the length of its prefix.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    pub(crate) interface: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Human,
    Json,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Counted from 1; `None` if it is about something that is missing.
    pub(crate) line: Option<usize>,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}\n    {}", self.what, self.remedy),
            None => write!(f, "{}\n    {}", self.what, self.remedy),
        }
    }
}

impl Config {
    /// Reads the text of a configuration. `demo` allows what loses state.
    ///
    /// # Errors
    /// All mistakes, in the order of their lines.
    pub(crate) fn parse(text: &str, demo: bool) -> Result<Self, Vec<Mistake>> {
        read::parse(text, demo, |name| std::env::var(name).ok())
    }
}
