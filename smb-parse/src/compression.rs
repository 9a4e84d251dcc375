//! SMB2 COMPRESSION_TRANSFORM_HEADER (MS-SMB2 2.2.42). Told apart from others and read; nothing here decompresses.

use crate::{ParseError, read::Reader};

/// `SMB2_COMPRESSION_FLAG_CHAINED`.
pub const CHAINED: u16 = 0x0001;

/// The header of a compressed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// OriginalCompressedSegmentSize.
    pub original_size: u32,
    /// CompressionAlgorithm (2.2.3.1.3); in the chained form that of the first payload.
    pub algorithm: u16,
    /// [`CHAINED`] or 0.
    pub flags: u16,
    /// Unchained how many bytes before the compressed data are plain; chained the Length of the first payload.
    pub offset_or_length: u32,
}

impl Header {
    /// Length on the wire.
    pub const LEN: usize = 16;

    /// Reads the header at the front of a frame's body.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(body);
        r.bytes("ProtocolId", 4)?;
        Ok(Self {
            original_size: r.u32("OriginalCompressedSegmentSize")?,
            algorithm: r.u16("CompressionAlgorithm")?,
            flags: r.u16("Flags")?,
            offset_or_length: r.u32("Offset")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let body = [0xfc, b'S', b'M', b'B', 1, 2, 0, 0, 3, 0, 1, 0, 4, 0, 0, 0];
        let wanted = Header { original_size: 0x201, algorithm: 3, flags: CHAINED, offset_or_length: 4 };
        assert_eq!(Header::parse(&body), Ok(wanted));
        for len in 0..Header::LEN {
            assert!(Header::parse(&body[..len]).is_err());
        }
    }
}
