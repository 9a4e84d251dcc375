//! Cleaning up after a program that was stopped by Ctrl-C or `kill -9`, and so could not do it itself.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Waits for the end of its standard input, then removes what carries this process's id. What was taken down in good
/// order is not there any more.
const SCRIPT: &str = r#"
cat >/dev/null
for space in $(ip netns list | grep -o "^us$1x[^ ]*"); do
    pids=$(ip netns pids "$space")
    [ -z "$pids" ] || kill -9 $pids
    ip netns del "$space"
    rm -rf "/etc/netns/$space"
done
[ -n "$KEEP" ] || rm -rf /dev/shm/understudy-"$1"-* /tmp/understudy-"$1"-*
"#;

/// A process that outlives this one. To be kept until the end: dropped, it cleans up.
#[derive(Debug)]
pub(crate) struct Janitor(Child);

impl Janitor {
    /// Starts it, out of reach of the terminal's Ctrl-C.
    pub(crate) fn start() -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "janitor", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the janitor")?;
        Ok(Self(child))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
