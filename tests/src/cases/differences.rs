//! Nodes that are not alike: the proxy names it, and goes to a better one.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::{
    client::{Client, FILE_OPEN_IF, Open, Setup, User},
    rig::{Rig, Site, net::FLOATING, proxy::message},
};

/// What makes a node unlike the others, the label of it, and the value that is shown.
const UNLIKE: [(&str, &str, &str); 8] = [
    ("netbios name = OTHER", "netbios_name", "OTHER"),
    ("smb2 max read = 1048576", "max_read", "1048576 (3.1.1)"),
    ("smb2 max trans = 2097152", "max_transact", "2097152 (3.1.1)"),
    ("server min protocol = SMB3_00", "dialects", "3.1.1"),
    ("server smb3 encryption algorithms = AES-128-GCM, AES-128-CCM", "ciphers", "AES-128-CCM, AES-128-GCM"),
    // 3.0 and 3.0.2 have no other algorithm than AES-128-CMAC; so they are refused, too.
    ("server smb3 signing algorithms = AES-128-GMAC", "signing_algorithms", "AES-128-GMAC"),
    ("server signing = mandatory", "security_mode", "signing required (3.1.1)"),
    ("smb2 leases = no", "capabilities", "DFS, LARGE_MTU, MULTI_CHANNEL (3.1.1)"),
];
const COMPARE: &str = "[compare]\nuser = \"alice\"\nshares = [\"share\"]\n";
const BREAKS: &str = "the nodes differ, and clients that are moved would break";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "nodes-differ",
        shows: "in what nodes differ is named in the log, the metric and by check, until the node is started with what the other has",
        soak: 3,
        run: differ,
    },
    Case {
        name: "nodes-alike",
        shows: "of nodes that are alike nothing is said, and check finds nothing, volumes included",
        soak: 3,
        run: alike,
    },
    Case {
        name: "passes-over-worse-node",
        shows: "of two nodes that could take over, the first in order would break clients: the other one does; the worse one is better than none, and that is said",
        soak: 3,
        run: passes_over,
    },
];

fn difference(node: &str, what: &str) -> String {
    format!("node_differences{{node=\"{node}\",what=\"{what}\"}}")
}

fn differ(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site { config: COMPARE.into(), ..Site::default() })?;
    let (serving, unlike) = (rig.serving()?, 1 - rig.serving()?);
    let node = format!("samba-{unlike}");
    restart_with(&mut rig, unlike, &UNLIKE.map(|(line, ..)| line))?;
    rig.await_log(BREAKS)?;
    let log = rig.proxy.log();
    let lines: Vec<_> = log.iter().filter(|line| message(line) == BREAKS).collect();
    ensure!(lines.len() == 1, "it was said {} times", lines.len());
    let line = lines.first().context("no line")?;
    ensure!(line["level"] == "WARN", "{line}");
    let said = line["differences"].as_str().unwrap_or_default();
    for (_, label, value) in UNLIKE {
        let is_said = said.contains(&format!("{label}: ")) && said.contains(&format!("{value} at {node}"));
        ensure!(is_said, "{label}: {said}");
    }
    let series = rig.proxy.metrics(&rig.net)?;
    for (label, value) in
        [("volume_serial", 2.0), ("server_guid", 1.0), ("max_write", 0.0), ("dns_name", 0.0)]
    {
        let found = series.get(&format!("understudy_{}", difference(&node, label)));
        ensure!(found == Some(&value), "{label} is {found:?}: {said}");
    }

    // Started anew with what the other has, it is asked anew.
    restart_with(&mut rig, unlike, &[])?;
    rig.await_log("the nodes do not differ any more")?;
    let series = rig.proxy.metrics(&rig.net)?;
    let left = series.iter().find(|(name, value)| name.contains("node_differences") && **value != 0.0);
    ensure!(left.is_none(), "{left:?}");
    ensure!(rig.serving()? == serving, "{} serves now", rig.serving_name()?);

    restart_with(&mut rig, unlike, &UNLIKE.map(|(line, ..)| line))?;
    ensure!(rig.proxy.stop()?.success(), "the proxy did not end well");
    let (good, said) = rig.proxy.check(&rig.net)?;
    ensure!(!good && said.contains("WRONG samba-0 and samba-1 differ"), "{said}");
    for (_, label, value) in UNLIKE {
        let row = said.lines().find(|row| row.trim_start().starts_with(label)).context(label)?;
        let values =
            row.trim_start().trim_start_matches(label).trim().split_once(" | ").context("no values")?;
        ensure!([values.0, values.1].get(unlike) == Some(&value), "{row}");
    }
    Ok(Report::default())
}

fn alike(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site { config: COMPARE.into(), ..Site::default() })?;
    ensure!(rig.proxy.stop()?.success(), "the proxy did not end well");
    ensure!(!rig.has_logged("the nodes differ"), "{}", rig.proxy.log_text());
    let (good, said) = rig.proxy.check(&rig.net)?;
    ensure!(good, "{said}");
    for words in [
        "samba-0 and samba-1 say the same of themselves",
        "share at samba-0: volume serial number",
        "share at samba-1: volume serial number",
    ] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    Ok(Report::default())
}

fn passes_over(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site { nodes: 3, ..Site::default() })?;
    let serving = rig.serving()?;
    let [worse, better] = [(serving + 1) % 3, (serving + 2) % 3];
    restart_with(&mut rig, worse, &["smb2 max read = 1048576"])?;
    let [worse_name, better_name] = [worse, better].map(|at| format!("samba-{at}"));
    rig.await_metric(&difference(&worse_name, "max_read"), 2.0)?;
    for node in [&worse_name, &better_name] {
        rig.await_metric(&format!("node_up{{node=\"{node}\"}}"), 1.0)?;
    }
    ensure!(rig.serving()? == serving, "another node serves already");
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("better.bin") })?;
    client.write(file, 0, b"better")?;
    rig.kill_serving()?;
    ensure!(client.read(file, 0, 6)? == b"better", "the file is another one");
    ensure!(rig.serving()? == better, "{} has taken over", rig.serving_name()?);
    ensure!(!rig.has_logged("no better node"), "there was a better node");

    rig.kill_serving()?;
    rig.await_log("no better node answers: some clients will not survive the move")?;
    client.wait_for_end()?;
    let mut next = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    next.enter(User::KNOWN, "share")?;
    ensure!(rig.serving()? == worse, "{} serves", rig.serving_name()?);
    Ok(Report::default())
}

/// Starts a node anew, with these lines in `[global]` and none of those that it had from here before.
fn restart_with(rig: &mut Rig, index: usize, lines: &[&str]) -> Result<()> {
    let node = rig.nodes.get_mut(index).context("no such node")?;
    let config = fs::read_to_string(node.config())?;
    let (head, share) = config.split_once("[share]").context("no share")?;
    let head = head.split("# unlike\n").next().unwrap_or_default();
    fs::write(node.config(), format!("{head}# unlike\n{}\n[share]{share}", lines.join("\n")))?;
    node.kill();
    rig.restart(index)
}
