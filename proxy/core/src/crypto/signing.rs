//! Message signatures (MS-SMB2 3.1.4.1): HMAC-SHA256, AES-128-CMAC, AES-128-GMAC.
//!
//! A signature covers the whole element with the signature field as zeros. `verify_mut` zeroes the field in place and
//! puts it back: bulk data is never copied.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cmac, constant_time, hmac,
};
use smb_parse::{
    header::{Command, Flags, Header},
    patch,
};

/// Where the signature lies in the header.
const SIGNATURE: std::ops::Range<usize> = 48..64;

/// A signing algorithm (MS-SMB2 2.2.3.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningAlg {
    /// HMAC-SHA256, cut to 16 bytes. 2.0.2 and 2.1.
    HmacSha256,
    /// AES-128-CMAC. 3.0 and later.
    AesCmac,
    /// AES-128-GMAC. 3.1.1 by agreement.
    AesGmac,
}

impl SigningAlg {
    /// Its id in SMB2_SIGNING_CAPABILITIES.
    pub fn wire(self) -> u16 {
        match self {
            Self::HmacSha256 => 0,
            Self::AesCmac => 1,
            Self::AesGmac => 2,
        }
    }

    /// The algorithm of that id in SMB2_SIGNING_CAPABILITIES.
    pub fn from_wire(id: u16) -> Option<Self> {
        match id {
            0 => Some(Self::HmacSha256),
            1 => Some(Self::AesCmac),
            2 => Some(Self::AesGmac),
            _ => None,
        }
    }
}

/// A key ready to sign and to verify with.
pub struct SigningKey(Schedule);

enum Schedule {
    Hmac(Box<hmac::Key>),
    Cmac(cmac::Key),
    Gmac(LessSafeKey),
    /// The library refused the key: nothing verifies, nothing is signed rightly.
    Unusable,
}

impl SigningKey {
    /// The key schedule for `alg`.
    pub fn new(alg: SigningAlg, key: &[u8; 16]) -> Self {
        Self(match alg {
            SigningAlg::HmacSha256 => {
                Schedule::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice())))
            }
            SigningAlg::AesCmac => {
                cmac::Key::new(cmac::AES_128, key.as_slice()).map_or(Schedule::Unusable, Schedule::Cmac)
            }
            SigningAlg::AesGmac => UnboundKey::new(&AES_128_GCM, key.as_slice())
                .map_or(Schedule::Unusable, |key| Schedule::Gmac(LessSafeKey::new(key))),
        })
    }

    /// Sets the SIGNED flag and signs `msg`, one element beginning with its header. A message shorter than a header
    /// stays as it is.
    pub fn sign(&self, msg: &mut [u8]) {
        let Ok(header) = Header::parse(msg) else { return };
        patch::set_flags(msg, header.flags | Flags::SIGNED);
        patch::set_signature(msg, [0; 16]);
        if let Some(mac) = self.mac(&header, msg) {
            patch::set_signature(msg, mac);
        }
    }

    /// Whether `msg` carries the right signature. Leaves it as it was.
    pub fn verify_mut(&self, msg: &mut [u8]) -> bool {
        let Ok(header) = Header::parse(msg) else { return false };
        let Some(field) = msg.get_mut(SIGNATURE) else { return false };
        field.fill(0);
        let mac = self.mac(&header, msg);
        if let Some(field) = msg.get_mut(SIGNATURE) {
            field.copy_from_slice(&header.signature);
        }
        mac.is_some_and(|mac| constant_time::verify_slices_are_equal(&mac, &header.signature).is_ok())
    }

    fn mac(&self, header: &Header, msg: &[u8]) -> Option<[u8; 16]> {
        match &self.0 {
            Schedule::Hmac(key) => hmac::sign(key.as_ref(), msg).as_ref().get(..16)?.try_into().ok(),
            Schedule::Cmac(key) => cmac::sign(key, msg).ok()?.as_ref().try_into().ok(),
            Schedule::Gmac(key) => {
                let tag = key.seal_in_place_separate_tag(nonce(header), Aad::from(msg), &mut []).ok()?;
                tag.as_ref().try_into().ok()
            }
            Schedule::Unusable => None,
        }
    }
}

/// MessageId, then who speaks and whether it is a CANCEL (MS-SMB2 3.1.4.1).
fn nonce(header: &Header) -> Nonce {
    let server = u32::from(header.flags.contains(Flags::SERVER_TO_REDIR));
    let cancel = u32::from(header.command == Command::CANCEL) << 1;
    let mut bytes = [0; 12];
    for (to, from) in bytes
        .iter_mut()
        .zip(header.message_id.to_le_bytes().into_iter().chain((server | cancel).to_le_bytes()))
    {
        *to = from;
    }
    Nonce::assume_unique_for_key(bytes)
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alg = match &self.0 {
            Schedule::Hmac(_) => "HmacSha256",
            Schedule::Cmac(_) => "AesCmac",
            Schedule::Gmac(_) => "AesGmac",
            Schedule::Unusable => "Unusable",
        };
        write!(f, "SigningKey({alg}, ***)")
    }
}

#[cfg(test)]
mod tests {
    use smb_parse::encode;

    use super::*;

    const ALL: [SigningAlg; 3] = [SigningAlg::HmacSha256, SigningAlg::AesCmac, SigningAlg::AesGmac];

    fn message() -> Vec<u8> {
        encode::echo(&Header::request(Command::ECHO, 77))
    }

    #[test]
    fn what_is_signed_verifies_and_stays_as_it_was() {
        for alg in ALL {
            let key = SigningKey::new(alg, &[9; 16]);
            let mut msg = message();
            key.sign(&mut msg);
            let before = msg.clone();
            assert!(key.verify_mut(&mut msg), "{alg:?}");
            assert_eq!(msg, before);
            assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED));
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        for alg in ALL {
            let key = SigningKey::new(alg, &[9; 16]);
            let mut msg = message();
            key.sign(&mut msg);
            for at in 4..msg.len() {
                let mut bad = msg.clone();
                bad[at] ^= 1;
                assert!(!key.verify_mut(&mut bad), "{alg:?} byte {at}");
            }
            let other = SigningKey::new(alg, &[8; 16]);
            assert!(!other.verify_mut(&mut msg), "{alg:?} other key");
        }
    }

    /// RFC 4493, example 4 is too long for a header-less call: the CMAC of a message is checked against the RFC's
    /// construction through the library, and GMAC's nonce against its definition.
    #[test]
    fn gmac_nonce_tells_direction_and_cancel() {
        let key = SigningKey::new(SigningAlg::AesGmac, &[9; 16]);
        let mut request = message();
        key.sign(&mut request);
        let aad = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[9; 16]).unwrap());
        let mut zeroed = request.clone();
        zeroed[SIGNATURE].fill(0);
        let tag = |nonce: [u8; 12]| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            aad.seal_in_place_separate_tag(nonce, Aad::from(&zeroed), &mut []).unwrap().as_ref().to_vec()
        };
        assert_eq!(request[SIGNATURE].to_vec(), tag([77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_ne!(request[SIGNATURE].to_vec(), tag([77, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]));
    }
}
