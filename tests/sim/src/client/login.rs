//! NEGOTIATE, logins and trees: the client goes on by itself.

use smb_parse::{
    FileId,
    cmd::{negotiate, session_setup},
    encode::{self, NegotiateParams, SessionSetupParams},
    frame::PREFIX,
    header::{Command, Header, Status},
};
use std::rc::Rc;
use understudy_core::{
    auth::{Credentials, Identity, Kind as LoginKind, Login},
    crypto::{Dialect, preauth::Preauth, sealing::Cipher},
};

use super::{Asked, Client, Kind, Session};
use crate::{
    chance::Chance,
    cover::{Seals, signing_key},
    users::{Known, User},
};

/// A login under way.
pub(crate) struct Exchange {
    login: Login,
    keyed: bool,
    preauth: Preauth,
    token: Vec<u8>,
    id: u64,
}

/// A break that wants an acknowledgement.
pub(crate) enum Ack {
    Oplock(FileId, u8),
    Lease([u8; 16], u32),
}

impl Client {
    pub(super) fn asked(&self, kind: Kind, command: Command, session: usize, start: u64) -> Asked {
        Asked {
            kind,
            command,
            start,
            interim: None,
            interim_relayed: false,
            granted: 0,
            tree: None,
            signed: false,
            sealed: false,
            evil: false,
            slot: None,
            session,
        }
    }

    /// The first thing it says.
    pub fn greet(&mut self) -> Vec<u8> {
        let newest = self.dialect == Dialect::SMB311;
        let seals = self.setup.protection.seals();
        let cipher = if newest { Cipher::Aes128Gcm } else { Cipher::Aes128Ccm };
        self.cipher = seals.then_some(cipher);
        let ciphers: Vec<_> = self.cipher.filter(|_| newest).map(Cipher::wire).into_iter().collect();
        let params = NegotiateParams {
            dialects: &[self.dialect.0],
            security_mode: self.setup.security_mode(),
            capabilities: 0x4 | if seals { 0x40 } else { 0 },
            client_guid: self.guid,
            preauth_salt: &[1; 32],
            ciphers: &ciphers,
            signing_algs: &[if self.setup.gmac { 2 } else { 1 }],
            netname: None,
        };
        let mut header = Header::request(Command::NEGOTIATE, 0);
        header.credits = 1;
        let msg = encode::negotiate(&header, &params);
        let asked = self.asked(Kind::Negotiate, Command::NEGOTIATE, usize::MAX, 0);
        let frame = self.cover(vec![(msg, asked)], false).unwrap_or_default();
        self.preauth.update(&frame[PREFIX..]);
        frame
    }

    pub(super) fn negotiated(&mut self, msg: &[u8]) -> Option<Vec<u8>> {
        negotiate::Response::parse(msg).ok()?;
        self.preauth.update(msg);
        let user = self.setup.clients[self.at];
        self.begin_login(user)
    }

    /// Begins a login, if none is under way.
    pub(crate) fn begin_login(&mut self, user: User) -> Option<Vec<u8>> {
        if self.login.is_some() || self.credits == 0 {
            return None;
        }
        let kind = if user == User::Nobody { LoginKind::Guest } else { LoginKind::Ntlm };
        let identity =
            Identity { user: user.name().into(), domain: "WG".into(), workstation: "PC".into(), kind };
        let hash = Known { by_nodes: true }.nt_hash("WG", user.name());
        let mut login = Login::ntlm(&identity, hash, true);
        let token = login.start(&mut Chance::new(76)).ok()?;
        self.users.push(user);
        let keyed = kind == LoginKind::Ntlm;
        self.login = Some(Exchange { login, keyed, preauth: self.preauth.clone(), token, id: 0 });
        self.send_login()
    }

    fn send_login(&mut self) -> Option<Vec<u8>> {
        let exchange = self.login.as_ref()?;
        let mut header = self.header(Command::SESSION_SETUP, usize::MAX);
        (header.session_id, header.credits) = (exchange.id, 32);
        let params = SessionSetupParams {
            flags: 0,
            security_mode: u8::try_from(self.setup.security_mode()).unwrap_or(1),
            capabilities: 0,
            previous_session_id: 0,
            token: &exchange.token,
        };
        let msg = encode::session_setup(&header, &params);
        let asked = self.asked(Kind::Login, Command::SESSION_SETUP, usize::MAX, 0);
        let frame = self.cover(vec![(msg, asked)], false)?;
        if let Some(exchange) = &mut self.login {
            exchange.preauth.update(&frame[PREFIX..]);
        }
        Some(frame)
    }

    /// An answer to a SESSION_SETUP: what to send next; an error is a rule that it breaks.
    pub(super) fn logged_in(&mut self, header: &Header, msg: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        let Some(mut exchange) = self.login.take() else { return Ok(None) };
        exchange.id = header.session_id;
        let status = Status(header.status);
        if status == Status::MORE_PROCESSING_REQUIRED {
            exchange.preauth.update(msg);
            let Ok(answer) = session_setup::Response::parse(msg) else { return Err("malformed") };
            let next = exchange.login.step(answer.security_buffer, &mut Chance::new(77));
            let Ok(token) = next else { return Ok(None) };
            exchange.token = token;
            self.login = Some(exchange);
            return Ok(self.send_login());
        }
        if !status.is_success() {
            return Ok(None);
        }
        let key = exchange.login.session_key().filter(|_| exchange.keyed);
        let seals = key
            .zip(self.cipher)
            .map(|(key, cipher)| Rc::new(Seals::new(self.dialect, cipher, key, &exchange.preauth)));
        let key = key.map(|key| Rc::new(signing_key(self.dialect, self.setup.gmac, key, &exchange.preauth)));
        if let Some(key) = &key
            && !key.verify_mut(&mut msg.to_vec())
        {
            return Err("login not signed");
        }
        self.sessions.push(Session { id: header.session_id, tree: 0, key, seals, over: false });
        let at = self.sessions.len() - 1;
        let path: Vec<u8> = r"\\server\share".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let header = self.header(Command::TREE_CONNECT, at);
        let asked = self.asked(Kind::Tree(at), Command::TREE_CONNECT, at, 0);
        Ok(self.cover(vec![(encode::tree_connect(&header, &path), asked)], false))
    }
}
