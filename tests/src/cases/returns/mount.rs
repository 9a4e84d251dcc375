//! A kernel mount whose proxy dies comes back by itself, and with its locks.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Fault, owner::Rival};
use crate::{
    cases::Report,
    rig::{Rig, Site, kernel::Guest, net::FLOATING, puppet::Puppet},
};

/// Two files are open and locked. Of the one the kernel knows alone who has locked what; the locks of the other are the server's
/// matter, for somebody else has opened that file meanwhile.
const WORKLOAD: &str = r#"
cat >/tmp/hold.py <<'END'
import fcntl, os, sys, time

share, results = sys.argv[1:]

def tell(word):
    with open("/dev/tty1", "w") as console:
        console.write(f"@ {word}\n")

def wait(name):
    while not os.path.exists(f"{results}/{name}"):
        time.sleep(0.02)

files = [os.open(f"{share}/{name}", os.O_RDWR | os.O_CREAT) for name in ("cached", "pushed")]
for file in files:
    os.pwrite(file, b"before", 0)
    os.fsync(file)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
tell("has locked")
wait("again")
for file in files:
    os.pwrite(file, b"after", 50)
    os.fsync(file)
tell("has written")
wait("enough")
for file in files:
    assert os.pread(file, 55, 0) == b"before" + bytes(44) + b"after"
    fcntl.lockf(file, fcntl.LOCK_UN, 100, 0)
tell("has unlocked")
wait("end")
END
try hold python3 /tmp/hold.py "$share" "$results"
"#;

/// STATUS_LOCK_NOT_GRANTED.
const NOT_GRANTED: u64 = 0xc000_0055;

pub(super) fn comes_back(fault: Fault, site: &Site) -> Result<Report> {
    let mut rig = Rig::new(site)?;
    let mut guest = Guest::boot(&rig, "vers=3.1.1,sign,hard", WORKLOAD)?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    guest.until("files are locked", |g| g.has_said("has locked"))?;
    let before = Rival::arrive(&mut puppet, FLOATING, "before")?;
    ensure!(lock(&mut puppet, &before, "pushed")? == NOT_GRANTED, "the kernel's lock does not bite");

    fault.strike(&mut rig)?;
    // Whoever comes first gets nothing.
    let rival = Rival::arrive(&mut puppet, FLOATING, "after")?;
    let mut waiting = Vec::new();
    for name in ["cached", "pushed"] {
        waiting.push((name, rival.begin_to_steal(&mut puppet, name)?));
    }
    guest.allow("again")?;
    guest.until("the mount is used again", |g| g.has_said("has written"))?;
    for (name, tag) in waiting {
        if let Some(tag) = tag {
            rival.has_stolen_nothing(&mut puppet, name, tag)?;
        }
        let status = lock(&mut puppet, &rival, name)?;
        ensure!(status == NOT_GRANTED, "{name}: the lock is not there any more: {status:#x}");
    }
    guest.allow("enough")?;
    guest.until("everything is unlocked", |g| g.has_said("has unlocked"))?;
    for name in ["cached", "pushed"] {
        let status = lock(&mut puppet, &rival, name)?;
        ensure!(status == 0, "{name} is still locked: {status:#x}");
    }
    guest.allow("end")?;
    guest.finish()?.no_program_failed()?;
    Ok(Report::default())
}

/// Opens a file, locks what the kernel has locked, and closes it.
fn lock(puppet: &mut Puppet, rival: &Rival, name: &str) -> Result<u64> {
    let file = rival.let_in(puppet, name)?;
    let order = json!({"do": "lock", "file": file, "offset": 50, "length": 10, "flags": 0x12});
    let said = rival.call(puppet, order)?;
    rival.call(puppet, json!({"do": "close", "file": file}))?;
    said["status"].as_u64().context("no status")
}
