//! One bit of a frame flipped on its way, after a takeover: wherever it is, the frame is never signed or sealed again and
//! never reaches the node, and the client is told or disconnected as MS-SMB2 asks.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    compound::elements,
    encode,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Status},
    transform,
};
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, Draft, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{Rig, Site, net::FLOATING, recorder::Recorder, wait_until},
    wire::Capture,
};

const REFUSED: &str = "signatures_refused_total";
const CLOSED: &str = "client_closed_total{reason=\"signature_invalid\"}";
const GOOD: &[u8] = b"what the user wrote";
const EVIL: &[u8] = b"what someone made of it";

pub(super) const CASES: &[Case] = &[Case {
    name: "tampered-frame",
    shows: "one bit flipped anywhere in a frame after a takeover: refused or disconnected, counted, never forwarded",
    soak: 5,
    run: tampered,
}];

/// Each dialect signs in a way of its own (MS-SMB2 3.1.4.1).
const SIGNED: [Dialect; 3] = [Dialect::SMB210, Dialect::SMB302, Dialect::SMB311];
const SEALED: [(Dialect, Cipher); 5] = [
    (Dialect::SMB302, Cipher::Aes128Ccm),
    (Dialect::SMB311, Cipher::Aes128Ccm),
    (Dialect::SMB311, Cipher::Aes128Gcm),
    (Dialect::SMB311, Cipher::Aes256Ccm),
    (Dialect::SMB311, Cipher::Aes256Gcm),
];

/// Bits of a signed WRITE: byte of the frame, mask, and what they belong to. The MessageId is not among them: another one
/// is refused for itself (MS-SMB2 3.3.5.2.3).
const SIGNED_BITS: [(usize, u8, &str); 10] = [
    (PREFIX + 14, 0x01, "CreditRequest"),
    (PREFIX + 16, 0x08, "the SIGNED flag"),
    (PREFIX + 32, 0x01, "Reserved"),
    (PREFIX + 36, 0x01, "TreeId"),
    (PREFIX + 48, 0x80, "the Signature's first byte"),
    (PREFIX + 63, 0x01, "the Signature's last byte"),
    (PREFIX + 72, 0x01, "Offset"),
    (PREFIX + 80, 0x01, "FileId"),
    (PREFIX + 112, 0x01, "the data's first byte"),
    (PREFIX + 112 + EVIL.len() - 1, 0x80, "the data's last byte"),
];

/// Bits of a sealed WRITE.
const SEALED_BITS: [(usize, u8, &str); 11] = [
    (PREFIX + 4, 0x80, "the tag's first byte"),
    (PREFIX + 19, 0x01, "the tag's last byte"),
    (PREFIX + 20, 0x01, "the Nonce's first byte"),
    (PREFIX + 30, 0x80, "the Nonce's last byte"),
    (PREFIX + 36, 0x01, "OriginalMessageSize"),
    (PREFIX + 42, 0x02, "Flags"),
    (PREFIX + 44, 0x01, "SessionId"),
    (PREFIX + transform::Header::LEN, 0x01, "the sealed header's first byte"),
    (PREFIX + transform::Header::LEN + 24, 0x01, "the sealed MessageId"),
    (PREFIX + transform::Header::LEN + 72, 0x01, "the sealed Offset"),
    (PREFIX + transform::Header::LEN + 112 + EVIL.len() - 1, 0x80, "the sealed data's last byte"),
];

fn tampered(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut signed = Vec::new();
    for dialect in SIGNED {
        signed.push(Victim::new(&rig, &Setup { dialect, ..Setup::default() })?);
    }
    // A sealed session dies of the first bit: there is one for each.
    let mut sealed = Vec::new();
    for (dialect, cipher) in SEALED {
        let setup = Setup { dialect, cipher: Some(cipher), sealing: true, ..Setup::default() };
        for bit in SEALED_BITS {
            sealed.push((Victim::new(&rig, &setup)?, bit, format!("{dialect:x?} {cipher:?}, {}", bit.2)));
        }
    }
    let dead = rig.kill_serving()?;
    let mut victims = signed.iter_mut().chain(sealed.iter_mut().map(|(victim, ..)| victim));
    victims.try_for_each(Victim::works).context("after the takeover")?;
    rig.await_takeovers("crash", signed.len() + sealed.len())?;
    let node = rig.nodes.get(1 - dead).context("no such node")?;
    let recorder = Recorder::of_host(&rig, &node.name)?;

    for victim in &mut signed {
        victim.refused(&rig).with_context(|| format!("{:x?}", victim.setup.dialect))?;
    }
    let count = sealed.len();
    for (victim, bit, what) in sealed {
        victim.disconnected(&rig, bit).context(what)?;
    }
    // Those that prove, one by one, that a signed session has outlived what was refused in it; and one more, behind which
    // nothing is on its way any more.
    let honest = SIGNED.len() * SIGNED_BITS.len() + 1;
    signed.last_mut().context("nobody signs")?.works()?;
    wait_until("the last request is recorded", Duration::from_secs(20), || {
        requests_with_sessions(recorder.file()).is_ok_and(|count| count >= honest)
    })?;
    let asked = requests_with_sessions(&recorder.stop()?)?;
    ensure!(asked == honest, "{asked} requests reached the node, {honest} of them were the user's");
    let refused = SIGNED.len() * SIGNED_BITS.len();
    ensure!(rig.metric(REFUSED)? == (refused + count) as f64, "{} were counted", rig.metric(REFUSED)?);
    let note = format!("{refused} signed frames refused, {count} sealed ones disconnected");
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// A client with an open file, under attack.
struct Victim {
    client: Client,
    setup: Setup,
    at: At,
    file: File,
    name: String,
}

impl Victim {
    fn new(rig: &Rig, setup: &Setup) -> Result<Self> {
        let setup = Setup { client_guid: guid(), ..*setup };
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let at = client.enter(User::KNOWN, "share")?;
        let name = format!("guarded-{:x}.bin", u128::from_le_bytes(guid()));
        let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
        client.write(file, 0, GOOD)?;
        Ok(Self { client, setup, at, file, name })
    }

    fn works(&mut self) -> Result<()> {
        ensure!(self.client.read(self.file, 0, 100)? == GOOD, "read something else");
        Ok(())
    }

    fn evil(&mut self, (byte, mask, _): (usize, u8, &str)) -> Result<(Draft, Vec<u8>)> {
        let id = self.file.id;
        let mut draft =
            self.client.draft(self.at, Command::WRITE, 1, |header| encode::write(header, id, 0, 0, EVIL))?;
        self.client.sign(&mut draft);
        let mut frame = self.client.frame(&draft)?;
        *frame.get_mut(byte).context("a short frame")? ^= mask;
        Ok((draft, frame))
    }

    /// A wrong signature is an error for that request alone (MS-SMB2 3.3.5.2.4).
    fn refused(&mut self, rig: &Rig) -> Result<()> {
        for bit in SIGNED_BITS {
            let (draft, frame) = self.evil(bit)?;
            self.client.post_frame(&draft, &frame)?;
            let id = draft.ids.first().copied().context("an empty draft")?;
            let answer = self.client.wait(id).context(bit.2)?;
            ensure!(answer.status() == Status::ACCESS_DENIED, "{}: answered {:x?}", bit.2, answer.status());
            ensure!(!answer.is_signed(), "{}: the refusal is signed", bit.2);
            self.works().context(bit.2)?;
        }
        self.is_unharmed(rig)
    }

    /// What cannot be opened ends the connection (MS-SMB2 3.3.5.2.1.1).
    fn disconnected(mut self, rig: &Rig, bit: (usize, u8, &str)) -> Result<()> {
        let (refused, closed) = (rig.metric(REFUSED)?, rig.metric(CLOSED)?);
        let (draft, frame) = self.evil(bit)?;
        self.client.post_frame(&draft, &frame)?;
        self.client.wait_for_silent_end()?;
        ensure!(rig.metric(REFUSED)? == refused + 1.0, "not counted as refused");
        ensure!(rig.metric(CLOSED)? == closed + 1.0, "not counted as closed");
        self.is_unharmed(rig)
    }

    fn is_unharmed(&self, rig: &Rig) -> Result<()> {
        ensure!(fs::read(rig.data().join(&self.name))? == GOOD, "a tampered frame reached the file");
        Ok(())
    }
}

/// How many requests of sessions are in a recording, sealed frames among them: the proxy's probes have none.
fn requests_with_sessions(file: &Path) -> Result<usize> {
    let mut count = 0;
    for frame in Capture::read(file)?.frames {
        if protocol(&frame.body) == Protocol::Transform {
            count += 1;
            continue;
        }
        for element in elements(&frame.body) {
            let header = element?.header;
            count += usize::from(!header.is_response() && header.session_id != 0);
        }
    }
    Ok(count)
}
