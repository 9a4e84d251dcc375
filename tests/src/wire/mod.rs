//! Captured traffic: from capture files to SMB2 messages, and what two readers make of them.

pub(crate) mod captures;
mod facts;
mod fields;
pub(crate) mod interims;
mod pcap;
mod pdml;
mod tcp;
pub(crate) mod tshark;

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use smb_parse::frame::PREFIX;

const PORTS: [u16; 2] = [445, 139];

/// What a capture file holds.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) packets: u64,
    pub(crate) streams: usize,
    /// Holes in the streams.
    pub(crate) gaps: usize,
    /// Bytes before the first frame after a hole, or that no frame ended.
    pub(crate) skipped: usize,
    pub(crate) retransmitted: u64,
    /// By the packets that completed them; those of one packet in the order of its stream.
    pub(crate) frames: Vec<Frame>,
}

/// One frame of a stream.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The packet that completed it, from 1.
    pub(crate) packet: u64,
    pub(crate) stream: usize,
    /// What follows the prefix.
    pub(crate) body: Vec<u8>,
}

impl Capture {
    /// Reads a file, whichever its format.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let file = pcap::Capture::read(&bytes).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let mut capture = Self { packets: file.packets, ..Self::default() };
        for (index, stream) in tcp::streams(file.segments, &PORTS).iter().enumerate() {
            capture.streams += 1;
            for direction in [&stream.to_server, &stream.to_client] {
                capture.gaps += direction.gaps;
                capture.retransmitted += direction.retransmitted;
                direction.runs.iter().for_each(|run| capture.run(index, run));
            }
        }
        capture.frames.sort_by_key(|frame| frame.packet);
        Ok(capture)
    }

    fn run(&mut self, stream: usize, run: &tcp::Run) {
        let mut at = 0;
        while let Some(rest) = run.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(len) = plausible(rest) else {
                self.skipped += 1;
                at += 1;
                continue;
            };
            let Some(body) = rest.get(PREFIX..len) else {
                self.skipped += rest.len();
                break;
            };
            self.frames.push(Frame { packet: run.packet(at..at + len), stream, body: body.to_vec() });
            at += len;
        }
    }
}

/// The length of the frame that begins here, if one does: a stream may be captured from its middle on, and go on after
/// a hole. NetBIOS session packets (RFC 1002 4.3.1) count as frames.
fn plausible(bytes: &[u8]) -> Option<usize> {
    let &[kind, high, mid, low] = bytes.first_chunk()?;
    let len = PREFIX + (usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low));
    match (kind, bytes.get(PREFIX..).unwrap_or_default()) {
        (0, [0xfc..=0xff, b'S', b'M', b'B', ..]) => Some(len),
        (0x81..=0x85, _) if high == 0 && len <= PREFIX + 72 => Some(len),
        _ => None,
    }
}
