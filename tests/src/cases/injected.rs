//! Frames that somebody else put on the wire: refused after a takeover as the node itself refuses them, never signed
//! by us.

use std::fs;

use anyhow::{Context, Result, ensure};
use smb_parse::{
    FileId,
    compound::elements,
    encode,
    header::{Command, Flags, Header, Status},
    patch,
};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, Draft, FILE_OPEN_IF, File, Open, Setup, User},
    rig::{Rig, Site, net::FLOATING},
};

const REFUSED: &str = "signatures_refused_total";
const GOOD: &[u8] = b"what the user wrote";
const EVIL: &[u8] = b"what someone else sent";

pub(super) const CASES: &[Case] = &[Case {
    name: "injected-frame",
    shows: "unsigned and altered requests on a signed session are refused after a takeover, not signed by us",
    soak: 5,
    run: injected,
}];

fn injected(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("guarded.bin") })?;
    client.write(file, 0, GOOD)?;
    inject(&mut client, at, file).context("in Relay")?;
    let relayed = rig.metric(REFUSED)?;
    ensure!(fs::read(rig.data().join("guarded.bin"))? == GOOD, "the node took an injected frame");

    rig.kill_serving()?;
    ensure!(client.read(file, 0, 100)? == GOOD, "read something else after the takeover");
    rig.await_takeovers("crash", 1)?;
    let count = inject(&mut client, at, file).context("after the takeover")?;
    let refused = rig.metric(REFUSED)? - relayed;
    ensure!(refused == f64::from(count), "{refused} refusals counted, {count} sent");
    ensure!(fs::read(rig.data().join("guarded.bin"))? == GOOD, "an injected frame reached the file");
    ensure!(!rig.data().join("planted.bin").exists(), "an injected frame made a file");
    client.write(file, 0, GOOD).context("a signed write afterwards")?;
    ensure!(rig.metric("opens")? == 1.0, "Opens are left of what was refused");
    Ok(Report { notes: vec![format!("{count} messages refused")], ..Report::default() })
}

/// Sends what must be refused; says how many messages that were.
fn inject(client: &mut Client, at: At, file: File) -> Result<u32> {
    let evil = |header: &Header| encode::write(header, file.id, 0, 0, EVIL);
    let unsigned = client.draft(at, Command::WRITE, 1, evil)?;
    let mut count = refused(client, &unsigned).context("an unsigned WRITE")?;

    // One bit of the data, of the offset to write at, and of the signature.
    for byte in [120, 72, 50] {
        let mut altered = client.draft(at, Command::WRITE, 1, evil)?;
        client.sign(&mut altered);
        *altered.bytes.get_mut(byte).context("a short draft")? ^= 1;
        count += refused(client, &altered).with_context(|| format!("a WRITE altered in byte {byte}"))?;
    }

    // A signature that was good for another message.
    let mut other = client.draft(at, Command::WRITE, 1, evil)?;
    let mut flush = client.draft(at, Command::FLUSH, 1, |header| encode::flush(header, file.id))?;
    client.sign(&mut flush);
    client.sign(&mut other);
    let stolen = flush.bytes.get(48..64).context("a short draft")?.to_vec();
    other.bytes.get_mut(48..64).context("a short draft")?.copy_from_slice(&stolen);
    count += refused(client, &other).context("a WRITE with the signature of a FLUSH")?;
    client.post(&flush)?;
    let id = flush.ids.first().copied().context("an empty draft")?;
    client.wait(id)?.success().context("the FLUSH itself")?;

    let compound = compound(client, at, &Open { disposition: FILE_OPEN_IF, ..Open::of("planted.bin") })?;
    count += refused(client, &compound).context("an unsigned compound")?;
    one_member(client, at).context("one unsigned member of a signed compound")?;
    Ok(count + 1)
}

/// The WRITE between a signed CREATE and a signed CLOSE is not signed: whatever becomes of these, it is refused.
fn one_member(client: &mut Client, at: At) -> Result<()> {
    let mut draft = compound(client, at, &Open::of("guarded.bin"))?;
    client.sign(&mut draft);
    let member = elements(&draft.bytes).nth(1).context("a short compound")??;
    let (range, flags) = (member.range, member.header.flags.without(Flags::SIGNED));
    let write = draft.bytes.get_mut(range).context("a short compound")?;
    patch::set_flags(write, flags);
    patch::set_signature(write, [0; 16]);
    client.post(&draft)?;
    let answers = draft.ids.iter().map(|id| client.wait(*id)).collect::<Result<Vec<_>>>()?;
    let [create, write, close] = answers.as_slice() else { anyhow::bail!("not three answers") };
    ensure!(write.status() == Status::ACCESS_DENIED, "answered {:x?}", write.status());
    if create.status().is_success() && !close.status().is_success() {
        client.close(File::from(at, create.clone())?)?;
    }
    Ok(())
}

/// Related members that would open a file, write to it and close it.
fn compound(client: &mut Client, at: At, open: &Open<'_>) -> Result<Draft> {
    let last = FileId::ALL_ONES;
    client.draft_compound(
        at,
        &[
            (Command::CREATE, &|header| open.build(header)),
            (Command::WRITE, &|header| encode::write(header, last, 0, 0, EVIL)),
            (Command::CLOSE, &|header| encode::close(header, 0, last)),
        ],
    )
}

/// Each message is answered once, with an error.
fn refused(client: &mut Client, draft: &Draft) -> Result<u32> {
    client.post(draft)?;
    let mut count = 0;
    for id in &draft.ids {
        let answer = client.wait(*id)?;
        let status = answer.status();
        ensure!(status == Status::ACCESS_DENIED, "answered {status:x?}");
        count += 1;
    }
    Ok(count)
}
