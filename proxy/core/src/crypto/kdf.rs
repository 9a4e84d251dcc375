//! Keys from the session key (MS-SMB2 3.1.4.2, 3.3.5.5.3): SP800-108 in counter mode with HMAC-SHA256.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::{
    auth::keys::SessionKey,
    crypto::{Dialect, sealing::Cipher},
};

/// The session's signing key, 16 bytes.
///
/// Before 3.0 the session key itself; in 3.0 and 3.0.2 derived from it; in 3.1.1 bound to `preauth`, the session's
/// preauthentication hash up to and with the last SESSION_SETUP request.
pub fn signing_key(dialect: Dialect, key: &SessionKey, preauth: &[u8; 64]) -> Zeroizing<[u8; 16]> {
    let base = first_16(key);
    if dialect < Dialect::SMB300 {
        base
    } else if dialect < Dialect::SMB311 {
        derive(&*base, b"SMB2AESCMAC\0", b"SmbSign\0")
    } else {
        derive(&*base, b"SMBSigningKey\0", preauth)
    }
}

/// Which way a sealed message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToServer,
    /// From the server.
    ToClient,
}

/// The session's key for sealing one direction, as long as the cipher wants it. 3.0 and later; `preauth` as in
/// [`signing_key`]. AES-256 is keyed from the whole session key, AES-128 from its first 16 bytes.
pub fn sealing_key(
    dialect: Dialect,
    cipher: Cipher,
    direction: Direction,
    key: &SessionKey,
    preauth: &[u8; 64],
) -> Zeroizing<Vec<u8>> {
    let (label, context): (&[u8], &[u8]) = match (dialect < Dialect::SMB311, direction) {
        (true, Direction::ToServer) => (b"SMB2AESCCM\0", b"ServerIn \0"),
        (true, Direction::ToClient) => (b"SMB2AESCCM\0", b"ServerOut\0"),
        (false, Direction::ToServer) => (b"SMBC2SCipherKey\0", preauth),
        (false, Direction::ToClient) => (b"SMBS2CCipherKey\0", preauth),
    };
    match cipher.key_len() {
        16 => Zeroizing::new(derive::<16>(&*first_16(key), label, context).to_vec()),
        _ => Zeroizing::new(derive::<32>(key.bytes(), label, context).to_vec()),
    }
}

/// Longer keys are cut, shorter ones padded with zeros (MS-SMB2 3.3.5.5.3).
fn first_16(key: &SessionKey) -> Zeroizing<[u8; 16]> {
    let mut out = Zeroizing::new([0; 16]);
    for (to, from) in out.iter_mut().zip(key.bytes()) {
        *to = *from;
    }
    out
}

/// One block of output, cut to `N` bytes: 16 or 32.
fn derive<const N: usize>(key: &[u8], label: &[u8], context: &[u8]) -> Zeroizing<[u8; N]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut mac = hmac::Context::with_key(&key);
    mac.update(&1_u32.to_be_bytes());
    mac.update(label);
    mac.update(&[0]);
    mac.update(context);
    mac.update(&(u32::try_from(N).unwrap_or(0) * 8).to_be_bytes());
    let tag = mac.sign();
    let mut out = Zeroizing::new([0; N]);
    for (to, from) in out.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The worked examples that Microsoft published on the derivation of the SMB 3.0 keys.
    #[test]
    fn smb_3_0_signing_key_as_published() {
        let key = SessionKey::new(&hex("7CD451825D0450D235424E44BA6E78CC"));
        let got = signing_key(Dialect::SMB300, &key, &[0; 64]);
        assert_eq!(got.to_vec(), hex("0B7E9C5CAC36C0F6EA9AB275298CEDCE"));
    }

    #[test]
    fn sealing_keys_differ_by_direction_cipher_and_in_3_1_1_by_preauth_hash() {
        let long = SessionKey::new(&[7; 32]);
        let short = SessionKey::new(&[7; 16]);
        let (to_server, to_client) = (Direction::ToServer, Direction::ToClient);
        let of = |dialect, cipher, way, key, hash: u8| sealing_key(dialect, cipher, way, key, &[hash; 64]);
        let new = |cipher, way, key, hash| of(Dialect::SMB311, cipher, way, key, hash);
        let old = |way, hash| of(Dialect::SMB302, Cipher::Aes128Ccm, way, &short, hash);
        assert_eq!(old(to_server, 0), old(to_server, 1));
        assert_ne!(old(to_server, 0), old(to_client, 0));
        assert_ne!(
            new(Cipher::Aes128Gcm, to_server, &short, 0),
            new(Cipher::Aes128Gcm, to_server, &short, 1)
        );
        assert_ne!(
            new(Cipher::Aes128Gcm, to_server, &short, 0),
            new(Cipher::Aes128Gcm, to_client, &short, 0)
        );
        let (cut, whole) = (Cipher::Aes128Gcm, Cipher::Aes256Gcm);
        assert_eq!(new(cut, to_server, &long, 0), new(cut, to_server, &short, 0), "128: the first 16 bytes");
        assert_ne!(new(whole, to_server, &long, 0), new(whole, to_server, &short, 0), "256: the whole key");
        assert_eq!(new(whole, to_server, &long, 0).len(), 32);
    }

    #[test]
    fn before_3_0_the_session_key_signs_itself() {
        let key = SessionKey::new(&[7; 20]);
        assert_eq!(*signing_key(Dialect::SMB210, &key, &[0; 64]), [7; 16]);
        let short = SessionKey::new(&[7; 8]);
        assert_eq!(signing_key(Dialect::SMB202, &short, &[0; 64])[8..], [0; 8]);
    }

    #[test]
    fn in_3_1_1_the_preauth_hash_matters() {
        let key = SessionKey::new(&[7; 16]);
        assert_ne!(
            signing_key(Dialect::SMB311, &key, &[0; 64]),
            signing_key(Dialect::SMB311, &key, &[1; 64])
        );
    }
}
