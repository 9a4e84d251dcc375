//! The state of the art beside it: HAProxy with health checks and a backup server, on the same nodes.

use std::{
    fs,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who},
    net::FLOATING,
    node::Node,
    wait_until,
};

const FILE: &str = "bulk.bin";

pub(super) const CASES: &[Case] = &[Case {
    name: "haproxy-loses-it",
    shows: "for comparison: behind HAProxy the same copies die with their node; a client that comes after is served",
    soak: 7,
    run: loses_it,
}];

fn loses_it(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    ensure!(rig.proxy.stop()?.success(), "the proxy did not end well");
    let _haproxy = HaProxy::start(&rig)?;
    // Without a takeover to be counted, this makes sure that the node dies in mid-copy.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(4))?;
    let mut report = Report::default();
    for way in [Way::Get, Way::Put] {
        let copy = Copy::start(&rig, &Who::SIGNED, way, FILE, scale.copy)?;
        let mut dead = 0;
        let kill = Fault::at(scale.copy / 3, |rig| {
            let file = rig.data().join(FILE);
            let serves = |node: &Node| node.pid_with(&file).is_some();
            dead = rig.nodes.iter().position(serves).context("no node has the file open")?;
            rig.nodes.get_mut(dead).context("no such node")?.kill();
            Ok(())
        });
        let error = copy.run(&mut rig, vec![kill]).err().context("the copy survived")?;
        ensure!(format!("{error:#}").contains("smbclient: exit status"), "{error:#}");
        report.notes.push(format!("{way:?}: {}", format!("{error:#}").lines().next().unwrap_or_default()));
        // It is HAProxy at work, and not a rig in which nothing works: the other node serves whoever comes next.
        await_service(&rig)?;
        Copy::start(&rig, &Who::SIGNED, way, "after.bin", 1 << 20)?.run(&mut rig, Vec::new())?;
        rig.restart(dead)?;
    }
    Ok(report)
}

/// Waits until the floating address leads to the node that lives.
fn await_service(rig: &Rig) -> Result<()> {
    wait_until("the other node serves", Duration::from_secs(30), || {
        let listing = rig
            .net
            .command("client", "smbclient")
            .arg(format!("//{FLOATING}/share"))
            .args(Who::SIGNED.arguments())
            .args(["-c", "ls"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        listing.is_ok_and(|status| status.success())
    })
}

/// HAProxy on the floating address.
struct HaProxy(Child);

impl HaProxy {
    fn start(rig: &Rig) -> Result<Self> {
        let mut text = format!(
            "defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
listen smb
  bind {FLOATING}:445
  option redispatch
  default-server check inter 500ms fall 2 rise 2 on-marked-down shutdown-sessions
"
        );
        for (at, node) in rig.nodes.iter().enumerate() {
            let backup = if at == 0 { "" } else { " backup" };
            text += &format!("  server {} {}:445{backup}\n", node.name, node.address);
        }
        let config = rig.dir.path().join("haproxy.cfg");
        fs::write(&config, text)?;
        let log = fs::File::create(rig.dir.path().join("haproxy.log"))?;
        let child = rig
            .net
            .command("hub", "/usr/sbin/haproxy")
            .args(["-db", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting HAProxy")?;
        let haproxy = Self(child);
        let address = format!("{FLOATING}:445");
        wait_until("HAProxy listens", Duration::from_secs(20), || {
            rig.net.connect("client", &address).is_ok()
        })?;
        Ok(haproxy)
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
