//! The process: threads, tasks, and their end.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc::unbounded_channel, oneshot},
    time::sleep,
};
use understudy_core::{
    fleet::{FenceMode, Fleet, FleetConfig},
    ids::NodeId,
    link::LinkConfig,
};
use understudy_state::{PlacementRecord, Store, Term};

use crate::{
    admin::{self, Page},
    config::{Config, StoreUrl},
    credentials::Files,
    driver,
    fence::Fence,
    find::{self, List},
    fleet::{FleetTask, Probes},
    ha::{self, Gate, Label, Moment},
    metrics::Metrics,
    net,
    persist::{self, Loaded, OnFailure, Persist},
    shared::{FleetInput, Setup, Shared},
    store,
    vip::Vip,
};

/// Runs until SIGTERM or SIGINT, or until another proxy is to serve. The exit status.
pub(crate) fn run(config: Config) -> anyhow::Result<ExitCode> {
    Builder::new_current_thread().enable_all().build()?.block_on(serve(config))
}

/// Reads the placement that the store holds.
async fn placement(store: &dyn Store) -> anyhow::Result<Option<PlacementRecord>> {
    let bytes = store.get(PlacementRecord::KEY.into()).await?;
    bytes.map(|bytes| PlacementRecord::from_bytes(&bytes)).transpose().context("the stored placement")
}

/// How clients come to the proxy that serves, where something has to be done for it.
struct Way {
    vip: Option<Arc<Vip>>,
    label: Option<Label>,
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let credentials = Arc::new(Files::open(&config)?);
    let fence = Fence::prepare(&config).await?;
    let found = match &config.find {
        Some(means) => Some(find::start(means).await?),
        None => None,
    };
    let store = store::open(&config.store).await?;
    let mut stop = Stop::new()?;
    let vip = config.vip.clone().map(Vip::prepare).transpose()?.map(Arc::new);
    let label = match config.ha.as_ref().and_then(|ha| ha.pods.as_ref()) {
        Some(pods) => Some(Label::start(pods).await?),
        None => None,
    };
    let way = Way { vip, label };
    let ha = config.ha.as_ref().map(|ha| ha::start(ha, &config.store)).transpose()?.map(Arc::new);
    let page = Arc::new(Page {
        metrics: Arc::new(Metrics::new()?),
        store,
        ha: ha.clone(),
        serving: OnceLock::new(),
        step_down: Notify::new(),
    });
    if let Some(address) = config.admin {
        tokio::spawn(admin::serve(listen("[admin] listen", address)?, Arc::clone(&page)));
    }
    let Some(ha) = ha else {
        let with = Means { credentials, fence, found };
        let result = lead(&config, &page, with, None, &way, &mut stop).await;
        way.vip.inspect(|vip| vip.release());
        return result;
    };
    if let Some(vip) = way.vip.clone() {
        ha::before_the_end(move || vip.release());
    }
    let result = tokio::select! {
        term = ha.elected() => {
            let with = Means { credentials, fence, found };
            let result = lead(&config, &page, with, Some(term), &way, &mut stop).await;
            hand_over(&page, &ha, &way).await;
            result
        }
        never = learn(fence.as_ref(), found.clone()) => match never {},
        () = stop.told() => Ok(ExitCode::SUCCESS),
    };
    if let Some(label) = &way.label {
        label.give_up().await;
    }
    result
}

/// Lets another proxy serve. Clients whose connections were kept hear of it when they can be served there.
async fn hand_over(page: &Page, ha: &ha::Handle, way: &Way) {
    let unpark = || page.serving.get().inspect(|shared| shared.unpark());
    if let Some(vip) = &way.vip {
        // The address first: whoever follows is to be the only one that has it.
        vip.release();
        unpark();
    }
    // Afterwards they ask no more.
    let is_followed = ha.standbys() > 0;
    ha.release().await;
    if let Some(label) = way.label.as_ref().filter(|_| is_followed) {
        label.moved().await;
    }
    unpark();
}

/// What serving takes.
struct Means {
    credentials: Arc<Files>,
    fence: Option<Fence>,
    /// Nodes that are found.
    found: Option<List>,
}

/// While another proxy leads: the fence learns how nodes end, for of those that are gone nobody tells. Runs for ever.
async fn learn(fence: Option<&Fence>, found: Option<List>) -> std::convert::Infallible {
    if let (Some(fence), Some(mut found)) = (fence, found) {
        loop {
            let names = found.borrow_and_update().iter().map(|node| node.name.clone()).collect();
            fence.know(&names);
            if found.changed().await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Tells the Fleet of nodes that are found, for ever.
async fn tell(mut found: List, shared: Arc<Shared>) {
    loop {
        let list = found.borrow_and_update().clone();
        let _ = shared.fleet.send(FleetInput::Nodes(list));
        if found.changed().await.is_err() {
            return;
        }
    }
}

/// Serves clients. `term`: as which of several proxies, and from when on; nothing of what it does before can be seen.
async fn lead(
    config: &Config,
    page: &Arc<Page>,
    with: Means,
    term: Option<(Term, Moment)>,
    Way { vip, label }: &Way,
    stop: &mut Stop,
) -> anyhow::Result<ExitCode> {
    let Means { credentials, fence, found } = with;
    let store = &page.store;
    let placement = placement(&**store).await?;
    let mut files = understudy_core::files::Files::with_grace(config.grace);
    let Loaded { absent, stale, clients } =
        persist::load(&**store, &mut files).await.context("the stored Opens")?;
    // One that was killed or is silent may still have the address: it is taken from it.
    let nobody_has_it = term.as_ref().is_none_or(|(term, _)| term.handed_over);
    let (guard, gate) = match (&term, &page.ha) {
        (Some((term, from)), Some(ha)) => {
            sleep(from.left()).await;
            (Some(term.guard.clone()), Arc::clone(&ha.gate))
        }
        _ => (None, Arc::new(Gate::always_open())),
    };
    if let Some(vip) = vip {
        vip.take(nobody_has_it, &gate).await?;
    }
    let listener = listen("listen", config.listen)?;
    let (fleet_inputs, inputs) = unbounded_channel();
    let (store_items, items) = persist::channel();
    let shared = Arc::new(Shared::new(Setup {
        nodes: config.nodes.clone(),
        link_config: link_config(config),
        credentials,
        metrics: Arc::clone(&page.metrics),
        gate: Arc::clone(&gate),
        fleet: fleet_inputs,
        store: store_items,
        files,
        user_timeout: config.takeover_deadline,
        half_frame: config.half_frame,
    }));
    let fleet = Fleet::new(fleet_config(config), placement.as_ref(), Instant::now());
    shared.set_store_failed(false);
    if absent > 0 {
        let grace = config.grace.as_secs();
        tracing::info!(
            opens = absent,
            grace,
            "clients of an earlier run may come back to what they had open"
        );
    }
    if !stale.is_empty() {
        let (store, guard) = (Arc::clone(store), guard.clone());
        tokio::spawn(async move { persist::remove(&*store, guard.as_ref(), stale).await });
    }
    let (on_failure, keeper) = (config.on_store_failure, Arc::clone(&shared));
    let persist = Persist {
        shared: Arc::clone(&shared),
        store: Arc::clone(store),
        on_failure,
        patience: persist::patience(&config.store),
        guard: guard.clone(),
        items,
    };
    tokio::spawn(persist.run());
    tokio::spawn(persist::keep_time(keeper));
    tokio::spawn(persist::settle(Arc::clone(store)));
    let store = Arc::clone(store);
    let mut probes =
        Probes { interval: config.probe_interval, compare: config.compare.clone(), tasks: HashMap::new() };
    (0..u16::try_from(config.nodes.len())?).for_each(|at| probes.begin(&shared, NodeId(at)));
    tokio::spawn(FleetTask { fleet, shared: Arc::clone(&shared), store, guard, fence, inputs, probes }.run());
    if let Some(found) = found {
        tokio::spawn(tell(found, Arc::clone(&shared)));
    }
    let workers = (0..config.workers).map(worker).collect::<anyhow::Result<Vec<_>>>()?;
    let nodes: Vec<_> = config.nodes.iter().map(|n| n.name.as_str()).collect();
    tracing::info!(listen = %config.listen, ?nodes, workers = workers.len(), "understudy {}", env!("CARGO_PKG_VERSION"));
    if let Some(vip) = vip {
        // Before anybody looks whether this proxy is ready; and again for a while.
        vip.announce_once(config.listen.port(), &clients).await;
        tokio::spawn(Arc::clone(vip).announce(config.listen.port(), clients));
    }
    let _ = page.serving.set(Arc::clone(&shared));
    page.metrics.leads.set(1);
    if let Some(label) = label {
        label.take();
    }
    let kept = async {
        match vip {
            Some(vip) => Arc::clone(vip).keep(gate, config.listen.port()).await,
            None => std::future::pending().await,
        }
    };
    let status = tokio::select! {
        error = kept => return Err(error),
        () = accept(&shared, &listener, &workers, config.on_store_failure) => ExitCode::SUCCESS,
        () = stop.told() => ExitCode::SUCCESS,
        // It is to be started again, to stand by.
        () = page.step_down.notified() => ExitCode::from(ha::STEPPED_DOWN),
    };
    drop(listener);
    tracing::info!(
        clients = shared.clients(),
        "stopping: no new connections, requests in flight are still answered"
    );
    let by_label = label.is_some();
    if page.ha.as_ref().is_some_and(|ha| vip.is_some() || by_label && ha.standbys() > 0) {
        shared.park_clients();
    }
    shared.stop();
    // Within the grace Links end by themselves; then their last answers are written.
    let deadline = Instant::now() + config.shutdown_grace + driver::FLUSH + Duration::from_secs(1);
    while shared.clients() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    for worker in workers {
        worker.join().await;
    }
    shared.flush_store().await;
    page.metrics.leads.set(0);
    tracing::info!("stopped");
    Ok(status)
}

/// The signals by which the process is told to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Opens an address of the configuration.
fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    net::listen(address).map_err(|error| anyhow!("{key} = \"{address}\": {}", net::why_not(address, &error)))
}

/// Accepts, for ever.
async fn accept(shared: &Arc<Shared>, listener: &TcpListener, workers: &[Worker], on_failure: OnFailure) {
    let mut next = workers.iter().cycle();
    loop {
        match (listener.accept().await, next.next()) {
            (Ok((stream, _)), _) if on_failure == OnFailure::Refuse && shared.is_store_failed() => {
                net::reset_on_drop(&stream);
            }
            (Ok((stream, peer)), Some(worker)) => worker.serve(Arc::clone(shared), stream, peer),
            (Ok(_), None) => {}
            (Err(error), _) => {
                // Out of file descriptors, mostly: those who are served go on, the others wait.
                tracing::error!(%error, "cannot accept connections; raise the limit of open files (ulimit -n)");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A thread that drives Links.
struct Worker {
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

fn worker(number: usize) -> anyhow::Result<Worker> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name(format!("links-{number}")).spawn(move || {
        // An error means that the sender is gone: the same as being told.
        let _ = runtime.block_on(stopped);
    })?;
    Ok(Worker { handle, stop, thread })
}

impl Worker {
    fn serve(&self, shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
        let moved = stream.into_std();
        self.handle.spawn(async move {
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => driver::serve(shared, stream, peer).await,
                Err(error) => tracing::error!(%error, %peer, "a connection could not be served"),
            }
        });
    }

    async fn join(self) {
        let _ = self.stop.send(());
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

fn link_config(config: &Config) -> LinkConfig {
    LinkConfig {
        takeover_deadline: config.takeover_deadline,
        grace_park: config.grace_park,
        shutdown_grace: config.shutdown_grace,
        leg_losses_per_minute: config.leg_losses_per_minute,
        handshake_timeout: config.first_frame,
        side_channel: config.side_channel,
        persist: config.store != StoreUrl::Memory,
        // For tests of what clients meet in Bridge.
        bridge_always: std::env::var_os("UNDERSTUDY_TEST_BRIDGE").is_some_and(|value| value == "1"),
        nodes: config.nodes.iter().map(|node| node.name.clone()).collect(),
        // A silent node is known for one before its processes are taken for stuck.
        stuck_after: config.stuck_after.max(config.silence_after * 2),
        ..LinkConfig::default()
    }
}

fn fleet_config(config: &Config) -> FleetConfig {
    let names = config.nodes.iter().map(|node| node.name.clone()).collect();
    let fence = match (&config.fence, config.unfenced_silence) {
        (Some(_), _) => FenceMode::Fence,
        (None, true) => FenceMode::Unfenced,
        (None, false) => FenceMode::None,
    };
    FleetConfig { silence_after: config.silence_after, fence, ..FleetConfig::new(names) }
}
