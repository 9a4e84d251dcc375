//! Copies in encrypted sessions that outlive their node: each cipher of 3.1.1, and the one of 3.0 and 3.0.2.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Case, Report, Scale,
    copies::{FILE, survive},
};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Idle, Who},
    node::{Settings, USER},
    wait_until,
};

/// As much as the claim names.
const LARGEST: u64 = 256 << 20;

/// A dialect and a cipher that both sides are held to.
struct Sealing {
    dialect: &'static str,
    /// Samba's name for it.
    cipher: &'static str,
    /// The only ciphers that the nodes know.
    server: &'static str,
}

const GCM_128: Sealing = Sealing {
    dialect: "SMB3_11",
    cipher: "AES-128-GCM",
    server: "server smb3 encryption algorithms = AES-128-GCM",
};
const CCM_128: Sealing =
    Sealing { cipher: "AES-128-CCM", server: "server smb3 encryption algorithms = AES-128-CCM", ..GCM_128 };
const GCM_256: Sealing =
    Sealing { cipher: "AES-256-GCM", server: "server smb3 encryption algorithms = AES-256-GCM", ..GCM_128 };
const CCM_256: Sealing =
    Sealing { cipher: "AES-256-CCM", server: "server smb3 encryption algorithms = AES-256-CCM", ..GCM_128 };

pub(super) const CASES: &[Case] = &[
    Case {
        name: "sealed-aes128gcm",
        shows: "get and put in a session encrypted with AES-128-GCM survive kill -9 of the serving node",
        soak: 20,
        run: |scale| crash(scale, &GCM_128),
    },
    Case {
        name: "sealed-aes128ccm",
        shows: "the same with AES-128-CCM",
        soak: 20,
        run: |scale| crash(scale, &CCM_128),
    },
    Case {
        name: "sealed-aes256gcm",
        shows: "the same with AES-256-GCM",
        soak: 20,
        run: |scale| crash(scale, &GCM_256),
    },
    Case {
        name: "sealed-aes256ccm",
        shows: "the same with AES-256-CCM",
        soak: 20,
        run: |scale| crash(scale, &CCM_256),
    },
    Case {
        name: "sealed-3.0.2",
        shows: "the same on SMB 3.0.2, which knows AES-128-CCM only",
        soak: 3,
        run: |scale| crash(scale, &Sealing { dialect: "SMB3_02", ..CCM_128 }),
    },
    Case {
        name: "sealed-3.0",
        shows: "the same on SMB 3.0",
        soak: 3,
        run: |scale| crash(scale, &Sealing { dialect: "SMB3_00", ..CCM_128 }),
    },
];

fn crash(scale: &Scale, sealing: &Sealing) -> Result<Report> {
    let samba =
        Settings { global: vec!["server smb encrypt = required", sealing.server], ..Settings::default() };
    let who = Who { dialect: sealing.dialect, cipher: Some(sealing.cipher), ..Who::SEALED };
    let scale = Scale { copy: scale.copy.min(LARGEST), ..*scale };
    let mut rig = Rig::new(&Site { samba, ..Site::default() })?;
    is_sealed(&rig, &who).context("before the copies")?;
    let start = |rig: &Rig, way| Copy::start(rig, &who, way, FILE, scale.copy);
    survive(&mut rig, &scale, &start)
}

/// The node itself must say what such a session is encrypted with.
fn is_sealed(rig: &Rig, who: &Who) -> Result<()> {
    let node = rig.nodes.get(rig.serving()?).context("no such node")?;
    let idle = Idle::start(rig, who)?;
    let mut sessions = String::new();
    wait_until("the node has a session", Duration::from_secs(20), || {
        sessions = node.sessions().unwrap_or_default();
        sessions.contains(USER)
    })?;
    let said = sessions.lines().find(|line| line.contains(USER)).unwrap_or_default();
    let is_as_wanted = who.cipher.is_some_and(|cipher| said.contains(cipher)) && said.contains(who.dialect);
    ensure!(is_as_wanted, "smbstatus says: {said}");
    idle.end()
}
