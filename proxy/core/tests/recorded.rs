//! Logins that others made: published examples, and what real Samba sent. From the messages alone the same hashes, keys
//! and signatures must follow.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a recording that cannot be read stops the test"
)]

mod support;

use std::{sync::Arc, time::Duration};

use smb_parse::{
    cmd::session_setup,
    header::{Flags, Header},
};
use support::{Known, part, recording};
use understudy_core::{
    auth::{
        Credentials, LoginObserver, LoginOutcome, UnixTime,
        kerberos::{Keytab, crypto::EncType},
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

/// By each encryption type.
const KERBEROS: [(&str, &str); 5] = [
    ("aes128", include_str!("data/kerberos-aes128.txt")),
    ("aes256", include_str!("data/kerberos-aes256.txt")),
    ("sha256", include_str!("data/kerberos-sha256.txt")),
    ("sha384", include_str!("data/kerberos-sha384.txt")),
    ("rc4", include_str!("data/kerberos-rc4.txt")),
];

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
    let outcome = observer.finish(0, &[], &Known(array(part(&parts, "nt-hash"))));
    assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("User", "Domain"));
    assert_eq!(outcome.workstation, "COMPUTER");
    let derived = outcome.result.unwrap();
    assert_eq!(derived.protection, Protection::Ntlm);
    assert_eq!(derived.session_keys[0].bytes(), part(&parts, "session-key"));
}

/// From the bytes of a login and the user's hash to the key that both sides signed with.
fn key_of(parts: &[(&str, Vec<u8>)], dialect: Dialect, alg: SigningAlg) -> SigningKey {
    let (outcome, preauth) = observe(parts, &Known(array(part(parts, "nt-hash"))));
    assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("alice", "WORKGROUP"));
    let session_key = outcome.result.unwrap().session_keys.remove(0);
    SigningKey::new(alg, &signing_key(dialect, &session_key, &preauth.value()))
}

/// Feeds an observer with a recorded login.
fn observe(parts: &[(&str, Vec<u8>)], credentials: &dyn Credentials) -> (LoginOutcome, Preauth) {
    let (mut observer, mut preauth) = (LoginObserver::default(), Preauth::new());
    let mut last = Vec::new();
    let login = parts.iter().filter(|(name, _)| name.starts_with("negotiate") || name.starts_with("session"));
    for (name, msg) in login {
        let is_final = *name == "session-setup-response" && Header::parse(msg).unwrap().status == 0;
        // The last answer is signed by the key, and cannot be part of it.
        if !is_final {
            preauth.update(msg);
        }
        match *name {
            "session-setup-request" => observer.client_token(token(name, msg)),
            "session-setup-response" if is_final => last = token(name, msg).to_vec(),
            "session-setup-response" => observer.server_token(token(name, msg)),
            _ => {}
        }
    }
    (observer.finish(0, &last, credentials), preauth)
}

fn all_signatures_are_right(text: &str, dialect: Dialect, alg: SigningAlg) {
    let parts = recording(text);
    check_signatures(&parts, &key_of(&parts, dialect, alg));
}

fn check_signatures(parts: &[(&str, Vec<u8>)], key: &SigningKey) {
    let mut checked = [0, 0];
    for (name, msg) in parts {
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
    assert!(checked[0] >= 2 && checked[1] >= 3, "{checked:?} messages were signed");
}

#[test]
fn what_samba_signs_by_gmac() {
    all_signatures_are_right(GMAC, Dialect::SMB311, SigningAlg::AesGmac);
}

#[test]
fn what_samba_signs_by_hmac() {
    all_signatures_are_right(HMAC, Dialect::SMB210, SigningAlg::HmacSha256);
}

/// Has a keytab, and the clock of a recording.
struct Service(Option<Arc<Keytab>>, UnixTime);

impl Credentials for Service {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        None
    }

    fn configured(&self) -> bool {
        false
    }

    fn keytab(&self) -> Option<Arc<Keytab>> {
        self.0.clone()
    }

    fn now(&self) -> UnixTime {
        self.1
    }
}

/// What a recording of a login by Kerberos was made with.
fn service(parts: &[(&str, Vec<u8>)]) -> Service {
    let time = UnixTime::from_secs(u64::from_be_bytes(array(part(parts, "unix-time"))));
    Service(Some(Arc::new(Keytab::parse(part(parts, "keytab")).unwrap())), time)
}

/// From the keytab alone to the key that both sides signed with: the node's subkey, which it chose in its last answer.
#[test]
fn what_samba_signs_after_a_login_by_kerberos() {
    for (name, text) in KERBEROS {
        let parts = recording(text);
        let (outcome, preauth) = observe(&parts, &service(&parts));
        assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("alice@EXAMPLE.COM", ""), "{name}");
        let derived = outcome.result.unwrap();
        assert_eq!(derived.protection, Protection::Kerberos);
        assert_eq!(derived.session_keys.len(), 3, "subkeys of both, and the ticket's own");
        let whole = if matches!(name, "aes256" | "sha384") { 32 } else { 16 };
        assert_eq!(derived.session_keys[0].bytes().len(), whole);
        let key = signing_key(Dialect::SMB311, &derived.session_keys[0], &preauth.value());
        check_signatures(&parts, &SigningKey::new(SigningAlg::AesGmac, &key));
        let end = derived.authority.expires().unwrap();
        assert!(end > service(&parts).1 && end < UnixTime(service(&parts).1.0 + Duration::from_secs(36_000)));
    }
}

/// Each thing that may be wrong has its own reason, and none gives a key.
#[test]
fn why_a_login_by_kerberos_is_not_protected() {
    let parts = recording(KERBEROS[1].1);
    let good = service(&parts);
    let refused = |service: &Service| {
        let outcome = observe(&parts, service).0;
        (outcome.result.unwrap_err(), outcome.user)
    };
    let of = |bytes: &[u8]| Service(Some(Arc::new(Keytab::parse(bytes).unwrap())), good.1);
    let keytab = part(&parts, "keytab");
    assert_eq!(refused(&Service(None, good.1)).0, Protection::NoKeytab);
    let (why, ticket) = refused(&of(&[5, 2]));
    assert_eq!(why, Protection::NoServiceKey);
    assert_eq!(ticket, "(a ticket for cifs/files.example.com@EXAMPLE.COM, kvno 1, aes256-cts-hmac-sha1-96)");
    // The version is what follows the key; the key ends four bytes before.
    let damaged = |at: usize| {
        let mut bytes = keytab.to_vec();
        let at = bytes.len() - at;
        bytes[at] ^= 0x40;
        of(&bytes)
    };
    assert_eq!(refused(&damaged(5)).0, Protection::NoTicketOpened);
    let mut other = keytab.to_vec();
    let name = other.windows(5).position(|w| w == b"files").unwrap();
    other[name] = b'x';
    // The key is right whatever its name or version: it opens the ticket.
    assert!(observe(&parts, &of(&other)).0.result.is_ok());
    assert!(observe(&parts, &damaged(1)).0.result.is_ok());
    for off in [301, -301] {
        let now = UnixTime::from_secs(good.1.0.as_secs().checked_add_signed(off).unwrap());
        assert_eq!(refused(&Service(good.0.clone(), now)).0, Protection::NoClock, "{off}");
    }
    assert_eq!(keytab_types(&good), [EncType::Aes256Sha1]);
}

fn keytab_types(service: &Service) -> Vec<EncType> {
    service.0.iter().flat_map(|k| k.entries()).map(|entry| entry.key().unwrap().etype()).collect()
}
