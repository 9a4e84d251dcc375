//! Kerberos' tokens of GSS-API (RFC 4121): framing, the checksum of an authenticator, and message signatures.

use der::{Encode, Tag, TagNumber, asn1::ObjectIdentifier};

use super::crypto::{Key, Usage};
use crate::auth::spnego;

/// Kerberos V5 (RFC 1964 1).
pub(crate) const KRB5: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113554.1.2.2");
/// The same, as Windows 2000 misspelled it (MS-SPNG 1.9).
const KRB5_MS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.48018.1.2.2");
/// TOK_ID of an AP-REQ (RFC 4121 4.1).
const AP_REQ: [u8; 2] = [1, 0];
/// TOK_ID of an AP-REP.
const AP_REP: [u8; 2] = [2, 0];

/// What the peer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// The client's AP-REQ.
    ApReq(&'a [u8]),
    /// The node's AP-REP.
    ApRep(&'a [u8]),
}

/// Reads a token, with the header of GSS-API or without. `None` if it is neither of the two messages.
pub(crate) fn parse(token: &[u8]) -> Option<Token<'_>> {
    match token.first()? {
        // [APPLICATION 14] and [APPLICATION 15], bare.
        0x6e => Some(Token::ApReq(token)),
        0x6f => Some(Token::ApRep(token)),
        _ => {
            let (mechanism, rest) = spnego::mechanism(token)?;
            if mechanism != KRB5 && mechanism != KRB5_MS {
                return None;
            }
            match rest.split_at_checked(2)? {
                (id, message) if id == AP_REQ => Some(Token::ApReq(message)),
                (id, message) if id == AP_REP => Some(Token::ApRep(message)),
                _ => None,
            }
        }
    }
}

/// An AP-REQ with the header of GSS-API (RFC 2743 3.1).
pub(crate) fn wrap_ap_req(message: &[u8]) -> Option<Vec<u8>> {
    let body = [&KRB5.to_der().ok()?[..], &AP_REQ, message].concat();
    let tag = Tag::Application { constructed: true, number: TagNumber(0) };
    let header = der::Header::new(tag, der::Length::try_from(body.len()).ok()?).to_der().ok()?;
    Some([header, body].concat())
}

/// The type of [`checksum`] (RFC 4121 4.1.1).
pub(crate) const CHECKSUM_TYPE: i64 = 0x8003;

/// The "checksum" of an authenticator (RFC 4121 4.1.1): no channel bindings, and the flags that clients of SMB give:
/// mutual authentication, replay and sequence detection, confidentiality, integrity.
pub(crate) fn checksum() -> [u8; 24] {
    const FLAGS: u32 = 0x02 | 0x04 | 0x08 | 0x10 | 0x20;
    let mut out = [0; 24];
    let (head, flags) = out.split_at_mut(20);
    if let Some(length) = head.get_mut(..4) {
        length.copy_from_slice(&16_u32.to_le_bytes());
    }
    flags.copy_from_slice(&FLAGS.to_le_bytes());
    out
}

/// Who made a signature, and with whose key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signer {
    /// The node, not the client.
    pub(crate) acceptor: bool,
    /// By the subkey that the node chose.
    pub(crate) acceptor_subkey: bool,
}

const MIC_HEADER: usize = 16;

/// A MIC token (RFC 4121 4.2.6.1). `None` if the key's type has no such tokens (RC4 has others, RFC 4757 7.2).
pub(crate) fn mic(key: &Key, signer: Signer, sequence: u64, data: &[u8]) -> Option<Vec<u8>> {
    let flags = u8::from(signer.acceptor) | u8::from(signer.acceptor_subkey) << 2;
    let mut out = vec![4, 4, flags, 0xff, 0xff, 0xff, 0xff, 0xff];
    out.extend_from_slice(&sequence.to_be_bytes());
    let sum = key.checksum(usage(signer.acceptor), &[data, &out])?;
    out.extend_from_slice(&sum);
    Some(out)
}

/// Whether `token` is a MIC of the node over the data. `None` if the key's type has no such tokens.
pub(crate) fn verify_mic(key: &Key, data: &[u8], token: &[u8]) -> Option<bool> {
    key.checksum(Usage::ACCEPTOR_SIGN, &[])?;
    let Some((header, sum)) = token.split_at_checked(MIC_HEADER) else { return Some(false) };
    let of_acceptor = header.starts_with(&[4, 4]) && header.get(2).is_some_and(|flags| flags & 1 != 0);
    Some(of_acceptor && key.verify_checksum(usage(true), &[data, header], sum))
}

fn usage(acceptor: bool) -> Usage {
    if acceptor { Usage::ACCEPTOR_SIGN } else { Usage::INITIATOR_SIGN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::kerberos::crypto::EncType;

    #[test]
    fn framed_or_bare() {
        let message = [0x6e, 3, 1, 2, 3];
        let framed = wrap_ap_req(&message).unwrap();
        assert_eq!(parse(&framed), Some(Token::ApReq(&message)));
        assert_eq!(parse(&message), Some(Token::ApReq(&message)));
        for cut in 0..framed.len() {
            assert_ne!(parse(&framed[..cut]), Some(Token::ApReq(&message)));
        }
        assert_eq!(parse(b"NTLMSSP\0"), None);
    }

    #[test]
    fn a_signature_is_of_its_maker() {
        let key = Key::new(EncType::Aes256Sha1, &[7; 32]).unwrap();
        let node = Signer { acceptor: true, acceptor_subkey: true };
        let made = mic(&key, node, 5, b"list").unwrap();
        assert_eq!(made.len(), 28);
        assert_eq!(verify_mic(&key, b"list", &made), Some(true));
        assert_eq!(verify_mic(&key, b"lisp", &made), Some(false));
        let client = mic(&key, Signer { acceptor: false, acceptor_subkey: true }, 5, b"list").unwrap();
        assert_eq!(verify_mic(&key, b"list", &client), Some(false));
        assert_eq!(verify_mic(&Key::new(EncType::Rc4, &[7; 16]).unwrap(), b"list", &made), None);
    }
}
