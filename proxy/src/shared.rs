//! What all Links of the process have in common.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc::UnboundedSender, oneshot},
};
use understudy_core::{
    auth::Credentials,
    effect::Mutation,
    event::{Cause, FileEvent, LegLoss, Succession},
    files::Files,
    fleet::{Assignment, Found, ProbeReport, Profile, Token},
    ids::{LinkId, NodeId, OpenToken, StoreToken},
    link::LinkConfig,
};

use crate::{config::NodeConfig, ha::Gate, metrics::Metrics, net, nodes::Nodes, persist::Item};

/// See [`Shared::dials`].
const DIALS: usize = 32;

/// How many bytes of unanswered requests are kept of all clients together, before those that have some kept are read no
/// further.
const KEPT: usize = 1 << 30;

/// What a Link is told from outside.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// A node is named.
    Assignment(Assignment, Cause),
    /// The node is silent and may not be left.
    NodeSilent,
    /// It answers again.
    NodeAnswers,
    /// Barriers have changed.
    FilesChanged,
    /// A user has logged in in the place of an earlier session.
    Succession(Arc<SuccessionNotice>),
    /// Every Link has dealt with the succession that this one told of.
    SuccessionDone,
    /// What it wanted stored is, up to this.
    Stored(StoreToken),
    /// Somebody has given another name to the file of an Open.
    Moved(OpenToken, Box<[u8]>),
    /// Another Link finds out on this node what became of its requests: what has this one in flight?
    Asked,
    /// It is not, and the client is not to be served without.
    StoreFailed,
    /// The proxy stops.
    Shutdown,
}

/// Says that a user has logged in in the place of an earlier session. Who has to do with it keeps it until it is done; when
/// nobody has it any more, the successor is told.
#[derive(Debug)]
pub(crate) struct SuccessionNotice {
    pub(crate) succession: Succession,
    successor: UnboundedSender<Command>,
}

impl Drop for SuccessionNotice {
    fn drop(&mut self) {
        // A Link that is gone waits for nothing.
        let _ = self.successor.send(Command::SuccessionDone);
    }
}

/// What the Fleet is told.
#[derive(Debug)]
pub(crate) enum FleetInput {
    LegLost {
        node: NodeId,
        generation: u64,
        loss: LegLoss,
    },
    Probe {
        node: NodeId,
        report: ProbeReport,
    },
    Profile {
        node: NodeId,
        profile: Box<Profile>,
    },
    Verified {
        node: NodeId,
        token: Token,
        report: ProbeReport,
    },
    Fenced {
        node: NodeId,
        token: Token,
        success: bool,
    },
    Stored {
        token: Token,
    },
    Reclaimed,
    Cleared {
        node: NodeId,
    },
    /// All nodes that are found by now.
    Nodes(Vec<Found>),
}

/// A Link as others reach it.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: UnboundedSender<Command>,
    /// It is to be told when barriers change.
    waits: Arc<AtomicBool>,
}

/// One per process.
pub(crate) struct Shared {
    pub(crate) nodes: Nodes,
    pub(crate) link_config: Arc<LinkConfig>,
    pub(crate) credentials: Arc<dyn Credentials + Send + Sync>,
    pub(crate) metrics: Arc<Metrics>,
    /// Shut when another proxy may lead.
    pub(crate) gate: Arc<Gate>,
    pub(crate) fleet: UnboundedSender<FleetInput>,
    /// What is to be stored.
    store: UnboundedSender<Item>,
    /// The store fails, and nobody is to be served without.
    store_failed: AtomicBool,
    /// Node legs that may be waiting for their first answer at a time. A herd of clients moves at once, and smbd's queue
    /// of new connections is short: what does not fit is tried again by the kernel a second later.
    pub(crate) dials: Arc<Semaphore>,
    /// TCP_USER_TIMEOUT of node legs.
    pub(crate) user_timeout: Duration,
    /// How long a client may take over a frame without sending a byte of it.
    pub(crate) half_frame: Duration,
    files: Mutex<Files>,
    files_version: AtomicU64,
    links: DashMap<LinkId, Handle>,
    next_link: AtomicU64,
    /// Clients whose connection is not closed yet. A Link ends earlier, when its last answer is queued.
    clients: AtomicUsize,
    assignment: Mutex<Option<(Assignment, Cause)>>,
    /// Bytes of requests that are kept, of all clients.
    kept: AtomicUsize,
    stopping: AtomicBool,
    /// Clients of which another proxy is to take over: their connections are kept until the address is gone.
    parked: OnceLock<Arc<Parking>>,
}

/// Connections that nobody serves.
pub(crate) type Parking = Mutex<Vec<TcpStream>>;

/// What a process begins with.
pub(crate) struct Setup {
    pub(crate) nodes: Vec<NodeConfig>,
    pub(crate) link_config: LinkConfig,
    pub(crate) credentials: Arc<dyn Credentials + Send + Sync>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) fleet: UnboundedSender<FleetInput>,
    pub(crate) store: UnboundedSender<Item>,
    pub(crate) files: Files,
    pub(crate) user_timeout: Duration,
    pub(crate) half_frame: Duration,
}

impl Shared {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup {
            nodes,
            link_config,
            credentials,
            metrics,
            gate,
            fleet,
            store,
            files,
            user_timeout,
            half_frame,
        } = setup;
        Self {
            nodes: Nodes::new(nodes, link_config.nodes.clone()),
            link_config: Arc::new(link_config),
            credentials,
            metrics,
            gate,
            fleet,
            store,
            store_failed: AtomicBool::new(false),
            dials: Arc::new(Semaphore::new(DIALS)),
            user_timeout,
            half_frame,
            files_version: AtomicU64::new(files.version()),
            files: Mutex::new(files),
            links: DashMap::new(),
            next_link: AtomicU64::new(1),
            clients: AtomicUsize::new(0),
            assignment: Mutex::new(None),
            kept: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            parked: OnceLock::new(),
        }
    }

    /// A node's name, for people.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        self.nodes.get(node).map_or_else(|| "?".into(), |node| node.name)
    }

    /// Makes a Link known. Whoever registers asks for [`Self::assignment`] and [`Self::is_stopping`] afterwards, so that
    /// nothing is missed.
    pub(crate) fn register(&self, commands: UnboundedSender<Command>) -> (LinkId, Arc<AtomicBool>) {
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let waits = Arc::new(AtomicBool::new(false));
        self.links.insert(id, Handle { commands, waits: Arc::clone(&waits) });
        self.metrics.connections.inc();
        self.metrics.connections_total.inc();
        (id, waits)
    }

    /// A Link is over, and its Opens with it.
    pub(crate) fn unregister(&self, id: LinkId) {
        if self.links.remove(&id).is_some() {
            self.metrics.connections.dec();
        }
        self.change_files(|files| files.link_gone(id));
    }

    /// A client is served from now on.
    pub(crate) fn client_came(&self) {
        self.clients.fetch_add(1, Ordering::SeqCst);
    }

    /// Its connection is closed.
    pub(crate) fn client_gone(&self) {
        self.clients.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many clients' connections are not closed yet.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// How many Links there are.
    pub(crate) fn links(&self) -> usize {
        self.links.len()
    }

    /// The assignment in force.
    pub(crate) fn assignment(&self) -> Option<(Assignment, Cause)> {
        *self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is named: Files first, then every Link.
    pub(crate) fn assign(&self, assignment: Assignment, cause: Cause, state_lost: bool) {
        if state_lost {
            self.change_files(|files| files.all_lost(Instant::now(), assignment.generation));
        }
        *self.assignment.lock().unwrap_or_else(PoisonError::into_inner) = Some((assignment, cause));
        self.tell_all(&Command::Assignment(assignment, cause));
    }

    /// Tells every Link.
    pub(crate) fn tell_all(&self, command: &Command) {
        for link in &self.links {
            // A Link that is just ending hears nothing any more.
            let _ = link.commands.send(command.clone());
        }
    }

    /// Tells one Link.
    pub(crate) fn tell(&self, link: LinkId, command: Command) {
        if let Some(link) = self.links.get(&link) {
            let _ = link.commands.send(command);
        }
    }

    /// A Link wants this stored, and is told when it is.
    pub(crate) fn store(&self, link: LinkId, token: StoreToken, mutation: Mutation) {
        if self.parked.get().is_some() && matches!(mutation, Mutation::RemoveSession { .. }) {
            // Its client believes in it still, and whoever follows is to find that client.
            return self.tell(link, Command::Stored(token));
        }
        let _ = self.store.send(Item::Store(mutation, Some((link, token))));
    }

    /// Waits until what was to be stored so far is, or cannot be.
    pub(crate) async fn flush_store(&self) {
        let (done, is_done) = oneshot::channel();
        let _ = self.store.send(Item::Flush(done));
        let _ = is_done.await;
    }

    /// The store fails, or works again.
    pub(crate) fn set_store_failed(&self, failed: bool) {
        self.store_failed.store(failed, Ordering::SeqCst);
        self.metrics.store_up.set(i64::from(!failed));
    }

    /// Whether it does.
    pub(crate) fn is_store_failed(&self) -> bool {
        self.store_failed.load(Ordering::SeqCst)
    }

    /// Opens of absent clients whose time is over are let go.
    pub(crate) fn files_timeout(&self, now: Instant) {
        if self.with_files(|files| files.poll_timeout().is_some_and(|at| now >= at)) {
            self.change_files(|files| files.handle_timeout(now));
        }
    }

    /// Tells all Links that a user of `successor`'s has logged in in the place of an earlier session.
    pub(crate) fn tell_succession(&self, successor: LinkId, succession: Succession) {
        let Some(successor) = self.links.get(&successor).map(|link| link.commands.clone()) else { return };
        self.tell_all(&Command::Succession(Arc::new(SuccessionNotice { succession, successor })));
    }

    /// From now on clients' connections are not closed but kept.
    pub(crate) fn park_clients(&self) {
        let _ = self.parked.set(Arc::default());
    }

    /// Where to, if they are.
    pub(crate) fn parking(&self) -> Option<Arc<Parking>> {
        self.parked.get().cloned()
    }

    /// Closes what was kept. Nobody hears of that: the address by which it stood is gone.
    pub(crate) fn unpark(&self) {
        let parked = self
            .parked
            .get()
            .map(|parked| std::mem::take(&mut *parked.lock().unwrap_or_else(PoisonError::into_inner)));
        parked.iter().flatten().for_each(net::reset_on_drop);
    }

    /// No further Link is served.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.tell_all(&Command::Shutdown);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A client of whom so many bytes were kept has now so many.
    pub(crate) fn keep(&self, before: usize, now: usize) {
        if now > before {
            self.kept.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.kept.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether more is kept of all clients than there is memory for.
    pub(crate) fn keeps_too_much(&self) -> bool {
        self.kept.load(Ordering::Relaxed) > KEPT
    }

    /// The version of Files, cheaply.
    pub(crate) fn files_version(&self) -> u64 {
        self.files_version.load(Ordering::Acquire)
    }

    /// Looks at Files.
    pub(crate) fn with_files<T>(&self, look: impl FnOnce(&Files) -> T) -> T {
        look(&self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One Link's news.
    pub(crate) fn file_events(&self, now: Instant, link: LinkId, events: impl Iterator<Item = FileEvent>) {
        self.change_files(|files| events.for_each(|event| files.handle(now, link, event)));
    }

    fn change_files(&self, change: impl FnOnce(&mut Files)) {
        let (mut moved, mut asked) = (Vec::new(), Vec::new());
        let (reclaimed, changed) = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            let before = files.unreclaimed();
            change(&mut files);
            moved.extend(std::iter::from_fn(|| files.poll_moved()));
            asked.extend(std::iter::from_fn(|| files.poll_asked()));
            while let Some(mutation) = files.poll_mutation() {
                if self.link_config.persist {
                    // In the order in which Files has changed; what the Link itself wanted stored of it came before.
                    let _ = self.store.send(Item::Store(mutation, None));
                }
            }
            let changed = self.files_version.swap(files.version(), Ordering::AcqRel) != files.version();
            (before > 0 && files.unreclaimed() == 0, changed)
        };
        if self.link_config.persist {
            for (link, open, path) in moved {
                self.tell(link, Command::Moved(open, path));
            }
        }
        for link in asked {
            self.tell(link, Command::Asked);
        }
        if reclaimed {
            let _ = self.fleet.send(FleetInput::Reclaimed);
        }
        if changed {
            for link in self.links.iter().filter(|link| link.waits.swap(false, Ordering::AcqRel)) {
                let _ = link.commands.send(Command::FilesChanged);
            }
        }
    }
}
