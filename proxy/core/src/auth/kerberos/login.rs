//! Logging a user in afresh with their own ticket (RFC 4120 3.2.2, RFC 4121 4.1).

use std::{sync::Arc, time::Duration};

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, OctetStringRef};
use zeroize::Zeroizing;

use super::{
    Ticket, Token,
    asn1::{self, ApReq, Authenticator, Checksum, EncryptedData, EncryptionKey, tag},
    crypto::{Key, Usage},
    gss::{self, Signer},
    observe::Reply,
};
use crate::{
    auth::{
        LoginError, UnixTime,
        keys::SessionKey,
        spnego::{self, Mech},
    },
    random::Random,
};

/// mutual-required in ap-options (RFC 4120 5.5.1): the node must prove itself, and choose a subkey.
const MUTUAL_REQUIRED: u32 = 0x2000_0000;

/// One login with a ticket under way; see [`Login`](crate::auth::Login).
#[derive(Debug)]
pub(crate) struct KerberosLogin {
    ticket: Arc<Ticket>,
    /// What goes into the authenticator, and must come back: whole seconds, and microseconds.
    ctime: Duration,
    cusec: u32,
    sequence: u32,
    subkey: Option<Key>,
    /// What the node's AP-REP held.
    proved: Option<Proved>,
}

#[derive(Debug)]
struct Proved {
    session_key: SessionKey,
    /// Signs messages, if its type can.
    key: Option<Key>,
    acceptor_subkey: bool,
}

impl KerberosLogin {
    /// A login at this time by the wall clock.
    ///
    /// # Errors
    /// The ticket has expired.
    pub(crate) fn new(ticket: &Arc<Ticket>, now: UnixTime) -> Result<Self, LoginError> {
        if ticket.end <= now {
            return Err(LoginError::TicketExpired);
        }
        Ok(Self {
            ticket: Arc::clone(ticket),
            ctime: Duration::from_secs(now.0.as_secs()),
            cusec: now.0.subsec_micros(),
            sequence: 0,
            subkey: None,
            proved: None,
        })
    }

    /// The first token: AP-REQ in negTokenInit, with Kerberos as the only mechanism.
    pub(crate) fn start(&mut self, random: &mut dyn Random) -> Result<Vec<u8>, LoginError> {
        let request = self.ap_req(random).and_then(|request| gss::wrap_ap_req(&request));
        Ok(spnego::init(Mech::Kerberos, &request.ok_or(LoginError::TicketUnusable)?))
    }

    fn ap_req(&mut self, random: &mut dyn Random) -> Option<Vec<u8>> {
        let subkey = self.subkey.insert(Key::random(self.ticket.key.etype(), random));
        let mut sequence = [0; 4];
        random.fill(&mut sequence);
        // Some servers read the number with its sign.
        self.sequence = u32::from_be_bytes(sequence) & 0x3fff_ffff;
        let checksum = gss::checksum();
        let authenticator = Authenticator {
            authenticator_vno: asn1::VERSION,
            crealm: asn1::string(&self.ticket.crealm)?,
            cname: AnyRef::from(&self.ticket.cname),
            cksum: Some(Checksum {
                cksumtype: gss::CHECKSUM_TYPE,
                checksum: OctetStringRef::new(&checksum).ok()?,
            }),
            cusec: self.cusec.into(),
            ctime: GeneralizedTime::from_unix_duration(self.ctime).ok()?,
            subkey: Some(EncryptionKey {
                keytype: subkey.etype().number().into(),
                keyvalue: OctetStringRef::new(subkey.bytes()).ok()?,
            }),
            seq_number: Some(self.sequence.into()),
            authorization_data: None,
        };
        let plain = Zeroizing::new(asn1::encode(tag::AUTHENTICATOR, authenticator)?);
        let cipher = self.ticket.key.encrypt(Usage::AUTHENTICATOR, &plain, random)?;
        asn1::encode(
            tag::AP_REQ,
            ApReq {
                pvno: asn1::VERSION,
                msg_type: tag::AP_REQ.into(),
                ap_options: BitStringRef::from_bytes(&MUTUAL_REQUIRED.to_be_bytes()).ok()?,
                ticket: AnyRef::from(&self.ticket.sealed),
                authenticator: EncryptedData {
                    etype: self.ticket.key.etype().number().into(),
                    kvno: None,
                    cipher: OctetStringRef::new(&cipher).ok()?,
                },
            },
        )
    }

    /// The node wants the mechanism list signed (RFC 4178 5).
    pub(crate) fn step(&mut self, server_token: &[u8]) -> Result<Vec<u8>, LoginError> {
        let got = self.take(server_token)?;
        let proved = self.proved.as_ref().ok_or(LoginError::NotProved)?;
        check_mic(proved, got)?;
        let signer = Signer { acceptor: false, acceptor_subkey: proved.acceptor_subkey };
        let key = proved.key.as_ref().ok_or(LoginError::Weak)?;
        let mic = gss::mic(key, signer, self.sequence.into(), &spnego::mech_list(Mech::Kerberos));
        Ok(spnego::last(&mic.ok_or(LoginError::Weak)?))
    }

    /// Takes the AP-REP in, if it did not come before: without it there is no key.
    pub(crate) fn finish(&mut self, server_token: &[u8]) -> Result<(), LoginError> {
        let got = self.take(server_token)?;
        check_mic(self.proved.as_ref().ok_or(LoginError::NotProved)?, got)
    }

    pub(crate) fn session_key(&self) -> Option<&SessionKey> {
        self.proved.as_ref().map(|proved| &proved.session_key)
    }

    /// Reads a token of the node. An AP-REP must answer *our* authenticator (RFC 4120 3.2.5). The mechListMIC comes back.
    fn take<'a>(&mut self, server_token: &'a [u8]) -> Result<Option<&'a [u8]>, LoginError> {
        let got = spnego::unwrap(server_token);
        if got.rejected {
            return Err(LoginError::NotProved);
        }
        if let Some(token) = got.token {
            let Some(Token::ApRep(message)) = gss::parse(token) else { return Err(LoginError::NotProved) };
            let reply = Reply::open(message, &self.ticket.key).ok_or(LoginError::NotProved)?;
            if (reply.ctime, reply.cusec) != (self.ctime, self.cusec.into()) {
                return Err(LoginError::NotProved);
            }
            self.proved = Some(match (reply.subkey, &self.subkey) {
                (Some(theirs), _) => {
                    Proved { session_key: theirs.session_key, key: theirs.key, acceptor_subkey: true }
                }
                (None, Some(ours)) => Proved {
                    session_key: SessionKey::new(ours.bytes()),
                    key: Some(ours.clone()),
                    acceptor_subkey: false,
                },
                (None, None) => return Err(LoginError::NotProved),
            });
        }
        Ok(got.mic)
    }
}

/// A mechListMIC of the node must be right, if there is one that can be read.
fn check_mic(proved: &Proved, mic: Option<&[u8]>) -> Result<(), LoginError> {
    let Some((mic, key)) = mic.zip(proved.key.as_ref()) else { return Ok(()) };
    match gss::verify_mic(key, &spnego::mech_list(Mech::Kerberos), mic) {
        Some(false) => Err(LoginError::NotProved),
        Some(true) | None => Ok(()),
    }
}
