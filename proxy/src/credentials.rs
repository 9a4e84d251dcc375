//! The smbpasswd file on disk, read again whenever it changes.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use understudy_core::auth::{
    Credentials, UnixTime,
    keys::NtHash,
    smbpasswd::{LineError, Smbpasswd},
};
use zeroize::Zeroizing;

/// Why the file cannot be used.
#[derive(Debug)]
pub(crate) enum FileError {
    Unreadable(io::Error),
    NoFile,
    /// Mode bits give others access.
    TooOpen(u32),
    Lines(Vec<LineError>),
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "cannot be read: {error}. Make it with `pdbedit -L -w`, or name the right path")
            }
            Self::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "cannot be read: {error}. Give it to the user that runs understudy (chown)")
            }
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NoFile => write!(f, "is no file; look at [credentials] ntlm"),
            Self::TooOpen(mode) => write!(
                f,
                "can be read by others (mode {mode:04o}), and its hashes are worth as much as passwords. Run `chmod 0600` on it"
            ),
            Self::Lines(errors) => {
                let first: Vec<_> = errors.iter().take(NAMED).map(ToString::to_string).collect();
                write!(f, "is not in smbpasswd format: {}", first.join("; "))?;
                if errors.len() > NAMED {
                    write!(f, "; and {} more", errors.len() - NAMED)?;
                }
                write!(f, ". Make it with `pdbedit -L -w`")
            }
        }
    }
}

/// Bad lines that are named; with the wrong file all of them are bad.
const NAMED: usize = 5;

/// What tells one version of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self { inode: meta.ino(), size: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// Hashes from a file. A version that cannot be read leaves the one before in force.
#[derive(Debug)]
pub(crate) struct CredentialsFile {
    path: PathBuf,
    current: Mutex<(Stamp, Smbpasswd)>,
}

impl CredentialsFile {
    /// Reads the file.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let current = Mutex::new(load(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// How many users can be acted for.
    pub(crate) fn users(&self) -> usize {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).1.len()
    }
}

impl Credentials for CredentialsFile {
    fn nt_hash(&self, _domain: &str, user: &str) -> Option<NtHash> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = fs::metadata(&self.path).is_ok_and(|meta| Stamp::of(&meta) != current.0);
        if changed {
            match load(&self.path) {
                Ok(loaded) => {
                    tracing::info!(path = %self.path.display(), users = loaded.1.len(), "smbpasswd file read again");
                    *current = loaded;
                }
                Err(error) => {
                    tracing::error!(path = %self.path.display(), "the new smbpasswd file {error}; the one before stays in force");
                    if let Ok(meta) = fs::metadata(&self.path) {
                        current.0 = Stamp::of(&meta);
                    }
                }
            }
        }
        current.1.lookup(user)
    }

    fn configured(&self) -> bool {
        true
    }

    fn now(&self) -> UnixTime {
        UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

fn load(path: &Path) -> Result<(Stamp, Smbpasswd), FileError> {
    let meta = fs::metadata(path).map_err(FileError::Unreadable)?;
    if !meta.is_file() {
        return Err(FileError::NoFile);
    }
    if meta.mode() & 0o007 != 0 {
        return Err(FileError::TooOpen(meta.mode() & 0o7777));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(FileError::Unreadable)?);
    let users = Smbpasswd::parse(&text).map_err(FileError::Lines)?;
    Ok((Stamp::of(&meta), users))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LINE: &str =
        "alice:1:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789ABCDEF:[U          ]:LCT-0:\n";

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, LINE, 0o644);
        assert!(matches!(CredentialsFile::open(&path), Err(FileError::TooOpen(0o644))));
        assert!(matches!(CredentialsFile::open(dir.path()), Err(FileError::NoFile)));
    }

    #[test]
    fn of_many_bad_lines_the_first_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, &"nonsense\n".repeat(7), 0o600);
        let said = CredentialsFile::open(&path).unwrap_err().to_string();
        assert!(
            said.contains("line 5: ") && !said.contains("line 6: ") && said.contains("and 2 more"),
            "{said}"
        );
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_damaged_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, LINE, 0o600);
        let file = CredentialsFile::open(&path).unwrap();
        assert!(file.nt_hash("", "bob").is_none());
        write(&path, &format!("{LINE}{}", LINE.replace("alice", "bob")), 0o600);
        assert!(file.nt_hash("", "bob").is_some());
        write(&path, "nonsense", 0o600);
        assert!(file.nt_hash("", "bob").is_some());
        assert_eq!(file.users(), 2);
    }
}
