//! Kerberos (RFC 4120, RFC 4121, MS-KILE), from the service's side and from the client's.
//!
//! With the service's keys a client's AP-REQ can be read as the node reads it: the ticket gives the key that client and
//! node share, and with it the proxy can present the *client's own ticket* to another node, under a fresh authenticator.
//! No KDC is asked and no ticket is made. The PAC is the nodes' business, and not looked at.
//!
//! The types are read by the `der` crate; the encryption types are put together here from AWS-LC's primitives, because
//! randomness must come from outside and every key is to be wiped.

mod asn1;
pub mod crypto;
mod gss;
mod keytab;
mod login;
mod observe;
#[cfg(test)]
mod tests;

use std::fmt;

use der::asn1::Any;

pub(crate) use gss::{KRB5, Token, parse};
pub use keytab::{Keytab, KeytabEntry, KeytabError};
pub(crate) use login::KerberosLogin;
pub(crate) use observe::Exchange;

use crate::auth::UnixTime;
use crypto::Key;

/// A client's ticket for the service, opened.
pub struct Ticket {
    /// The Ticket as the client sent it.
    sealed: Any,
    /// What client and service share.
    key: Key,
    crealm: Vec<u8>,
    cname: Any,
    user: String,
    end: UnixTime,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("user", &self.user).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Ticket {
    /// `user@REALM`
    pub fn user(&self) -> &str {
        &self.user
    }

    /// When it expires: from then on no server takes it.
    pub fn end(&self) -> UnixTime {
        self.end
    }
}
