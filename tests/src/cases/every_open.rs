//! All that a client can hold comes back: from another node when its own has died, and from the same one when only the
//! connection was lost.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::{lock::Lock, oplock_break::Notification},
    create_context::tag,
    encode,
    header::{Command, Status},
};
use understudy_core::crypto::Dialect;

use super::{Case, Report, Scale, kerberos::site};
use crate::{
    client::{At, Client, DELETE_ON_CLOSE, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{
        Rig, Site,
        net::FLOATING,
        node::{Settings, USER},
        realm::Kind,
        wait_until,
    },
};

/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 0x09;
/// Lease states: read and handle; read, handle and write (MS-SMB2 2.2.13.2.8).
const RH: u32 = 3;
const RWH: u32 = 7;
/// SMB2_LOCKFLAG_EXCLUSIVE_LOCK, SMB2_LOCKFLAG_FAIL_IMMEDIATELY (MS-SMB2 2.2.26.1).
const EXCLUSIVE: u32 = 0x02 | 0x10;

/// What is said of a node whose cable was out while it was asked.
const SILENT: &str = "the serving node is silent";
const TAKEN_OVER: &str = "takeovers_total{cause=\"crash\",result=\"ok\"}";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "every-open-kept",
        shows: "only the connections to a node that lives are cut: it gives durable handles back with their locks, the rest is opened anew, what it has deleted is lost alone",
        soak: 5,
        run: kept,
    },
    Case { name: "krb-every-open-kept", shows: "the same by Kerberos", soak: 3, run: kept_by_ticket },
];

fn lock(offset: u64) -> Lock {
    Lock { offset, length: 10, flags: EXCLUSIVE }
}

/// DHnQ or, in 3.x, DH2Q.
fn durable<'a>(open: Open<'a>, version: u8) -> Open<'a> {
    let context = match version {
        1 => (tag::DHNQ, encode::durable_request()),
        _ => (tag::DH2Q, encode::durable_v2_request(60_000, guid())),
    };
    Open { contexts: vec![context], ..open }
}

/// A client and what it has open on a node that lives.
struct Holder {
    client: Client,
    at: At,
    /// The name of each file, what it is, and whether the node may keep it, and with a lock.
    files: Vec<(String, File, bool, bool)>,
    doomed: File,
    doomed_name: String,
}

impl Holder {
    fn open(rig: &Rig, setup: Setup, user: User<'_>, who: &str) -> Result<Self> {
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let at = client.enter(user, "share")?;
        let version = if setup.dialect >= Dialect::SMB300 { 2 } else { 1 };
        let kinds = [
            ("batch", true, true),
            ("lease", true, true),
            ("read-handle", true, false),
            ("plain", false, true),
            ("alone", false, false),
        ];
        let mut files = Vec::new();
        for (kind, is_durable, is_locked) in kinds {
            let name = format!("{who}-{kind}");
            let open = Open { disposition: FILE_OPEN_IF, ..Open::of(&name) };
            let open = match kind {
                "batch" => durable(Open { oplock: BATCH, ..open }, 1),
                "lease" => durable(open.leased(version, guid(), RWH), version),
                "read-handle" => durable(open.leased(version, guid(), RH), version),
                "alone" => Open { share: 0, ..open },
                _ => open,
            };
            let file = client.open(at, &open)?;
            client.write(file, 0, name.as_bytes())?;
            if is_locked {
                client.lock(file, &[lock(100)])?.success()?;
            }
            files.push((name, file, is_durable, is_locked));
        }
        let doomed_name = format!("{who}-doomed");
        let doomed = Open { disposition: FILE_OPEN_IF, options: DELETE_ON_CLOSE, ..Open::of(&doomed_name) };
        let doomed = client.open(at, &doomed)?;
        Ok(Self { client, at, files, doomed, doomed_name })
    }

    /// Everything is as it was, but for what the node has deleted.
    fn check(&mut self, rig: &Rig) -> Result<()> {
        for (name, file, ..) in &self.files {
            let read =
                self.client.read(*file, 0, u32::try_from(name.len())?).with_context(|| name.clone())?;
            ensure!(read == name.as_bytes(), "{name} has something else in it");
            self.client.write(*file, 50, b"since then").with_context(|| name.clone())?;
        }
        let status = self
            .client
            .call(self.at, Command::READ, 1, |header| encode::read(header, self.doomed.id, 0, 1, 0))?;
        ensure!(status.status() == Status::FILE_CLOSED, "the file that was deleted: {:x?}", status.status());
        ensure!(!rig.data().join(&self.doomed_name).exists(), "it was made again");
        Ok(())
    }
}

impl Holder {
    /// Another client gets neither the locks nor what is not shared. What is cached is broken as ever.
    fn contend(&mut self, rig: &Rig) -> Result<()> {
        let mut rival =
            Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
        let at = rival.enter(User::SECOND, "share")?;
        // An oplock that could not be had again was broken by then.
        let is_broken = !self.client.breaks.is_empty();
        for (name, file, _, is_locked) in self.files.clone() {
            if is_broken && name.ends_with("batch") {
                self.acknowledge(file)?;
            }
            let open = Open::of(&name);
            let breaks = self.client.breaks.len();
            let asked = rival.send(at, Command::CREATE, 1, |header| open.build(header))?;
            if name.ends_with("batch") && !is_broken || name.ends_with("lease") {
                self.client.receive_until(|client| client.breaks.len() > breaks)?;
                self.acknowledge(file)?;
            }
            let answer = rival.wait(asked)?;
            if name.ends_with("alone") {
                ensure!(answer.status() == Status::SHARING_VIOLATION, "{name}: {:x?}", answer.status());
                continue;
            }
            let theirs = File::from(at, answer).with_context(|| name.clone())?;
            let status = rival.lock(theirs, &[lock(105)])?.status();
            let wanted = if is_locked { Status::LOCK_NOT_GRANTED } else { Status::SUCCESS };
            ensure!(status == wanted, "a lock of {name}: {status:x?}");
            rival.close(theirs)?;
        }
        Ok(())
    }

    /// Acknowledges the last break.
    fn acknowledge(&mut self, file: File) -> Result<()> {
        let last = self.client.breaks.last().context("no break")?.clone();
        match last.notification {
            Notification::Oplock { oplock_level, .. } => {
                let id = file.id;
                self.client.call(file.at, Command::OPLOCK_BREAK, 1, |header| {
                    encode::oplock_break_ack(header, id, oplock_level)
                })?
            }
            Notification::Lease { lease_key, new_lease_state, .. } => {
                self.client.acknowledge_lease(file.at, lease_key, new_lease_state)?
            }
        }
        .success()
        .map(|_| ())
    }
}

/// When each file was opened, as smbstatus has it.
fn opened_at(rig: &Rig, node: usize) -> Result<BTreeMap<String, String>> {
    let text = rig.nodes.get(node).context("no such node")?.open_files()?;
    let data = rig.data().display().to_string();
    let times = text.lines().filter_map(|line| {
        let (name, time) = line.split_once(&data)?.1.trim().split_once("   ")?;
        Some((name.to_owned(), time.trim().to_owned()))
    });
    Ok(times.collect())
}

/// smbstatus tells seconds: what is opened from now on shows another time.
fn await_next_second() -> Result<()> {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = second();
    wait_until("the next second", Duration::from_secs(2), || second() > now)
}

fn kept(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    rig.expect_error(SILENT);
    let signed = Setup::default();
    let [old, middle] = [Dialect::SMB210, Dialect::SMB302].map(|dialect| Setup { dialect, ..signed });
    for (setup, who, unseen) in
        [(signed, "311", false), (old, "210", false), (middle, "302", true), (signed, "unseen", true)]
    {
        cut_twice(&rig, setup, User::KNOWN, who, unseen, 3.0).with_context(|| who.to_owned())?;
    }
    drop(rig);
    // Such a node gives back nothing that is locked: that is opened and locked anew.
    let samba = Settings { global: vec!["posix locking = yes"], ..Settings::default() };
    let mut rig = Rig::new(&Site { samba, ..Site::default() })?;
    rig.expect_error(SILENT);
    cut_twice(&rig, signed, User::KNOWN, "posix", true, 1.0).context("posix locking")?;
    Ok(Report::default())
}

fn kept_by_ticket(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    rig.expect_error(SILENT);
    let node = rig.nodes.first().context("no node")?;
    let ticket = rig.realm()?.ticket(&rig.net, node, USER)?;
    for (who, unseen) in [("seen", false), ("unseen", true)] {
        cut_twice(&rig, Setup::default(), User::Ticket(&ticket), who, unseen, 3.0)
            .with_context(|| who.to_owned())?;
    }
    Ok(Report::default())
}

/// The connection is cut in Relay, and once more in Bridge. `unseen`: the node does not notice it. `kept`: how many Opens it
/// is to keep.
fn cut_twice(rig: &Rig, setup: Setup, user: User<'_>, who: &str, unseen: bool, kept: f64) -> Result<()> {
    let setup = Setup { client_guid: guid(), ..setup };
    let serving = rig.serving()?;
    let mut holder = Holder::open(rig, setup, user, who)?;
    let times = opened_at(rig, serving)?;
    for lost in [1.0, 0.0] {
        await_next_second()?;
        let before = opens_so_far(rig)?;
        let taken = rig.metric(TAKEN_OVER)?;
        rig.cut_legs(serving, unseen)?;
        rig.await_metric(TAKEN_OVER, taken + 1.0)?;
        holder.check(rig)?;
        let after = opens_so_far(rig)?;
        let counted = [after[0] - before[0], after[1] - before[1], after[2] - before[2]];
        ensure!(counted == [5.0, kept, lost], "{counted:?} are back, of them kept, lost");
        ensure!(rig.serving()? == serving, "the node was left although it lives");
        let now = opened_at(rig, serving)?;
        for (name, _, is_durable, is_locked) in &holder.files {
            let is_kept = *is_durable && (kept > 1.0 || !is_locked);
            let same =
                times.get(name).context("smbstatus did not know it")? == now.get(name).context("unknown")?;
            ensure!(same == is_kept, "{name}: smbstatus says {times:?}, then {now:?}");
        }
    }
    holder.contend(rig)
}

/// Opens reclaimed, of them kept, and lost.
fn opens_so_far(rig: &Rig) -> Result<[f64; 3]> {
    let count = |result| rig.metric(&format!("takeover_opens_total{{result=\"{result}\"}}"));
    Ok([count("reclaimed")?, count("kept")?, count("lost")?])
}
