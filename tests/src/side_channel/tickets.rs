//! What tickets add: several ways to log in as the same user, and an end.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use smb_parse::{
    encode,
    header::{Command, Status},
};
use understudy_core::auth::kerberos::Ticket;

use super::{Pair, Stage, Trial, alone};
use crate::{
    client::{Client, File, User, now},
    rig::node::USER,
};

/// A ticket lasts so long where it is to end.
const LIFETIME: Duration = Duration::from_secs(4);
/// What it lasts elsewhere.
const LONG: Duration = Duration::from_secs(36_000);

pub(super) const TRIALS: &[Trial] = &[
    ("session by Kerberos, bound by NTLM", |stage| mixed(stage, stage.user, User::KNOWN)),
    ("session by NTLM, bound by Kerberos", |stage| mixed(stage, User::KNOWN, stage.user)),
    ("another ticket of the same user", |stage| {
        let ticket = stage.realm.context("no realm")?.ticket(stage.net, stage.node, USER)?;
        mixed(stage, stage.user, User::Ticket(&ticket))
    }),
];

/// Where a ticket's lifetime can be chosen.
pub(super) const ENDS: &[Trial] = &[
    ("ticket of the session ends, then authenticated anew", session_ends),
    ("ticket of the binding ends", binding_ends),
];

fn lasting(stage: &Stage<'_>, time: Duration) -> Result<Arc<Ticket>> {
    let realm = stage.realm.context("no realm")?;
    realm.limit_tickets(time)?;
    let ticket = realm.ticket(stage.net, stage.node, USER);
    realm.limit_tickets(LONG)?;
    ticket
}

/// Two ways of one user.
fn pair(stage: &Stage<'_>, first: User<'_>, second: User<'_>) -> Result<Pair> {
    let setup = stage.setup();
    let mut main = stage.connect(&setup)?;
    let at = main.enter(first, "share")?;
    let mut side = stage.connect(&setup)?;
    side.bind(&main, at.session, second)?;
    Ok(Pair { main, side, at })
}

fn mixed(stage: &Stage<'_>, first: User<'_>, second: User<'_>) -> Result<String> {
    let mut pair = pair(stage, first, second)?;
    let file = pair.main.open(pair.at, &alone("mixed.bin"))?;
    pair.side.flush(file)?;
    pair.is_undisturbed(file)?;
    Ok("bound".into())
}

fn flush(client: &mut Client, file: File) -> String {
    let answer = client.call(file.at, Command::FLUSH, 1, |header| encode::flush(header, file.id));
    match answer {
        Ok(answer) if answer.status() == Status::SUCCESS => "yes".into(),
        Ok(answer) => format!("{:#x}", answer.header.status),
        Err(error) => error.root_cause().to_string(),
    }
}

fn wait_for_end(ticket: &Ticket) {
    // A server may count in whole seconds.
    std::thread::sleep(ticket.end().0.saturating_sub(now().0) + Duration::from_secs(2));
}

fn session_ends(stage: &Stage<'_>) -> Result<String> {
    let short = lasting(stage, LIFETIME)?;
    let mut pair = pair(stage, User::Ticket(&short), stage.user)?;
    let file = pair.main.open(pair.at, &alone("ends.bin"))?;
    wait_for_end(&short);
    let ended = (flush(&mut pair.main, file), flush(&mut pair.side, file));
    let status = pair.main.reauthenticate(pair.at.session, stage.user)?;
    let after = (flush(&mut pair.main, file), flush(&mut pair.side, file));
    Ok(format!(
        "FLUSH by client: {}, side channel: {}; anew: {:#x}, client: {}, side channel: {}",
        ended.0, ended.1, status.0, after.0, after.1
    ))
}

fn binding_ends(stage: &Stage<'_>) -> Result<String> {
    let short = lasting(stage, LIFETIME)?;
    let mut pair = pair(stage, stage.user, User::Ticket(&short))?;
    let file = pair.main.open(pair.at, &alone("ends.bin"))?;
    wait_for_end(&short);
    Ok(format!(
        "FLUSH by client: {}, side channel: {}",
        flush(&mut pair.main, file),
        flush(&mut pair.side, file)
    ))
}
