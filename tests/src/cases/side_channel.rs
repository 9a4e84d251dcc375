//! The proxy's second connection in a client's session: what it learns decides a takeover, and it disturbs nobody.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, kill_process};
use smb_parse::{
    create_context::tag,
    encode,
    header::{Command, Status},
};
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{
    Case, Report, Scale,
    copies::{FILE, survive_one},
    kerberos::site,
};
use crate::{
    client::{Client, DELETE_ON_CLOSE, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Way, Who},
        net::FLOATING,
        node::Settings,
        realm::Kind,
        wait_until,
    },
};

/// As soon as a session stands, and quick to miss a process.
const ALWAYS: &str = "[side_channel]\nopen = \"always\"\nstuck_after = \"1s\"\n";
/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 0x09;
const ONE: &[u8] = b"the one that was open";
const OTHER: &[u8] = b"another one";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "side-channel-identity",
        shows: "a file that took the name of an open one, made by whoever, is not taken for it after a crash; each dialect, signed and sealed",
        soak: 3,
        run: identity,
    },
    Case {
        name: "side-channel-leaves-nothing",
        shows: "a client that ends: its delete-on-close happens at once, its durable handle can be had again",
        soak: 3,
        run: leaves_nothing,
    },
    Case {
        name: "side-channel-holds-nothing",
        shows: "only the node leg is cut, and what the client has open alone is had again at once from the node that it is still on",
        soak: 5,
        run: holds_nothing,
    },
    Case {
        name: "side-channel-stuck",
        shows: "the one process that serves a client is stopped, its node is well: it is told of, nothing else happens",
        soak: 3,
        run: stuck,
    },
    Case {
        name: "side-channel-krb-mit",
        shows: "smbclient has one with a ticket of an MIT realm too, each dialect, signed and sealed, and copies through a crash",
        soak: 3,
        run: |scale| kerberos(scale, Kind::Mit),
    },
    Case {
        name: "side-channel-krb-ad",
        shows: "the same in an Active Directory domain",
        soak: 3,
        run: |scale| kerberos(scale, Kind::Ad),
    },
    Case {
        name: "side-channel-refused",
        shows: "a node without multichannel: no side channel, and nobody notices",
        soak: 1,
        run: refused,
    },
];

/// Every way in which a session can have a side channel.
fn setups() -> Vec<Setup> {
    let signed = [Dialect::SMB300, Dialect::SMB302, Dialect::SMB311].map(|dialect| Setup {
        dialect,
        client_guid: guid(),
        ..Setup::default()
    });
    let cmac = Setup { signing_algs: &[1], client_guid: guid(), ..Setup::default() };
    let unsigned =
        Setup { signing: false, dialect: Dialect::SMB302, client_guid: guid(), ..Setup::default() };
    let sealed = |dialect, cipher| Setup {
        dialect,
        cipher: Some(cipher),
        sealing: true,
        client_guid: guid(),
        ..Setup::default()
    };
    let old = sealed(Dialect::SMB300, Cipher::Aes128Ccm);
    let new = Cipher::ALL.map(|cipher| sealed(Dialect::SMB311, cipher));
    signed.into_iter().chain([cmac, unsigned, old]).chain(new).collect()
}

/// A client with a file that stays and one whose name another file will take.
struct Worker {
    what: String,
    client: Client,
    stays: File,
    replaced: File,
}

fn identity(_: &Scale) -> Result<Report> {
    // Without a side channel the other file is taken for the one that was open: else this would show nothing.
    let off = "[side_channel]\nopen = \"off\"\n";
    let mut lone = workers(off, vec![Setup::default()])?;
    lone.0.kill_serving()?;
    let Some(Worker { client, replaced, .. }) = lone.1.first_mut() else { bail!("no worker") };
    ensure!(client.read(*replaced, 0, 100)? == OTHER, "it was told apart by something else");
    drop(lone);

    let (mut rig, mut workers) = workers("", setups())?;
    rig.kill_serving()?;
    for Worker { what, client, stays, replaced } in &mut workers {
        ensure!(client.read(*stays, 0, 100).with_context(|| what.clone())? == ONE, "{what}: another file");
        let id = client.send_read(*replaced, 0, 100)?;
        let status = client.wait(id)?.status();
        ensure!(status == Status::FILE_CLOSED, "{what}: the other file is taken for it: {status:x?}");
    }
    ensure!(rig.metric("side_channels")? == 0.0, "a side channel outlived its node");
    Ok(Report { notes: vec![format!("{} sessions", workers.len())], ..Report::default() })
}

/// Clients that have two files open each, until what is to be learned of these is learned; then another file takes the
/// name of one, by nobody's request.
fn workers(config: &str, setups: Vec<Setup>) -> Result<(Rig, Vec<Worker>)> {
    let rig = Rig::new(&Site { config: config.into(), ..Site::default() })?;
    let mut workers = Vec::new();
    for (index, setup) in setups.into_iter().enumerate() {
        let what = format!("{:x?}, {:?}, signing {}", setup.dialect, setup.cipher, setup.signing);
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let at = client.enter(User::KNOWN, "share")?;
        let mut open = |name: &str| -> Result<File> {
            fs::write(rig.data().join(name), ONE)?;
            client.open(at, &Open::of(name))
        };
        let stays = open(&format!("stays-{index}"))?;
        let replaced = open(&replaced(index))?;
        workers.push(Worker { what, client, stays, replaced });
    }
    if config.is_empty() {
        rig.await_metric("side_channel_answers_total", 2.0 * workers.len() as f64)?;
        ensure!(rig.metric("side_channels")? == workers.len() as f64, "not one for each");
    }
    for index in 0..workers.len() {
        let aside = rig.data().join("aside");
        fs::write(&aside, OTHER)?;
        fs::rename(aside, rig.data().join(replaced(index)))?;
    }
    Ok((rig, workers))
}

fn replaced(index: usize) -> String {
    format!("replaced-{index}")
}

fn leaves_nothing(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site { config: ALWAYS.into(), ..Site::default() })?;
    let setup = Setup { client_guid: guid(), ..Setup::default() };
    let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
    let at = client.enter(User::KNOWN, "share")?;
    let doomed = Open { disposition: FILE_OPEN_IF, options: DELETE_ON_CLOSE, ..Open::of("doomed") };
    client.open(at, &doomed)?;
    let mut durable = Open { disposition: FILE_OPEN_IF, oplock: BATCH, share: 0, ..Open::of("durable") };
    durable.contexts.push((tag::DHNQ, encode::durable_request()));
    let file = client.open(at, &durable)?;
    rig.await_metric("side_channels", 1.0)?;
    let doomed = rig.data().join("doomed");
    ensure!(doomed.exists(), "deleted too early");
    drop(client);
    wait_until("the file is deleted", Duration::from_secs(2), || !doomed.exists())?;
    let mut again = Client::connect(&rig.net, FLOATING, &setup)?;
    let at = again.enter(User::KNOWN, "share")?;
    let mut back = Open { oplock: BATCH, share: 0, ..Open::of("durable") };
    back.contexts.push((tag::DHNC, encode::durable_reconnect(file.id)));
    let answer = again.call(at, Command::CREATE, 1, |header| back.build(header))?;
    ensure!(answer.status() == Status::SUCCESS, "the durable handle is gone: {:x?}", answer.status());
    Ok(Report::default())
}

/// The local ports of the proxy's connections to a node.
fn ports(rig: &Rig, node: &str) -> Result<BTreeSet<String>> {
    let to = ["-Htn", "state", "established", "dst", node, "dport", "=", ":445"];
    let output = rig.net.command("hub", "ss").args(to).output()?;
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines
        .lines()
        .filter_map(|l| Some(l.split_whitespace().nth(2)?.rsplit_once(':')?.1.to_owned()))
        .collect())
}

fn holds_nothing(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site::default())?;
    let node = rig.nodes.get(rig.serving()?).context("no such node")?.address.clone();
    let before = ports(&rig, &node)?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let alone = Open { disposition: FILE_OPEN_IF, share: 0, ..Open::of("alone") };
    let file = client.open(at, &alone)?;
    client.write(file, 0, b"still there")?;
    // Among these is the client's, and there may be one by which the node is compared with others: that does not last.
    let new = &ports(&rig, &node)? - &before;
    rig.await_metric("side_channels", 1.0)?;
    let main = (&ports(&rig, &node)? & &new).into_iter().collect::<Vec<_>>();
    let [port] = &main[..] else { bail!("not one connection for the client: {main:?}") };
    let cut = ["-K", "-tn", "dst", &node, "sport", "=", &format!(":{port}")];
    ensure!(rig.net.command("hub", "ss").args(cut).output()?.status.success(), "ss -K");
    ensure!(client.read(file, 0, 11)? == b"still there", "something else is read");
    rig.await_takeovers("crash", 1)?;
    ensure!(rig.metric("takeover_opens_total{result=\"lost\"}")? == 0.0, "it was lost");
    Ok(Report::default())
}

fn stuck(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site { config: ALWAYS.into(), ..Site::default() })?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("stuck") })?;
    client.write(file, 0, b"still there")?;
    rig.await_metric("side_channels", 1.0)?;
    let serving = rig.serving()?;
    let node = rig.nodes.get(serving).context("no such node")?;
    let process = node.pid_with(&rig.data().join("stuck")).context("nobody has the file open")?;
    kill_process(process, Signal::STOP)?;
    rig.await_metric("stuck_links", 1.0)?;
    rig.await_log("the node's process for this client does not answer, although the node does")?;
    ensure!(rig.serving()? == serving, "the node was left");
    kill_process(process, Signal::CONT)?;
    wait_until("it is heard again", Duration::from_secs(10), || {
        rig.metric("stuck_links").is_ok_and(|now| now == 0.0)
    })?;
    ensure!(client.read(file, 0, 11)? == b"still there", "something else is read");
    ensure!(rig.metric("takeovers_total{cause=\"crash\",result=\"ok\"}")? == 0.0, "a takeover");
    Ok(Report::default())
}

fn kerberos(scale: &Scale, kind: Kind) -> Result<Report> {
    let signed = |dialect| Who { dialect, ..Who::KERBEROS };
    let sealed = |dialect| Who { protection: "encrypt", ..signed(dialect) };
    let whos =
        [signed("SMB3_00"), signed("SMB3_02"), signed("SMB3_11"), sealed("SMB3_00"), sealed("SMB3_11")];
    let mut report = Report::default();
    let mut rig = Rig::new(&Site { config: ALWAYS.into(), ..site(kind) })?;
    rig.net.stretch_copies(scale.copy, Duration::from_secs(2))?;
    for who in whos {
        let bound = Fault::at(scale.copy / 8, |rig| rig.await_metric("side_channels", 1.0));
        let start = |rig: &Rig, way| Copy::start(rig, &who, way, FILE, scale.copy);
        let what = || format!("{}, {}", who.dialect, who.protection);
        let outcome = survive_one(&mut rig, scale, Way::Put, &start, Some(bound)).with_context(what)?;
        report.stalls_ms.push(outcome.stall.as_millis());
    }
    ensure!(rig.metric("side_channels")? == 0.0, "a side channel outlived its client");
    Ok(report)
}

fn refused(_: &Scale) -> Result<Report> {
    let samba = Settings { global: vec!["server multi channel support = no"], ..Settings::default() };
    let mut rig = Rig::new(&Site { config: ALWAYS.into(), samba, ..Site::default() })?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("alone") })?;
    client.write(file, 0, b"still there")?;
    rig.await_metric("side_channel_failures_total{reason=\"refused\"}", 1.0)?;
    rig.kill_serving()?;
    ensure!(client.read(file, 0, 11)? == b"still there", "something else is read");
    Ok(Report::default())
}
