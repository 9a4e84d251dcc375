//! SMB2 TRANSFORM_HEADER (MS-SMB2 2.2.41).

use crate::{ParseError, read::Reader};

/// The header of a sealed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The authentication tag.
    pub signature: [u8; 16],
    /// 11 bytes count for CCM, 12 for GCM.
    pub nonce: [u8; 16],
    /// Length of the plain message.
    pub original_size: u32,
    /// 1: encrypted. In 3.0 the same field names the algorithm.
    pub flags: u16,
    /// Whose keys.
    pub session_id: u64,
}

/// The Flags value of a sealed message in 3.1.1, and the EncryptionAlgorithm value in 3.0 and 3.0.2.
pub const ENCRYPTED: u16 = 0x0001;

impl Header {
    /// Length on the wire.
    pub const LEN: usize = 52;

    /// Reads the header at the front of a frame's body.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(body);
        r.bytes("ProtocolId", 4)?;
        let (signature, nonce) = (r.array("Signature")?, r.array("Nonce")?);
        let original_size = r.u32("OriginalMessageSize")?;
        r.u16("Reserved")?;
        Ok(Self { signature, nonce, original_size, flags: r.u16("Flags")?, session_id: r.u64("SessionId")? })
    }

    /// The header as it goes on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let fields: [&[u8]; 7] = [
            b"\xfdSMB",
            &self.signature,
            &self.nonce,
            &self.original_size.to_le_bytes(),
            &[0; 2],
            &self.flags.to_le_bytes(),
            &self.session_id.to_le_bytes(),
        ];
        for (to, from) in out.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_and_every_cut_is_an_error() {
        let body = [
            &b"\xfdSMB"[..],
            &[1; 16],
            &[2; 16],
            &[3, 0, 0, 0],
            &[9; 2],
            &[4, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
            b"sealed",
        ]
        .concat();
        let wanted = Header { signature: [1; 16], nonce: [2; 16], original_size: 3, flags: 4, session_id: 5 };
        assert_eq!(Header::parse(&body), Ok(wanted));
        assert_eq!(Header::parse(&wanted.to_bytes()), Ok(wanted));
        for len in 0..Header::LEN {
            assert!(Header::parse(&body[..len]).is_err(), "{len}");
        }
    }
}
