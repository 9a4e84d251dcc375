//! Create contexts (MS-SMB2 2.2.13.2, 2.2.14.2): the chain, and what each of them says.

use std::ops::Range;

use crate::{
    FileId, ParseError,
    header::Command,
    read::{Reader, index},
};

/// The names of the contexts (MS-SMB2 2.2.13.2).
#[allow(missing_docs, reason = "the names are those of MS-SMB2 2.2.13.2")]
pub mod tag {
    pub const EXTA: &[u8] = b"ExtA";
    pub const SECD: &[u8] = b"SecD";
    pub const DHNQ: &[u8] = b"DHnQ";
    pub const DHNC: &[u8] = b"DHnC";
    pub const ALSI: &[u8] = b"AlSi";
    pub const MXAC: &[u8] = b"MxAc";
    pub const TWRP: &[u8] = b"TWrp";
    pub const QFID: &[u8] = b"QFid";
    pub const RQLS: &[u8] = b"RqLs";
    pub const DH2Q: &[u8] = b"DH2Q";
    pub const DH2C: &[u8] = b"DH2C";
    pub const APP_INSTANCE_ID: &[u8] = b"\x45\xbc\xa6\x6a\xef\xa7\xf7\x4a\x90\x08\xfa\x46\x2e\x14\x4d\x74";
    pub const APP_INSTANCE_VERSION: &[u8] =
        b"\xb9\x82\xd0\xb7\x3b\x56\x07\x4f\xa0\x7b\x52\x4a\x81\x16\xa0\x10";
    pub const SVHDX: &[u8] = b"\x9c\xcb\xcf\x9e\x04\xc1\xe6\x43\x98\x0e\x15\x8d\xa1\xf6\xec\x83";
    /// SMB3 POSIX extensions.
    pub const POSX: &[u8] = b"\x93\xad\x25\x50\x9c\xb4\x11\xe7\xb4\x23\x83\xde\x96\x8b\xcd\x7c";
    /// Apple's; not in MS-SMB2.
    pub const AAPL: &[u8] = b"AAPL";
}

/// A context's name for people, if it is one of the known.
pub fn tag_name(tag: &[u8]) -> Option<&'static str> {
    Some(match tag {
        tag::EXTA => "ExtA",
        tag::SECD => "SecD",
        tag::DHNQ => "DHnQ",
        tag::DHNC => "DHnC",
        tag::ALSI => "AlSi",
        tag::MXAC => "MxAc",
        tag::TWRP => "TWrp",
        tag::QFID => "QFid",
        tag::RQLS => "RqLs",
        tag::DH2Q => "DH2Q",
        tag::DH2C => "DH2C",
        tag::APP_INSTANCE_ID => "AppInstanceId",
        tag::APP_INSTANCE_VERSION => "AppInstanceVersion",
        tag::SVHDX => "SVHDX",
        tag::POSX => "POSX",
        tag::AAPL => "AAPL",
        _ => return None,
    })
}

/// A context as it stands in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// Name.
    pub tag: &'a [u8],
    /// Data.
    pub data: &'a [u8],
}

/// Where a context's parts stand in the area of contexts.
struct Place {
    tag: Range<usize>,
    data: Range<usize>,
    next: Option<usize>,
}

/// The context at `at` of `area`.
fn place(area: &[u8], at: usize) -> Result<Place, ParseError> {
    let error = |field| ParseError { command: Some(Command::CREATE), field, at };
    let context = area.get(at..).ok_or(error("Next"))?;
    let mut r = Reader::within(context, Command::CREATE);
    let next = index(r.u32("Next")?);
    let (tag_at, tag_len) = (r.u16("NameOffset")?, r.u16("NameLength")?);
    r.skip(2)?;
    let (data_at, data_len) = (r.u16("DataOffset")?, r.u32("DataLength")?);
    // Only what lies before the next context is this one's.
    let end = if next == 0 { context.len() } else { next };
    if next != 0 && (next < 16 || next >= context.len()) {
        return Err(error("Next"));
    }
    let part = |field, from: u16, len: usize| {
        let from = if len == 0 { 0 } else { usize::from(from) };
        match from.checked_add(len) {
            Some(to) if to <= end => Ok(at + from..at + to),
            _ => Err(error(field)),
        }
    };
    Ok(Place {
        tag: part("Name", tag_at, tag_len.into())?,
        data: part("Data", data_at, index(data_len))?,
        next: (next != 0).then(|| at + next),
    })
}

/// The contexts of an area, in order. Ends after the first error.
pub fn contexts(area: &[u8]) -> Contexts<'_> {
    Contexts { area, at: Some(0).filter(|_| !area.is_empty()) }
}

/// See [`contexts`].
#[derive(Debug, Clone)]
pub struct Contexts<'a> {
    area: &'a [u8],
    at: Option<usize>,
}

impl<'a> Iterator for Contexts<'a> {
    type Item = Result<Context<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let place = match place(self.area, self.at.take()?) {
            Ok(place) => place,
            Err(error) => return Some(Err(error)),
        };
        self.at = place.next;
        Some(Ok(Context {
            tag: self.area.get(place.tag).unwrap_or_default(),
            data: self.area.get(place.data).unwrap_or_default(),
        }))
    }
}

/// Calls `visit` with each context's tag and data, the data to be changed in place. Ends at the first error.
pub(crate) fn visit_mut(area: &mut [u8], visit: &mut dyn FnMut(&[u8], &mut [u8])) {
    let mut at = Some(0).filter(|_| !area.is_empty());
    while let Some(here) = at {
        let Ok(place) = place(area, here) else { return };
        // The longest names have 16 bytes; a longer one is nobody's.
        let mut tag = [0; 16];
        let Some(name) = area.get(place.tag).and_then(|name| {
            let copy = tag.get_mut(..name.len())?;
            copy.copy_from_slice(name);
            Some(&*copy)
        }) else {
            at = place.next;
            continue;
        };
        if let Some(data) = area.get_mut(place.data) {
            visit(name, data);
        }
        at = place.next;
    }
}

/// A lease, asked for or granted (MS-SMB2 2.2.13.2.8, 2.2.13.2.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// LeaseKey.
    pub key: [u8; 16],
    /// LeaseState: 1 read, 2 handle, 4 write.
    pub state: u32,
    /// Flags: 2 break in progress, 4 parent key set.
    pub flags: u32,
    /// LeaseDuration: reserved.
    pub duration: u64,
    /// ParentLeaseKey; version 2 only.
    pub parent_key: [u8; 16],
    /// Epoch; version 2 only.
    pub epoch: u16,
    /// 1 or 2.
    pub version: u8,
}

impl Lease {
    /// Length of version 1 on the wire.
    pub const V1_LEN: usize = 32;
    /// Length of version 2.
    pub const V2_LEN: usize = 52;

    fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::within(data, Command::CREATE);
        let mut lease = Self {
            key: r.array("LeaseKey")?,
            state: r.u32("LeaseState")?,
            flags: r.u32("LeaseFlags")?,
            duration: r.u64("LeaseDuration")?,
            parent_key: [0; 16],
            epoch: 0,
            version: 1,
        };
        if data.len() > Self::V1_LEN {
            lease.parent_key = r.array("ParentLeaseKey")?;
            lease.epoch = r.u16("Epoch")?;
            r.skip(2)?;
            lease.version = 2;
        }
        Ok(lease)
    }
}

/// A context of a CREATE Request (2.2.13.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named as in MS-SMB2")]
pub enum RequestContext<'a> {
    /// ExtA: FILE_FULL_EA_INFORMATION (MS-FSCC 2.4.15).
    ExtendedAttributes(&'a [u8]),
    /// SecD: SECURITY_DESCRIPTOR (MS-DTYP 2.4.6).
    SecurityDescriptor(&'a [u8]),
    /// DHnQ.
    Durable,
    /// DHnC.
    DurableReconnect { file_id: FileId },
    /// AlSi.
    AllocationSize(u64),
    /// MxAc; the timestamp may be missing.
    MaximalAccess { timestamp: Option<u64> },
    /// TWrp.
    Timewarp { timestamp: u64 },
    /// QFid.
    OnDiskId,
    /// RqLs, both versions.
    Lease(Lease),
    /// DH2Q.
    DurableV2 { timeout: u32, flags: u32, create_guid: [u8; 16] },
    /// DH2C.
    DurableReconnectV2 { file_id: FileId, create_guid: [u8; 16], flags: u32 },
    /// SMB2_CREATE_APP_INSTANCE_ID.
    AppInstanceId([u8; 16]),
    /// SMB2_CREATE_APP_INSTANCE_VERSION.
    AppInstanceVersion { high: u64, low: u64 },
    /// SVHDX_OPEN_DEVICE_CONTEXT, both versions (MS-RSVD 2.2.4.12, 2.2.4.32).
    SharedVirtualDisk { version: u32, data: &'a [u8] },
    /// SMB3 POSIX extensions.
    Posix { mode: u32 },
    /// A context that nobody has told us of.
    Unknown(Context<'a>),
    /// A known context that is too short.
    Malformed(ParseError),
}

impl<'a> RequestContext<'a> {
    /// What a context says.
    pub fn parse(context: &Context<'a>) -> Self {
        Self::try_parse(context).unwrap_or_else(Self::Malformed)
    }

    fn try_parse(context: &Context<'a>) -> Result<Self, ParseError> {
        let data = context.data;
        let mut r = Reader::within(data, Command::CREATE);
        Ok(match context.tag {
            tag::EXTA => Self::ExtendedAttributes(data),
            tag::SECD => Self::SecurityDescriptor(data),
            tag::DHNQ => {
                r.bytes("DurableRequest", 16)?;
                Self::Durable
            }
            tag::DHNC => Self::DurableReconnect { file_id: r.file_id()? },
            tag::ALSI => Self::AllocationSize(r.u64("AllocationSize")?),
            tag::MXAC => {
                let timestamp = if data.is_empty() { None } else { Some(r.u64("Timestamp")?) };
                Self::MaximalAccess { timestamp }
            }
            tag::TWRP => Self::Timewarp { timestamp: r.u64("Timestamp")? },
            tag::QFID => Self::OnDiskId,
            tag::RQLS => Self::Lease(Lease::parse(data)?),
            tag::DH2Q => {
                let (timeout, flags) = (r.u32("Timeout")?, r.u32("Flags")?);
                r.skip(8)?;
                Self::DurableV2 { timeout, flags, create_guid: r.array("CreateGuid")? }
            }
            tag::DH2C => Self::DurableReconnectV2 {
                file_id: r.file_id()?,
                create_guid: r.array("CreateGuid")?,
                flags: r.u32("Flags")?,
            },
            tag::APP_INSTANCE_ID => {
                r.skip(4)?;
                Self::AppInstanceId(r.array("AppInstanceId")?)
            }
            tag::APP_INSTANCE_VERSION => {
                r.skip(8)?;
                Self::AppInstanceVersion {
                    high: r.u64("AppInstanceVersionHigh")?,
                    low: r.u64("AppInstanceVersionLow")?,
                }
            }
            tag::SVHDX => Self::SharedVirtualDisk { version: r.u32("Version")?, data },
            tag::POSX => Self::Posix { mode: r.u32("Mode")? },
            _ => Self::Unknown(*context),
        })
    }
}

/// A context of a CREATE Response (2.2.14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named as in MS-SMB2")]
pub enum ResponseContext<'a> {
    /// DHnQ.
    Durable,
    /// MxAc.
    MaximalAccess { query_status: u32, maximal_access: u32 },
    /// QFid: DiskFileId, VolumeId and 16 reserved bytes.
    OnDiskId([u8; 32]),
    /// RqLs, both versions.
    Lease(Lease),
    /// DH2Q.
    DurableV2 { timeout: u32, flags: u32 },
    /// SVHDX_OPEN_DEVICE_CONTEXT_RESPONSE (MS-RSVD 2.2.4.31).
    SharedVirtualDisk { version: u32, data: &'a [u8] },
    /// SMB3 POSIX extensions: link count, reparse tag, mode, and the SIDs of owner and group.
    Posix { links: u32, reparse_tag: u32, mode: u32, sids: &'a [u8] },
    /// A context that nobody has told us of.
    Unknown(Context<'a>),
    /// A known context that is too short.
    Malformed(ParseError),
}

impl<'a> ResponseContext<'a> {
    /// What a context says.
    pub fn parse(context: &Context<'a>) -> Self {
        Self::try_parse(context).unwrap_or_else(Self::Malformed)
    }

    fn try_parse(context: &Context<'a>) -> Result<Self, ParseError> {
        let mut r = Reader::within(context.data, Command::CREATE);
        Ok(match context.tag {
            tag::DHNQ => {
                r.bytes("Reserved", 8)?;
                Self::Durable
            }
            tag::MXAC => {
                let query_status = r.u32("QueryStatus")?;
                Self::MaximalAccess { query_status, maximal_access: r.u32("MaximalAccess")? }
            }
            tag::QFID => Self::OnDiskId(r.array("DiskFileId")?),
            tag::RQLS => Self::Lease(Lease::parse(context.data)?),
            tag::DH2Q => Self::DurableV2 { timeout: r.u32("Timeout")?, flags: r.u32("Flags")? },
            tag::SVHDX => Self::SharedVirtualDisk { version: r.u32("Version")?, data: context.data },
            tag::POSX => Self::Posix {
                links: r.u32("Links")?,
                reparse_tag: r.u32("ReparseTag")?,
                mode: r.u32("Mode")?,
                sids: r.rest(),
            },
            _ => Self::Unknown(*context),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A context of a 4-byte tag and data behind it.
    fn context(next: u32, tag: &[u8; 4], data_at: u16, data_len: u32, data: &[u8]) -> Vec<u8> {
        let fixed =
            [&next.to_le_bytes()[..], &[16, 0, 4, 0, 0, 0], &data_at.to_le_bytes(), &data_len.to_le_bytes()];
        [&fixed.concat()[..], tag, &[0; 4], data].concat()
    }

    fn fields(area: &[u8]) -> Vec<Result<&[u8], &'static str>> {
        contexts(area).map(|c| c.map(|c| c.tag).map_err(|e| e.field)).collect()
    }

    #[test]
    fn the_chain_is_followed_to_its_end() {
        let area = [context(32, b"DHnC", 24, 8, &[1; 8]), context(0, b"QFid", 0, 0, &[])].concat();
        assert_eq!(fields(&area), [Ok(tag::DHNC), Ok(tag::QFID)]);
        assert_eq!(contexts(&area).next().unwrap().unwrap().data, [1; 8]);
    }

    #[test]
    fn a_context_may_not_reach_into_the_next() {
        let area = [context(32, b"DHnC", 24, 9, &[1; 8]), context(0, b"QFid", 0, 0, &[])].concat();
        assert_eq!(fields(&area), [Err("Data")]);
        assert_eq!(fields(&context(0, b"DHnC", 24, 9, &[1; 8])), [Err("Data")]);
        assert_eq!(fields(&context(0, b"DHnC", 24, u32::MAX, &[1; 8])), [Err("Data")]);
    }

    #[test]
    fn next_must_lead_on_and_stay_inside() {
        for next in [1, 15, 32, 33, u32::MAX] {
            assert_eq!(fields(&context(next, b"DHnC", 24, 8, &[1; 8])), [Err("Next")], "{next}");
        }
    }

    #[test]
    fn a_known_context_that_is_too_short_says_so() {
        let short = Context { tag: tag::RQLS, data: &[0; 31] };
        assert!(matches!(RequestContext::parse(&short), RequestContext::Malformed(_)));
        assert!(matches!(ResponseContext::parse(&short), ResponseContext::Malformed(_)));
        // Neither length of a lease.
        let between = Context { tag: tag::RQLS, data: &[0; 40] };
        assert!(matches!(ResponseContext::parse(&between), ResponseContext::Malformed(_)));
    }
}
