//! Logins that others made: published examples, and what real Samba sent. From the messages alone the same hashes, keys
//! and signatures must follow.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a recording that cannot be read stops the test"
)]

mod support;

use smb_parse::{
    cmd::session_setup,
    header::{Flags, Header},
};
use support::{part, recording};
use understudy_core::{
    auth::{
        Credentials, LoginObserver, UnixTime,
        keys::{NtHash, SessionKey},
        ntlm::message::{Authenticate, Challenge},
        spnego,
    },
    crypto::{
        Dialect,
        kdf::signing_key,
        preauth::Preauth,
        signing::{SigningAlg, SigningKey},
    },
    event::Protection,
};

const WINDOWS: &str = include_str!("data/windows-3.1.1-cmac.txt");
const GMAC: &str = include_str!("data/samba-3.1.1-gmac.txt");
const HMAC: &str = include_str!("data/samba-2.1-hmac.txt");
const NLMP: &str = include_str!("data/ms-nlmp-4.2.4.txt");

/// Knows one user, by any name.
struct One([u8; 16]);

impl Credentials for One {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        Some(NtHash::new(self.0))
    }

    fn configured(&self) -> bool {
        true
    }

    fn now(&self) -> UnixTime {
        UnixTime::default()
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the right length")
}

/// The security buffer of a SESSION_SETUP message.
fn token<'a>(name: &str, msg: &'a [u8]) -> &'a [u8] {
    if name == "session-setup-request" {
        session_setup::Request::parse(msg).unwrap().security_buffer
    } else {
        session_setup::Response::parse(msg).unwrap().security_buffer
    }
}

/// MS-SMB2 3.1.4.4.1 and 3.1.4.2: the chain of hashes, the key, and the signature that Windows put on its last answer.
#[test]
fn the_published_login_by_3_1_1() {
    let parts = recording(WINDOWS);
    let mut preauth = Preauth::new();
    for pair in parts.windows(2).filter(|pair| pair[1].0 == "hash") {
        preauth.update(&pair[0].1);
        assert_eq!(preauth.value().to_vec(), pair[1].1, "after the {}", pair[0].0);
    }
    let session_key = SessionKey::new(part(&parts, "session-key"));
    let key = signing_key(Dialect::SMB311, &session_key, &preauth.value());
    assert_eq!(key.to_vec(), part(&parts, "signing-key"));
    let mut answer = parts.iter().rfind(|(name, _)| *name == "session-setup-response").unwrap().1.clone();
    let key = SigningKey::new(SigningAlg::AesCmac, &key);
    assert!(key.verify_mut(&mut answer));
    *answer.last_mut().unwrap() ^= 1;
    assert!(!key.verify_mut(&mut answer));
}

/// What Windows wraps its tokens in, and what they say.
#[test]
fn the_published_tokens_are_understood() {
    let parts = recording(WINDOWS);
    let tokens: Vec<_> = (parts.iter())
        .filter(|(name, _)| name.starts_with("session-setup"))
        .map(|(name, msg)| spnego::unwrap(token(name, msg)))
        .collect();
    assert!(tokens[0].token.unwrap().starts_with(b"NTLMSSP\0\x01"));
    let challenge = Challenge::parse(tokens[1].token.unwrap()).unwrap();
    assert_eq!(challenge.server_challenge, [0x0d, 0x1d, 0x8b, 0xa3, 0x11, 0x79, 0xd0, 0x08]);
    assert_eq!(challenge.target_info.len(), 0x50);
    let answer = Authenticate::parse(tokens[2].token.unwrap()).unwrap();
    let names = (answer.user.as_str(), answer.domain.as_str(), answer.workstation.as_str());
    assert_eq!(names, ("administrator", "SUT311", "DRIVER311"));
    assert!(answer.has_mic() && answer.mic.is_some() && answer.proof().is_some() && !answer.is_anonymous());
    assert_eq!(tokens[2].mic.unwrap()[4..12], [0x63, 0x77, 0x5a, 0x9a, 0x5f, 0xd9, 0x7f, 0x06]);
    assert_eq!((tokens[3].token, tokens[3].rejected), (None, false));
    assert!(tokens[3].mic.is_some());
}

#[test]
fn the_published_example_of_ntlm() {
    let parts = recording(NLMP);
    let mut observer = LoginObserver::default();
    observer.server_token(part(&parts, "challenge"));
    observer.client_token(part(&parts, "authenticate"));
    let outcome = observer.finish(0, &[], &One(array(part(&parts, "nt-hash"))));
    assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("User", "Domain"));
    assert_eq!(outcome.workstation, "COMPUTER");
    let derived = outcome.result.unwrap();
    assert_eq!(derived.protection, Protection::Ntlm);
    assert_eq!(derived.session_keys[0].bytes(), part(&parts, "session-key"));
}

/// From the bytes of a login and the user's hash to the key that both sides signed with.
fn key_of(parts: &[(&str, Vec<u8>)], dialect: Dialect, alg: SigningAlg) -> SigningKey {
    let (mut observer, mut preauth) = (LoginObserver::default(), Preauth::new());
    let login = parts.iter().filter(|(name, _)| name.starts_with("negotiate") || name.starts_with("session"));
    for (name, msg) in login {
        let is_final = *name == "session-setup-response" && Header::parse(msg).unwrap().status == 0;
        // The last answer is signed by the key, and cannot be part of it.
        if !is_final {
            preauth.update(msg);
        }
        match *name {
            "session-setup-request" => observer.client_token(token(name, msg)),
            "session-setup-response" => observer.server_token(token(name, msg)),
            _ => {}
        }
    }
    let outcome = observer.finish(0, &[], &One(array(part(parts, "nt-hash"))));
    assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("alice", "WORKGROUP"));
    let session_key = outcome.result.unwrap().session_keys.remove(0);
    SigningKey::new(alg, &signing_key(dialect, &session_key, &preauth.value()))
}

fn all_signatures_are_right(text: &str, dialect: Dialect, alg: SigningAlg) {
    let parts = recording(text);
    let key = key_of(&parts, dialect, alg);
    let mut checked = [0, 0];
    for (name, msg) in &parts {
        let Ok(header) = Header::parse(msg) else { continue };
        if header.flags.contains(Flags::SIGNED) && header.signature != [0; 16] {
            let mut msg = msg.clone();
            assert!(key.verify_mut(&mut msg), "{name}, MessageId {}", header.message_id);
            checked[usize::from(header.is_response())] += 1;
            // And we would have signed it so.
            let mut unsigned = msg.clone();
            unsigned[48..64].fill(0);
            key.sign(&mut unsigned);
            assert_eq!(unsigned, msg, "{name}, MessageId {}", header.message_id);
        }
    }
    assert!(checked[0] >= 4 && checked[1] >= 5, "{checked:?} messages were signed");
}

#[test]
fn what_samba_signs_by_gmac() {
    all_signatures_are_right(GMAC, Dialect::SMB311, SigningAlg::AesGmac);
}

#[test]
fn what_samba_signs_by_hmac() {
    all_signatures_are_right(HMAC, Dialect::SMB210, SigningAlg::HmacSha256);
}
