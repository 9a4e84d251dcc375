//! The data of create contexts (MS-SMB2 2.2.13.2), and their chain.

use crate::{FileId, create_context::Lease};

/// RqLs in the lease's version (2.2.13.2.8, 2.2.13.2.10).
pub fn lease(lease: &Lease) -> Vec<u8> {
    let mut data = Vec::with_capacity(Lease::V2_LEN);
    data.extend_from_slice(&lease.key);
    data.extend_from_slice(&lease.state.to_le_bytes());
    data.extend_from_slice(&lease.flags.to_le_bytes());
    data.extend_from_slice(&lease.duration.to_le_bytes());
    if lease.version >= 2 {
        data.extend_from_slice(&lease.parent_key);
        data.extend_from_slice(&lease.epoch.to_le_bytes());
        data.extend_from_slice(&[0; 2]);
    }
    data
}

/// DHnQ (2.2.13.2.3).
pub fn durable_request() -> Vec<u8> {
    vec![0; 16]
}

/// DHnC (2.2.13.2.4).
pub fn durable_reconnect(file_id: FileId) -> Vec<u8> {
    file_id.to_bytes().to_vec()
}

/// DH2Q, not persistent (2.2.13.2.11). The timeout is in milliseconds.
pub fn durable_v2_request(timeout: u32, create_guid: [u8; 16]) -> Vec<u8> {
    [&timeout.to_le_bytes()[..], &[0; 12], &create_guid].concat()
}

/// DH2C (2.2.13.2.12).
pub fn durable_v2_reconnect(file_id: FileId, create_guid: [u8; 16], flags: u32) -> Vec<u8> {
    [&file_id.to_bytes()[..], &create_guid, &flags.to_le_bytes()].concat()
}

/// QFid (2.2.13.2.9): the name is all.
pub fn query_on_disk_id() -> Vec<u8> {
    Vec::new()
}

/// TWrp (2.2.13.2.7).
pub fn timewarp(timestamp: u64) -> Vec<u8> {
    timestamp.to_le_bytes().to_vec()
}

/// The chain of contexts, each but the last padded to 8 bytes.
pub(super) fn chain(contexts: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    const FIXED: usize = 16;
    let mut out = Vec::new();
    for (index, (tag, data)) in contexts.iter().enumerate() {
        let data_at = if data.is_empty() { 0 } else { (FIXED + tag.len()).next_multiple_of(8) };
        let len = (FIXED + tag.len()).max(data_at + data.len());
        let last = index + 1 == contexts.len();
        let next = if last { 0 } else { len.next_multiple_of(8) };
        let start = out.len();
        out.extend_from_slice(&super::len32(next).to_le_bytes());
        out.extend_from_slice(&super::len16(FIXED).to_le_bytes());
        out.extend_from_slice(&super::len16(tag.len()).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&super::len16(data_at).to_le_bytes());
        out.extend_from_slice(&super::len32(data.len()).to_le_bytes());
        out.extend_from_slice(tag);
        if !data.is_empty() {
            out.resize(start + data_at, 0);
            out.extend_from_slice(data);
        }
        if !last {
            out.resize(start + next, 0);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_and_their_data_are_aligned() {
        let contexts: Vec<(&[u8], Vec<u8>)> =
            vec![(b"DHnQ", vec![1; 5]), (&[7; 16], vec![2; 3]), (b"QFid", Vec::new()), (b"MxAc", vec![3; 8])];
        let chain = chain(&contexts);
        let mut at = 0;
        for (index, (tag, data)) in contexts.iter().enumerate() {
            let word = |from: usize| u16::from_le_bytes([chain[at + from], chain[at + from + 1]]);
            assert_eq!(at % 8, 0);
            assert_eq!((word(4), usize::from(word(6))), (16, tag.len()));
            assert_eq!(usize::from(word(12)), data.len());
            assert!(word(10) % 8 == 0 && (word(10) == 0) == data.is_empty());
            let next = usize::from(word(0));
            assert_eq!(next == 0, index + 1 == contexts.len());
            at += next;
        }
    }
}
