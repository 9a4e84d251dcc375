//! How messages are signed and sealed, alike at both ends.

use smb_parse::frame::PREFIX;
use understudy_core::{
    auth::keys::SessionKey,
    crypto::{
        Dialect,
        kdf::{self, Direction},
        preauth::Preauth,
        sealing::{Cipher, HEADROOM, Nonces, SealingKey},
        signing::{SigningAlg, SigningKey},
    },
};

use crate::chance::Chance;

/// The keys that seal a session, either way.
pub(crate) struct Seals {
    /// For requests.
    pub(crate) to_server: SealingKey,
    /// For answers.
    pub(crate) to_client: SealingKey,
}

impl Seals {
    /// Those of a login.
    pub(crate) fn new(dialect: Dialect, cipher: Cipher, key: &SessionKey, preauth: &Preauth) -> Self {
        let one =
            |way| SealingKey::new(cipher, &kdf::sealing_key(dialect, cipher, way, key, &preauth.value()));
        Self { to_server: one(Direction::ToServer), to_client: one(Direction::ToClient) }
    }
}

/// A sealed frame around these messages.
pub(crate) fn seal(key: &SealingKey, session: u64, nonces: &mut Nonces, body: &[u8]) -> Vec<u8> {
    let mut frame = [&[0; HEADROOM], body].concat();
    let sealed = key.seal(&mut frame, session, nonces.next(&mut Chance::new(session)));
    debug_assert!(sealed);
    frame
}

/// Changes a frame, if it is sealed or its first message is signed. False if it is neither.
pub(crate) fn tamper(frame: &mut [u8]) -> bool {
    const FLAGS: usize = PREFIX + 16;
    const SIGNED: u8 = 8;
    let covered =
        frame.get(PREFIX) == Some(&0xfd) || frame.get(FLAGS).is_some_and(|flags| flags & SIGNED != 0);
    match frame.last_mut() {
        Some(last) if covered => {
            *last ^= 0x80;
            true
        }
        _ => false,
    }
}

/// How everyone signs in a dialect: the newest by what is agreed, which is GMAC or CMAC.
pub(crate) fn signing_alg(dialect: Dialect, gmac: bool) -> SigningAlg {
    match dialect {
        Dialect::SMB202 | Dialect::SMB210 => SigningAlg::HmacSha256,
        Dialect::SMB311 if gmac => SigningAlg::AesGmac,
        _ => SigningAlg::AesCmac,
    }
}

/// The key that signs in a session.
pub(crate) fn signing_key(dialect: Dialect, gmac: bool, key: &SessionKey, preauth: &Preauth) -> SigningKey {
    SigningKey::new(signing_alg(dialect, gmac), &kdf::signing_key(dialect, key, &preauth.value()))
}
