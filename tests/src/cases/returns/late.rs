//! Who comes back too late has lost its Open, and somebody else may have the file.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    Fault, directly,
    kept::Kept,
    owner::{Owner, Purpose, Rival},
};
use crate::{
    cases::Report,
    rig::{Rig, Site, net::FLOATING, puppet::Puppet},
};

/// What the client asks for where it can.
const TIMEOUT: Duration = Duration::from_secs(3);
/// For so long at least the proxy keeps files for those whom it, or a node, has let down.
const GRACE: Duration = Duration::from_secs(4);
/// What a busy machine may add.
const SLOWNESS: Duration = Duration::from_secs(5);

/// The clients come back when the time is over. By their times, two stories must be the same.
pub(super) fn too_late(fault: Fault) -> Result<Report> {
    let config = format!("grace = \"{}s\"\n", GRACE.as_secs());
    let mut rig = Rig::new(&Site { config, ..Site::default() })?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed =
        play(&mut puppet, &directly(&rig)?, "unharmed", false, |puppet, owner| owner.leave(puppet))
            .context("at a node")?;
    let owner = play(&mut puppet, FLOATING, "late", fault.keeps_others_out(), |puppet, owner| {
        fault.happen(&mut rig, puppet, std::slice::from_ref(owner))
    })?;
    super::tell(&owner.differences(Purpose::Alone, &unharmed, Purpose::Alone))
}

fn play(
    puppet: &mut Puppet,
    server: &str,
    name: &str,
    keeps_others_out: bool,
    away: impl FnOnce(&mut Puppet, &Owner) -> Result<()>,
) -> Result<Owner> {
    let timeout = u32::try_from(TIMEOUT.as_millis())?;
    let mut owner = Owner::arrive(puppet, server, name, "3.1.1", &[Purpose::Alone], timeout)?;
    let left = Instant::now();
    away(puppet, &owner)?;
    let back = Instant::now();
    if keeps_others_out {
        let rival = Rival::arrive(puppet, server, name)?;
        for held in &owner.held {
            if is_timed(&held.kept) {
                rival.open_at_last(puppet, &held.kept.name)?;
                let (since, name) = (left.elapsed(), &held.kept.name);
                ensure!(since >= TIMEOUT, "{name} was stolen after {since:?}");
                ensure!(back.elapsed() < GRACE + SLOWNESS, "{name} was kept from others for {since:?}");
            }
        }
    }
    // The time itself is what is waited for, by whoever began to measure it last.
    std::thread::sleep((back + GRACE + Duration::from_secs(1)).saturating_duration_since(Instant::now()));
    owner.come_back(puppet, server)?;
    Ok(owner)
}

/// That the proxy and the node have had the same time told.
fn is_timed(kept: &Kept) -> bool {
    kept.kind.is_second() && kept.kind.caches_writes()
}
