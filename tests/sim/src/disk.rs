//! The storage that all nodes share. It survives every crash.

use std::collections::{BTreeMap, BTreeSet};

/// How many blocks of 8 bytes a file has. Each holds the tag of the WRITE that wrote it last.
pub const BLOCKS: usize = 4;
/// Tags from here on come from requests that were tampered with: no node may ever store one.
pub const POISON: u64 = 1 << 63;

/// One file.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// What is in it.
    pub blocks: [u64; BLOCKS],
    /// It has its blocks, whatever is in them: from the first that is written on, or to begin with.
    pub padded: bool,
    /// What was written to its end, behind the blocks, in order.
    pub appended: Vec<u64>,
    /// How often it was changed.
    pub version: u64,
    /// When it was created; no two files at the same time.
    pub birth: u64,
    /// LastWriteTime.
    pub written: u64,
    /// ChangeTime.
    pub changed: u64,
}

impl File {
    /// All that is in it, if it has its blocks.
    pub fn bytes(&self) -> Vec<u8> {
        self.blocks.iter().chain(&self.appended).flat_map(|tag| tag.to_le_bytes()).collect()
    }

    /// Its end: it has none of its blocks before one is written.
    pub fn size(&self) -> u64 {
        if self.padded { self.bytes().len() as u64 } else { 0 }
    }
}

/// The time at which a world begins, in units of 100 ns. Its first files are older by as much.
pub const START: u64 = 1_000_000_000_000;

/// How many files there can be.
const FILES: u64 = 10_000;

/// The time at which a file is created, which tells its number: a node tells its clients no more of it.
fn birth(now: u64, number: u64) -> u64 {
    now / FILES * FILES + number
}

/// The number of the file that was created then.
pub fn number_of(birth: u64) -> u64 {
    birth % FILES
}

/// All files, by number; and their names.
#[derive(Debug, Default)]
pub struct Disk {
    /// The number of each name.
    pub names: BTreeMap<String, u64>,
    /// Files, also those that have no name any more but are open.
    pub files: BTreeMap<u64, File>,
    /// ClientGuid and file: whose locks a living node let go with their session, and which were not had again.
    pub let_go: BTreeSet<([u8; 16], u64)>,
    /// ClientGuid and file: which locks were refused to a takeover, though they were its client's, and not had since.
    pub refused: BTreeMap<([u8; 16], u64), String>,
    /// Files of which another client had a lock meanwhile: either of them may have its locks again, and not both.
    pub contested: BTreeSet<u64>,
    next: u64,
    /// The clock of storage and nodes, in units of 100 ns.
    pub now: u64,
}

impl Disk {
    /// A new file of this name.
    pub fn create(&mut self, name: &str) -> u64 {
        self.next += 1;
        self.names.insert(name.to_owned(), self.next);
        let birth = birth(self.now, self.next);
        // Later, or a node might have made the one of the others.
        let file = File { birth, written: birth + 1, changed: birth + 1, ..File::default() };
        self.files.insert(self.next, file);
        self.next
    }

    /// A file was changed, and perhaps written.
    pub fn touch(&mut self, number: u64, writes: bool) {
        if let Some(file) = self.files.get_mut(&number) {
            file.changed = file.changed.max(self.now);
            if writes {
                file.written = file.changed;
            }
        }
    }

    /// The number of a name, whatever its case.
    pub fn find(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    /// What a file is called now.
    pub fn name_of(&self, number: u64) -> Option<&str> {
        self.names.iter().find(|(_, n)| **n == number).map(|(name, _)| name.as_str())
    }
}
