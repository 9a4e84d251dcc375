//! Byte-range locks (MS-SMB2 2.2.26, 3.3.5.14): which an Open has, so that it can have them again.
//!
//! The table follows what nodes have acknowledged:
//!
//! | LOCK request | its answer | the table |
//! |---|---|---|
//! | locks | SUCCESS | has them all, behind the others |
//! | locks | an error | as it was: the node takes back what it had locked |
//! | unlocks | SUCCESS | has none of them |
//! | unlocks | RANGE_NOT_LOCKED, INVALID_PARAMETER | has none of those before the first that fails: the node does not lock them again |
//!
//! Of several locks on the same range, an unlock takes the exclusive one first, then the oldest, as Samba does.
//!
//! When a node is lost, a request in flight may have been done by it:
//!
//! | in flight | becomes |
//! |---|---|
//! | locks | sent again, in order: they have died with the node, whether it had them or not |
//! | unlocks | answered from the table, element by element; what they name is not locked again |
//! | unlocks behind locks of the same Open that are in flight, too | the same, but what the table lacks is asked of the new node, in order |
//!
//! Invariants:
//!
//! - A range under an UNLOCK in flight is not locked again, nor are those of an Open under a CLOSE, TREE_DISCONNECT or LOGOFF:
//!   the lost node may have let go of it, and have given it to another client, whose lock was acknowledged. The same if the
//!   answer to one of these cannot be believed.
//! - What is locked again is asked for in the order in which it was had, at once or not at all, with LockSequence 0, so that no
//!   node takes it for a replay. See [`super::lock_sequence`].

use std::collections::HashSet;

use smb_parse::{
    cmd::lock::{self, EXCLUSIVE, Lock, UNLOCK},
    encode,
    header::{Command, Status},
};

use super::{Link, answer::Check, node_leg::Op, request::Request};
use crate::ids::{MessageId, OpenToken};

/// STATUS_RANGE_NOT_LOCKED (MS-ERREF 2.3).
const RANGE_NOT_LOCKED: Status = Status(0xc000_007e);

/// The locks of an Open, in the order in which they were taken.
#[derive(Debug, Default)]
pub(crate) struct LockTable(Vec<Lock>);

impl FromIterator<Lock> for LockTable {
    fn from_iter<T: IntoIterator<Item = Lock>>(locks: T) -> Self {
        Self(locks.into_iter().collect())
    }
}

impl LockTable {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.0.iter()
    }

    fn add(&mut self, lock: Lock) {
        self.0.push(lock);
    }

    fn has(&self, range: &Lock) -> bool {
        self.0.iter().any(|l| l.offset == range.offset && l.length == range.length)
    }

    /// Lets a range go. False if it is not locked.
    fn release(&mut self, range: &Lock) -> bool {
        let is_it = |l: &Lock| l.offset == range.offset && l.length == range.length;
        let exclusive = self.0.iter().position(|l| is_it(l) && l.flags & EXCLUSIVE != 0);
        let Some(at) = exclusive.or_else(|| self.0.iter().position(is_it)) else { return false };
        self.0.remove(at);
        true
    }

    /// Follows an answered LOCK request.
    fn follow(&mut self, elements: &[Lock], status: Status) {
        let unlocks = elements.first().is_some_and(is_unlock);
        if status.is_success() {
            for element in elements {
                if is_unlock(element) {
                    self.release(element);
                } else {
                    self.add(*element);
                }
            }
        } else if unlocks && [RANGE_NOT_LOCKED, Status::INVALID_PARAMETER].contains(&status) {
            for element in elements {
                if !is_unlock(element) || !self.release(element) {
                    return;
                }
            }
        }
    }

    /// What becomes of unlocks that a lost node may have done: their status, or what is to be asked of the new one.
    /// `behind_locks`: what is not locked may be by then.
    fn settle(&mut self, elements: &[Lock], behind_locks: bool) -> Settled {
        let mut left = Vec::new();
        for element in elements {
            if !is_unlock(element) {
                // Those before it are done (MS-SMB2 3.3.5.14.1).
                return Settled::Answer(Status::INVALID_PARAMETER);
            }
            if !self.release(element) {
                if !behind_locks {
                    return Settled::Answer(RANGE_NOT_LOCKED);
                }
                left.push(*element);
            }
        }
        if left.is_empty() { Settled::Answer(Status::SUCCESS) } else { Settled::Ask(left) }
    }
}

/// What becomes of an UNLOCK in flight.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    Answer(Status),
    Ask(Vec<Lock>),
}

fn is_unlock(element: &Lock) -> bool {
    element.flags & UNLOCK != 0
}

fn elements_of(request: &Request) -> Option<Vec<Lock>> {
    let parsed = lock::Request::parse(&request.msg).ok()?;
    Some(parsed.locks().filter_map(Result::ok).collect())
}

impl Link {
    /// A LOCK was answered.
    pub(super) fn observe_lock(&mut self, request: &Request, status: Status) {
        let Ok(asked) = lock::Request::parse(&request.msg) else { return };
        let elements: Vec<_> = asked.locks().filter_map(Result::ok).collect();
        if status.is_success() && self.is_lock_repeated(request) {
            return;
        }
        let Some(token) = self.request_open(request) else { return };
        if let Some(open) = self.opens.get_mut(token) {
            open.locks.follow(&elements, status);
            open.lock_sequences.answered(asked.lock_sequence, status.is_success());
        }
        self.wait_for_open(token);
    }

    /// A node is lost: what it may have unlocked or closed is not locked again. The FileIds of requests are the client's.
    pub(super) fn settle_locks_in_flight(&mut self) {
        let mut locking = HashSet::new();
        for id in self.requests.units().into_values().flatten().collect::<Vec<_>>() {
            let Some(request) = self.requests.get(id).filter(|r| r.deaths > 0) else { continue };
            match request.header.command {
                Command::LOCK if request.known.is_none() => {
                    let Some(open) = self.request_open(request) else { continue };
                    if elements_of(request).is_some_and(|e| e.first().is_some_and(is_unlock)) {
                        self.settle_unlock(id, locking.contains(&open));
                    } else {
                        locking.insert(open);
                    }
                }
                Command::CLOSE | Command::TREE_DISCONNECT | Command::LOGOFF => self.note_closing(id),
                _ => {}
            }
        }
    }

    /// What a request has come to nobody can tell, for its answer is not the node's: what it may have unlocked or closed is not
    /// locked again.
    pub(super) fn settle_untold(&mut self, id: MessageId) {
        let Some(request) = self.requests.get(id) else { return };
        match request.header.command {
            Command::LOCK if elements_of(request).is_some_and(|e| e.first().is_some_and(is_unlock)) => {
                self.settle_unlock(id, false);
            }
            Command::CLOSE | Command::TREE_DISCONNECT | Command::LOGOFF => {
                self.note_closing(id);
                self.forget_breaks_of_closed();
            }
            Command::OPLOCK_BREAK => self.settle_untold_ack(id),
            _ => {}
        }
    }

    /// The node has kept an Open, and may have done what was in flight: what the table lacks is unlocked, so that a LOCK that is
    /// sent again does not meet itself, and an UNLOCK that is answered from here is true.
    pub(crate) fn unlock_in_flight(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token) else { return };
        let is_its = |r: &&Request| {
            r.deaths > 0 && r.header.command == Command::LOCK && self.request_open(r) == Some(token)
        };
        let named = self.requests.iter().filter(is_its).filter_map(elements_of).flatten();
        let unheld: Vec<_> = named.filter(|range| !open.locks.has(range)).collect();
        let ids: Vec<_> = self.requests.iter().filter(is_its).map(Request::message_id).collect();
        self.unlock(token, unheld);
        for id in ids {
            self.forget_lock_sequence(id);
        }
    }

    /// The node has kept an Open, and was lost before it had said whether its locks are on it: they are not, now.
    pub(crate) fn unlock_all(&mut self, token: OpenToken) {
        let Some(open) = self.opens.get(token) else { return };
        let held = open.locks.iter().copied().collect();
        self.unlock(token, held);
    }

    /// One at a time, for the node stops at the first that it does not have.
    fn unlock(&mut self, token: OpenToken, ranges: Vec<Lock>) {
        for range in ranges {
            self.ask_for(Op::Unlock(token, range));
        }
    }

    pub(crate) fn send_unlock(&mut self, token: OpenToken, range: Lock) {
        let Some(open) = self.opens.get(token) else { return };
        let (session, file, tree) = (open.session.0, open.node_id.0, self.node_tree(open));
        let header = self.own_header(Command::LOCK, session, tree);
        let msg = encode::lock(&header, file, 0, &[Lock { flags: UNLOCK, ..range }]);
        self.send_in_session(session, &msg, Op::Unlock(token, range));
    }

    fn settle_unlock(&mut self, id: MessageId, behind_locks: bool) {
        let Some(request) = self.requests.get(id).filter(|r| self.is_genuine(r)) else { return };
        let Some(elements) = elements_of(request) else { return };
        let (header, compounded) = (request.header, request.compounded);
        let Ok(parsed) = lock::Request::parse(&request.msg) else { return };
        let (file, sequence) = (parsed.file_id, parsed.lock_sequence);
        let Some(token) = self.request_open(request) else { return };
        let repeated = self.is_lock_repeated(request);
        let Some(open) = self.opens.get_mut(token) else { return };
        let settled = match repeated {
            true => Settled::Answer(Status::SUCCESS),
            false => open.locks.settle(&elements, behind_locks),
        };
        match settled {
            Settled::Answer(status) => {
                open.lock_sequences.answered(sequence, status.is_success());
                if let Some(request) = self.requests.get_mut(id) {
                    request.known = Some(status);
                }
            }
            Settled::Ask(left) if left.len() < elements.len() && !compounded => {
                let rest = encode::lock(&header, file, sequence, &left);
                self.requests.replace_msg(id, rest.into(), true);
            }
            Settled::Ask(_) => {}
        }
    }

    /// Whether a kept request is its client's. One that is not is answered when its turn comes.
    pub(super) fn is_genuine(&self, request: &Request) -> bool {
        let mut msg = request.msg.to_vec();
        request.verified || self.check_signature(&request.header, &mut msg) == Check::Passed
    }

    /// What a request in flight was to close may be closed: the client is done with its locks and caches.
    fn note_closing(&mut self, id: MessageId) {
        let Some(request) = self.requests.get(id).filter(|r| self.is_genuine(r)) else { return };
        let (command, session, tree) =
            (request.header.command, request.header.session_id, request.header.tree_id());
        let closed = self.request_open(request);
        for open in self.opens.iter_mut() {
            open.closing |= match command {
                Command::CLOSE => closed == Some(open.token),
                Command::TREE_DISCONNECT => open.session.0 == session && Some(open.tree.0) == tree,
                _ => open.session.0 == session,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(offset: u64, flags: u32) -> Lock {
        Lock { offset, length: 8, flags }
    }

    fn table(of: &[(u64, u32)]) -> LockTable {
        LockTable(of.iter().map(|(offset, flags)| element(*offset, *flags)).collect())
    }

    const SHARED: u32 = lock::SHARED;
    type Ranges = [(u64, u32)];

    #[test]
    fn the_table_follows_what_was_answered() {
        let (lock0, lock8) = ([element(0, SHARED), element(8, EXCLUSIVE)], element(8, UNLOCK));
        let unlocks = [element(0, UNLOCK), element(16, UNLOCK), lock8];
        let held = [(0, SHARED), (8, EXCLUSIVE)];
        let mixed = [element(0, UNLOCK), element(16, SHARED), lock8];
        let rows: [(&Ranges, &[Lock], Status, &Ranges); 7] = [
            (&[], &lock0, Status::SUCCESS, &held),
            (&[], &lock0, Status::LOCK_NOT_GRANTED, &[]),
            (&held, &[lock8], Status::SUCCESS, &[(0, SHARED)]),
            (&held, &unlocks, RANGE_NOT_LOCKED, &[(8, EXCLUSIVE)]),
            (&held, &mixed, Status::INVALID_PARAMETER, &[(8, EXCLUSIVE)]),
            (&held, &unlocks, Status::FILE_CLOSED, &held),
            (&[(8, SHARED), (8, SHARED), (8, EXCLUSIVE)], &[lock8], Status::SUCCESS, &[(8, SHARED); 2]),
        ];
        for (before, elements, status, after) in rows {
            let mut known = table(before);
            known.follow(elements, status);
            assert_eq!(known.0, table(after).0, "{elements:?} {status:?}");
        }
    }

    #[test]
    fn an_unlock_in_flight_is_settled_by_the_table() {
        let unlocks = [element(0, UNLOCK), element(16, UNLOCK), element(8, UNLOCK)];
        let held = [(0, SHARED), (8, EXCLUSIVE)];
        let mut known = table(&held);
        assert_eq!(known.settle(&unlocks, false), Settled::Answer(RANGE_NOT_LOCKED));
        assert_eq!(known.0, table(&[(8, EXCLUSIVE)]).0, "what is behind the one that fails stays");
        let mut known = table(&held);
        assert_eq!(known.settle(&unlocks, true), Settled::Ask(vec![element(16, UNLOCK)]));
        assert!(known.is_empty(), "a lock in flight may make it succeed");
        let mut known = table(&[(0, SHARED), (16, SHARED), (8, SHARED)]);
        assert_eq!(known.settle(&unlocks, false), Settled::Answer(Status::SUCCESS));
        let mixed = [element(0, UNLOCK), element(8, SHARED)];
        assert_eq!(table(&held).settle(&mixed, false), Settled::Answer(Status::INVALID_PARAMETER));
    }
}
