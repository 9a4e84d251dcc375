//! The SMB2 header (MS-SMB2 2.2.1), commands, flags and the NTSTATUS values that matter here.

use std::ops::BitOr;

use crate::{ParseError, read::Reader};

/// A command. Values that nobody has defined yet survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Command(pub u16);

#[allow(missing_docs, reason = "the names are those of MS-SMB2 2.2.1.2")]
impl Command {
    pub const NEGOTIATE: Self = Self(0);
    pub const SESSION_SETUP: Self = Self(1);
    pub const LOGOFF: Self = Self(2);
    pub const TREE_CONNECT: Self = Self(3);
    pub const TREE_DISCONNECT: Self = Self(4);
    pub const CREATE: Self = Self(5);
    pub const CLOSE: Self = Self(6);
    pub const FLUSH: Self = Self(7);
    pub const READ: Self = Self(8);
    pub const WRITE: Self = Self(9);
    pub const LOCK: Self = Self(10);
    pub const IOCTL: Self = Self(11);
    pub const CANCEL: Self = Self(12);
    pub const ECHO: Self = Self(13);
    pub const QUERY_DIRECTORY: Self = Self(14);
    pub const CHANGE_NOTIFY: Self = Self(15);
    pub const QUERY_INFO: Self = Self(16);
    pub const SET_INFO: Self = Self(17);
    pub const OPLOCK_BREAK: Self = Self(18);
    pub const SERVER_TO_CLIENT_NOTIFICATION: Self = Self(19);
    /// How many are defined.
    pub const COUNT: usize = 20;

    /// The command's name in lower case; `unknown` if it has none.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; Command::COUNT] = [
            "negotiate",
            "session_setup",
            "logoff",
            "tree_connect",
            "tree_disconnect",
            "create",
            "close",
            "flush",
            "read",
            "write",
            "lock",
            "ioctl",
            "cancel",
            "echo",
            "query_directory",
            "change_notify",
            "query_info",
            "set_info",
            "oplock_break",
            "notification",
        ];
        NAMES.get(usize::from(self.0)).copied().unwrap_or("unknown")
    }
}

/// An NTSTATUS (MS-ERREF 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

#[allow(missing_docs, reason = "the names are those of MS-ERREF 2.3.1")]
impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const PENDING: Self = Self(0x0000_0103);
    pub const NOTIFY_CLEANUP: Self = Self(0x0000_010b);
    pub const NOTIFY_ENUM_DIR: Self = Self(0x0000_010c);
    pub const BUFFER_OVERFLOW: Self = Self(0x8000_0005);
    pub const NO_MORE_FILES: Self = Self(0x8000_0006);
    pub const STOPPED_ON_SYMLINK: Self = Self(0x8000_002d);
    pub const UNSUCCESSFUL: Self = Self(0xc000_0001);
    pub const INVALID_PARAMETER: Self = Self(0xc000_000d);
    pub const NO_SUCH_FILE: Self = Self(0xc000_000f);
    pub const INVALID_DEVICE_REQUEST: Self = Self(0xc000_0010);
    pub const END_OF_FILE: Self = Self(0xc000_0011);
    pub const MORE_PROCESSING_REQUIRED: Self = Self(0xc000_0016);
    pub const ACCESS_DENIED: Self = Self(0xc000_0022);
    pub const OBJECT_NAME_INVALID: Self = Self(0xc000_0033);
    pub const OBJECT_NAME_NOT_FOUND: Self = Self(0xc000_0034);
    pub const OBJECT_NAME_COLLISION: Self = Self(0xc000_0035);
    pub const OBJECT_PATH_NOT_FOUND: Self = Self(0xc000_003a);
    pub const SHARING_VIOLATION: Self = Self(0xc000_0043);
    pub const FILE_LOCK_CONFLICT: Self = Self(0xc000_0054);
    pub const LOCK_NOT_GRANTED: Self = Self(0xc000_0055);
    pub const DELETE_PENDING: Self = Self(0xc000_0056);
    pub const LOGON_FAILURE: Self = Self(0xc000_006d);
    pub const INSUFFICIENT_RESOURCES: Self = Self(0xc000_009a);
    pub const PIPE_DISCONNECTED: Self = Self(0xc000_00b0);
    pub const FILE_IS_A_DIRECTORY: Self = Self(0xc000_00ba);
    pub const NOT_SUPPORTED: Self = Self(0xc000_00bb);
    pub const NETWORK_NAME_DELETED: Self = Self(0xc000_00c9);
    pub const BAD_NETWORK_NAME: Self = Self(0xc000_00cc);
    pub const REQUEST_NOT_ACCEPTED: Self = Self(0xc000_00d0);
    pub const INTERNAL_ERROR: Self = Self(0xc000_00e5);
    pub const CANCELLED: Self = Self(0xc000_0120);
    pub const FILE_CLOSED: Self = Self(0xc000_0128);
    pub const USER_SESSION_DELETED: Self = Self(0xc000_0203);
    pub const DUPLICATE_OBJECTID: Self = Self(0xc000_022a);
    pub const NETWORK_SESSION_EXPIRED: Self = Self(0xc000_035c);
    pub const FILE_NOT_AVAILABLE: Self = Self(0xc000_0467);

    /// Severity error.
    pub fn is_error(self) -> bool {
        self.0 >> 30 == 3
    }

    /// Severity success; STATUS_PENDING counts.
    pub fn is_success(self) -> bool {
        self.0 >> 30 == 0
    }
}

/// Header flags (MS-SMB2 2.2.1.2). Bits that nobody has defined yet survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u32);

#[allow(missing_docs, reason = "the names are those of MS-SMB2 2.2.1.2")]
impl Flags {
    pub const SERVER_TO_REDIR: Self = Self(0x1);
    pub const ASYNC: Self = Self(0x2);
    pub const RELATED: Self = Self(0x4);
    pub const SIGNED: Self = Self(0x8);
    pub const PRIORITY_MASK: Self = Self(0x70);
    pub const DFS: Self = Self(0x1000_0000);
    pub const REPLAY: Self = Self(0x2000_0000);

    /// Whether every bit of `other` is set.
    #[inline]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These bits but those of `other`.
    #[inline]
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The eight bytes that mean one thing in a synchronous message and another in an asynchronous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// MS-SMB2 2.2.1.2.
    Sync {
        /// ProcessId of old.
        reserved: u32,
        /// TreeId.
        tree_id: u32,
    },
    /// MS-SMB2 2.2.1.1.
    Async {
        /// AsyncId.
        async_id: u64,
    },
}

/// The SMB2 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// CreditCharge.
    pub credit_charge: u16,
    /// Status; in requests of 3.x ChannelSequence.
    pub status: u32,
    /// Command.
    pub command: Command,
    /// CreditRequest or CreditResponse.
    pub credits: u16,
    /// Flags.
    pub flags: Flags,
    /// NextCommand: 0 in the last element.
    pub next_command: u32,
    /// MessageId.
    pub message_id: u64,
    /// TreeId or AsyncId.
    pub target: Target,
    /// SessionId.
    pub session_id: u64,
    /// Signature.
    pub signature: [u8; 16],
}

impl Header {
    /// Length on the wire, and the value of StructureSize.
    pub const LEN: usize = 64;

    /// The header of a synchronous request.
    pub fn request(command: Command, message_id: u64) -> Self {
        Self {
            credit_charge: 0,
            status: 0,
            command,
            credits: 1,
            flags: Flags::default(),
            next_command: 0,
            message_id,
            target: Target::Sync { reserved: 0xfeff, tree_id: 0 },
            session_id: 0,
            signature: [0; 16],
        }
    }

    /// Reads the header at the front of a message.
    #[inline]
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(msg);
        for (field, at, wanted) in [("ProtocolId", 0, 0x424d_53fe), ("StructureSize", 4, 64)] {
            let found = if at == 0 { r.u32(field)? } else { r.u16(field)?.into() };
            if found != wanted {
                return Err(ParseError { command: None, field, at });
            }
        }
        let credit_charge = r.u16("CreditCharge")?;
        let status = r.u32("Status")?;
        let command = Command(r.u16("Command")?);
        let credits = r.u16("Credit")?;
        let flags = Flags(r.u32("Flags")?);
        let next_command = r.u32("NextCommand")?;
        let message_id = r.u64("MessageId")?;
        let target = if flags.contains(Flags::ASYNC) {
            Target::Async { async_id: r.u64("AsyncId")? }
        } else {
            Target::Sync { reserved: r.u32("Reserved")?, tree_id: r.u32("TreeId")? }
        };
        let session_id = r.u64("SessionId")?;
        let signature = r.array("Signature")?;
        Ok(Self {
            credit_charge,
            status,
            command,
            credits,
            flags,
            next_command,
            message_id,
            target,
            session_id,
            signature,
        })
    }

    /// Writes the header over the first 64 bytes, if there are so many.
    pub fn write(&self, msg: &mut [u8]) {
        let Some(out) = msg.get_mut(..Self::LEN) else { return };
        out[..4].copy_from_slice(b"\xfeSMB");
        out[4..6].copy_from_slice(&64u16.to_le_bytes());
        out[6..8].copy_from_slice(&self.credit_charge.to_le_bytes());
        out[8..12].copy_from_slice(&self.status.to_le_bytes());
        out[12..14].copy_from_slice(&self.command.0.to_le_bytes());
        out[14..16].copy_from_slice(&self.credits.to_le_bytes());
        out[16..20].copy_from_slice(&self.flags.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.next_command.to_le_bytes());
        out[24..32].copy_from_slice(&self.message_id.to_le_bytes());
        match self.target {
            Target::Sync { reserved, tree_id } => {
                out[32..36].copy_from_slice(&reserved.to_le_bytes());
                out[36..40].copy_from_slice(&tree_id.to_le_bytes());
            }
            Target::Async { async_id } => out[32..40].copy_from_slice(&async_id.to_le_bytes()),
        }
        out[40..48].copy_from_slice(&self.session_id.to_le_bytes());
        out[48..64].copy_from_slice(&self.signature);
    }

    /// TreeId of a synchronous message.
    pub fn tree_id(&self) -> Option<u32> {
        match self.target {
            Target::Sync { tree_id, .. } => Some(tree_id),
            Target::Async { .. } => None,
        }
    }

    /// AsyncId of an asynchronous message.
    pub fn async_id(&self) -> Option<u64> {
        match self.target {
            Target::Sync { .. } => None,
            Target::Async { async_id } => Some(async_id),
        }
    }

    /// Whether a server sent it.
    pub fn is_response(&self) -> bool {
        self.flags.contains(Flags::SERVER_TO_REDIR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_header_says_why() {
        let mut msg = [0; 64];
        Header::request(Command::ECHO, 1).write(&mut msg);
        assert!(Header::parse(&msg).is_ok());
        let field = |msg: &[u8]| Header::parse(msg).map_err(|e| e.field);
        assert_eq!(field(&[&[0xff], &msg[1..]].concat()), Err("ProtocolId"));
        assert_eq!(field(&[&msg[..4], &[65], &msg[5..]].concat()), Err("StructureSize"));
        assert_eq!(field(&msg[..63]), Err("Signature"));
    }

    #[test]
    fn what_is_not_known_survives() {
        let header = Header {
            command: Command(0x4711),
            flags: Flags(0xffff_fffd),
            ..Header::request(Command::ECHO, 1)
        };
        let mut msg = [0; 64];
        header.write(&mut msg);
        assert_eq!(Header::parse(&msg), Ok(header));
        assert_eq!(header.command.name(), "unknown");
    }

    #[test]
    fn severities() {
        assert!(Status::SUCCESS.is_success() && Status::PENDING.is_success());
        assert!(!Status::BUFFER_OVERFLOW.is_success() && !Status::BUFFER_OVERFLOW.is_error());
        assert!(Status::ACCESS_DENIED.is_error() && Status::MORE_PROCESSING_REQUIRED.is_error());
    }
}
