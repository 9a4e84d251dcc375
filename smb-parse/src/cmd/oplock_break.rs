//! OPLOCK_BREAK (MS-SMB2 2.2.23 to 2.2.25): one command, two forms, told apart by StructureSize.
#![allow(missing_docs, reason = "the fields are named as in MS-SMB2")]

use crate::{FileId, ParseError, header::Command, read::Reader};

/// StructureSize of the oplock form in all its directions.
pub(crate) const OPLOCK: u16 = 24;
/// StructureSize of a lease break notification.
pub(crate) const LEASE_NOTIFICATION: u16 = 44;
/// StructureSize of a lease break acknowledgement and of its answer.
pub(crate) const LEASE_ACK: u16 = 36;
/// `SMB2_NOTIFY_BREAK_LEASE_FLAG_ACK_REQUIRED`.
pub const ACK_REQUIRED: u32 = 0x1;

/// What a server sends, MessageId all ones (2.2.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notification {
    /// 2.2.23.1.
    Oplock { oplock_level: u8, file_id: FileId },
    /// 2.2.23.2.
    Lease {
        new_epoch: u16,
        flags: u32,
        lease_key: [u8; 16],
        current_lease_state: u32,
        new_lease_state: u32,
        break_reason: u32,
        access_mask_hint: u32,
        share_mask_hint: u32,
    },
}

impl Notification {
    /// Reads the body of a notification.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::any_body(msg, Command::OPLOCK_BREAK)?;
        let at = r.error("StructureSize");
        match r.u16("StructureSize")? {
            OPLOCK => {
                let (oplock_level, file_id) = oplock(&mut r)?;
                Ok(Self::Oplock { oplock_level, file_id })
            }
            LEASE_NOTIFICATION => Ok(Self::Lease {
                new_epoch: r.u16("NewEpoch")?,
                flags: r.u32("Flags")?,
                lease_key: r.array("LeaseKey")?,
                current_lease_state: r.u32("CurrentLeaseState")?,
                new_lease_state: r.u32("NewLeaseState")?,
                break_reason: r.u32("BreakReason")?,
                access_mask_hint: r.u32("AccessMaskHint")?,
                share_mask_hint: r.u32("ShareMaskHint")?,
            }),
            _ => Err(at),
        }
    }
}

/// What a client answers to a notification (2.2.24), and the server to that (2.2.25): the same bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// 2.2.24.1, 2.2.25.1.
    Oplock { oplock_level: u8, file_id: FileId },
    /// 2.2.24.2, 2.2.25.2.
    Lease { flags: u32, lease_key: [u8; 16], lease_state: u32, lease_duration: u64 },
}

impl Ack {
    /// Reads the body of an acknowledgement or of its answer.
    pub fn parse(msg: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::any_body(msg, Command::OPLOCK_BREAK)?;
        let at = r.error("StructureSize");
        match r.u16("StructureSize")? {
            OPLOCK => {
                let (oplock_level, file_id) = oplock(&mut r)?;
                Ok(Self::Oplock { oplock_level, file_id })
            }
            LEASE_ACK => {
                r.skip(2)?;
                Ok(Self::Lease {
                    flags: r.u32("Flags")?,
                    lease_key: r.array("LeaseKey")?,
                    lease_state: r.u32("LeaseState")?,
                    lease_duration: r.u64("LeaseDuration")?,
                })
            }
            _ => Err(at),
        }
    }
}

/// An acknowledgement.
pub type Request = Ack;
/// The answer to an acknowledgement.
pub type Response = Ack;

fn oplock(r: &mut Reader<'_>) -> Result<(u8, FileId), ParseError> {
    let level = r.u8("OplockLevel")?;
    r.skip(5)?;
    Ok((level, r.file_id()?))
}
