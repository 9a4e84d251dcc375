//! What can be done with the client's own FileIds, and how long they live.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use smb_parse::{
    cmd::create,
    create_context::tag,
    encode,
    header::{Command, Status},
};

use super::{Pair, Stage, Trial, alone};
use crate::{
    client::{At, Client, DELETE_ON_CLOSE, File, Open, Setup, written},
    rig::wait_until,
};

pub(super) const TRIALS: &[Trial] = &[
    ("FLUSH, no sharing", |stage| flush(stage, alone("plain.bin"))),
    ("FLUSH, no sharing, RWH lease", |stage| flush(stage, alone("lease.bin").leased(2, [7; 16], 7))),
    ("FLUSH, no sharing, batch oplock", |stage| flush(stage, Open { oplock: 9, ..alone("batch.bin") })),
    ("FLUSH, 64 writes in flight", flush_amid_writes),
    ("QUERY_INFO: inode, granted access, size", query),
    ("side channel closed, RST", closed),
    ("client's TCP ends first: handle, other opens", outlives),
    ("client's TCP ends first: delete-on-close", delete_on_close),
    ("client's TCP ends first: durable reconnect", durable),
    ("LOGOFF of the client", logoff),
];

fn flush(stage: &Stage<'_>, open: Open<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    let file = pair.main.open(pair.at, &open)?;
    pair.main.write(file, 0, b"not yet on the disk")?;
    pair.side.flush(file)?;
    pair.is_undisturbed(file)?;
    Ok("yes".into())
}

fn flush_amid_writes(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    let file = pair.main.open(pair.at, &alone("amid.bin"))?;
    let block = vec![5; 65_536];
    let begin = |pair: &mut Pair, blocks: std::ops::Range<u64>| -> Result<Vec<u64>> {
        blocks.map(|n| pair.main.send_write(file, n << 16, &block)).collect()
    };
    let mut waiting = begin(&mut pair, 0..32)?;
    let id = pair.side.send(file.at, Command::FLUSH, 1, |header| encode::flush(header, file.id))?;
    waiting.extend(begin(&mut pair, 32..64)?);
    pair.side.wait(id)?.success()?;
    for id in waiting {
        written(pair.main.wait(id)?, block.len())?;
    }
    pair.is_undisturbed(file)?;
    Ok("yes".into())
}

/// MS-FSCC 2.4: FileInternalInformation, FileAccessInformation, FileStandardInformation.
fn query(stage: &Stage<'_>) -> Result<String> {
    const MAXIMUM_ALLOWED: u32 = 0x0200_0000;
    let mut pair = stage.pair()?;
    let file = pair.main.open(pair.at, &Open { access: MAXIMUM_ALLOWED, ..alone("query.bin") })?;
    pair.main.write(file, 0, b"seventeen bytes..")?;
    let word = |bytes: &[u8], at: usize| -> Result<u64> {
        Ok(u64::from_le_bytes(bytes.get(at..at + 8).context("a short answer")?.try_into()?))
    };
    let inode = word(&pair.side.query_info(file, 6)?, 0)?;
    let real = fs::metadata(stage.path("query.bin"))?.ino();
    let access = pair.side.query_info(file, 8)?;
    let access = u32::from_le_bytes(access.get(..4).context("a short answer")?.try_into()?);
    let size = word(&pair.side.query_info(file, 5)?, 8)?;
    ensure!(size == 17, "size {size}");
    let same = if inode == real { "is" } else { "is not" };
    Ok(format!("FileId {same} the inode, access {access:#x}, size right"))
}

/// The client goes on when its side channel has gone, politely or not.
fn closed(stage: &Stage<'_>) -> Result<String> {
    for reset in [false, true] {
        let mut pair = stage.pair()?;
        let file = pair.main.open(pair.at, &alone("closed.bin").leased(2, [8; 16], 7))?;
        pair.side.flush(file)?;
        if reset {
            pair.side.reset_on_drop()?;
        }
        drop(pair.side);
        // A few of the client's requests, and the time for a late consequence.
        pair.main.listen(Duration::from_millis(200))?;
        pair.main.write(file, 0, b"still there")?;
        pair.main.close(file)?;
        pair.main.tree(pair.at.session, "share")?;
        ensure!(pair.main.breaks.is_empty(), "a break");
    }
    Ok("client undisturbed".into())
}

/// Whether another client may open the file.
fn may_open(client: &mut Client, at: At, name: &str) -> Result<bool> {
    let open = Open::of(name);
    let answer = client.call(at, Command::CREATE, 1, |header| open.build(header))?;
    match answer.status() {
        Status::SUCCESS => {
            client.close(File::from(at, answer)?)?;
            Ok(true)
        }
        Status::SHARING_VIOLATION => Ok(false),
        status => bail!("{status:x?}"),
    }
}

fn outlives(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    let file = pair.main.open(pair.at, &alone("outlives.bin"))?;
    let (mut other, at) = stage.stranger()?;
    drop(pair.main);
    pair.side.listen(Duration::from_millis(300))?;
    let lives = pair.side.flush(file).is_ok();
    let shut = !may_open(&mut other, at, "outlives.bin")?;
    drop(pair.side);
    wait_until("the file is free", Duration::from_secs(5), || {
        may_open(&mut other, at, "outlives.bin").unwrap_or(false)
    })?;
    Ok(format!("handle lives on: {lives}, others kept out: {shut}, both end with the side channel"))
}

fn delete_on_close(stage: &Stage<'_>) -> Result<String> {
    let mut words = Vec::new();
    for side_first in [false, true] {
        let mut pair = stage.pair()?;
        let open = Open { options: DELETE_ON_CLOSE, ..alone("doomed.bin") };
        pair.main.open(pair.at, &open)?;
        let path = stage.path("doomed.bin");
        let (first, second) = if side_first { (pair.side, pair.main) } else { (pair.main, pair.side) };
        drop(first);
        std::thread::sleep(Duration::from_millis(300));
        let held = path.exists();
        drop(second);
        wait_until("the file is deleted", Duration::from_secs(5), || !path.exists())?;
        let which = if side_first { "side channel first" } else { "client first" };
        words.push(format!("{which}: {}", if held { "deleted with the second" } else { "deleted at once" }));
    }
    Ok(words.join(", "))
}

/// DHnC on a new connection after the client's TCP ended: with the side channel still open, closed since, closed before.
fn durable(stage: &Stage<'_>) -> Result<String> {
    let open = come_back(stage, Some)?;
    let after = come_back(stage, |side| {
        std::thread::sleep(Duration::from_millis(300));
        drop(side);
        None
    })?;
    let mut pair = stage.pair()?;
    let file = open_durable(&mut pair)?;
    let guid = pair.main.guid();
    drop(pair);
    std::thread::sleep(Duration::from_millis(300));
    let both = reconnect(stage, guid, file)?;
    Ok(format!("with it open: {open}, after it: {after}, both at once: {both}"))
}

fn open_durable(pair: &mut Pair) -> Result<File> {
    let mut open = Open { oplock: 9, ..alone("durable.bin") };
    open.contexts.push((tag::DHNQ, encode::durable_request()));
    let answer = pair.main.call(pair.at, Command::CREATE, 1, |header| open.build(header))?.success()?;
    let granted = create::Response::parse(&answer.msg)?;
    ensure!(granted.contexts().flatten().any(|context| context.tag == tag::DHNQ), "no durable handle");
    File::from(pair.at, answer)
}

/// The client's TCP ends, the side channel meets its fate, and the client comes back.
fn come_back(stage: &Stage<'_>, fate: impl FnOnce(Client) -> Option<Client>) -> Result<String> {
    let mut pair = stage.pair()?;
    let file = open_durable(&mut pair)?;
    let guid = pair.main.guid();
    drop(pair.main);
    let side = fate(pair.side);
    std::thread::sleep(Duration::from_millis(300));
    let status = reconnect(stage, guid, file)?;
    drop(side);
    // Nothing is left for the next one to meet.
    let (mut other, at) = stage.stranger()?;
    wait_until("the file is free", Duration::from_secs(5), || {
        may_open(&mut other, at, "durable.bin").unwrap_or(false)
    })?;
    Ok(status)
}

fn reconnect(stage: &Stage<'_>, guid: [u8; 16], file: File) -> Result<String> {
    let mut again = stage.connect(&Setup { client_guid: guid, ..stage.setup })?;
    let at = again.enter(stage.user, "share")?;
    let mut open = Open { oplock: 9, ..alone("durable.bin") };
    open.contexts.push((tag::DHNC, encode::durable_reconnect(file.id)));
    let answer = again.call(at, Command::CREATE, 1, |header| open.build(header))?;
    Ok(match answer.status() {
        Status::SUCCESS => {
            again.close(File::from(at, answer)?)?;
            "yes".into()
        }
        status => format!("{:#x}", status.0),
    })
}

/// What becomes of the side channel when the client logs off.
fn logoff(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    pair.main.open(pair.at, &alone("logoff.bin"))?;
    pair.main.call(pair.at, Command::LOGOFF, 1, encode::logoff)?.success()?;
    let answer = pair.side.call(pair.at, Command::ECHO, 1, encode::echo);
    let word = match answer {
        Ok(answer) => format!("{:#x}", answer.header.status),
        Err(error) => error.root_cause().to_string(),
    };
    let (mut other, at) = stage.stranger()?;
    let free = may_open(&mut other, at, "logoff.bin")?;
    Ok(format!("file closed: {free}, ECHO on the side channel: {word}"))
}
