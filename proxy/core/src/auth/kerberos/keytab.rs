//! Keytab files in MIT's format, version 2: the keys of services.

use std::fmt;

use super::crypto::{EncType, Key};
use zeroize::Zeroizing;

/// The service keys of one keytab, every version and type of them.
#[derive(Debug, Default)]
pub struct Keytab {
    entries: Vec<KeytabEntry>,
}

/// One key.
#[derive(Clone)]
pub struct KeytabEntry {
    /// `service/host@REALM`.
    pub principal: String,
    /// The version of the key.
    pub kvno: u32,
    /// The number of its encryption type (RFC 3961 8).
    pub etype: i32,
    key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for KeytabEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kvno {} etype {} ***", self.principal, self.kvno, self.etype)
    }
}

impl KeytabEntry {
    /// The key, if its type can be worked with.
    pub fn key(&self) -> Option<Key> {
        Key::new(EncType::from_number(self.etype.into())?, &self.key)
    }
}

/// What is wrong with a file. Never holds any of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeytabError {
    /// It does not begin like a keytab.
    #[error("it does not begin like a keytab")]
    NoKeytab,
    /// A version that no KDC of today writes.
    #[error("it is a keytab of format version 1; only version 2 is read")]
    OldFormat,
    /// An entry ends before its fields do.
    #[error("entry {0} is damaged or cut")]
    Entry(usize),
}

impl Keytab {
    /// Reads a whole file.
    ///
    /// # Errors
    /// It is no keytab, or damaged.
    pub fn parse(data: &[u8]) -> Result<Self, KeytabError> {
        let mut rest = match data {
            [5, 2, rest @ ..] => rest,
            [5, 1, ..] => return Err(KeytabError::OldFormat),
            _ => return Err(KeytabError::NoKeytab),
        };
        let mut entries = Vec::new();
        let mut count = 0;
        while !rest.is_empty() {
            count += 1;
            let mut reader = Reader(rest);
            let damaged = KeytabError::Entry(count);
            // A negative size is a hole of that size, where an entry was removed; zero ends the file.
            let size = i32::from_be_bytes(reader.array().ok_or(damaged)?);
            if size == 0 {
                break;
            }
            let len = usize::try_from(size.unsigned_abs()).map_err(|_| damaged)?;
            let body = reader.take(len).ok_or(damaged)?;
            rest = reader.0;
            if size > 0 {
                entries.push(entry(Reader(body)).ok_or(damaged)?);
            }
        }
        Ok(Self { entries })
    }

    /// Every entry, in the order of the file.
    pub fn entries(&self) -> &[KeytabEntry] {
        &self.entries
    }

    /// How many keys can be worked with.
    pub fn usable(&self) -> usize {
        self.entries.iter().filter(|entry| entry.key().is_some()).count()
    }

    /// The keys that may have encrypted a ticket for `principal`, the likeliest first. Whether one did shows when it
    /// decrypts. A machine account has one key for all its names, and an alias may not be in the keytab: so every key of
    /// the type is tried, but `exact` says whether one is what the ticket asks for.
    pub(crate) fn candidates(&self, principal: &str, kvno: Option<u32>, etype: EncType) -> Candidates {
        let of_type = self.entries.iter().filter(|entry| entry.etype == etype.number());
        // Keytabs of old have eight bits for the version.
        let same_kvno = |entry: &KeytabEntry| {
            kvno.is_none_or(|kvno| entry.kvno == kvno || entry.kvno <= 0xff && entry.kvno == kvno & 0xff)
        };
        let mut found: Vec<_> = of_type
            .map(|entry| (same_kvno(entry), entry.principal.eq_ignore_ascii_case(principal), entry))
            .collect();
        found.sort_by_key(|(kvno, name, _)| (!kvno, !name));
        let exact = found.iter().any(|(kvno, name, _)| *kvno && *name);
        let keys = found.iter().filter_map(|(.., entry)| entry.key()).take(MOST).collect();
        Candidates { keys, exact }
    }
}

/// So many keys are tried on one ticket.
const MOST: usize = 64;

/// Keys to try.
pub(crate) struct Candidates {
    pub(crate) keys: Vec<Key>,
    /// The first one has the name, version and type that the ticket asks for.
    pub(crate) exact: bool,
}

fn entry(mut reader: Reader<'_>) -> Option<KeytabEntry> {
    let components = u16::from_be_bytes(reader.array()?);
    let realm = reader.counted()?;
    let mut principal = String::new();
    for at in 0..components {
        if at > 0 {
            principal.push('/');
        }
        principal.push_str(&String::from_utf8_lossy(reader.counted()?));
    }
    principal.push('@');
    principal.push_str(&String::from_utf8_lossy(realm));
    let _name_type: [u8; 4] = reader.array()?;
    let _written: [u8; 4] = reader.array()?;
    let [short] = reader.array()?;
    let etype = i16::from_be_bytes(reader.array()?).into();
    let key = Zeroizing::new(reader.counted()?.to_vec());
    // A longer version follows where there is room for one; zero means that it does not.
    let kvno = reader.array().map(u32::from_be_bytes).filter(|kvno| *kvno != 0).unwrap_or(short.into());
    Some(KeytabEntry { principal, kvno, etype, key })
}

/// Big-endian fields from a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = u16::from_be_bytes(self.array()?);
        self.take(len.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, kvno: u32, etype: i16, key: &[u8]) -> Vec<u8> {
        let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
        let mut body = 2_u16.to_be_bytes().to_vec();
        body.extend(counted(b"EXAMPLE.COM"));
        body.extend([counted(b"cifs"), counted(name.as_bytes())].concat());
        body.extend([0; 8]);
        body.push(kvno as u8);
        body.extend(etype.to_be_bytes());
        body.extend(counted(key));
        body.extend(kvno.to_be_bytes());
        [&(body.len() as i32).to_be_bytes()[..], &body].concat()
    }

    fn keytab() -> Vec<u8> {
        let hole = [&(-5_i32).to_be_bytes()[..], &[0xee; 5]].concat();
        [
            vec![5, 2],
            record("fs", 1, 18, &[1; 32]),
            hole,
            record("fs", 300, 18, &[2; 32]),
            record("other", 300, 18, &[3; 32]),
            record("fs", 2, 16, &[4; 24]),
        ]
        .concat()
    }

    #[test]
    fn every_version_and_type_is_found() {
        let keytab = Keytab::parse(&keytab()).unwrap();
        assert_eq!((keytab.entries().len(), keytab.usable()), (4, 3));
        let first = |principal, kvno| {
            let found = keytab.candidates(principal, kvno, EncType::Aes256Sha1);
            (found.keys[0].bytes()[0], found.exact)
        };
        assert_eq!(first("cifs/fs@EXAMPLE.COM", Some(300)), (2, true));
        assert_eq!(first("cifs/fs@EXAMPLE.COM", Some(1)), (1, true));
        assert_eq!(first("cifs/other@EXAMPLE.COM", None), (3, true));
        assert!(!first("cifs/fs@EXAMPLE.COM", Some(7)).1);
        assert!(keytab.candidates("cifs/fs@EXAMPLE.COM", Some(1), EncType::Rc4).keys.is_empty());
    }

    #[test]
    fn what_is_cut_is_refused_and_nothing_panics() {
        let whole = keytab();
        let ends: Vec<usize> =
            (0..=whole.len()).filter(|cut| Keytab::parse(&whole[..*cut]).is_ok()).collect();
        // After the head, each entry and the hole.
        assert_eq!(ends.len(), 6, "{ends:?}");
        assert_eq!(Keytab::parse(&[5, 1, 0]).unwrap_err(), KeytabError::OldFormat);
        assert_eq!(Keytab::parse(b"alice:1:X").unwrap_err(), KeytabError::NoKeytab);
        assert_eq!(Keytab::parse(&[5, 2, 0x80, 0, 0, 0]).unwrap_err(), KeytabError::Entry(1));
    }

    #[test]
    fn keys_do_not_print() {
        let shown = format!("{:?}", Keytab::parse(&keytab()).unwrap());
        assert!(
            shown.contains("cifs/fs@EXAMPLE.COM kvno 300 etype 18 ***") && !shown.contains("[2, 2"),
            "{shown}"
        );
    }
}
