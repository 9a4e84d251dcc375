//! Where a client stands in the enumeration of a directory (MS-SMB2 3.3.5.18).

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use smb_parse::{
    cmd::query_directory::{self, entries},
    header::Status,
};

/// `SMB2_RESTART_SCANS` and `SMB2_REOPEN` (MS-SMB2 2.2.33).
const ANEW: u8 = 0x01 | 0x10;

/// Where a client stands.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Few Opens are enumerated.
    seen: Option<Box<Seen>>,
    ended: bool,
    restoring: bool,
}

/// The names a client has had, as hashes.
#[derive(Debug, Default)]
struct Seen {
    names: HashSet<u64>,
    hasher: RandomState,
}

impl Cursor {
    /// A QUERY_DIRECTORY was answered so.
    pub(crate) fn note(&mut self, asked: &query_directory::Request<'_>, status: Status, msg: &[u8]) {
        if asked.flags & ANEW != 0 {
            self.seen = None;
            self.ended = false;
            self.restoring = false;
        }
        if status == Status::NO_MORE_FILES {
            self.ended = true;
            // What comes next is the end, or all names anew.
            self.seen = None;
            return;
        }
        if !status.is_success() {
            return;
        }
        let Ok(answer) = query_directory::Response::parse(msg) else { return };
        let Seen { names, hasher } = &mut **self.seen.get_or_insert_default();
        for entry in entries(asked.info_class, answer.buffer).filter_map(Result::ok) {
            names.insert(hasher.hash_one(entry.name.0));
        }
    }

    /// The handle was opened again: the node starts from the first name.
    pub(crate) fn reopened(&mut self) {
        self.restoring = self.ended || self.seen.as_ref().is_some_and(|seen| !seen.names.is_empty());
    }

    /// Whether the present node may have to be asked for names that the client has had.
    pub(crate) fn was_cut(&self) -> bool {
        self.restoring
    }

    /// Whether a request goes on with an enumeration that the present node did not begin.
    pub(crate) fn is_restoring(&self, asked: &query_directory::Request<'_>) -> bool {
        self.restoring && asked.flags & ANEW == 0
    }

    /// Whether such an enumeration was over.
    pub(crate) fn has_ended(&self, asked: &query_directory::Request<'_>) -> bool {
        self.is_restoring(asked) && self.ended
    }

    fn has_had(&self, name: &[u8]) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.names.contains(&seen.hasher.hash_one(name)))
    }

    /// The entries of a buffer that the client has not had; `None` if that is all of them, or the class is unknown.
    pub(crate) fn filter(&self, class: u8, buffer: &[u8]) -> Option<Vec<u8>> {
        let mut kept: Vec<&[u8]> = Vec::new();
        let mut total = 0;
        for entry in entries(class, buffer) {
            let entry = entry.ok()?;
            total += 1;
            if !self.has_had(entry.name.0) {
                kept.push(buffer.get(entry.range)?);
            }
        }
        (kept.len() != total).then(|| chain(&kept))
    }
}

/// Entries one behind the other, 8-aligned, NextEntryOffset set (MS-FSCC 2.4).
fn chain(entries: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(entry);
        let last = index + 1 == entries.len();
        if !last {
            out.resize(out.len().next_multiple_of(8), 0);
        }
        let next = if last { 0 } else { u32::try_from(out.len() - start).unwrap_or(0) };
        if let Some(field) = out.get_mut(start..start + 4) {
            field.copy_from_slice(&next.to_le_bytes());
        }
    }
    out
}
