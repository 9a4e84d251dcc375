//! Who asks for a durable Open by something that is wrong gets what a server says, and so does its owner afterwards.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    DIALECTS, Fault, TIMEOUT, directly,
    kept::{Claim, KINDS, Kept, Kind},
    owner::{Owner, difference},
};
use crate::{
    cases::Report,
    client::guid,
    rig::{
        Rig, Site,
        net::FLOATING,
        node::{SECOND, Settings, USER},
        puppet::{Puppet, Visit, hex},
    },
};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    User,
    ClientGuid,
    CreateGuid,
    NoCreateGuid,
    Key,
    KeyMissing,
    KeyUncalledFor,
    Name,
    PersistentId,
    VolatileId,
    /// DHnC for an Open by DH2Q.
    First,
    /// DH2C for an Open by DHnQ.
    Second,
    /// DH2C with a CreateGuid of zeros for an Open by DHnQ.
    SecondOfNothing,
    /// Asks for durability again beside it (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
    WithRequest,
    WithOtherRequest,
    /// Both claims in one.
    Both,
    /// Nothing, but somebody has it already.
    Nothing,
}

const ALL: [Wrong; 17] = [
    Wrong::User,
    Wrong::ClientGuid,
    Wrong::CreateGuid,
    Wrong::NoCreateGuid,
    Wrong::Key,
    Wrong::KeyMissing,
    Wrong::KeyUncalledFor,
    Wrong::Name,
    Wrong::PersistentId,
    Wrong::VolatileId,
    Wrong::First,
    Wrong::Second,
    Wrong::SecondOfNothing,
    Wrong::WithRequest,
    Wrong::WithOtherRequest,
    Wrong::Both,
    Wrong::Nothing,
];

impl Wrong {
    /// Whether it can be wrong with a file that is held so.
    fn fits(self, kind: &Kind) -> bool {
        match self {
            Self::CreateGuid | Self::NoCreateGuid | Self::First => kind.is_second(),
            Self::Second | Self::SecondOfNothing => !kind.is_second(),
            Self::Key | Self::KeyMissing => kind.is_lease(),
            Self::KeyUncalledFor => !kind.is_lease(),
            _ => true,
        }
    }

    fn spoil(self, mut claim: Claim) -> Claim {
        let other = || hex(&guid());
        let (persistent, volatile) = claim.id.split_at(16);
        match self {
            Self::User | Self::ClientGuid | Self::Nothing => {}
            Self::CreateGuid => claim.create_guid = Some(other()),
            Self::NoCreateGuid | Self::SecondOfNothing => claim.create_guid = Some("00".repeat(16)),
            Self::Key | Self::KeyUncalledFor => claim.key = Some(other()),
            Self::KeyMissing => claim.key = None,
            Self::Name => claim.name += "-not",
            // Samba's are of 32 bits.
            Self::PersistentId => claim.id = format!("f0f1f2f300000000{volatile}"),
            Self::VolatileId => claim.id = format!("{persistent}f0f1f2f300000000"),
            Self::First => claim.create_guid = None,
            Self::Second => claim.create_guid = Some(other()),
            Self::WithRequest | Self::WithOtherRequest => {
                let second = claim.create_guid.is_some() == (self == Self::WithRequest);
                claim.further.push(if second {
                    let guid = claim.create_guid.clone().unwrap_or_else(other);
                    ("DH2Q", format!("60ea0000{}{guid}", "00".repeat(12)))
                } else {
                    ("DHnQ", "00".repeat(16))
                });
            }
            Self::Both => {
                let guid = claim.create_guid.take().unwrap_or_else(other);
                claim.further.push(("DH2C", format!("{}{guid}{}", claim.id, "00".repeat(4))));
            }
        }
        claim
    }
}

/// All mistakes, by clients that were away for this reason.
pub(super) fn refused(fault: Fault) -> Result<Report> {
    let mut differences = Vec::new();
    // Who is forced to be somebody is not told from others.
    let samba = Settings { share: vec!["force user ="], ..Settings::default() };
    let site = Site { samba, ..Site::default() };
    for dialect in DIALECTS {
        let mut rig = Rig::new(&site)?;
        fs::set_permissions(rig.data(), Permissions::from_mode(0o777))?;
        let mut puppet = Puppet::start(&rig, "smbprotocol")?;
        let unharmed = play(&mut puppet, &directly(&rig)?, "unharmed", dialect, |puppet, owners| {
            owners.iter().try_for_each(|owner| owner.leave(puppet))
        })
        .context("at a node")?;
        let here = play(&mut puppet, FLOATING, "wrong", dialect, |puppet, owners| {
            fault.happen(&mut rig, puppet, owners)
        })?;
        let pairs = here.iter().zip(&unharmed).filter(|(here, there)| here != there);
        differences
            .extend(pairs.map(|((what, here), (_, there))| format!("{what}:\n{}", difference(here, there))));
    }
    super::tell(&differences)
}

/// The story of each kind and each mistake at `server`: what the wrong claim got, and the right one after it.
pub(super) fn play(
    puppet: &mut Puppet,
    server: &str,
    name: &str,
    dialect: &'static str,
    away: impl FnOnce(&mut Puppet, &[Owner]) -> Result<()>,
) -> Result<Vec<(String, Vec<String>)>> {
    let mut owner = Owner::arrive(puppet, server, name, dialect, &[], TIMEOUT)?;
    let kinds = || KINDS.iter().filter(|kind| kind.old || dialect != "2.1");
    let mistakes =
        ALL.iter().flat_map(|wrong| kinds().filter(|kind| wrong.fits(kind)).map(move |kind| (*wrong, kind)));
    let mut files = Vec::new();
    for (wrong, kind) in mistakes {
        let mut kept = Kept::new(kind, format!("{name}-{dialect}-{}-{wrong:?}", kind.name), dialect);
        kept.opened(&puppet.call(&owner.connection(), kept.order(TIMEOUT))?)?;
        files.push((wrong, kept));
    }
    away(puppet, std::slice::from_ref(&owner))?;
    // First the owner, so that the server knows that it was away.
    owner.enter(puppet, server)?;
    let others = [(SECOND, owner.guid), (USER, guid())];
    for (index, (user, guid)) in others.into_iter().enumerate() {
        let visit = Visit { server, dialect, user, guid, previous: 0 };
        puppet.enter(&format!("{name}-{dialect}-other-{index}"), &visit)?;
    }
    let mine = owner.connection();
    let mut stories = Vec::new();
    for (wrong, mut kept) in files {
        let from = match wrong {
            Wrong::User => format!("{name}-{dialect}-other-0"),
            Wrong::ClientGuid => format!("{name}-{dialect}-other-1"),
            _ => mine.clone(),
        };
        if wrong == Wrong::Nothing {
            // This one is right.
            kept.returned(&puppet.call(&mine, kept.claim().order())?)?;
        }
        let said = puppet.call(&from, wrong.spoil(kept.claim()).order())?;
        kept.note("wrong", &said);
        if let Some(file) = said["file"].as_str() {
            close(puppet, &from, file)?;
        }
        let right = kept.claim().order();
        let said = puppet.call(&mine, right)?;
        kept.returned(&said)?;
        if let Some(file) = said["file"].as_str() {
            close(puppet, &mine, file)?;
        }
        // What was closed is nobody's.
        kept.note("after the CLOSE", &puppet.call(&mine, kept.claim().order())?);
        stories.push((format!("{dialect} {} {wrong:?}", kept.kind.name), kept.told));
    }
    Ok(stories)
}

fn close(puppet: &mut Puppet, connection: &str, file: &str) -> Result<Value> {
    puppet.call(connection, json!({"do": "close", "file": file}))
}
