//! Who is told of a break: the client, the side channel, or both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::oplock_break::Notification,
    encode,
    header::{Command, Status},
};

use super::{Pair, Stage, Trial, alone};
use crate::client::{Client, File, Open};

/// How often each is tried.
const TIMES: usize = 5;
/// How long a break may be under way.
const WAIT: Duration = Duration::from_millis(150);

pub(super) const TRIALS: &[Trial] = &[
    ("break of a lease, side channel idle", |stage| who_is_told(stage, true, false)),
    ("break of a lease, side channel the last to speak", |stage| who_is_told(stage, true, true)),
    ("break of an oplock, side channel idle", |stage| who_is_told(stage, false, false)),
    ("break of an oplock, side channel the last to speak", |stage| who_is_told(stage, false, true)),
    ("break acknowledged on the side channel", acknowledged_aside),
    ("FLUSH while a break is not acknowledged", flush_amid_break),
    ("break after the client's TCP ended", after_the_end),
];

fn opened(pair: &mut Pair, name: &str, lease: bool) -> Result<File> {
    let open = if lease { alone(name).leased(2, [9; 16], 7) } else { Open { oplock: 9, ..alone(name) } };
    pair.main.open(pair.at, &Open { share: 7, ..open })
}

fn acknowledge(client: &mut Client, file: File, told: &Notification) -> Result<Status> {
    let answer = match told {
        Notification::Lease { lease_key, new_lease_state, .. } => {
            client.acknowledge_lease(file.at, *lease_key, *new_lease_state)?
        }
        Notification::Oplock { oplock_level, file_id } => {
            client.call(file.at, Command::OPLOCK_BREAK, 1, |header| {
                encode::oplock_break_ack(header, *file_id, *oplock_level)
            })?
        }
    };
    Ok(answer.status())
}

fn who_is_told(stage: &Stage<'_>, lease: bool, side_speaks: bool) -> Result<String> {
    let (mut main, mut side) = (0, 0);
    for _ in 0..TIMES {
        let mut pair = stage.pair()?;
        let file = opened(&mut pair, "broken.bin", lease)?;
        if side_speaks {
            pair.side.flush(file)?;
        }
        let (mut other, at) = stage.stranger()?;
        let open = Open::of("broken.bin");
        let id = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        pair.main.listen(WAIT)?;
        pair.side.listen(WAIT)?;
        main += pair.main.breaks.len();
        side += pair.side.breaks.len();
        let told = pair.main.breaks.iter().chain(&pair.side.breaks).next().context("nobody is told")?;
        let told = told.notification;
        ensure!(acknowledge(&mut pair.main, file, &told)?.is_success(), "the client's acknowledgement");
        let theirs = File::from(at, other.wait(id)?)?;
        other.close(theirs)?;
    }
    Ok(format!("of {TIMES}: client {main}, side channel {side}"))
}

fn acknowledged_aside(stage: &Stage<'_>) -> Result<String> {
    let mut words = Vec::new();
    for lease in [true, false] {
        let mut pair = stage.pair()?;
        let file = opened(&mut pair, "aside.bin", lease)?;
        let (mut other, at) = stage.stranger()?;
        let open = Open::of("aside.bin");
        let id = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        pair.main.receive_until(|client| !client.breaks.is_empty())?;
        let told = pair.main.breaks.first().context("no break")?.notification;
        let status = acknowledge(&mut pair.side, file, &told)?;
        if !status.is_success() {
            acknowledge(&mut pair.main, file, &told)?;
        }
        other.wait(id)?.success()?;
        words.push(format!("{}: {:#x}", if lease { "lease" } else { "oplock" }, status.0));
    }
    Ok(words.join(", "))
}

fn flush_amid_break(stage: &Stage<'_>) -> Result<String> {
    for lease in [true, false] {
        let mut pair = stage.pair()?;
        let file = opened(&mut pair, "amid.bin", lease)?;
        pair.main.write(file, 0, b"dirty")?;
        let (mut other, at) = stage.stranger()?;
        let open = Open::of("amid.bin");
        let id = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        pair.main.receive_until(|client| !client.breaks.is_empty())?;
        pair.side.flush(file)?;
        ensure!(other.take_ready(id).is_none(), "the other was let in");
        let told = pair.main.breaks.first().context("no break")?.notification;
        acknowledge(&mut pair.main, file, &told)?;
        other.wait(id)?.success()?;
    }
    Ok("yes".into())
}

fn after_the_end(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    let file = opened(&mut pair, "after.bin", true)?;
    let (mut other, at) = stage.stranger()?;
    drop(pair.main);
    pair.side.listen(WAIT)?;
    let open = Open::of("after.bin");
    let id = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
    pair.side.listen(WAIT)?;
    let Some(told) = pair.side.breaks.first().map(|b| b.notification) else {
        other.wait(id)?;
        return Ok("nobody is told".into());
    };
    let status = acknowledge(&mut pair.side, file, &told)?;
    other.wait(id)?.success()?;
    Ok(format!("told on the side channel, acknowledged there: {:#x}", status.0))
}
