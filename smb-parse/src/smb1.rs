//! The one SMB1 message that an SMB2 server is sent: the multi-protocol NEGOTIATE (MS-SMB2 3.3.5.3, MS-CIFS 2.2.4.52.1).

use crate::{ParseError, read::Reader};

/// SMB_COM_NEGOTIATE.
const NEGOTIATE: u8 = 0x72;
/// Length of the SMB1 header.
const HEADER: usize = 32;
/// What each dialect begins with.
const DIALECT: u8 = 0x02;

/// An SMB1 NEGOTIATE Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiate<'a> {
    dialects: &'a [u8],
}

impl<'a> Negotiate<'a> {
    /// Reads the body of a frame whose protocol is [`Smb1`](crate::frame::Protocol::Smb1).
    ///
    /// # Errors
    /// It is cut, or not a NEGOTIATE.
    pub fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(body);
        r.skip(4)?;
        let error = r.error("Command");
        if r.u8("Command")? != NEGOTIATE {
            return Err(error);
        }
        r.bytes("Header", HEADER - 5)?;
        let words = r.u8("WordCount")?;
        r.bytes("Words", usize::from(words) * 2)?;
        let count = r.u16("ByteCount")?;
        Ok(Self { dialects: r.bytes("Dialects", count.into())? })
    }

    /// The names of the dialects offered, in order. Ends at the first that has no end.
    pub fn dialects(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.dialects;
        std::iter::from_fn(move || {
            let [DIALECT, name @ ..] = rest else { return None };
            let end = name.iter().position(|byte| *byte == 0)?;
            rest = name.get(end + 1..).unwrap_or_default();
            name.get(..end)
        })
    }

    /// Whether the client would go on by SMB2 (MS-SMB2 3.3.5.3.1, 3.3.5.3.2).
    pub fn offers_smb2(&self) -> bool {
        self.dialects().any(|name| matches!(name, b"SMB 2.002" | b"SMB 2.???"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dialects: &[u8]) -> Vec<u8> {
        let mut body = vec![0; HEADER];
        body[..5].copy_from_slice(b"\xffSMB\x72");
        body.push(0);
        body.extend(u16::try_from(dialects.len()).unwrap().to_le_bytes());
        body.extend(dialects);
        body
    }

    #[test]
    fn the_dialects_are_found() {
        let body = request(b"\x02NT LM 0.12\0\x02SMB 2.002\0\x02SMB 2.???\0");
        let negotiate = Negotiate::parse(&body).unwrap();
        assert_eq!(
            negotiate.dialects().collect::<Vec<_>>(),
            [&b"NT LM 0.12"[..], b"SMB 2.002", b"SMB 2.???"]
        );
        assert!(negotiate.offers_smb2());
        for len in 0..body.len() {
            assert!(Negotiate::parse(&body[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_name_without_end_is_none() {
        for dialects in [&b"\x02NT LM 0.12\0\x02SMB 2.002"[..], b"\x02NT LM 0.12\0SMB 2.002\0"] {
            let body = request(dialects);
            let negotiate = Negotiate::parse(&body).unwrap();
            assert_eq!(negotiate.dialects().collect::<Vec<_>>(), [b"NT LM 0.12"]);
            assert!(!negotiate.offers_smb2());
        }
    }

    #[test]
    fn another_command_is_an_error() {
        let mut body = request(b"\x02SMB 2.002\0");
        body[4] = 0x73;
        assert_eq!(Negotiate::parse(&body).map_err(|e| (e.field, e.at)), Err(("Command", 4)));
    }
}
