//! HAProxy as one would set it up in front of Samba: layer 4, spliced where the kernel can.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{net::Net, node::Node, wait_until};

/// A running HAProxy. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct HaProxy(Child);

impl HaProxy {
    /// Starts it in the hub, with its files in `dir`, and waits until it listens. The first node serves; more of them
    /// are its backups, and health checks tell when it is their turn.
    pub(crate) fn start(net: &Net, dir: &Path, address: &str, nodes: &[Node]) -> Result<Self> {
        let config = dir.join("haproxy.cfg");
        fs::write(&config, configuration(address, nodes))?;
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
        let address = format!("{address}:445");
        wait_until("HAProxy listens", Duration::from_secs(20), || net.connect("client", &address).is_ok())?;
        Ok(started)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One configuration for all, but for what a failover needs.
fn configuration(address: &str, nodes: &[Node]) -> String {
    let mut text = format!(
        "global
  nbthread 1
  maxconn 1000
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen smb
  bind {address}:445
"
    );
    if nodes.len() > 1 {
        text += "  timeout connect 1s
  option redispatch
  default-server check inter 500ms fall 2 rise 2 on-marked-down shutdown-sessions
";
    }
    for (at, node) in nodes.iter().enumerate() {
        let backup = if at == 0 { "" } else { " backup" };
        text += &format!("  server {} {}:445{backup}\n", node.name, node.address);
    }
    text
}
