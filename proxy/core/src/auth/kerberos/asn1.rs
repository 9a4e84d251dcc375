//! Kerberos' messages in DER (RFC 4120 5), as far as a service and its client exchange them.
//!
//! Integers are read as 64 bits wide: some peers write 32-bit values with their sign, others without.

use der::{
    Decode, Encode, Sequence, Tag, TagMode, TagNumber, Tagged,
    asn1::{Any, AnyRef, Application, BitStringRef, GeneralStringRef, GeneralizedTime, OctetStringRef},
};

/// pvno and tkt-vno.
pub(super) const VERSION: i64 = 5;

/// Application tags, which are msg-type numbers too.
pub(super) mod tag {
    pub(in super::super) const TICKET: u32 = 1;
    pub(in super::super) const AUTHENTICATOR: u32 = 2;
    pub(in super::super) const ENC_TICKET_PART: u32 = 3;
    pub(in super::super) const AP_REQ: u32 = 14;
    pub(in super::super) const AP_REP: u32 = 15;
    pub(in super::super) const ENC_AP_REP_PART: u32 = 27;
}

/// PrincipalName (RFC 4120 5.2.2)
#[derive(Sequence)]
pub(super) struct PrincipalName<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) name_type: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) name_string: Vec<GeneralStringRef<'a>>,
}

impl PrincipalName<'_> {
    /// `a/b@REALM`
    pub(super) fn to_text(&self, realm: &GeneralStringRef<'_>) -> String {
        let part = |text: &GeneralStringRef<'_>| String::from_utf8_lossy(text.as_bytes()).into_owned();
        let parts: Vec<_> = self.name_string.iter().map(part).collect();
        format!("{}@{}", parts.join("/"), part(realm))
    }
}

/// EncryptedData (RFC 4120 5.2.9)
#[derive(Sequence)]
pub(super) struct EncryptedData<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) etype: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) kvno: Option<i64>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) cipher: &'a OctetStringRef,
}

/// EncryptionKey (RFC 4120 5.2.9)
#[derive(Sequence)]
pub(super) struct EncryptionKey<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) keytype: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) keyvalue: &'a OctetStringRef,
}

/// Checksum (RFC 4120 5.2.9)
#[derive(Sequence)]
pub(super) struct Checksum<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) cksumtype: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) checksum: &'a OctetStringRef,
}

/// Ticket (RFC 4120 5.3)
#[derive(Sequence)]
pub(super) struct Ticket<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) tkt_vno: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) realm: GeneralStringRef<'a>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) sname: PrincipalName<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    pub(super) enc_part: EncryptedData<'a>,
}

/// EncTicketPart (RFC 4120 5.3). What is not used here is not looked into.
#[derive(Sequence)]
pub(super) struct EncTicketPart<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) flags: BitStringRef<'a>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) key: EncryptionKey<'a>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) crealm: GeneralStringRef<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    pub(super) cname: AnyRef<'a>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT")]
    pub(super) transited: AnyRef<'a>,
    #[asn1(context_specific = "5", tag_mode = "EXPLICIT")]
    pub(super) authtime: GeneralizedTime,
    #[asn1(context_specific = "6", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) starttime: Option<GeneralizedTime>,
    #[asn1(context_specific = "7", tag_mode = "EXPLICIT")]
    pub(super) endtime: GeneralizedTime,
    #[asn1(context_specific = "8", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) renew_till: Option<GeneralizedTime>,
    #[asn1(context_specific = "9", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) caddr: Option<AnyRef<'a>>,
    #[asn1(context_specific = "10", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) authorization_data: Option<AnyRef<'a>>,
}

/// AP-REQ (RFC 4120 5.5.1). The ticket is kept as it is.
#[derive(Sequence)]
pub(super) struct ApReq<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) pvno: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) msg_type: i64,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) ap_options: BitStringRef<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    pub(super) ticket: AnyRef<'a>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT")]
    pub(super) authenticator: EncryptedData<'a>,
}

/// Authenticator (RFC 4120 5.5.1)
#[derive(Sequence)]
pub(super) struct Authenticator<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) authenticator_vno: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) crealm: AnyRef<'a>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) cname: AnyRef<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) cksum: Option<Checksum<'a>>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT")]
    pub(super) cusec: i64,
    #[asn1(context_specific = "5", tag_mode = "EXPLICIT")]
    pub(super) ctime: GeneralizedTime,
    #[asn1(context_specific = "6", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) subkey: Option<EncryptionKey<'a>>,
    #[asn1(context_specific = "7", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) seq_number: Option<i64>,
    #[asn1(context_specific = "8", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) authorization_data: Option<AnyRef<'a>>,
}

/// AP-REP (RFC 4120 5.5.2)
#[derive(Sequence)]
pub(super) struct ApRep<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) pvno: i64,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) msg_type: i64,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    pub(super) enc_part: EncryptedData<'a>,
}

/// EncAPRepPart (RFC 4120 5.5.2)
#[derive(Sequence)]
pub(super) struct EncApRepPart<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) ctime: GeneralizedTime,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    pub(super) cusec: i64,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) subkey: Option<EncryptionKey<'a>>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    pub(super) seq_number: Option<i64>,
}

/// A message with its application tag.
pub(super) fn decode<'a, T: Decode<'a>>(number: u32, data: &'a [u8]) -> Option<T> {
    let message = Application::<T>::from_der(data).ok()?;
    (message.tag_number == TagNumber(number)).then_some(message.value)
}

/// The same the other way.
pub(super) fn encode<T: der::EncodeValue + Tagged>(number: u32, value: T) -> Option<Vec<u8>> {
    Application { tag_number: TagNumber(number), tag_mode: TagMode::Explicit, value }.to_der().ok()
}

/// The value of the first 32 bits of flags.
pub(super) fn bits(flags: &BitStringRef<'_>) -> u32 {
    let mut out = [0; 4];
    for (to, from) in out.iter_mut().zip(flags.raw_bytes()) {
        *to = *from;
    }
    u32::from_be_bytes(out)
}

/// A KerberosString.
pub(super) fn string(bytes: &[u8]) -> Option<AnyRef<'_>> {
    AnyRef::new(Tag::GeneralString, bytes).ok()
}

/// Something read, kept beyond what it was read from.
pub(super) fn keep(any: AnyRef<'_>) -> Option<Any> {
    Any::new(any.tag(), any.value()).ok()
}
