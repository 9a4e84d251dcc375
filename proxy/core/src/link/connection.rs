//! What NEGOTIATE settled on the client leg (MS-SMB2 3.3.1.7, Connection), and how to ask a further node for the same.

use smb_parse::{
    cmd::negotiate,
    encode::{self, NegotiateParams},
    header::{Command, Header},
};

use crate::{
    crypto::{Dialect, preauth::Preauth, sealing::Cipher, signing::SigningAlg},
    random::Random,
};

/// `SMB2_NEGOTIATE_SIGNING_REQUIRED` (MS-SMB2 2.2.3).
pub(crate) const SIGNING_REQUIRED: u16 = 0x0002;
/// `SMB2_GLOBAL_CAP_ENCRYPTION` (MS-SMB2 2.2.4).
const ENCRYPTION: u32 = 0x0000_0040;
/// The wildcard dialect of an answer to an SMB1 NEGOTIATE (MS-SMB2 2.2.4).
const DIALECT_WILDCARD: u16 = 0x02ff;

/// What was asked and granted in NEGOTIATE.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The dialect, once settled.
    pub(crate) dialect: Option<Dialect>,
    pub(crate) client_guid: [u8; 16],
    pub(crate) client_capabilities: u32,
    pub(crate) client_security_mode: u16,
    pub(crate) client_dialects: Vec<u16>,
    pub(crate) server_guid: [u8; 16],
    pub(crate) server_capabilities: u32,
    pub(crate) server_security_mode: u16,
    pub(crate) max_read_size: u32,
    pub(crate) max_write_size: u32,
    pub(crate) signing: SigningAlg,
    /// What seals, if anything does.
    pub(crate) cipher: Option<Cipher>,
    pub(crate) preauth: Preauth,
    /// SystemTime of the answer.
    pub(crate) system_time: u64,
}

impl Connection {
    pub(crate) fn new() -> Self {
        Self {
            dialect: None,
            client_guid: [0; 16],
            client_capabilities: 0,
            client_security_mode: 0,
            client_dialects: Vec::new(),
            server_guid: [0; 16],
            server_capabilities: 0,
            server_security_mode: 0,
            max_read_size: 0,
            max_write_size: 0,
            signing: SigningAlg::HmacSha256,
            cipher: None,
            preauth: Preauth::new(),
            system_time: 0,
        }
    }

    /// Takes a NEGOTIATE request in. Returns whether it was understood.
    pub(crate) fn request(&mut self, msg: &[u8]) -> bool {
        let Ok(request) = negotiate::Request::parse(msg) else { return false };
        self.client_guid = request.client_guid;
        self.client_capabilities = request.capabilities;
        self.client_security_mode = request.security_mode;
        self.client_dialects = request.dialects().collect();
        self.preauth.update(msg);
        true
    }

    /// Takes a NEGOTIATE answer in. Returns whether it was understood.
    pub(crate) fn response(&mut self, msg: &[u8]) -> bool {
        let Ok(response) = negotiate::Response::parse(msg) else { return false };
        if response.dialect_revision == DIALECT_WILDCARD {
            return true;
        }
        let dialect = Dialect(response.dialect_revision);
        self.dialect = Some(dialect);
        self.server_guid = response.server_guid;
        self.server_capabilities = response.capabilities;
        self.server_security_mode = response.security_mode;
        self.max_read_size = response.max_read_size;
        self.max_write_size = response.max_write_size;
        self.signing = signing_algorithm(dialect, &response);
        self.cipher = cipher(dialect, &response);
        self.preauth.update(msg);
        self.system_time = response.system_time;
        true
    }

    /// The NEGOTIATE by which the proxy asks a further node for the same dialect, in the client's name.
    pub(crate) fn renegotiate(&self, random: &mut dyn Random) -> Vec<u8> {
        let algorithms = [SigningAlg::AesGmac, SigningAlg::AesCmac, SigningAlg::HmacSha256];
        self.negotiate_again(&algorithms, &self.ciphers_to_offer(), random)
    }

    /// The NEGOTIATE of a further connection to the same node that is to be bound to a session of this one: nothing but
    /// what this one has come to (MS-SMB2 3.3.5.5.2).
    pub(crate) fn negotiate_alike(&self, random: &mut dyn Random) -> Vec<u8> {
        let cipher = self.cipher.filter(|_| self.dialect == Some(Dialect::SMB311)).map(Cipher::wire);
        self.negotiate_again(&[self.signing], cipher.as_slice(), random)
    }

    fn negotiate_again(&self, signing: &[SigningAlg], ciphers: &[u16], random: &mut dyn Random) -> Vec<u8> {
        let dialect = self.dialect.unwrap_or(Dialect::SMB202);
        let mut salt = [0; 32];
        random.fill(&mut salt);
        let dialects = [dialect.0];
        let mut algorithms: Vec<u16> = signing.iter().map(|algorithm| algorithm.wire()).collect();
        if dialect != Dialect::SMB311 {
            algorithms.clear();
        }
        let params = NegotiateParams {
            dialects: &dialects,
            security_mode: self.client_security_mode,
            capabilities: self.client_capabilities,
            client_guid: self.client_guid,
            preauth_salt: &salt,
            ciphers,
            signing_algs: &algorithms,
            netname: None,
        };
        encode::negotiate(&Header::request(Command::NEGOTIATE, 0), &params)
    }
}

impl Connection {
    /// Ciphers no weaker than the client's, its own first (3.1.1).
    fn ciphers_to_offer(&self) -> Vec<u16> {
        let Some(own) = self.cipher.filter(|_| self.dialect == Some(Dialect::SMB311)) else {
            return Vec::new();
        };
        let others = Cipher::ALL.into_iter().filter(|c| *c != own && c.key_len() >= own.key_len());
        std::iter::once(own).chain(others).map(Cipher::wire).collect()
    }
}

/// The cipher: by context in 3.1.1, AES-128-CCM by capability in 3.0 and 3.0.2 (MS-SMB2 3.3.5.4).
fn cipher(dialect: Dialect, response: &negotiate::Response<'_>) -> Option<Cipher> {
    if dialect < Dialect::SMB311 {
        let agreed = dialect >= Dialect::SMB300 && response.capabilities & ENCRYPTION != 0;
        return agreed.then_some(Cipher::Aes128Ccm);
    }
    response.contexts().filter_map(Result::ok).find_map(|context| match context {
        negotiate::Context::Encryption { ciphers } => ciphers.iter().next().and_then(Cipher::from_wire),
        _ => None,
    })
}

/// The algorithm that signs: by context in 3.1.1, fixed before (MS-SMB2 3.3.5.4, 3.1.4.1).
fn signing_algorithm(dialect: Dialect, response: &negotiate::Response<'_>) -> SigningAlg {
    if dialect < Dialect::SMB300 {
        return SigningAlg::HmacSha256;
    }
    response
        .contexts()
        .filter_map(Result::ok)
        .find_map(|context| match context {
            negotiate::Context::Signing { algorithms } => {
                algorithms.iter().next().and_then(SigningAlg::from_wire)
            }
            _ => None,
        })
        .unwrap_or(SigningAlg::AesCmac)
}
