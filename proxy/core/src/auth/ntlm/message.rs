//! CHALLENGE and AUTHENTICATE (MS-NLMP 2.2.1) as far as a login's keys depend on them.

/// How every NTLM message begins.
pub const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";
/// Where AUTHENTICATE keeps its MIC.
pub(crate) const MIC: std::ops::Range<usize> = 72..88;

/// NegotiateFlags (MS-NLMP 2.2.2.5).
pub mod flags {
    /// Strings are UTF-16LE.
    pub const UNICODE: u32 = 0x0000_0001;
    /// The server names itself.
    pub const REQUEST_TARGET: u32 = 0x0000_0004;
    /// Session signing.
    pub const SIGN: u32 = 0x0000_0010;
    /// NTLM.
    pub const NTLM: u32 = 0x0000_0200;
    /// The user is anonymous.
    pub const ANONYMOUS: u32 = 0x0000_0800;
    /// Always signed.
    pub const ALWAYS_SIGN: u32 = 0x0000_8000;
    /// Extended session security.
    pub const EXTENDED_SECURITY: u32 = 0x0008_0000;
    /// TargetInfo is there.
    pub const TARGET_INFO: u32 = 0x0080_0000;
    /// 128-bit keys.
    pub const KEY_128: u32 = 0x2000_0000;
    /// The session key is sent encrypted.
    pub const KEY_EXCH: u32 = 0x4000_0000;
}

/// AvIds (MS-NLMP 2.2.2.1).
mod av {
    pub(super) const EOL: u16 = 0;
    pub(super) const NB_COMPUTER: u16 = 1;
    pub(super) const NB_DOMAIN: u16 = 2;
    pub(super) const DNS_COMPUTER: u16 = 3;
    pub(super) const DNS_DOMAIN: u16 = 4;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const TIMESTAMP: u16 = 7;
}

/// MsvAvFlags: the AUTHENTICATE message carries a MIC.
const FLAG_MIC: u32 = 2;

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// A Len, MaxLen, BufferOffset triple and what it points to.
fn field(data: &[u8], at: usize) -> Option<&[u8]> {
    let len = usize::from(u16_at(data, at)?);
    let offset = usize::try_from(u32_at(data, at + 4)?).ok()?;
    if len == 0 {
        return Some(&[]);
    }
    data.get(offset..offset.checked_add(len)?)
}

/// The MessageType, if this is an NTLM message at all.
pub fn message_type(data: &[u8]) -> Option<u32> {
    data.starts_with(SIGNATURE).then(|| u32_at(data, 8)).flatten()
}

/// CHALLENGE (MS-NLMP 2.2.1.2).
#[derive(Debug, Clone, Copy)]
pub struct Challenge<'a> {
    /// What the server agrees to.
    pub flags: u32,
    /// The 8 bytes the proof is made over.
    pub server_challenge: [u8; 8],
    /// AV pairs.
    pub target_info: &'a [u8],
}

impl<'a> Challenge<'a> {
    /// Reads the message. `None` if it is not one or cut.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        if message_type(data)? != 2 {
            return None;
        }
        Some(Self {
            flags: u32_at(data, 20)?,
            server_challenge: data.get(24..32)?.try_into().ok()?,
            target_info: field(data, 40).unwrap_or_default(),
        })
    }

    /// What the server calls itself. A name that it does not give is empty.
    pub fn names(&self) -> TargetNames {
        let mut names = TargetNames::default();
        for (id, value) in av_pairs(self.target_info) {
            let name = match id {
                av::NB_COMPUTER => &mut names.computer,
                av::NB_DOMAIN => &mut names.domain,
                av::DNS_COMPUTER => &mut names.dns_computer,
                av::DNS_DOMAIN => &mut names.dns_domain,
                _ => continue,
            };
            *name = decode(value, true);
        }
        names
    }
}

/// The names in a CHALLENGE's TargetInfo (MS-NLMP 2.2.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetNames {
    /// MsvAvNbComputerName
    pub computer: String,
    /// MsvAvNbDomainName
    pub domain: String,
    /// MsvAvDnsComputerName
    pub dns_computer: String,
    /// MsvAvDnsDomainName
    pub dns_domain: String,
}

/// AUTHENTICATE (MS-NLMP 2.2.1.3).
#[derive(Debug, Clone)]
pub struct Authenticate<'a> {
    /// LmChallengeResponse
    pub lm_response: &'a [u8],
    /// NtChallengeResponse
    pub nt_response: &'a [u8],
    /// DomainName
    pub domain: String,
    /// UserName
    pub user: String,
    /// Workstation
    pub workstation: String,
    /// EncryptedRandomSessionKey
    pub encrypted_key: &'a [u8],
    /// What was agreed.
    pub flags: u32,
    /// MIC, where there is room for one. Means something only if the proof's AV pairs say so.
    pub mic: Option<[u8; 16]>,
}

impl<'a> Authenticate<'a> {
    /// Reads the message. `None` if it is not one or cut.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        if message_type(data)? != 3 {
            return None;
        }
        let flags = u32_at(data, 60)?;
        let text = |at| field(data, at).map(|raw| decode(raw, flags & flags::UNICODE != 0));
        Some(Self {
            lm_response: field(data, 12)?,
            nt_response: field(data, 20)?,
            domain: text(28)?,
            user: text(36)?,
            workstation: text(44)?,
            encrypted_key: field(data, 52)?,
            flags,
            mic: data.get(MIC).and_then(|mic| mic.try_into().ok()),
        })
    }

    /// Whether the user gave nothing (MS-NLMP 3.2.5.1.2).
    pub fn is_anonymous(&self) -> bool {
        self.user.is_empty() && self.nt_response.is_empty() && self.lm_response.len() <= 1
    }

    /// The proof and the blob it was made over, if this is NTLMv2 (MS-NLMP 2.2.2.8).
    pub fn proof(&self) -> Option<([u8; 16], &'a [u8])> {
        let (proof, blob) = self.nt_response.split_at_checked(16)?;
        if blob.len() < 28 || blob.get(..2) != Some(&[1, 1]) {
            return None;
        }
        Some((proof.try_into().ok()?, blob))
    }

    /// Whether the client says that the message carries a MIC.
    pub fn has_mic(&self) -> bool {
        self.proof().and_then(|(_, blob)| blob.get(28..)).is_some_and(|pairs| {
            av_pairs(pairs)
                .any(|(id, value)| id == av::FLAGS && u32_at(value, 0).unwrap_or(0) & FLAG_MIC != 0)
        })
    }
}

/// Text in either charset. The OEM charset is unknown: what is not ASCII there is taken as Latin-1.
fn decode(raw: &[u8], unicode: bool) -> String {
    if unicode {
        let units: Vec<u16> =
            raw.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    } else {
        raw.iter().map(|&byte| char::from(byte)).collect()
    }
}

/// AV pairs up to MsvAvEOL or the first damage.
fn av_pairs(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let id = u16_at(data, 0)?;
        let len = usize::from(u16_at(data, 2)?);
        let value = data.get(4..4 + len)?;
        data = data.get(4 + len..)?;
        (id != av::EOL).then_some((id, value))
    })
}

/// The server's AV pairs with the announcement of a MIC, and the server's time if it gave one.
pub(crate) fn target_info_with_mic(info: &[u8], with_mic: bool) -> (Vec<u8>, u64) {
    let mut out = Vec::with_capacity(info.len() + 16);
    let mut time = 0;
    let mut push = |id: u16, value: &[u8]| {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(value);
    };
    let mut flags = if with_mic { FLAG_MIC } else { 0 };
    for (id, value) in av_pairs(info) {
        match id {
            av::FLAGS => flags |= u32_at(value, 0).unwrap_or(0),
            av::TIMESTAMP => {
                time = value.try_into().map(u64::from_le_bytes).unwrap_or(0);
                push(id, value);
            }
            _ => push(id, value),
        }
    }
    if flags != 0 {
        push(av::FLAGS, &flags.to_le_bytes());
    }
    push(av::EOL, &[]);
    (out, time)
}

/// UTF-16LE.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A NEGOTIATE message (MS-NLMP 2.2.1.1) that names neither domain nor workstation.
pub(crate) fn negotiate(flags: u32) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    for _ in 0..2 {
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&32_u32.to_le_bytes());
    }
    out
}

/// What goes into an AUTHENTICATE message.
pub(crate) struct AuthenticateParams<'a> {
    pub(crate) lm_response: &'a [u8],
    pub(crate) nt_response: &'a [u8],
    pub(crate) domain: &'a str,
    pub(crate) user: &'a str,
    pub(crate) workstation: &'a str,
    pub(crate) encrypted_key: &'a [u8],
    pub(crate) flags: u32,
}

/// An AUTHENTICATE message with room for a MIC, which is zeros.
pub(crate) fn authenticate(params: &AuthenticateParams<'_>) -> Vec<u8> {
    const FIXED: usize = 88;
    let parts: [&[u8]; 6] = [
        params.lm_response,
        params.nt_response,
        &utf16(params.domain),
        &utf16(params.user),
        &utf16(params.workstation),
        params.encrypted_key,
    ];
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&3_u32.to_le_bytes());
    let mut offset = FIXED;
    for part in parts {
        let len = u16::try_from(part.len()).unwrap_or(0).to_le_bytes();
        out.extend_from_slice(&len);
        out.extend_from_slice(&len);
        out.extend_from_slice(&u32::try_from(offset).unwrap_or(0).to_le_bytes());
        offset += part.len();
    }
    out.extend_from_slice(&params.flags.to_le_bytes());
    out.resize(FIXED, 0);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        authenticate(&AuthenticateParams {
            lm_response: &[0; 24],
            nt_response: &[1; 60],
            domain: "DOM",
            user: "älice",
            workstation: "W",
            encrypted_key: &[5; 16],
            flags: flags::UNICODE,
        })
    }

    #[test]
    fn what_is_built_is_read_back() {
        let msg = sample();
        let got = Authenticate::parse(&msg).unwrap();
        assert_eq!((got.domain.as_str(), got.user.as_str(), got.workstation.as_str()), ("DOM", "älice", "W"));
        assert_eq!((got.nt_response.len(), got.encrypted_key), (60, &[5; 16][..]));
    }

    #[test]
    fn every_cut_is_survived() {
        let msg = sample();
        for cut in 0..msg.len() {
            let _ = Authenticate::parse(&msg[..cut]).map(|a| (a.has_mic(), a.proof()));
        }
        assert!(Authenticate::parse(&msg[..60]).is_none());
        assert!(Challenge::parse(&msg).is_none());
    }

    #[test]
    fn a_challenge_names_its_server() {
        let mut msg = SIGNATURE.to_vec();
        msg.extend(2_u32.to_le_bytes());
        msg.resize(40, 0);
        let pairs: Vec<u8> = [
            (av::NB_DOMAIN, "WG"),
            (av::NB_COMPUTER, "Ä"),
            (9, "x"),
            (av::EOL, ""),
            (av::DNS_DOMAIN, "late"),
        ]
        .iter()
        .flat_map(|(id, text)| {
            let text = utf16(text);
            [&id.to_le_bytes()[..], &u16::try_from(text.len()).unwrap().to_le_bytes(), &text].concat()
        })
        .collect();
        let len = u16::try_from(pairs.len()).unwrap().to_le_bytes();
        msg.extend([len, len].concat());
        msg.extend(48_u32.to_le_bytes());
        msg.extend(pairs);
        let names = |msg: &[u8]| Challenge::parse(msg).map(|challenge| challenge.names());
        let found = TargetNames { computer: "Ä".into(), domain: "WG".into(), ..TargetNames::default() };
        assert_eq!(names(&msg), Some(found));
        for cut in 0..msg.len() {
            let _ = names(&msg[..cut]);
        }
    }

    #[test]
    fn the_mic_is_announced_before_the_end() {
        let info = [7, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let (out, time) = target_info_with_mic(&info, true);
        assert_eq!(time, 1);
        assert_eq!(out[12..], [6, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }
}
