//! A Linux kernel with its own SMB client: User Mode Linux in the rig's hub, on a tap of the bridge.
//!
//! The guest's root is the host's `/`, read-only; it writes to one directory of the host. It tells what it has reached
//! by lines on its second console, and the host acts on what it sees.

mod findings;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub(crate) use self::findings::Findings;
use super::{
    Rig,
    net::{FLOATING, Net},
    node::{PASSWORD, USER},
    realm::{NAME, NAMES, Realm},
};

/// The guest's address.
pub(crate) const ADDRESS: &str = "10.77.0.2";
const TAP: &str = "tap0";

/// A running guest. Dropped, none of its processes is left.
#[derive(Debug)]
pub(crate) struct Guest {
    child: Child,
    results: PathBuf,
    console: Receiver<String>,
    shown: Vec<String>,
    said: Receiver<String>,
    heard: Vec<String>,
}

impl Guest {
    /// Makes the directory that the guest will write to, and may read from.
    pub(crate) fn prepare(rig: &Rig) -> Result<PathBuf> {
        Self::prepare_in(rig.dir.path())
    }

    /// The same where there is no rig.
    pub(crate) fn prepare_in(dir: &Path) -> Result<PathBuf> {
        let results = dir.join("guest");
        fs::create_dir_all(&results)?;
        Ok(results)
    }

    /// Boots, mounts the share with these options as the test user, and runs a bash script that knows `$share`,
    /// `$results`, `try`, `say` and `await` (see `init.sh`). In a realm the user logs in with a ticket.
    pub(crate) fn boot(rig: &Rig, options: &str, workload: &str) -> Result<Self> {
        Self::boot_mounts(rig, options, 1, workload)
    }

    /// The same with so many mounts of the share, each on a connection of its own: `$share`, `$share2` ...
    pub(crate) fn boot_mounts(rig: &Rig, options: &str, mounts: usize, workload: &str) -> Result<Self> {
        let options = format!("iocharset=utf8,{options}");
        let Some(realm) = &rig.realm else {
            let login = format!("username={USER},password={PASSWORD},{options}");
            let share = format!("{FLOATING}/share");
            return Self::boot_to(&rig.net, rig.dir.path(), &share, &login, mounts, workload);
        };
        prepare_tickets(rig, realm)?;
        let login = format!("username={USER},sec=krb5,{options}");
        Self::boot_to(&rig.net, rig.dir.path(), &format!("{NAME}/share"), &login, mounts, workload)
    }

    /// The same where there is no rig. `share` is `server/share`; the options say who mounts it.
    pub(crate) fn boot_to(
        net: &Net,
        dir: &Path,
        share: &str,
        options: &str,
        mounts: usize,
        workload: &str,
    ) -> Result<Self> {
        let software = software()?;
        let results = Self::prepare_in(dir)?;
        fs::write(results.join("init.sh"), include_str!("init.sh"))?;
        fs::write(results.join("workload.sh"), workload)?;
        net.add_tap(TAP)?;
        let mount = |from: &Path, to: &str| format!("mount -t hostfs none {to} -o {}", from.display());
        // In a process namespace of its own: when its first process goes, all go.
        let mut child = net
            .command("hub", "unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(software.join("usr/bin/linux.uml"))
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "mem=2048M"])
            .arg(format!("vec0:transport=tap,ifname={TAP},depth=128,gro=1"))
            .args(["con=null", "con0=null,fd:1", "con1=null,fd:2"])
            .args([format!("CASE_SHARE={share}"), format!("CASE_ADDRESS={ADDRESS}")])
            .arg(format!("CASE_MOUNTS={mounts}"))
            .arg(format!("CASE_OPTIONS=\"{options}\""))
            .args(["init=/bin/bash", "--", "-c"])
            .arg(format!(
                "\"{} && {} && exec /bin/bash /mnt/init.sh\"",
                mount(&results, "/mnt"),
                mount(&software, "/srv")
            ))
            // Its memory is a file in the temporary directory, which must be in memory.
            .env("TMPDIR", "/dev/shm")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the guest")?;
        let console = lines(child.stdout.take().context("the guest has no console")?);
        let said = lines(child.stderr.take().context("the guest has no second console")?);
        let mut guest = Self { child, results, console, shown: Vec::new(), said, heard: Vec::new() };
        guest.until("the share is mounted", |g| g.has_said("done mount"))?;
        Ok(guest)
    }

    /// Waits until it is so, while the guest lives.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) -> Result<()> {
        let (start, limit) = (Instant::now(), Duration::from_secs(120));
        loop {
            self.heard.extend(self.said.try_iter());
            self.shown.extend(self.console.try_iter());
            if is_so(self) {
                return Ok(());
            }
            if self.has_said("end") || self.heard.iter().any(|l| l.starts_with("failed ")) {
                bail!("a program failed, or the guest ended, before this: {what}\n{}", self.troubles());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the guest died ({status}) before this: {what}\n{}", self.troubles());
            }
            // A kernel that has panicked does not exit.
            if self.shown.iter().any(|l| l.contains("Kernel panic")) {
                bail!("the guest's kernel panicked before this: {what}\n{}", self.troubles());
            }
            if start.elapsed() > limit {
                bail!("waited {limit:?} in vain: {what}\n{}", self.troubles());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it has said this.
    pub(crate) fn has_said(&self, words: &str) -> bool {
        self.heard.iter().any(|l| l == words)
    }

    /// The end of the last line that it has said with this beginning.
    pub(crate) fn last(&self, beginning: &str) -> Option<String> {
        self.heard.iter().rev().find_map(|l| l.strip_prefix(beginning)).map(|l| l.trim().to_owned())
    }

    /// The ends of all lines that it has said with this beginning.
    pub(crate) fn all(&self, beginning: &str) -> impl Iterator<Item = &str> {
        self.heard.iter().filter_map(move |l| l.strip_prefix(beginning))
    }

    /// How many lines it has said that end so.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.heard.iter().filter(|l| l.ends_with(end)).count()
    }

    /// Lets an `await` of the workload go on.
    pub(crate) fn allow(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.results.join(name), "")?)
    }

    /// Waits for the end of the workload, and tells what came of it.
    pub(crate) fn finish(mut self) -> Result<Findings> {
        self.until("the guest has ended", |g| g.has_said("end"))?;
        Ok(Findings::read(&self.results))
    }

    /// What there is to know when it went wrong.
    fn troubles(&self) -> String {
        let last = self.shown.get(self.shown.len().saturating_sub(25)..).unwrap_or_default().join("\n");
        let heard = self.heard.iter().rev().take(10).rev().cloned().collect::<Vec<_>>().join("\n");
        format!("{}said:\n{heard}\nconsole:\n{last}", Findings::read(&self.results))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guest needs to log in with tickets: the first of them, whoever asks for them, and the server's name.
fn prepare_tickets(rig: &Rig, realm: &Realm) -> Result<()> {
    let results = Guest::prepare(rig)?;
    realm.log_in_to(results.join("ccache"), &rig.net, USER)?;
    let common = fs::read_to_string(realm.file("krb5.conf"))?;
    fs::write(
        results.join("krb5.conf"),
        format!("[libdefaults]\n  default_ccache_name = FILE:/mnt/ccache\n{common}"),
    )?;
    let upcall = results.join("upcall.sh");
    fs::write(&upcall, UPCALL)?;
    fs::set_permissions(&upcall, fs::Permissions::from_mode(0o755))?;
    // These take the places of the machine's.
    let etc = results.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(
        etc.join("hosts"),
        NAMES.iter().map(|(at, name)| format!("{at} {name}\n")).collect::<String>(),
    )?;
    fs::write(etc.join("request-key.conf"), "create cifs.spnego * * /mnt/upcall.sh %k\n")?;
    Ok(())
}

/// The kernel has no environment for whom it calls.
const UPCALL: &str = "#!/bin/bash
export LD_LIBRARY_PATH=/srv/lib/x86_64-linux-gnu
exec /srv/usr/sbin/cifs.upcall --krb5conf=/mnt/krb5.conf \"$1\"
";

/// The unpacked packages, or what to do about their absence.
fn software() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target =
        program.parent().and_then(Path::parent).context("this program lies in no target directory")?;
    let cache = target.join("kernel-client");
    if !cache.join("complete").exists() {
        bail!("{} is not there: run tests/setup.sh (make setup), which fetches it", cache.display());
    }
    Ok(cache.join("root"))
}

/// The lines of a console as they come. It must be a pipe, and be read: the guest waits for whoever reads it.
fn lines(console: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let line = line.strip_prefix("@ ").map_or(line.clone(), str::to_owned);
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
