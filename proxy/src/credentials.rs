//! The files that hold keys, read again whenever they change: the users' hashes, and the service's keytab.

use std::{
    fmt,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use understudy_core::auth::{
    Credentials, UnixTime,
    kerberos::{Keytab, KeytabError},
    keys::NtHash,
    smbpasswd::{LineError, Smbpasswd},
};
use zeroize::Zeroizing;

use crate::config::Config;

/// What a key file holds.
pub(crate) trait Format: Sized {
    /// Why its bytes cannot be used.
    type Error: fmt::Display + fmt::Debug;
    /// What such a file is called.
    const NAME: &'static str;
    /// The key of `[credentials]` that names it.
    const OPTION: &'static str;
    /// How it is made.
    const MADE_BY: &'static str;
    /// What it is worth.
    const WORTH: &'static str;

    /// Reads the whole file.
    fn parse(bytes: &[u8]) -> Result<Self, Self::Error>;
    /// How many keys of use it has.
    fn count(&self) -> usize;
}

impl Format for Smbpasswd {
    type Error = LineErrors;
    const NAME: &'static str = "smbpasswd file";
    const OPTION: &'static str = "ntlm";
    const MADE_BY: &'static str = "Make it with `pdbedit -L -w`";
    const WORTH: &'static str = "its hashes are worth as much as passwords";

    fn parse(bytes: &[u8]) -> Result<Self, LineErrors> {
        let not_text = LineErrors(vec![LineError { line: 1, what: "the file is not text" }]);
        Self::parse(str::from_utf8(bytes).map_err(|_| not_text)?).map_err(LineErrors)
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl Format for Keytab {
    type Error = KeytabError;
    const NAME: &'static str = "keytab";
    const OPTION: &'static str = "keytab";
    const MADE_BY: &'static str =
        "Make it with `net ads keytab create` on a node of a domain, or `ktadd` in kadmin";
    const WORTH: &'static str = "with its keys anyone can be anybody at the file server";

    fn parse(bytes: &[u8]) -> Result<Self, KeytabError> {
        Self::parse(bytes)
    }

    fn count(&self) -> usize {
        self.usable()
    }
}

/// The bad lines of a file.
#[derive(Debug)]
pub(crate) struct LineErrors(Vec<LineError>);

impl fmt::Display for LineErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<_> = self.0.iter().take(NAMED).map(ToString::to_string).collect();
        write!(f, "{}", first.join("; "))?;
        if self.0.len() > NAMED {
            write!(f, "; and {} more", self.0.len() - NAMED)?;
        }
        Ok(())
    }
}

/// Bad lines that are named; with the wrong file all of them are bad.
const NAMED: usize = 5;

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) enum FileError<F: Format> {
    Unreadable(io::Error),
    NoFile,
    /// Mode bits give others access.
    TooOpen(u32),
    Content(F::Error),
}

impl<F: Format> fmt::Display for FileError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "cannot be read: {error}. {}, or name the right path", F::MADE_BY)
            }
            Self::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "cannot be read: {error}. Give it to the user that runs understudy (chown)")
            }
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NoFile => write!(f, "is no file; look at [credentials] {}", F::OPTION),
            Self::TooOpen(mode) => {
                write!(f, "can be read by others (mode {mode:04o}), and {}. Run `chmod 0600` on it", F::WORTH)
            }
            Self::Content(error) => write!(f, "is not in the format of one: {error}. {}", F::MADE_BY),
        }
    }
}

/// What tells one version of a file from another.
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

/// Keys from a file. A version that cannot be read leaves the one before in force.
#[derive(Debug)]
pub(crate) struct KeyFile<F> {
    path: PathBuf,
    current: Mutex<(Stamp, Arc<F>)>,
}

impl<F: Format> KeyFile<F> {
    /// Reads the file.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError<F>> {
        let current = Mutex::new(load(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// What the file holds now.
    pub(crate) fn get(&self) -> Arc<F> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = fs::metadata(&self.path).is_ok_and(|meta| Stamp::of(&meta) != current.0);
        if changed {
            let (path, file) = (self.path.display(), F::NAME);
            match load::<F>(&self.path) {
                Ok(loaded) => {
                    tracing::info!(%path, keys = loaded.1.count(), "the {file} is read again");
                    *current = loaded;
                }
                Err(error) => {
                    tracing::error!(%path, "the new {file} {error}; the one before stays in force");
                    if let Ok(meta) = fs::metadata(&self.path) {
                        current.0 = Stamp::of(&meta);
                    }
                }
            }
        }
        Arc::clone(&current.1)
    }
}

fn load<F: Format>(path: &Path) -> Result<(Stamp, Arc<F>), FileError<F>> {
    let meta = fs::metadata(path).map_err(FileError::Unreadable)?;
    if !meta.is_file() {
        return Err(FileError::NoFile);
    }
    if meta.mode() & 0o007 != 0 {
        return Err(FileError::TooOpen(meta.mode() & 0o7777));
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(FileError::Unreadable)?);
    let content = F::parse(&bytes).map_err(FileError::Content)?;
    Ok((Stamp::of(&meta), Arc::new(content)))
}

/// All the files of `[credentials]`, and the system's clock.
#[derive(Debug)]
pub(crate) struct Files {
    ntlm: Option<KeyFile<Smbpasswd>>,
    keytab: Option<KeyFile<Keytab>>,
}

impl Files {
    /// Reads them all.
    ///
    /// # Errors
    /// The first one that cannot be used, and what to do.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { ntlm: open(config.ntlm.as_deref())?, keytab: open(config.keytab.as_deref())? })
    }

    /// Those that can be read.
    pub(crate) fn usable(config: &Config) -> Self {
        Self { ntlm: usable(config.ntlm.as_deref()), keytab: usable(config.keytab.as_deref()) }
    }
}

fn usable<F: Format>(path: Option<&Path>) -> Option<KeyFile<F>> {
    KeyFile::open(path?).ok()
}

fn open<F: Format>(path: Option<&Path>) -> anyhow::Result<Option<KeyFile<F>>> {
    let Some(path) = path else { return Ok(None) };
    let file = KeyFile::<F>::open(path)
        .map_err(|error| anyhow::anyhow!("the {} {} {error}", F::NAME, path.display()))?;
    let (keys, path) = (file.get().count(), path.display());
    tracing::info!(%path, keys, "the {} is read", F::NAME);
    if keys == 0 {
        tracing::warn!(%path, "the {} has no key of use: nobody is protected by it", F::NAME);
    }
    Ok(Some(file))
}

impl Credentials for Files {
    fn nt_hash(&self, _domain: &str, user: &str) -> Option<NtHash> {
        self.ntlm.as_ref()?.get().lookup(user)
    }

    fn configured(&self) -> bool {
        self.ntlm.is_some()
    }

    fn keytab(&self) -> Option<Arc<Keytab>> {
        Some(self.keytab.as_ref()?.get())
    }

    fn now(&self) -> UnixTime {
        UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LINE: &str =
        "alice:1:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789ABCDEF:[U          ]:LCT-0:\n";

    fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, LINE, 0o644);
        assert!(matches!(KeyFile::<Smbpasswd>::open(&path), Err(FileError::TooOpen(0o644))));
        assert!(matches!(KeyFile::<Keytab>::open(&path), Err(FileError::TooOpen(0o644))));
        assert!(matches!(KeyFile::<Smbpasswd>::open(dir.path()), Err(FileError::NoFile)));
    }

    #[test]
    fn of_many_bad_lines_the_first_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, "nonsense\n".repeat(7), 0o600);
        let said = KeyFile::<Smbpasswd>::open(&path).unwrap_err().to_string();
        assert!(
            said.contains("line 5: ") && !said.contains("line 6: ") && said.contains("and 2 more"),
            "{said}"
        );
        let said = KeyFile::<Keytab>::open(&path).unwrap_err().to_string();
        assert!(said.contains("does not begin like a keytab") && said.contains("ktadd"), "{said}");
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_damaged_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smbpasswd");
        write(&path, LINE, 0o600);
        let file = KeyFile::<Smbpasswd>::open(&path).unwrap();
        assert!(file.get().lookup("bob").is_none());
        write(&path, format!("{LINE}{}", LINE.replace("alice", "bob")), 0o600);
        assert!(file.get().lookup("bob").is_some());
        write(&path, "nonsense", 0o600);
        assert!(file.get().lookup("bob").is_some());
        assert_eq!(file.get().len(), 2);
    }

    #[test]
    fn a_keytab_is_read_again_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("krb5.keytab");
        // One entry: x@R, kvno 1, rc4-hmac.
        let mut entry = vec![0, 1, 0, 1, b'R', 0, 1, b'x', 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 23, 0, 16];
        entry.extend([7; 16]);
        let entry = [&u32::try_from(entry.len()).unwrap().to_be_bytes()[..], &entry].concat();
        write(&path, [5, 2], 0o600);
        let file = KeyFile::<Keytab>::open(&path).unwrap();
        assert_eq!(file.get().count(), 0);
        write(&path, [&[5, 2], &entry[..]].concat(), 0o600);
        assert_eq!(file.get().count(), 1);
        write(&path, [&[5, 2], &entry[..9]].concat(), 0o600);
        assert_eq!(file.get().count(), 1);
    }
}
