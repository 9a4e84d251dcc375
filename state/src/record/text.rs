//! How bytes look in a record: as hexadecimal digits, and paths as text where they are text.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::open::FileIdRecord;

/// Bytes that are written as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = from_hex(&String::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        bytes.try_into().map(Self).map_err(|_| D::Error::custom(format!("not {N} bytes")))
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|two| std::str::from_utf8(two).ok().and_then(|two| u8::from_str_radix(two, 16).ok()))
        .collect()
}

impl fmt::Display for FileIdRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{:016x}", self.persistent, self.volatile)
    }
}

impl Serialize for FileIdRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileIdRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let half = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let parts = text.split_once(':').and_then(|(p, v)| Some((half(p)?, half(v)?)));
        let (persistent, volatile) = parts.ok_or_else(|| D::Error::custom("not a FileId"))?;
        Ok(Self { persistent, volatile })
    }
}

/// A text of which there is one copy for many records.
pub(super) mod shared {
    use super::{Arc, Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        Ok(String::deserialize(deserializer)?.into())
    }
}

/// A path, UTF-16LE. What is no Unicode is written as `?` and digits, for no path has a `?`.
pub(super) mod path {
    use super::{Arc, Deserialize, Deserializer, Error, Serializer, from_hex};

    pub(crate) fn serialize<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let units: Vec<u16> =
            path.chunks(2).map(|c| u16::from_le_bytes([c[0], c.get(1).copied().unwrap_or(0)])).collect();
        match String::from_utf16(&units) {
            Ok(text) if path.len().is_multiple_of(2) && !text.starts_with('?') => {
                serializer.serialize_str(&text)
            }
            _ => {
                let digits: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
                serializer.collect_str(&format_args!("?{digits}"))
            }
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix('?') {
            Some(digits) => {
                from_hex(digits).map(Into::into).ok_or_else(|| D::Error::custom("not hexadecimal"))
            }
            None => Ok(text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        }
    }
}
