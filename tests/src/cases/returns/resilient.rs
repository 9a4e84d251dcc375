//! Resilient handles (MS-SMB2 3.3.5.15.9): Samba offers none, so that there is nothing to compare with. What a server would
//! do is said here.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use smb_parse::fsctl;

use super::{
    DIALECTS, Fault,
    kept::{reopened, wanted},
    owner::{Owner, Rival, lock, read, write},
};
use crate::{
    cases::Report,
    rig::{
        Rig, Site,
        net::FLOATING,
        puppet::{Puppet, hex},
    },
};

/// Milliseconds.
const TIMEOUT: u32 = 60_000;
/// STATUS_LOCK_NOT_GRANTED.
const NOT_GRANTED: u64 = 0xc000_0055;
const DATA: &[u8] = b"resilient";

pub(super) fn comes_back(fault: Fault) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let mut owners = Vec::new();
    for dialect in DIALECTS {
        owners.push(Owner::arrive(&mut puppet, FLOATING, "resilient", dialect, &[], TIMEOUT)?);
    }
    let mut files = Vec::new();
    for (owner, dialect) in owners.iter().zip(DIALECTS) {
        let (connection, name) = (owner.connection(), format!("resilient-{dialect}"));
        let file = opened(&good(&mut puppet, &connection, wanted(&name))?)?;
        good(&mut puppet, &connection, write(&file, 0, DATA))?;
        // MS-SMB2 2.2.31.3: Timeout, Reserved.
        let asked = format!("{}{}", hex(&TIMEOUT.to_le_bytes()), "00".repeat(4));
        let order =
            json!({"do": "control", "file": file, "code": fsctl::LMR_REQUEST_RESILIENCY, "data": asked});
        good(&mut puppet, &connection, order)?;
        good(&mut puppet, &connection, lock(&file, 100))?;
        files.push((name, file));
    }
    fault.happen(&mut rig, &mut puppet, &owners)?;
    let rival = Rival::arrive(&mut puppet, FLOATING, "resilient")?;
    let mut waiting = Vec::new();
    for (name, _) in &files {
        waiting.push(rival.begin_to_steal(&mut puppet, name)?);
    }
    for ((owner, (name, file)), waits) in owners.iter_mut().zip(&files).zip(waiting) {
        owner.enter(&mut puppet, FLOATING)?;
        let connection = owner.connection();
        let file = opened(&good(&mut puppet, &connection, reopened(name, file))?)?;
        if let Some(tag) = waits {
            rival.has_stolen_nothing(&mut puppet, name, tag)?;
        }
        let said = good(&mut puppet, &connection, read(&file, 0, DATA.len()))?;
        ensure!(said["data"] == hex(DATA), "{name}: {said}");
        let theirs = rival.let_in(&mut puppet, name)?;
        let said = rival.call(&mut puppet, lock(&theirs, 105))?;
        ensure!(said["status"] == NOT_GRANTED, "{name}: the lock is not there any more: {said}");
        good(&mut puppet, &connection, json!({"do": "close", "file": file}))?;
        let said = rival.call(&mut puppet, lock(&theirs, 105))?;
        ensure!(said["status"] == 0, "{name}: it is still locked: {said}");
    }
    Ok(Report::default())
}

fn good(puppet: &mut Puppet, connection: &str, order: Value) -> Result<Value> {
    let said = puppet.call(connection, order.clone())?;
    ensure!(said["status"] == 0, "{order}: {said}");
    Ok(said)
}

fn opened(said: &Value) -> Result<String> {
    Ok(said["file"].as_str().context("no FileId")?.to_owned())
}
