//! Interim responses (MS-SMB2 3.3.4.2), picked out of a capture file by somebody else: tshark.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// One STATUS_PENDING on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interim {
    /// Whose: the address of a node, or of the proxy.
    pub(crate) from: String,
    pub(crate) message_id: u64,
    pub(crate) credits: u32,
}

/// Picks out every STATUS_PENDING.
pub(crate) fn read(path: &Path) -> Result<Vec<Interim>> {
    let output = Command::new("tshark")
        .args(["-2", "-n", "-r"])
        .arg(path)
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
