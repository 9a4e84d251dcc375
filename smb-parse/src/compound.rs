//! Compounds: several messages in one frame, chained by NextCommand (MS-SMB2 3.3.5.2.7).

use std::ops::Range;

use crate::{ParseError, header::Header, read::index};

/// One message of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element<'a> {
    /// Where it stands in the body, padding included: the signature covers that too.
    pub range: Range<usize>,
    /// Its header.
    pub header: Header,
    /// The message.
    pub msg: &'a [u8],
}

/// The messages of a frame's body, in order. Ends after the first error.
#[inline]
pub fn elements(body: &[u8]) -> Elements<'_> {
    Elements { body, at: Some(0) }
}

/// See [`elements`].
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    body: &'a [u8],
    at: Option<usize>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, ParseError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        let rest = self.body.get(at..)?;
        let header = match Header::parse(rest) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let next = index(header.next_command);
        let msg = if next == 0 {
            rest
        } else {
            if !next.is_multiple_of(8) || next < Header::LEN || next >= rest.len() {
                let error = ParseError { command: Some(header.command), field: "NextCommand", at: at + 20 };
                return Some(Err(error));
            }
            self.at = Some(at + next);
            rest.get(..next)?
        };
        Some(Ok(Element { range: at..at + msg.len(), header, msg }))
    }
}

/// An [`Element`] that is to be changed where it lies.
#[derive(Debug, PartialEq, Eq)]
pub struct ElementMut<'a> {
    /// Where it stands in the body, padding included.
    pub range: Range<usize>,
    /// Its header.
    pub header: Header,
    /// The message.
    pub msg: &'a mut [u8],
}

/// The message at `at` of a frame's body. `at` moves behind it, but stays where it is at an error, after which there is
/// nothing to be read. `None`: that was all.
#[inline]
pub fn next_mut<'a>(body: &'a mut [u8], at: &mut usize) -> Option<Result<ElementMut<'a>, ParseError>> {
    let rest = body.get(*at..).filter(|rest| !rest.is_empty())?;
    let element = match elements(rest).next()? {
        Ok(element) => element,
        Err(error) => return Some(Err(error)),
    };
    let (header, range) = (element.header, *at + element.range.start..*at + element.range.end);
    *at = range.end;
    Some(Ok(ElementMut { range: range.clone(), header, msg: body.get_mut(range)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encode, header::Command};

    #[test]
    fn each_is_found_to_be_changed_where_it_is_found_to_be_read() {
        let echo = |id| encode::echo(&Header::request(Command::ECHO, id));
        let whole = encode::compound(&[echo(1), echo(2), echo(3)]);
        for cut in [whole.len(), whole.len() - 20, 30, 0] {
            let mut body = whole[..cut].to_vec();
            let read: Vec<_> = elements(&whole[..cut]).map(|e| e.map(|e| (e.range, e.header))).collect();
            let (mut at, mut found) = (0, Vec::new());
            while let Some(next) = next_mut(&mut body, &mut at) {
                let fine = next.is_ok();
                found.push(next.map(|ElementMut { range, header, msg }| {
                    assert_eq!(msg, &whole[range.clone()]);
                    (range, header)
                }));
                if !fine {
                    break;
                }
            }
            let count = |list: &[Result<_, ParseError>]| list.iter().filter(|one| one.is_ok()).count();
            assert_eq!(count(&found), count(&read), "cut at {cut}");
            assert!(found.iter().zip(&read).all(|(one, other)| one.as_ref().ok() == other.as_ref().ok()));
        }
    }
}
