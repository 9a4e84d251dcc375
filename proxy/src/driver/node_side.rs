//! A node leg as the driver sees it, from the dial to the loss.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use understudy_core::{
    effect::Close,
    event::LegLoss,
    ids::{LegId, LinkId, NodeId},
};

use super::{
    QUEUE_LIMIT, end,
    leg::{Input, Leg},
};
use crate::{ha::Gate, net, shared::Shared};

type Dialling = Pin<Box<dyn Future<Output = io::Result<(TcpStream, OwnedSemaphorePermit)>> + Send>>;

/// One node leg: main or auxiliary.
pub(super) struct NodeSide {
    id: LegId,
    gate: Arc<Gate>,
    state: State,
}

enum State {
    Dialling(Dialling),
    Open {
        leg: Leg,
        /// One of [`Shared::dials`], held from the dial until the node's first answer.
        slot: Option<OwnedSemaphorePermit>,
    },
}

/// What a node leg has to say.
pub(super) enum NodeInput {
    Connected,
    Frame(BytesMut),
    /// It is over: nothing more comes of it.
    Lost(LegLoss),
}

impl NodeSide {
    /// Dials, as soon as a slot is free.
    pub(super) fn dial(shared: Arc<Shared>, link: LinkId, id: LegId, node: NodeId) -> Self {
        let gate = Arc::clone(&shared.gate);
        let dial = async move {
            let slot = Arc::clone(&shared.dials).acquire_owned().await.map_err(io::Error::other)?;
            let gone = || io::Error::new(io::ErrorKind::NotFound, "the node is gone");
            let address = shared.nodes.address(node).ok_or_else(gone)?;
            let stream = net::connect(&address, shared.user_timeout).await.inspect_err(|error| {
                tracing::debug!(link = link.0, %error, "the node could not be reached");
            })?;
            if shared.gate.is_guarded() {
                // However this process ends, its kernel is not to go on sending in its name.
                net::reset_on_drop(&stream);
            }
            Ok((stream, slot))
        };
        Self { id, gate, state: State::Dialling(Box::pin(dial)) }
    }

    pub(super) fn id(&self) -> LegId {
        self.id
    }

    /// Whether so much waits to be written that whoever writes to it is not to be read.
    pub(super) fn is_full(&self) -> bool {
        matches!(&self.state, State::Open { leg, .. } if leg.queued() > QUEUE_LIMIT)
    }

    /// The next thing the leg has to say.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<NodeInput> {
        let (leg, slot) = match &mut self.state {
            State::Open { leg, slot } => (leg, slot),
            State::Dialling(dial) => {
                return Poll::Ready(match ready!(dial.as_mut().poll(cx)) {
                    Ok((stream, slot)) => {
                        self.state = State::Open { leg: Leg::new(stream), slot: Some(slot) };
                        NodeInput::Connected
                    }
                    Err(error) => NodeInput::Lost(net::loss(&error)),
                });
            }
        };
        Poll::Ready(match ready!(leg.poll_frame(cx, usize::MAX, now, &mut 0)) {
            Ok(Input::Frame(frame)) => {
                *slot = None;
                NodeInput::Frame(frame)
            }
            Ok(Input::End | Input::Garbage) => NodeInput::Lost(LegLoss::Closed),
            Err(error) => NodeInput::Lost(net::loss(&error)),
        })
    }

    /// A frame to be written after those before it. A leg that does not stand yet takes none.
    pub(super) fn push(&mut self, frame: Bytes) {
        if let State::Open { leg, .. } = &mut self.state {
            leg.push(frame);
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), LegLoss> {
        let State::Open { leg, .. } = &mut self.state else { return Ok(()) };
        match leg.poll_flush(cx, &mut 0) {
            Poll::Ready(Err(error)) => Err(net::loss(&error)),
            _ => Ok(()),
        }
    }

    /// Gives the leg up.
    pub(super) fn close(self, how: Close) {
        if let State::Open { leg, .. } = self.state {
            let gate = self.gate;
            tokio::spawn(async move { end(leg, how, &gate).await });
        }
    }
}
