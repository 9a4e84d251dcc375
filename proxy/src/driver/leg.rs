//! One TCP connection as a sequence of whole frames, each way.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Buf, Bytes, BytesMut};
use smb_parse::frame::{PREFIX, frame_len};
use tokio::{io::AsyncWrite, net::TcpStream};
use tokio_util::io::poll_read_buf;

/// The read buffer while frames are small: many of them, and of a size that the allocator keeps at hand.
const CHUNK: usize = 16 << 10;
/// Below this much free space a new chunk is begun.
const LOW: usize = 4 << 10;
/// How many frames one write takes.
const SLICES: usize = 32;

/// A connection, with what is half read and what is not yet written.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) stream: TcpStream,
    buf: BytesMut,
    /// The length of the frame that is being read, once its prefix is there.
    frame: Option<usize>,
    /// How large the next read buffer is: a bulk frame mostly follows another, and is then read into its place.
    chunk: usize,
    queue: VecDeque<Bytes>,
    queued: usize,
    /// When the last byte of a half frame came.
    progress: Option<Instant>,
    /// It is we who do not read on.
    paused: bool,
}

/// What a read came to.
#[derive(Debug)]
pub(crate) enum Input {
    /// A whole frame, prefix included.
    Frame(BytesMut),
    /// The peer will send nothing more.
    End,
    /// What comes is no SMB, or more than is taken.
    Garbage,
}

impl Leg {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buf: BytesMut::new(),
            frame: None,
            chunk: CHUNK,
            queue: VecDeque::new(),
            queued: 0,
            progress: None,
            paused: false,
        }
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Since when the peer owes the rest of a frame.
    pub(crate) fn partial_since(&self) -> Option<Instant> {
        self.progress.filter(|_| !self.paused && !self.buf.is_empty())
    }

    /// The peer is not read until [`Self::poll_frame`] is called again: it owes nothing for that time.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    /// The next frame that is whole already.
    fn take_frame(&mut self, limit: usize) -> Option<Input> {
        if self.frame.is_none() {
            let prefix: [u8; PREFIX] = self.buf.get(..PREFIX)?.try_into().ok()?;
            match frame_len(prefix) {
                Ok(len) if len <= limit => self.frame = Some(len),
                _ => return Some(Input::Garbage),
            }
        }
        let len = self.frame.filter(|len| self.buf.len() >= *len)?;
        self.frame = None;
        self.chunk = len.max(CHUNK);
        Some(Input::Frame(self.buf.split_to(len)))
    }

    /// Reads until a frame of at most `limit` bytes is whole. `now` is when that is tried.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
        now: Instant,
        read: &mut usize,
    ) -> Poll<io::Result<Input>> {
        if std::mem::take(&mut self.paused) {
            self.progress = self.progress.map(|_| now);
        }
        loop {
            if let Some(input) = self.take_frame(limit) {
                return Poll::Ready(Ok(input));
            }
            if self.buf.is_empty() {
                // An idle connection holds no buffer.
                self.buf = BytesMut::new();
                self.progress = None;
                ready!(self.stream.poll_read_ready(cx))?;
            }
            self.make_room();
            let count = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buf))?;
            if count == 0 {
                return Poll::Ready(Ok(Input::End));
            }
            *read += count;
            self.progress = Some(now);
        }
    }

    /// Room for the whole of a frame that is begun; else for whatever comes.
    fn make_room(&mut self) {
        let room = self.buf.capacity() - self.buf.len();
        match self.frame {
            Some(len) if len - self.buf.len() > room => self.buf.reserve(len - self.buf.len()),
            None if room < LOW => self.buf.reserve(self.chunk),
            _ => {}
        }
    }

    /// A frame to be written after those before it.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.queued += frame.len();
        self.queue.push_back(frame);
    }

    /// Writes what is queued, as far as the socket takes it. Ready when nothing is left.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, written: &mut usize) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slot, frame) in slices.iter_mut().zip(&self.queue) {
                *slot = IoSlice::new(frame);
                used += 1;
            }
            let slices = slices.get(..used).unwrap_or_default();
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
            self.wrote(count);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut count: usize) {
        self.queued -= count;
        while let Some(front) = self.queue.front_mut().filter(|_| count > 0) {
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_half_frame_does_not_age_while_we_do_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut leg = Leg::new(listener.accept().await.unwrap().0);
        peer.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
        let begun = Instant::now();
        let later = begun + Duration::from_secs(100);
        let poll_at = async |now: Instant, leg: &mut Leg| {
            poll_fn(|cx| Poll::Ready(leg.poll_frame(cx, 64, now, &mut 0).is_ready())).await
        };
        leg.stream.readable().await.unwrap();
        assert!(!poll_at(begun, &mut leg).await);
        assert_eq!(leg.partial_since(), Some(begun));
        leg.pause();
        assert_eq!(leg.partial_since(), None);
        assert!(!poll_at(later, &mut leg).await);
        assert_eq!(leg.partial_since(), Some(later));
    }
}
