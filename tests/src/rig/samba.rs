//! Which Samba: the system's, or an unpacked tree of another version (`tests/samba-root.sh`).

use std::path::{Path, PathBuf};

/// Enters a tree as far as a node must: its own programs, libraries and modules; the machine's devices, processes,
/// accounts and scratch directories. The mounts are gone with the process.
const ENTER: &str = r#"
set -e
root=$1
shift
for dir in dev proc tmp; do mount --rbind "/$dir" "$root/$dir"; done
for file in passwd group nsswitch.conf; do mount --bind "/etc/$file" "$root/etc/$file"; done
exec chroot "$root" "$@"
"#;

/// Where smbd and its libraries are.
#[derive(Debug, Clone)]
pub(crate) struct Samba {
    root: Option<PathBuf>,
}

impl Samba {
    /// `SAMBA_ROOT`, or the system's.
    pub(crate) fn from_environment() -> Self {
        Self {
            root: std::env::var_os("SAMBA_ROOT")
                .map(PathBuf::from)
                .filter(|root| !root.as_os_str().is_empty()),
        }
    }

    /// The words that run one of its programs, named by its absolute path.
    pub(super) fn words(&self, program: &str) -> Vec<String> {
        let mut words = self.entrance();
        words.push(program.into());
        words
    }

    /// The words that come before a program's path.
    pub(super) fn entrance(&self) -> Vec<String> {
        let Some(root) = &self.root else { return Vec::new() };
        let root = root.display().to_string();
        ["unshare", "--mount", "sh", "-c", ENTER, "enter", &root].map(str::to_owned).to_vec()
    }

    /// What its programs take for this directory below the root.
    pub(super) fn directory(&self, name: &str) -> PathBuf {
        self.root.as_deref().unwrap_or(Path::new("/")).join(name)
    }
}
