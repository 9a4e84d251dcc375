//! A stretch of wire that the tests hold in their hands: it passes whole frames both ways, says when an answer has passed,
//! and can be cut.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{RecvFlags, recv};

use super::net::Net;

/// Names a client: MS-SMB2 2.2.3, ClientGuid.
pub(crate) type Guid = [u8; 16];
/// Told of what happens, by the client's name.
pub(crate) type Heard = Arc<dyn Fn(Guid) + Send + Sync>;

/// What somebody wants to be told of.
#[derive(Default, Clone)]
pub(crate) struct Ears {
    /// Each answer that the client has been sent.
    pub(crate) answers: Option<Heard>,
    /// Each connection that the client has ended, and its other end too. The client's next one begins when this has returned.
    pub(crate) ends: Option<Heard>,
}

/// The tap. Dropped, it takes no further connections; those that it has end with their ends.
#[derive(Debug)]
pub(crate) struct Tap {
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    wires: Wires,
}

type Wires = Arc<Mutex<Vec<Wire>>>;

/// A connection that passes.
#[derive(Debug)]
struct Wire {
    client: TcpStream,
    node: TcpStream,
    guid: Arc<OnceLock<Guid>>,
    /// Whoever wanted to hear of its end has heard of it.
    over: Arc<AtomicBool>,
    /// What the client sends does not pass.
    held: Arc<AtomicBool>,
}

impl Wire {
    /// The client has ended it, and that is not told yet.
    fn is_ending(&self) -> bool {
        let mut byte = [0; 1];
        let next = recv(&self.client, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !self.over.load(Ordering::Relaxed) && matches!(next, Ok((_, 0)))
    }
}

impl Tap {
    /// Listens in a namespace, and passes on what comes.
    pub(crate) fn start(net: &Net, space: &str, at: &str, to: &str, ears: Ears) -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let wires = Wires::default();
        let (stop, all) = (stopped.clone(), wires.clone());
        let (at, to) = (at.to_owned(), to.to_owned());
        // A thread inherits the namespace of the thread that makes it.
        let accepting = net.within(space, move || {
            let listener = TcpListener::bind(&at).with_context(|| format!("listening at {at}"))?;
            listener.set_nonblocking(true)?;
            Ok(thread::spawn(move || accept(&listener, &to, &stop, &all, &ears)))
        })?;
        Ok(Self { stopped, accepting: Some(accepting), wires })
    }

    /// Keeps what a client sends on the connections that it has now, or lets it pass again.
    pub(crate) fn hold(&self, guid: &Guid, hold: bool) -> usize {
        let mut count = 0;
        for wire in lock(&self.wires).iter().filter(|wire| wire.guid.get() == Some(guid)) {
            wire.held.store(hold, Ordering::Relaxed);
            count += 1;
        }
        count
    }

    /// Cuts all connections of a client.
    pub(crate) fn cut(&self, guid: &Guid) {
        lock(&self.wires).retain(|wire| {
            let wanted = wire.guid.get() == Some(guid);
            if wanted {
                let _ = wire.client.shutdown(Shutdown::Both);
                let _ = wire.node.shutdown(Shutdown::Both);
            }
            !wanted
        });
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

fn lock(wires: &Wires) -> MutexGuard<'_, Vec<Wire>> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, to: &str, stopped: &AtomicBool, wires: &Wires, ears: &Ears) {
    while !stopped.load(Ordering::Relaxed) {
        match listener.accept() {
            // A node that refuses is refused here by the end of the connection.
            Ok((client, _)) => {
                while ears.ends.is_some() && lock(wires).iter().any(Wire::is_ending) {
                    thread::sleep(Duration::from_millis(1));
                }
                drop(connect(client, to, wires, ears.clone()));
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    // A process that is just being started may hold a copy of it: that would keep the address.
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}

fn connect(client: TcpStream, to: &str, wires: &Wires, ears: Ears) -> Result<()> {
    client.set_nonblocking(false)?;
    let node = TcpStream::connect(to)?;
    for end in [&client, &node] {
        end.set_nodelay(true)?;
    }
    let guid = Arc::new(OnceLock::new());
    let held = Arc::new(AtomicBool::new(false));
    let told = Arc::new(AtomicBool::new(false));
    let (over_there, guid_there) = (told.clone(), guid.clone());
    lock(wires).push(Wire {
        client: client.try_clone()?,
        node: node.try_clone()?,
        guid: guid_there,
        over: over_there,
        held: held.clone(),
    });
    let (up, down) = ((client.try_clone()?, node.try_clone()?), (node, client));
    let name = guid.clone();
    // Whether the other end was the first to go.
    let over = Arc::new(AtomicBool::new(false));
    let (ended, has_ended) = (over.clone(), over);
    let of_client = ears.clone();
    thread::spawn(move || {
        let frames = |frame: &[u8]| {
            if let Some(found) = client_guid(frame) {
                let _ = name.set(found);
            }
        };
        let pause = || {
            while held.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        let mut first = false;
        pass(up.0, up.1, pause, frames, || first = !has_ended.load(Ordering::Relaxed));
        if let (Some(heard), Some(guid), true) = (&of_client.ends, name.get(), first) {
            heard(*guid);
        }
        told.store(true, Ordering::Relaxed);
    });
    thread::spawn(move || {
        let frames = |frame: &[u8]| {
            if let (Some(heard), Some(guid), true) = (&ears.answers, guid.get(), is_answer(frame)) {
                heard(*guid);
            }
        };
        pass(down.0, down.1, || {}, frames, || ended.store(true, Ordering::Relaxed));
    });
    Ok(())
}

/// Passes frames until an end is gone, then ends the other. `pause`: before each.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    pause: impl Fn(),
    passed: impl Fn(&[u8]),
    over: impl FnOnce(),
) {
    while let Ok(frame) = read(&mut from) {
        pause();
        if to.write_all(&frame).is_err() {
            break;
        }
        passed(&frame);
    }
    over();
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// One frame with its length before it (MS-SMB2 2.1).
fn read(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head) & 0x00ff_ffff;
    let mut frame = vec![0; 4 + length as usize];
    let (before, rest) = frame.split_at_mut(4);
    before.copy_from_slice(&head);
    from.read_exact(rest)?;
    Ok(frame)
}

/// Offsets in a frame, its length included.
const COMMAND: usize = 4 + 12;
const STATUS: usize = 4 + 8;
const MESSAGE_ID: usize = 4 + 24;
const CLIENT_GUID: usize = 4 + 64 + 12;
const STATUS_PENDING: [u8; 4] = 0x103_u32.to_le_bytes();
const SESSION_SETUP: u16 = 1;

fn field<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

/// Of a NEGOTIATE request.
fn client_guid(frame: &[u8]) -> Option<Guid> {
    let is_negotiate = field(frame, 4) == Some(*b"\xfeSMB") && field(frame, COMMAND) == Some([0, 0]);
    is_negotiate.then(|| field(frame, CLIENT_GUID)).flatten()
}

/// Whether this is the final answer to a request that needs a session. Nobody can save a login that is half done.
fn is_answer(frame: &[u8]) -> bool {
    if field(frame, 4) == Some(*b"\xfdSMB") {
        return true;
    }
    let command = field(frame, COMMAND).map_or(0, u16::from_le_bytes);
    let is_notification = field(frame, MESSAGE_ID) == Some([0xff; 8]);
    command > SESSION_SETUP && !is_notification && field(frame, STATUS) != Some(STATUS_PENDING)
}
