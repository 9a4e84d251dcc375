//! Containers, run by podman as a kubelet would run them: each in a network namespace of the rig's, from images that are built
//! without pulling anything (tests/image.sh), in a storage of their own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{net::Net, wait_until};

/// Podman, and the containers that it was told to run. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Podman {
    storage: PathBuf,
    /// By their full names, with the process that was started last.
    containers: BTreeMap<String, Pid>,
}

impl Podman {
    /// Builds both images. What keeps this machine from it is the error.
    pub(crate) fn new(binary: &Path) -> Result<Self> {
        for program in ["podman", "buildah", "mmdebstrap", "runc"] {
            let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output()?;
            ensure!(found.status.success(), "{program} is not installed: tests/setup.sh does it");
        }
        let program = std::env::current_exe()?;
        let target = program.parent().and_then(Path::parent).context("no target directory")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("image.sh");
        for what in [binary, Path::new("samba")] {
            let built = Command::new(&script).arg(what).env("CARGO_TARGET_DIR", target).output()?;
            ensure!(built.status.success(), "image.sh: {}", String::from_utf8_lossy(&built.stderr).trim());
        }
        Ok(Self { storage: target.join("containers"), containers: BTreeMap::new() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.storage.join("storage"))
            .arg("--runroot")
            .arg(self.storage.join("run"));
        command.args(["--storage-driver", "overlay", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none"]).stdin(Stdio::null());
        command
    }

    /// Runs podman to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.command().args(words).output().context("podman")?;
        if !output.status.success() {
            bail!(
                "podman {}: {}",
                words.first().unwrap_or(&""),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a container in a namespace, and lets it run.
    pub(crate) fn start(&mut self, net: &Net, space: &str, container: &Container) -> Result<()> {
        let name = net.space(&container.name);
        let output = self
            .command()
            .args(["run", "--detach", "--replace"])
            .args(container.words(net, space))
            .output()?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let pid = self.run(&["inspect", "--format", "{{.State.Pid}}", &name])?.parse()?;
        self.containers.insert(name, Pid::from_raw(pid).context("it has ended")?);
        Ok(())
    }

    /// Sends a signal to the first process of a container, as a runtime does it. Without podman, which takes its time: what it befalls
    /// may be over by then.
    pub(crate) fn signal(&self, net: &Net, name: &str, signal: Signal) -> Result<()> {
        Ok(kill_process(self.process(net, name)?, signal)?)
    }

    /// Waits until a container that runs has ended; the status with which its first process did.
    pub(crate) fn await_end(&self, net: &Net, name: &str, limit: Duration) -> Result<String> {
        let process = PathBuf::from(format!("/proc/{}", self.process(net, name)?.as_raw_nonzero()));
        wait_until(&format!("{name} ends"), limit, || !process.exists())?;
        self.run(&["wait", &net.space(name)])
    }

    fn process(&self, net: &Net, name: &str) -> Result<Pid> {
        self.containers.get(&net.space(name)).copied().with_context(|| format!("no container {name}"))
    }

    /// Runs a container in a namespace to its end.
    pub(crate) fn finish(&self, net: &Net, space: &str, container: &Container) -> Result<Output> {
        self.command()
            .args(["run", "--rm", "--replace"])
            .args(container.words(net, space))
            .output()
            .context("podman run")
    }

    /// What a container has printed.
    pub(crate) fn logs(&self, net: &Net, name: &str) -> Result<String> {
        let output = self.command().args(["logs", &net.space(name)]).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for name in self.containers.keys() {
            let _ = self.run(&["rm", "--force", "--time", "0", name]);
        }
    }
}

/// One container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: &'static str,
    /// Its root file system cannot be written to.
    pub(crate) is_read_only: bool,
    /// All others are dropped.
    pub(crate) capabilities: Vec<String>,
    /// Directories of this machine, and where they are in the container; it may write to them if so said.
    pub(crate) mounts: Vec<(PathBuf, &'static str, bool)>,
    /// Names that it is to know.
    pub(crate) hosts: Vec<(String, String)>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) arguments: Vec<String>,
}

impl Container {
    fn words(&self, net: &Net, space: &str) -> Vec<String> {
        let mut words = vec![
            format!("--name={}", net.space(&self.name)),
            format!("--network=ns:/run/netns/{}", net.space(space)),
            "--cap-drop=all".into(),
            "--security-opt=no-new-privileges".into(),
            // Not more than a machine may give that is a container itself.
            "--ulimit=nofile=1024:1024".into(),
            "--ulimit=nproc=4096:4096".into(),
        ];
        if self.is_read_only {
            words.extend(["--read-only".into(), "--read-only-tmpfs=false".into()]);
        }
        words.extend(self.capabilities.iter().map(|name| format!("--cap-add={name}")));
        words.extend(self.hosts.iter().map(|(name, address)| format!("--add-host={name}:{address}")));
        words.extend(self.environment.iter().map(|(name, value)| format!("--env={name}={value}")));
        for (from, to, writable) in &self.mounts {
            words.push(format!("--volume={}:{to}:{}", from.display(), if *writable { "rw" } else { "ro" }));
        }
        words.push(self.image.into());
        words.extend(self.arguments.iter().cloned());
        words
    }
}
