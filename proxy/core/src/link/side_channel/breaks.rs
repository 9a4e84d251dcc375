//! Break notifications: a node may send one on any connection of the client, or try a second one (MS-SMB2 3.3.4.6,
//! 3.3.4.7). The client hears of each once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use smb_parse::header::Header;

use super::super::{Link, answer::body};

/// How long after the first a node may send the same on the other connection.
const TWICE: Duration = Duration::from_secs(10);
/// How many are remembered.
const REMEMBERED: usize = 32;

/// On which node leg something came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link) enum From {
    Main,
    Side,
}

/// Breaks that the client has heard of lately.
#[derive(Debug, Default)]
pub(super) struct Told(VecDeque<(Instant, From, Bytes)>);

impl Told {
    /// Whether the client has not heard of it by the other leg.
    fn is_new(&mut self, now: Instant, from: From, what: &[u8]) -> bool {
        self.0.retain(|(at, ..)| now < *at + TWICE);
        if let Some(at) = self.0.iter().position(|(_, by, known)| *by != from && known == what) {
            self.0.remove(at);
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((now, from, Bytes::copy_from_slice(what)));
        true
    }
}

impl Link {
    /// A frame of the node in Relay while a side channel is bound. False if it is a break that the client has heard of.
    pub(in crate::link) fn is_news(&mut self, now: Instant, from: From, frame: &[u8]) -> bool {
        let Some(what) = frame.get(Header::LEN..).filter(|_| self.is_notification(frame)) else {
            return true;
        };
        self.side.told.is_new(now, from, what)
    }

    /// A break on the side channel goes to the client as it is: in Relay all its ids are the client's.
    pub(super) fn side_break(&mut self, now: Instant, frame: BytesMut) {
        if self.side.is_bound() && self.is_news(now, From::Side, body(&frame)) {
            self.watch_break(now, body(&frame));
            self.out.send_client(frame.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_break_by_both_legs_is_told_once_and_by_one_leg_each_time() {
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        let mut told = Told::default();
        assert!(told.is_new(now, From::Main, b"a"));
        assert!(!told.is_new(now, From::Side, b"a"));
        assert!(told.is_new(now, From::Side, b"a"), "a further one");
        assert!(!told.is_new(now, From::Main, b"a"));
        assert!(told.is_new(now, From::Main, b"a"));
        assert!(told.is_new(now, From::Main, b"a"), "twice by one leg is two");
        assert!(told.is_new(now, From::Side, b"b"));
        assert!(told.is_new(now + TWICE, From::Side, b"a"), "too late to be the same");
    }
}
