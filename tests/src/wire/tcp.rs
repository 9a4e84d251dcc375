//! TCP streams from segments: what was sent twice is taken once, what was never captured is counted.

use std::collections::HashMap;

use super::pcap::Segment;

/// Bytes without a hole between them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) bytes: Vec<u8>,
    /// From which offset on the bytes are of which packet.
    marks: Vec<(usize, u64)>,
}

impl Run {
    /// The packet that completed the bytes of `range`: the latest of those that brought some of them.
    pub(crate) fn packet(&self, range: std::ops::Range<usize>) -> u64 {
        let first = self.marks.partition_point(|(at, _)| *at <= range.start).saturating_sub(1);
        let marks = self.marks.get(first..).unwrap_or_default();
        marks.iter().take_while(|(at, _)| *at < range.end).map(|(_, packet)| *packet).max().unwrap_or(0)
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    pub(crate) runs: Vec<Run>,
    pub(crate) gaps: usize,
    pub(crate) retransmitted: u64,
    segments: Vec<(i64, u64, Vec<u8>)>,
    origin: Option<u32>,
}

impl Direction {
    fn add(&mut self, segment: Segment) {
        let start = segment.seq.wrapping_add(u32::from(segment.syn));
        let origin = *self.origin.get_or_insert(start);
        // The distance from the last segment never exceeds half the sequence space.
        let last = self.segments.last().map_or(0, |(at, ..)| *at);
        let expected = origin.wrapping_add(last as u32);
        let at = last + i64::from(start.wrapping_sub(expected) as i32);
        if !segment.data.is_empty() {
            self.segments.push((at, segment.packet, segment.data));
        }
    }

    /// Puts the segments in order. A probe of a single byte that was never acknowledged loses to the data after it.
    fn assemble(&mut self) {
        let mut segments = std::mem::take(&mut self.segments);
        segments.sort_by_key(|(at, packet, _)| (*at, *packet));
        let mut next = None;
        for (at, packet, data) in segments {
            let expected = *next.get_or_insert(at);
            if at > expected {
                self.gaps += 1;
                self.runs.push(Run::default());
            } else if self.runs.is_empty() {
                self.runs.push(Run::default());
            }
            let known = usize::try_from(expected - at).unwrap_or(0).min(data.len());
            self.retransmitted += known as u64;
            let Some(run) = self.runs.last_mut() else { return };
            if known < data.len() {
                run.marks.push((run.bytes.len(), packet));
                run.bytes.extend_from_slice(&data[known..]);
                next = Some(at + data.len() as i64);
            }
        }
    }
}

/// A connection.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) to_server: Direction,
    pub(crate) to_client: Direction,
}

/// The connections to these ports, in order of their first segment.
pub(crate) fn streams(segments: Vec<Segment>, ports: &[u16]) -> Vec<Stream> {
    let mut streams: Vec<Stream> = Vec::new();
    let mut known = HashMap::new();
    for segment in segments {
        let to_server = ports.contains(&segment.to.1);
        if !to_server && !ports.contains(&segment.from.1) {
            continue;
        }
        let key = if to_server { (segment.from, segment.to) } else { (segment.to, segment.from) };
        let fresh = |streams: &mut Vec<Stream>| {
            streams.push(Stream::default());
            streams.len() - 1
        };
        let index = *known.entry(key).or_insert_with(|| fresh(&mut streams));
        // The same ports once more: a SYN with another number begins another connection.
        let start = segment.seq.wrapping_add(1);
        let again = segment.syn && to_server && streams[index].to_server.origin.is_some_and(|o| o != start);
        let index = if again { fresh(&mut streams) } else { index };
        known.insert(key, index);
        let stream = &mut streams[index];
        if to_server { stream.to_server.add(segment) } else { stream.to_client.add(segment) }
    }
    for stream in &mut streams {
        stream.to_server.assemble();
        stream.to_client.assemble();
    }
    streams
}
