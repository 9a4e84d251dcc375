//! NTLMv2's keys (MS-NLMP 3.3.2, 3.4.5).

use aws_lc_rs::constant_time;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};
use zeroize::Zeroizing;

use super::message::utf16;
use crate::auth::keys::{NtHash, SessionKey};

/// HMAC-MD5 over the parts.
pub(crate) fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    // A key of any length is valid for HMAC; the empty default can not be reached.
    let Ok(mut mac) = Hmac::<Md5>::new_from_slice(key) else { return [0; 16] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// RC4 in place.
pub(crate) fn rc4(key: &[u8], data: &mut [u8]) {
    if let Ok(mut cipher) = Rc4::new_from_slice(key) {
        cipher.apply_keystream(data);
    }
}

/// The client's proof that it knows the hash, and the SessionBaseKey that follows.
pub(crate) struct Proof {
    pub(crate) nt_proof: [u8; 16],
    pub(crate) base_key: Zeroizing<[u8; 16]>,
}

impl Proof {
    /// From the hash, the names as the client sent them, the server's challenge and the client's blob.
    pub(crate) fn new(hash: &NtHash, user: &str, domain: &str, challenge: &[u8; 8], blob: &[u8]) -> Self {
        let owf = Zeroizing::new(hmac_md5(hash.bytes(), &[&utf16(&upper(user)), &utf16(domain)]));
        let nt_proof = hmac_md5(&*owf, &[challenge, blob]);
        let base_key = Zeroizing::new(hmac_md5(&*owf, &[&nt_proof]));
        Self { nt_proof, base_key }
    }
}

/// Upper case, one character for one: a user name never becomes longer (`ß` stays).
fn upper(text: &str) -> String {
    text.chars()
        .map(|c| {
            let mut upper = c.to_uppercase();
            match (upper.next(), upper.next()) {
                (Some(one), None) => one,
                _ => c,
            }
        })
        .collect()
}

/// The exported session key: the one the client sent encrypted, or the base key itself.
pub(crate) fn exported_key(proof: &Proof, exchanged: bool, encrypted_key: &[u8]) -> Option<SessionKey> {
    if !exchanged {
        return Some(SessionKey::new(&*proof.base_key));
    }
    let mut key: Zeroizing<[u8; 16]> = Zeroizing::new(encrypted_key.try_into().ok()?);
    rc4(&*proof.base_key, &mut *key);
    Some(SessionKey::new(&*key))
}

/// The MIC over the three messages; in the last its own field is zeros.
pub(crate) fn mic(key: &SessionKey, messages: [&[u8]; 3]) -> [u8; 16] {
    hmac_md5(key.bytes(), &messages)
}

/// Compares in constant time.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Who signs with NTLM's own session security.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Client,
    Server,
}

/// The keys by which a side signs and seals, with extended session security and 128-bit keys (MS-NLMP 3.4.5.2, 3.4.5.3).
fn side_keys(key: &SessionKey, side: Side) -> [Zeroizing<[u8; 16]>; 2] {
    let magic: [&[u8]; 2] = match side {
        Side::Client => [
            b"session key to client-to-server signing key magic constant\0",
            b"session key to client-to-server sealing key magic constant\0",
        ],
        Side::Server => [
            b"session key to server-to-client signing key magic constant\0",
            b"session key to server-to-client sealing key magic constant\0",
        ],
    };
    magic.map(|magic| {
        Zeroizing::new(<[u8; 16]>::from(Md5::new().chain_update(key.bytes()).chain_update(magic).finalize()))
    })
}

/// The first NTLM message signature of a side (MS-NLMP 3.4.4.2): what SPNEGO uses as mechListMIC.
pub(crate) fn first_signature(key: &SessionKey, side: Side, exchanged: bool, data: &[u8]) -> [u8; 16] {
    let [sign, seal] = side_keys(key, side);
    let sequence = [0; 4];
    let mac = hmac_md5(&*sign, &[&sequence, data]);
    let mut sum = [0; 8];
    sum.copy_from_slice(mac.get(..8).unwrap_or(&[0; 8]));
    if exchanged {
        rc4(&*seal, &mut sum);
    }
    let mut out = [0; 16];
    out[..4].copy_from_slice(&1_u32.to_le_bytes());
    out[4..12].copy_from_slice(&sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    /// The worked example of MS-NLMP 4.2.4: user "User", domain "Domain", password "Password".
    #[test]
    fn the_specifications_example() {
        let hash = NtHash::new(hex("a4 f4 9c 40 65 10 bd ca b6 82 4e e7 c3 0f d8 52").try_into().unwrap());
        let challenge = hex("01 23 45 67 89 ab cd ef").try_into().unwrap();
        let info = hex(
            "02 00 0c 00 44 00 6f 00 6d 00 61 00 69 00 6e 00 01 00 0c 00 53 00 65 00 72 00 76 00 65 00 72 00 \
                        00 00 00 00",
        );
        let mut blob =
            hex("01 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 aa aa aa aa aa aa aa aa 00 00 00 00");
        blob.extend(info);
        blob.extend([0; 4]);
        let proof = Proof::new(&hash, "User", "Domain", &challenge, &blob);
        assert_eq!(proof.nt_proof.to_vec(), hex("68 cd 0a b8 51 e5 1c 96 aa bc 92 7b eb ef 6a 1c"));
        assert_eq!(proof.base_key.to_vec(), hex("8d e4 0c ca db c1 4a 82 f1 5c b0 ad 0d e9 5c a3"));
        let key =
            exported_key(&proof, true, &hex("c5 da d2 54 4f c9 79 90 94 ce 1c e9 0b c9 d0 3e")).unwrap();
        assert_eq!(key.bytes(), [0x55; 16]);
    }

    /// The example of MS-NLMP 4.2.4.4. There the stream seals the text first, and the checksum behind it.
    #[test]
    fn the_specifications_signature() {
        let key = SessionKey::new(&[0x55; 16]);
        let [sign, seal] = side_keys(&key, Side::Client);
        assert_eq!(sign.to_vec(), hex("47 88 dc 86 1b 47 82 f3 5d 43 fd 98 fe 1a 2d 39"));
        assert_eq!(seal.to_vec(), hex("59 f6 00 97 3c c4 96 0a 25 48 0a 7c 19 6e 4c 58"));
        let text = utf16("Plaintext");
        let plain = first_signature(&key, Side::Client, false, &text);
        assert_eq!(plain[4..12], hex("70 35 28 51 f2 56 43 09"));
        let mut stream = [&text[..], &plain[4..12]].concat();
        rc4(&*seal, &mut stream);
        assert_eq!(
            stream,
            hex("54 e5 01 65 bf 19 36 dc 99 60 20 c1 81 1b 0f 06 fb 5f 7f b3 8e c5 c5 5d 49 76")
        );
    }

    /// The two sides sign by different keys, and what is sent sealed is not what is signed.
    #[test]
    fn a_signature_is_of_its_side() {
        let key = SessionKey::new(&[0x55; 16]);
        let all = [(Side::Client, true), (Side::Client, false), (Side::Server, true), (Side::Server, false)]
            .map(|(side, exchanged)| first_signature(&key, side, exchanged, b"list"));
        for (at, one) in all.iter().enumerate() {
            assert_eq!((&one[..4], &one[12..]), (&[1, 0, 0, 0][..], &[0; 4][..]));
            assert!(!all[at + 1..].contains(one));
        }
    }

    #[test]
    fn names_grow_upwards_only_one_for_one() {
        assert_eq!(upper("straße-äö"), "STRAßE-ÄÖ");
    }
}
