//! What files are called, and which file it is that is called so.

use std::sync::Arc;

use super::FileKey;
use crate::link::birth::Birth;

/// A path in a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// By which it is told from others.
    pub key: FileKey,
    /// As it is spelt in the share, UTF-16LE.
    pub path: Arc<[u8]>,
}

const BACKSLASH: [u8; 2] = [b'\\', 0];
const COLON: [u8; 2] = [b':', 0];

impl Name {
    /// A path in the share of this name, which is in lower case.
    pub fn new(share: &str, path: &[u8]) -> Self {
        let folded = smb_parse::Utf16(path).to_string_lossy().to_lowercase();
        // A file's main stream is the file (MS-FSCC 2.1.5.1).
        let folded = folded.strip_suffix(":$data").unwrap_or(&folded);
        let folded = folded.strip_suffix(':').unwrap_or(folded);
        Self { key: FileKey(format!("{share}\\{folded}").into()), path: path.into() }
    }

    /// The same in a version of the share that is past: nothing renames it there.
    pub(crate) fn in_the_past(self, timestamp: u64) -> Self {
        Self { key: FileKey(format!("@{timestamp:x}\\{}", self.key.0).into()), ..self }
    }

    /// What this is called after `from` has become `to`, if it is that, one of its streams, or beneath.
    pub(crate) fn after(&self, from: &Self, to: &Self) -> Option<Self> {
        let folded = self.key.0.strip_prefix(&*from.key.0)?;
        if folded.is_empty() {
            return Some(to.clone());
        }
        let depth = from.path.chunks(2).filter(|unit| **unit == BACKSLASH).count();
        let mut units = self.path.chunks(2).enumerate();
        let rest = if folded.starts_with('\\') {
            units.filter(|(_, unit)| *unit == BACKSLASH).nth(depth)?.0
        } else if folded.starts_with(':') {
            units.find(|(_, unit)| *unit == COLON)?.0
        } else {
            return None;
        };
        let path = [&to.path, self.path.get(rest * 2..)?].concat();
        Some(Self { key: FileKey(format!("{}{folded}", to.key.0).into()), path: path.into() })
    }
}

impl FileKey {
    /// This name, and the directories it is in, up to its share.
    pub(super) fn and_directories_above(&self) -> impl Iterator<Item = Self> {
        let above = |name: &Self| Some(Self(name.0.rsplit_once('\\')?.0.into()));
        std::iter::successors(Some(self.clone()), above)
    }

    /// Its key and those of its streams and of what is beneath begin so.
    pub(super) fn beginnings(&self) -> [Arc<str>; 2] {
        ["\\", ":"].map(|separator| format!("{}{separator}", self.0).into())
    }
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// When it was created.
    pub birth: Birth,
    /// Its number on the disk, if it is known.
    pub number: Option<u64>,
}

impl FileIdentity {
    /// Of an on-disk id the first 8 bytes are the number; the rest names the volume, which may differ from node to node.
    pub(crate) fn new(birth: Birth, on_disk_id: Option<[u8; 32]>) -> Self {
        let number = on_disk_id.as_ref().and_then(|id| id.first_chunk()).copied().map(u64::from_le_bytes);
        Self { birth, number }
    }

    /// Whether it is the very file.
    pub(super) fn is(self, other: Self) -> bool {
        match (self.number, other.number) {
            (Some(one), Some(other)) => one == other,
            _ => self.birth.is_at(other.birth),
        }
    }

    /// Whether nothing speaks against it.
    pub(super) fn can_be(self, other: Self) -> bool {
        match (self.number, other.number) {
            (Some(one), Some(other)) => one == other,
            _ => self.birth.can_be(other.birth) || other.birth.can_be(self.birth),
        }
    }

    /// Whether it is another file, whatever has happened to it meanwhile.
    pub(super) fn is_surely_not(self, other: Self) -> bool {
        match (self.number, other.number) {
            (Some(one), Some(other)) => one != other,
            _ => self.birth.is_surely_not(other.birth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn name(path: &str) -> Name {
        Name::new("share", &utf16(path))
    }

    #[test]
    fn a_rename_takes_streams_and_what_is_beneath_along() {
        let rows = [
            ("x", "x", "y", Some("y")),
            ("X", "x", "y", Some("y")),
            ("x::$DATA", "x", "y", Some("y")),
            ("x:s", "X", "y", Some("y:s")),
            ("x:s:$DATA", "x", "y", Some("y:s:$DATA")),
            (r"dir\X", "DIR", "other", Some(r"other\X")),
            (r"a\dir\b\X:s", r"a\dir", r"c", Some(r"c\b\X:s")),
            ("xy", "x", "y", None),
            (r"dir2\x", "dir", "other", None),
            ("z", "x", "y", None),
            // In lower case it is longer.
            (r"İ\x", "İ", "y", Some(r"y\x")),
        ];
        for (path, from, to, expected) in rows {
            let after = name(path).after(&name(from), &name(to));
            assert_eq!(after, expected.map(name), "{path}");
        }
        let past = name("x").in_the_past(5);
        assert_eq!(past.after(&name("x"), &name("y")), None);
        let whole = name("").in_the_past(5);
        assert_ne!(whole.key, name("").key);
    }

    #[test]
    fn a_number_says_which_file_it_is_and_else_its_birth() {
        let file = |birth, number| FileIdentity { birth: Birth::set(birth), number };
        assert!(file(5, Some(1)).is(file(6, Some(1))) && !file(5, Some(1)).is(file(5, Some(2))));
        assert!(file(5, Some(1)).is(file(5, None)) && !file(5, Some(1)).is(file(6, None)));
        assert!(file(5, Some(1)).can_be(file(6, Some(1))) && !file(5, Some(1)).can_be(file(5, Some(2))));
        assert!(file(5, None).can_be(file(5, Some(1))) && !file(5, None).can_be(file(6, None)));
    }
}
