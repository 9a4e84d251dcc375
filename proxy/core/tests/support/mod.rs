//! Recorded exchanges: a name on its own line, the bytes in hexadecimal on those below it. `#` begins a comment. And who
//! knows the user that logged in.

use understudy_core::auth::{Credentials, UnixTime, keys::NtHash};

/// Knows one user, by any name.
pub(crate) struct Known(pub(crate) [u8; 16]);

impl Credentials for Known {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        Some(NtHash::new(self.0))
    }

    fn configured(&self) -> bool {
        true
    }

    fn now(&self) -> UnixTime {
        UnixTime::default()
    }
}

/// The parts of a recording, in order.
pub(crate) fn recording(text: &str) -> Vec<(&str, Vec<u8>)> {
    let mut parts: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match (hex(line), parts.last_mut()) {
            (Some(bytes), Some((_, part))) => part.extend(bytes),
            _ => parts.push((line, Vec::new())),
        }
    }
    parts
}

/// The one part of that name.
pub(crate) fn part<'a>(parts: &'a [(&str, Vec<u8>)], name: &str) -> &'a [u8] {
    let mut found = parts.iter().filter(|(n, _)| *n == name);
    let (_, bytes) = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "more than one {name}");
    bytes
}

fn hex(line: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = line.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    Some(digits?.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
