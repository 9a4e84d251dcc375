//! NEGOTIATE, SESSION_SETUP, LOGOFF and trees of a server.

use std::{collections::BTreeSet, rc::Rc};

use smb_parse::{
    cmd::{negotiate, session_setup},
    encode,
    header::{Command, Flags, Header, Status},
};
use understudy_core::{
    auth::{LoginObserver, keys::SessionKey, spnego},
    crypto::{
        Dialect,
        preauth::Preauth,
        sealing::{Cipher, Nonces},
    },
};

use super::{ConnId, Login, Server, Session};
use crate::{
    cover::{Seals, signing_key},
    disk::Disk,
    setup::Protection,
    users::Known,
};

/// `SMB2_GLOBAL_CAP_ENCRYPTION`.
const ENCRYPTION: u32 = 0x40;
/// Leasing, large MTU and multichannel.
const CAPABILITIES: u32 = 0xe;
const SIGNING_REQUIRED: u16 = 2;
/// `SMB2_SESSION_FLAG_ENCRYPT_DATA`.
const ENCRYPT_DATA: u16 = 4;

pub(super) fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(super) fn body(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut msg = vec![0; Header::LEN];
    header.write(&mut msg);
    msg.extend_from_slice(body);
    msg
}

impl Server {
    pub(super) fn negotiate(&mut self, conn: ConnId, header: &Header, msg: &[u8]) -> Vec<u8> {
        let Ok(asked) = negotiate::Request::parse(msg) else {
            return self.error(conn, header, Status::INVALID_PARAMETER);
        };
        let dialect = Dialect(asked.dialects().max().unwrap_or(Dialect::SMB202.0));
        let newest = dialect == Dialect::SMB311;
        let contexts: Vec<_> = asked.contexts().filter_map(Result::ok).collect();
        let offered = contexts.iter().find_map(|context| match context {
            negotiate::Context::Encryption { ciphers } => ciphers.iter().next().and_then(Cipher::from_wire),
            _ => None,
        });
        let old = Dialect::SMB300..Dialect::SMB311;
        let old = old.contains(&dialect) && asked.capabilities & ENCRYPTION != 0;
        let gmac = self.setup.gmac && newest;
        let cipher = offered.or(old.then_some(Cipher::Aes128Ccm));
        let answer = self.response(conn, header, Status::SUCCESS);
        let guid = [u64::from(self.life).to_le_bytes(), [u8::try_from(self.id).unwrap_or(9); 8]].concat();
        let Some(known) = self.conns.get_mut(&conn) else { return Vec::new() };
        (known.dialect, known.gmac, known.guid, known.cipher) = (dialect, gmac, asked.client_guid, cipher);
        let named = cipher.filter(|_| newest);
        let count: u16 = if newest { 2 + u16::from(named.is_some()) } else { 0 };
        let mut out = [&u16s(&[65, 1, dialect.0, count])[..], &guid].concat();
        let encryption = if cipher.is_some() && !newest { ENCRYPTION } else { 0 };
        out.extend((CAPABILITIES | encryption).to_le_bytes());
        for _ in 0..3 {
            out.extend((8_u32 << 20).to_le_bytes());
        }
        out.extend([self.clock.to_le_bytes(), [0; 8]].concat());
        out.extend([&u16s(&[128, 0])[..], &(if newest { 128_u32 } else { 0 }).to_le_bytes()].concat());
        if newest {
            // Preauthentication integrity, then signing; each padded to 8 bytes.
            out.extend([&u16s(&[1, 8])[..], &[0; 4], &u16s(&[1, 2, 1]), &[9, 9]].concat());
            out.extend([&u16s(&[8, 4])[..], &[0; 4], &u16s(&[1, if gmac { 2 } else { 1 }])].concat());
        }
        if let Some(cipher) = named {
            out.extend([&[0; 4][..], &u16s(&[2, 4]), &[0; 4], &u16s(&[1, cipher.wire()])].concat());
        }
        let answer = body(&answer, &out);
        known.preauth.update(msg);
        known.preauth.update(&answer);
        answer
    }

    /// Its answer, and the session whose key signs it.
    pub(super) fn session_setup(&mut self, conn: ConnId, header: &Header, msg: &[u8]) -> (Vec<u8>, u64) {
        let Ok(asked) = session_setup::Request::parse(msg) else {
            return (self.error(conn, header, Status::INVALID_PARAMETER), 0);
        };
        let begun = self.conns.get(&conn).is_some_and(|c| c.logins.contains_key(&header.session_id));
        if header.session_id != 0 && !begun && !self.sessions.contains_key(&header.session_id) {
            return (self.error(conn, header, Status::USER_SESSION_DELETED), 0);
        }
        let id = if header.session_id == 0 { self.fresh() } else { header.session_id };
        let binds = asked.flags & session_setup::BINDING != 0;
        if binds && !self.may_bind(header, msg) {
            return (self.error(conn, header, Status::REQUEST_NOT_ACCEPTED), 0);
        }
        let setup = |server: &mut Self, status, flags, token: &[u8]| {
            let mut header = server.response(conn, header, status);
            header.session_id = id;
            encode::session_setup_response(&header, flags, token)
        };
        let number = self.fresh();
        let Some(known) = self.conns.get_mut(&conn) else { return (Vec::new(), 0) };
        let preauth = known.preauth.clone();
        let fresh = || Login { observer: LoginObserver::default(), preauth };
        let login = known.logins.entry(id).or_insert_with(fresh);
        login.observer.client_token(asked.security_buffer);
        login.preauth.update(msg);
        if !begun {
            let challenge = spnego::response(&challenge(number), None);
            login.observer.server_token(&challenge);
            let mut answer = setup(self, Status::MORE_PROCESSING_REQUIRED, 0, &challenge);
            // As it leaves: whoever binds hashes the signature, too.
            if let Some(key) = self.sessions.get(&id).and_then(|s| s.key.as_ref()) {
                key.sign(&mut answer);
            }
            if let Some(login) = self.conns.get_mut(&conn).and_then(|c| c.logins.get_mut(&id)) {
                login.preauth.update(&answer);
            }
            // Whoever has a session proves with its key that the answer comes from where it was made.
            return (answer, header.session_id);
        }
        let Some(mut login) = known.logins.remove(&id) else { return (Vec::new(), 0) };
        let outcome = login.observer.finish(0, &[], &Known { by_nodes: true });
        let key = match outcome.result {
            Ok(derived) => derived.session_keys.into_iter().next(),
            Err(_) if outcome.user == "nobody" => None,
            Err(_) => {
                return (setup(self, Status::LOGON_FAILURE, 0, &[]), 0);
            }
        };
        let required = asked.security_mode & 2 != 0;
        let flags = self.establish(conn, id, key, &login.preauth, (outcome.user, required, binds));
        (
            setup(
                self,
                if flags.is_some() { Status::SUCCESS } else { Status::ACCESS_DENIED },
                flags.unwrap_or(0),
                &[],
            ),
            id,
        )
    }

    /// A login has succeeded: its SessionFlags. `None`: it may not be bound.
    fn establish(
        &mut self,
        conn: ConnId,
        id: u64,
        key: Option<SessionKey>,
        preauth: &Preauth,
        (user, required, binds): (String, bool, bool),
    ) -> Option<u16> {
        let known = self.conns.get_mut(&conn)?;
        let (dialect, gmac) = (known.dialect, known.gmac);
        let signs = key.as_ref().map(|key| Rc::new(signing_key(dialect, gmac, key, preauth)));
        let seals = key.as_ref().zip(known.cipher).map(|(k, c)| Rc::new(Seals::new(dialect, c, k, preauth)));
        let encrypted = self.setup.protection == Protection::Demanded && seals.is_some();
        let flags = u16::from(key.is_none()) | if encrypted { ENCRYPT_DATA } else { 0 };
        if binds {
            let same = self.sessions.get(&id).is_some_and(|s| s.user == user);
            known.channels.insert(id, signs.filter(|_| same)?);
            return Some(flags);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.user = user;
            return Some(flags);
        }
        let session = Session {
            user,
            signing_required: required || self.setup.security_mode() & SIGNING_REQUIRED != 0,
            encrypted,
            key: signs,
            seals,
            nonces: Nonces::default(),
            signed: BTreeSet::new(),
            trees: BTreeSet::new(),
            conn,
        };
        self.sessions.insert(id, session);
        Some(flags)
    }

    fn may_bind(&mut self, header: &Header, msg: &[u8]) -> bool {
        let Some(key) = self.sessions.get(&header.session_id).and_then(|s| s.key.clone()) else {
            return false;
        };
        header.flags.contains(Flags::SIGNED) && key.verify_mut(&mut msg.to_vec())
    }

    pub(super) fn tree_connect(&mut self, conn: ConnId, header: &Header) -> Vec<u8> {
        let id = self.fresh_tree();
        if let Some(session) = self.sessions.get_mut(&header.session_id) {
            session.trees.insert(id);
        }
        let mut ok = self.response(conn, header, Status::SUCCESS);
        ok.target = smb_parse::header::Target::Sync { reserved: 0, tree_id: id };
        body(&ok, &[&u16s(&[16])[..], &[1, 0], &[0; 8], &0x001f_01ff_u32.to_le_bytes()].concat())
    }

    pub(super) fn logoff(&mut self, conn: ConnId, header: &Header, disk: &mut Disk) -> Vec<u8> {
        debug_assert_eq!(header.command, Command::LOGOFF);
        self.end_session(header.session_id, disk);
        body(&self.response(conn, header, Status::SUCCESS), &u16s(&[4, 0]))
    }

    /// Ends a session, with all that it has open.
    pub(super) fn end_session(&mut self, id: u64, disk: &mut Disk) {
        if let Some(session) = self.sessions.remove(&id) {
            let gone: Vec<u64> =
                self.opens.iter().filter(|(_, o)| o.session == id).map(|(id, _)| *id).collect();
            for open in gone {
                let locked = self.opens.get(&open).filter(|o| !o.locks.is_empty());
                disk.let_go.extend(locked.map(|o| (o.guid, o.number)));
                self.close_open(open, disk);
            }
            self.parted.insert(id, session);
        }
    }
}

/// An NTLM CHALLENGE (MS-NLMP 2.2.1.2) with an empty TargetInfo.
fn challenge(number: u64) -> Vec<u8> {
    use understudy_core::auth::ntlm::message::{SIGNATURE, flags};
    let flags = flags::UNICODE
        | flags::NTLM
        | flags::EXTENDED_SECURITY
        | flags::TARGET_INFO
        | flags::KEY_128
        | flags::KEY_EXCH;
    let mut out = SIGNATURE.to_vec();
    out.extend(2_u32.to_le_bytes());
    out.extend([0, 0, 0, 0, 48, 0, 0, 0]);
    out.extend(flags.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend([0; 8]);
    out.extend([16, 0, 16, 0, 48, 0, 0, 0]);
    out.extend([7, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    out
}
