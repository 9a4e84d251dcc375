//! Logins by tickets made here, for what a real KDC and node would not do. What they do is in `tests/recorded.rs`.

use std::{cell::Cell, sync::Arc, time::Duration};

use der::{
    Encode,
    asn1::{AnyRef, BitStringRef, GeneralizedTime, OctetStringRef},
};

use super::{
    asn1::{self, ApRep, EncApRepPart, EncryptedData, EncryptionKey, tag},
    crypto::{EncType, Key, Usage},
    gss::{self, Signer},
    keytab::Keytab,
    *,
};
use crate::{
    auth::{
        Credentials, LoginError,
        keys::{NtHash, SessionKey},
        spnego::{self, Mech},
    },
    event::Protection,
    random::Random,
};

const NOW: u64 = 1_800_000_000;

struct Counting(u8);

impl Random for Counting {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        }
    }
}

/// The service: its one key, and a clock.
struct Service {
    etype: EncType,
    now: Cell<u64>,
}

impl Service {
    fn new(etype: EncType) -> Self {
        Self { etype, now: Cell::new(NOW) }
    }

    fn key(&self) -> Key {
        Key::new(self.etype, &vec![0x5e; self.etype.key_len()]).unwrap()
    }
}

impl Credentials for Service {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        None
    }

    fn configured(&self) -> bool {
        false
    }

    fn keytab(&self) -> Option<Arc<Keytab>> {
        let key = self.key();
        let counted = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let mut entry =
            [&[0, 2][..], &counted(b"R"), &counted(b"cifs"), &counted(b"fs"), &[0; 8], &[3, 0]].concat();
        entry.push(u8::try_from(self.etype.number()).unwrap());
        entry.extend(counted(key.bytes()));
        let size = u32::try_from(entry.len()).unwrap().to_be_bytes();
        Some(Arc::new(Keytab::parse(&[&[5, 2], &size[..], &entry].concat()).unwrap()))
    }

    fn now(&self) -> UnixTime {
        UnixTime::from_secs(self.now.get())
    }
}

/// `PrincipalName` in DER.
fn principal(parts: &[&str]) -> Vec<u8> {
    let tlv = |tag: u8, value: &[u8]| [&[tag, u8::try_from(value.len()).unwrap()], value].concat();
    let names: Vec<u8> = parts.iter().flat_map(|part| tlv(0x1b, part.as_bytes())).collect();
    tlv(0x30, &[tlv(0xa0, &[2, 1, 1]), tlv(0xa1, &tlv(0x30, &names))].concat())
}

fn any(der: &[u8]) -> AnyRef<'_> {
    AnyRef::try_from(der).unwrap()
}

fn time(secs: u64) -> GeneralizedTime {
    GeneralizedTime::from_unix_duration(Duration::from_secs(secs)).unwrap()
}

fn encrypted(key: &Key, usage: Usage, plain: &[u8]) -> Vec<u8> {
    key.encrypt(usage, plain, &mut Counting(100)).unwrap()
}

/// A ticket for alice@R and the service, with a session key of this type number.
fn ticket(service: &Service, session: i64, end: u64) -> Vec<u8> {
    let realm = asn1::string(b"R").unwrap().to_der().unwrap();
    let cname = principal(&["alice"]);
    let len = EncType::from_number(session).map_or(8, EncType::key_len);
    let key = vec![0x21; len];
    let transited = [&[0x30, 9, 0xa0, 3, 2, 1, 0, 0xa1, 2, 4][..], &[0]].concat();
    let part = asn1::EncTicketPart {
        flags: BitStringRef::from_bytes(&[0; 4]).unwrap(),
        key: EncryptionKey { keytype: session, keyvalue: OctetStringRef::new(&key).unwrap() },
        crealm: any(&realm).decode_as().unwrap(),
        cname: any(&cname),
        transited: any(&transited),
        authtime: time(NOW - 100),
        starttime: None,
        endtime: time(end),
        renew_till: None,
        caddr: None,
        authorization_data: None,
    };
    let cipher = encrypted(&service.key(), Usage::TICKET, &asn1::encode(tag::ENC_TICKET_PART, part).unwrap());
    let sname = principal(&["cifs", "fs"]);
    let ticket = asn1::Ticket {
        tkt_vno: 5,
        realm: any(&realm).decode_as().unwrap(),
        sname: any(&sname).decode_as().unwrap(),
        enc_part: EncryptedData {
            etype: service.etype.number().into(),
            kvno: Some(3),
            cipher: OctetStringRef::new(&cipher).unwrap(),
        },
    };
    asn1::encode(tag::TICKET, ticket).unwrap()
}

/// What the client knows of its ticket.
fn opened(service: &Service, session: EncType, end: u64) -> Arc<Ticket> {
    let sealed = ticket(service, session.number().into(), end);
    Arc::new(Ticket {
        sealed: asn1::keep(any(&sealed)).unwrap(),
        key: Key::new(session, &vec![0x21; session.key_len()]).unwrap(),
        crealm: b"R".to_vec(),
        cname: asn1::keep(any(&principal(&["alice"]))).unwrap(),
        user: "alice@R".into(),
        end: UnixTime::from_secs(end),
    })
}

/// The node's AP-REP, in negTokenResp.
fn reply(key: &Key, ctime: u64, cusec: i64, subkey: Option<&Key>, mic: Option<&[u8]>) -> Vec<u8> {
    let part = EncApRepPart {
        ctime: time(ctime),
        cusec,
        subkey: subkey.map(|subkey| EncryptionKey {
            keytype: subkey.etype().number().into(),
            keyvalue: OctetStringRef::new(subkey.bytes()).unwrap(),
        }),
        seq_number: Some(7),
    };
    let cipher = encrypted(key, Usage::AP_REP, &asn1::encode(tag::ENC_AP_REP_PART, part).unwrap());
    let message = ApRep {
        pvno: 5,
        msg_type: 15,
        enc_part: EncryptedData {
            etype: key.etype().number().into(),
            kvno: None,
            cipher: OctetStringRef::new(&cipher).unwrap(),
        },
    };
    spnego::response(&asn1::encode(tag::AP_REP, message).unwrap(), mic)
}

fn begun(service: &Service, session: EncType) -> (KerberosLogin, Vec<u8>) {
    let ticket = opened(service, session, NOW + 600);
    let mut login = KerberosLogin::new(&ticket, service.now()).unwrap();
    let token = login.start(&mut Counting(0)).unwrap();
    (login, token)
}

/// What an observer makes of a first token and an answer.
fn observed(service: &Service, token: &[u8], answer: &[u8]) -> Result<Vec<SessionKey>, Protection> {
    let mut exchange = Exchange::default();
    for token in [token, answer] {
        if let Some(message) = spnego::unwrap(token).token.and_then(parse) {
            exchange.take(message);
        }
    }
    exchange.finish(service).result.map(|(_, keys)| keys)
}

/// What a login of ours sends is what an observer reads, for every pair of types; both take the node's subkey.
#[test]
fn observer_and_login_find_the_same_key() {
    for of_service in EncType::ALL {
        for session in EncType::ALL {
            let service = Service::new(of_service);
            let (mut login, token) = begun(&service, session);
            let key = Key::new(session, &vec![0x21; session.key_len()]).unwrap();
            let chosen = Key::new(session, &vec![0x77; session.key_len()]).unwrap();
            let answer = reply(&key, NOW, 0, Some(&chosen), None);
            login.finish(&answer).unwrap();
            let keys = observed(&service, &token, &answer).unwrap();
            assert_eq!(keys.len(), 3);
            assert_eq!(keys[0].bytes(), chosen.bytes());
            assert_eq!(login.session_key().unwrap().bytes(), chosen.bytes());
            // A node that chooses none has the client's.
            let (mut login, token) = begun(&service, session);
            let answer = reply(&key, NOW, 0, None, None);
            login.finish(&answer).unwrap();
            let keys = observed(&service, &token, &answer).unwrap();
            assert_eq!(keys.len(), 2);
            assert_eq!(login.session_key().unwrap().bytes(), keys[0].bytes());
            // A client that does not ask for an answer gets none.
            assert_eq!(observed(&service, &token, &[]).unwrap()[0].bytes(), keys[0].bytes());
            assert_eq!(keys[1].bytes(), key.bytes());
        }
    }
}

/// A node that cannot open the ticket cannot answer, nor can one who listened before.
#[test]
fn only_an_answer_to_our_own_authenticator_is_taken() {
    let service = Service::new(EncType::Aes256Sha1);
    let key = Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap();
    let wrong = Key::new(EncType::Aes256Sha1, &[0x22; 32]).unwrap();
    for answer in [
        reply(&wrong, NOW, 0, None, None),
        reply(&key, NOW - 1, 0, None, None),
        reply(&key, NOW, 1, None, None),
        spnego::last(&[1; 28]),
        Vec::new(),
    ] {
        let (mut login, _) = begun(&service, EncType::Aes256Sha1);
        assert_eq!(login.finish(&answer), Err(LoginError::NotProved));
        assert!(login.session_key().is_none());
    }
}

/// RFC 4178 5: where the node asks for it, the mechanism list is signed by both.
#[test]
fn the_mechanism_list_is_signed_on_demand() {
    let service = Service::new(EncType::Aes256Sha1);
    let key = Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap();
    let chosen = Key::new(EncType::Aes128Sha256, &[0x77; 16]).unwrap();
    let (mut login, _) = begun(&service, EncType::Aes256Sha1);
    let last = login.step(&reply(&key, NOW, 0, Some(&chosen), None)).unwrap();
    let client = spnego::unwrap(&last).mic.unwrap();
    assert_eq!(client[..8], [4, 4, 4, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let node = Signer { acceptor: true, acceptor_subkey: true };
    let list = spnego::mech_list(Mech::Kerberos);
    let mut mic = gss::mic(&chosen, node, 7, &list).unwrap();
    login.finish(&spnego::last(&mic)).unwrap();
    mic[20] ^= 1;
    assert_eq!(login.finish(&spnego::last(&mic)), Err(LoginError::NotProved));
}

#[test]
fn an_expired_ticket_is_not_presented() {
    let service = Service::new(EncType::Aes256Sha1);
    let ticket = opened(&service, EncType::Aes256Sha1, NOW + 1);
    assert!(KerberosLogin::new(&ticket, UnixTime::from_secs(NOW)).is_ok());
    let refused = KerberosLogin::new(&ticket, UnixTime::from_secs(NOW + 1));
    assert_eq!(refused.unwrap_err(), LoginError::TicketExpired);
}

#[test]
fn each_refusal_has_its_reason() {
    let service = Service::new(EncType::Aes256Sha1);
    let (_, token) = begun(&service, EncType::Aes256Sha1);
    service.now.set(NOW + 301);
    assert_eq!(observed(&service, &token, &[]).unwrap_err(), Protection::NoClock);
    service.now.set(NOW + 300);
    assert!(observed(&service, &token, &[]).is_ok());
    // A node may let a ticket pass that has just expired.
    let ticket = opened(&service, EncType::Aes256Sha1, NOW + 200);
    let mut login = KerberosLogin::new(&ticket, UnixTime::from_secs(NOW)).unwrap();
    let token = login.start(&mut Counting(0)).unwrap();
    assert_eq!(observed(&service, &token, &[]).unwrap_err(), Protection::NoTicketExpired);
    // Single DES, which nobody has any more.
    let spoiled = Ticket {
        sealed: asn1::keep(any(&self::ticket(&service, 3, NOW + 600))).unwrap(),
        key: Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap(),
        crealm: b"R".to_vec(),
        cname: asn1::keep(any(&principal(&["alice"]))).unwrap(),
        user: "alice@R".into(),
        end: UnixTime::from_secs(NOW + 600),
    };
    let token =
        KerberosLogin::new(&Arc::new(spoiled), service.now()).unwrap().start(&mut Counting(0)).unwrap();
    assert_eq!(observed(&service, &token, &[]).unwrap_err(), Protection::NoEncType);
    // Somebody else's name in the authenticator.
    let impostor = Ticket {
        sealed: asn1::keep(any(&self::ticket(&service, 18, NOW + 600))).unwrap(),
        key: Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap(),
        crealm: b"R".to_vec(),
        cname: asn1::keep(any(&principal(&["mallory"]))).unwrap(),
        user: "mallory@R".into(),
        end: UnixTime::from_secs(NOW + 600),
    };
    let token =
        KerberosLogin::new(&Arc::new(impostor), service.now()).unwrap().start(&mut Counting(0)).unwrap();
    assert_eq!(observed(&service, &token, &[]).unwrap_err(), Protection::NoLogin);
}

/// A ticket that is encrypted in the key of another ticket.
#[test]
fn user_to_user_is_another_mechanism() {
    let service = Service::new(EncType::Aes256Sha1);
    let (_, token) = begun(&service, EncType::Aes256Sha1);
    let Some(Token::ApReq(message)) = spnego::unwrap(&token).token.and_then(parse) else { panic!() };
    let mut request: asn1::ApReq<'_> = asn1::decode(tag::AP_REQ, message).unwrap();
    request.ap_options = BitStringRef::from_bytes(&[0x40, 0, 0, 0]).unwrap();
    let message = asn1::encode(tag::AP_REQ, request).unwrap();
    assert_eq!(observed(&service, &message, &[]).unwrap_err(), Protection::NoMechanism);
}

/// Who has a ticket can encrypt anything: each cut and each changed byte of what is within is read or refused.
#[test]
fn whatever_a_client_encrypts_is_survived() {
    let service = Service::new(EncType::Aes256Sha1);
    let key = Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap();
    let (_, token) = begun(&service, EncType::Aes256Sha1);
    let Some(Token::ApReq(message)) = spnego::unwrap(&token).token.and_then(parse) else { panic!() };
    let request: asn1::ApReq<'_> = asn1::decode(tag::AP_REQ, message).unwrap();
    let plain = key.decrypt(Usage::AUTHENTICATOR, request.authenticator.cipher.as_bytes()).unwrap();
    let forged = |plain: &[u8]| {
        let cipher = encrypted(&key, Usage::AUTHENTICATOR, plain);
        let mut request: asn1::ApReq<'_> = asn1::decode(tag::AP_REQ, message).unwrap();
        request.authenticator.cipher = OctetStringRef::new(&cipher).unwrap();
        observed(&service, &asn1::encode(tag::AP_REQ, request).unwrap(), &[])
    };
    assert!(forged(&plain).is_ok());
    for at in 0..plain.len() {
        assert!(forged(&plain[..at]).is_err());
        for bit in [1, 0x80] {
            let mut changed = plain.to_vec();
            changed[at] ^= bit;
            // The ticket's own key comes last, whatever else is said.
            if let Ok(keys) = forged(&changed) {
                assert_eq!(keys.last().unwrap().bytes(), key.bytes());
            }
        }
    }
}

#[test]
fn tickets_and_logins_do_not_print_keys() {
    let service = Service::new(EncType::Aes256Sha1);
    let (mut login, _) = begun(&service, EncType::Aes256Sha1);
    let key = Key::new(EncType::Aes256Sha1, &[0x21; 32]).unwrap();
    login.finish(&reply(&key, NOW, 0, Some(&key), None)).unwrap();
    let shown = format!("{login:?}");
    assert!(shown.contains("alice@R") && shown.contains("***"), "{shown}");
    assert!(!shown.contains("33") && !shown.contains("0x21"), "{shown}");
}
