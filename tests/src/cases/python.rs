//! Clients that are neither Samba's nor the kernel's: the same copies survive with Python's smbprotocol and impacket, so that
//! not only one library is fooled.

use anyhow::Result;

use super::{
    Case, Report, Scale,
    copies::{FILE, survive},
};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Python},
    node::Settings,
};

/// As much as the claim names.
const LARGEST: u64 = 256 << 20;
/// And once in a while, for Python takes its time.
const SMALL: u64 = 32 << 20;

const SMBPROTOCOL: Python = Python { library: "smbprotocol", sealed: false };
/// Signs with AES-CMAC and seals with AES-128-CCM, the only ones it knows.
const IMPACKET: Python = Python { library: "impacket", sealed: false };

pub(super) const CASES: &[Case] = &[
    Case {
        name: "smbprotocol-signed",
        shows: "signed get and put by smbprotocol (Python) survive kill -9 of the serving node",
        soak: 3,
        run: |scale| crash(scale, &SMBPROTOCOL),
    },
    Case {
        name: "smbprotocol-sealed",
        shows: "the same encrypted",
        soak: 3,
        run: |scale| crash(scale, &Python { sealed: true, ..SMBPROTOCOL }),
    },
    Case {
        name: "impacket-signed",
        shows: "signed get and put by impacket (Python) survive kill -9 of the serving node",
        soak: 3,
        run: |scale| crash(scale, &IMPACKET),
    },
    Case {
        name: "impacket-sealed",
        shows: "the same encrypted",
        soak: 3,
        run: |scale| crash(scale, &Python { sealed: true, ..IMPACKET }),
    },
];

fn crash(scale: &Scale, who: &Python) -> Result<Report> {
    // impacket seals whenever the server can, and signs only where it must.
    let encryption = if who.sealed { "server smb encrypt = required" } else { "server smb encrypt = off" };
    let samba = Settings { global: vec!["server signing = mandatory", encryption], ..Settings::default() };
    let scale = Scale { copy: scale.copy.min(if scale.soak { LARGEST } else { SMALL }), ..*scale };
    let start = |rig: &Rig, way| Copy::start_python(rig, who, way, FILE, scale.copy);
    survive(&mut Rig::new(&Site { samba, ..Site::default() })?, &scale, &start)
}
