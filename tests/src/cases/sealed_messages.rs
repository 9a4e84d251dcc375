//! Message by message in encrypted sessions: what is asked sealed is answered sealed, interim answers too, compounds in one
//! frame; and break notifications come after a takeover as the node itself sends them.

use std::fs;

use anyhow::{Context, Result, ensure};
use smb_parse::{cmd::oplock_break::Notification, encode, header::Command};
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{Case, Report, Scale, messages, pipelines};
use crate::{
    client::{At, Break, Client, File, Open, Setup, User, guid},
    rig::{Rig, Site, net::FLOATING},
};

/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 0x09;
/// Read, handle and write caching (MS-SMB2 2.2.13.2.8).
const RWH: u32 = 7;
/// Every cipher, and how each dialect agrees on one.
const SEALINGS: [(Dialect, Cipher); 6] = [
    (Dialect::SMB300, Cipher::Aes128Ccm),
    (Dialect::SMB302, Cipher::Aes128Ccm),
    (Dialect::SMB311, Cipher::Aes128Ccm),
    (Dialect::SMB311, Cipher::Aes128Gcm),
    (Dialect::SMB311, Cipher::Aes256Ccm),
    (Dialect::SMB311, Cipher::Aes256Gcm),
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "sealed-single-messages",
        shows: "open, write, read, flush, lock, set, query, echo and close on one handle before and after a crash, with each cipher",
        soak: 3,
        run: |_| messages::single_messages(&SEALINGS.map(sealed).map(|setup| (setup, User::KNOWN))),
    },
    Case {
        name: "sealed-cancelled-lock",
        shows: "an encrypted lock that waits after a takeover is granted when it can be, or cancelled",
        soak: 3,
        run: |_| messages::cancelled_lock(&sealed((Dialect::SMB311, Cipher::Aes128Gcm))),
    },
    Case {
        name: "sealed-compounds-in-flight",
        shows: "encrypted compounds in flight at a crash are each answered once, and leave no Open",
        soak: 5,
        run: |_| pipelines::compounds(&sealed((Dialect::SMB311, Cipher::Aes256Gcm))),
    },
    Case {
        name: "sealed-breaks",
        shows: "break notifications to an encrypted session come after a takeover as the node sends them before",
        soak: 3,
        run: breaks,
    },
];

/// A connection whose sessions are sealed.
fn sealed((dialect, cipher): (Dialect, Cipher)) -> Setup {
    Setup { dialect, cipher: Some(cipher), sealing: true, client_guid: guid(), ..Setup::default() }
}

/// What a client has open when another comes.
#[derive(Debug, Clone, Copy)]
enum Caching {
    Oplock,
    Lease,
}

fn breaks(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut holders = Vec::new();
    for (index, sealing) in SEALINGS.into_iter().enumerate() {
        for caching in [Caching::Oplock, Caching::Lease] {
            let what = format!("{sealing:?}, {caching:?}");
            let mut holder = Holder::new(&rig, sealing, caching)?;
            let early = holder.hold(&rig, &format!("early-{index}-{caching:?}"))?;
            let late = holder.hold(&rig, &format!("late-{index}-{caching:?}"))?;
            // The node's own way.
            let is_sealed = holder.broken(&rig, &early).with_context(|| format!("{what}, in Relay"))?;
            holders.push((what, holder, late, is_sealed));
        }
    }
    rig.kill_serving()?;
    for (what, holder, late, was_sealed) in &mut holders {
        ensure!(holder.client.read(late.file, 0, 100)? == b"common", "{what}: read something else");
        let is_sealed = holder.broken(&rig, late).with_context(|| format!("{what}, in Bridge"))?;
        ensure!(
            is_sealed == *was_sealed,
            "{what}: sealed was {was_sealed} in Relay and is {is_sealed} in Bridge"
        );
    }
    let sealed = holders.iter().filter(|(.., sealed)| *sealed).count();
    let note = format!("{sealed} of {} notifications are sealed", holders.len());
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// A client that caches.
struct Holder {
    client: Client,
    at: At,
    caching: Caching,
}

/// A file that it caches.
struct Held {
    name: String,
    file: File,
    key: [u8; 16],
}

impl Holder {
    fn new(rig: &Rig, sealing: (Dialect, Cipher), caching: Caching) -> Result<Self> {
        let mut client = Client::connect(&rig.net, FLOATING, &sealed(sealing))?;
        let at = client.enter(User::KNOWN, "share")?;
        Ok(Self { client, at, caching })
    }

    fn hold(&mut self, rig: &Rig, name: &str) -> Result<Held> {
        fs::write(rig.data().join(name), b"common")?;
        let (key, open) = (guid(), Open::of(name));
        let open = match self.caching {
            Caching::Oplock => Open { oplock: BATCH, ..open },
            Caching::Lease => open.leased(2, key, RWH),
        };
        Ok(Held { name: name.to_owned(), file: self.client.open(self.at, &open)?, key })
    }

    /// Another client opens the file: the break comes, is acknowledged, and the other has the file. Whether the
    /// notification was sealed.
    fn broken(&mut self, rig: &Rig, held: &Held) -> Result<bool> {
        let before = self.client.breaks.len();
        let mut other =
            Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
        let at = other.enter(User::KNOWN, "share")?;
        let open = Open::of(&held.name);
        let asked = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        self.client.receive_until(|client| client.breaks.len() > before).context("the break")?;
        let Break { notification, sealed } = self.client.breaks.last().context("no break")?.clone();
        match notification {
            Notification::Lease { lease_key, new_lease_state, .. } => {
                ensure!(lease_key == held.key, "another lease was broken");
                self.client.acknowledge_lease(self.at, lease_key, new_lease_state)?.success()?;
            }
            Notification::Oplock { oplock_level, file_id } => {
                ensure!(file_id == held.file.id, "the oplock of another file was broken");
                let build = |header: &_| encode::oplock_break_ack(header, file_id, oplock_level);
                self.client.call(self.at, Command::OPLOCK_BREAK, 1, build)?.success()?;
            }
        }
        let theirs = File::from(at, other.wait(asked)?).context("the open that broke it")?;
        ensure!(other.read(theirs, 0, 100)? == b"common", "the other reads something else");
        Ok(sealed)
    }
}
