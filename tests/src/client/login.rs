//! NEGOTIATE, SESSION_SETUP and TREE_CONNECT.

use std::{
    fs,
    io::Read,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use md4::{Digest, Md4};
use smb_parse::{
    FileId,
    cmd::{ioctl, negotiate, session_setup, tree_connect},
    encode::{self, IoctlParams, NegotiateParams, SessionSetupParams},
    fsctl,
    header::{Command, Header, Status},
};
use understudy_core::{
    auth::{Identity, Kind, Login, UnixTime, kerberos::Ticket, keys::NtHash},
    crypto::{
        Dialect,
        preauth::Preauth,
        sealing::Cipher,
        signing::{SigningAlg, SigningKey},
    },
    random::Random,
};

use super::{Answer, At, Client, Draft, Session, sealing::Seals};
use crate::rig::{
    net::FLOATING,
    node::{PASSWORD, SECOND, STRANGER, USER},
};

/// `SMB2_NEGOTIATE_SIGNING_ENABLED` (MS-SMB2 2.2.3).
const SIGNING_ENABLED: u16 = 1;
/// `SMB2_NEGOTIATE_SIGNING_REQUIRED`.
const SIGNING_REQUIRED: u16 = 2;
/// `SMB2_GLOBAL_CAP_LEASING` and `SMB2_GLOBAL_CAP_LARGE_MTU` (MS-SMB2 2.2.3).
const CAPABILITIES: u32 = 0x2 | 0x4;
/// `SMB2_GLOBAL_CAP_ENCRYPTION`.
const CAP_ENCRYPTION: u32 = 0x40;
/// `SMB2_SHAREFLAG_ENCRYPT_DATA` (MS-SMB2 2.2.10).
const SHARE_ENCRYPT: u32 = 0x8000;
/// `SMB2_GLOBAL_CAP_MULTI_CHANNEL`.
const MULTI_CHANNEL: u32 = 0x8;

/// Who logs in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum User<'a> {
    Guest,
    Named(&'static str),
    /// By Kerberos.
    Ticket(&'a Arc<Ticket>),
}

impl User<'_> {
    /// Whom the proxy knows.
    pub(crate) const KNOWN: Self = Self::Named(USER);
    /// Another one.
    pub(crate) const SECOND: Self = Self::Named(SECOND);
    /// Whom it does not.
    pub(crate) const STRANGER: Self = Self::Named(STRANGER);

    fn name(self) -> String {
        match self {
            Self::Guest => "guest".into(),
            Self::Named(name) => name.into(),
            Self::Ticket(ticket) => ticket.user().into(),
        }
    }
}

/// What shows that a further connection belongs to a session, and what it seals with there.
struct Binding {
    key: Arc<SigningKey>,
    seals: Option<Seals>,
}

/// A login under way.
pub(crate) struct Exchange {
    /// Who, to be told of.
    user: String,
    guest: bool,
    login: Login,
    preauth: Preauth,
    /// The security buffer to send next.
    pub(crate) token: Vec<u8>,
    /// The session, once the server has named it.
    pub(crate) session: u64,
    /// PreviousSessionId: a session of an earlier connection, which the server is to end.
    pub(crate) previous: u64,
    /// The session stands already.
    renews: bool,
    binding: Option<Binding>,
}

/// Randomness from the system.
pub(super) struct System;

impl Random for System {
    fn fill(&mut self, buf: &mut [u8]) {
        fill(buf);
    }
}

/// Fills with bytes nobody can foresee; with zeros if the system has none.
pub(super) fn fill(buf: &mut [u8]) {
    let _ = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(buf));
}

impl Client {
    pub(super) fn negotiate(&mut self) -> Result<()> {
        let dialect = self.setup.dialect;
        let newest = dialect == Dialect::SMB311;
        let mut salt = [0; 32];
        fill(&mut salt);
        let cipher: Vec<u16> = self.setup.cipher.map(Cipher::wire).into_iter().collect();
        let params = NegotiateParams {
            dialects: &[dialect.0],
            security_mode: self.security_mode(),
            capabilities: self.capabilities(),
            client_guid: self.setup.client_guid,
            preauth_salt: &salt,
            ciphers: &cipher,
            signing_algs: if newest { self.setup.signing_algs } else { &[] },
            netname: None,
        };
        let draft = self.draft(At::default(), Command::NEGOTIATE, 1, |header| {
            let mut header = *header;
            header.credit_charge = 0;
            encode::negotiate(&header, &params)
        })?;
        self.preauth.update(&draft.bytes);
        let answer = self.exchange(&draft)?;
        ensure!(answer.0.status == Status::SUCCESS.0, "NEGOTIATE: {:#x}", answer.0.status);
        self.preauth.update(&answer.1);
        let response = negotiate::Response::parse(&answer.1)?;
        ensure!(response.dialect_revision == dialect.0, "got dialect {:#x}", response.dialect_revision);
        let (capabilities, mode) =
            (response.capabilities.to_le_bytes(), response.security_mode.to_le_bytes());
        self.server_said = [&capabilities[..], &response.server_guid, &mode].concat();
        self.signing = match dialect {
            d if d < Dialect::SMB300 => SigningAlg::HmacSha256,
            _ => response
                .contexts()
                .filter_map(Result::ok)
                .find_map(|context| match context {
                    negotiate::Context::Signing { algorithms } => {
                        algorithms.iter().next().and_then(SigningAlg::from_wire)
                    }
                    _ => None,
                })
                .unwrap_or(SigningAlg::AesCmac),
        };
        let chosen = match self.setup.cipher {
            Some(only) if newest => response.contexts().filter_map(Result::ok).any(|context| {
                matches!(context, negotiate::Context::Encryption { ciphers } if ciphers.iter().eq([only.wire()]))
            }),
            Some(only) => only == Cipher::Aes128Ccm && response.capabilities & CAP_ENCRYPTION != 0,
            None => true,
        };
        ensure!(chosen, "the server does not know {:?}", self.setup.cipher);
        Ok(())
    }

    fn capabilities(&self) -> u32 {
        if self.setup.dialect == Dialect::SMB202 {
            return 0;
        }
        let also = |is, capability| if is { capability } else { 0 };
        CAPABILITIES
            | also(self.setup.cipher.is_some(), CAP_ENCRYPTION)
            | also(self.setup.multi_channel, MULTI_CHANNEL)
    }

    /// A new session; its id.
    pub(crate) fn login(&mut self, user: User<'_>) -> Result<u64> {
        let mut exchange = self.begin_login(user, 0)?;
        self.complete(&mut exchange)
    }

    /// Binds this connection to a session of another one (MS-SMB2 3.2.4.2.3.1), by a login of its own as `user`.
    pub(crate) fn bind(&mut self, first: &Self, session: u64, user: User<'_>) -> Result<()> {
        let bound = first.sessions.get(&session).context("no such session")?;
        let key = bound.proof.clone().context("a session without a key")?;
        let seals = bound.seals.as_ref().map(Seals::shared);
        let mut exchange = self.begin_login(user, session)?;
        exchange.renews = false;
        exchange.binding = Some(Binding { key, seals });
        self.complete(&mut exchange).map(|_| ())
    }

    /// Proves anew, or for the first time, to be `user` on a session that stands.
    pub(crate) fn reauthenticate(&mut self, session: u64, user: User<'_>) -> Result<Status> {
        let mut exchange = self.begin_login(user, session)?;
        self.finish_login(&mut exchange)
    }

    /// Begins a login: on the session, if that is not 0.
    pub(crate) fn begin_login(&self, user: User<'_>, session: u64) -> Result<Exchange> {
        let mut login = match user {
            User::Guest => Login::ntlm(&identity("visitor", Kind::Guest), None, true),
            User::Named(name) => {
                let hash = NtHash::new(Md4::digest(utf16(PASSWORD)).into());
                Login::ntlm(&identity(name, Kind::Ntlm), Some(hash), true)
            }
            User::Ticket(ticket) => Login::kerberos(ticket, now())?,
        };
        let token = login.start(&mut System)?;
        let preauth = self.preauth.clone();
        Ok(Exchange {
            user: user.name(),
            guest: matches!(user, User::Guest),
            login,
            preauth,
            token,
            session,
            previous: 0,
            renews: session != 0,
            binding: None,
        })
    }

    /// Sends the next SESSION_SETUP of a login; on a session that has a key, signed with that.
    pub(crate) fn send_login(&mut self, exchange: &mut Exchange) -> Result<u64> {
        let params = SessionSetupParams {
            flags: if exchange.binding.is_some() { session_setup::BINDING } else { 0 },
            security_mode: u8::try_from(self.security_mode())?,
            capabilities: 0,
            previous_session_id: exchange.previous,
            token: &exchange.token,
        };
        let at = At { session: exchange.session, tree: 0 };
        let mut draft =
            self.draft(at, Command::SESSION_SETUP, 1, |header| encode::session_setup(header, &params))?;
        match &exchange.binding {
            Some(binding) => binding.key.sign(&mut draft.bytes),
            None => self.sign(&mut draft),
        }
        exchange.preauth.update(&draft.bytes);
        self.post(&draft)?;
        draft.ids.first().copied().context("an empty draft")
    }

    /// Waits for the answer to a SESSION_SETUP, and takes it in.
    pub(crate) fn take_login(&mut self, exchange: &mut Exchange, id: u64) -> Result<Status> {
        let Answer { header, msg, .. } = self.wait(id)?;
        let status = Status(header.status);
        let response = session_setup::Response::parse(&msg);
        if status == Status::MORE_PROCESSING_REQUIRED {
            if let Some(Binding { key, .. }) = &exchange.binding {
                ensure!(key.verify_mut(&mut msg.clone()), "a binding's answer is signed wrongly");
            }
            exchange.session = header.session_id;
            exchange.preauth.update(&msg);
            exchange.token = exchange.login.step(response?.security_buffer, &mut System)?;
        } else if status == Status::SUCCESS {
            let response = response?;
            let flags = response.session_flags;
            exchange.session = header.session_id;
            exchange.login.finish(response.security_buffer)?;
            let guest = flags & (session_setup::GUEST | session_setup::NULL) != 0;
            ensure!(guest == exchange.guest, "session flags {flags:#x} for {}", exchange.user);
            if !exchange.renews {
                self.establish(exchange, flags, &msg)?;
            }
        }
        Ok(status)
    }

    /// A login to its end.
    pub(crate) fn finish_login(&mut self, exchange: &mut Exchange) -> Result<Status> {
        loop {
            let id = self.send_login(exchange)?;
            let status = self.take_login(exchange, id)?;
            if status != Status::MORE_PROCESSING_REQUIRED {
                return Ok(status);
            }
        }
    }

    /// A login to its good end.
    pub(crate) fn complete(&mut self, exchange: &mut Exchange) -> Result<u64> {
        let status = self.finish_login(exchange)?;
        ensure!(status == Status::SUCCESS, "SESSION_SETUP as {}: {status:x?}", exchange.user);
        Ok(exchange.session)
    }

    /// A session stands, or this connection is bound to one: its keys, proved by the server's last answer.
    fn establish(&mut self, exchange: &mut Exchange, flags: u16, msg: &[u8]) -> Result<()> {
        let guest = flags & (session_setup::GUEST | session_setup::NULL) != 0;
        let exported = exchange.login.session_key().filter(|_| !guest);
        let keys = exported.map(|key| self.derive(key, &exchange.preauth));
        let wanted = flags & session_setup::ENCRYPT != 0;
        let (key, seals, secrets) = keys.map_or_else(Default::default, |keys| {
            let seals = keys.seals.map(|seals| seals.of_session(wanted || self.setup.sealing));
            (Some(Arc::new(keys.signing)), seals, keys.secrets)
        });
        ensure!(seals.is_some() || !wanted, "the server wants encryption, and there is none");
        if let Some(key) = &key {
            ensure!(key.verify_mut(&mut msg.to_vec()), "the login's last answer is signed wrongly");
        }
        // In 3.1.1 TREE_CONNECT is signed by whoever can; the rest of the dialects may leave it.
        let proof = key.clone();
        let key = key.filter(|_| self.setup.signing || self.setup.dialect == Dialect::SMB311);
        let seals = exchange.binding.take().map_or(seals, |binding| binding.seals);
        self.sessions.insert(exchange.session, Session { key, proof, seals, secrets });
        Ok(())
    }

    /// LOGOFF.
    pub(crate) fn log_off(&mut self, session: u64) -> Result<()> {
        let at = At { session, tree: 0 };
        self.call(at, Command::LOGOFF, 1, encode::logoff)?.success().map(|_| ())
    }

    /// Has NEGOTIATE validated (MS-SMB2 3.2.5.5, 3.2.5.14.12).
    pub(crate) fn validate_negotiate(&mut self, at: At) -> Result<()> {
        let dialect = self.setup.dialect;
        let mut input = self.capabilities().to_le_bytes().to_vec();
        input.extend(self.setup.client_guid);
        input.extend(self.security_mode().to_le_bytes());
        input.extend([1, 0]);
        input.extend(dialect.0.to_le_bytes());
        let params = IoctlParams {
            ctl_code: fsctl::VALIDATE_NEGOTIATE_INFO,
            file_id: FileId::ALL_ONES,
            input: &input,
            max_output: 24,
        };
        let answer = self.call(at, Command::IOCTL, 1, |header| encode::ioctl(header, &params))?.success()?;
        ensure!(answer.is_signed(), "the validation of NEGOTIATE is not signed");
        let said = [&self.server_said[..], &dialect.0.to_le_bytes()].concat();
        let output = ioctl::Response::parse(&answer.msg)?.output;
        ensure!(output == said, "NEGOTIATE said {said:x?}, its validation {output:x?}");
        Ok(())
    }

    /// Session and share at once.
    pub(crate) fn enter(&mut self, user: User<'_>, share: &str) -> Result<At> {
        let session = self.login(user)?;
        self.tree(session, share)
    }

    /// TREE_CONNECT.
    pub(crate) fn tree(&mut self, session: u64, share: &str) -> Result<At> {
        let path = utf16(&format!("\\\\{FLOATING}\\{share}"));
        let at = At { session, tree: 0 };
        let answer = self
            .call(at, Command::TREE_CONNECT, 1, |header| encode::tree_connect(header, &path))?
            .success()?;
        let tree = answer.header.tree_id().context("no TreeId")?;
        if tree_connect::Response::parse(&answer.msg)?.share_flags & SHARE_ENCRYPT != 0 {
            let seals = self.sessions.get_mut(&session).and_then(|session| session.seals.as_mut());
            seals.context("the share wants encryption, and there is none")?.add_tree(tree);
        }
        Ok(At { session, tree })
    }

    /// Sends as it is, waits, checks no signature.
    fn exchange(&mut self, draft: &Draft) -> Result<(Header, Vec<u8>)> {
        self.post(draft)?;
        let id = draft.ids.first().copied().context("an empty draft")?;
        let answer = self.wait(id)?;
        Ok((answer.header, answer.msg))
    }

    fn security_mode(&self) -> u16 {
        if self.setup.signing { SIGNING_ENABLED | SIGNING_REQUIRED } else { SIGNING_ENABLED }
    }
}

fn identity(user: &str, kind: Kind) -> Identity {
    Identity { user: user.to_owned(), domain: "TESTGROUP".to_owned(), workstation: "CLIENT".to_owned(), kind }
}

/// By the machine's clock.
pub(crate) fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// UTF-16LE.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
