//! What is known of the end of a file to which clients append (WRITE at offset 0xFFFFFFFFFFFFFFFF): where it must be once
//! every append that was answered is counted, and which others are in flight, of whatever Link.
//!
//! The end is known from the answer to the CREATE of the file's first Open on, while nothing but appends changes it. What
//! else may change it makes it unknown until the last Open is closed.

use bytes::Bytes;

use crate::{
    ids::{LinkId, MessageId},
    takeover::probe::Finding,
};

/// An append that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    link: LinkId,
    id: MessageId,
    data: Bytes,
    /// Where the end was known to be, at least, when it was sent.
    from: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    end: Option<u64>,
    pending: Vec<Pending>,
    version: u64,
}

impl Tail {
    /// The first Open of the file has found its end there. `None`: or elsewhere.
    pub(super) fn found(&mut self, end: Option<u64>) {
        self.end = end;
        self.version += 1;
    }

    /// A node is asked to append.
    pub(super) fn asked(&mut self, link: LinkId, id: MessageId, data: Bytes) {
        self.version += 1;
        if let Some(from) = self.end.filter(|_| !self.pending.iter().any(|p| (p.link, p.id) == (link, id))) {
            self.pending.push(Pending { link, id, data, from });
        }
    }

    /// An append is answered: so many bytes were written. `None`: nobody knows.
    pub(super) fn answered(&mut self, link: LinkId, id: MessageId, written: Option<u64>) {
        self.version += 1;
        let known = self.pending.iter().any(|p| (p.link, p.id) == (link, id));
        self.pending.retain(|p| (p.link, p.id) != (link, id));
        self.end = match (self.end, written) {
            (end, Some(0)) => end,
            (Some(end), Some(written)) if known => end.checked_add(written),
            _ => None,
        };
    }

    /// Grows whenever something happens to it.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// From where on the appends in flight stand, with those that were answered since they were sent. `None`: unknown.
    pub(crate) fn begin(&self) -> Option<u64> {
        let begins = self.pending.iter().map(|pending| pending.from);
        begins.min().filter(|_| self.end.is_some())
    }

    /// Whether an append was done, now that the file ends at `end`, with `data` from [`Self::begin`] on, if that was read.
    /// `None`: it is to be read.
    ///
    /// So many bytes have come as the done ones have. Those whose data stand there include the done ones. If these come to
    /// as many bytes, they are the same.
    pub(crate) fn judge(
        &self,
        link: LinkId,
        id: MessageId,
        end: u64,
        data: Option<&[u8]>,
    ) -> Option<Finding> {
        let own = self.pending.iter().find(|p| (p.link, p.id) == (link, id));
        let grown = self.end.and_then(|known| end.checked_sub(known));
        let (Some(own), Some(grown)) = (own, grown) else { return Some(Finding::Unclear) };
        let sum = |pending: &mut dyn Iterator<Item = &Pending>| -> u64 {
            pending.map(|p| u64::try_from(p.data.len()).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
        };
        if own.data.is_empty() || grown > sum(&mut self.pending.iter()) {
            return Some(Finding::Unclear);
        }
        if grown == 0 {
            return Some(Finding::Undone);
        }
        let data = data?;
        let stands = |p: &&Pending| data.windows(p.data.len().max(1)).any(|window| *window == *p.data);
        if sum(&mut self.pending.iter().filter(stands)) != grown {
            return Some(Finding::Unclear);
        }
        Some(if stands(&own) { Finding::Done } else { Finding::Undone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);

    /// A file that ended at 100, and appends in flight.
    fn tail(pending: &[(LinkId, MessageId, &'static [u8])]) -> Tail {
        let mut tail = Tail::default();
        tail.found(Some(100));
        for (link, id, data) in pending {
            tail.asked(*link, *id, Bytes::from_static(data));
        }
        tail
    }

    #[test]
    fn one_append_is_done_if_the_file_has_grown_by_it_and_it_stands_there() {
        let tail = tail(&[(A, 1, b"line")]);
        assert_eq!(tail.judge(A, 1, 100, None), Some(Finding::Undone));
        assert_eq!(tail.judge(A, 1, 104, None), None, "it is to be read");
        assert_eq!(tail.judge(A, 1, 104, Some(b"line")), Some(Finding::Done));
        for (end, data) in [(104, b"LINE" as &[u8]), (102, b"li"), (105, b"line!"), (99, b"")] {
            assert_eq!(tail.judge(A, 1, end, Some(data)), Some(Finding::Unclear), "{end}");
        }
    }

    #[test]
    fn of_two_each_is_found() {
        let tail = tail(&[(A, 1, b"one1"), (B, 1, b"two2")]);
        let both = |end, data: &[u8]| [A, B].map(|link| tail.judge(link, 1, end, Some(data)).unwrap());
        assert_eq!(both(104, b"one1"), [Finding::Done, Finding::Undone]);
        assert_eq!(both(104, b"two2"), [Finding::Undone, Finding::Done]);
        assert_eq!(both(108, b"two2one1"), [Finding::Done; 2]);
        assert_eq!(both(104, b"none"), [Finding::Unclear; 2]);
    }

    #[test]
    fn of_equal_data_one_done_cannot_be_told_from_the_other() {
        let tail = tail(&[(A, 1, b"same"), (B, 1, b"same")]);
        assert_eq!(tail.judge(A, 1, 104, Some(b"same")), Some(Finding::Unclear));
        assert_eq!(tail.judge(A, 1, 108, Some(b"samesame")), Some(Finding::Done));
        assert_eq!(tail.judge(A, 1, 100, None), Some(Finding::Undone));
    }

    #[test]
    fn what_was_answered_is_no_other_append() {
        let mut tail = tail(&[(A, 1, b"same"), (B, 1, b"same")]);
        tail.answered(B, 1, Some(4));
        assert_eq!(tail.judge(A, 1, 104, None), Some(Finding::Undone));
        assert_eq!(tail.begin(), Some(100), "it may stand before the other");
        assert_eq!(tail.judge(A, 1, 108, Some(b"samesame")), Some(Finding::Done));
    }

    #[test]
    fn what_nobody_knows_makes_the_end_unknown() {
        let mut tail = tail(&[(A, 1, b"line"), (B, 1, b"more")]);
        tail.answered(B, 1, None);
        assert_eq!((tail.judge(A, 1, 100, None), tail.begin()), (Some(Finding::Unclear), None));
        tail.asked(A, 2, Bytes::from_static(b"late"));
        tail.found(Some(100));
        assert_eq!(tail.judge(A, 2, 100, None), Some(Finding::Unclear));
    }
}
