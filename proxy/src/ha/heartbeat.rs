//! Heartbeats: a proxy that stands by asks the leading one again and again, over one TCP connection.
//!
//! They only make it quick. They carry no secret and prove nothing to anybody who can forge TCP; whether a proxy leads is
//! known by the store.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use understudy_core::event::LegLoss;

use crate::net;

/// How often the leading proxy is asked.
const EVERY: Duration = Duration::from_millis(100);
/// Between attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);
/// Whoever asks nothing for this long is not waited for.
const IDLE: Duration = Duration::from_secs(10);
/// Connections that are answered at a time.
const ASKERS: usize = 64;
/// What begins each question and each answer.
const MAGIC: [u8; 8] = *b"USTDYHB\x01";
/// A question: the magic, and a number.
const QUESTION: usize = 16;
/// An answer: the magic, the same number, and who answers.
const ANSWER: usize = 24;

/// What heartbeats say of a leading proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its host says that the process is gone, or another one is in its place.
    Dead,
    /// It has answered before, and does not any more.
    Silent,
}

/// Answers, for ever. `askers`: how many connections there are.
pub(crate) async fn answer(listener: TcpListener, instance: u64, askers: Arc<AtomicUsize>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if askers.load(Ordering::SeqCst) < ASKERS => {
                let asker = Asker::new(Arc::clone(&askers));
                tokio::spawn(async move {
                    let _asker = asker;
                    // Whatever ends it, the other side asks again if it cares.
                    let _ = answer_one(stream, instance).await;
                });
            }
            Ok(_) => {}
            Err(_) => sleep(AGAIN).await,
        }
    }
}

/// One connection, counted.
struct Asker(Arc<AtomicUsize>);

impl Asker {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer_one(mut stream: TcpStream, instance: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0; QUESTION];
    loop {
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let (magic, number) = question.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let answer = [&MAGIC[..], number, &instance.to_be_bytes()].concat();
        stream.write_all(&answer).await?;
    }
}

/// Watches a leading proxy until it is dead or silent. Of one that never answered neither silence nor a refusal means anything:
/// the way to it may be cut, or a firewall may refuse in its name, and others may reach it. `heard`: whether it has ever
/// answered this process.
pub(crate) async fn watch(
    address: SocketAddr,
    instance: u64,
    silence: Duration,
    heard: &mut bool,
) -> Verdict {
    let mut last = Instant::now();
    loop {
        let patience = last + silence;
        match timeout_at(patience.max(Instant::now() + AGAIN), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                if let Some(verdict) = ask(stream, instance, silence, &mut last, heard).await {
                    return verdict;
                }
            }
            Ok(Err(error)) if *heard && net::loss(&error) == LegLoss::Refused => return Verdict::Dead,
            Ok(Err(_)) => sleep(AGAIN).await,
            Err(_) => {}
        }
        if last.elapsed() >= silence && *heard {
            return Verdict::Silent;
        }
    }
}

/// Asks on one connection. `None`: that is over, which means nothing yet.
async fn ask(
    mut stream: TcpStream,
    instance: u64,
    silence: Duration,
    last: &mut Instant,
    heard: &mut bool,
) -> Option<Verdict> {
    stream.set_nodelay(true).ok()?;
    for number in 0_u64.. {
        let next = Instant::now() + EVERY;
        let question = [MAGIC, number.to_be_bytes()].concat();
        let mut answer = [0; ANSWER];
        let exchange = async {
            stream.write_all(&question).await?;
            stream.read_exact(&mut answer).await
        };
        match timeout_at(*last + silence, exchange).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) if *heard => return Some(Verdict::Silent),
            // It was never heard, and is given another chance.
            Err(_) => {
                *last = Instant::now();
                return None;
            }
        }
        let (echo, by) = answer.split_at(QUESTION);
        if echo != question {
            return None;
        }
        if by != instance.to_be_bytes() {
            return Some(Verdict::Dead);
        }
        (*last, *heard) = (Instant::now(), true);
        sleep_until(next).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const SILENCE: Duration = Duration::from_millis(300);

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Watches until `askers` are counted, so that it is known to be heard soon.
    async fn until_asked(askers: &AtomicUsize) {
        while askers.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(EVERY * 2).await;
    }

    #[tokio::test]
    async fn a_process_that_ends_is_known_to_be_dead_at_once() {
        let (listener, address) = listener().await;
        let askers = Arc::new(AtomicUsize::new(0));
        let answering = tokio::spawn(answer(listener, 7, Arc::clone(&askers)));
        let watching = tokio::spawn(async move {
            let mut heard = false;
            (watch(address, 7, Duration::from_secs(30), &mut heard).await, heard)
        });
        until_asked(&askers).await;
        assert!(!watching.is_finished());
        answering.abort();
        let _ = answering.await;
        // The listener is gone; so is the connection, once its task has nobody to ask it.
        let died = Instant::now();
        assert_eq!(watch(address, 7, Duration::from_secs(30), &mut true).await, Verdict::Dead);
        assert!(died.elapsed() < Duration::from_secs(5));
        watching.abort();
    }

    #[tokio::test]
    async fn a_refusal_counts_after_an_answer_only() {
        let (listener, address) = listener().await;
        drop(listener);
        {
            let mut heard = false;
            let watching = pin!(watch(address, 7, SILENCE, &mut heard));
            assert!(timeout(SILENCE * 4, watching).await.is_err(), "a firewall may refuse in its name");
        }
        assert_eq!(watch(address, 7, SILENCE, &mut true).await, Verdict::Dead);
    }

    #[tokio::test]
    async fn another_process_in_its_place_means_that_it_is_dead() {
        let (listener, address) = listener().await;
        tokio::spawn(answer(listener, 8, Arc::default()));
        assert_eq!(watch(address, 7, SILENCE, &mut false).await, Verdict::Dead);
    }

    #[tokio::test]
    async fn silence_counts_after_an_answer_only() {
        // Accepts, and says nothing.
        let (mute, address) = listener().await;
        {
            let mut heard = false;
            let watching = pin!(watch(address, 7, SILENCE, &mut heard));
            assert!(timeout(SILENCE * 4, watching).await.is_err(), "it was never heard");
        }
        let began = Instant::now();
        assert_eq!(watch(address, 7, SILENCE, &mut true).await, Verdict::Silent);
        assert!(began.elapsed() >= SILENCE);
        drop(mute);
    }

    #[tokio::test]
    async fn one_that_stops_answering_is_silent() {
        let (listener, address) = listener().await;
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; QUESTION];
            for _ in 0..3 {
                stream.read_exact(&mut question).await.unwrap();
                let answer = [&question[..], &7_u64.to_be_bytes()].concat();
                stream.write_all(&answer).await.unwrap();
            }
            let stopped = Instant::now();
            sleep(Duration::from_secs(60)).await;
            drop((stream, listener, stopped));
        });
        let mut heard = false;
        assert_eq!(watch(address, 7, SILENCE, &mut heard).await, Verdict::Silent);
        assert!(heard);
        answering.abort();
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_not_answered() {
        let (listener, address) = listener().await;
        let askers = Arc::new(AtomicUsize::new(0));
        tokio::spawn(answer(listener, 7, Arc::clone(&askers)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // An end or a reset: but no answer.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
        while askers.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}
