//! One smbtorture test, once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::rig::{
    Rig,
    node::{PASSWORD, USER, WORKGROUP},
};

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Pass,
    Fail,
    Skip,
    Timeout,
}

impl Outcome {
    pub(super) const ALL: [(Self, &'static str); 4] =
        [(Self::Pass, "pass"), (Self::Fail, "fail"), (Self::Skip, "skip"), (Self::Timeout, "timeout")];

    /// As it stands in lists.
    pub(super) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(outcome, _)| *outcome == self).map_or("?", |(_, word)| word)
    }

    /// Reads [`Self::word`].
    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(outcome, _)| *outcome)
    }
}

/// What became of a test, and why.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub(super) outcome: Outcome,
    /// smbtorture's words about what it did not like.
    pub(super) said: String,
    pub(super) took: Duration,
    /// How often the proxy took a Link over meanwhile.
    pub(super) takeovers: u32,
}

/// The names of all tests of a part of smbtorture, as it is told them.
pub(super) fn names(rig: &Rig, part: &str) -> Result<Vec<String>> {
    let output = rig.samba_tool("client", "/usr/bin/smbtorture").arg("--list").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = format!("{part}.");
    Ok(text.lines().filter(|l| l.starts_with(&prefix)).map(without_echo).collect())
}

/// `smb2.read.eof.eof`, as the list has it, is asked for as `smb2.read.eof`.
fn without_echo(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((rest, last)) if rest.rsplit('.').next() == Some(last) => rest.to_owned(),
        _ => name.to_owned(),
    }
}

/// Runs a test against this address, on an empty share. `meanwhile` is called every few milliseconds.
pub(super) fn run(
    rig: &Rig,
    address: &str,
    test: &str,
    limit: Duration,
    meanwhile: &mut dyn FnMut() -> Result<()>,
) -> Result<Finding> {
    empty(&rig.data())?;
    let local = rig.local()?;
    let said = local.join("said");
    let file = fs::File::create(&said)?;
    let mut command = rig.samba_tool("client", "/usr/bin/smbtorture");
    command
        .arg(format!("//{address}/share"))
        .args(["-s", &configuration(&local)?.display().to_string()])
        .args(["-U", &format!("{USER}%{PASSWORD}"), "-W", WORKGROUP])
        .args(["--target=samba3", "--format=subunit", "--option=torture:progress=no", test])
        .current_dir(&local)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let start = Instant::now();
    let mut child = Running(command.spawn().context("starting smbtorture")?);
    let ended = loop {
        if let Some(status) = child.0.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            break None;
        }
        meanwhile()?;
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(child);
    let text = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
    let outcome = match ended {
        Some(status) => classify(&text, status.success()),
        None => Outcome::Timeout,
    };
    Ok(Finding { outcome, said: complaint(&text), took: start.elapsed(), takeovers: 0 })
}

/// Killed if it is still there when nobody waits any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// smbtorture's own settings: nothing of the machine's.
fn configuration(local: &Path) -> Result<PathBuf> {
    let dir = local.display();
    let path = local.join("smb.conf");
    fs::write(
        &path,
        format!(
            "[global]
   workgroup = {WORKGROUP}
   private dir = {dir}
   lock directory = {dir}
   state directory = {dir}
   cache directory = {dir}
   client min protocol = SMB2_02
"
        ),
    )?;
    Ok(path)
}

/// Removes what earlier tests have left.
fn empty(data: &Path) -> Result<()> {
    for entry in fs::read_dir(data)?.flatten() {
        let path = entry.path();
        let removed =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn classify(text: &str, success: bool) -> Outcome {
    let has = |word: &str| text.lines().any(|line| line.starts_with(word));
    if has("failure: ") || has("error: ") {
        Outcome::Fail
    } else if has("skip: ") {
        Outcome::Skip
    } else if has("success: ") && success {
        Outcome::Pass
    } else {
        Outcome::Fail
    }
}

/// What stands between the brackets of a failure, or the end of what was said.
fn complaint(text: &str) -> String {
    let from = ["failure: ", "error: ", "skip: "].iter().filter_map(|word| {
        let at = if text.starts_with(word) { Some(0) } else { text.find(&format!("\n{word}")) }?;
        text.get(at..)
    });
    let part = from.max_by_key(|rest| rest.len()).unwrap_or_else(|| {
        let tail = text.char_indices().rev().nth(400).map_or(0, |(at, _)| at);
        text.get(tail..).unwrap_or_default()
    });
    part.lines().map(str::trim).filter(|l| !l.is_empty()).take(8).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_smbtorture_says_is_understood() {
        let failed = "time: x\ntest: read.eof\nfailure: read.eof [\nread.c:1: bad\n]\n";
        assert_eq!(classify(failed, false), Outcome::Fail);
        assert!(complaint(failed).contains("bad"));
        assert_eq!(classify("test: eof\nsuccess: eof\n", true), Outcome::Pass);
        assert_eq!(classify("test: eof\nsuccess: eof\n", false), Outcome::Fail);
        assert_eq!(classify("test: eof\nskip: eof [\nno\n]\n", true), Outcome::Skip);
        assert_eq!(classify("", true), Outcome::Fail);
    }

    #[test]
    fn the_last_part_of_a_name_is_said_once() {
        assert_eq!(without_echo("smb2.read.eof.eof"), "smb2.read.eof");
        assert_eq!(without_echo("smb2.connect"), "smb2.connect");
    }
}
