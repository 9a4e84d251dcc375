//! One of several proxies leads, and serves; the others stand by.
//!
//! | state | does | leaves by |
//! |---|---|---|
//! | standing by | nothing for clients; watches the record `leader` in the store, and the leading proxy by heartbeats | an election that it wins |
//! | elected | loads what is stored, while one that was deposed may still believe that it leads | the end of that time |
//! | leading | serves while its [`Gate`] is open | the end of the process |
//!
//! Whoever leads no more has a process full of what is not so any more: it ends at once, with [`DEPOSED`], and is started again
//! to stand by. Three things keep two proxies from serving at a time, each for what escapes the one before:
//!
//! 1. All batches are guarded by the record `leader`, so the store takes nothing from one that was deposed.
//! 2. A leading proxy asks the store again and again whether it still leads. That holds for `confirm` from when it was
//!    *asked*; then the gate shuts. Whoever follows one that was deposed, and is not known to be dead, waits as long from when
//!    the record was gone.
//! 3. A process that is stopped between a look at the gate and a write: its sessions are ended at the node before what they had
//!    open is opened again (`understudy_core`'s `files/absent.rs`).
//!
//! All this has a thread and a connection to the store of its own: whatever else the process does must not look like death.

mod gate;
mod heartbeat;
mod label;

use std::{
    process,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use aws_lc_rs::rand;
use tokio::{
    net::TcpListener,
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use understudy_state::{Candidate, Election, Elections, LeaderRecord, StoreError, Term};

use self::heartbeat::Verdict;
pub(crate) use self::{
    gate::{Gate, Moment},
    label::{Label, check},
};
use crate::{
    config::{HaConfig, StoreUrl},
    net, store,
};

/// The exit status of a process that leads no more.
pub(crate) const DEPOSED: i32 = 3;
/// That of one that has let another one serve: it is to be started again, too.
pub(crate) const STEPPED_DOWN: u8 = 3;
/// How long a store that fails is left alone.
const AGAIN: Duration = Duration::from_millis(200);

/// What this proxy is.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// It stands by. Who leads, as far as that is known.
    Standby(Option<String>),
    /// It leads, and may serve from this moment on, not before.
    Leader(Term, Moment),
}

/// How the rest of the process has to do with it.
pub(crate) struct Handle {
    role: watch::Receiver<Role>,
    release: mpsc::UnboundedSender<oneshot::Sender<Result<(), StoreError>>>,
    pub(crate) gate: Arc<Gate>,
    askers: Arc<AtomicUsize>,
}

impl Handle {
    pub(crate) fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    /// Waits for an election that this proxy wins.
    pub(crate) async fn elected(&self) -> (Term, Moment) {
        let mut role = self.role.clone();
        loop {
            if let Role::Leader(term, from) = &*role.borrow_and_update() {
                return (term.clone(), *from);
            }
            if role.changed().await.is_err() {
                deposed("the thread that watches over it has ended");
            }
        }
    }

    /// How many proxies ask for heartbeats.
    pub(crate) fn standbys(&self) -> usize {
        self.askers.load(Ordering::SeqCst)
    }

    /// Gives leadership away. Nothing is forwarded any more.
    pub(crate) async fn release(&self) {
        let (answer, answered) = oneshot::channel();
        let _ = self.release.send(answer);
        match answered.await {
            Ok(Ok(())) => tracing::info!("leadership is given away"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "leadership could not be given away; it ends with its lease")
            }
            Err(_) => {}
        }
    }
}

/// What is done before that.
static BEFORE_THE_END: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Has this done when the process leads no more.
pub(crate) fn before_the_end(act: impl Fn() + Send + Sync + 'static) {
    let _ = BEFORE_THE_END.set(Box::new(act));
}

/// The end of a process that leads no more.
pub(crate) fn deposed(why: &str) -> ! {
    tracing::error!(why, "this proxy leads no more; it ends, and is to be started again");
    if let Some(act) = BEFORE_THE_END.get() {
        act();
    }
    process::exit(DEPOSED)
}

/// Begins to stand by.
///
/// # Errors
/// The heartbeat address cannot be had.
pub(crate) fn start(config: &HaConfig, url: &StoreUrl) -> anyhow::Result<Handle> {
    let address = config.heartbeat;
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| anyhow!("[ha] heartbeat = \"{address}\": {}", net::why_not(address, &error)))?;
    let mut instance = [0; 8];
    rand::fill(&mut instance).map_err(|_| anyhow!("the system gives no randomness"))?;
    let (role, role_seen) = watch::channel(Role::Standby(None));
    let (release, releases) = mpsc::unbounded_channel();
    let gate = Arc::new(Gate::shut());
    let askers = Arc::new(AtomicUsize::new(0));
    let member = Member {
        config: config.clone(),
        instance: u64::from_be_bytes(instance),
        role,
        releases,
        gate: Arc::clone(&gate),
        complained: false,
    };
    let (url, counted) = (in_time(url, config.confirm), Arc::clone(&askers));
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        // Without this thread the gate shuts, and clients would hang.
        let _end = EndsProcess;
        runtime.block_on(async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            tokio::spawn(heartbeat::answer(listener, member.instance, counted));
            member.run(&url).await;
        });
    };
    thread::Builder::new().name("ha".into()).spawn(run).context("a thread")?;
    Ok(Handle { role: role_seen, release, gate, askers })
}

struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        deposed("the thread that watches over it has ended");
    }
}

/// A store that answers, or does not, before that is of no use any more.
fn in_time(url: &StoreUrl, confirm: Duration) -> StoreUrl {
    match url {
        StoreUrl::Etcd(options) => {
            let timeout = options.timeout.min(confirm * 2);
            StoreUrl::Etcd(understudy_state::EtcdOptions { timeout, ..options.clone() })
        }
        other => other.clone(),
    }
}

/// This proxy as one of several.
struct Member {
    config: HaConfig,
    instance: u64,
    role: watch::Sender<Role>,
    releases: mpsc::UnboundedReceiver<oneshot::Sender<Result<(), StoreError>>>,
    gate: Arc<Gate>,
    /// It was said that the store fails.
    complained: bool,
}

/// A leadership just won.
struct Won {
    term: Term,
    /// It stood at this moment, or later.
    asked: Moment,
    /// Nobody else can believe any more that it leads.
    from: Moment,
}

impl Member {
    async fn run(mut self, url: &StoreUrl) {
        let store = loop {
            match store::open(url).await {
                Ok(store) => break store,
                Err(error) => self.complain(&error),
            }
            sleep(AGAIN).await;
        };
        let Some(elections) = store.elections() else { return };
        let won = self.stand_by(elections).await;
        self.lead(elections, won).await;
    }

    fn complain(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "the store does not say who leads");
        }
    }

    fn content(&mut self) {
        if std::mem::take(&mut self.complained) {
            tracing::info!("the store says again who leads");
        }
    }

    async fn stand_by(&mut self, elections: &dyn Elections) -> Won {
        // The process of the leader that was deposed is known to be gone.
        let mut proved = false;
        let mut heard = None;
        loop {
            match self.step(elections, proved, &mut heard).await {
                Ok(Step::Won(won)) => return won,
                Ok(Step::Again(dead)) => {
                    self.content();
                    proved = dead;
                }
                Err(error) => {
                    self.complain(&error);
                    proved = false;
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// `heard`: the last leader that has answered.
    async fn step(
        &mut self,
        elections: &dyn Elections,
        proved: bool,
        heard: &mut Option<u64>,
    ) -> Result<Step, StoreError> {
        let leader = match elections.leader().await? {
            Some(leader) if !leader.released => leader,
            _ => return self.campaign(elections, proved).await,
        };
        let verdict = self.follow(elections, &leader, heard).await;
        let Some(verdict) = verdict else { return Ok(Step::Again(false)) };
        match verdict {
            Verdict::Dead => tracing::warn!(leader = leader.name, "the process of the leading proxy is gone"),
            Verdict::Silent => tracing::warn!(leader = leader.name, "the leading proxy is silent"),
        }
        elections.depose(leader.lease).await?;
        Ok(Step::Again(verdict == Verdict::Dead))
    }

    /// What becomes of a leader; `None`: the record is another.
    async fn follow(
        &mut self,
        elections: &dyn Elections,
        leader: &LeaderRecord,
        heard: &mut Option<u64>,
    ) -> Option<Verdict> {
        tracing::info!(leader = leader.name, "standing by");
        let _ = self.role.send(Role::Standby(Some(leader.name.clone())));
        let Ok(address) = leader.heartbeat.parse() else {
            // It ends with its lease, then.
            let _ = elections.changed(Some(leader.clone())).await;
            return None;
        };
        if address == self.config.heartbeat {
            // Nobody else has this address now: it was a process before this one.
            return Some(Verdict::Dead);
        }
        let instance = u64::from_be_bytes(leader.instance.0);
        let mut is_heard = *heard == Some(instance);
        let silence = self.config.silence;
        let changes = async {
            loop {
                match elections.changed(Some(leader.clone())).await {
                    Ok(_) => return,
                    Err(error) => self.complain(&error),
                }
                sleep(AGAIN).await;
            }
        };
        let verdict = tokio::select! {
            () = changes => None,
            verdict = heartbeat::watch(address, instance, silence, &mut is_heard) => Some(verdict),
        };
        if is_heard {
            *heard = Some(instance);
        }
        verdict
    }

    async fn campaign(&mut self, elections: &dyn Elections, proved: bool) -> Result<Step, StoreError> {
        let asked = Moment::now();
        let candidate = Candidate {
            name: self.config.name.clone(),
            heartbeat: self.config.heartbeat.to_string(),
            instance: self.instance,
        };
        Ok(match elections.campaign(candidate, self.config.lease).await? {
            Election::Won(term) => {
                // Clocks do not go quite alike.
                let wait = self.config.confirm + self.config.confirm / 20;
                let is_sure = proved || term.handed_over;
                let from = if is_sure { asked } else { Moment::now().after(wait) };
                Step::Won(Won { term, asked, from })
            }
            Election::Lost(_) => Step::Again(false),
        })
    }

    async fn lead(&mut self, elections: &dyn Elections, won: Won) {
        let Won { term, asked, from } = won;
        self.content();
        tracing::info!(name = self.config.name, waits = ?from.left(), "this proxy leads");
        let _ = self.role.send(Role::Leader(term.clone(), from));
        let mut confirmed = asked;
        let mut ticks = interval((self.config.lease / 10).min(self.config.confirm / 4));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waits = from.left();
            if waits.is_zero() {
                self.gate.open_until(confirmed.after(self.config.confirm));
            }
            tokio::select! {
                _ = ticks.tick() => {
                    let asked = Moment::now();
                    match elections.confirm(&term).await {
                        Ok(true) => {
                            confirmed = asked;
                            self.content();
                        }
                        Ok(false) => deposed("the store says that its term is over"),
                        Err(error) => self.complain(&error),
                    }
                }
                () = sleep(waits), if !waits.is_zero() => {}
                Some(answer) = self.releases.recv() => {
                    self.gate.open_until(Moment::now());
                    let _ = answer.send(elections.release(&term).await);
                    // What is left of the process does nothing in its name.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

enum Step {
    Won(Won),
    /// To be looked at anew. The leader that was deposed just now is known to be gone.
    Again(bool),
}
