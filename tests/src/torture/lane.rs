//! A site in which one test after the other runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Way,
    trial::{self, Finding, Outcome},
};
use crate::rig::{
    Rig, Site,
    net::FLOATING,
    node::{Node, Settings},
    proxy::message,
    tap::{Ears, Guid, Heard, Tap},
    wait_until,
};

/// How long a test may take. Several wait for the time-out of a break (35 s), some for two; `notify.mask` takes 80 s.
const LIMIT: Duration = Duration::from_secs(240);
/// Where the clients find the proxy if the answers are counted.
const COUNTED: &str = "127.0.0.1";

/// As Samba's own tests have it: an ordinary user, and a share that keeps what Windows clients may ask for. Without inotify,
/// which would tell of everything a second time.
pub(super) fn site() -> Site {
    let samba = Settings {
        global: vec!["kernel change notify = no"],
        share: vec![
            "force user =",
            "vfs objects = acl_xattr streams_xattr",
            "ea support = yes",
            "map archive = no",
        ],
        ..Settings::default()
    };
    // A machine that is busy with tests is slow to answer, and there is no fence.
    Site { samba, config: "[health]\nsilence_after = \"30s\"\n".into(), ..Site::default() }
}

/// The lane. Its site is built when it is needed, and anew when a test may have left something in it.
pub(super) struct Lane<'a> {
    every: u32,
    out: &'a Path,
    plain: Option<Rig>,
    /// One whose legs can be cut.
    tapped: Option<Rig>,
    /// One whose clients are in Bridge.
    bridged: Option<Rig>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(every: u32, out: &'a Path) -> Self {
        Self { every, out, plain: None, tapped: None, bridged: None }
    }

    /// Runs a test. One that does not pass is tried again: some measure times, and fail on a busy machine now and then.
    pub(super) fn find(&mut self, way: Way, test: &str) -> Result<Finding> {
        let first = self.once(way, test)?;
        if first.outcome != Outcome::Fail || way == Way::Direct {
            return Ok(first);
        }
        let second = self.once(way, test)?;
        if second.outcome == Outcome::Pass {
            println!("        once only: {} {test}: {}", way.word(), first.said);
        }
        Ok(second)
    }

    fn once(&mut self, way: Way, test: &str) -> Result<Finding> {
        let before = self.takeovers(way);
        let mut finding = match way {
            Way::Direct => self.direct(test),
            Way::Proxy => self.proxied(test),
            Way::Same => self.cutting(test),
            Way::Other => self.killing(test),
            Way::Bridge => trial::run(self.bridged()?, FLOATING, test, LIMIT, &mut || Ok(())),
            Way::Gone => self.leaving(test),
        }?;
        finding.takeovers = self.takeovers(way).saturating_sub(before);
        if let Some(rig) = self.rig(way) {
            if let Some(error) = rig.proxy.errors().first() {
                finding.outcome = Outcome::Fail;
                finding.said = format!("the proxy logged an error: {error}");
            }
            if way != Way::Direct && finding.outcome != Outcome::Pass {
                self.keep(rig, way, test)?;
            }
        }
        if finding.outcome == Outcome::Timeout || (way != Way::Direct && finding.outcome != Outcome::Pass) {
            self.plain = None;
            self.tapped = None;
            self.bridged = None;
        }
        Ok(finding)
    }

    fn rig(&self, way: Way) -> Option<&Rig> {
        match way {
            Way::Same => self.tapped.as_ref(),
            Way::Bridge | Way::Gone => self.bridged.as_ref(),
            Way::Direct | Way::Proxy | Way::Other => self.plain.as_ref(),
        }
    }

    /// How often the proxy of this way has taken a Link over.
    fn takeovers(&self, way: Way) -> u32 {
        let lines = self.rig(way).map(|rig| rig.proxy.log()).unwrap_or_default();
        let count = lines.iter().filter(|line| message(line) == "taken over").count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// What the proxy logged of a test that it lost, and what smbtorture said.
    fn keep(&self, rig: &Rig, way: Way, test: &str) -> Result<()> {
        let dir = self.out.join("lost");
        fs::create_dir_all(&dir)?;
        let name = format!("{}-{test}", way.word());
        fs::write(dir.join(format!("{name}.log")), rig.proxy.log_text())?;
        fs::copy(rig.local()?.join("said"), dir.join(format!("{name}.said")))?;
        Ok(())
    }

    fn plain(&mut self) -> Result<&mut Rig> {
        if self.plain.is_none() {
            self.plain = Some(open(&site())?);
        }
        self.plain.as_mut().context("no site")
    }

    fn bridged(&mut self) -> Result<&mut Rig> {
        if self.bridged.is_none() {
            self.bridged = Some(open(&Site { bridge: true, ..site() })?);
        }
        self.bridged.as_mut().context("no site")
    }

    fn direct(&mut self, test: &str) -> Result<Finding> {
        let rig = self.plain()?;
        let node = rig.nodes.get(rig.serving()?).context("no such node")?;
        trial::run(rig, &node.address, test, LIMIT, &mut || Ok(()))
    }

    fn proxied(&mut self, test: &str) -> Result<Finding> {
        trial::run(self.plain()?, FLOATING, test, LIMIT, &mut || Ok(()))
    }

    /// Cuts the leg of the client that has got the k-th answer.
    fn cutting(&mut self, test: &str) -> Result<Finding> {
        if self.tapped.is_none() {
            let mut site = Site { taps: true, ..site() };
            site.config.insert_str(0, "leg_losses_per_minute = 1000000\n");
            self.tapped = Some(open(&site)?);
        }
        let rig = self.tapped.as_ref().context("no site")?;
        let taps = rig.taps.clone();
        let heard = every(self.every, move |guid| taps.iter().for_each(|tap| tap.cut(&guid)));
        let _tap = Tap::start(&rig.net, "client", &at(COUNTED), &at(FLOATING), answers(heard))?;
        trial::run(rig, COUNTED, test, LIMIT, &mut || Ok(()))
    }

    /// Kills the node that serves, and starts it again once the other does.
    fn killing(&mut self, test: &str) -> Result<Finding> {
        let deaths = Arc::new(Deaths::default());
        let told = deaths.clone();
        let heard = every(self.every, move |_| {
            told.wanted.fetch_add(1, Ordering::Relaxed);
        });
        kill_meanwhile(self.plain()?, test, answers(heard), &deaths)
    }

    /// Kills the node that serves whenever the client ends a connection, and starts it again once the other does.
    fn leaving(&mut self, test: &str) -> Result<Finding> {
        let deaths = Arc::new(Deaths::default());
        let told = deaths.clone();
        let heard: Heard = Arc::new(move |_| {
            let mine = told.wanted.fetch_add(1, Ordering::Relaxed) + 1;
            // What the client does next, it does to the other node.
            while told.done.load(Ordering::Relaxed) < mine && !told.over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        kill_meanwhile(self.bridged()?, test, Ears { ends: Some(heard), ..Ears::default() }, &deaths)
    }
}

/// Nodes that die while a test runs.
#[derive(Default)]
struct Deaths {
    wanted: AtomicU32,
    done: AtomicU32,
    /// The test has ended: no more will die.
    over: AtomicBool,
}

fn answers(heard: Heard) -> Ears {
    Ears { answers: Some(heard), ..Ears::default() }
}

/// Runs a test whose client's connections are listened to, and kills the node that serves as often as is wanted.
fn kill_meanwhile(rig: &mut Rig, test: &str, ears: Ears, deaths: &Deaths) -> Result<Finding> {
    let _tap = Tap::start(&rig.net, "client", &at(COUNTED), &at(FLOATING), ears)?;
    let serving = rig.serving()?;
    let mut killer = Killer { nodes: std::mem::take(&mut rig.nodes), serving };
    let mut meanwhile = || killer.obey(rig, deaths);
    let result = trial::run(rig, COUNTED, test, LIMIT, &mut meanwhile);
    deaths.over.store(true, Ordering::Relaxed);
    rig.nodes = killer.nodes;
    result
}

/// Kills the node that serves, again and again.
struct Killer {
    nodes: Vec<Node>,
    serving: usize,
}

impl Killer {
    /// A death that is wanted before the last one is over comes with the next.
    fn obey(&mut self, rig: &Rig, deaths: &Deaths) -> Result<()> {
        let wanted = deaths.wanted.load(Ordering::Relaxed);
        if wanted == deaths.done.load(Ordering::Relaxed) {
            return Ok(());
        }
        let dead = self.serving;
        self.nodes.get_mut(dead).context("no such node")?.kill();
        wait_until("another node serves", Duration::from_secs(30), || {
            self.serving = rig.serving_of(&self.nodes).unwrap_or(dead);
            self.serving != dead
        })?;
        self.nodes.get_mut(dead).context("no such node")?.start(&rig.net)?;
        deaths.done.store(wanted, Ordering::Relaxed);
        Ok(())
    }
}

fn at(address: &str) -> String {
    format!("{address}:445")
}

/// Acts at every k-th answer.
fn every(k: u32, act: impl Fn(Guid) + Send + Sync + 'static) -> Heard {
    let count = AtomicU32::new(0);
    Arc::new(move |guid| {
        if (count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(k) {
            act(guid);
        }
    })
}

/// Builds a site; its users may write to the share.
fn open(site: &Site) -> Result<Rig> {
    let rig = Rig::new(site)?;
    fs::set_permissions(rig.data(), fs::Permissions::from_mode(0o777))?;
    Ok(rig)
}
