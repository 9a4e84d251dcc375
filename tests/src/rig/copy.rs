//! A client that copies, watched: how far the copy is, and how long it stood still. smbclient, or a Python client.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{
    Rig,
    net::FLOATING,
    node::{PASSWORD, USER},
    realm::NAME,
};

/// Who copies, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) dialect: &'static str,
    /// `None`: as guest.
    pub(crate) user: Option<&'static str>,
    /// `sign`, `plain` or `encrypt`.
    pub(crate) protection: &'static str,
    /// Begins with an SMB1 NEGOTIATE, as Windows does (MS-SMB2 3.3.5.3).
    pub(crate) multi_protocol: bool,
    /// Logs in with a ticket of the site's realm, instead of the password.
    pub(crate) kerberos: bool,
    /// The only cipher it knows, by Samba's name for it; `None`: all.
    pub(crate) cipher: Option<&'static str>,
}

impl Who {
    pub(crate) const SIGNED: Self = Self {
        dialect: "SMB3_11",
        user: Some(USER),
        protection: "sign",
        multi_protocol: false,
        kerberos: false,
        cipher: None,
    };
    pub(crate) const KERBEROS: Self = Self { kerberos: true, ..Self::SIGNED };
    pub(crate) const SEALED: Self = Self { protection: "encrypt", ..Self::SIGNED };
    pub(crate) const GUEST: Self = Self { user: None, protection: "plain", ..Self::SIGNED };

    /// smbclient's words for it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            "-m".into(),
            self.dialect.into(),
            format!("--option=client min protocol={}", if self.multi_protocol { "NT1" } else { "SMB2_02" }),
            format!("--client-protection={}", if self.user.is_none() { "off" } else { self.protection }),
        ];
        if self.user.is_some() && self.protection == "plain" {
            words.pop();
            words.push("--client-protection=off".into());
        }
        words.extend(self.cipher.map(|name| format!("--option=client smb3 encryption algorithms={name}")));
        match self.user {
            _ if self.kerberos => words.push("--use-kerberos=required".into()),
            Some(user) => words.push(format!("-U{user}%{PASSWORD}")),
            None => words.extend(["-N".into(), "-Unobody%".into()]),
        }
        words
    }
}

/// smbclient in the clients' namespace, with a new ticket if it needs one.
pub(crate) fn smbclient(rig: &Rig, who: &Who) -> Result<Command> {
    if !who.kerberos {
        return Ok(rig.net.command("client", "smbclient"));
    }
    let tickets = rig.realm()?.log_in(&rig.net, who.user.context("a guest has no ticket")?)?;
    Ok(tickets.smbclient(&rig.net))
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Get,
    Put,
}

/// Whether a copy failed because smbclient gave up: by its status, or by the signal that a write to a connection brings
/// when that is gone.
pub(crate) fn gave_up(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("smbclient: ")
}

/// What came of a copy.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The longest time without progress after the first fault.
    pub(crate) stall: Duration,
    /// Of what was to be copied.
    pub(crate) source_sha256: String,
    /// Of the copy.
    pub(crate) sha256: String,
}

/// Something to do once so many bytes have been copied.
pub(crate) struct Fault<'a> {
    pub(crate) at: u64,
    pub(crate) act: Act<'a>,
}

/// What a fault does to the site.
pub(crate) type Act<'a> = Box<dyn FnMut(&mut Rig) -> Result<()> + 'a>;

impl<'a> Fault<'a> {
    pub(crate) fn at(at: u64, act: impl FnMut(&mut Rig) -> Result<()> + 'a) -> Self {
        Self { at, act: Box::new(act) }
    }
}

/// Where a copy begins and ends.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) target: PathBuf,
    pub(crate) len: u64,
    pub(crate) sha256: String,
}

/// Makes the file to be copied.
pub(crate) fn prepare(rig: &Rig, way: Way, name: &str, len: u64) -> Result<Files> {
    let (share, local) = (rig.data().join(name), rig.local()?.join(name));
    let (source, target) = if way == Way::Get { (share, local) } else { (local, share) };
    let _ = fs::remove_file(&target);
    if !fs::metadata(&source).is_ok_and(|m| m.len() == len) {
        write_noise(&source, len)?;
    }
    let sha256 = sha256(&source)?;
    Ok(Files { target, len, sha256 })
}

/// A client that is neither Samba's nor the kernel's (tests/python).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Python {
    /// The library it is made of.
    pub(crate) library: &'static str,
    pub(crate) sealed: bool,
}

impl Python {
    /// Its command line.
    fn command(&self, rig: &Rig, way: Way, name: &str, local: &Path) -> Result<Command> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/copy_file.py");
        let mut command = rig.net.command("client", &python()?.display().to_string());
        command.arg(script).arg(self.library);
        command.arg(if way == Way::Get { "get" } else { "put" });
        command.arg(if self.sealed { "sealed" } else { "signed" });
        command.args([FLOATING, USER, PASSWORD, name]).arg(local);
        Ok(command)
    }
}

/// The interpreter of the environment that `tests/python-clients.sh` makes, in the target directory of this program.
pub(super) fn python() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("no target directory")?;
    let path = target.join("python-clients/bin/python");
    if !path.exists() {
        bail!("{} is not there: tests/setup.sh makes it", path.display());
    }
    Ok(path)
}

/// A running copy.
#[derive(Debug)]
pub(crate) struct Copy {
    program: &'static str,
    child: Child,
    files: Files,
    begun: Instant,
}

impl Copy {
    /// Starts smbclient from the clients' namespace, to `server`.
    pub(crate) fn start(rig: &Rig, who: &Who, way: Way, name: &str, len: u64) -> Result<Self> {
        Self::start_to(rig, if who.kerberos { NAME } else { FLOATING }, who, way, name, len)
    }

    /// The same, to another address.
    pub(crate) fn start_to(
        rig: &Rig,
        server: &str,
        who: &Who,
        way: Way,
        name: &str,
        len: u64,
    ) -> Result<Self> {
        let files = prepare(rig, way, name, len)?;
        let local = rig.local()?.join(name);
        let verb = if way == Way::Get { "get" } else { "put" };
        let order = match way {
            Way::Get => format!("{verb} {name} {}", local.display()),
            Way::Put => format!("{verb} {} {name}", local.display()),
        };
        let mut command = smbclient(rig, who)?;
        command.arg(format!("//{server}/share")).args(who.arguments()).args(["-t", "120", "-c", &order]);
        Self::spawn(rig, "smbclient", command, files)
    }

    /// Starts a Python client from the clients' namespace.
    pub(crate) fn start_python(rig: &Rig, who: &Python, way: Way, name: &str, len: u64) -> Result<Self> {
        let files = prepare(rig, way, name, len)?;
        let command = who.command(rig, way, name, &rig.local()?.join(name))?;
        Self::spawn(rig, who.library, command, files)
    }

    fn spawn(rig: &Rig, program: &'static str, mut command: Command, files: Files) -> Result<Self> {
        let child = command
            .env("HOME", rig.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Self { program, child, files, begun: Instant::now() })
    }

    /// Where it writes to.
    pub(crate) fn target(&self) -> &Path {
        &self.files.target
    }

    /// Bytes that have arrived.
    pub(crate) fn progress(&self) -> u64 {
        fs::metadata(&self.files.target).map_or(0, |m| m.len())
    }

    /// Watches the copy to its end, with faults on its way. All faults must have come, and the bytes be equal.
    pub(crate) fn run(mut self, rig: &mut Rig, mut faults: Vec<Fault<'_>>) -> Result<Outcome> {
        faults.reverse();
        let limit = Duration::from_secs(300);
        let (mut last, mut moved) = (0, Instant::now());
        let (mut stall, mut faulted) = (Duration::ZERO, false);
        let status = loop {
            let now = self.progress();
            if now != last {
                if faulted {
                    stall = stall.max(moved.elapsed());
                }
                (last, moved) = (now, Instant::now());
            }
            if faults.last().is_some_and(|f| now >= f.at) {
                if let Some(mut fault) = faults.pop() {
                    moved = Instant::now();
                    faulted = true;
                    (fault.act)(rig)?;
                }
                continue;
            }
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.begun.elapsed() > limit {
                let _ = self.child.kill();
                bail!("the copy hangs at {now} of {} bytes", self.files.len);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let said = said(&mut self.child);
        if !status.success() {
            bail!("{}: {status}, {last} of {} bytes: {said}", self.program, self.files.len);
        }
        if !faults.is_empty() {
            bail!("the copy ended before {} of its faults came", faults.len());
        }
        let sha256 = sha256(&self.files.target)?;
        if sha256 != self.files.sha256 {
            bail!("the bytes differ: {} became {sha256}", self.files.sha256);
        }
        Ok(Outcome { stall, source_sha256: self.files.sha256.clone(), sha256 })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An smbclient that is connected and waits for orders.
#[derive(Debug)]
pub(crate) struct Idle(Child);

impl Idle {
    /// Starts it.
    pub(crate) fn start(rig: &Rig, who: &Who) -> Result<Self> {
        let mut command = rig.net.command("client", "smbclient");
        command.arg(format!("//{FLOATING}/share")).args(who.arguments()).env("HOME", rig.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(Self).context("starting smbclient")
    }

    /// Lets it log off.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "smbclient: {status}: {}", said(&mut self.0));
        Ok(())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a child that has ended printed.
pub(crate) fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(out) = &mut child.stdout {
        let _ = out.read_to_string(&mut text);
    }
    if let Some(err) = &mut child.stderr {
        let _ = err.read_to_string(&mut text);
    }
    text.trim().to_owned()
}

/// The checksum of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// A file of bytes that do not repeat.
pub(crate) fn write_noise(path: &Path, len: u64) -> Result<()> {
    let mut noise = fs::File::open("/dev/urandom")?.take(len);
    let mut file = fs::File::create(path)?;
    std::io::copy(&mut noise, &mut file)?;
    Ok(())
}
