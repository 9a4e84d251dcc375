//! The process: threads, tasks, and their end.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
    sync::{mpsc::unbounded_channel, oneshot},
    time::sleep,
};
use understudy_core::{
    fleet::{FenceMode, Fleet, FleetConfig},
    ids::NodeId,
    link::LinkConfig,
};
use understudy_state::{PlacementRecord, Store};

use crate::{
    admin,
    config::{Config, StoreUrl},
    credentials::Files,
    driver,
    fence::Fence,
    fleet::FleetTask,
    metrics::Metrics,
    net,
    persist::{self, OnFailure, Persist},
    probe,
    shared::{Setup, Shared},
    store,
};

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(serve(config))
}

/// Opens the store and reads the placement it holds.
async fn open(config: &Config) -> anyhow::Result<(Arc<dyn Store>, Option<PlacementRecord>)> {
    let store = store::open(&config.store).await?;
    let bytes = store.get(PlacementRecord::KEY.into()).await?;
    let placement =
        bytes.map(|bytes| PlacementRecord::from_bytes(&bytes)).transpose().context("the stored placement")?;
    Ok((store, placement))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let credentials = Arc::new(Files::open(&config)?);
    let fence = Fence::prepare(&config).await?;
    let (store, placement) = open(&config).await?;
    let mut files = understudy_core::files::Files::with_grace(config.grace);
    let (absent, stale) = persist::load(&*store, &mut files).await.context("the stored Opens")?;
    let listener = listen("listen", config.listen)?;
    let admin = config.admin.map(|address| listen("[admin] listen", address)).transpose()?;
    let (fleet_inputs, inputs) = unbounded_channel();
    let (store_items, items) = persist::channel();
    let shared = Arc::new(Shared::new(Setup {
        nodes: config.nodes.clone(),
        link_config: link_config(&config),
        credentials,
        metrics: Metrics::new()?,
        fleet: fleet_inputs,
        store: store_items,
        files,
        user_timeout: config.takeover_deadline,
        half_frame: config.half_frame,
    }));
    let fleet = Fleet::new(fleet_config(&config), placement.as_ref(), Instant::now());
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
        let store = Arc::clone(&store);
        tokio::spawn(async move { persist::remove(&*store, stale).await });
    }
    let admin_store = Arc::clone(&store);
    let (on_failure, keeper) = (config.on_store_failure, Arc::clone(&shared));
    let persist = Persist { shared: Arc::clone(&shared), store: Arc::clone(&store), on_failure, items };
    tokio::spawn(persist.run());
    tokio::spawn(persist::keep_time(keeper));
    tokio::spawn(FleetTask { fleet, shared: Arc::clone(&shared), store, fence, inputs }.run());
    for at in 0..u16::try_from(config.nodes.len())? {
        let (shared, compare) = (Arc::clone(&shared), config.compare.clone());
        tokio::spawn(probe::watch(shared, NodeId(at), config.probe_interval, compare));
    }
    if let Some(admin) = admin {
        tokio::spawn(admin::serve(admin, Arc::clone(&shared), admin_store));
    }
    let workers = (0..config.workers).map(worker).collect::<anyhow::Result<Vec<_>>>()?;
    let nodes: Vec<_> = config.nodes.iter().map(|n| n.name.as_str()).collect();
    tracing::info!(listen = %config.listen, ?nodes, workers = workers.len(), "understudy {}", env!("CARGO_PKG_VERSION"));
    accept(&shared, &listener, &workers, config.on_store_failure).await?;
    drop(listener);
    tracing::info!(
        clients = shared.clients(),
        "stopping: no new connections, requests in flight are still answered"
    );
    shared.stop();
    // Within the grace Links end by themselves; then their last answers are written.
    let deadline = Instant::now() + config.shutdown_grace + driver::FLUSH + Duration::from_secs(1);
    while shared.clients() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    for worker in workers {
        worker.join().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Opens an address of the configuration.
fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    net::listen(address).map_err(|error| anyhow!("{key} = \"{address}\": {}", net::why_not(address, &error)))
}

/// Accepts until the process is told to stop.
async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    workers: &[Worker],
    on_failure: OnFailure,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match (accepted, next.next()) {
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
