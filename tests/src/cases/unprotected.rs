//! Users whom the proxy cannot act for: told at once, and nobody else with them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::lock::{EXCLUSIVE, FAIL_IMMEDIATELY, Lock},
    encode,
    header::{Command, Status},
};

use super::{Case, Report, Scale};
use crate::{
    client::{Client, End, FILE_OPEN_IF, Open, Setup, User},
    rig::{Rig, Site, net::FLOATING},
};

const CLOSED: &str = "client_closed_total{reason=\"unprotected\"}";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "unprotected-alone",
        shows: "a user without authority is disconnected at once when the node is lost, counted and logged",
        soak: 5,
        run: alone,
    },
    Case {
        name: "unprotected-beside",
        shows: "beside a protected user on one connection, only the session without authority ends",
        soak: 5,
        run: beside,
    },
];

fn alone(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::STRANGER, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("theirs.bin") })?;
    client.write(file, 0, b"before")?;
    ensure!(rig.metric("sessions{protection=\"user_unknown\"}")? == 1.0, "not shown as unprotected");
    ensure!(rig.metric(CLOSED)? == 0.0, "counted too early");
    rig.kill_serving()?;
    let killed = Instant::now();
    let end = client.wait_for_end()?;
    let took = killed.elapsed();
    ensure!(end == End::Reset, "the connection was closed, not reset: {end:?}");
    ensure!(rig.metric(CLOSED)? == 1.0, "not counted");
    let told =
        rig.proxy.log().into_iter().any(|line| line["level"] == "WARN" && line["reason"] == "unprotected");
    ensure!(told, "no log line says why");
    Ok(Report { notes: vec![format!("reset {} ms after the kill", took.as_millis())], ..Report::default() })
}

fn beside(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let known = client.enter(User::KNOWN, "share")?;
    let stranger = client.enter(User::STRANGER, "share")?;
    let open = Open { disposition: FILE_OPEN_IF, ..Open::of("shared.bin") };
    let ours = client.open(known, &open)?;
    let theirs = client.open(stranger, &open)?;
    let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n % 253) as u8).collect();
    client.write(ours, 0, &bytes)?;
    ensure!(client.read(theirs, 0, 50_000)? == bytes, "the second session reads something else");
    // In flight on either session when the node dies: theirs waits for a lock that ours holds.
    let held = Lock { offset: 0, length: 10, flags: EXCLUSIVE | FAIL_IMMEDIATELY };
    client.lock(ours, &[held])?.success()?;
    let waiting = Lock { flags: EXCLUSIVE, ..held };
    let before = client.interims;
    let lock =
        client.send(stranger, Command::LOCK, 1, |header| encode::lock(header, theirs.id, 0, &[waiting]))?;
    client.receive_until(|client| client.interims > before)?;

    rig.kill_serving()?;
    let answer = client.wait(lock)?;
    ensure!(answer.status() == Status::USER_SESSION_DELETED, "the waiting lock got {:x?}", answer.status());
    ensure!(!answer.is_signed(), "signed for a user whose key we cannot have");
    ensure!(client.read(ours, 0, 50_000)? == bytes, "the protected session reads something else");
    let id = client.send_read(theirs, 0, 100)?;
    let status = client.wait(id)?.status();
    ensure!(status == Status::USER_SESSION_DELETED, "a later request of the ended session got {status:x?}");
    client.write(ours, 50_000, b"goes on").context("writing in the protected session")?;
    client.echo(known)?;
    ensure!(rig.metric(CLOSED)? == 0.0, "the connection was counted as closed");
    let lost =
        rig.proxy.log().into_iter().any(|line| line["message"] == "taken over" && line["sessions_lost"] == 1);
    ensure!(lost, "no takeover says that it lost a session");
    Ok(Report::default())
}
