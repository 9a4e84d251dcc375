//! SIGTERM: nobody new, what is in flight is answered, and then the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smb_parse::{cmd::read, encode, header::Command};

use super::{Case, Report, Scale};
use crate::{
    client::{Client, End, Open, Setup, User},
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Way, Who, gave_up, write_noise},
        net::FLOATING,
        wait_until,
    },
};

const FILE: &str = "in-flight.bin";
const MIB: u32 = 1 << 20;
/// Reads in flight, of 1 MiB each: more than the proxy queues for a client before it stops reading the node.
const READS: u32 = 24;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "sigterm-answers",
        shows: "SIGTERM in mid-copy: no new connections, every request in flight is answered in full, exit 0",
        soak: 5,
        run: answers,
    },
    Case {
        name: "sigterm-is-bounded",
        shows: "SIGTERM while the node answers nothing: the end comes after shutdown_grace, exit 0",
        soak: 2,
        run: is_bounded,
    },
];

fn answers(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    write_noise(&rig.data().join(FILE), u64::from(READS * MIB))?;
    // Narrow enough that the last answers are still queued in the proxy when all of them have come from the node.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(8))?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup { credits: 1000, ..Setup::default() })?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open::of(FILE))?;

    let copy = Copy::start(&rig, &Who::SIGNED, Way::Get, "bulk.bin", scale.copy)?;
    let fault = Fault::at(scale.copy / 4, |rig| {
        let reads = (0..READS)
            .map(|n| client.send_read(file, u64::from(n * MIB), MIB))
            .collect::<Result<Vec<_>>>()?;
        // Once the proxy has this, it has them all.
        client.send(at, Command::ECHO, 1, encode::echo)?;
        rig.await_metric("messages_total{command=\"echo\",direction=\"request\"}", 1.0)?;
        rig.proxy.terminate()?;
        rig.await_log("stopping: no new connections")?;
        let is_refused = || rig.net.connect("client", &format!("{FLOATING}:445")).is_err();
        wait_until("a new connection is refused", Duration::from_secs(10), is_refused)?;
        let mut bytes: Vec<u8> = Vec::new();
        for id in reads {
            bytes.extend(read::Response::parse(&client.wait(id)?.success()?.msg)?.data);
        }
        ensure!(bytes == std::fs::read(rig.data().join(FILE))?, "the answers are not what is in the file");
        ensure!(client.wait_for_end()? == End::Closed, "the connection was reset");
        let status = rig.proxy.wait()?;
        ensure!(status.success(), "the proxy ended with {status}");
        Ok(())
    });
    let error = copy.run(&mut rig, vec![fault]).err().context("the copy ended well")?;
    ensure!(gave_up(&error), "{error:#}");
    ensure!(rig.has_logged("stopped"), "the log does not tell of the end");
    Ok(Report::default())
}

fn is_bounded(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site { config: "shutdown_grace = \"1s\"\n".into(), ..Site::default() })?;
    // On a busy machine the node may stand still for longer than it is given.
    rig.expect_error("the serving node is silent");
    write_noise(&rig.data().join(FILE), u64::from(MIB))?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open::of(FILE))?;
    rig.nodes.get(rig.serving()?).context("no such node")?.freeze(true);
    client.send_read(file, 0, 4096)?;
    rig.await_metric("messages_total{command=\"read\",direction=\"request\"}", 1.0)?;
    let status = rig.proxy.stop()?;
    ensure!(status.success(), "the proxy ended with {status}");
    client.wait_for_end()?;
    ensure!(rig.has_logged("disconnected: the proxy is stopping"), "the log does not say why");
    Ok(Report::default())
}
