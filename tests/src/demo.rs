//! The demo: one file down and up again, each time through the death of the node that serves it, told as a story.

use std::{fs, io::Write as _, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    MIB,
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Outcome, Way, Who},
        net::{CLIENT, FLOATING},
        node::USER,
    },
};

const FILE: &str = "holiday.mov";

/// Runs the demo with a file of so many MiB. An error if anything did not hold.
pub(crate) fn run(mib: u64) -> Result<()> {
    println!("Understudy demo: a file copy survives the death of its Samba node.\n");
    print!("Building a site of its own, in network namespaces and a directory in memory ... ");
    std::io::stdout().flush()?;
    let begun = Instant::now();
    let mut rig = Rig::new(&Site::default())?;
    println!("done in {:.1} s.\n", begun.elapsed().as_secs_f64());
    draw(&rig)?;
    let mut stalls = Vec::new();
    for (number, way) in [Way::Get, Way::Put].into_iter().enumerate() {
        stalls.push(act(&mut rig, number + 1, way, mib * MIB)?.stall.as_millis());
    }
    let [down, up] = stalls[..] else { bail!("two copies were to be made") };
    drop(rig);
    println!(
        "Both copies are whole. All that the client noticed of two dead servers: {down} ms and {up} ms of waiting."
    );
    if std::env::var_os("KEEP").is_none() {
        println!("The site is taken down again; nothing of it is left.");
    }
    Ok(())
}

/// What stands where.
fn draw(rig: &Rig) -> Result<()> {
    let [first, second] = &rig.nodes[..] else { bail!("the demo has two nodes") };
    let line = |node: &crate::rig::node::Node| {
        let serves = rig.serving_name().is_ok_and(|name| name == node.name);
        format!("{}  {}  {}", node.name, node.address, if serves { "serves" } else { "stands by" })
    };
    println!("    smbclient        understudy               two Samba servers, one directory");
    println!("    {CLIENT:<9}  --->  {FLOATING}:445  --+-->  {}", line(first));
    println!("                                        `-->  {}\n", line(second));
    println!("    Both servers are {}, unmodified. The client knows only the address in", first.version()?);
    println!("    the middle. Its user is {USER}: SMB 3.1.1, NTLM, every message signed.\n");
    Ok(())
}

/// One copy, and the death in the middle of it.
fn act(rig: &mut Rig, number: usize, way: Way, len: u64) -> Result<Outcome> {
    let (title, target) = match way {
        Way::Get => ("Download", rig.local()?.join(FILE)),
        Way::Put => ("Upload", rig.data().join(FILE)),
    };
    println!("{number}. {title} of {FILE}, {} MiB", len / MIB);
    let before = connections(rig)?;
    let copy = Copy::start(rig, &Who::SIGNED, way, FILE, len)?;
    let begun = Instant::now();
    say(begun, "the client connects and begins");
    let mut dead = None;
    let kill = Fault::at(len / 3, |rig| {
        let done = fs::metadata(&target).map_or(0, |m| m.len()) / MIB;
        let index = rig.kill_serving()?;
        dead = Some(index);
        let name = rig.nodes.get(index).map_or("?", |n| &n.name);
        say(begun, &format!("{name} is killed now (kill -9 of all its processes), at {done} MiB"));
        Ok(())
    });
    // Some way on, the takeover is in the log; of a small file, what is on its way already may be all of that way.
    let mut told = false;
    let tell = Fault::at(len / 3 + len / 8, |rig| {
        if let Ok(takeover) = takeover(rig) {
            say(begun, &takeover);
            told = true;
        }
        Ok(())
    });
    let outcome = copy.run(rig, vec![kill, tell]).map_err(|error| explained(rig, error))?;
    let dead = dead.context("no node was killed")?;
    if !told {
        say(begun, &takeover(rig)?);
    }
    say(begun, "the copy is complete, and smbclient ends with exit status 0");
    let made = connections(rig)? - before;
    ensure!((made - 1.0).abs() < f64::EPSILON, "the client made {made} TCP connections, not one");
    println!("    stall             {} ms, the longest time without a byte", outcome.stall.as_millis());
    println!("    TCP connection    the same before and after (understudy_connections_total grew by {made})");
    println!("    sha256, source    {}", outcome.source_sha256);
    println!("    sha256, copy      {}  equal", outcome.sha256);
    let name = rig.nodes.get(dead).map_or("?", |n| &n.name).to_owned();
    rig.restart(dead)?;
    println!("    {name} is started again.\n");
    if way == Way::Get {
        // What was downloaded is what will be uploaded.
        fs::remove_file(rig.data().join(FILE))?;
    }
    Ok(outcome)
}

fn say(begun: Instant, what: &str) {
    println!("    {:6.2} s  {what}", begun.elapsed().as_secs_f64());
}

/// What the proxy's log tells of the last takeover.
fn takeover(rig: &Rig) -> Result<String> {
    let log = rig.proxy.log();
    let record = log.iter().rfind(|r| r["message"] == "taken over").context("no takeover was logged")?;
    let number = |field: &str| record[field].as_f64().unwrap_or_default();
    Ok(format!(
        "{} has taken over, in {:.0} ms ({}, {}, {} sent again), and the copy goes on",
        record["to"].as_str().unwrap_or("?"),
        number("total_ms"),
        many(number("sessions"), "session"),
        many(number("opens_reclaimed"), "open file"),
        many(number("replayed"), "request"),
    ))
}

fn many(count: f64, what: &str) -> String {
    let ending = if (count - 1.0).abs() < f64::EPSILON { "" } else { "s" };
    format!("{count} {what}{ending}")
}

fn connections(rig: &Rig) -> Result<f64> {
    Ok(rig.proxy.metrics(&rig.net)?.get("understudy_connections_total").copied().unwrap_or_default())
}

/// The error with the proxy's last words.
fn explained(rig: &Rig, error: anyhow::Error) -> anyhow::Error {
    let log = rig.proxy.log_text();
    let lines: Vec<_> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
    error.context(format!("the copy did not survive. The proxy's log ends with:\n{last}"))
}
