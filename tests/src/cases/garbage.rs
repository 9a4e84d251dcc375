//! What no SMB client sends: each is ended or bounded, and whoever works beside it notices nothing.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{Copy, Fault, Way, Who},
    net::FLOATING,
};

const IDLE: usize = 1000;
/// What the proxy may grow by while all of it is there. A connection that says nothing holds no buffer: 32 KiB are ample
/// for its task and its Link, while one read buffer each would be 64 MiB. None of the others may make the proxy reserve
/// what it only announces. The copy beside them has up to 16 MiB on its way through.
const GROWTH: u64 = (32 + 16) << 20;

pub(super) const CASES: &[Case] = &[Case {
    name: "garbage",
    shows: "noise, HTTP, a prefix of 16 MiB, half a frame and 1,000 idle connections are ended; a copy beside them is undisturbed",
    soak: 3,
    run: garbage,
}];

fn garbage(scale: &Scale) -> Result<Report> {
    let config = "[clients]\nfirst_frame = \"6s\"\nhalf_frame = \"2s\"\n";
    let mut rig = Rig::new(&Site { config: config.into(), ..Site::default() })?;
    rig.net.stretch_copies(scale.copy, Duration::from_secs(20))?;
    rig.net.add_host("stranger", "10.77.0.2")?;
    let mut report = Report::default();
    let copy = Copy::start(&rig, &Who::SIGNED, Way::Get, "bulk.bin", scale.copy)?;
    let fault = Fault::at(scale.copy / 8, |rig| {
        report.notes.push(pelt(rig)?);
        ensure!(rig.metric("connections")? == 1.0, "the copy is over, or a stranger is still connected");
        Ok(())
    });
    copy.run(&mut rig, vec![fault])?;
    let metrics = rig.proxy.metrics(&rig.net)?;
    let count = |prefix: &str| {
        metrics.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<f64>()
    };
    ensure!(count("understudy_takeovers_total") == 0.0, "the copy was taken over");
    ensure!(count("understudy_leg_losses_total{how=\"refused\"") == 0.0, "a node refused");
    Ok(report)
}

/// Throws everything at the proxy at once, and waits until it has got rid of it.
fn pelt(rig: &Rig) -> Result<String> {
    let before = resident(rig)?;
    let address = format!("{FLOATING}:445");
    let idle = rig.net.connect_many("stranger", &address, IDLE)?;
    let mut strangers: Vec<_> = idle.into_iter().map(|stream| ("idle", stream)).collect();
    let mut noise = [0; 4096];
    fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let framed = [&[0, 0, 16, 0][..], &noise].concat();
    let unframed = [&[0x80][..], &noise].concat();
    let said: [(&str, &[u8]); 6] = [
        ("protocol_error", &unframed),
        ("protocol_error", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"),
        ("protocol_error", &[0, 0xff, 0xff, 0xff]),
        ("idle", &framed[..1000]),
        ("idle", &[0, 0]),
        ("node", &framed),
    ];
    for (reason, bytes) in said {
        let mut stream = rig.net.connect("stranger", &address)?;
        stream.write_all(bytes)?;
        strangers.push((reason, stream));
    }
    rig.await_metric("connections_total", (IDLE + said.len() + 1) as f64)?;
    let grown = resident(rig)?.saturating_sub(before);
    ensure!(rig.metric("connections")? >= IDLE as f64, "the idle connections are not all there");
    ensure!(grown < GROWTH, "the proxy has grown by {grown} bytes");

    let expected = |reason: &str| strangers.iter().filter(|(r, _)| *r == reason).count() as f64;
    let (idle, errors) = (expected("idle"), expected("protocol_error"));
    strangers.into_iter().try_for_each(|(reason, stream)| ended(stream).context(reason))?;
    let closed = |reason: &str| rig.metric(&format!("client_closed_total{{reason=\"{reason}\"}}"));
    ensure!(closed("protocol_error")? == errors, "not {errors} were closed for what they said");
    ensure!(closed("idle")? == idle, "not {idle} were closed for their silence");
    ensure!(
        closed("node_closed")? + closed("lost_in_handshake")? == 1.0,
        "the node's verdict on noise was not passed on"
    );
    Ok(format!("grown by {} KiB with {IDLE} idle connections", grown >> 10))
}

/// Waits until the proxy has ended a connection.
fn ended(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => other.map(|_| ()).context("not ended"),
    }
}

/// The memory that the proxy holds.
fn resident(rig: &Rig) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", rig.proxy.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
