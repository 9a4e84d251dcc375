//! Stands between a store and a member, and keeps back what either says. It knows HTTP/2's frames, so that a request can be
//! delivered late without the word that it was given up.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
};

/// What becomes of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Requests are kept, and delivered when that is over.
    HoldRequests,
    /// So are answers.
    HoldAnswers,
}

/// Frames of HTTP/2 (RFC 9113, section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const PREFACE: usize = 24;

pub(crate) struct Tap {
    pub(crate) address: String,
    mode: watch::Sender<Mode>,
    answers: watch::Sender<usize>,
    held: Arc<AtomicUsize>,
}

impl Tap {
    pub(crate) async fn new(member: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (answers, _) = watch::channel(0);
        let held = Arc::new(AtomicUsize::new(0));
        let (count, holds) = (answers.clone(), Arc::clone(&held));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&member).await else { continue };
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                let mut preface = [0; PREFACE];
                if from_client.read_exact(&mut preface).await.is_ok()
                    && to_server.write_all(&preface).await.is_ok()
                {
                    let (there, back) = (frames(from_client), frames(from_server));
                    let (holds, count) = (Arc::clone(&holds), count.clone());
                    tokio::spawn(pump(
                        there,
                        to_server,
                        modes.clone(),
                        Mode::HoldRequests,
                        move |_, held| {
                            holds.fetch_add(usize::from(held), Ordering::SeqCst);
                        },
                    ));
                    tokio::spawn(pump(back, to_client, modes.clone(), Mode::HoldAnswers, move |frame, _| {
                        let ends = frame[3] == HEADERS && frame[4] & END_STREAM != 0;
                        count.send_modify(|count| *count += usize::from(ends));
                    }));
                }
            }
        });
        Self { address, mode, answers, held }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Frames of requests that were kept back.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Answers of the member that are complete.
    pub(crate) fn answers(&self) -> usize {
        *self.answers.borrow()
    }

    pub(crate) async fn wait_for_answers(&self, answers: usize) {
        let mut counted = self.answers.subscribe();
        tokio::time::timeout(super::PATIENCE, counted.wait_for(|&count| count >= answers))
            .await
            .unwrap()
            .unwrap();
    }
}

/// Passes frames on, but while the mode is `hold`.
async fn pump(
    mut frames: UnboundedReceiver<Vec<u8>>,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    hold: Mode,
    mut seen: impl FnMut(&[u8], bool),
) {
    let mut held = Vec::new();
    let mut open = true;
    loop {
        let holds = *modes.borrow_and_update() == hold;
        if !holds {
            // Whom it is for may have gone, and what comes is counted all the same.
            let _ = to.write_all(&std::mem::take(&mut held)).await;
        }
        tokio::select! {
            frame = frames.recv(), if open => match frame {
                Some(frame) => {
                    seen(&frame, holds);
                    // The member must not hear that something was given up, or it would not do what was held.
                    if !holds {
                        let _ = to.write_all(&frame).await;
                    } else if ![RST_STREAM, PING, GOAWAY].contains(&frame[3]) {
                        held.extend(frame);
                    }
                }
                // Nor that the client has gone.
                None if holds => open = false,
                None => return,
            },
            changed = modes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Everything that comes, whole frames with their header of nine bytes.
fn frames(mut from: OwnedReadHalf) -> UnboundedReceiver<Vec<u8>> {
    let (frames, queue) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut frame = vec![0; 9];
            if from.read_exact(&mut frame).await.is_err() {
                return;
            }
            let size = usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2]);
            frame.resize(9 + size, 0);
            if from.read_exact(&mut frame[9..]).await.is_err() || frames.send(frame).is_err() {
                return;
            }
        }
    });
    queue
}
