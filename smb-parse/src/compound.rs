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
