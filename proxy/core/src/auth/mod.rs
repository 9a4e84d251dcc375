//! The authority to act for a user: watching a login, and repeating it on another node.
//!
//! A login is watched by a [`LoginObserver`]. If the user's NT hash or the service's key is at hand, the session key the client and the
//! node agreed on is derived from what passed, and the proof that the client gave is checked before it is believed.
//! On another node a [`Login`] logs the same user in afresh.

pub mod kerberos;
pub mod keys;
mod login;
pub mod ntlm;
mod observer;
pub mod smbpasswd;
pub mod spnego;
mod time;

use std::sync::Arc;

use kerberos::{Keytab, Ticket};
use keys::NtHash;
pub use login::{Login, LoginError};
pub use observer::{Derived, LoginObserver, LoginOutcome};
pub use time::UnixTime;

use crate::event::Protection;

/// Where the users' hashes and the service's keys come from, and the wall clock that logins are judged by.
pub trait Credentials {
    /// The hash of a user, if it is known.
    fn nt_hash(&self, domain: &str, user: &str) -> Option<NtHash>;
    /// Whether there is a file of hashes at all.
    fn configured(&self) -> bool;
    /// The service's keys, if there is a keytab.
    fn keytab(&self) -> Option<Arc<Keytab>> {
        None
    }
    /// The wall clock's time.
    fn now(&self) -> UnixTime;
}

/// No hashes: only guests and anonymous users can be moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        None
    }

    fn configured(&self) -> bool {
        false
    }

    fn now(&self) -> UnixTime {
        UnixTime::default()
    }
}

/// What the proxy may do in a user's name: log in as them on a further node, in the way they did themselves. Gained
/// only from a login that a node accepted and whose proof was checked.
#[derive(Debug, Clone)]
pub enum Authority {
    /// By NTLM: with the user's hash, or as a guest or anonymous.
    Ntlm(Identity),
    /// By Kerberos: with the ticket that the client presented.
    Kerberos(Arc<Ticket>),
}

impl Authority {
    /// Begins a login on a further node.
    ///
    /// # Errors
    /// It is already clear that it would fail: nothing was sent, and the session ends.
    pub fn login(&self, credentials: &dyn Credentials) -> Result<Login, LoginError> {
        match self {
            Self::Ntlm(identity) => {
                let hash = credentials.nt_hash(&identity.domain, &identity.user);
                if identity.kind == Kind::Ntlm && hash.is_none() {
                    return Err(LoginError::NoHash);
                }
                Ok(Login::ntlm(identity, hash, true))
            }
            Self::Kerberos(ticket) => Login::kerberos(ticket, credentials.now()),
        }
    }

    /// When it ends. `None`: it does not.
    pub fn expires(&self) -> Option<UnixTime> {
        match self {
            Self::Ntlm(_) => None,
            Self::Kerberos(ticket) => Some(ticket.end()),
        }
    }
}

/// How a user was authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By NTLMv2, as themselves.
    Ntlm,
    /// Not at all: the node mapped them to guest.
    Guest,
    /// With empty credentials.
    Anonymous,
}

impl Kind {
    /// What the session of such a user is called.
    pub fn protection(self) -> Protection {
        match self {
            Self::Ntlm => Protection::Ntlm,
            Self::Guest => Protection::Guest,
            Self::Anonymous => Protection::Anonymous,
        }
    }
}

/// Whom to log in as again. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user name exactly as the client sent it.
    pub user: String,
    /// The domain exactly as the client sent it: it enters the NTLMv2 proof.
    pub domain: String,
    /// The client's workstation name.
    pub workstation: String,
    /// How they were authenticated.
    pub kind: Kind,
}
