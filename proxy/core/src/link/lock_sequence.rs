//! LockSequences (MS-SMB2 2.2.26, 3.3.5.14): a LOCK or UNLOCK that repeats the last number of its index was done before. A node
//! says yes to it, and does nothing.
//!
//! | LOCK request with index and number | its answer | what is kept of the index |
//! |---|---|---|
//! | as kept | SUCCESS, of which the table of locks learns nothing | as it was |
//! | another number | SUCCESS | that number |
//! | another number | an error | nothing |
//!
//! A node that has an Open anew knows nothing of its LockSequences, and one that has kept it knows them. So in Bridge they are
//! looked after here: what is repeated the node does not get, and what was in flight goes to a node that has kept the Open
//! without its LockSequence, for what it may have done of that was undone.

use std::collections::BTreeMap;

use smb_parse::cmd::lock;

use super::{
    Link,
    open::{Durable, Open},
    request::Request,
};
use crate::{crypto::Dialect, ids::MessageId};

/// The largest index (MS-SMB2 2.2.26); 0 means that there is none.
const LAST_INDEX: u32 = 64;
/// `SMB2_GLOBAL_CAP_MULTI_CHANNEL` (MS-SMB2 2.2.4).
const MULTI_CHANNEL: u32 = 0x0000_0008;

/// Open.LockSequenceArray: the last number of each index.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "few Opens have any, and all would pay for it")]
pub(crate) struct LockSequences(Option<Box<BTreeMap<u32, u32>>>);

/// Index and number.
fn parts(sequence: u32) -> Option<(u32, u32)> {
    let (index, number) = (sequence >> 4, sequence & 0xf);
    (1..=LAST_INDEX).contains(&index).then_some((index, number))
}

impl LockSequences {
    fn repeats(&self, sequence: u32) -> bool {
        let Some(known) = &self.0 else { return false };
        parts(sequence).is_some_and(|(index, number)| known.get(&index) == Some(&number))
    }

    /// A request that repeats nothing was done, or refused.
    pub(super) fn answered(&mut self, sequence: u32, done: bool) {
        match parts(sequence) {
            Some((index, number)) if done => {
                self.0.get_or_insert_default().insert(index, number);
            }
            Some((index, _)) => {
                self.0.as_mut().map(|known| known.remove(&index));
            }
            None => {}
        }
    }
}

impl Link {
    /// Whether a LOCK repeats one that was done.
    pub(super) fn is_lock_repeated(&self, request: &Request) -> bool {
        let Ok(asked) = lock::Request::parse(&request.msg) else { return false };
        let open = self.opens.of(request).filter(|open| self.counts_locks(open));
        open.is_some_and(|open| open.lock_sequences.repeats(asked.lock_sequence))
    }

    /// Whether a server looks at the LockSequences of an Open.
    fn counts_locks(&self, open: &Open) -> bool {
        let several =
            self.conn.dialect >= Some(Dialect::SMB300) && self.conn.server_capabilities & MULTI_CHANNEL != 0;
        self.conn.dialect > Some(Dialect::SMB202) && (several || open.durable != Durable::No)
    }

    /// What is sent again to a node that may have done it is no repetition there.
    pub(super) fn forget_lock_sequence(&mut self, id: MessageId) {
        let Some(request) = self.requests.get(id).filter(|r| !r.compounded && self.is_genuine(r)) else {
            return;
        };
        let Ok(asked) = lock::Request::parse(&request.msg) else { return };
        let locks: Vec<_> = asked.locks().filter_map(Result::ok).collect();
        if asked.lock_sequence != 0 {
            let msg = smb_parse::encode::lock(&request.header, asked.file_id, 0, &locks);
            let raw = request.raw;
            self.requests.replace_msg(id, msg.into(), raw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_of_an_index_is_kept_if_it_was_done() {
        let mut known = LockSequences::default();
        assert!(!known.repeats(0x21));
        known.answered(0x21, true);
        assert!(known.repeats(0x21) && !known.repeats(0x22) && !known.repeats(0x31));
        known.answered(0x22, false);
        assert!(!known.repeats(0x21), "the number before was given up when another one came");
        for none in [0, 0x5, (LAST_INDEX + 1) << 4] {
            known.answered(none, true);
            assert!(!known.repeats(none), "{none:x} has no index");
        }
        known.answered(LAST_INDEX << 4, true);
        assert!(known.repeats(LAST_INDEX << 4));
    }
}
