//! SPNEGO (RFC 4178, MS-SPNG): the wrapping around the mechanism's own tokens.

use super::kerberos::KRB5;
use der::{
    Decode, Encode, Enumerated, Reader, Sequence, SliceReader, Tag, TagNumber,
    asn1::{AnyRef, BitStringRef, ContextSpecific, ObjectIdentifier, OctetStringRef},
};

/// SPNEGO itself, in the GSS-API header (RFC 2743 3.1).
const SPNEGO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.2");
/// NTLMSSP as an SPNEGO mechanism.
const NTLMSSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.2.10");

/// A mechanism that a client of ours offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mech {
    /// NTLMSSP
    Ntlm,
    /// Kerberos V5
    Kerberos,
}

impl Mech {
    fn oid(self) -> ObjectIdentifier {
        match self {
            Self::Ntlm => NTLMSSP,
            Self::Kerberos => KRB5,
        }
    }
}

/// negTokenInit; negTokenInit2 of MS-SPNG 2.2.1 has the hints where the RFC has the MIC.
#[derive(Sequence)]
struct NegTokenInit<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    mech_types: Vec<ObjectIdentifier>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    req_flags: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    mech_token: Option<&'a OctetStringRef>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    hints_or_mic: Option<AnyRef<'a>>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT", optional = "true")]
    mic: Option<&'a OctetStringRef>,
}

/// The state of the negotiation (RFC 4178 4.2.2).
#[derive(Enumerated, Debug, Clone, Copy, PartialEq, Eq)]
#[asn1(type = "ENUMERATED")]
#[repr(u32)]
enum NegState {
    AcceptCompleted = 0,
    AcceptIncomplete = 1,
    Reject = 2,
    RequestMic = 3,
}

#[derive(Sequence)]
struct NegTokenResp<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    neg_state: Option<NegState>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    supported_mech: Option<ObjectIdentifier>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    response_token: Option<&'a OctetStringRef>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    mech_list_mic: Option<&'a OctetStringRef>,
}

/// What is in a security buffer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Unwrapped<'a> {
    /// The mechanism's own token.
    pub token: Option<&'a [u8]>,
    /// mechListMIC.
    pub mic: Option<&'a [u8]>,
    /// The peer refuses.
    pub rejected: bool,
}

/// Takes the wrapping off: GSS-API header with negTokenInit, bare negTokenInit or negTokenResp, or no wrapping at all.
/// What is none of these gives an empty answer.
pub fn unwrap(buffer: &[u8]) -> Unwrapped<'_> {
    match buffer.first() {
        Some(0x60) => match mechanism(buffer) {
            Some((SPNEGO, rest)) => inner(rest),
            // Another mechanism's own token.
            Some(_) => Unwrapped { token: Some(buffer), ..Unwrapped::default() },
            None => Unwrapped::default(),
        },
        Some(0xa0 | 0xa1) => inner(buffer),
        Some(_) => Unwrapped { token: Some(buffer), ..Unwrapped::default() },
        None => Unwrapped::default(),
    }
}

/// thisMech and what is behind it, of `[APPLICATION 0] { thisMech, innerToken }` (RFC 2743 3.1).
pub(crate) fn mechanism(buffer: &[u8]) -> Option<(ObjectIdentifier, &[u8])> {
    let mut reader = SliceReader::new(buffer).ok()?;
    let header = der::Header::decode(&mut reader).ok()?;
    let is_token = header.tag() == Tag::Application { constructed: true, number: TagNumber(0) };
    if !is_token || header.length() != reader.remaining_len() {
        return None;
    }
    let oid = ObjectIdentifier::decode(&mut reader).ok()?;
    let rest = usize::try_from(reader.remaining_len()).ok()?;
    Some((oid, buffer.get(buffer.len().checked_sub(rest)?..)?))
}

fn inner(buffer: &[u8]) -> Unwrapped<'_> {
    if let Ok(init) = ContextSpecific::<NegTokenInit<'_>>::from_der(buffer)
        && init.tag_number == TagNumber(0)
    {
        let token = init.value.mech_token.map(OctetStringRef::as_bytes);
        return Unwrapped { token, mic: init.value.mic.map(OctetStringRef::as_bytes), rejected: false };
    }
    if let Ok(resp) = ContextSpecific::<NegTokenResp<'_>>::from_der(buffer)
        && resp.tag_number == TagNumber(1)
    {
        return Unwrapped {
            token: resp.value.response_token.map(OctetStringRef::as_bytes),
            mic: resp.value.mech_list_mic.map(OctetStringRef::as_bytes),
            rejected: resp.value.neg_state == Some(NegState::Reject),
        };
    }
    Unwrapped::default()
}

/// The mechanism list of [`init`] in DER: what mechListMIC is computed over.
pub fn mech_list(mech: Mech) -> Vec<u8> {
    vec![mech.oid()].to_der().unwrap_or_default()
}

/// A first token that offers one mechanism alone, with its first message.
pub fn init(mech: Mech, token: &[u8]) -> Vec<u8> {
    encode_init(mech, token).unwrap_or_default()
}

fn encode_init(mech: Mech, token: &[u8]) -> der::Result<Vec<u8>> {
    let init = NegTokenInit {
        mech_types: vec![mech.oid()],
        req_flags: None,
        mech_token: Some(OctetStringRef::new(token)?),
        hints_or_mic: None,
        mic: None,
    };
    let inner = explicit(0, init)?;
    let mut body = SPNEGO.to_der()?;
    body.extend_from_slice(&inner);
    let tag = Tag::Application { constructed: true, number: TagNumber(0) };
    let mut out = der::Header::new(tag, der::Length::try_from(body.len())?).to_der()?;
    out.extend_from_slice(&body);
    Ok(out)
}

/// A further token: the mechanism's next message, and the mechListMIC if it is the last.
pub fn response(token: &[u8], mic: Option<&[u8]>) -> Vec<u8> {
    encode_response(Some(token), mic).unwrap_or_default()
}

/// The last token of a mechanism that has no more to say: the mechListMIC alone.
pub fn last(mic: &[u8]) -> Vec<u8> {
    encode_response(None, Some(mic)).unwrap_or_default()
}

fn encode_response(token: Option<&[u8]>, mic: Option<&[u8]>) -> der::Result<Vec<u8>> {
    explicit(
        1,
        NegTokenResp {
            neg_state: None,
            supported_mech: None,
            response_token: token.map(OctetStringRef::new).transpose()?,
            mech_list_mic: mic.map(OctetStringRef::new).transpose()?,
        },
    )
}

fn explicit<T: der::EncodeValue + der::Tagged>(number: u32, value: T) -> der::Result<Vec<u8>> {
    ContextSpecific { tag_number: TagNumber(number), tag_mode: der::TagMode::Explicit, value }.to_der()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tokens_come_back() {
        let first = init(Mech::Ntlm, b"NTLMSSP\0one");
        assert_eq!(first[0], 0x60);
        assert_eq!(unwrap(&first).token, Some(&b"NTLMSSP\0one"[..]));
        let last = response(b"NTLMSSP\0three", Some(b"0123456789abcdef"));
        assert_eq!(last[0], 0xa1);
        let got = unwrap(&last);
        assert_eq!((got.token, got.mic), (Some(&b"NTLMSSP\0three"[..]), Some(&b"0123456789abcdef"[..])));
    }

    #[test]
    fn a_raw_token_is_itself_and_damage_is_nothing() {
        assert_eq!(unwrap(b"NTLMSSP\0").token, Some(&b"NTLMSSP\0"[..]));
        let first = init(Mech::Ntlm, b"NTLMSSP\0one");
        for cut in 1..first.len() {
            assert_eq!(unwrap(&first[..cut]).token, None, "cut at {cut}");
        }
        assert_eq!(unwrap(&[]), Unwrapped::default());
    }
}
