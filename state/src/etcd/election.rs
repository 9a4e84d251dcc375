//! Elections by etcd: the record is put if it is absent, and hangs on a lease.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Error, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use tokio::time::timeout;

use super::{
    Etcd,
    member::{Attempts, Failure, Member},
};
use crate::{
    election::{Candidate, Election, Elections, LeaderRecord, Term},
    store::{Batch, BoxFuture, Change, Key, Store as _, StoreError},
};

/// gRPC's status code.
const NOT_FOUND: i32 = 5;
/// How long a change is listened for before the record is read again: a member that hangs says nothing.
const LISTEN: Duration = Duration::from_secs(1);

impl Etcd {
    /// The record's key in etcd.
    fn leader_key(&self) -> String {
        self.key(LeaderRecord::KEY)
    }

    /// The record, and etcd's revision when it was read.
    async fn read_leader(&self) -> Result<(Option<Vec<u8>>, i64), Failure> {
        let key = self.leader_key();
        let ask = |mut member: Member| {
            let key = key.clone();
            async move { member.kv.get(key, None).await }
        };
        let mut found = self.members.ask(&mut self.members.attempts(), ask).await?;
        let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok((found.take_kvs().pop().map(|pair| pair.into_key_value().1), revision))
    }

    async fn stand(
        &self,
        candidate: &Candidate,
        lease: i64,
        attempts: &mut Attempts,
    ) -> Result<Election, StoreError> {
        let term = Term::new(candidate.record(lease), false)?;
        let absent = Compare::version(self.leader_key(), CompareOp::Equal, 0);
        let Some(found) = self.put_leader(absent, &term, attempts).await? else {
            return Ok(Election::Won(term));
        };
        let leader = read(&found)?;
        if !leader.released {
            return Ok(Election::Lost(leader));
        }
        let unchanged = Compare::value(self.leader_key(), CompareOp::Equal, found);
        let Some(found) = self.put_leader(unchanged, &term, attempts).await? else {
            return Ok(Election::Won(Term { handed_over: true, ..term }));
        };
        Ok(Election::Lost(read(&found)?))
    }

    /// Puts the record on a condition. What is there instead, if that did not hold.
    async fn put_leader(
        &self,
        condition: Compare,
        term: &Term,
        attempts: &mut Attempts,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let (key, value) = (self.leader_key(), &term.guard.value);
        let put = PutOptions::new().with_lease(term.record.lease);
        let txn = Txn::new()
            .when(vec![condition])
            .and_then(vec![TxnOp::put(key.clone(), value.as_slice(), Some(put))])
            .or_else(vec![TxnOp::get(key, None)]);
        let ask = |mut member: Member| {
            let txn = txn.clone();
            async move { member.kv.txn(txn).await }
        };
        let answer = self.members.ask(attempts, ask).await?;
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop().map(|pair| pair.into_key_value().1),
            _ => None,
        });
        // What an attempt has put whose answer was not seen is ours, too.
        Ok(found.filter(|found| !answer.succeeded() && found != value))
    }

    async fn revoke(&self, lease: i64) -> Result<(), Failure> {
        let ask = |mut member: Member| async move {
            match member.lease.revoke(lease).await {
                Err(Error::GRpcStatus(status)) if status.code() as i32 == NOT_FOUND => Ok(()),
                result => result.map(|_| ()),
            }
        };
        self.members.ask(&mut self.members.attempts(), ask).await
    }

    async fn renew(&self, lease: i64) -> Result<bool, Failure> {
        let ask = |mut member: Member| async move {
            match member.lease.keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(what)) if what == "lease not found" => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.members.ask(&mut self.members.attempts(), ask).await
    }

    /// Something happened to the record, or a while is over.
    async fn listen(&self, after: i64) -> Result<(), Failure> {
        let key = self.leader_key();
        let ask = |mut member: Member| {
            let key = key.clone();
            async move {
                let options = WatchOptions::new().with_start_revision(after + 1);
                member.watch.watch(key, Some(options)).await
            }
        };
        let mut stream = self.members.ask(&mut self.members.attempts(), ask).await?;
        let happens = async {
            // The first message says that etcd listens. If there is no other the record is read again, which says why.
            while let Ok(Some(message)) = stream.message().await {
                if !message.events().is_empty() {
                    return;
                }
            }
        };
        let _ = timeout(LISTEN, happens).await;
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Result<LeaderRecord, StoreError> {
    LeaderRecord::from_bytes(bytes)
        .map_err(|error| StoreError::Failed(format!("the record {}: {error}", LeaderRecord::KEY)))
}

impl Elections for Etcd {
    fn campaign(&self, candidate: Candidate, ttl: Duration) -> BoxFuture<'_, Result<Election, StoreError>> {
        Box::pin(async move {
            let mut attempts = self.members.attempts();
            let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
            let ask = |mut member: Member| async move { member.lease.grant(seconds, None).await };
            let lease = self.members.ask(&mut attempts, ask).await?.id();
            let result = self.stand(&candidate, lease, &mut attempts).await;
            if !matches!(result, Ok(Election::Won(_))) {
                // What was given up may still be done; without its lease it cannot. If this fails the lease ends by itself.
                let _ = self.revoke(lease).await;
            }
            result
        })
    }

    fn confirm<'a>(&'a self, term: &'a Term) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            if !self.renew(term.record.lease).await? {
                return Ok(false);
            }
            // A member that is cut off may go on renewing leases for a while. What it reads, a majority has agreed to.
            let (found, _) = self.read_leader().await?;
            Ok(found.as_ref() == Some(&term.guard.value))
        })
    }

    fn release<'a>(&'a self, term: &'a Term) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let released = LeaderRecord { released: true, ..term.record.clone() };
            let change = Change::Put(Key::from(LeaderRecord::KEY), released.to_bytes()?);
            self.commit(Batch::new(vec![change]).guarded(term.guard.clone())).await?;
            // Nothing hangs on it any more.
            let _ = self.revoke(term.record.lease).await;
            Ok(())
        })
    }

    fn depose(&self, lease: i64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.revoke(lease).await?) })
    }

    fn leader(&self) -> BoxFuture<'_, Result<Option<LeaderRecord>, StoreError>> {
        Box::pin(async move { self.read_leader().await?.0.as_deref().map(read).transpose() })
    }

    fn changed(&self, seen: Option<LeaderRecord>) -> BoxFuture<'_, Result<Option<LeaderRecord>, StoreError>> {
        Box::pin(async move {
            loop {
                let (found, revision) = self.read_leader().await?;
                let found = found.as_deref().map(read).transpose()?;
                if found != seen {
                    return Ok(found);
                }
                self.listen(revision).await?;
            }
        })
    }
}
