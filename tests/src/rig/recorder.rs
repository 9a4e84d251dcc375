//! Records what passes the hub's bridge, or one port of it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Rig;

/// A recording under way.
#[derive(Debug)]
pub(crate) struct Recorder {
    child: Child,
    said: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Recorder {
    /// Records the SMB traffic of a host, from now on.
    pub(crate) fn of_host(rig: &Rig, host: &str) -> Result<Self> {
        Self::start(rig, host, &format!("v-{host}"))
    }

    /// Records the SMB traffic of the proxy, both legs in one file, from now on.
    pub(crate) fn of_proxy(rig: &Rig) -> Result<Self> {
        Self::start(rig, "proxy", "br0")
    }

    fn start(rig: &Rig, name: &str, device: &str) -> Result<Self> {
        let file = rig.dir.path().join(format!("{name}.pcapng"));
        let mut child = rig
            .net
            .command("hub", "dumpcap")
            // 128 MiB between the kernel and us: nothing may be lost.
            .args(["-q", "-B", "128", "-f", "tcp port 445", "-i", device, "-w"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting dumpcap")?;
        let said = BufReader::new(child.stderr.take().context("dumpcap has no stderr")?);
        let mut recorder = Self { child, said, file };
        recorder.hear("File:").context("dumpcap does not begin")?;
        Ok(recorder)
    }

    /// What has been recorded so far; the kernel hands packets over after a while only.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the recording: its file, with every packet.
    pub(crate) fn stop(mut self) -> Result<PathBuf> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::INT)?;
        // "Packets received/dropped on interface 'v-client': 1234/0 (..)".
        let line = self.hear("received/dropped")?;
        ensure!(self.child.wait()?.success(), "dumpcap failed");
        let counts = line.rsplit("': ").next().and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let dropped = counts.split_once('/').and_then(|(_, dropped)| dropped.parse::<u64>().ok());
        ensure!(dropped == Some(0), "the recording lost packets: {line}");
        Ok(std::mem::take(&mut self.file))
    }

    /// Reads on until a line that holds `text`.
    fn hear(&mut self, text: &str) -> Result<String> {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line)? == 0 {
                bail!("dumpcap ended without saying \"{text}\": {}", said.trim());
            }
            if line.contains(text) {
                return Ok(line.trim().to_owned());
            }
            said += &line;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The name of a recording's host.
pub(crate) fn host(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
