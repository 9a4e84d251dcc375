//! What the two clients do to each other's files.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    held::{Held, LEASE, LEVEL_II, Purpose, SHARE_ALL, hex, open},
    party::{Clients, DIRTY, Party, Pending, QUIET},
};
use crate::client::guid;

impl Party {
    /// The first client still reads, and opens its leases once more: the node has them as it believes.
    pub(super) fn go_on(&mut self, clients: &mut Clients) -> Result<()> {
        let reads = self.begin_first(clients, |_| true, |held| read(&held.id, 4096, 4))?;
        self.finish_first(clients, "reads", reads)?;
        // What nobody else may write to, it may not open once more itself.
        let again = |held: &Held| held.is_lease() && held.purpose != Purpose::Shared;
        let again = self.begin_first(clients, again, Held::again)?;
        let mut closes = Vec::new();
        for (index, tag) in again {
            let said = clients.first.wait(tag)?;
            let held = self.at(index)?;
            held.opened_again(&said)?;
            let connection = held.first;
            let name = self.first.get(connection).context("no such connection")?;
            closes.push(clients.first.begin(name, json!({"do": "close", "file": said["file"]}))?);
        }
        for tag in closes {
            let said = clients.first.wait(tag)?;
            ensure!(said["status"] == 0, "closing the second Open: {said}");
        }
        self.rest(clients)
    }

    /// The second client wants to write to what the first one lets nobody write to.
    pub(super) fn begin_shared(&self, clients: &mut Clients) -> Result<Pending> {
        let which = |held: &Held| held.purpose == Purpose::Shared;
        self.begin_second(clients, which, |held| open(&held.name, SHARE_ALL, 0, None))
    }

    /// The second client opens what it may, and wants to cache reads.
    pub(super) fn begin_opened(&self, clients: &mut Clients) -> Result<Pending> {
        let which = |held: &Held| held.purpose == Purpose::Opened;
        self.begin_second(clients, which, |held| {
            let lease = held
                .is_lease()
                .then(|| json!({"version": 2, "key": hex(&guid()), "state": 3, "parent": null, "epoch": 1}));
            open(&held.name, SHARE_ALL, if lease.is_some() { LEASE } else { LEVEL_II }, lease.as_ref())
        })
    }

    /// It reads what it has opened: what the first client wrote back is there.
    pub(super) fn look(&mut self, clients: &mut Clients) -> Result<()> {
        let which = |held: &Held| held.purpose == Purpose::Opened;
        let reads = self.begin_second(clients, which, |held| {
            read(held.theirs.as_deref().unwrap_or_default(), 0, u32::try_from(DIRTY.len()).unwrap_or(0))
        })?;
        self.finish_second(clients, "second reads", reads)
    }

    /// It writes to it, and to what it has written the first client looks.
    pub(super) fn overwrite(&mut self, clients: &mut Clients, which: impl Fn(&Held) -> bool) -> Result<()> {
        let writes = self.begin_overwrite(clients, which)?;
        self.finish_second(clients, "second writes", writes)
    }

    /// It sends these WRITEs.
    pub(super) fn begin_overwrite(
        &self,
        clients: &mut Clients,
        which: impl Fn(&Held) -> bool,
    ) -> Result<Pending> {
        let may = |held: &Held| held.purpose == Purpose::Opened && which(held);
        self.begin_second(clients, may, |held| {
            write(held.theirs.as_deref().unwrap_or_default(), 512, b"theirs")
        })
    }

    /// Byte-range locks bite: the second client gets neither the range nor its bytes until it is unlocked.
    pub(super) fn contend_for_locks(&mut self, clients: &mut Clients) -> Result<()> {
        let which = |held: &Held| held.purpose == Purpose::Locked;
        let opens = self.begin_second(clients, which, |held| open(&held.name, SHARE_ALL, 0, None))?;
        self.finish_second(clients, "second opens", opens)?;
        let theirs = |held: &Held| held.theirs.clone().unwrap_or_default();
        for (what, offset) in [("second locks the range", 5), ("second locks beside it", 20)] {
            let locks = self.begin_second(clients, which, |held| lock(&theirs(held), offset))?;
            self.finish_second(clients, what, locks)?;
        }
        let reads = self.begin_second(clients, which, |held| read(&theirs(held), 0, 4))?;
        self.finish_second(clients, "second reads the range", reads)?;
        let unlocks = self.begin_first(clients, which, |held| unlock(&held.id, 0))?;
        self.finish_first(clients, "unlock", unlocks)?;
        let locks = self.begin_second(clients, which, |held| lock(&theirs(held), 5))?;
        self.finish_second(clients, "second locks the range", locks)
    }

    /// The first client reads what the second one wrote, and everything is closed.
    pub(super) fn part(&mut self, clients: &mut Clients) -> Result<()> {
        let which = |held: &Held| held.purpose == Purpose::Opened;
        let reads = self.begin_first(clients, which, |held| read(&held.id, 512, 6))?;
        self.finish_first(clients, "reads theirs", reads)?;
        let close = |id: &str| json!({"do": "close", "file": id});
        let closes = self.begin_first(clients, |_| true, |held| close(&held.id))?;
        self.finish_first(clients, "close", closes)?;
        let closes = self.begin_second(
            clients,
            |held| held.theirs.is_some(),
            |held| close(held.theirs.as_deref().unwrap_or_default()),
        )?;
        self.finish_second(clients, "second closes", closes)?;
        ensure!(!self.listen(clients, QUIET)?, "a break that does not come where nothing crashes");
        Ok(())
    }
}

/// A WRITE.
pub(super) fn write(file: &str, offset: u64, data: &[u8]) -> Value {
    json!({"do": "write", "file": file, "offset": offset, "data": hex(data)})
}

/// A READ.
pub(super) fn read(file: &str, offset: u64, length: u32) -> Value {
    json!({"do": "read", "file": file, "offset": offset, "length": length})
}

/// A LOCK of ten bytes, exclusive and at once (MS-SMB2 2.2.26.1).
pub(super) fn lock(file: &str, offset: u64) -> Value {
    json!({"do": "lock", "file": file, "offset": offset, "length": 10, "flags": 0x12})
}

fn unlock(file: &str, offset: u64) -> Value {
    json!({"do": "lock", "file": file, "offset": offset, "length": 10, "flags": 0x04})
}
