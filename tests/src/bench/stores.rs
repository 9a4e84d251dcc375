//! What it costs to record what clients have open: the same proxy with each store, side by side on one node. The stores lie on
//! a disk, for that is what they wait for.

use std::{
    fmt, fs,
    ops::{AddAssign, Range, Sub},
    path::Path,
    process,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{
    io::Errno,
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use serde_json::{Value, json};
use smb_parse::{create_context::tag, encode, header::Command};

use super::cpu;
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, Setup, User, guid},
    rig::{
        Rig, Site,
        etcd::Etcd,
        net::Net,
        node::{Node, Settings},
        proxy::{Door, Orders, Proxy},
    },
};

/// Read, handle and write caching (MS-SMB2 2.2.13.2.8).
const RWH: u32 = 7;
/// Milliseconds.
const TIMEOUT: u32 = 60_000;
/// One client: how many CREATEs in a turn, and how many turns in a round.
const BATCH: usize = 25;
const TURNS: usize = 8;
/// Many clients: how many, and for how long in a round.
const CLIENTS: usize = 64;
const SPAN: Duration = Duration::from_secs(2);
/// How many clients have the recorded Opens, and how many CREATEs each has in flight.
const HOLDERS: usize = 20;
const WINDOW: usize = 32;
/// So that one process may have so much open.
const LIMITS: &str = "max open files = 100000";

/// Where records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    File,
    Etcd,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Memory, Self::File, Self::Etcd];

    fn door(self) -> Door {
        match self {
            Self::Memory => Door { address: "10.77.0.103", admin: "127.0.0.1:9647", space: "hub" },
            Self::File => Door { address: "10.77.0.104", admin: "127.0.0.1:9648", space: "hub" },
            Self::Etcd => Door { address: "10.77.0.105", admin: "127.0.0.1:9649", space: "hub" },
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::Etcd => "etcd, 3 members",
        })
    }
}

/// A proxy with its store.
struct Stand {
    kind: Kind,
    proxy: Proxy,
}

/// All of them. Dropped, nothing is left.
struct Fair {
    stands: Vec<Stand>,
    etcd: Etcd,
    rig: Rig,
}

impl Fair {
    fn new(disk: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(disk);
        fs::create_dir_all(disk)?;
        let samba = Settings { global: vec![LIMITS], ..Settings::default() };
        let mut rig = Rig::new(&Site { nodes: 1, samba, ..Site::default() })?;
        let etcd = Etcd::start(&mut rig.net, disk, 3, 0)?;
        let mut stands = Vec::new();
        for kind in Kind::ALL {
            rig.net.add_hub_address(kind.door().address)?;
            let dir = rig.dir.path().join(format!("{kind:?}"));
            fs::create_dir_all(&dir)?;
            let url = match kind {
                Kind::Memory => "memory:".to_owned(),
                Kind::File => format!("file:{}", fs::canonicalize(disk)?.join("file").display()),
                Kind::Etcd => etcd.url(),
            };
            let orders = Orders { store: Some(format!("url = \"{url}\"")), ..Orders::default() };
            let proxy = Proxy::start_at(&rig.net, &dir, &rig.nodes, &orders, kind.door())?;
            stands.push(Stand { kind, proxy });
        }
        Ok(Self { stands, etcd, rig })
    }

    /// Keeps etcd to some of the machine's CPUs, and all else, with what it will start, to others.
    fn pin(&self, all: Range<usize>, etcd: Range<usize>) -> Result<()> {
        let proxies = self.stands.iter().map(|stand| stand.proxy.pid());
        let others = self.node_pids().into_iter().chain(proxies).chain([process::id()]);
        pin(others, all).and_then(|()| pin(self.etcd.pids(), etcd)).context("pinning processes to CPUs")
    }

    fn node_pids(&self) -> Vec<u32> {
        let pids = self.rig.nodes.iter().flat_map(Node::pids);
        pids.filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()).collect()
    }
}

/// Keeps processes to some of the machine's CPUs.
fn pin(processes: impl Iterator<Item = u32>, cpus: Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.for_each(|cpu| set.set(cpu));
    // Some of them, or of their threads, have just ended.
    for task in processes.filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten()
    {
        let thread = task.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        match sched_setaffinity(thread, &set) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    text: String,
    json: Vec<Value>,
}

impl Report {
    fn add(&mut self, what: &str, kind: Kind, values: &[(&str, f64)]) {
        let shown: String = values.iter().map(|(name, value)| format!("  {name} {value:>9.1}")).collect();
        let line = format!("  {what:<28} {kind:<16}{shown}\n");
        print!("{line}");
        self.text += &line;
        let values: serde_json::Map<_, _> =
            values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        self.json.push(json!({"work": what, "store": kind.to_string(), "values": values}));
    }
}

/// The parts of this benchmark, by the word that chooses one.
const PARTS: [&str; 3] = ["stores-times", "stores-rates", "stores-many"];

/// Whether that is a choice of all or some of it.
pub(super) fn is_chosen(only: &str) -> bool {
    PARTS.iter().any(|part| part.starts_with(only))
}

/// Measures what is chosen, `rounds` times in turn; `opens` are recorded at once in the end.
pub(super) fn run(out: &Path, only: &str, rounds: u32, opens: usize) -> Result<()> {
    let mut fair = Fair::new(&out.join("stores"))?;
    let mut report = Report::default();
    println!("What it costs to record Opens");
    let [times, rates, kept] = PARTS.map(|part| part.starts_with(only));
    for durable in [true, false].into_iter().filter(|_| times) {
        latency(&fair, &mut report, rounds, durable)?;
    }
    if rates {
        rate(&fair, &mut report, rounds, "64 clients")?;
        // Where it matters etcd is on machines of its own.
        let cpus = thread::available_parallelism()?.get();
        if cpus > 1 {
            fair.pin(0..cpus - 1, cpus - 1..cpus)?;
            rate(&fair, &mut report, rounds, "64 clients, etcd apart")?;
            fair.pin(0..cpus, 0..cpus)?;
        }
    }
    for index in (0..fair.stands.len()).filter(|_| kept) {
        many(&mut fair, &mut report, index, opens)?;
    }
    drop(fair);
    fs::remove_dir_all(out.join("stores"))?;
    fs::write(out.join("stores.txt"), &report.text)?;
    Ok(fs::write(out.join("stores.json"), serde_json::to_string_pretty(&report.json)?)?)
}

fn enter(net: &Net, kind: Kind) -> Result<(Client, At)> {
    let mut client =
        Client::connect(net, kind.door().address, &Setup { client_guid: guid(), ..Setup::default() })?;
    let at = client.enter(User::KNOWN, "share")?;
    Ok((client, at))
}

/// With everything cached, and durable if that is wanted.
fn order(name: &str, durable: bool) -> Open<'_> {
    let open = Open { disposition: FILE_OPEN_IF, ..Open::of(name) };
    if !durable {
        return open;
    }
    let contexts = vec![(tag::DH2Q, encode::durable_v2_request(TIMEOUT, guid()))];
    Open { contexts, ..open.leased(2, guid(), RWH) }
}

/// The times of CREATEs, one after the other, in turns of a few at each store.
fn latency(fair: &Fair, report: &mut Report, rounds: u32, durable: bool) -> Result<()> {
    let mut clients = Vec::new();
    for stand in &fair.stands {
        let (client, at) = enter(&fair.rig.net, stand.kind)?;
        clients.push((stand.kind, client, at, Vec::new()));
    }
    for round in 0..=rounds {
        for _ in 0..TURNS {
            for (kind, client, at, micros) in &mut clients {
                for number in 0..BATCH {
                    let name = format!("{kind:?}-{number}");
                    let open = order(&name, durable);
                    let begun = Instant::now();
                    let file = client.open(*at, &open)?;
                    if round > 0 {
                        micros.push(begun.elapsed().as_secs_f64() * 1e6);
                    }
                    client.close(file)?;
                }
            }
        }
    }
    let what = if durable { "CREATE, durable" } else { "CREATE, not durable" };
    for (kind, .., mut micros) in clients {
        micros.sort_by(f64::total_cmp);
        let rank = |percent: usize| micros.get(micros.len() * percent / 100).copied().unwrap_or_default();
        report.add(what, kind, &[("p50 us", rank(50)), ("p99 us", rank(99))]);
    }
    Ok(())
}

/// What has been done and used so far, or meanwhile: seconds of CPU by process, and the proxy's commits.
#[derive(Debug, Default, Clone, Copy)]
struct Used {
    pairs: f64,
    seconds: f64,
    proxy: f64,
    etcd: f64,
    node: f64,
    clients: f64,
    commits: f64,
    committing: f64,
    changes: f64,
}

impl Used {
    fn now(fair: &Fair, stand: &Stand) -> Result<Self> {
        let metrics = stand.proxy.metrics(&fair.rig.net)?;
        let metric = |name: &str| metrics.get(&format!("understudy_{name}")).copied().unwrap_or_default();
        // Some of them have just ended.
        let of = |pids: &mut dyn Iterator<Item = u32>| pids.filter_map(|pid| cpu::seconds(pid).ok()).sum();
        Ok(Self {
            pairs: 0.0,
            seconds: 0.0,
            proxy: cpu::seconds(stand.proxy.pid())?,
            etcd: of(&mut fair.etcd.pids()),
            node: of(&mut fair.node_pids().into_iter()),
            clients: cpu::seconds(process::id())?,
            commits: metric("store_commit_seconds_count"),
            committing: metric("store_commit_seconds_sum"),
            changes: metric("stored_records_total"),
        })
    }

    fn each(self, f: impl Fn(f64, f64) -> f64, other: Self) -> Self {
        Self {
            pairs: f(self.pairs, other.pairs),
            seconds: f(self.seconds, other.seconds),
            proxy: f(self.proxy, other.proxy),
            etcd: f(self.etcd, other.etcd),
            node: f(self.node, other.node),
            clients: f(self.clients, other.clients),
            commits: f(self.commits, other.commits),
            committing: f(self.committing, other.committing),
            changes: f(self.changes, other.changes),
        }
    }
}

impl Sub for Used {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        self.each(|now, before| now - before, before)
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, more: Self) {
        *self = self.each(|one, other| one + other, more);
    }
}

/// How many durable CREATEs, each with its CLOSE, many clients get done, and what each costs.
fn rate(fair: &Fair, report: &mut Report, rounds: u32, whose: &str) -> Result<()> {
    let mut rates = vec![Vec::new(); fair.stands.len()];
    let mut sums = vec![Used::default(); fair.stands.len()];
    for round in 0..=rounds {
        for turn in 0..fair.stands.len() {
            let index = (turn + round as usize) % fair.stands.len();
            let used = rate_of(fair, fair.stands.get(index).context("no such store")?)?;
            if let (Some(rates), Some(sum), true) = (rates.get_mut(index), sums.get_mut(index), round > 0) {
                rates.push(used.pairs / used.seconds);
                *sum += used;
            }
        }
    }
    let memory = rates.first().context("no stores")?.clone();
    for (stand, rates) in fair.stands.iter().zip(&rates) {
        let ratios: Vec<_> = rates.iter().zip(&memory).map(|(rate, memory)| rate / memory).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let values = [
            ("a second", median(rates)),
            ("% of memory", 100.0 * median(&ratios)),
            ("at least", 100.0 * least),
        ];
        report.add(whose, stand.kind, &values);
    }
    for (stand, used) in fair.stands.iter().zip(&sums) {
        let micros = |seconds: f64| seconds * 1e6 / used.pairs;
        let values = [
            ("proxy", micros(used.proxy)),
            ("etcd", micros(used.etcd)),
            ("node", micros(used.node)),
            ("clients", micros(used.clients)),
        ];
        report.add("  CPU us of each", stand.kind, &values);
    }
    for (stand, used) in fair.stands.iter().zip(&sums) {
        let values = [
            ("a second", used.commits / used.seconds),
            ("ms", used.committing * 1e3 / used.commits),
            ("changes", used.changes / used.commits),
            ("busy %", 100.0 * used.committing / used.seconds),
        ];
        report.add("  commits", stand.kind, &values);
    }
    Ok(())
}

fn rate_of(fair: &Fair, stand: &Stand) -> Result<Used> {
    let kind = stand.kind;
    let (start, end) = (Barrier::new(CLIENTS + 1), Barrier::new(CLIENTS + 1));
    let count = |number: usize| -> Result<usize> {
        let entered = enter(&fair.rig.net, kind);
        start.wait();
        let done = entered.and_then(|(mut client, at)| {
            let (begun, mut done) = (Instant::now(), 0);
            let name = format!("{kind:?}-of-{number}");
            while begun.elapsed() < SPAN {
                let file = client.open(at, &order(&name, true))?;
                client.close(file)?;
                done += 1;
            }
            Ok((client, done))
        });
        // The node's processes are still there when they are looked at.
        end.wait();
        Ok(done?.1)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || count(number))).collect();
        start.wait();
        let before = Used::now(fair, stand);
        end.wait();
        let after = Used::now(fair, stand);
        let done = clients
            .into_iter()
            .map(|client| client.join().map_err(|_| anyhow!("a client's thread died"))?)
            .sum::<Result<usize>>()?;
        Ok(Used { pairs: done as f64, seconds: SPAN.as_secs_f64(), ..after? - before? })
    })
}

/// What so many recorded Opens take, and how long the proxy needs to start with them.
fn many(fair: &mut Fair, report: &mut Report, index: usize, opens: usize) -> Result<()> {
    let stand = fair.stands.get_mut(index).context("no such store")?;
    let kind = stand.kind;
    let each = opens.div_ceil(HOLDERS);
    let mut clients = Vec::new();
    for _ in 0..HOLDERS {
        clients.push(enter(&fair.rig.net, kind)?);
    }
    let before = resident(stand.proxy.pid())?;
    let mut holders = thread::scope(|scope| {
        let all: Vec<_> = (clients.into_iter().enumerate())
            .map(|(holder, (client, at))| {
                scope.spawn(move || hold(client, at, &format!("{kind:?}-{holder}"), each))
            })
            .collect();
        all.into_iter()
            .map(|holder| holder.join().map_err(|_| anyhow!("a client's thread died"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let metrics = stand.proxy.metrics(&fair.rig.net)?;
    let recorded = metrics.get("understudy_opens").copied().unwrap_or_default();
    let expected = (each * HOLDERS) as f64;
    ensure!(recorded == expected, "{recorded} of {expected} Opens are recorded");
    let bytes = (resident(stand.proxy.pid())? - before) / expected;
    let what = format!("{} Opens", each * HOLDERS);
    if kind == Kind::Memory {
        report.add(&what, kind, &[("bytes each", bytes)]);
    } else {
        stand.proxy.kill()?;
        holders.clear();
        let begun = Instant::now();
        stand.proxy.start_again(&fair.rig.net)?;
        let seconds = begun.elapsed().as_secs_f64();
        let metrics = stand.proxy.metrics(&fair.rig.net)?;
        let absent = metrics.get("understudy_absent_opens").copied().unwrap_or_default();
        ensure!(absent == expected, "{absent} of {expected} Opens are back");
        report.add(&what, kind, &[("bytes each", bytes), ("seconds to start", seconds)]);
    }
    drop(holders);
    Ok(())
}

/// A client that opens so many files, and keeps them.
fn hold(mut client: Client, at: At, name: &str, count: usize) -> Result<Client> {
    let mut asked = std::collections::VecDeque::new();
    for number in 0..count {
        let name = format!("{name}-{number}");
        let open = order(&name, true);
        asked.push_back(client.send(at, Command::CREATE, 1, |header| open.build(header))?);
        if asked.len() == WINDOW {
            File::from(at, client.wait(asked.pop_front().context("nothing was asked")?)?)?;
        }
    }
    for id in asked {
        File::from(at, client.wait(id)?)?;
    }
    Ok(client)
}

/// Bytes in memory of a process.
fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// The middle value.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
