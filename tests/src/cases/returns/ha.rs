//! Of two proxies one is lost, and the other serves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use understudy_core::crypto::Dialect;

use super::{
    Fault, TIMEOUT, lose, mount,
    owner::{Owner, Purpose},
};
use crate::{
    cases::{Case, Report, Scale},
    client::{Client, FILE_OPEN_IF, Open, Setup, User},
    rig::{
        Rig, Site, Store,
        net::FLOATING,
        pair,
        proxy::Proxy,
        puppet::{Puppet, hex},
        wait_until,
    },
};

/// What one ends with that leads no more.
const DEPOSED: i32 = 3;
/// Long enough for what must not happen.
const AWHILE: Duration = Duration::from_secs(3);

/// How a proxy is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cases) enum Loss {
    /// Its process is killed.
    Killed,
    /// Its host is cut off.
    Silent,
    /// Its process is killed together with the node.
    KilledWithNode,
    /// Its process is stopped, and goes on when another one serves.
    Stopped,
    /// It is told to hand over.
    SteppedDown,
    /// It is told to end.
    Terminated,
    /// It does not reach etcd.
    CutFromEtcd,
    /// It does not reach the other one.
    CutFromStandby,
}

impl Loss {
    /// It happens, and the other one serves.
    pub(super) fn strike(self, rig: &mut Rig) -> Result<()> {
        let serving = rig.serving()?;
        self.begin(rig)?;
        rig.await_successor()?;
        self.end(rig)?;
        if self == Self::KilledWithNode {
            rig.await_serving_other_than(serving)?;
        }
        Ok(())
    }

    fn begin(self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::Killed => rig.proxy.kill(),
            Self::Silent => rig.net.set_link(rig.proxy.space, false),
            Self::KilledWithNode => {
                let serving = rig.serving()?;
                rig.proxy.kill()?;
                rig.nodes.get_mut(serving).context("no such node")?.kill();
                Ok(())
            }
            Self::Stopped => rig.proxy.signal(Signal::STOP),
            Self::SteppedDown => {
                // Refused until the other one is heard of.
                let limit = Duration::from_secs(10);
                wait_until("it hands over", limit, || {
                    rig.proxy.ask(&rig.net, "POST", "/step-down").is_ok_and(|(status, _)| status == 200)
                })
            }
            Self::Terminated => rig.proxy.terminate(),
            Self::CutFromEtcd => cut_from_etcd(rig, rig.proxy.space, true),
            Self::CutFromStandby => {
                let [_, (_, other)] = pair::HOSTS;
                rig.net.set_blackhole(rig.proxy.space, &[other], true)
            }
        }
    }

    /// What becomes of the one before.
    fn end(self, rig: &mut Rig) -> Result<()> {
        let before = rig.standby.as_mut().context("no proxy before")?;
        let expected = match self {
            Self::Killed | Self::KilledWithNode => return Ok(()),
            Self::Silent => {
                let space = before.space;
                rig.await_floating(space, false)?;
                rig.net.set_link(space, true)?;
                DEPOSED
            }
            Self::Stopped => {
                before.signal(Signal::CONT)?;
                DEPOSED
            }
            Self::CutFromEtcd => {
                let space = before.space;
                // The process does not know it yet.
                rig.await_floating(space, false)?;
                cut_from_etcd(rig, space, false)?;
                DEPOSED
            }
            Self::SteppedDown | Self::CutFromStandby => DEPOSED,
            Self::Terminated => 0,
        };
        let before = rig.standby.as_mut().context("no proxy before")?;
        let status = before.wait()?;
        ensure!(status.code() == Some(expected), "it ends with {status}");
        let space = before.space;
        rig.await_floating(space, false)?;
        if self == Self::CutFromStandby {
            rig.restart_standby()?;
            // It never hears the one that serves now, and does not depose it for that.
            std::thread::sleep(AWHILE);
            ensure!(rig.proxy.get(&rig.net, "/ready")?.0 == 200, "it is deposed in its turn");
            let [_, (_, other)] = pair::HOSTS;
            rig.net.set_blackhole(space, &[other], false)?;
        }
        Ok(())
    }
}

fn cut_from_etcd(rig: &Rig, space: &str, cut: bool) -> Result<()> {
    let etcd = rig.etcd.as_ref().context("no etcd")?;
    rig.net.set_blackhole(space, &etcd.addresses(), cut)
}

pub(super) fn site() -> Site {
    Site { pair: true, store: Store::THREE, ..Site::default() }
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ha-killed",
        shows: "of two proxies the one that serves is killed: clients of 2.1 and 3.1.1 have their durable Opens, locks and leases again at the other, and nobody steals a file before",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::Killed), &site()),
    },
    Case {
        name: "ha-silent",
        shows: "the same when its host is cut off; it forwards nothing more, loses the floating address by itself, and ends when it is back",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::Silent), &site()),
    },
    Case {
        name: "ha-killed-with-node",
        shows: "the same when it is killed together with the node",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::KilledWithNode), &site()),
    },
    Case {
        name: "ha-stopped",
        shows: "the same when its process is stopped, and goes on when the other serves: it does nothing any more, and ends",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::Stopped), &site()),
    },
    Case {
        name: "ha-step-down",
        shows: "the same when it is told to hand over",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::SteppedDown), &site()),
    },
    Case {
        name: "ha-terminated",
        shows: "the same when it is told to end",
        soak: 50,
        run: |_| lose(Fault::Leader(Loss::Terminated), &site()),
    },
    Case {
        name: "ha-kernel-killed",
        shows: "a kernel mount comes back by itself at the other proxy, with its locks",
        soak: 50,
        run: |_| mount::comes_back(Fault::Leader(Loss::Killed), &site()),
    },
    Case {
        name: "ha-kernel-silent",
        shows: "the same when its host is cut off",
        soak: 50,
        run: |_| mount::comes_back(Fault::Leader(Loss::Silent), &site()),
    },
    Case {
        name: "ha-kernel-killed-with-node",
        shows: "the same when the proxy that serves is killed together with the node",
        soak: 50,
        run: |_| mount::comes_back(Fault::Leader(Loss::KilledWithNode), &site()),
    },
    Case { name: "ha-times", shows: "how long clients wait for the other proxy", soak: 1, run: times },
    Case {
        name: "ha-cut-from-etcd",
        shows: "a proxy that does not reach etcd forwards nothing; the other serves when its lease is over, and nothing is lost",
        soak: 5,
        run: |_| lose(Fault::Leader(Loss::CutFromEtcd), &site()),
    },
    Case {
        name: "ha-cut-from-standby",
        shows: "a proxy that does not reach the one that stands by, but etcd, is followed once, and not again and again",
        soak: 5,
        run: |_| lose(Fault::Leader(Loss::CutFromStandby), &site()),
    },
    Case {
        name: "ha-cut-from-nodes",
        shows: "a proxy that reaches no node keeps its place and its clients, and goes on with what was in its hands when it reaches one; told to step down meanwhile it does so",
        soak: 5,
        run: |_| cut_from_nodes(),
    },
    Case {
        name: "ha-mid-write",
        shows: "a proxy is stopped with writes on their way to the node, and goes on when the file is open again at the other: none of them is done any more",
        soak: 100,
        run: |_| mid_write(false),
    },
    Case {
        name: "ha-mid-write-named",
        shows: "the same with a client that names its earlier session",
        soak: 20,
        run: |_| mid_write(true),
    },
    Case {
        name: "ha-no-quorum",
        shows: "without a majority of etcd nothing is forwarded; with it the same proxy goes on with what was in its hands",
        soak: 5,
        run: |_| no_quorum(),
    },
    Case {
        name: "ha-mistakes",
        shows: "an address that somebody has, an interface that is not there, and a missing capability are said with a remedy, and nothing is left half taken",
        soak: 5,
        run: |_| mistakes(),
    },
];

fn client(rig: &Rig) -> Result<Client> {
    Client::connect(&rig.net, FLOATING, &Setup { dialect: Dialect::SMB311, ..Setup::default() })
}

/// A client at work, from the loss on until it has written again.
fn times(scale: &Scale) -> Result<Report> {
    let runs = if scale.soak { 20 } else { 3 };
    let mut rig = Rig::new(&site())?;
    // Of a proxy that is cut off, before it serves again.
    rig.expect_error("this proxy leads no more");
    let mut report = Report::default();
    for loss in [Loss::Killed, Loss::Silent, Loss::SteppedDown] {
        let mut times = Vec::new();
        for _ in 0..runs {
            let mut before = client(&rig)?;
            write_again(&mut before)?;
            let begun = Instant::now();
            loss.begin(&mut rig)?;
            before.wait_for_end()?;
            let noticed = begun.elapsed();
            let limit = Duration::from_secs(30);
            wait_until("the client works again", limit, || {
                client(&rig).and_then(|mut client| write_again(&mut client)).is_ok()
            })?;
            times.push((begun.elapsed(), noticed));
            rig.await_successor()?;
            loss.end(&mut rig)?;
            rig.restart_standby()?;
            rig.await_heard()?;
        }
        times.sort_unstable();
        let ms = |at: usize| times.get(at).map_or(0, |(works, _)| works.as_millis());
        let all: Vec<_> =
            times.iter().map(|(works, noticed)| (works.as_millis(), noticed.as_millis())).collect();
        report.notes.push(format!(
            "{loss:?}: the first I/O after {} ms (median of {runs}), {} ms (maximum); each, and when it noticed: {all:?}",
            ms(times.len() / 2),
            ms(times.len().saturating_sub(1))
        ));
    }
    Ok(report)
}

fn write_again(client: &mut Client) -> Result<()> {
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("times") })?;
    client.write(file, 0, b"again")
}

/// `named`: the client names its earlier session when it comes back.
fn mid_write(named: bool) -> Result<Report> {
    const WRITES: u64 = 24;
    const LENGTH: usize = 65_536;
    let mut rig = Rig::new(&Site { taps: true, ..site() })?;
    let mut puppet = Puppet::start(&rig, "smbprotocol")?;
    let mut owner = Owner::arrive(&mut puppet, FLOATING, "mid-write", "3.1.1", &[Purpose::Alone], TIMEOUT)?;
    let write = |id: &str, number: u64, byte: u8| {
        let offset = 1024 + number * u64::try_from(LENGTH).unwrap_or_default();
        json!({"do": "write", "file": id, "offset": offset, "data": hex(&[byte; LENGTH])})
    };
    let tap = rig.taps.get(rig.serving()?).context("no tap")?;
    ensure!(tap.hold(&owner.sent_guid(), true) > 0, "the tap does not know the client");
    let (id, connection) = (owner.at(0)?.kept.id.clone(), owner.connection());
    let seen = "messages_total{command=\"write\",direction=\"request\"}";
    let already = rig.metric(seen)?;
    for number in 0..WRITES {
        puppet.begin(&connection, write(&id, number, b'o'))?;
    }
    puppet.sent()?;
    // All that the window allows is between the proxy and the node.
    rig.await_metric(seen, already + 8.0)?;

    Loss::Stopped.begin(&mut rig)?;
    rig.await_successor()?;
    owner.await_end(&mut puppet)?;
    if !named {
        owner.forget_session();
    }
    owner.come_back(&mut puppet, FLOATING)?;
    let (id, name) = (owner.at(0)?.kept.id.clone(), owner.at(0)?.kept.name.clone());
    ensure!(owner.at(0)?.kept.is_open, "the file is lost");
    for number in 0..WRITES {
        let said = puppet.call(&owner.connection(), write(&id, number, b'n'))?;
        ensure!(said["status"] == 0, "a write: {said}");
    }
    // Now what was on its way arrives, and the old proxy goes on.
    for tap in &*rig.taps {
        tap.hold(&owner.sent_guid(), false);
    }
    std::thread::sleep(AWHILE);
    Loss::Stopped.end(&mut rig)?;
    owner.echo(&mut puppet)?;
    let data = std::fs::read(rig.data().join(&name))?;
    let written = data.get(1024..1024 + LENGTH * usize::try_from(WRITES)?).context("the file is short")?;
    let old = written.iter().filter(|byte| **byte != b'n').count();
    ensure!(old == 0, "{old} bytes are of the proxy that was stopped");
    Ok(Report::default())
}

/// Two of three members die.
fn cut_from_nodes() -> Result<Report> {
    let mut rig = Rig::new(&site())?;
    let nodes: Vec<String> = rig.nodes.iter().map(|node| node.address.clone()).collect();
    let cut = |rig: &Rig, space, is_cut| {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        rig.net.set_blackhole(space, &nodes, is_cut)
    };
    let mut client = client(&rig)?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("cut") })?;
    client.write(file, 0, b"before")?;
    let path = rig.data().join("cut");
    cut(&rig, rig.proxy.space, true)?;
    let asked = client.send_write(file, 0, b"behind")?;
    client.listen(AWHILE)?;
    ensure!(client.take_ready(asked).is_none(), "it was answered");
    ensure!(std::fs::read(&path)? == b"before", "it was done");
    let standby = rig.standby.as_ref().context("nobody stands by")?;
    ensure!(standby.get(&rig.net, "/ready")?.0 == 503, "two serve");
    cut(&rig, rig.proxy.space, false)?;
    client.wait(asked)?.success()?;
    ensure!(std::fs::read(&path)? == b"behind", "it was not done");

    // The other one reaches them.
    cut(&rig, rig.proxy.space, true)?;
    Loss::SteppedDown.begin(&mut rig)?;
    client.wait_for_end()?;
    rig.await_successor()?;
    let limit = Duration::from_secs(30);
    wait_until("a client works at the other one", limit, || {
        self::client(&rig).and_then(|mut client| write_again(&mut client)).is_ok()
    })?;
    let before = rig.standby.as_ref().context("no proxy before")?.space;
    cut(&rig, before, false)?;
    Loss::SteppedDown.end(&mut rig)?;
    ensure!(std::fs::read(&path)? == b"behind", "what was written is lost");
    Ok(Report::default())
}

fn no_quorum() -> Result<Report> {
    let mut rig = Rig::new(&site())?;
    let mut client = client(&rig)?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("quorum") })?;
    client.write(file, 0, b"before")?;
    let (etcd, _) = rig.etcd()?;
    etcd.kill(0)?;
    etcd.kill(1)?;
    wait_until("nothing is confirmed", Duration::from_secs(20), || {
        rig.proxy
            .get(&rig.net, "/ready")
            .is_ok_and(|(status, said)| status == 503 && said.contains("confirm"))
    })?;
    let asked = client.send_write(file, 0, b"behind")?;
    client.listen(AWHILE)?;
    ensure!(client.take_ready(asked).is_none(), "it was forwarded");
    ensure!(std::fs::read(rig.data().join("quorum"))? == b"before", "it was done");
    let standby = rig.standby.as_ref().context("nobody stands by")?;
    ensure!(standby.get(&rig.net, "/ready")?.0 == 503, "the other one serves");
    let (etcd, net) = rig.etcd()?;
    etcd.restart(net, 0)?;
    etcd.restart(net, 1)?;
    client.wait(asked)?.success()?;
    ensure!(std::fs::read(rig.data().join("quorum"))? == b"behind", "it was not done");
    Ok(Report::default())
}

fn mistakes() -> Result<Report> {
    let mut rig = Rig::new(&site())?;
    let standby = rig.standby.as_ref().context("nobody stands by")?;
    for says in ["serves, and is heard at", &format!("{FLOATING} is at")] {
        checks(&rig, standby, true, says)?;
    }
    // Nobody leads, and nobody before has gone without a word.
    rig.standby.as_mut().context("nobody stands by")?.stop()?;
    ensure!(rig.proxy.stop()?.success(), "it ends otherwise");
    checks(&rig, &rig.proxy, true, "no proxy serves now")?;
    checks(&rig, &rig.proxy, true, "nobody else has it")?;
    rig.net.add_host("squatter", "10.77.0.60")?;
    rig.net.add_address("squatter", FLOATING)?;
    rig.proxy.spawn_again(&rig.net)?;
    fails(&mut rig, "is in use by")?;
    rig.proxy.spawn_without(&rig.net, "-net_admin")?;
    fails(&mut rig, "CAP_NET_ADMIN")?;
    rig.proxy.rewrite("\"eth0\"", "\"eth7\"")?;
    rig.proxy.spawn_again(&rig.net)?;
    fails(&mut rig, "is not there; `ip link`")?;
    checks(&rig, &rig.proxy, false, "is not there; `ip link`")?;
    Ok(Report::default())
}

/// What `understudy check` says in the place of a proxy.
fn checks(rig: &Rig, proxy: &Proxy, good: bool, says: &str) -> Result<()> {
    let (_, text) = proxy.check(&rig.net)?;
    let line =
        text.lines().find(|line| line.contains(says)).with_context(|| format!("no `{says}`:\n{text}"))?;
    ensure!(line.starts_with(if good { "ok" } else { "WRONG" }), "{line}");
    Ok(())
}

fn fails(rig: &mut Rig, why: &str) -> Result<()> {
    let status = rig.proxy.wait()?;
    ensure!(status.code() == Some(1), "it ends with {status}");
    ensure!(rig.proxy.log_text().contains(why), "it does not say: {why}\n{}", rig.proxy.log_text());
    rig.await_floating(rig.proxy.space, false)
}
