//! Driving one Link: sockets and timers on one side, the sans-IO [`Link`] on the other.
//!
//! One task per Link, one hand-written poll function: every source of input is looked at in turn, each input goes into
//! the Link, and what the Link then wants is done before the next input is taken.

mod leg;
mod log;

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{
        OwnedSemaphorePermit,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    time::{Sleep, sleep_until, timeout},
};
use understudy_core::{
    effect::{Close, CloseReason, Effect, Leg as To},
    event::{Event, FileEvent},
    ids::{LegId, LinkId},
    link::Link,
};

use self::leg::{Input, Leg};
use crate::{
    net,
    random::SystemRandom,
    shared::{Command, FleetInput, Shared},
};

/// While this much waits to be written to one side, the other is not read.
const QUEUE_LIMIT: usize = 8 << 20;
/// How long what is queued is still written to a leg that is given up.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);
/// Frames taken from one side before the others are looked at.
const BURST: usize = 32;
/// Rounds before other tasks of the thread get their turn.
const ROUNDS: usize = 8;

/// Serves one client until it is gone, and what was said to it is written.
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream, client: SocketAddr) {
    shared.client_came();
    serve_link(Arc::clone(&shared), stream, client).await;
    shared.client_gone();
}

async fn serve_link(shared: Arc<Shared>, stream: TcpStream, client: SocketAddr) {
    if let Err(error) = net::tune_client_leg(&stream) {
        tracing::debug!(%client, %error, "the client was gone before it was served");
        return;
    }
    let (commands, receiver) = unbounded_channel();
    let (id, waits) = shared.register(commands);
    let mut driver = Driver::new(Arc::clone(&shared), id, stream, client, receiver, waits);
    tracing::debug!(link = id.0, %client, "connected");
    driver.catch_up();
    let (how, reason) = poll_fn(|cx| driver.poll(cx)).await;
    driver.count();
    driver.keep(0);
    log::closed(id, client, reason);
    shared.metrics.closed.with_label_values(&[reason.label()]).inc();
    shared.unregister(id);
    end(driver.client, how).await;
}

/// Ends a leg: after what is queued has been written, or at once.
async fn end(mut leg: Leg, how: Close) {
    if how == Close::Reset {
        net::reset_on_drop(&leg.stream);
        return;
    }
    let flush = poll_fn(|cx| leg.poll_flush(cx, &mut 0));
    if matches!(timeout(FLUSH, flush).await, Ok(Ok(()))) {
        let _ = leg.stream.shutdown().await;
    }
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<(TcpStream, OwnedSemaphorePermit)>> + Send>>;

/// The node leg as the driver sees it.
enum NodeSide {
    None,
    Dialling(LegId, Dialling),
    Open(LegId, Leg),
}

struct Driver {
    shared: Arc<Shared>,
    id: LinkId,
    peer: SocketAddr,
    link: Link,
    client: Leg,
    node: NodeSide,
    /// Held from the dial until the node's first answer.
    slot: Option<OwnedSemaphorePermit>,
    commands: UnboundedReceiver<Command>,
    waits: Arc<AtomicBool>,
    files_seen: u64,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
    file_events: Vec<FileEvent>,
    over: Option<(Close, CloseReason)>,
    /// What [`Shared::keep`] was last told.
    kept: usize,
}

impl Driver {
    fn new(
        shared: Arc<Shared>,
        id: LinkId,
        stream: TcpStream,
        peer: SocketAddr,
        commands: UnboundedReceiver<Command>,
        waits: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        let link = Link::new(
            id,
            Arc::clone(&shared.link_config),
            Arc::clone(&shared.credentials),
            Box::new(SystemRandom),
            now,
        );
        Self {
            shared,
            id,
            peer,
            link,
            client: Leg::new(stream),
            node: NodeSide::None,
            slot: None,
            commands,
            waits,
            files_seen: 0,
            timer: Box::pin(sleep_until(now.into())),
            timer_at: None,
            file_events: Vec::new(),
            over: None,
            kept: 0,
        }
    }

    /// What was said before the Link was registered.
    fn catch_up(&mut self) {
        let now = Instant::now();
        if let Some((assignment, cause)) = self.shared.assignment() {
            self.link.handle_assignment(now, assignment, cause);
        }
        if self.shared.is_stopping() {
            self.link.handle_shutdown(now);
        }
        self.drain(now);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Close, CloseReason)> {
        for _ in 0..ROUNDS {
            let now = Instant::now();
            let mut busy = self.poll_commands(cx, now);
            busy |= self.poll_dial(cx, now);
            busy |= self.poll_node(cx, now);
            busy |= self.poll_client(cx, now);
            busy |= self.poll_timer(cx, now);
            busy |= self.poll_writes(cx, now);
            if let Some(over) = self.over {
                return Poll::Ready(over);
            }
            if !busy {
                self.count();
                self.keep(self.link.kept_bytes());
                return Poll::Pending;
            }
        }
        self.count();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            busy = true;
            match command {
                Command::Assignment(assignment, cause) => self.link.handle_assignment(now, assignment, cause),
                Command::NodeSilent => self.link.handle_node_silent(now),
                Command::NodeAnswers => self.link.handle_node_answers(now),
                Command::FilesChanged => self.show_files(now),
                Command::Shutdown => self.link.handle_shutdown(now),
            }
            self.drain(now);
        }
        busy
    }

    fn poll_dial(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let NodeSide::Dialling(leg, dial) = &mut self.node else { return false };
        let Poll::Ready(result) = dial.as_mut().poll(cx) else { return false };
        let leg = *leg;
        match result {
            Ok((stream, slot)) => {
                self.node = NodeSide::Open(leg, Leg::new(stream));
                self.slot = Some(slot);
                self.link.handle_connected(now, leg);
            }
            Err(error) => {
                self.node = NodeSide::None;
                tracing::debug!(link = self.id.0, %error, "the node could not be reached");
                self.link.handle_leg_lost(now, leg, net::loss(&error));
            }
        }
        self.drain(now);
        true
    }

    fn poll_node(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        for _ in 0..BURST {
            if self.client.queued() > QUEUE_LIMIT {
                break;
            }
            let NodeSide::Open(id, leg) = &mut self.node else { break };
            let id = *id;
            let input = match leg.poll_frame(cx, usize::MAX, now, &mut 0) {
                Poll::Ready(input) => input,
                Poll::Pending => break,
            };
            busy = true;
            match input {
                Ok(Input::Frame(frame)) => {
                    self.slot = None;
                    self.link.handle_node_frame(now, id, frame);
                }
                Ok(Input::End) => self.node_lost(now, id, &io::ErrorKind::UnexpectedEof.into()),
                Ok(Input::Garbage) => self.node_lost(now, id, &io::ErrorKind::ConnectionReset.into()),
                Err(error) => self.node_lost(now, id, &error),
            }
            self.drain(now);
        }
        busy
    }

    fn node_lost(&mut self, now: Instant, leg: LegId, error: &io::Error) {
        self.node = NodeSide::None;
        self.slot = None;
        self.link.handle_leg_lost(now, leg, net::loss(error));
    }

    fn poll_client(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        let mut read = 0;
        for _ in 0..BURST {
            let full = matches!(&self.node, NodeSide::Open(_, leg) if leg.queued() > QUEUE_LIMIT);
            self.keep(self.link.kept_bytes());
            if full
                || self.kept > 0 && self.shared.keeps_too_much()
                || self.over.is_some()
                || !self.link.wants_client_frames()
            {
                self.client.pause();
                break;
            }
            let limit = self.link.client_frame_limit();
            let input = match self.client.poll_frame(cx, limit, now, &mut read) {
                Poll::Ready(input) => input,
                Poll::Pending => break,
            };
            busy = true;
            match input {
                Ok(Input::Frame(frame)) => {
                    if self.files_seen != self.shared.files_version() {
                        self.show_files(now);
                    }
                    self.link.handle_client_frame(now, frame);
                }
                Ok(Input::Garbage) => self.link.handle_client_failed(now, CloseReason::ProtocolError),
                Ok(Input::End) | Err(_) => self.link.handle_client_closed(now),
            }
            self.drain(now);
        }
        if read > 0 {
            self.shared.metrics.bytes_from_client.inc_by(read as u64);
            if self.client.partial_since().is_some() {
                // Without TCP_NODELAY a client holds the rest of a request back until its beginning is acknowledged.
                // A whole request is acknowledged with its answer.
                net::quickack(&self.client.stream);
            }
        }
        busy
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let half = self.client.partial_since().map(|since| since + self.shared.half_frame);
        if half.is_some_and(|at| now >= at) {
            self.link.handle_client_failed(now, CloseReason::Idle);
            self.drain(now);
            return true;
        }
        let due = self.link.poll_timeout().map(|(at, _)| at);
        let next = [half, due].into_iter().flatten().min();
        if next != self.timer_at {
            self.timer_at = next;
            if let Some(at) = next {
                self.timer.as_mut().reset(at.into());
            }
        }
        if next.is_none() || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer_at = None;
        if due.is_some_and(|at| Instant::now() >= at) {
            self.link.handle_timeout(Instant::now());
            self.drain(now);
        }
        true
    }

    /// Writes to both sides. True if one that had too much to write has not any more: the other side is read again.
    fn poll_writes(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let (mut written, mut drained) = (0, false);
        if let NodeSide::Open(id, leg) = &mut self.node {
            let (id, was_full) = (*id, leg.queued() > QUEUE_LIMIT);
            let result = leg.poll_flush(cx, &mut 0);
            drained |= was_full && leg.queued() <= QUEUE_LIMIT;
            if let Poll::Ready(Err(error)) = result {
                self.node_lost(now, id, &error);
                self.drain(now);
                return true;
            }
        }
        let was_full = self.client.queued() > QUEUE_LIMIT;
        let result = self.client.poll_flush(cx, &mut written);
        self.shared.metrics.bytes_to_client.inc_by(written as u64);
        if let Poll::Ready(Err(_)) = result {
            self.link.handle_client_closed(now);
            self.drain(now);
            return true;
        }
        drained || was_full && self.client.queued() <= QUEUE_LIMIT
    }

    /// The Link sees Files, and is told of the next change if something waits for it.
    fn show_files(&mut self, now: Instant) {
        loop {
            let version = self.shared.files_version();
            self.waits.store(self.link.wants_files(), Ordering::Release);
            let link = &mut self.link;
            self.shared.with_files(|files| link.handle_files(now, files));
            self.files_seen = version;
            let wants = self.link.wants_files();
            self.waits.store(wants, Ordering::Release);
            if !wants || self.shared.files_version() == version {
                return;
            }
        }
    }

    /// Does what the Link wants, until it wants nothing.
    fn drain(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.link.poll_transmit() {
                quiet = false;
                match (transmit.to, &mut self.node) {
                    (To::Client, _) => self.client.push(transmit.frame),
                    (To::Node(to), NodeSide::Open(id, leg)) if to == *id => leg.push(transmit.frame),
                    (To::Node(_), _) => {}
                }
            }
            while let Some(event) = self.link.poll_event() {
                quiet = false;
                self.event(event);
            }
            if !self.file_events.is_empty() {
                self.shared.file_events(self.id, self.file_events.drain(..));
            }
            while let Some(effect) = self.link.poll_effect() {
                quiet = false;
                self.effect(effect);
            }
            if !quiet {
                continue;
            }
            if !self.link.wants_files() || self.files_shown() {
                return;
            }
            self.show_files(now);
        }
    }

    /// Whether the Link has seen Files as they are, and will hear of the next change.
    fn files_shown(&self) -> bool {
        self.files_seen == self.shared.files_version() && self.waits.load(Ordering::Acquire)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::File(event) => self.file_events.push(event),
            Event::LegLost { node, generation, loss, .. } => {
                log::leg_lost(&self.shared, self.id, node, loss);
                let _ = self.shared.fleet.send(FleetInput::LegLost { node, generation, loss });
            }
            other => log::event(&self.shared, self.id, self.peer, other),
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { leg, node } => {
                let shared = Arc::clone(&self.shared);
                let dial = async move {
                    let slot = Arc::clone(&shared.dials).acquire_owned().await.map_err(io::Error::other)?;
                    let address = shared.nodes.get(usize::from(node.0)).map_or("", |n| n.address.as_str());
                    Ok((net::connect(address, shared.user_timeout).await?, slot))
                };
                self.node = NodeSide::Dialling(leg, Box::pin(dial));
            }
            Effect::CloseLeg { leg, how } => match std::mem::replace(&mut self.node, NodeSide::None) {
                NodeSide::Open(id, socket) if id == leg => {
                    self.slot = None;
                    tokio::spawn(end(socket, how));
                }
                NodeSide::Dialling(id, ..) if id == leg => {}
                other => self.node = other,
            },
            Effect::CloseClient { how, reason } => self.over = Some((how, reason)),
        }
    }

    /// Tells how much of this client is kept. Who keeps nothing is read in any case, so that everyone gets on; who keeps
    /// something is read again when its node has answered.
    fn keep(&mut self, bytes: usize) {
        self.shared.keep(self.kept, bytes);
        self.kept = bytes;
    }

    fn count(&mut self) {
        let counters = self.link.take_counters();
        if counters.any {
            self.shared.metrics.count(&counters);
        }
    }
}
