//! smbtorture's tests of SMB2: directly against a node, through the proxy, and through the proxy while it has to take over
//! again and again. What passes on the way before must pass on the next, or a list in the repository says why it does not.

mod lane;
mod list;
mod trial;

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::{
    lane::Lane,
    list::{Ledger, List},
    trial::{Finding, Outcome},
};
use crate::rig::{self, Rig, copy::sha256, proxy};

/// Its tests of SMB2.
const SUITE: &str = "smb2";

/// After how many answers the node is lost, unless somebody says otherwise.
pub(crate) const EVERY: u32 = 7;

/// No tests: tools that hold a file until they are killed, and measurements.
const TOOLS: &[&str] =
    &["smb2.hold-sharemode", "smb2.hold-oplock", "smb2.check-sharemode", "smb2.bench.", "smb2.create.bench-"];

/// How a test reaches a node. Each needs that the test passes the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// Without the proxy.
    Direct,
    /// Through the proxy, with nothing in its way.
    Proxy,
    /// Through the proxy, whose leg to the node is cut after every k-th answer; the node lives.
    Same,
    /// Through the proxy, whose node is killed after every k-th answer; the other takes over.
    Other,
    /// Through the proxy, in Bridge from the first session on, with nothing in its way.
    Bridge,
    /// The same; the node is killed whenever the client ends a connection.
    Gone,
}

impl Way {
    /// What must have passed before.
    fn before(self) -> Option<Self> {
        match self {
            Self::Direct => None,
            Self::Proxy => Some(Self::Direct),
            Self::Same | Self::Other | Self::Bridge => Some(Self::Proxy),
            Self::Gone => Some(Self::Bridge),
        }
    }

    /// Whether nodes are lost on it.
    fn is_lossy(self) -> bool {
        matches!(self, Self::Same | Self::Other | Self::Gone)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Same => "same",
            Self::Other => "other",
            Self::Bridge => "bridge",
            Self::Gone => "gone",
        }
    }
}

/// What is to be run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Parts of names, separated by commas: tests whose names contain one of them.
    #[arg(default_value = "")]
    pub(crate) filter: String,
    /// The last of the ways that are tried.
    #[arg(long, default_value = "proxy")]
    pub(crate) way: Way,
    /// After how many answers the node is lost, in `same` and `other`.
    #[arg(long, default_value_t = EVERY)]
    pub(crate) every: u32,
    /// How many tests run side by side.
    #[arg(long, default_value_t = 4)]
    pub(crate) jobs: usize,
    /// Where what has been run is kept.
    #[arg(long, default_value = "out/torture")]
    pub(crate) out: PathBuf,
    /// Puts what was found into the lists. The causes are for people to write.
    #[arg(long)]
    pub(crate) write: bool,
}

/// Runs what is not done yet, and compares everything with the lists. An error if a test is lost and no list says why.
pub(crate) fn run(options: &Options) -> Result<()> {
    let rig = Rig::new(&lane::site())?;
    let version = rig.nodes.first().context("no nodes")?.version()?;
    let parts: Vec<&str> = options.filter.split(',').collect();
    let names = trial::names(&rig, SUITE)?.into_iter();
    let wanted = |name: &String| {
        parts.iter().any(|part| name.contains(part)) && !TOOLS.iter().any(|tool| name.starts_with(tool))
    };
    let mut tests: Vec<String> = names.filter(wanted).collect();
    drop(rig);
    if matches!(options.way, Way::Same | Way::Other) && !options.write {
        // What nobody has tried so is no loss.
        let list = List::read(&lists(&short(&version)?).join(format!("{}.txt", options.way.word())))?;
        tests.retain(|test| list.get(test).is_some());
    }
    ensure!(!tests.is_empty(), "no test has `{}` in its name", options.filter);
    fs::create_dir_all(&options.out)?;
    let report = Torture::new(options, &version, tests)?.run()?;
    report.end(options.write)
}

/// Runs these tests on two lanes, each on all of these ways; says how often Links were taken over. An error names the tests
/// that do not pass.
pub(crate) fn all_pass(tests: &[&str], ways: &[Way], every: u32) -> Result<u32> {
    let queue = Mutex::new(tests.iter().copied().collect::<VecDeque<_>>());
    let (lost, takeovers) = (Mutex::new(Vec::new()), AtomicU32::new(0));
    let lane = || {
        let mut lane = Lane::new(every, Path::new("out/torture"));
        while let Some(test) = next(&queue) {
            for way in ways {
                let finding = lane.find(*way, test).with_context(|| test.to_owned())?;
                takeovers.fetch_add(finding.takeovers, Ordering::Relaxed);
                if finding.outcome != Outcome::Pass {
                    lock(&lost).push(format!("{}: {test}: {}", way.word(), finding.said));
                    break;
                }
            }
        }
        Ok(())
    };
    side_by_side(2, &lane)?;
    let lost = lock(&lost);
    ensure!(lost.is_empty(), "{} of {} tests do not pass:\n{}", lost.len(), tests.len(), lost.join("\n"));
    Ok(takeovers.into_inner())
}

/// Does this on so many threads.
fn side_by_side(count: usize, lane: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..count).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow!("a lane died"))?)
    })
}

/// `Samba 4.17.12-Debian` is 4.17.
fn short(version: &str) -> Result<String> {
    let number = version.split_whitespace().last().unwrap_or_default();
    let mut parts = number.split('.');
    let (major, minor) = (parts.next(), parts.next());
    Ok(format!("{}.{}", major.context("no version")?, minor.context("no version")?))
}

/// The lists of a version.
fn lists(short: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("torture").join(short)
}

/// A run.
struct Torture<'a> {
    options: &'a Options,
    short: String,
    tests: Vec<String>,
    queue: Mutex<VecDeque<String>>,
    ledgers: Mutex<Vec<(Way, Ledger)>>,
}

impl<'a> Torture<'a> {
    fn new(options: &'a Options, version: &str, tests: Vec<String>) -> Result<Self> {
        let short = short(version)?;
        let build = sha256(&proxy::binary()?)?;
        let build = build.get(..16).unwrap_or(&build);
        let ledger = |way: Way| {
            let (mark, build) = match way {
                Way::Direct => (String::new(), version),
                Way::Proxy | Way::Bridge | Way::Gone => (String::new(), build),
                Way::Same | Way::Other => (format!("-{}", options.every), build),
            };
            let name = format!("{short}-{}{mark}.jsonl", way.word());
            Ok((way, Ledger::open(options.out.join(name), build)?))
        };
        let mut ways = vec![options.way];
        while let Some(before) = ways.last().and_then(|way| way.before()) {
            ways.push(before);
        }
        ways.reverse();
        let ledgers = Mutex::new(ways.into_iter().map(ledger).collect::<Result<_>>()?);
        let queue = Mutex::new(tests.iter().cloned().collect());
        Ok(Self { options, short, tests, queue, ledgers })
    }

    fn run(self) -> Result<Report> {
        side_by_side(self.options.jobs, &|| self.lane())?;
        let ledgers = self.ledgers.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Report { short: self.short, tests: self.tests, ledgers })
    }

    fn lane(&self) -> Result<()> {
        let mut lane = Lane::new(self.options.every, &self.options.out);
        while let Some(test) = next(&self.queue) {
            let ways = lock(&self.ledgers).len();
            for at in 0..ways {
                let known =
                    lock(&self.ledgers).get(at).map(|(way, ledger)| (*way, ledger.get(&test).cloned()));
                let (way, known) = known.context("no such way")?;
                let finding = match known {
                    Some(finding) => finding,
                    None => {
                        let finding = lane.find(way, &test).with_context(|| test.clone())?;
                        tell(way, &test, &finding);
                        if let Some((_, ledger)) = lock(&self.ledgers).get_mut(at) {
                            ledger.add(&test, &finding)?;
                        }
                        finding
                    }
                };
                if finding.outcome != Outcome::Pass {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    lock(queue).pop_front()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(way: Way, test: &str, finding: &Finding) {
    let seconds = finding.took.as_secs_f64();
    let takeovers = if way.is_lossy() { format!(", {} takeovers", finding.takeovers) } else { String::new() };
    println!("{:<7} {:<7} {test} ({seconds:.1} s{takeovers})", way.word(), finding.outcome.word());
    if finding.outcome != Outcome::Pass && way != Way::Direct {
        println!("        {}", finding.said);
    }
}

/// What was found.
struct Report {
    short: String,
    tests: Vec<String>,
    ledgers: Vec<(Way, Ledger)>,
}

impl Report {
    /// Compares it with the lists, and writes them if that is wanted.
    fn end(&self, write: bool) -> Result<()> {
        let mut unexplained = Vec::new();
        for (way, ledger) in &self.ledgers {
            let path = lists(&self.short).join(format!("{}.txt", way.word()));
            let mut list = List::read(&path)?;
            let mut passed = 0;
            let mut run = 0;
            for test in &self.tests {
                let Some(finding) = ledger.get(test) else { continue };
                run += 1;
                passed += usize::from(finding.outcome == Outcome::Pass);
                if write {
                    list.set(test, finding.outcome);
                }
                let line = list.get(test);
                if finding.outcome == Outcome::Pass {
                    if line.is_some_and(|line| line.outcome != Outcome::Pass) {
                        println!("{}: {test} passes, and the list says it does not", way.word());
                    }
                } else if *way == Way::Direct {
                    if line.is_some_and(|line| line.outcome == Outcome::Pass) {
                        println!("direct: {test} does not pass, and the list says it does");
                    }
                } else if line.is_none_or(|line| line.outcome == Outcome::Pass || line.cause.is_empty()) {
                    unexplained.push(format!("{}: {test}: {}", way.word(), finding.said));
                }
            }
            println!("{}, {}: {passed} of {run} pass", self.short, way.word());
            if write {
                fs::create_dir_all(lists(&self.short))?;
                list.write(&path)?;
            }
        }
        let errors = rig::take_unexpected();
        if !errors.is_empty() {
            bail!("the proxy logged errors: {}", errors.join("; "));
        }
        if !unexplained.is_empty() {
            bail!("{} tests are lost, and no list says why:\n{}", unexplained.len(), unexplained.join("\n"));
        }
        Ok(())
    }
}
