//! Reading a login by Kerberos that passes between a client and a node, as the node does (RFC 4120 3.2.3).

use std::{sync::Arc, time::Duration};

use der::{Encode, asn1::AnyRef};

use super::{
    Ticket,
    asn1::{self, ApRep, ApReq, Authenticator, EncApRepPart, EncTicketPart, PrincipalName, tag},
    crypto::{EncType, Key, Usage},
    gss::Token,
    keytab::Keytab,
};
use crate::{
    auth::{Credentials, UnixTime, keys::SessionKey},
    event::Protection,
};

/// use-session-key in ap-options: the ticket is encrypted in another ticket's key (RFC 4120 5.5.1).
const USE_SESSION_KEY: u32 = 0x4000_0000;
/// What servers allow two clocks to differ, by custom.
const SKEW: Duration = Duration::from_secs(300);

/// The last AP-REQ of a login and the answer to it.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    ap_req: Vec<u8>,
    ap_rep: Vec<u8>,
}

/// What a login by Kerberos came to.
pub(crate) struct Outcome {
    /// `user@REALM`, or what is known instead.
    pub(crate) user: String,
    /// The ticket and the keys that may be the session's, the likeliest first.
    pub(crate) result: Result<(Arc<Ticket>, Vec<SessionKey>), Protection>,
}

impl From<Protection> for Outcome {
    fn from(why: Protection) -> Self {
        Self { user: String::new(), result: Err(why) }
    }
}

impl Exchange {
    /// Takes a message in. An AP-REQ begins anew.
    pub(crate) fn take(&mut self, token: Token<'_>) {
        match token {
            Token::ApReq(message) => *self = Self { ap_req: message.to_vec(), ap_rep: Vec::new() },
            Token::ApRep(message) => self.ap_rep = message.to_vec(),
        }
    }

    /// The node said yes.
    pub(crate) fn finish(&self, credentials: &dyn Credentials) -> Outcome {
        let Some(keytab) = credentials.keytab() else { return Protection::NoKeytab.into() };
        let Some(request) = asn1::decode::<ApReq<'_>>(tag::AP_REQ, &self.ap_req) else {
            return Protection::NoLogin.into();
        };
        if asn1::bits(&request.ap_options) & USE_SESSION_KEY != 0 {
            return Protection::NoMechanism.into();
        }
        let ticket = match open(&request, &keytab) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        Outcome { user: ticket.user.clone(), result: self.keys(&request, ticket, credentials.now()) }
    }

    /// Checks the client's proof, and gathers what may be the session key, in the order of MS-KILE 3.1.1.2: the subkey
    /// of the node's answer, the subkey of the client, the ticket's own.
    fn keys(
        &self,
        request: &ApReq<'_>,
        ticket: Ticket,
        now: UnixTime,
    ) -> Result<(Arc<Ticket>, Vec<SessionKey>), Protection> {
        if request.authenticator.etype != i64::from(ticket.key.etype().number()) {
            return Err(Protection::NoLogin);
        }
        let cipher = request.authenticator.cipher.as_bytes();
        let plain = ticket.key.decrypt(Usage::AUTHENTICATOR, cipher).ok_or(Protection::NoLogin)?;
        let authenticator: Authenticator<'_> =
            asn1::decode(tag::AUTHENTICATOR, &plain).ok_or(Protection::NoLogin)?;
        let same_user = authenticator.crealm.value() == ticket.crealm
            && same_name(authenticator.cname, AnyRef::from(&ticket.cname));
        if !same_user {
            return Err(Protection::NoLogin);
        }
        if UnixTime(authenticator.ctime.to_unix_duration()).distance(now) > SKEW {
            return Err(Protection::NoClock);
        }
        if ticket.end <= now {
            return Err(Protection::NoTicketExpired);
        }
        let mut keys = Vec::with_capacity(3);
        if let Some(subkey) = Reply::open(&self.ap_rep, &ticket.key).and_then(|reply| reply.subkey) {
            keys.push(subkey.session_key);
        }
        if let Some(subkey) = authenticator.subkey {
            keys.push(SessionKey::new(subkey.keyvalue.as_bytes()));
        }
        keys.push(SessionKey::new(ticket.key.bytes()));
        Ok((Arc::new(ticket), keys))
    }
}

/// Decrypts the ticket. The error has what can be told of the ticket without its key.
fn open(request: &ApReq<'_>, keytab: &Keytab) -> Result<Ticket, Outcome> {
    let sealed = asn1::keep(request.ticket).ok_or(Protection::NoLogin)?;
    let der = request.ticket.to_der().map_err(|_| Protection::NoLogin)?;
    let ticket: asn1::Ticket<'_> = asn1::decode(tag::TICKET, &der).ok_or(Protection::NoLogin)?;
    let service = ticket.sname.to_text(&ticket.realm);
    let kvno = ticket.enc_part.kvno.and_then(|kvno| u32::try_from(kvno & 0xffff_ffff).ok());
    let number = ticket.enc_part.etype;
    let refuse = |why| {
        let version = kvno.map_or_else(String::new, |kvno| format!(", kvno {kvno}"));
        let etype =
            EncType::from_number(number).map_or_else(|| format!("type {number}"), |e| e.name().into());
        let user = format!("(a ticket for {service}{version}, {etype})");
        Outcome { user, result: Err(why) }
    };
    let Some(etype) = EncType::from_number(number) else { return Err(refuse(Protection::NoEncType)) };
    let candidates = keytab.candidates(&service, kvno, etype);
    let cipher = ticket.enc_part.cipher.as_bytes();
    let Some(plain) = candidates.keys.iter().find_map(|key| key.decrypt(Usage::TICKET, cipher)) else {
        let why = if candidates.exact { Protection::NoTicketOpened } else { Protection::NoServiceKey };
        return Err(refuse(why));
    };
    let part: EncTicketPart<'_> = asn1::decode(tag::ENC_TICKET_PART, &plain).ok_or(Protection::NoLogin)?;
    let cname: PrincipalName<'_> = part.cname.decode_as().map_err(|_| Protection::NoLogin)?;
    let user = cname.to_text(&part.crealm);
    let key = EncType::from_number(part.key.keytype)
        .and_then(|etype| Key::new(etype, part.key.keyvalue.as_bytes()));
    let Some(key) = key else { return Err(Outcome { user, result: Err(Protection::NoEncType) }) };
    Ok(Ticket {
        sealed,
        key,
        crealm: part.crealm.as_bytes().to_vec(),
        cname: asn1::keep(part.cname).ok_or(Protection::NoLogin)?,
        user,
        end: UnixTime(part.endtime.to_unix_duration()),
    })
}

/// Names are equal without regard to their types (RFC 4120 6.2).
fn same_name(a: AnyRef<'_>, b: AnyRef<'_>) -> bool {
    match (a.decode_as::<PrincipalName<'_>>(), b.decode_as::<PrincipalName<'_>>()) {
        (Ok(a), Ok(b)) => a.name_string == b.name_string,
        _ => false,
    }
}

/// A node's AP-REP, decrypted.
pub(super) struct Reply {
    pub(super) ctime: Duration,
    pub(super) cusec: i64,
    pub(super) subkey: Option<Subkey>,
}

/// A key that one side chose for this connection.
pub(super) struct Subkey {
    pub(super) session_key: SessionKey,
    /// To sign with, if its type can be worked with.
    pub(super) key: Option<Key>,
}

impl Reply {
    /// `None` if it was not made with this key, or is damaged.
    pub(super) fn open(message: &[u8], key: &Key) -> Option<Self> {
        let reply: ApRep<'_> = asn1::decode(tag::AP_REP, message)?;
        let plain = key.decrypt(Usage::AP_REP, reply.enc_part.cipher.as_bytes())?;
        let part: EncApRepPart<'_> = asn1::decode(tag::ENC_AP_REP_PART, &plain)?;
        let subkey = part.subkey.map(|subkey| {
            let bytes = subkey.keyvalue.as_bytes();
            let key = EncType::from_number(subkey.keytype).and_then(|etype| Key::new(etype, bytes));
            Subkey { session_key: SessionKey::new(bytes), key }
        });
        Some(Self { ctime: part.ctime.to_unix_duration(), cusec: part.cusec, subkey })
    }
}
