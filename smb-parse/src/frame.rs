//! Direct-TCP framing (MS-SMB2 2.1) and the protocols that may stand in a frame.

/// Bytes before the message: a zero and the length as 24 bits, big endian.
pub const PREFIX: usize = 4;
/// The largest body that the prefix can announce.
pub const MAX_LEN: usize = 0x00ff_ffff;

/// A prefix that no SMB client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is not 0: NetBIOS session requests, TLS, HTTP and noise.
    #[error("the stream is not SMB over TCP: first byte {0:#04x}")]
    NotDirectTcp(u8),
}

/// The length of a whole frame, prefix included.
#[inline]
pub fn frame_len(prefix: [u8; PREFIX]) -> Result<usize, FrameError> {
    match prefix {
        [0, high, mid, low] => {
            Ok(PREFIX + (usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low)))
        }
        [first, ..] => Err(FrameError::NotDirectTcp(first)),
    }
}

/// Writes the prefix for a body of this length into the first 4 bytes, if they are there.
#[inline]
pub fn write_prefix(buf: &mut [u8], body_len: usize) {
    let length = u32::try_from(body_len.min(MAX_LEN)).unwrap_or(0).to_be_bytes();
    if let Some(prefix) = buf.get_mut(..PREFIX) {
        prefix.copy_from_slice(&length);
    }
}

/// What a frame carries, by its ProtocolId.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A plain SMB2 message or compound.
    Smb2,
    /// SMB1: only ever a multi-protocol NEGOTIATE (MS-SMB2 3.3.5.3).
    Smb1,
    /// A sealed message (2.2.41).
    Transform,
    /// A compressed message (2.2.42).
    Compression,
    /// None of these.
    Unknown,
}

/// The protocol of a body.
#[inline]
pub fn protocol(body: &[u8]) -> Protocol {
    match body {
        [0xfe, b'S', b'M', b'B', ..] => Protocol::Smb2,
        [0xff, b'S', b'M', b'B', ..] => Protocol::Smb1,
        [0xfd, b'S', b'M', b'B', ..] => Protocol::Transform,
        [0xfc, b'S', b'M', b'B', ..] => Protocol::Compression,
        _ => Protocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_read_as_written() {
        for len in [0, 1, 64, 0xffff, 0x1_0000, MAX_LEN] {
            let mut prefix = [0xaa; PREFIX];
            write_prefix(&mut prefix, len);
            assert_eq!(frame_len(prefix), Ok(PREFIX + len));
        }
        assert_eq!(frame_len(*b"GET "), Err(FrameError::NotDirectTcp(b'G')));
    }
}
