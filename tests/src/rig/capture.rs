//! What was on the wire, seen by somebody else: tshark.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Rig, wait_until};

/// A running capture of both legs.
#[derive(Debug)]
pub(crate) struct Capture {
    child: Child,
    file: PathBuf,
}

/// One STATUS_PENDING on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interim {
    /// Whose: the address of a node, or of the proxy.
    pub(crate) from: String,
    pub(crate) message_id: u64,
    pub(crate) credits: u32,
}

impl Capture {
    /// Starts it in the hub, where all traffic passes.
    pub(crate) fn start(rig: &Rig) -> Result<Self> {
        let file = rig.dir.path().join("capture.pcap");
        let _ = std::fs::remove_file(&file);
        let child = rig
            .net
            .command("hub", "tshark")
            .args(["-q", "-i", "br0", "-B", "64", "-f", "tcp port 445", "-w"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting tshark")?;
        // Its header is written when it listens.
        wait_until("tshark captures", Duration::from_secs(20), || {
            file.metadata().is_ok_and(|m| m.len() > 0)
        })?;
        Ok(Self { child, file })
    }

    /// Ends it, and picks out every STATUS_PENDING.
    pub(crate) fn interims(mut self) -> Result<Vec<Interim>> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::INT)?;
        self.child.wait()?;
        let output = Command::new("tshark")
            .args(["-2", "-n", "-r"])
            .arg(&self.file)
            .args(["-R", "smb2.nt_status == 0x103 && smb2.flags.response == 1", "-T", "fields"])
            .args(["-e", "ip.src", "-e", "smb2.msg_id", "-e", "smb2.nt_status", "-e", "smb2.credits.granted"])
            .stdin(Stdio::null())
            .output()
            .context("reading the capture with tshark")?;
        if !output.status.success() {
            bail!("tshark: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout)?
            .lines()
            .map(interims_of)
            .collect::<Result<Vec<_>>>()
            .map(|all| all.concat())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interim responses of one packet: each field lists those of all messages in it.
fn interims_of(line: &str) -> Result<Vec<Interim>> {
    let fields: Vec<Vec<&str>> = line.split('\t').map(|field| field.split(',').collect()).collect();
    let [from, ids, statuses, credits] = fields.as_slice() else { bail!("not four fields: {line}") };
    if ids.len() != statuses.len() || ids.len() != credits.len() {
        bail!("messages lack fields: {line}");
    }
    let mut found = Vec::new();
    for ((id, status), credits) in ids.iter().zip(statuses).zip(credits) {
        if u32::from_str_radix(status.trim_start_matches("0x"), 16)? == 0x103 {
            let from = from.first().context("no address")?.to_string();
            found.push(Interim { from, message_id: id.parse()?, credits: credits.parse()? });
        }
    }
    Ok(found)
}
