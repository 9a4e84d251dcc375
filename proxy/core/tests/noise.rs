//! Everything in the core that reads bytes of a login, or of a node that is asked about itself, fed with noise and with
//! damaged messages: whatever comes, nothing panics, and nothing is believed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a recording that cannot be read stops the test")]

mod support;
#[path = "support/zeros.rs"]
mod zeros;

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use smb_parse::{
    cmd::session_setup,
    encode,
    header::{Command, Header},
};
use support::{Known, part, recording};
use understudy_core::{
    auth::{
        Credentials, Derived, Identity, Kind, Login, LoginObserver, UnixTime,
        kerberos::Keytab,
        keys::{NtHash, SessionKey},
        ntlm::message::{self, Authenticate, Challenge},
        smbpasswd::Smbpasswd,
        spnego,
    },
    crypto::signing::{SigningAlg, SigningKey},
    event::Protection,
    fleet::{
        interview::{Interview, Visitor},
        profile::Volume,
    },
};
use zeros::Zeros;

/// A login by Kerberos, with the keytab and the time that belong to it.
const KERBEROS: &str = include_str!("data/kerberos-aes256.txt");

/// Has the keytab of [`KERBEROS`].
struct Service;

impl Credentials for Service {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        None
    }

    fn configured(&self) -> bool {
        false
    }

    fn keytab(&self) -> Option<Arc<Keytab>> {
        static KEYTAB: LazyLock<Arc<Keytab>> =
            LazyLock::new(|| Arc::new(Keytab::parse(part(&recording(KERBEROS), "keytab")).unwrap()));
        Some(Arc::clone(&KEYTAB))
    }

    fn now(&self) -> UnixTime {
        static TIME: LazyLock<u64> =
            LazyLock::new(|| u64::from_be_bytes(part(&recording(KERBEROS), "unix-time").try_into().unwrap()));
        UnixTime::from_secs(*TIME)
    }
}

/// Security buffers of both sides, raw and wrapped.
fn tokens() -> Vec<Vec<u8>> {
    let windows = recording(include_str!("data/windows-3.1.1-cmac.txt"));
    let nlmp = recording(include_str!("data/ms-nlmp-4.2.4.txt"));
    let kerberos = recording(KERBEROS);
    let mut tokens: Vec<_> = (windows.iter().chain(&kerberos))
        .filter_map(|(name, msg)| match *name {
            "session-setup-request" => Some(session_setup::Request::parse(msg).unwrap().security_buffer),
            "session-setup-response" => Some(session_setup::Response::parse(msg).unwrap().security_buffer),
            _ => None,
        })
        .map(<[u8]>::to_vec)
        .collect();
    tokens.extend(["challenge", "authenticate"].map(|name| part(&nlmp, name).to_vec()));
    // Without their wrapping too.
    let (request, reply) = kerberos_tokens();
    tokens.extend([&request, &reply].map(|token| spnego::unwrap(token).token.unwrap().to_vec()));
    tokens.push(spnego::response(part(&nlmp, "challenge"), Some(&[7; 16])));
    tokens
}

/// The client's token and the node's answer of [`KERBEROS`].
fn kerberos_tokens() -> (Vec<u8>, Vec<u8>) {
    let parts = recording(KERBEROS);
    let request = session_setup::Request::parse(part(&parts, "session-setup-request")).unwrap();
    let response = session_setup::Response::parse(part(&parts, "session-setup-response")).unwrap();
    (request.security_buffer.to_vec(), response.security_buffer.to_vec())
}

/// What [`KERBEROS`] gives when it is whole.
static DERIVED: LazyLock<Derived> = LazyLock::new(|| {
    let (request, reply) = kerberos_tokens();
    let mut observer = LoginObserver::default();
    observer.client_token(&request);
    observer.finish(0, &reply, &Service).result.unwrap()
});

/// A token with some bytes changed, cut somewhere.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(tokens()).prop_flat_map(damaged_of)
}

/// The same of one token.
fn damaged_of(token: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(move |(changes, cut, whole)| {
        let mut token = token.clone();
        for (at, byte) in changes {
            let at = at.index(token.len());
            token[at] = byte;
        }
        if !whole {
            token.truncate(cut.index(token.len()));
        }
        token
    })
}

/// Noise that may begin like one of the formats.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    const STARTS: [&[u8]; 8] =
        [b"", b"\x60", b"\x6e", b"\x6f", b"\xa0", b"\xa1", b"NTLMSSP\0\x02\0\0\0", b"NTLMSSP\0\x03\0\0\0"];
    let start = prop::sample::select(&STARTS[..]);
    (start, prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(start, rest)| [start, &rest].concat())
}

/// What a node may answer: a message of a recorded session, maybe damaged, or noise.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let messages: Vec<_> = [
        include_str!("data/samba-3.1.1-gmac.txt"),
        include_str!("data/samba-2.1-hmac.txt"),
        include_str!("data/windows-3.1.1-cmac.txt"),
    ]
    .iter()
    .flat_map(|text| recording(text))
    .map(|(_, bytes)| bytes)
    .filter(|bytes| Header::parse(bytes).is_ok_and(|header| header.is_response()))
    .collect();
    let recorded = prop::sample::select(messages);
    let damage = (any::<prop::sample::Index>(), any::<u8>());
    prop_oneof![
        4 => recorded.clone(),
        4 => (recorded, damage).prop_map(|(mut message, (at, byte))| {
            let at = at.index(message.len());
            message[at] ^= byte;
            message
        }),
        1 => noise(),
    ]
}

/// Through every reader.
fn read(token: &[u8]) {
    let unwrapped = spnego::unwrap(token);
    for inner in [Some(token), unwrapped.token].into_iter().flatten() {
        let _ = (message::message_type(inner), Challenge::parse(inner));
        if let Some(answer) = Authenticate::parse(inner) {
            let _ = (answer.proof(), answer.has_mic(), answer.is_anonymous());
        }
        let _ = Challenge::parse(inner).map(|challenge| challenge.names());
    }
    for kind in [Kind::Ntlm, Kind::Guest, Kind::Anonymous] {
        for wrapped in [false, true] {
            let mut login = login(kind, wrapped);
            login.start(&mut Zeros).unwrap();
            let _ = login.step(token, &mut Zeros);
            let _ = login.finish(token);
        }
    }
    let mut observer = LoginObserver::default();
    observer.client_token(token);
    let _ = observer.finish(0, token, &Service);
}

fn login(kind: Kind, wrapped: bool) -> Login {
    let name = "User".to_owned();
    let identity = Identity { user: name.clone(), domain: name.clone(), workstation: name, kind };
    Login::ntlm(&identity, Some(NtHash::new([1; 16])), wrapped)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn no_reader_panics_at_noise(token in noise()) {
        read(&token);
    }

    #[test]
    fn no_reader_panics_at_damage(token in damaged()) {
        read(&token);
    }

    /// Whatever the two sides say, a key comes only with the proof: the hash of nobody proves nothing.
    #[test]
    fn an_observer_believes_no_one_without_proof(client in prop::collection::vec(damaged(), 0..3), server in damaged(), last in damaged(), flags in 0..8_u16) {
        let mut observer = LoginObserver::default();
        observer.server_token(&server);
        client.iter().for_each(|token| observer.client_token(token));
        let outcome = observer.finish(flags, &last, &Known([1; 16]));
        if let Ok(derived) = outcome.result {
            prop_assert!(derived.session_keys.is_empty() && derived.protection != Protection::Ntlm);
        }
    }

    /// Whatever is changed on the way: if it is believed at all, it is the same user and the same keys.
    #[test]
    fn an_observer_of_kerberos_believes_what_the_keys_prove(client in damaged_of(kerberos_tokens().0), server in damaged_of(kerberos_tokens().1)) {
        let mut observer = LoginObserver::default();
        observer.client_token(&client);
        let outcome = observer.finish(0, &server, &Service);
        if let Ok(found) = outcome.result {
            prop_assert_eq!(outcome.user, "alice@EXAMPLE.COM");
            let known = &DERIVED.session_keys;
            for key in &found.session_keys {
                prop_assert!(known.iter().any(|known| known.bytes() == key.bytes()));
            }
        }
    }

    /// Nobody who has not the ticket's key can answer our login.
    #[test]
    fn a_login_by_kerberos_survives_any_answer(first in damaged(), second in damaged()) {
        let mut login = DERIVED.authority.login(&Service).unwrap();
        login.start(&mut Zeros).unwrap();
        prop_assert!(login.step(&first, &mut Zeros).is_err());
        prop_assert!(login.finish(&second).is_err());
        prop_assert!(login.session_key().is_none());
    }

    #[test]
    fn no_keytab_panics(bytes in damaged_of(part(&recording(KERBEROS), "keytab").to_vec())) {
        if let Ok(keytab) = Keytab::parse(&bytes) {
            let _ = keytab.usable();
        }
    }

    #[test]
    fn an_interview_ends_whatever_the_node_says(answers in prop::collection::vec(answer(), 0..40)) {
        let shares = vec!["share".to_owned(), "other".to_owned()];
        let visitor = Visitor { user: "alice".into(), hash: NtHash::new([1; 16]), host: "node".into(), shares };
        let mut interview = Interview::new(Some(visitor));
        let mut answers = answers.into_iter();
        let mut asked = 0;
        while interview.ask(&mut Zeros).is_some() {
            asked += 1;
            prop_assert!(asked < 100, "an interview without end");
            match answers.next() {
                Some(mut answer) => interview.handle_answer(&mut answer, &mut Zeros),
                None => interview.handle_closed(),
            }
        }
        // No one knows the key by which a volume could be told.
        let volumes = interview.finish().unwrap_or_default().volumes;
        prop_assert!(volumes.values().all(|volume| matches!(volume, Volume::Refused(_))));
    }

    #[test]
    fn no_smbpasswd_panics(text in "(?s).{0,200}") {
        let _ = Smbpasswd::parse(&text);
    }

    #[test]
    fn no_line_of_an_smbpasswd_is_quoted(fields in prop::collection::vec("[A-Za-z0-9é\\[\\]]{0,34}", 1..8)) {
        let line = fields.join(":");
        if let Err(errors) = Smbpasswd::parse(&line) {
            let said = format!("{errors:?} {}", errors[0]);
            for field in fields.iter().filter(|field| field.len() > 20) {
                prop_assert!(!said.contains(field), "{said}");
            }
        }
    }

    #[test]
    fn what_is_no_message_is_not_signed_and_does_not_verify(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for alg in [SigningAlg::HmacSha256, SigningAlg::AesCmac, SigningAlg::AesGmac] {
            let key = SigningKey::new(alg, &[3; 16]);
            let mut msg = bytes.clone();
            prop_assert!(!key.verify_mut(&mut msg));
            prop_assert_eq!(&msg, &bytes);
            if Header::parse(&bytes).is_err() {
                key.sign(&mut msg);
                prop_assert_eq!(&msg, &bytes);
            }
        }
    }
}

/// Every byte that the proof is made of: the server's challenge, the domain, the proof and its blob.
#[test]
fn a_changed_bit_of_the_example_gives_no_key() {
    let parts = recording(include_str!("data/ms-nlmp-4.2.4.txt"));
    let hash = part(&parts, "nt-hash").try_into().unwrap();
    for (name, range) in [("challenge", 24..32), ("authenticate", 72..84), ("authenticate", 132..216)] {
        for at in range {
            let mut observer = LoginObserver::default();
            for message in ["challenge", "authenticate"] {
                let mut bytes = part(&parts, message).to_vec();
                if message == name {
                    bytes[at] ^= 4;
                }
                observer.server_token(&bytes);
                observer.client_token(&bytes);
            }
            let outcome = observer.finish(0, &[], &Known(hash));
            assert!(outcome.result.is_err(), "byte {at} of the {name}");
        }
    }
}

#[test]
fn an_smbpasswd_of_any_cut_is_read_or_refused() {
    let text = "älice:1000:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789ABCDEF:[U          ]:LCT-65F0A2B1:\n";
    for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
        let found = Smbpasswd::parse(&text[..cut]).map(|file| file.len());
        // The hash ends at byte 76: with it the user is known, if the flags are whole or not there at all.
        assert!(matches!(found, Ok(0 | 1) | Err(_)), "{cut}");
        assert!(cut >= 77 || !matches!(found, Ok(1)), "a cut hash is a hash: {cut}");
    }
}

/// No secret of a login can be printed, whoever holds it.
#[test]
fn secrets_print_as_stars() {
    let secret = [0xa7; 16];
    let shown = |text: String| {
        assert!(!text.contains("167") && !text.contains("a7") && text.contains("***"), "{text}");
    };
    shown(format!("{:?}", SessionKey::new(&secret)));
    shown(format!("{:?}", NtHash::new(secret)));
    for alg in [SigningAlg::HmacSha256, SigningAlg::AesCmac, SigningAlg::AesGmac] {
        shown(format!("{:?}", SigningKey::new(alg, &secret)));
    }
    let identity =
        Identity { user: "u".into(), domain: "d".into(), workstation: "w".into(), kind: Kind::Ntlm };
    shown(format!("{:?}", Login::ntlm(&identity, Some(NtHash::new(secret)), true)));
    let line = "alice:1:X:A7A7A7A7A7A7A7A7A7A7A7A7A7A7A7A7:[U          ]:LCT-0:";
    shown(format!("{:?}", Smbpasswd::parse(line).unwrap()));
}

/// An ECHO is a message: the rule above is not kept by refusing everything.
#[test]
fn a_message_is_signed() {
    let key = SigningKey::new(SigningAlg::AesGmac, &[3; 16]);
    let mut msg = encode::echo(&Header::request(Command::ECHO, 1));
    key.sign(&mut msg);
    assert!(key.verify_mut(&mut msg));
}
