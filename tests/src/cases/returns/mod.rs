//! Clients that were away have their files again: with their data, what they may cache of them, and their locks.
//!
//! The same client does the same at a node, where nothing but its own connection is lost. What everybody is told must be the
//! same.

mod kept;
mod owner;

use anyhow::{Context, Result};

use self::owner::{Owner, Purpose, Rival};
use super::{Case, Report};
use crate::rig::{Rig, Site, net::FLOATING, puppet::Puppet};

pub(super) const CASES: &[Case] = &[Case {
    name: "return-own-connection",
    shows: "clients of 2.1 and 3.1.1 whose own connection is lost while their node lives have their durable Opens again (DHnC by oplock and lease, DH2C), with locks and leases; whom a server lets in meanwhile, the proxy does",
    soak: 50,
    run: |_| own_connection(),
}];

/// In milliseconds; asked for where one can be.
const TIMEOUT: u32 = 60_000;
const DIALECTS: [&str; 2] = ["3.1.1", "2.1"];
const PURPOSES: [Purpose; 2] = [Purpose::Alone, Purpose::Wanted];

/// What they do at `server`. `away`: how they come to be away, and what the rival does meanwhile.
fn play(
    puppet: &mut Puppet,
    server: &str,
    name: &str,
    away: impl FnOnce(&mut Puppet, &mut [Owner]) -> Result<Rival>,
) -> Result<Vec<Owner>> {
    let arrive = |dialect| Owner::arrive(puppet, server, name, dialect, &PURPOSES, TIMEOUT);
    let mut owners = DIALECTS.into_iter().map(arrive).collect::<Result<Vec<_>>>()?;
    let rival = away(puppet, &mut owners)?;
    for owner in &mut owners {
        owner.come_back(puppet, server)?;
        owner.prove(puppet, &rival)?;
    }
    Ok(owners)
}

/// What they do at `server` when their own connections are lost.
fn play_alone(puppet: &mut Puppet, server: &str, name: &str) -> Result<Vec<Owner>> {
    play(puppet, server, name, |puppet, owners| {
        owners.iter().try_for_each(|owner| owner.leave(puppet))?;
        let rival = Rival::arrive(puppet, server, name)?;
        owners.iter_mut().try_for_each(|owner| rival.open(puppet, owner))?;
        Ok(rival)
    })
}

/// The same at a node without a proxy before it.
fn play_directly(rig: &Rig, puppet: &mut Puppet) -> Result<Vec<Owner>> {
    let serving = rig.serving()?;
    let other = rig.nodes.iter().enumerate().find(|(index, _)| *index != serving).context("one node")?.1;
    play_alone(puppet, &other.address, "unharmed").context("at a node")
}

fn own_connection() -> Result<Report> {
    let rig = Rig::new(&Site::default())?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let unharmed = play_directly(&rig, &mut puppet)?;
    let owners = play_alone(&mut puppet, FLOATING, "returns")?;
    for (owner, unharmed) in owners.iter().zip(&unharmed) {
        for purpose in PURPOSES {
            owner.compare(purpose, unharmed, purpose)?;
        }
    }
    Ok(Report::default())
}
