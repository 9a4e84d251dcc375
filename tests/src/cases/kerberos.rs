//! Users who log in with Kerberos.

use anyhow::{Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Way, Who},
    node::USER,
    realm::{Cache, GHOST, Kind, NAME, REALM},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kerberos-mit-realm",
        shows: "a client of an MIT realm copies with a ticket for the floating name, and the service's key can be changed",
        soak: 1,
        run: |scale| realm(scale, Kind::Mit),
    },
    Case {
        name: "kerberos-ad-realm",
        shows: "the same with Samba's domain controller, and two nodes that are members under one account",
        soak: 1,
        run: |scale| realm(scale, Kind::Ad),
    },
];

/// A proxy without keytab passes the login on, as it passes everything.
fn realm(scale: &Scale, kind: Kind) -> Result<Report> {
    let mut rig = Rig::new(&Site { realm: Some(kind), ..Site::default() })?;
    let len = scale.copy.min(8 << 20);
    for way in [Way::Get, Way::Put] {
        Copy::start(&rig, &Who::KERBEROS, way, "bulk.bin", len)?.run(&mut rig, Vec::new())?;
        std::fs::remove_file(rig.data().join("bulk.bin"))?;
    }
    let tickets = rig.realm()?.log_in(&rig.net, USER)?;
    list(&rig, &tickets)?;
    let listed = tickets.list(&rig.net)?;
    ensure!(
        listed.contains(&format!("cifs/{NAME}@{REALM}")),
        "not by a ticket for the floating name: {listed}"
    );
    // A new key does not make old tickets void, for the nodes still have the old one.
    rig.realm()?.rotate(&rig.nodes)?;
    list(&rig, &tickets)?;
    list(&rig, &rig.realm()?.log_in(&rig.net, USER)?)?;
    // Whom the realm knows need not be known to the nodes.
    let refused = list(&rig, &rig.realm()?.log_in(&rig.net, GHOST)?);
    ensure!(refused.is_err(), "a user whom no node knows was let in");
    Ok(Report::default())
}

/// Lists the share with these tickets.
fn list(rig: &Rig, tickets: &Cache) -> Result<()> {
    let output = tickets
        .smbclient(&rig.net)
        .arg(format!("//{NAME}/share"))
        .args(Who::KERBEROS.arguments())
        .args(["-c", "ls"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "smbclient: {}", said.trim());
    Ok(())
}
