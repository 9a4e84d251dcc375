//! Credits of the client leg: which MessageIds the client may still use (MS-SMB2 3.3.1.1, CommandSequenceWindow).
//!
//! In Relay the node grants and judges, and this only counts along. In Bridge the proxy grants, and a MessageId that is
//! used twice or was never granted is refused: a recorded request must not be accepted again, and no two answers may be
//! signed under one MessageId.

use std::collections::BTreeMap;

/// The largest window a client is given, Samba's `smb2 max credits`.
const WINDOW: u32 = 8192;
/// A MessageId this far behind the newest one granted is given up.
const SPAN: u64 = 4 * WINDOW as u64;

/// The window of one client.
#[derive(Debug)]
pub(crate) struct ClientCredits {
    /// Every MessageId below is used or given up.
    low: u64,
    /// The first MessageId that is not granted yet.
    high: u64,
    /// What is used from `low` on: ranges, start to end, that do not touch.
    used: BTreeMap<u64, u64>,
    /// How many MessageIds the client may still use.
    available: u32,
    /// Sealed messages passed, whose MessageIds and grants nobody could see.
    blind: bool,
}

impl ClientCredits {
    /// A new connection may use MessageId 0.
    pub(crate) fn new() -> Self {
        Self { low: 0, high: 1, used: BTreeMap::new(), available: 1, blind: false }
    }

    /// A sealed message passed: from now on grants are not all known.
    pub(crate) fn passed_sealed(&mut self) {
        self.blind = true;
    }

    /// A request takes `charge` MessageIds from `id` on. False if one of them is used already or not granted.
    pub(crate) fn consume(&mut self, id: u64, charge: u32) -> bool {
        let Some(end) = id.checked_add(u64::from(charge)) else { return false };
        if self.blind {
            self.high = self.high.max(end.min(self.high.saturating_add(SPAN)));
        }
        if id < self.low || end > self.high || self.is_used(id, end) {
            return false;
        }
        self.available = self.available.saturating_sub(charge);
        self.mark(id, end);
        true
    }

    /// The node granted this many (Relay).
    pub(crate) fn granted(&mut self, credits: u16) {
        self.grow(u32::from(credits));
    }

    /// How many to grant with a final answer of ours. Never fewer than the request took, so that no window runs
    /// dry; never so many that the window grows over [`WINDOW`], except by that.
    pub(crate) fn grant(&mut self, charge: u32, requested: u16) -> u16 {
        let room = WINDOW.saturating_sub(self.available);
        let wanted = u32::from(requested).max(charge);
        let grant = wanted.min(room).max(charge).max(u32::from(self.available == 0));
        let grant = u16::try_from(grant).unwrap_or(u16::MAX);
        self.grow(u32::from(grant));
        grant
    }

    fn grow(&mut self, credits: u32) {
        self.available = self.available.saturating_add(credits);
        self.high = self.high.saturating_add(u64::from(credits));
        let floor = self.high.saturating_sub(SPAN);
        if self.low < floor {
            self.low = floor;
            self.advance();
        }
    }

    fn is_used(&self, id: u64, end: u64) -> bool {
        self.used.range(..end).next_back().is_some_and(|(_, before)| *before > id)
    }

    /// Joins a free range to what is used.
    fn mark(&mut self, id: u64, end: u64) {
        let mut start = id;
        let mut end = end;
        if let Some((&before, _)) = self.used.range(..id).next_back().filter(|(_, e)| **e == id) {
            start = before;
        }
        if let Some(behind) = self.used.remove(&end) {
            end = behind;
        }
        self.used.insert(start, end);
        self.advance();
    }

    /// What is used at the low end is forgotten.
    fn advance(&mut self) {
        while let Some(first) = self.used.first_entry().filter(|first| *first.key() <= self.low) {
            self.low = self.low.max(first.remove());
        }
    }
}

/// A request's CreditCharge as MessageIds: 0 counts as 1 (MS-SMB2 3.3.5.2.3).
pub(crate) fn charge(credit_charge: u16) -> u32 {
    u32::from(credit_charge.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_neither_runs_dry_nor_over() {
        let mut credits = ClientCredits::new();
        let mut next = 0;
        for requested in [0u16, 1, 31, 512, 8192, u16::MAX] {
            for taken in [1u32, 16, 128] {
                credits.granted(u16::try_from(taken).unwrap());
                let before = credits.available;
                assert!(credits.consume(next, taken));
                next += u64::from(taken);
                let grant = u32::from(credits.grant(taken, requested));
                assert!(grant >= taken, "never less than was taken");
                let after = credits.available;
                assert!(after <= WINDOW.max(before), "{before} became {after} by {grant}");
            }
        }
    }

    #[test]
    fn an_empty_window_gets_a_credit_whatever_was_asked() {
        let mut credits = ClientCredits::new();
        assert!(credits.consume(0, 1));
        assert_eq!(credits.grant(0, 0), 1);
    }

    #[test]
    fn no_message_id_counts_twice_and_none_before_it_is_granted() {
        let mut credits = ClientCredits::new();
        assert!(!credits.consume(1, 1), "not granted");
        assert!(!credits.consume(0, 2), "not granted whole");
        assert!(credits.consume(0, 1));
        assert!(!credits.consume(0, 1), "used");
        credits.granted(10);
        for (id, charge) in [(5, 2), (1, 1), (7, 1), (3, 2), (2, 1)] {
            assert!(credits.consume(id, charge), "{id}");
            for at in id..id + u64::from(charge) {
                assert!(!credits.consume(at, 1), "{at} again");
            }
        }
        assert!(!credits.consume(4, 6), "a range that begins in used ids");
        assert!(!credits.consume(8, 4), "a range that ends in ids not granted");
        assert!(credits.consume(8, 3));
        assert_eq!((credits.low, credits.used.len(), credits.available), (11, 0, 0));
    }

    #[test]
    fn an_id_never_used_does_not_hold_memory() {
        let mut credits = ClientCredits::new();
        for id in (1..4 * SPAN).step_by(2) {
            credits.granted(2);
            assert!(credits.consume(id, 1));
        }
        assert!(credits.used.len() <= usize::try_from(SPAN).unwrap());
        assert!(!credits.consume(0, 1), "given up");
    }

    #[test]
    fn after_sealed_messages_grants_are_not_judged_but_repetition_is() {
        let mut credits = ClientCredits::new();
        credits.passed_sealed();
        assert!(credits.consume(500, 1));
        assert!(!credits.consume(500, 1));
        assert!(credits.consume(499, 1));
    }
}
