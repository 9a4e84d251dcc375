//! Two Links and one file: nothing of the one passes while an Open of the other is not back.

use anyhow::{Context, Result, ensure};
use smb_parse::{cmd::oplock_break::Notification, header::Command};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, File, Open, READ, Setup, User, guid, written},
    rig::{Rig, Site, net::FLOATING},
};

/// SMB2_LEASE_READ_CACHING, and with HANDLE and WRITE (MS-SMB2 2.2.13.2.8).
const READ_CACHING: u32 = 1;
/// See [`READ_CACHING`].
const RWH: u32 = 7;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "two-links-one-file",
        shows: "a write that was in flight at the crash waits for the other client's Open, and breaks its lease",
        soak: 20,
        run: two_links,
    },
    Case {
        name: "lease-break-after-crash",
        shows: "a lease that came back is broken by another client's open, acknowledged, and the open succeeds",
        soak: 5,
        run: lease_break,
    },
];

fn two_links(scale: &Scale) -> Result<Report> {
    let others = if scale.soak { 1_000 } else { 300 };
    let mut rig = Rig::new(&Site::default())?;
    let mut report = Report::default();
    std::fs::write(rig.data().join("common.bin"), vec![b'a'; 1_000])?;
    for n in 0..others {
        std::fs::write(rig.data().join(format!("other-{n}.bin")), b"x")?;
    }
    let mut writer = Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
    let mut reader = Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
    let to = writer.enter(User::KNOWN, "share")?;
    let target = writer.open(to, &Open::of("common.bin"))?;
    let from = reader.enter(User::KNOWN, "share")?;
    // The many others are opened, and so reclaimed, before the one that matters: it comes back late.
    open_others(&mut reader, from, others)?;
    let key = guid();
    let leased =
        reader.open(from, &Open { access: READ, ..Open::of("common.bin") }.leased(2, key, READ_CACHING))?;
    ensure!(reader.read(leased, 0, 1_000)? == vec![b'a'; 1_000], "the reader reads something else");
    ensure!(reader.breaks.is_empty(), "the lease was broken before anybody wrote");

    // The node stands still before it can take the write in, and never moves again.
    let dead = rig.serving()?;
    rig.nodes.get(dead).context("no such node")?.freeze(true);
    let write = writer.send_write(target, 0, &[b'b'; 1_000])?;
    rig.kill_serving()?;

    written(writer.wait(write)?, 1_000).context("the write in flight")?;
    // Had the write passed before the reader's Open was back, its lease would be one of the new node that nothing
    // has broken, and this would wait in vain.
    reader.receive_until(|client| !client.breaks.is_empty()).context("the break of the reader's lease")?;
    broken(&reader, key)?;
    see(&mut reader, leased)?;
    let reclaimed = rig.metric("takeover_opens_total{result=\"reclaimed\"}")?;
    ensure!(reclaimed == f64::from(others + 2), "{reclaimed} of {} Opens are back", others + 2);
    let waits: Vec<_> = rig.proxy.log().iter().filter(|l| l["message"] == "taken over").map(waited).collect();
    report.notes.push(format!("reclaim and barrier by Link, ms: {waits:?}"));
    Ok(report)
}

fn lease_break(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut holders = Vec::new();
    for version in [1, 2] {
        let mut holder = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let at = holder.enter(User::KNOWN, "share")?;
        let name = format!("held-{version}.bin");
        std::fs::write(rig.data().join(&name), b"common")?;
        let key = guid();
        let file = holder.open(at, &Open::of(&name).leased(version, key, RWH))?;
        holders.push((holder, name, key, file));
    }
    rig.kill_serving()?;
    for (holder, name, key, file) in &mut holders {
        ensure!(holder.read(*file, 0, 100)? == b"common", "the holder reads something else");
        ensure!(holder.breaks.is_empty(), "the lease was broken by the takeover");
        let mut other = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let at = other.enter(User::KNOWN, "share")?;
        let open = Open::of(name);
        let asked = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        holder.receive_until(|client| !client.breaks.is_empty()).context("the break")?;
        let broken = holder.breaks.first().context("no break")?.notification;
        let Notification::Lease { lease_key, new_lease_state, .. } = broken else {
            anyhow::bail!("an oplock break for a lease");
        };
        ensure!(lease_key == *key, "another lease was broken");
        ensure!(new_lease_state & 4 == 0, "the lease keeps its write caching: {new_lease_state}");
        holder.acknowledge_lease(file.at, lease_key, new_lease_state)?.success()?;
        let theirs = File::from(at, other.wait(asked)?).context("the open that broke the lease")?;
        ensure!(other.read(theirs, 0, 100)? == b"common", "the other reads something else");
    }
    Ok(Report::default())
}

fn waited(line: &serde_json::Value) -> (f64, f64) {
    let ms = |name: &str| line[name].as_f64().unwrap_or(-1.0);
    (ms("reclaim_ms"), ms("barrier_ms"))
}

fn open_others(client: &mut Client, at: At, count: u32) -> Result<()> {
    for n in 0..count {
        client.open(at, &Open { access: READ, ..Open::of(&format!("other-{n}.bin")) })?;
    }
    Ok(())
}

fn broken(reader: &Client, key: [u8; 16]) -> Result<()> {
    let first = reader.breaks.first().context("no break")?;
    match first.notification {
        Notification::Lease { lease_key, current_lease_state, new_lease_state, .. } => {
            ensure!(lease_key == key, "another lease was broken");
            ensure!(
                (current_lease_state, new_lease_state) == (READ_CACHING, 0),
                "broken to {new_lease_state}"
            );
            Ok(())
        }
        Notification::Oplock { .. } => anyhow::bail!("an oplock break for a lease"),
    }
}

/// Told of the write, the reader looks again and sees it.
fn see(reader: &mut Client, file: File) -> Result<()> {
    let bytes = reader.read(file, 0, 1_000)?;
    ensure!(bytes == vec![b'b'; 1_000], "the reader does not see the write");
    ensure!(reader.breaks.len() == 1, "{} breaks for one write", reader.breaks.len());
    Ok(())
}
