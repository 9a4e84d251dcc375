//! Bulk copies by smbclient, from and to files in memory.

use std::{
    fmt, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    field::{Field, Road},
    quantity::{Quantity, Sample},
};
use crate::rig::{
    Rig,
    copy::{Way, Who, sha256, write_noise},
    wait_until,
};

/// A copy that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(120);
const UNSIGNED: Who = Who { protection: "plain", ..Who::SIGNED };
/// With what most clients and servers choose.
const SEALED: Who = Who { cipher: Some("AES-128-GCM"), ..Who::SEALED };

/// How a copy is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    Unsigned,
    Signed,
    Sealed,
}

impl Protection {
    /// Its word in the name of a work.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Signed => "signed",
            Self::Sealed => "sealed",
        }
    }
}

/// One kind of copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) way: Way,
    pub(crate) protection: Protection,
}

impl Work {
    pub(crate) const ALL: [Self; 6] = [
        Self { way: Way::Get, protection: Protection::Unsigned },
        Self { way: Way::Put, protection: Protection::Unsigned },
        Self { way: Way::Get, protection: Protection::Signed },
        Self { way: Way::Put, protection: Protection::Signed },
        Self { way: Way::Get, protection: Protection::Sealed },
        Self { way: Way::Put, protection: Protection::Sealed },
    ];

    /// Those that cost more than carrying after a takeover.
    pub(crate) fn protected() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|work| work.protection != Protection::Unsigned)
    }

    /// The same in Bridge.
    pub(crate) fn in_bridge(self) -> String {
        format!("{self}, after a takeover")
    }

    fn who(self) -> &'static Who {
        match self.protection {
            Protection::Unsigned => &UNSIGNED,
            Protection::Signed => &Who::SIGNED,
            Protection::Sealed => &SEALED,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.way == Way::Get { "get" } else { "put" };
        write!(f, "{way} {}", self.protection.word())
    }
}

/// The files to be copied.
#[derive(Debug)]
pub(crate) struct Bulk {
    len: u64,
    sha256: String,
    /// The source of a get and the target of a put: what the nodes share.
    shared: [PathBuf; 2],
    /// The same for the client, the other way round.
    local: [PathBuf; 2],
}

impl Bulk {
    pub(crate) fn prepare(rig: &Rig, len: u64) -> Result<Self> {
        let (data, local) = (rig.data(), rig.local()?);
        let bulk = Self {
            len,
            sha256: String::new(),
            shared: [data.join("source.bin"), data.join("target.bin")],
            local: [local.join("target.bin"), local.join("source.bin")],
        };
        write_noise(&bulk.shared[0], len)?;
        fs::copy(&bulk.shared[0], &bulk.local[1])?;
        Ok(Self { sha256: sha256(&bulk.shared[0])?, ..bulk })
    }

    /// Copies once by a road.
    pub(crate) fn copy(&self, field: &Field, road: Road, work: Work) -> Result<Sample> {
        let before = field.cpu(road)?;
        let mut command = self.smbclient(field, field.address(road), work);
        let mut child =
            command.stdin(Stdio::null()).args(["-c", &self.order(work)]).spawn().context("smbclient")?;
        let rate = self.finish(&mut child, work)?;
        Ok(self.sample(rate, before, field.cpu(road)?))
    }

    /// The command that copies.
    pub(crate) fn order(&self, work: Work) -> String {
        let [target, source] = self.local.each_ref().map(|path| path.display());
        match work.way {
            Way::Get => format!("get source.bin {target}"),
            Way::Put => format!("put {source} target.bin"),
        }
    }

    /// smbclient, which waits for commands.
    pub(crate) fn smbclient(&self, field: &Field, address: &str, work: Work) -> Command {
        let mut command = field.rig.net.command("client", "smbclient");
        command
            .arg(format!("//{address}/share"))
            .args(work.who().arguments())
            .args(["-t", "60"])
            .env("HOME", field.rig.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Waits for a copy, looks whether it is right, and removes it. MiB/s.
    pub(crate) fn finish(&self, child: &mut Child, work: Work) -> Result<f64> {
        let ended = wait_until("the copy ends", LIMIT, || !matches!(child.try_wait(), Ok(None)));
        if ended.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        let said = crate::rig::copy::said(child);
        ensure!(ended.is_ok() && status.success(), "{work}: smbclient: {status}: {said}");
        let target = if work.way == Way::Get { &self.local[0] } else { &self.shared[1] };
        let arrived = sha256(target)?;
        fs::remove_file(target)?;
        if arrived != self.sha256 {
            bail!("{work}: the bytes differ: {} became {arrived}", self.sha256);
        }
        rate(&said).with_context(|| format!("smbclient names no rate: {said}"))
    }

    /// From what a proxy's CPU clock said before and after.
    pub(crate) fn sample(&self, rate: f64, before: Option<f64>, after: Option<f64>) -> Sample {
        let gib = self.len as f64 / f64::from(1 << 30);
        let cpu = before.zip(after).map(|(before, after)| (Quantity::CpuPerGib, (after - before) / gib));
        [(Quantity::Rate, rate)].into_iter().chain(cpu).collect()
    }
}

/// smbclient's `(1234.5 kb/s)` or `(1234.5 KiloBytes/sec)`, as MiB/s.
fn rate(said: &str) -> Option<f64> {
    let line = said.lines().find(|l| l.contains("KiloBytes/sec") || l.contains("kb/s"))?;
    let word = line.split('(').nth(1)?.split_whitespace().next()?;
    word.parse().ok().map(|kib: f64| kib / 1024.0)
}
