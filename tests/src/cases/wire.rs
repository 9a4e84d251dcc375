//! The parser against tshark, on the traffic of the project's own runs.

use std::{fs, process::Stdio};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::lock::{EXCLUSIVE, FAIL_IMMEDIATELY, Lock, UNLOCK},
    create_context::{Lease, tag},
    encode, fsctl,
    header::Command,
};
use understudy_core::crypto::Dialect;

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Way, Who, write_noise},
        net::FLOATING,
        recorder::{self, Recorder},
    },
    wire::tshark::{self, Agreement},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "tshark-agrees",
    shows: "tshark reads the recorded traffic of both legs, before and after a takeover, as the parser does",
    soak: 3,
    run: agrees,
}];

/// Enough that the node dies in the middle, little enough to be dissected soon.
const COPY: u64 = 32 << 20;
/// FileStandardInformation (MS-FSCC 2.4.41).
const STANDARD: u8 = 5;
/// FileEndOfFileInformation (MS-FSCC 2.4.13).
const END_OF_FILE: u8 = 20;
/// READ, HANDLE and WRITE caching.
const ALL: u32 = 7;

fn agrees(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let hosts = ["client"].into_iter().chain(rig.nodes.iter().map(|node| node.name.as_str()));
    let recorders: Vec<_> = hosts.map(|host| Recorder::of_host(&rig, host)).collect::<Result<_>>()?;
    let signed = |dialect| Who { dialect, ..Who::SIGNED };
    let plain = |dialect| Who { dialect, protection: "plain", ..Who::SIGNED };
    let windows = Who { multi_protocol: true, ..Who::SIGNED };
    for who in [signed("SMB2_10"), plain("SMB2_10"), signed("SMB3_11"), plain("SMB3_11"), Who::GUEST, windows]
    {
        handle_files(&rig, &who).with_context(|| format!("{who:?}"))?;
    }
    let mut holders = Vec::new();
    for dialect in [Dialect::SMB210, Dialect::SMB300, Dialect::SMB311] {
        let mut holder = Holder::new(&rig, dialect)?;
        holder.exercise()?;
        holder.break_lease(&rig)?;
        holders.push(holder);
    }
    let mut dead = 0;
    for way in [Way::Get, Way::Put] {
        let len = scale.copy.min(COPY);
        let fault = Fault::at(len / 3, |rig| {
            dead = rig.kill_serving()?;
            Ok(())
        });
        Copy::start(&rig, &Who::SIGNED, way, "bulk.bin", len)?.run(&mut rig, vec![fault])?;
        rig.restart(dead)?;
        for holder in &mut holders {
            holder.exercise().context("after a takeover")?;
        }
    }
    for holder in holders {
        holder.end()?;
    }
    let mut report = Report::default();
    let mut all = Agreement::default();
    for recorder in recorders {
        let file = recorder.stop()?;
        let agreement = tshark::compare(&file)?;
        report.notes.push(format!("{}: {agreement}", recorder::host(&file)));
        agreement.check()?;
        complete(&agreement).with_context(|| recorder::host(&file))?;
        all.add(agreement);
    }
    report.notes.push(format!("{all}"));
    Ok(report)
}

/// Every kind of message that the clients sent was among those compared, on every leg.
fn complete(agreement: &Agreement) -> Result<()> {
    use Command as C;
    let commands = [
        C::NEGOTIATE,
        C::SESSION_SETUP,
        C::TREE_CONNECT,
        C::CREATE,
        C::CLOSE,
        C::FLUSH,
        C::READ,
        C::WRITE,
        C::LOCK,
        C::IOCTL,
        C::ECHO,
        C::QUERY_INFO,
        C::SET_INFO,
    ];
    for command in commands {
        ensure!(agreement.commands.contains_key(&command.0), "no {} was compared", command.name());
    }
    for tag in [tag::RQLS, tag::DHNQ, tag::DH2Q] {
        ensure!(agreement.has_tag(tag), "no {} was compared", String::from_utf8_lossy(tag));
    }
    Ok(())
}

/// What people do with files, by smbclient.
fn handle_files(rig: &Rig, who: &Who) -> Result<()> {
    let (up, down) = (rig.local()?.join("up"), rig.local()?.join("down"));
    write_noise(&up, 300_000)?;
    let order = format!(
        "mkdir d; put {} d/ä.bin; ls d/*; allinfo d/ä.bin; rename d/ä.bin d/b.bin; get d/b.bin {}; del d/b.bin; rmdir d; ls",
        up.display(),
        down.display()
    );
    let output = rig
        .net
        .command("client", "smbclient")
        .arg(format!("//{FLOATING}/share"))
        .args(who.arguments())
        .args(["-c", &order])
        .env("HOME", rig.dir.path())
        .stdin(Stdio::null())
        .output()
        .context("smbclient")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.contains("NT_STATUS"), "smbclient: {said}");
    ensure!(fs::read(&up)? == fs::read(&down)?, "the bytes differ");
    Ok(())
}

/// A client that keeps a file open under a lease and a durable handle.
struct Holder {
    client: Client,
    at: At,
    file: File,
    key: [u8; 16],
    name: String,
}

impl Holder {
    fn new(rig: &Rig, dialect: Dialect) -> Result<Self> {
        let mut client = Client::connect(&rig.net, FLOATING, &Setup { dialect, ..Setup::default() })?;
        let at = client.enter(User::KNOWN, "share")?;
        let (key, name) = (guid(), format!("leased-{:x}.bin", dialect.0));
        let version = if dialect >= Dialect::SMB300 { 2 } else { 1 };
        let lease = Lease { key, state: ALL, flags: 0, duration: 0, parent_key: [0; 16], epoch: 0, version };
        let durable = if version == 2 {
            (tag::DH2Q, encode::durable_v2_request(60_000, guid()))
        } else {
            (tag::DHNQ, encode::durable_request())
        };
        let contexts = vec![
            durable,
            (tag::MXAC, Vec::new()),
            (tag::QFID, encode::query_on_disk_id()),
            (tag::ALSI, 4096_u64.to_le_bytes().to_vec()),
        ];
        let open = Open { disposition: FILE_OPEN_IF, lease: Some(lease), contexts, ..Open::of(&name) };
        let file = client.open(at, &open)?;
        Ok(Self { client, at, file, key, name })
    }

    /// One of everything.
    fn exercise(&mut self) -> Result<()> {
        let (client, file) = (&mut self.client, self.file);
        client.write(file, 0, &[7; 5000])?;
        client.flush(file)?;
        client.read(file, 100, 1000)?;
        let lock = Lock { offset: 10, length: 20, flags: EXCLUSIVE | FAIL_IMMEDIATELY };
        client.lock(file, &[lock])?.success()?;
        client.lock(file, &[Lock { flags: UNLOCK, ..lock }])?.success()?;
        client.set_info(file, END_OF_FILE, &4000_u64.to_le_bytes())?.success()?;
        client.query_info(file, STANDARD)?;
        client.fsctl(file, fsctl::SRV_REQUEST_RESUME_KEY, &[])?;
        client.echo(self.at)
    }

    /// Another client opens the file: a break comes, and is acknowledged.
    fn break_lease(&mut self, rig: &Rig) -> Result<()> {
        let mut other = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let at = other.enter(User::KNOWN, "share")?;
        let open = Open::of(&self.name);
        let id = other.send(at, Command::CREATE, 1, |header| open.build(header))?;
        self.client.receive_until(|client| !client.breaks.is_empty())?;
        self.client.acknowledge_lease(self.at, self.key, 1 | 2)?.success()?;
        let file = File::from(at, other.wait(id)?)?;
        other.close(file)
    }

    fn end(mut self) -> Result<()> {
        self.client.close(self.file)
    }
}
