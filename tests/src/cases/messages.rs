//! One message after the other, by a client of our own: every kind of request in Relay, and again after a takeover.

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::lock::{EXCLUSIVE, FAIL_IMMEDIATELY, Lock, UNLOCK},
    create_context::tag,
    encode,
    header::{Command, Status},
};
use understudy_core::crypto::Dialect;

use super::{Case, Report};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{Rig, Site, net::FLOATING},
};

/// FileEndOfFileInformation (MS-FSCC 2.4.13).
const END_OF_FILE: u8 = 20;
/// FileStandardInformation (MS-FSCC 2.4.41).
const STANDARD: u8 = 5;
/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 0x09;
/// Read, handle and write caching (MS-SMB2 2.2.13.2.8).
const RWH: u32 = 7;
const DIALECTS: [Dialect; 5] =
    [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302, Dialect::SMB311];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "cancelled-lock",
        shows: "a lock that waits after a takeover is granted when it can be, or cancelled when that is asked for",
        soak: 3,
        run: |_| cancelled_lock(&Setup::default()),
    },
    Case {
        name: "single-messages",
        shows: "open, write, read, flush, lock, set, query, echo and close on one handle before and after a crash, in each dialect",
        soak: 3,
        run: |_| {
            let each = |dialect| {
                [(true, User::KNOWN), (false, User::KNOWN), (false, User::Guest)]
                    .map(|(signing, user)| (Setup { dialect, signing, ..Setup::default() }, user))
            };
            single_messages(DIALECTS.map(each).as_flattened())
        },
    },
];

/// Everything before and after a crash, on a connection of each kind.
pub(super) fn single_messages(setups: &[(Setup, User<'_>)]) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut clients = Vec::new();
    for (setup, user) in setups {
        let what = format!("{:x?}, signing {}, {:?}, {user:?}", setup.dialect, setup.signing, setup.cipher);
        let mut client = Client::connect(&rig.net, FLOATING, setup)?;
        let at = client.enter(*user, "share").with_context(|| what.clone())?;
        let name = format!("file-{}.bin", clients.len());
        let file = client.open(at, &opened(setup.dialect, clients.len(), &name))?;
        exercise(&mut client, file, 1).with_context(|| what.clone())?;
        clients.push((what, client, at, name, file));
    }
    let dead = rig.kill_serving()?;
    for (what, client, at, name, file) in &mut clients {
        exercise(client, *file, 2).with_context(|| format!("{what}, after the crash"))?;
        end(client, *at, *file, name).with_context(|| format!("{what}, after the crash"))?;
    }
    rig.restart(dead)?;
    let report = Report { notes: vec![format!("{} connections", clients.len())], ..Report::default() };
    Ok(report)
}

/// Plain, or with the contexts of the clients that ask for leases and durable handles.
fn opened(dialect: Dialect, index: usize, name: &str) -> Open<'_> {
    let plain = Open { disposition: FILE_OPEN_IF, ..Open::of(name) };
    let on_disk_id = (tag::QFID, encode::query_on_disk_id());
    match index % 3 {
        1 if dialect > Dialect::SMB202 => {
            let contexts = vec![(tag::DHNQ, encode::durable_request())];
            Open { contexts, ..plain }.leased(1, guid(), RWH)
        }
        2 if dialect >= Dialect::SMB300 => {
            let contexts = vec![(tag::DH2Q, encode::durable_v2_request(30_000, guid())), on_disk_id];
            Open { contexts, ..plain }.leased(2, guid(), RWH)
        }
        1 | 2 => Open { oplock: BATCH, contexts: vec![on_disk_id], ..plain },
        _ => plain,
    }
}

/// Everything that can be done with an open file.
fn exercise(client: &mut Client, file: File, salt: u8) -> Result<()> {
    let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8 ^ salt).collect();
    client.write(file, 0, &bytes).context("write")?;
    client.flush(file).context("flush")?;
    ensure!(client.read(file, 0, 40_000).context("read")? == bytes, "read something else than was written");
    let lock = Lock { offset: 10, length: 20, flags: EXCLUSIVE | FAIL_IMMEDIATELY };
    client.lock(file, &[lock])?.success().context("lock")?;
    client.lock(file, &[Lock { flags: UNLOCK, ..lock }])?.success().context("unlock")?;
    client.set_info(file, END_OF_FILE, &30_000_u64.to_le_bytes())?.success().context("end of file")?;
    let standard = client.query_info(file, STANDARD).context("query")?;
    let end = standard.get(8..16).context("a short answer")?;
    ensure!(end == 30_000_u64.to_le_bytes(), "the end of file is {end:?}");
    client.echo(file.at).context("echo")
}

pub(super) fn cancelled_lock(setup: &Setup) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, setup)?;
    let at = client.enter(User::KNOWN, "share")?;
    let open = Open { disposition: FILE_OPEN_IF, ..Open::of("locked.bin") };
    let (holder, waiter) = (client.open(at, &open)?, client.open(at, &open)?);
    let held = Lock { offset: 0, length: 10, flags: EXCLUSIVE | FAIL_IMMEDIATELY };
    client.lock(holder, &[held])?.success()?;
    rig.kill_serving()?;
    client.read(waiter, 100, 1).err().context("there was something to read")?;

    let waiting = Lock { flags: EXCLUSIVE, ..held };
    let wait = |client: &mut Client| -> Result<u64> {
        let before = client.interims;
        let id = client.send(at, Command::LOCK, 1, |h| encode::lock(h, waiter.id, 0, &[waiting]))?;
        client.receive_until(|client| client.interims > before)?;
        Ok(id)
    };
    let cancelled = wait(&mut client)?;
    client.cancel(at, cancelled)?;
    let status = client.wait(cancelled)?.status();
    ensure!(status == Status::CANCELLED, "the cancelled lock got {status:x?}");
    let granted = wait(&mut client)?;
    client.lock(holder, &[Lock { flags: UNLOCK, ..held }])?.success()?;
    client.wait(granted)?.success().context("the lock that could be granted")?;
    client.echo(at)?;
    Ok(Report::default())
}

/// The file is closed, and its name can be opened again.
fn end(client: &mut Client, at: At, file: File, name: &str) -> Result<()> {
    client.close(file).context("close")?;
    let again = client.open(at, &Open::of(name))?;
    client.close(again).context("second close")
}
