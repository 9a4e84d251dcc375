//! Who can log in, and what the proxy knows of them.

use understudy_core::auth::{Credentials, UnixTime, keys::NtHash};

/// A user of the model. The order is that of `ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Known to the proxy.
    Alice,
    /// Known to the proxy, too.
    Bob,
    /// A guest.
    Nobody,
    /// Known to the nodes, but not to the proxy.
    Mallory,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Alice, Self::Bob, Self::Nobody, Self::Mallory];

    /// The name on the wire and in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Bob => "bob",
            Self::Nobody => "nobody",
            Self::Mallory => "mallory",
        }
    }
}

/// Who is known: the nodes know everyone, the proxy does not.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Whether this is what a node knows.
    pub by_nodes: bool,
}

impl Credentials for Known {
    fn nt_hash(&self, _domain: &str, user: &str) -> Option<NtHash> {
        let byte = match user {
            "alice" => 3,
            "bob" => 4,
            "mallory" if self.by_nodes => 5,
            _ => return None,
        };
        Some(NtHash::new([byte; 16]))
    }

    fn configured(&self) -> bool {
        true
    }

    fn now(&self) -> UnixTime {
        UnixTime::default()
    }
}
