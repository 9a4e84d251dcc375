//! Logging a user in afresh by NTLM, as a client does (MS-NLMP 3.1.5.1).

use zeroize::Zeroizing;

use super::{
    message::{self, AuthenticateParams, Challenge, flags},
    proof::{self, Proof, Side},
};
use crate::{
    auth::{
        Identity, Kind, LoginError,
        keys::{NtHash, SessionKey},
        spnego::{self, Mech},
    },
    random::Random,
};

const OFFERED: u32 = flags::UNICODE
    | flags::REQUEST_TARGET
    | flags::SIGN
    | flags::NTLM
    | flags::ALWAYS_SIGN
    | flags::EXTENDED_SECURITY
    | flags::KEY_128
    | flags::KEY_EXCH;

/// One login by NTLM under way; see [`Login`](crate::auth::Login).
#[derive(Debug)]
pub(crate) struct NtlmLogin {
    identity: Identity,
    hash: Option<NtHash>,
    spnego: bool,
    negotiate: Vec<u8>,
    session_key: Option<SessionKey>,
}

impl NtlmLogin {
    /// A login as `identity`. `hash` is needed for [`Kind::Ntlm`]. With `spnego` the tokens are wrapped and the
    /// mechanism list is protected; guests and anonymous users have no key for that and go without.
    pub(crate) fn new(identity: &Identity, hash: Option<NtHash>, spnego: bool) -> Self {
        Self {
            identity: identity.clone(),
            hash,
            spnego: spnego && identity.kind == Kind::Ntlm,
            negotiate: Vec::new(),
            session_key: None,
        }
    }

    /// The first token.
    pub(crate) fn start(&mut self) -> Vec<u8> {
        self.negotiate = message::negotiate(OFFERED);
        if self.spnego { spnego::init(Mech::Ntlm, &self.negotiate) } else { self.negotiate.clone() }
    }

    /// The answer to the node's challenge.
    ///
    /// # Errors
    /// The token is no challenge, the node does not offer what is needed, or there is no hash.
    pub(crate) fn step(
        &mut self,
        server_token: &[u8],
        random: &mut dyn Random,
    ) -> Result<Vec<u8>, LoginError> {
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
                    let mic =
                        proof::first_signature(&key, Side::Client, true, &spnego::mech_list(Mech::Ntlm));
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
    pub(crate) fn finish(&self, server_token: &[u8]) -> Result<(), LoginError> {
        let got = spnego::unwrap(server_token);
        if got.rejected {
            return Err(LoginError::NotProved);
        }
        match (&self.session_key, got.mic) {
            (Some(key), Some(mic)) => {
                let expected =
                    proof::first_signature(key, Side::Server, true, &spnego::mech_list(Mech::Ntlm));
                if proof::equal(&expected, mic) { Ok(()) } else { Err(LoginError::NotProved) }
            }
            _ => Ok(()),
        }
    }

    /// The exported session key, once the challenge has been answered. `None` for guest and anonymous.
    pub(crate) fn session_key(&self) -> Option<&SessionKey> {
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
