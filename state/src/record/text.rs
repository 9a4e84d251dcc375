//! How bytes look in a record: as hexadecimal digits, and paths as text where they are text.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

use super::open::FileIdRecord;

/// Bytes that are written at a time.
const PIECE: usize = 32;

/// Bytes that are written as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A piece at a time: each call of the formatter costs more than the digits.
        self.0.chunks(PIECE).try_for_each(|bytes| {
            let mut digits = [0; 2 * PIECE];
            for (two, byte) in digits.chunks_exact_mut(2).zip(bytes) {
                two.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            }
            let digits = digits.get(..2 * bytes.len()).unwrap_or_default();
            f.write_str(std::str::from_utf8(digits).map_err(|_| fmt::Error)?)
        })
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
        let bytes = |text: &str| {
            let mut bytes = [0; N];
            (text.len() == 2 * N).then_some(())?;
            bytes
                .iter_mut()
                .zip(from_hex(text))
                .try_for_each(|(byte, read)| read.map(|read| *byte = read))?;
            Some(Self(bytes))
        };
        deserializer.deserialize_str(Text("hexadecimal digits of the right number", bytes))
    }
}

/// The digit of a number below 16.
fn digit(number: u8) -> u8 {
    if number < 10 { b'0' + number } else { b'a' - 10 + number }
}

/// Bytes from their digits; `None` for what is no digit. An odd one at the end is left out.
fn from_hex(text: &str) -> impl Iterator<Item = Option<u8>> {
    let number = |digit: u8| char::from(digit).to_digit(16).and_then(|number| u8::try_from(number).ok());
    text.as_bytes().as_chunks().0.iter().map(move |[high, low]| Some(number(*high)? << 4 | number(*low)?))
}

/// Reads something from a text, without a copy of it: what is expected, and how.
struct Text<F>(&'static str, F);

impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let Self(expected, read) = self;
        read(text).ok_or_else(|| E::custom(format_args!("not {expected}")))
    }
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
        let read = |text: &str| {
            let half = |digits: &str| u64::from_str_radix(digits, 16).ok();
            let (persistent, volatile) = text.split_once(':')?;
            Some(Self { persistent: half(persistent)?, volatile: half(volatile)? })
        };
        deserializer.deserialize_str(Text("a FileId", read))
    }
}

/// A text of which there is one copy for many records.
pub(super) mod shared {
    use super::{Arc, Deserializer, Serializer, Text};

    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(Text("a text", |text: &str| Some(text.into())))
    }
}

/// A path, UTF-16LE. What is no Unicode is written as `?` and digits, for no path has a `?`.
pub(super) mod path {
    use super::{Arc, Deserializer, Serializer, Text, from_hex};

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
        let read = |text: &str| match text.strip_prefix('?') {
            Some(digits) if digits.len().is_multiple_of(2) => from_hex(digits).collect(),
            Some(_) => None,
            None => Some(text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        };
        deserializer.deserialize_str(Text("a path", read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_two_digits_each() {
        let bytes: [u8; 2 * PIECE + 3] = std::array::from_fn(|at| u8::try_from(at * 3).unwrap());
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Hex(bytes).to_string(), digits);
        assert_eq!(serde_json::to_string(&Hex([0, 0x9a, 0xff])).unwrap(), r#""009aff""#);
        for text in [r#""009aff""#, r#""009AFF""#, r#""0\u00309aff""#] {
            assert_eq!(serde_json::from_str::<Hex<3>>(text).unwrap(), Hex([0, 0x9a, 0xff]));
        }
    }

    #[test]
    fn what_are_no_digits_is_refused() {
        for text in [
            r#""009af""#,
            r#""009afff""#,
            r#""009aff00""#,
            r#""009a+f""#,
            r#""009ag0""#,
            r#""""#,
            r#""\u00e4\u00e4\u00e4""#,
            "7",
        ] {
            assert!(serde_json::from_str::<Hex<3>>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_is_text_or_whole_bytes() {
        #[derive(Deserialize)]
        struct Path(#[serde(with = "path")] Arc<[u8]>);
        let read = |text: &str| serde_json::from_str::<Path>(text).map(|path| path.0.to_vec()).ok();
        assert_eq!(read(r#""a\\b""#), Some(b"a\0\\\0b\0".to_vec()));
        assert_eq!(read(r#""?00d8""#), Some(vec![0, 0xd8]));
        assert_eq!(read(r#""?00d""#), None);
        assert_eq!(read(r#""?00dx""#), None);
    }
}
