//! Many clients with many open files on the node that dies: all of them are back, and how long that takes beside the
//! same work done afresh.

use std::{
    fs,
    sync::Barrier,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Signal, kill_process};
use smb_parse::{create_context::tag, encode, header::Command};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, File, Open, Setup, User, data, guid},
    rig::{Rig, Site, net::FLOATING},
};

/// Read, handle and write caching (MS-SMB2 2.2.13.2.8).
const RWH: u32 = 7;
const PHASES: [&str; 7] = ["assign", "connect", "negotiate", "authenticate", "trees", "reclaim", "barrier"];

pub(super) const CASES: &[Case] = &[Case {
    name: "many-opens",
    shows: "every Open of many clients is back after a crash and can be used; the time it takes, by phase, beside clients that open as many afresh",
    soak: 5,
    run: many_opens,
}];

/// How many clients, and how many files each of them has open.
#[derive(Clone, Copy)]
struct Size {
    clients: usize,
    files: usize,
}

/// A client with its open files and their names.
struct Holder {
    client: Client,
    files: Vec<(File, String)>,
}

fn many_opens(scale: &Scale) -> Result<Report> {
    let size = if scale.soak { Size { clients: 100, files: 50 } } else { Size { clients: 10, files: 20 } };
    let mut rig = Rig::new(&Site::default())?;
    for who in ["through", "direct"] {
        for client in 0..size.clients {
            for file in 0..size.files {
                let name = name(who, client, file);
                fs::write(rig.data().join(&name), &name)?;
            }
        }
    }
    let survivor = rig.nodes.get(1 - rig.serving()?).context("no second node")?;
    let idle = survivor.pids().len();
    let (direct, holders) = open_all(&rig, &survivor.address, "direct", size)?;
    for holder in holders {
        holder.end()?;
    }
    crate::rig::wait_until("the direct clients' processes have ended", Duration::from_secs(60), || {
        survivor.pids().len() <= idle
    })?;

    let (_, mut holders) = open_all(&rig, FLOATING, "through", size)?;
    let opens = u32::try_from(size.clients * size.files)?;
    let recorded = rig.metric("opens")?;
    ensure!(recorded == f64::from(opens), "{recorded} of {opens} Opens are recorded");
    let killed = kill(&mut rig)?;
    rig.await_takeovers("crash", size.clients)?;
    let metric = |result| rig.metric(&format!("takeover_opens_total{{result=\"{result}\"}}"));
    let (back, lost) = (metric("reclaimed")?, metric("lost")?);
    ensure!(back == f64::from(opens) && lost == 0.0, "{back} of {opens} Opens are back, {lost} are lost");
    for holder in &mut holders {
        holder.use_all()?;
    }
    tell(&rig, size, killed, direct)
}

/// Kills the node that serves; the time at which it was.
fn kill(rig: &mut Rig) -> Result<Duration> {
    let serving = rig.serving()?;
    let node = rig.nodes.get_mut(serving).context("no such node")?;
    let init = *node.pids().first().context("the node has no processes")?;
    let killed = since_midnight()?;
    kill_process(init, Signal::KILL)?;
    node.kill();
    Ok(killed)
}

fn name(who: &str, client: usize, file: usize) -> String {
    format!("{who}-{client:03}-{file:03}.txt")
}

/// All clients at once connect to `host`, log in and open their files; how long until the last of them is done.
fn open_all(rig: &Rig, host: &str, who: &str, size: Size) -> Result<(Duration, Vec<Holder>)> {
    let start = Barrier::new(size.clients + 1);
    thread::scope(|scope| {
        let start = &start;
        let clients: Vec<_> = (0..size.clients)
            .map(|client| {
                scope.spawn(move || {
                    start.wait();
                    Holder::open(rig, host, who, client, size.files)
                })
            })
            .collect();
        start.wait();
        let begun = Instant::now();
        let mut holders = Vec::with_capacity(size.clients);
        for client in clients {
            holders.push(client.join().map_err(|_| anyhow!("a client's thread died"))??);
        }
        Ok((begun.elapsed(), holders))
    })
}

impl Holder {
    fn open(rig: &Rig, host: &str, who: &str, number: usize, count: usize) -> Result<Self> {
        let setup = Setup { client_guid: guid(), ..Setup::default() };
        let mut client = Client::connect(&rig.net, host, &setup)?;
        let at = client.enter(User::KNOWN, "share")?;
        let asked = (0..count)
            .map(|file| {
                let name = name(who, number, file);
                Ok((ask(&mut client, at, &name)?, name))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut files = Vec::with_capacity(count);
        for (id, name) in asked {
            files.push((File::from(at, client.wait(id)?)?, name));
        }
        Ok(Self { client, files })
    }

    /// Closes everything: nothing durable is left for the node to look after.
    fn end(mut self) -> Result<()> {
        for (file, _) in &self.files {
            let id = file.id;
            self.client.send(file.at, Command::CLOSE, 1, |header| encode::close(header, 0, id))?;
        }
        self.client.settle()
    }

    /// Every handle reads its file's name.
    fn use_all(&mut self) -> Result<()> {
        let mut asked = Vec::with_capacity(self.files.len());
        for (file, name) in &self.files {
            asked.push((self.client.send_read(*file, 0, 100)?, name));
        }
        for (id, name) in asked {
            let bytes = data(self.client.wait(id)?).with_context(|| format!("reading {name}"))?;
            ensure!(bytes == name.as_bytes(), "the handle of {name} reads another file");
        }
        ensure!(self.client.breaks.is_empty(), "a lease was broken by the takeover");
        Ok(())
    }
}

/// As clients with leases do: durable, with everything cached.
fn ask(client: &mut Client, at: At, name: &str) -> Result<u64> {
    let contexts = vec![(tag::DHNQ, encode::durable_request())];
    let open = Open { contexts, ..Open::of(name) }.leased(1, guid(), RWH);
    client.send(at, Command::CREATE, 1, |header| open.build(header))
}

/// The times of the phases, and of the whole beside the direct clients'.
fn tell(rig: &Rig, size: Size, killed: Duration, direct: Duration) -> Result<Report> {
    let lines: Vec<_> = rig.proxy.log().into_iter().filter(|l| l["message"] == "taken over").collect();
    ensure!(lines.len() == size.clients, "{} takeovers are logged", lines.len());
    let mut report = Report::default();
    for phase in PHASES {
        let mut took: Vec<f64> =
            lines.iter().filter_map(|line| line[format!("{phase}_ms")].as_f64()).collect();
        took.sort_by(f64::total_cmp);
        let median = took.get(took.len() / 2).context("no times")?;
        let most = took.last().context("no times")?;
        report.notes.push(format!("{phase}: median {median} ms, max {most} ms"));
    }
    let last = lines
        .iter()
        .filter_map(|line| time_of_day(line["timestamp"].as_str()?))
        .max()
        .context("no times are logged")?;
    let whole = last.saturating_sub(killed);
    report.stalls_ms.push(whole.as_millis());
    report.notes.push(format!(
        "{} clients, {} files each: kill to last Link back {} ms, direct {} ms, ratio {:.2}",
        size.clients,
        size.files,
        whole.as_millis(),
        direct.as_millis(),
        whole.as_secs_f64() / direct.as_secs_f64(),
    ));
    Ok(report)
}

/// Now, as [`time_of_day`] has it.
fn since_midnight() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Duration::new(now.as_secs() % 86_400, now.subsec_nanos()))
}

/// The time of a log line (`2001-02-03T04:05:06.000007Z`) since midnight.
fn time_of_day(timestamp: &str) -> Option<Duration> {
    let time = timestamp.split('T').nth(1)?.trim_end_matches('Z');
    let mut parts = time.split([':', '.']);
    let mut next = || parts.next()?.parse::<u64>().ok();
    let seconds = next()? * 3_600 + next()? * 60 + next()?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(next()?))
}
