//! One message after the other, by a client of our own: every kind of request in Relay, and again after a takeover.

use anyhow::{Context, Result, ensure};
use smb_parse::cmd::lock::{EXCLUSIVE, FAIL_IMMEDIATELY, Lock, UNLOCK};
use understudy_core::crypto::Dialect;

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, Setup, User},
    rig::{Rig, Site, net::FLOATING},
};

/// FileEndOfFileInformation (MS-FSCC 2.4.13).
const END_OF_FILE: u8 = 20;
/// FileStandardInformation (MS-FSCC 2.4.41).
const STANDARD: u8 = 5;
const DIALECTS: [Dialect; 5] =
    [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302, Dialect::SMB311];

pub(super) const CASES: &[Case] = &[Case {
    name: "single-messages",
    shows: "open, write, read, flush, lock, set, query, echo and close on one handle before and after a crash, in each dialect",
    soak: 3,
    run: single_messages,
}];

fn single_messages(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut clients = Vec::new();
    for dialect in DIALECTS {
        for (signing, user) in [(true, User::KNOWN), (false, User::KNOWN), (false, User::Guest)] {
            let setup = Setup { dialect, signing, ..Setup::default() };
            let what = format!("{dialect:x?}, signing {signing}, {user:?}");
            let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
            let at = client.enter(user, "share").with_context(|| what.clone())?;
            let name = format!("file-{}.bin", clients.len());
            let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
            exercise(&mut client, file, 1).with_context(|| what.clone())?;
            clients.push((what, client, at, name, file));
        }
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

/// The file is closed, and its name can be opened again.
fn end(client: &mut Client, at: At, file: File, name: &str) -> Result<()> {
    client.close(file).context("close")?;
    let again = client.open(at, &Open::of(name))?;
    client.close(again).context("second close")
}
