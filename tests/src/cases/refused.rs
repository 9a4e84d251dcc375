//! What would lead clients around the proxy is refused, and the session goes on as if nothing had been asked.

use anyhow::{Context, Result, ensure};
use smb_parse::{
    FileId,
    cmd::session_setup::BINDING,
    encode::{self, SessionSetupParams},
    fsctl::{LMR_REQUEST_RESILIENCY, QUERY_NETWORK_INTERFACE_INFO},
    header::{Command, Status},
};
use understudy_core::crypto::Dialect;

use super::{Case, Report, Scale};
use crate::{
    client::{Client, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{Rig, Site, net::FLOATING},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "refused-detours",
    shows: "interface queries and session binding are refused, and resilient handles granted, in Relay and after a takeover, without the node; and the session goes on",
    soak: 3,
    run: detours,
}];

/// A connection, a second one that tries to bind to its session, and the file that is used all the while.
struct Pair {
    first: Client,
    second: Client,
    file: File,
    beside: File,
}

fn detours(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut pairs = Vec::new();
    for dialect in [Dialect::SMB300, Dialect::SMB302, Dialect::SMB311] {
        let setup = Setup { dialect, client_guid: guid(), ..Setup::default() };
        let mut pair = pair(&rig, &setup, dialect)?;
        try_detours(&mut pair).with_context(|| format!("{dialect:x?} in Relay"))?;
        pairs.push((dialect, pair));
    }
    rig.kill_serving()?;
    for (dialect, pair) in &mut pairs {
        pair.first.read(pair.file, 0, 6).with_context(|| format!("{dialect:x?} after the kill"))?;
        pair.second.read(pair.beside, 0, 6).with_context(|| format!("{dialect:x?} after the kill"))?;
        try_detours(pair).with_context(|| format!("{dialect:x?} after the takeover"))?;
    }
    Ok(Report::default())
}

fn pair(rig: &Rig, setup: &Setup, dialect: Dialect) -> Result<Pair> {
    let name = format!("detour-{:x}.bin", dialect.0);
    let open = Open { disposition: FILE_OPEN_IF, ..Open::of(&name) };
    let mut first = Client::connect(&rig.net, FLOATING, setup)?;
    let at = first.enter(User::KNOWN, "share")?;
    let file = first.open(at, &open)?;
    first.write(file, 0, b"detour")?;
    let mut second = Client::connect(&rig.net, FLOATING, setup)?;
    let at = second.enter(User::KNOWN, "share")?;
    let beside = second.open(at, &open)?;
    Ok(Pair { first, second, file, beside })
}

/// More of them than there are credits at once: none may be lost on the way.
fn try_detours(pair: &mut Pair) -> Result<()> {
    for _ in 0..100 {
        let asked = pair.first.ioctl(pair.file.at, FileId::ALL_ONES, QUERY_NETWORK_INTERFACE_INFO, &[])?;
        let status = asked.status();
        ensure!(status == Status::INVALID_DEVICE_REQUEST, "the interface query got {status:x?}");
        ensure!(asked.is_signed(), "the refusal is not signed");
    }
    let input = [10_000_u32.to_le_bytes(), [0; 4]].concat();
    let asked = pair.first.ioctl(pair.file.at, pair.file.id, LMR_REQUEST_RESILIENCY, &input)?;
    let status = asked.status();
    ensure!(status == Status::SUCCESS, "a resilient handle got {status:x?}");
    ensure!(asked.is_signed(), "the promise is not signed");
    bind(&mut pair.second, pair.file.at.session)?;
    for (client, file) in [(&mut pair.first, pair.file), (&mut pair.second, pair.beside)] {
        ensure!(client.read(file, 0, 6)? == b"detour", "the session reads something else");
        client.echo(file.at)?;
    }
    Ok(())
}

/// SESSION_SETUP that would make this connection a channel of the other one's session.
fn bind(client: &mut Client, session: u64) -> Result<()> {
    let params = SessionSetupParams {
        flags: BINDING,
        security_mode: 1,
        capabilities: 0,
        previous_session_id: 0,
        token: b"NTLMSSP\0\x01\0\0\0",
    };
    let at = crate::client::At { session, tree: 0 };
    let answer =
        client.call(at, Command::SESSION_SETUP, 1, |header| encode::session_setup(header, &params))?;
    let status = answer.status();
    // In Bridge the other connection's session is not known here at all.
    let known = [Status::REQUEST_NOT_ACCEPTED, Status::USER_SESSION_DELETED].contains(&status);
    ensure!(known, "session binding got {status:x?}");
    Ok(())
}
