//! Driving one Link: sockets and timers on one side, the sans-IO [`Link`] on the other.
//!
//! One task per Link, one hand-written poll function: every source of input is looked at in turn, each input goes into
//! the Link, and what the Link then wants is done before the next input is taken.

mod leg;
mod log;
mod node_side;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Sleep, sleep_until, timeout},
};
use understudy_core::{
    effect::{AUXILIARY_LEGS, Close, CloseReason, Effect, Leg as To, Mutation, Role},
    event::{Event, FileEvent, LegLoss},
    ids::{LegId, LinkId},
    link::Link,
};

use self::{
    leg::{Input, Leg},
    node_side::{NodeInput, NodeSide},
};
use crate::{
    ha::Gate,
    net,
    random::SystemRandom,
    shared::{Command, FleetInput, Parking, Shared, SuccessionNotice},
};

/// While this much waits to be written to one side, the other is not read.
const QUEUE_LIMIT: usize = 8 << 20;
/// How long what is queued is still written to a leg that is given up.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);
/// Frames taken from one side before the others are looked at.
const BURST: usize = 32;
/// How often it is looked whether a shut gate is open again.
const SHUT: Duration = Duration::from_millis(20);
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
    if let Some(parked) = shared.parking().filter(|_| how == Close::Graceful) {
        return park(driver.client, &parked).await;
    }
    end(driver.client, how, &Gate::always_open()).await;
}

/// Ends a leg: after what is queued has been written, as long as the gate is open, or at once.
async fn end(mut leg: Leg, how: Close, gate: &Gate) {
    if how == Close::Reset {
        net::reset_on_drop(&leg.stream);
        return;
    }
    let flush = poll_fn(|cx| match gate.is_open() {
        true => leg.poll_flush(cx, &mut 0),
        false => Poll::Ready(Err(io::ErrorKind::PermissionDenied.into())),
    });
    if matches!(timeout(FLUSH, flush).await, Ok(Ok(()))) {
        net::finish_on_drop(&leg.stream);
        let _ = leg.stream.shutdown().await;
    }
}

/// Writes what is queued, and lets the client believe that its connection stands: its end would bring the client back to a
/// proxy that is about to go.
async fn park(mut leg: Leg, parked: &Parking) {
    let flush = poll_fn(|cx| leg.poll_flush(cx, &mut 0));
    let _ = timeout(FLUSH, flush).await;
    parked.lock().unwrap_or_else(PoisonError::into_inner).push(leg.stream);
}

struct Driver {
    shared: Arc<Shared>,
    id: LinkId,
    peer: SocketAddr,
    link: Link,
    client: Leg,
    node: Option<NodeSide>,
    auxiliary: Vec<NodeSide>,
    commands: UnboundedReceiver<Command>,
    waits: Arc<AtomicBool>,
    files_seen: u64,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
    file_events: Vec<FileEvent>,
    /// Kept until the Link has ended the sessions that they are about.
    notices: Vec<Arc<SuccessionNotice>>,
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
            node: None,
            auxiliary: Vec::new(),
            commands,
            waits,
            files_seen: 0,
            timer: Box::pin(sleep_until(now.into())),
            timer_at: None,
            file_events: Vec::new(),
            notices: Vec::new(),
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
            if !self.shared.gate.is_open() {
                self.wait_for_gate(cx, now);
                return Poll::Pending;
            }
            let mut busy = self.poll_commands(cx, now);
            busy |= self.poll_node(cx, now, |driver| driver.node.as_mut());
            busy |= !self.auxiliary.is_empty() && self.poll_auxiliary(cx, now);
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

    /// Nothing is taken from anybody until then.
    fn wait_for_gate(&mut self, cx: &mut Context<'_>, now: Instant) {
        self.client.pause();
        self.timer_at = None;
        self.timer.as_mut().reset((now + SHUT).into());
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            busy = true;
            match command {
                Command::Assignment(assignment, cause) => self.link.handle_assignment(now, assignment, cause),
                Command::NodeSilent => self.link.handle_node_silent(now),
                Command::NodeAnswers => self.link.handle_node_answers(now),
                Command::Succession(notice) => {
                    self.link.handle_succession(now, &notice.succession);
                    self.notices.push(notice);
                }
                Command::SuccessionDone => self.link.handle_succession_done(now),
                Command::FilesChanged => self.show_files(now),
                Command::Stored(token) => self.link.handle_stored(now, token),
                Command::Moved(open, path) => self.link.handle_moved(now, open, path),
                Command::Asked => self.link.handle_asked(),
                Command::StoreFailed => self.link.handle_store_failed(now),
                Command::Shutdown => self.link.handle_shutdown(now),
            }
            self.drain(now);
        }
        busy
    }

    /// What one of the node legs has to say. It is looked up each time, for the Link may give it up in between.
    fn poll_node(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        find: impl Fn(&mut Self) -> Option<&mut NodeSide>,
    ) -> bool {
        let mut busy = false;
        for _ in 0..BURST {
            if self.client.queued() > QUEUE_LIMIT {
                break;
            }
            let Some(side) = find(self) else { break };
            let id = side.id();
            let Poll::Ready(input) = side.poll(cx, now) else { break };
            busy = true;
            match input {
                NodeInput::Connected => self.link.handle_connected(now, id),
                NodeInput::Frame(frame) => self.link.handle_node_frame(now, id, frame),
                NodeInput::Lost(loss) => self.node_lost(now, id, loss),
            }
            self.drain(now);
        }
        busy
    }

    fn poll_auxiliary(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let (mut busy, mut at) = (false, 0);
        while let Some(id) = self.auxiliary.get(at).map(NodeSide::id) {
            busy |=
                self.poll_node(cx, now, |driver| driver.auxiliary.iter_mut().find(|side| side.id() == id));
            if self.auxiliary.get(at).is_some_and(|side| side.id() == id) {
                at += 1;
            }
        }
        busy
    }

    fn node_lost(&mut self, now: Instant, leg: LegId, loss: LegLoss) {
        self.take_side(leg);
        self.link.handle_leg_lost(now, leg, loss);
    }

    /// The node leg of this number: the main one at the cost of one comparison.
    fn side(&mut self, leg: LegId) -> Option<&mut NodeSide> {
        match &mut self.node {
            Some(side) if side.id() == leg => Some(side),
            _ => self.auxiliary.iter_mut().find(|side| side.id() == leg),
        }
    }

    fn take_side(&mut self, leg: LegId) -> Option<NodeSide> {
        if self.node.as_ref().is_some_and(|side| side.id() == leg) {
            return self.node.take();
        }
        let at = self.auxiliary.iter().position(|side| side.id() == leg)?;
        Some(self.auxiliary.remove(at))
    }

    /// Whether a node leg has so much to write that the client is not read.
    fn is_node_full(&self) -> bool {
        self.node.as_ref().is_some_and(NodeSide::is_full)
            || !self.auxiliary.is_empty() && self.auxiliary.iter().any(NodeSide::is_full)
    }

    fn poll_client(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        let mut read = 0;
        for _ in 0..BURST {
            self.keep(self.link.kept_bytes());
            if self.is_node_full()
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
        let (mut written, was_node_full) = (0, self.is_node_full());
        if !self.shared.gate.is_open() {
            return true;
        }
        for side in self.node.iter_mut().chain(&mut self.auxiliary) {
            if let Err(loss) = side.flush(cx) {
                let leg = side.id();
                self.node_lost(now, leg, loss);
                self.drain(now);
                return true;
            }
        }
        let drained = was_node_full && !self.is_node_full();
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
        if !self.notices.is_empty() && !self.link.is_ending_session() {
            self.notices.clear();
        }
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.link.poll_transmit() {
                quiet = false;
                match transmit.to {
                    To::Client => self.client.push(transmit.frame),
                    To::Node(to) => {
                        if let Some(side) = self.side(to) {
                            side.push(transmit.frame);
                        }
                    }
                }
            }
            while let Some(event) = self.link.poll_event() {
                quiet = false;
                self.event(event);
            }
            if !self.file_events.is_empty() {
                self.shared.file_events(now, self.id, self.file_events.drain(..));
            }
            while let Some(effect) = self.link.poll_effect() {
                quiet = false;
                self.effect(now, effect);
            }
            if !quiet {
                continue;
            }
            if !self.link.wants_files() {
                // Whatever it wants next, it is to see them as they are then.
                self.waits.store(false, Ordering::Release);
                return;
            }
            if self.files_shown() && !self.link.has_fresh_frames() {
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
            Event::Succession(succession) => self.shared.tell_succession(self.id, succession),
            other => log::event(&self.shared, self.id, self.peer, other),
        }
    }

    fn effect(&mut self, now: Instant, effect: Effect) {
        match effect {
            Effect::Connect { leg, role: Role::Auxiliary, .. } if self.auxiliary.len() >= AUXILIARY_LEGS => {
                self.link.handle_leg_lost(now, leg, LegLoss::Closed);
            }
            Effect::Connect { leg, node, role } => {
                let side = NodeSide::dial(Arc::clone(&self.shared), self.id, leg, node);
                match role {
                    Role::Main => self.node = Some(side),
                    Role::Auxiliary => self.auxiliary.push(side),
                }
            }
            Effect::CloseLeg { leg, how } => {
                if let Some(side) = self.take_side(leg) {
                    side.close(how);
                }
            }
            Effect::Store { token, mut mutation } => {
                if let Mutation::PutSession(record) = &mut mutation {
                    let peer = SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port());
                    record.address = Some(peer.to_string());
                }
                self.shared.store(self.id, token, mutation);
            }
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

#[cfg(test)]
mod tests;
