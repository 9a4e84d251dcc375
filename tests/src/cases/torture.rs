//! smbtorture's tests of SMB2: Samba's own idea of what a server does, asked of the proxy.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Case, Report};
use crate::torture::{self, Options, Way};

/// Of each part of the protocol something; quick ones, that pass on every Samba tried.
const CHOSEN: &[&str] = &[
    "smb2.acls.CREATOR",
    "smb2.acls.OWNER-RIGHTS",
    "smb2.compound.related1",
    "smb2.compound.related6",
    "smb2.compound.interim1",
    "smb2.connect",
    "smb2.create.multi",
    "smb2.create.brlocked",
    "smb2.dir.find",
    "smb2.dir.fixed",
    "smb2.durable-open.reopen1",
    "smb2.durable-open.reopen2",
    "smb2.durable-v2-open.reopen2",
    "smb2.fileid.unique",
    "smb2.getinfo.granted",
    "smb2.ioctl.copy_chunk_simple",
    "smb2.ioctl.sparse_punch",
    "smb2.lease.upgrade",
    "smb2.lease.v2_complex2",
    "smb2.lease.duplicate_open",
    "smb2.lock.rw-shared",
    "smb2.lock.async",
    "smb2.notify.double",
    "smb2.notify.rmdir1",
    "smb2.oplock.batch25",
    "smb2.oplock.exclusive9",
    "smb2.read.eof",
    "smb2.rename.msword",
    "smb2.session.reauth1",
    "smb2.streams.io",
];

/// Those among them that have something open for more than a few answers.
const CRASHED: &[&str] = &[
    "smb2.create.brlocked",
    "smb2.create.delete",
    "smb2.fileid.fileid-dir",
    "smb2.getinfo.getinfo_access",
    "smb2.getinfo.normalized",
    "smb2.read.eof",
];

/// Those that lose connections.
const LEFT: &[&str] = &[
    "smb2.durable-open.lock-lease",
    "smb2.durable-open.lock-oplock",
    "smb2.durable-open.reopen2",
    "smb2.durable-open.reopen2a",
    "smb2.durable-open.reopen4",
    "smb2.durable-v2-open.reopen2",
    "smb2.durable-v2-open.reopen2-lease",
    "smb2.durable-v2-open.reopen2-lease-v2",
    "smb2.durable-v2-open.reopen2b",
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "smbtorture",
        shows: "smbtorture's smb2 tests that pass against a node pass through the proxy (30 of them; in soak all)",
        soak: 1,
        run: |scale| {
            if scale.soak { all("", &[Way::Proxy]) } else { pass(CHOSEN, &[Way::Direct, Way::Proxy]) }
        },
    },
    Case {
        name: "smbtorture-crashes",
        shows: "and so they do while the node is lost after every 7th answer, cut off or killed (a few; in soak all but those listed)",
        soak: 1,
        run: |scale| {
            if scale.soak {
                all("", &[Way::Same, Way::Other])
            } else {
                pass(CRASHED, &[Way::Same, Way::Other])
            }
        },
    },
    Case {
        name: "smbtorture-bridge",
        shows: "smb2.durable-*: clients lose their connections and come back, in Bridge from their first session on; in soak all of them, smb2.replay too, and with a node that dies whenever a client leaves",
        soak: 1,
        run: |scale| {
            if scale.soak {
                all(DURABLE, &[Way::Bridge, Way::Gone])
            } else {
                pass(LEFT, &[Way::Proxy, Way::Bridge, Way::Gone])
            }
        },
    },
];

/// The tests of clients that lose their connections and come back.
const DURABLE: &str = "smb2.durable-,smb2.replay.";

fn pass(tests: &[&str], ways: &[Way]) -> Result<Report> {
    let takeovers = torture::all_pass(tests, ways, torture::EVERY)?;
    let takes_over = ways.iter().any(|way| matches!(way, Way::Other | Way::Bridge));
    ensure!(takeovers > 0 || !takes_over, "nothing was taken over");
    Ok(Report { notes: vec![format!("{} tests, {takeovers} takeovers", tests.len())], ..Report::default() })
}

fn all(filter: &str, ways: &[Way]) -> Result<Report> {
    for way in ways {
        torture::run(&Options {
            filter: filter.to_owned(),
            way: *way,
            every: torture::EVERY,
            jobs: 4,
            out: PathBuf::from("out/torture"),
            write: false,
        })?;
    }
    Ok(Report::default())
}
