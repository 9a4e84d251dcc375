//! Watching a login that passes between a client and a node.

use super::{
    Authority, Credentials, Identity, Kind,
    kerberos::{self, Exchange, Token},
    keys::SessionKey,
    ntlm::{
        message::{self, Authenticate, Challenge, flags},
        proof::{self, Proof},
    },
    spnego,
};
use crate::event::Protection;

/// `SMB2_SESSION_FLAG_IS_GUEST` (MS-SMB2 2.2.6).
const SESSION_GUEST: u16 = 0x0001;
/// `SMB2_SESSION_FLAG_IS_NULL`.
const SESSION_NULL: u16 = 0x0002;

/// The messages of one login, as they passed in SESSION_SETUP security buffers.
#[derive(Default)]
pub struct LoginObserver {
    negotiate: Vec<u8>,
    challenge: Vec<u8>,
    authenticate: Vec<u8>,
    kerberos: Exchange,
    /// Whose token was the last that the client sent: its first one is for the mechanism it likes best, which the node may
    /// not take.
    mechanism: Mechanism,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    #[default]
    Ntlm,
    Kerberos,
    Other,
}

impl std::fmt::Debug for LoginObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginObserver").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// What a login came to.
#[derive(Debug)]
pub struct LoginOutcome {
    /// The user as the client named them, `user@REALM` with Kerberos; empty if it named none. If the ticket cannot be read,
    /// what can be told of it, in brackets.
    pub user: String,
    /// The domain as the client named it.
    pub domain: String,
    /// The client's own name.
    pub workstation: String,
    /// The authority gained, or why there is none.
    pub result: Result<Derived, Protection>,
}

/// The authority to act for a user.
#[derive(Debug)]
pub struct Derived {
    /// What the session is called if a key is proved, or none is needed.
    pub protection: Protection,
    /// The keys the session's keys may derive from, the likeliest first: the one that verifies the node's answer is it.
    /// None for guest and anonymous sessions, which are not signed.
    pub session_keys: Vec<SessionKey>,
    /// How to log in on a further node.
    pub authority: Authority,
}

impl LoginObserver {
    /// Takes a security buffer of the client in.
    pub fn client_token(&mut self, buffer: &[u8]) {
        let Some(token) = spnego::unwrap(buffer).token else { return };
        self.mechanism = match (message::message_type(token), kerberos::parse(token)) {
            (Some(1), _) => {
                self.negotiate = token.to_vec();
                Mechanism::Ntlm
            }
            (Some(3), _) => {
                self.authenticate = token.to_vec();
                Mechanism::Ntlm
            }
            (_, Some(request @ Token::ApReq(_))) => {
                self.kerberos.take(request);
                Mechanism::Kerberos
            }
            _ => Mechanism::Other,
        };
    }

    /// Takes a security buffer of the node in.
    pub fn server_token(&mut self, buffer: &[u8]) {
        let Some(token) = spnego::unwrap(buffer).token else { return };
        if message::message_type(token) == Some(2) {
            self.challenge = token.to_vec();
        } else if let Some(reply @ Token::ApRep(_)) = kerberos::parse(token) {
            self.kerberos.take(reply);
        }
    }

    /// The node said yes, with these SessionFlags and this security buffer.
    pub fn finish(
        &mut self,
        session_flags: u16,
        last_token: &[u8],
        credentials: &dyn Credentials,
    ) -> LoginOutcome {
        match self.mechanism {
            Mechanism::Ntlm => self.finish_ntlm(session_flags, credentials),
            Mechanism::Kerberos => {
                self.server_token(last_token);
                self.finish_kerberos(session_flags, credentials)
            }
            Mechanism::Other => nobody(Protection::NoMechanism),
        }
    }

    fn finish_kerberos(&self, session_flags: u16, credentials: &dyn Credentials) -> LoginOutcome {
        let outcome = self.kerberos.finish(credentials);
        let signed = session_flags & (SESSION_GUEST | SESSION_NULL) == 0;
        let result = outcome.result.map(|(ticket, keys)| Derived {
            protection: if signed { Protection::Kerberos } else { Protection::Guest },
            session_keys: if signed { keys } else { Vec::new() },
            authority: Authority::Kerberos(ticket),
        });
        LoginOutcome { user: outcome.user, domain: String::new(), workstation: String::new(), result }
    }

    fn finish_ntlm(&self, session_flags: u16, credentials: &dyn Credentials) -> LoginOutcome {
        let Some(auth) = Authenticate::parse(&self.authenticate) else { return nobody(Protection::NoLogin) };
        let identity = |kind| Identity {
            user: auth.user.clone(),
            domain: auth.domain.clone(),
            workstation: auth.workstation.clone(),
            kind,
        };
        let derived = |kind: Kind, session_keys| Derived {
            protection: kind.protection(),
            session_keys,
            authority: Authority::Ntlm(identity(kind)),
        };
        let result = if auth.is_anonymous() || session_flags & SESSION_NULL != 0 {
            Ok(derived(Kind::Anonymous, Vec::new()))
        } else if session_flags & SESSION_GUEST != 0 {
            Ok(derived(Kind::Guest, Vec::new()))
        } else {
            self.derive(&auth, credentials).map(|key| derived(Kind::Ntlm, vec![key]))
        };
        LoginOutcome {
            user: auth.user.clone(),
            domain: auth.domain.clone(),
            workstation: auth.workstation.clone(),
            result,
        }
    }

    /// The session key, once the client's proof and its MIC hold.
    fn derive(
        &self,
        auth: &Authenticate<'_>,
        credentials: &dyn Credentials,
    ) -> Result<SessionKey, Protection> {
        let challenge = Challenge::parse(&self.challenge).ok_or(Protection::NoLogin)?;
        let (nt_proof, blob) = auth.proof().ok_or(Protection::NoLogin)?;
        if !credentials.configured() {
            return Err(Protection::NoCredentials);
        }
        let hash = credentials.nt_hash(&auth.domain, &auth.user).ok_or(Protection::NoUserUnknown)?;
        let proof = Proof::new(&hash, &auth.user, &auth.domain, &challenge.server_challenge, blob);
        if !proof::equal(&proof.nt_proof, &nt_proof) {
            return Err(Protection::NoKeyMismatch);
        }
        let exchanged = auth.flags & flags::KEY_EXCH != 0;
        let key = proof::exported_key(&proof, exchanged, auth.encrypted_key).ok_or(Protection::NoLogin)?;
        if let (true, Some(mic)) = (auth.has_mic(), auth.mic) {
            let mut zeroed = self.authenticate.clone();
            if let Some(field) = zeroed.get_mut(message::MIC) {
                field.fill(0);
            }
            let expected = proof::mic(&key, [&self.negotiate, &self.challenge, &zeroed]);
            if !proof::equal(&expected, &mic) {
                return Err(Protection::NoKeyMismatch);
            }
        }
        Ok(key)
    }
}

/// A login of somebody who is not known.
fn nobody(why: Protection) -> LoginOutcome {
    LoginOutcome { user: String::new(), domain: String::new(), workstation: String::new(), result: Err(why) }
}
