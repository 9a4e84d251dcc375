//! Capture files, classic pcap and pcapng, down to TCP segments.

use std::net::IpAddr;

/// A TCP segment of a capture.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The packet's number in the file, from 1.
    pub(crate) packet: u64,
    pub(crate) from: (IpAddr, u16),
    pub(crate) to: (IpAddr, u16),
    pub(crate) seq: u32,
    pub(crate) syn: bool,
    pub(crate) data: Vec<u8>,
}

/// Packets and what of them was TCP.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) packets: u64,
    pub(crate) segments: Vec<Segment>,
}

impl Capture {
    /// Reads a file of either format. Ends where the file is cut.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut capture = Self::default();
        match bytes.first_chunk::<4>().copied() {
            Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => {
                capture.classic(bytes, Endian::Little)
            }
            Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => capture.classic(bytes, Endian::Big),
            Some([0x0a, 0x0d, 0x0d, 0x0a]) => capture.next_generation(bytes),
            _ => return Err("neither pcap nor pcapng".into()),
        }
        Ok(capture)
    }

    fn classic(&mut self, bytes: &[u8], endian: Endian) {
        let Some(link) = endian.u32(bytes, 20) else { return };
        let mut at = 24;
        while let Some(len) = endian.u32(bytes, at + 8) {
            let Some(packet) = slice(bytes, at + 16, len as usize) else { return };
            self.packet(link & 0xffff, packet);
            at += 16 + len as usize;
        }
    }

    /// Section headers, interfaces, enhanced, simple and obsolete packets; other blocks are stepped over.
    fn next_generation(&mut self, bytes: &[u8]) {
        let mut endian = Endian::Little;
        let mut links = Vec::new();
        let mut at = 0;
        while let Some(kind) = endian.u32(bytes, at) {
            if kind == 0x0a0d_0d0a {
                endian = if Endian::Little.u32(bytes, at + 8) == Some(0x1a2b_3c4d) {
                    Endian::Little
                } else {
                    Endian::Big
                };
                links.clear();
            }
            let Some(len) = endian.u32(bytes, at + 4).map(|len| len as usize).filter(|len| *len >= 12) else {
                return;
            };
            let Some(block) = slice(bytes, at, len) else { return };
            let link = |interface: u32| links.get(interface as usize).copied().unwrap_or(u32::MAX);
            let packet = match kind {
                1 => {
                    links.push(endian.u32(block, 8).unwrap_or(u32::MAX) & 0xffff);
                    None
                }
                2 => endian.u32(block, 8).map(|i| (link(i & 0xffff), 28, endian.u32(block, 20))),
                3 => Some((link(0), 12, endian.u32(block, 8).map(|n| n.min(len as u32 - 16)))),
                6 => endian.u32(block, 8).map(|i| (link(i), 28, endian.u32(block, 20))),
                _ => None,
            };
            if let Some((link, from, Some(captured))) = packet
                && let Some(packet) = slice(block, from, captured as usize)
            {
                self.packet(link, packet);
            }
            at += len;
        }
    }

    fn packet(&mut self, link: u32, packet: &[u8]) {
        self.packets += 1;
        if let Some(segment) = ip_of(link, packet).and_then(|ip| tcp(self.packets, ip)) {
            self.segments.push(segment);
        }
    }
}

/// Byte order of a file.
#[derive(Debug, Clone, Copy)]
enum Endian {
    Little,
    Big,
}

impl Endian {
    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let raw = bytes.get(at..)?.first_chunk().copied()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(raw),
            Self::Big => u32::from_be_bytes(raw),
        })
    }
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// The IP packet behind the header of the link layer.
fn ip_of(link: u32, packet: &[u8]) -> Option<&[u8]> {
    match link {
        // BSD loopback.
        0 | 108 => packet.get(4..),
        1 => {
            let mut at = 12;
            while matches!(be16(packet, at)?, 0x8100 | 0x88a8) {
                at += 4;
            }
            matches!(be16(packet, at)?, 0x0800 | 0x86dd).then_some(packet.get(at + 2..)?)
        }
        12 | 101 | 228 | 229 => Some(packet),
        // Linux "any", both versions.
        113 => packet.get(16..),
        276 => packet.get(20..),
        _ => None,
    }
}

fn tcp(number: u64, ip: &[u8]) -> Option<Segment> {
    let (from, to, payload) = match ip.first()? >> 4 {
        4 => {
            let fragment = be16(ip, 6)? & 0x3fff != 0;
            let header = usize::from(ip.first()? & 0x0f) * 4;
            // 0: left to the network card when it was captured.
            let total = Some(usize::from(be16(ip, 2)?)).filter(|total| *total != 0).unwrap_or(ip.len());
            let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<4>()?));
            (*ip.get(9)? == 6 && !fragment).then_some(())?;
            (address(12)?, address(16)?, ip.get(header..total.min(ip.len()))?)
        }
        6 => {
            let total = Some(40 + usize::from(be16(ip, 4)?)).filter(|total| *total != 40).unwrap_or(ip.len());
            let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<16>()?));
            (*ip.get(6)? == 6).then_some(())?;
            (address(8)?, address(24)?, ip.get(40..total.min(ip.len()))?)
        }
        _ => return None,
    };
    let header = usize::from(payload.get(12)? >> 4) * 4;
    Some(Segment {
        packet: number,
        from: (from, be16(payload, 0)?),
        to: (to, be16(payload, 2)?),
        seq: Endian::Big.u32(payload, 4)?,
        syn: payload.get(13)? & 0x02 != 0,
        data: payload.get(header..)?.to_vec(),
    })
}
