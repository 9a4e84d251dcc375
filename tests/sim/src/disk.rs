//! The storage that all nodes share. It survives every crash.

use std::collections::BTreeMap;

/// How many blocks of 8 bytes a file has. Each holds the tag of the WRITE that wrote it last.
pub const BLOCKS: usize = 4;
/// Tags from here on come from requests that were tampered with: no node may ever store one.
pub const POISON: u64 = 1 << 63;

/// One file.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// What is in it.
    pub blocks: [u64; BLOCKS],
    /// What was written to its end, in order.
    pub appended: Vec<u64>,
}

/// All files, by number; and their names.
#[derive(Debug, Default)]
pub struct Disk {
    /// The number of each name.
    pub names: BTreeMap<String, u64>,
    /// Files, also those that have no name any more but are open.
    pub files: BTreeMap<u64, File>,
    next: u64,
}

impl Disk {
    /// A new file of this name.
    pub fn create(&mut self, name: &str) -> u64 {
        self.next += 1;
        self.names.insert(name.to_owned(), self.next);
        self.files.insert(self.next, File::default());
        self.next
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
