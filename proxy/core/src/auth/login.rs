//! Logging a user in afresh, as a client does (MS-NLMP 3.1.5.1).

use zeroize::Zeroizing;

use super::{
    Identity, Kind,
    keys::{NtHash, SessionKey},
    ntlm::{
        message::{self, AuthenticateParams, Challenge, flags},
        proof::{self, Proof, Side},
    },
    spnego,
};
use crate::random::Random;

const OFFERED: u32 = flags::UNICODE
    | flags::REQUEST_TARGET
    | flags::SIGN
    | flags::NTLM
    | flags::ALWAYS_SIGN
    | flags::EXTENDED_SECURITY
    | flags::KEY_128
    | flags::KEY_EXCH;

/// Why a login cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The node's token is not an NTLM CHALLENGE.
    #[error("the node's token is not an NTLM challenge")]
    NoChallenge,
    /// The node offers less than what the proof needs.
    #[error("the node does not agree to NTLMv2 with key exchange")]
    Weak,
    /// No hash is known for the user.
    #[error("no hash is known for the user")]
    NoHash,
    /// The node refused, or could not prove that it knows the key.
    #[error("the node's last token does not prove that it knows the key")]
    NotProved,
}

/// One login under way.
#[derive(Debug)]
pub struct Login {
    identity: Identity,
    hash: Option<NtHash>,
    spnego: bool,
    negotiate: Vec<u8>,
    session_key: Option<SessionKey>,
}

impl Login {
    /// A login as `identity`. `hash` is needed for [`Kind::Ntlm`]. With `spnego` the tokens are wrapped and the
    /// mechanism list is protected; guests and anonymous users have no key for that and go without.
    pub fn new(identity: &Identity, hash: Option<NtHash>, spnego: bool) -> Self {
        Self {
            identity: identity.clone(),
            hash,
            spnego: spnego && identity.kind == Kind::Ntlm,
            negotiate: Vec::new(),
            session_key: None,
        }
    }

    /// The first token.
    pub fn start(&mut self) -> Vec<u8> {
        self.negotiate = message::negotiate(OFFERED);
        if self.spnego { spnego::init(&self.negotiate) } else { self.negotiate.clone() }
    }

    /// The answer to the node's challenge.
    ///
    /// # Errors
    /// The token is no challenge, the node does not offer what is needed, or there is no hash.
    pub fn step(&mut self, server_token: &[u8], random: &mut dyn Random) -> Result<Vec<u8>, LoginError> {
        let raw = spnego::unwrap(server_token).token.ok_or(LoginError::NoChallenge)?;
        let challenge = Challenge::parse(raw).ok_or(LoginError::NoChallenge)?;
        match self.identity.kind {
            Kind::Anonymous => Ok(self.anonymous(&challenge)),
            Kind::Guest => {
                let mut nobody = [0; 16];
                random.fill(&mut nobody);
                let (token, _) = self.prove(&NtHash::new(nobody), &challenge, raw, false, random);
                Ok(token)
            }
            Kind::Ntlm => {
                let needed = flags::EXTENDED_SECURITY | flags::KEY_EXCH | flags::KEY_128;
                if challenge.flags & needed != needed {
                    return Err(LoginError::Weak);
                }
                let hash = self.hash.take().ok_or(LoginError::NoHash)?;
                let (token, key) = self.prove(&hash, &challenge, raw, true, random);
                let wrapped = if self.spnego {
                    let mic = proof::first_signature(&key, Side::Client, true, &spnego::mech_list());
                    spnego::response(&token, Some(&mic))
                } else {
                    token
                };
                self.session_key = Some(key);
                Ok(wrapped)
            }
        }
    }

    /// Checks the token that came with success. What proves the node is the signature of its answer; this is SPNEGO's
    /// own proof on top.
    ///
    /// # Errors
    /// The node refuses, or its mechListMIC is wrong.
    pub fn finish(&self, server_token: &[u8]) -> Result<(), LoginError> {
        let got = spnego::unwrap(server_token);
        if got.rejected {
            return Err(LoginError::NotProved);
        }
        match (&self.session_key, got.mic) {
            (Some(key), Some(mic)) => {
                let expected = proof::first_signature(key, Side::Server, true, &spnego::mech_list());
                if proof::equal(&expected, mic) { Ok(()) } else { Err(LoginError::NotProved) }
            }
            _ => Ok(()),
        }
    }

    /// The exported session key, once the challenge has been answered. `None` for guest and anonymous.
    pub fn session_key(&self) -> Option<&SessionKey> {
        self.session_key.as_ref()
    }

    fn anonymous(&self, challenge: &Challenge<'_>) -> Vec<u8> {
        message::authenticate(&AuthenticateParams {
            lm_response: &[0],
            nt_response: &[],
            domain: "",
            user: "",
            workstation: &self.identity.workstation,
            encrypted_key: &[],
            flags: challenge.flags & OFFERED & !flags::KEY_EXCH | flags::ANONYMOUS,
        })
    }

    fn prove(
        &self,
        hash: &NtHash,
        challenge: &Challenge<'_>,
        raw_challenge: &[u8],
        with_mic: bool,
        random: &mut dyn Random,
    ) -> (Vec<u8>, SessionKey) {
        let (info, time) = message::target_info_with_mic(challenge.target_info, with_mic);
        let mut client_challenge = [0; 8];
        random.fill(&mut client_challenge);
        let mut blob = vec![1, 1, 0, 0, 0, 0, 0, 0];
        blob.extend_from_slice(&time.to_le_bytes());
        blob.extend_from_slice(&client_challenge);
        blob.extend_from_slice(&[0; 4]);
        blob.extend_from_slice(&info);
        blob.extend_from_slice(&[0; 4]);
        let identity = &self.identity;
        let proof = Proof::new(hash, &identity.user, &identity.domain, &challenge.server_challenge, &blob);
        let mut key = Zeroizing::new([0; 16]);
        random.fill(&mut *key);
        let session_key = SessionKey::new(&*key);
        let mut encrypted = key;
        proof::rc4(&*proof.base_key, &mut *encrypted);
        let nt_response = [&proof.nt_proof[..], &blob].concat();
        let mut token = message::authenticate(&AuthenticateParams {
            lm_response: &[0; 24],
            nt_response: &nt_response,
            domain: &identity.domain,
            user: &identity.user,
            workstation: &identity.workstation,
            encrypted_key: &*encrypted,
            flags: challenge.flags & OFFERED | flags::TARGET_INFO,
        });
        if with_mic {
            let mic = proof::mic(&session_key, [&self.negotiate, raw_challenge, &token]);
            if let Some(field) = token.get_mut(message::MIC) {
                field.copy_from_slice(&mic);
            }
        }
        (token, session_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{Credentials, LoginObserver},
        event::Protection,
    };

    struct Counting(u8);

    impl Random for Counting {
        fn fill(&mut self, buf: &mut [u8]) {
            for byte in buf {
                self.0 = self.0.wrapping_add(1);
                *byte = self.0;
            }
        }
    }

    struct One(NtHash);

    impl Credentials for One {
        fn nt_hash(&self, _domain: &str, user: &str) -> Option<NtHash> {
            (user == "alice").then(|| self.0.clone())
        }

        fn configured(&self) -> bool {
            true
        }
    }

    fn challenge() -> Vec<u8> {
        let mut out = message::SIGNATURE.to_vec();
        out.extend(2_u32.to_le_bytes());
        out.extend([0, 0, 0, 0, 48, 0, 0, 0]);
        out.extend((OFFERED | flags::TARGET_INFO).to_le_bytes());
        out.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        out.extend([0; 8]);
        out.extend([16, 0, 16, 0, 48, 0, 0, 0]);
        out.extend([7, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
        out
    }

    fn exchange(spnego: bool, hash: u8) -> (Login, LoginObserver) {
        let identity = Identity {
            user: "alice".into(),
            domain: "WG".into(),
            workstation: "PC".into(),
            kind: Kind::Ntlm,
        };
        let mut login = Login::new(&identity, Some(NtHash::new([hash; 16])), spnego);
        let mut observer = LoginObserver::default();
        observer.client_token(&login.start());
        let server = if spnego { spnego::response(&challenge(), None) } else { challenge() };
        observer.server_token(&server);
        observer.client_token(&login.step(&server, &mut Counting(0)).unwrap());
        (login, observer)
    }

    #[test]
    fn observer_and_login_find_the_same_key() {
        for spnego in [false, true] {
            let (login, observer) = exchange(spnego, 3);
            let outcome = observer.finish(0, &One(NtHash::new([3; 16])));
            let derived = outcome.result.unwrap();
            assert_eq!(derived.session_key.unwrap().bytes(), login.session_key().unwrap().bytes());
            assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("alice", "WG"));
        }
    }

    #[test]
    fn a_stale_hash_is_noticed() {
        let (_, observer) = exchange(true, 4);
        let outcome = observer.finish(0, &One(NtHash::new([3; 16])));
        assert_eq!(outcome.result.unwrap_err(), Protection::NoKeyMismatch);
    }

    #[test]
    fn a_guest_needs_no_hash_and_gets_no_key() {
        let (_, observer) = exchange(true, 4);
        let derived = observer.finish(1, &crate::auth::NoCredentials).result.unwrap();
        assert_eq!(derived.kind, Kind::Guest);
        assert!(derived.session_key.is_none());
    }

    #[test]
    fn another_mechanism_is_said_so() {
        let mut observer = LoginObserver::default();
        observer.client_token(&spnego::init(b"\x60kerberos"));
        let outcome = observer.finish(0, &crate::auth::NoCredentials);
        assert_eq!(outcome.result.unwrap_err(), Protection::NoMechanism);
    }

    #[test]
    fn a_weaker_challenge_is_not_answered() {
        let identity = Identity {
            user: "alice".into(),
            domain: String::new(),
            workstation: String::new(),
            kind: Kind::Ntlm,
        };
        let mut login = Login::new(&identity, Some(NtHash::new([3; 16])), false);
        login.start();
        let mut weak = challenge();
        weak[20..24].copy_from_slice(&flags::UNICODE.to_le_bytes());
        assert_eq!(login.step(&weak, &mut Counting(0)).unwrap_err(), LoginError::Weak);
    }
}
