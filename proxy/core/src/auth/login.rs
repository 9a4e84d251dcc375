//! Logging a user in afresh, as a client does: one interface for every mechanism.

use std::sync::Arc;

use super::{
    Identity, UnixTime,
    kerberos::{KerberosLogin, Ticket},
    keys::{NtHash, SessionKey},
    ntlm::NtlmLogin,
};
use crate::random::Random;

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
    /// The user's ticket has expired. Only the user can get another one.
    #[error("the user's ticket has expired")]
    TicketExpired,
    /// The ticket cannot be presented.
    #[error("the user's ticket cannot be presented")]
    TicketUnusable,
}

/// One login under way: [`start`](Self::start), then [`step`](Self::step) for each answer that asks for more, then
/// [`finish`](Self::finish) for the one that says yes. Made by [`Authority::login`](super::Authority::login).
#[derive(Debug)]
pub struct Login(Mechanism);

#[derive(Debug)]
enum Mechanism {
    Ntlm(NtlmLogin),
    Kerberos(KerberosLogin),
}

impl Login {
    /// A login as `identity` by NTLM. `hash` is needed for [`Kind::Ntlm`](super::Kind::Ntlm). With `spnego` the tokens
    /// are wrapped and the mechanism list is protected; guests and anonymous users have no key for that and go without.
    pub fn ntlm(identity: &Identity, hash: Option<NtHash>, spnego: bool) -> Self {
        Self(Mechanism::Ntlm(NtlmLogin::new(identity, hash, spnego)))
    }

    /// A login with a user's own ticket, at this time.
    ///
    /// # Errors
    /// The ticket has expired.
    pub fn kerberos(ticket: &Arc<Ticket>, now: UnixTime) -> Result<Self, LoginError> {
        Ok(Self(Mechanism::Kerberos(KerberosLogin::new(ticket, now)?)))
    }

    /// The first token. It may be the only one: then the node's answer to it is for [`finish`](Self::finish).
    ///
    /// # Errors
    /// The token cannot be made.
    pub fn start(&mut self, random: &mut dyn Random) -> Result<Vec<u8>, LoginError> {
        match &mut self.0 {
            Mechanism::Ntlm(login) => Ok(login.start()),
            Mechanism::Kerberos(login) => login.start(random),
        }
    }

    /// The next token, for a node that asks for more.
    ///
    /// # Errors
    /// The node's token is not what the mechanism expects, or the node does not offer what is needed.
    pub fn step(&mut self, server_token: &[u8], random: &mut dyn Random) -> Result<Vec<u8>, LoginError> {
        match &mut self.0 {
            Mechanism::Ntlm(login) => login.step(server_token, random),
            Mechanism::Kerberos(login) => login.step(server_token),
        }
    }

    /// Takes in the token that came with success. With Kerberos the key may come only here. What proves the node is the
    /// signature of its answer, by [`session_key`](Self::session_key); this is the mechanism's own proof on top.
    ///
    /// # Errors
    /// The node refuses, or does not prove that it knows the key.
    pub fn finish(&mut self, server_token: &[u8]) -> Result<(), LoginError> {
        match &mut self.0 {
            Mechanism::Ntlm(login) => login.finish(server_token),
            Mechanism::Kerberos(login) => login.finish(server_token),
        }
    }

    /// The session key, once [`finish`](Self::finish) has been called. `None` for guest and anonymous.
    pub fn session_key(&self) -> Option<&SessionKey> {
        match &self.0 {
            Mechanism::Ntlm(login) => login.session_key(),
            Mechanism::Kerberos(login) => login.session_key(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{
            Credentials, Identity, Kind, LoginObserver, UnixTime,
            keys::NtHash,
            ntlm::message::{self, flags},
            spnego,
        },
        event::Protection,
    };

    /// What a client offers.
    const OFFERED: u32 = flags::UNICODE
        | flags::REQUEST_TARGET
        | flags::SIGN
        | flags::NTLM
        | flags::ALWAYS_SIGN
        | flags::EXTENDED_SECURITY
        | flags::KEY_128
        | flags::KEY_EXCH;

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

        fn now(&self) -> UnixTime {
            UnixTime::default()
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
        exchange_after(None, spnego, hash)
    }

    fn exchange_after(first: Option<&[u8]>, spnego: bool, hash: u8) -> (Login, LoginObserver) {
        let identity = Identity {
            user: "alice".into(),
            domain: "WG".into(),
            workstation: "PC".into(),
            kind: Kind::Ntlm,
        };
        let mut login = Login::ntlm(&identity, Some(NtHash::new([hash; 16])), spnego);
        let mut observer = LoginObserver::default();
        first.iter().for_each(|token| observer.client_token(token));
        observer.client_token(&login.start(&mut Counting(0)).unwrap());
        let server = if spnego { spnego::response(&challenge(), None) } else { challenge() };
        observer.server_token(&server);
        observer.client_token(&login.step(&server, &mut Counting(0)).unwrap());
        (login, observer)
    }

    #[test]
    fn observer_and_login_find_the_same_key() {
        for spnego in [false, true] {
            let (login, mut observer) = exchange(spnego, 3);
            let outcome = observer.finish(0, &[], &One(NtHash::new([3; 16])));
            let derived = outcome.result.unwrap();
            assert_eq!(derived.session_keys[0].bytes(), login.session_key().unwrap().bytes());
            assert_eq!((outcome.user.as_str(), outcome.domain.as_str()), ("alice", "WG"));
        }
    }

    #[test]
    fn a_stale_hash_is_noticed() {
        let (_, mut observer) = exchange(true, 4);
        let outcome = observer.finish(0, &[], &One(NtHash::new([3; 16])));
        assert_eq!(outcome.result.unwrap_err(), Protection::NoKeyMismatch);
    }

    #[test]
    fn a_guest_needs_no_hash_and_gets_no_key() {
        let (_, mut observer) = exchange(true, 4);
        let derived = observer.finish(1, &[], &crate::auth::NoCredentials).result.unwrap();
        assert_eq!(derived.protection, Protection::Guest);
        assert!(derived.session_keys.is_empty());
    }

    #[test]
    fn another_mechanism_is_said_so() {
        let mut observer = LoginObserver::default();
        observer.client_token(&spnego::init(spnego::Mech::Kerberos, b"\x60kerberos"));
        let outcome = observer.finish(0, &[], &crate::auth::NoCredentials);
        assert_eq!(outcome.result.unwrap_err(), Protection::NoMechanism);
    }

    /// A client's first token is for the mechanism that it likes best; the node may take another one (RFC 4178 3.2).
    #[test]
    fn the_mechanism_of_the_last_token_counts() {
        let ap_req = spnego::init(spnego::Mech::Kerberos, &[0x6e, 1, 0]);
        let (login, mut observer) = exchange(true, 3);
        let after = observer.finish(0, &[], &One(NtHash::new([3; 16])));
        assert_eq!(after.result.unwrap().session_keys[0].bytes(), login.session_key().unwrap().bytes());
        observer.client_token(&ap_req);
        let after = observer.finish(0, &[], &One(NtHash::new([3; 16])));
        assert_eq!(after.result.unwrap_err(), Protection::NoKeytab);
        let (login, observed) = exchange_after(Some(&ap_req), true, 3);
        let after = { observed }.finish(0, &[], &One(NtHash::new([3; 16])));
        assert_eq!(after.result.unwrap().session_keys[0].bytes(), login.session_key().unwrap().bytes());
    }

    #[test]
    fn a_weaker_challenge_is_not_answered() {
        let identity = Identity {
            user: "alice".into(),
            domain: String::new(),
            workstation: String::new(),
            kind: Kind::Ntlm,
        };
        let mut login = Login::ntlm(&identity, Some(NtHash::new([3; 16])), false);
        login.start(&mut Counting(0)).unwrap();
        let mut weak = challenge();
        weak[20..24].copy_from_slice(&flags::UNICODE.to_le_bytes());
        assert_eq!(login.step(&weak, &mut Counting(0)).unwrap_err(), LoginError::Weak);
    }
}
