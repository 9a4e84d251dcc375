//! Keys from the session key (MS-SMB2 3.1.4.2): SP800-108 in counter mode with HMAC-SHA256.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::{auth::keys::SessionKey, crypto::Dialect};

/// The session's signing key, 16 bytes.
///
/// Before 3.0 the session key itself; in 3.0 and 3.0.2 derived from it; in 3.1.1 bound to `preauth`, the session's
/// preauthentication hash up to and with the last SESSION_SETUP request.
pub fn signing_key(dialect: Dialect, key: &SessionKey, preauth: &[u8; 64]) -> Zeroizing<[u8; 16]> {
    let base = first_16(key);
    if dialect < Dialect::SMB300 {
        base
    } else if dialect < Dialect::SMB311 {
        derive(&base, b"SMB2AESCMAC\0", b"SmbSign\0")
    } else {
        derive(&base, b"SMBSigningKey\0", preauth)
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

/// One block of output: 128 bits.
fn derive(key: &[u8; 16], label: &[u8], context: &[u8]) -> Zeroizing<[u8; 16]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut mac = hmac::Context::with_key(&key);
    mac.update(&1_u32.to_be_bytes());
    mac.update(label);
    mac.update(&[0]);
    mac.update(context);
    mac.update(&128_u32.to_be_bytes());
    let tag = mac.sign();
    let mut out = Zeroizing::new([0; 16]);
    out.copy_from_slice(tag.as_ref().get(..16).unwrap_or(&[0; 16]));
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
