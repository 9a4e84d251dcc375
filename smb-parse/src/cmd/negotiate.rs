//! NEGOTIATE (MS-SMB2 2.2.3, 2.2.4) and its contexts.
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{
    ParseError, Utf16,
    header::Command,
    read::{Reader, index},
};

/// The only dialect with contexts.
const SMB311: u16 = 0x0311;

/// Context types (2.2.3.1).
pub mod context_type {
    pub const PREAUTH_INTEGRITY: u16 = 0x0001;
    pub const ENCRYPTION: u16 = 0x0002;
    pub const COMPRESSION: u16 = 0x0003;
    pub const NETNAME: u16 = 0x0005;
    pub const TRANSPORT: u16 = 0x0006;
    pub const RDMA_TRANSFORM: u16 = 0x0007;
    pub const SIGNING: u16 = 0x0008;
    /// Reserved by MS-SMB2; the SMB3 POSIX extensions use it.
    pub const POSIX: u16 = 0x0100;
}

/// 16-bit values as they stand on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct U16List<'a>(&'a [u8]);

impl<'a> U16List<'a> {
    /// The values, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.chunks_exact(2).filter_map(|pair| pair.first_chunk().copied().map(u16::from_le_bytes))
    }
}

/// A NEGOTIATE Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub security_mode: u16,
    pub capabilities: u32,
    pub client_guid: [u8; 16],
    dialects: U16List<'a>,
    contexts: &'a [u8],
    context_count: u16,
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::NEGOTIATE, 36)?;
        let dialect_count = r.u16("DialectCount")?;
        let security_mode = r.u16("SecurityMode")?;
        r.skip(2)?;
        let capabilities = r.u32("Capabilities")?;
        let client_guid = r.array("ClientGuid")?;
        let (offset, mut context_count) = (r.u32("NegotiateContextOffset")?, r.u16("NegotiateContextCount")?);
        r.skip(2)?;
        let dialects = U16List(r.bytes("Dialects", usize::from(dialect_count) * 2)?);
        if !dialects.iter().any(|dialect| dialect == SMB311) {
            // The bytes are ClientStartTime then.
            context_count = 0;
        }
        let contexts = if context_count == 0 { &[][..] } else { r.from("NegotiateContexts", index(offset))? };
        Ok(Self { security_mode, capabilities, client_guid, dialects, contexts, context_count })
    }

    /// The dialects offered.
    pub fn dialects(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.dialects.iter()
    }

    /// The contexts, in order. Ends after the first error.
    pub fn contexts(&self) -> impl Iterator<Item = Result<Context<'a>, ParseError>> + use<'a> {
        typed(self.contexts, self.context_count)
    }
}

/// A NEGOTIATE Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    pub security_mode: u16,
    /// 0x02FF answers an SMB1 NEGOTIATE: the client shall ask again by SMB2.
    pub dialect_revision: u16,
    pub server_guid: [u8; 16],
    pub capabilities: u32,
    pub max_transact_size: u32,
    pub max_read_size: u32,
    pub max_write_size: u32,
    pub system_time: u64,
    pub server_start_time: u64,
    pub security_buffer: &'a [u8],
    contexts: &'a [u8],
    context_count: u16,
}

impl<'a> Response<'a> {
    /// Reads the body of an answer.
    pub fn parse(msg: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::body(msg, Command::NEGOTIATE, 65)?;
        let (security_mode, dialect_revision) = (r.u16("SecurityMode")?, r.u16("DialectRevision")?);
        let context_count = r.u16("NegotiateContextCount")?;
        let mut response = Self {
            security_mode,
            dialect_revision,
            server_guid: r.array("ServerGuid")?,
            capabilities: r.u32("Capabilities")?,
            max_transact_size: r.u32("MaxTransactSize")?,
            max_read_size: r.u32("MaxReadSize")?,
            max_write_size: r.u32("MaxWriteSize")?,
            system_time: r.u64("SystemTime")?,
            server_start_time: r.u64("ServerStartTime")?,
            security_buffer: &[],
            contexts: &[],
            context_count: 0,
        };
        let (at, len) = (r.u16("SecurityBufferOffset")?, r.u16("SecurityBufferLength")?);
        let offset = r.u32("NegotiateContextOffset")?;
        response.security_buffer = r.part("SecurityBuffer", at.into(), len.into())?;
        if dialect_revision == SMB311 && context_count > 0 {
            response.context_count = context_count;
            response.contexts = r.from("NegotiateContexts", index(offset))?;
        }
        Ok(response)
    }

    /// The contexts, in order. Ends after the first error.
    pub fn contexts(&self) -> impl Iterator<Item = Result<Context<'a>, ParseError>> + use<'a> {
        typed(self.contexts, self.context_count)
    }
}

/// SMB2_NEGOTIATE_CONTEXT (2.2.3.1, 2.2.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context<'a> {
    PreauthIntegrity { hash_algorithms: U16List<'a>, salt: &'a [u8] },
    Encryption { ciphers: U16List<'a> },
    Compression { flags: u32, algorithms: U16List<'a> },
    Netname { name: Utf16<'a> },
    Transport { flags: u32 },
    RdmaTransform { transforms: U16List<'a> },
    Signing { algorithms: U16List<'a> },
    Posix { data: &'a [u8] },
    Unknown { context_type: u16, data: &'a [u8] },
}

impl<'a> Context<'a> {
    fn parse(kind: u16, data: &'a [u8]) -> Result<Self, ParseError> {
        let mut r = Reader::within(data, Command::NEGOTIATE);
        Ok(match kind {
            context_type::PREAUTH_INTEGRITY => {
                let (count, salt) = (r.u16("HashAlgorithmCount")?, r.u16("SaltLength")?);
                let hash_algorithms = list(&mut r, count, "HashAlgorithms")?;
                Self::PreauthIntegrity { hash_algorithms, salt: r.bytes("Salt", salt.into())? }
            }
            context_type::ENCRYPTION => {
                let count = r.u16("CipherCount")?;
                Self::Encryption { ciphers: list(&mut r, count, "Ciphers")? }
            }
            context_type::COMPRESSION => {
                let count = r.u16("CompressionAlgorithmCount")?;
                r.skip(2)?;
                let flags = r.u32("Flags")?;
                Self::Compression { flags, algorithms: list(&mut r, count, "CompressionAlgorithms")? }
            }
            context_type::NETNAME => Self::Netname { name: Utf16(data) },
            context_type::TRANSPORT => Self::Transport { flags: r.u32("Flags")? },
            context_type::RDMA_TRANSFORM => {
                let count = r.u16("TransformCount")?;
                r.skip(6)?;
                Self::RdmaTransform { transforms: list(&mut r, count, "RDMATransformIds")? }
            }
            context_type::SIGNING => {
                let count = r.u16("SigningAlgorithmCount")?;
                Self::Signing { algorithms: list(&mut r, count, "SigningAlgorithms")? }
            }
            context_type::POSIX => Self::Posix { data },
            context_type => Self::Unknown { context_type, data },
        })
    }
}

fn list<'a>(r: &mut Reader<'a>, count: u16, field: &'static str) -> Result<U16List<'a>, ParseError> {
    Ok(U16List(r.bytes(field, usize::from(count) * 2)?))
}

fn typed<'a>(bytes: &'a [u8], count: u16) -> impl Iterator<Item = Result<Context<'a>, ParseError>> + use<'a> {
    raw_contexts(bytes, count, Command::NEGOTIATE)
        .map(|raw| raw.and_then(|(kind, data)| Context::parse(kind, data)))
}

/// `count` contexts of type, length, four reserved bytes and data, each but the first 8-aligned.
pub(super) fn raw_contexts(bytes: &[u8], count: u16, command: Command) -> RawContexts<'_> {
    RawContexts { rest: bytes, left: count, command }
}

/// See [`raw_contexts`].
#[derive(Debug, Clone)]
pub(super) struct RawContexts<'a> {
    rest: &'a [u8],
    left: u16,
    command: Command,
}

impl<'a> RawContexts<'a> {
    fn step(&mut self) -> Result<(u16, &'a [u8]), ParseError> {
        let mut r = Reader::within(self.rest, self.command);
        let (kind, len) = (r.u16("ContextType")?, usize::from(r.u16("DataLength")?));
        r.skip(4)?;
        let data = r.bytes("Data", len)?;
        self.rest = r.rest().get(len.next_multiple_of(8) - len..).unwrap_or_default();
        Ok((kind, data))
    }
}

impl<'a> Iterator for RawContexts<'a> {
    type Item = Result<(u16, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_salt_is_no_salt() {
        let data = [1, 0, 2, 0, 1, 0, 9, 8, 0xff];
        let Ok(Context::PreauthIntegrity { salt, .. }) =
            Context::parse(context_type::PREAUTH_INTEGRITY, &data)
        else {
            panic!("a preauth context");
        };
        assert_eq!(salt, [9, 8]);
    }

    #[test]
    fn contexts_end_at_the_first_error() {
        let bytes = [8, 0, 4, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 8, 0, 0xff, 0, 0, 0, 0, 0];
        let read: Vec<_> = typed(&bytes, 5).map(|c| c.is_ok()).collect();
        assert_eq!(read, [true, false]);
    }
}
