//! The members of the etcd cluster: one is asked at a time, and the next one when it does not answer.
//!
//! etcd-client can spread requests over several endpoints by itself, but goes on giving a share of them to one that is down.
//! So there is a client for each member here.

use std::{
    error::Error as _,
    fmt,
    path::Path,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, KvClient, LeaseClient, MaintenanceClient,
    TlsOptions, WatchClient,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout_at},
};

use super::deadline;
use crate::{etcd_options::EtcdOptions, store::StoreError};

/// gRPC's status codes, as far as they matter.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// The first pause after all members have failed; the next are twice as long each.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const LONG_PAUSE: Duration = Duration::from_millis(300);

/// All of them.
pub(super) struct Members {
    options: EtcdOptions,
    connections: Vec<Connection>,
    /// Who is asked.
    current: AtomicUsize,
    /// Connections that were made so far.
    made: AtomicU64,
}

/// The place of a connection to one of them.
#[derive(Default)]
struct Connection {
    member: RwLock<Option<Member>>,
    /// One at a time makes it: to log in costs etcd more than all else.
    making: Mutex<()>,
}

/// A connection.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
    maintenance: MaintenanceClient,
    number: u64,
}

impl Connection {
    fn get(&self) -> Option<Member> {
        self.member.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives up a connection, but not a newer one.
    fn give_up(&self, number: u64) {
        let mut member = self.member.write().unwrap_or_else(PoisonError::into_inner);
        if member.as_ref().is_some_and(|member| member.number == number) {
            *member = None;
        }
    }
}

/// One request's patience: until when, and what has gone wrong so far.
#[derive(Debug)]
pub(super) struct Attempts {
    deadline: Instant,
    members: u32,
    failures: u32,
}

/// A request that was not answered, or not as we would wish.
#[derive(Debug)]
pub(super) struct Failure {
    /// For people: by whom, what, and what may help.
    pub(super) what: String,
    /// It may go better at another member, or later.
    pub(super) passes: bool,
    /// It is known that nothing was changed.
    pub(super) applied_nothing: bool,
    /// The revision that was asked for is gone.
    pub(super) compacted: bool,
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.what)
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Attempts {
    /// Waits for what others of this process do.
    pub(super) async fn bounded<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        timeout_at(self.deadline, work).await.map_err(|_| Failure {
            what: "etcd does not answer in time; has the cluster a quorum?".into(),
            passes: false,
            applied_nothing: true,
            compacted: false,
        })
    }

    /// Waits before the next attempt, or gives up.
    pub(super) async fn again(&mut self, mut failure: Failure) -> Result<(), Failure> {
        self.failures += 1;
        let pause = if self.failures.is_multiple_of(self.members) {
            let round = (self.failures / self.members - 1).min(8);
            (PAUSE * (1 << round)).min(LONG_PAUSE)
        } else {
            Duration::ZERO
        };
        let next = Instant::now() + pause;
        if next >= self.deadline {
            if self.members > 1 && self.failures >= self.members {
                failure.what = format!("none of {} members of etcd answers; {}", self.members, failure.what);
            }
            return Err(failure);
        }
        sleep_until(next).await;
        Ok(())
    }
}

impl Members {
    pub(super) fn new(options: EtcdOptions) -> Self {
        let connections = options.members.iter().map(|_| Connection::default()).collect();
        Self { options, connections, current: AtomicUsize::new(0), made: AtomicU64::new(0) }
    }

    /// The patience for a new request.
    pub(super) fn attempts(&self) -> Attempts {
        let members = u32::try_from(self.options.members.len()).unwrap_or(u32::MAX).max(1);
        Attempts { deadline: deadline(self.options.timeout), members, failures: 0 }
    }

    /// From now on the member is asked that leads the others, for what another one is asked it hands on to that. Those that do
    /// not answer are left alone.
    pub(super) async fn turn_to_leader(&self) {
        if self.connections.len() < 2 {
            return;
        }
        let current = self.current.load(Ordering::Relaxed);
        let mut found: Option<(u64, usize)> = None;
        // Most often the one that is asked leads already.
        for at in (0..self.connections.len()).map(|ahead| (current + ahead) % self.connections.len()) {
            let status = timeout_at(deadline(self.patience()), async {
                self.connection(at).await.ok()?.maintenance.status().await.ok()
            });
            let Ok(Some(status)) = status.await else { continue };
            let leads = status.header().is_some_and(|header| header.member_id() == status.leader());
            if leads && at == current {
                return;
            }
            // One that is cut off may not know yet that others have elected another.
            if leads && found.is_none_or(|(term, _)| term < status.raft_term()) {
                found = Some((status.raft_term(), at));
            }
        }
        if let Some((_, at)) = found {
            // Unless it has been turned away from meanwhile.
            let _ = self.current.compare_exchange(current, at, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Asks until there is an answer; for what may be done twice.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        attempts: &mut Attempts,
        request: impl Fn(Member) -> F,
    ) -> Result<T, Failure> {
        loop {
            match self.ask_once(attempts, &request).await {
                Err(failure) if failure.passes => attempts.again(failure).await?,
                result => return result,
            }
        }
    }

    /// Asks the current member; the next request goes to another one if it does not answer.
    pub(super) async fn ask_once<T, F: Future<Output = Result<T, Error>>>(
        &self,
        attempts: &Attempts,
        request: impl FnOnce(Member) -> F,
    ) -> Result<T, Failure> {
        let at = self.current.load(Ordering::Relaxed);
        let until = attempts.deadline.min(deadline(self.patience()));
        let mut number = None;
        let answer = timeout_at(until, async {
            let member = self.connection(at).await?;
            number = Some(member.number);
            request(member).await.map_err(|error| self.failure(at, &error))
        });
        let failure = match answer.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure,
            Err(_) => self.silent(at),
        };
        if failure.passes {
            if let (Some(connection), Some(number)) = (self.connections.get(at), number) {
                connection.give_up(number);
            }
            let next = (at + 1) % self.connections.len().max(1);
            // Others that failed at the same time have done it already.
            let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// How long one member is waited for: where there are others, not until it is too late to ask them.
    fn patience(&self) -> Duration {
        let timeout = self.options.timeout;
        if self.connections.len() > 1 { timeout / 8 } else { timeout }
    }

    fn name(&self, at: usize) -> &str {
        self.options.members.get(at).map_or("?", String::as_str)
    }

    async fn connection(&self, at: usize) -> Result<Member, Failure> {
        let refused = |what| Failure { what, passes: false, applied_nothing: true, compacted: false };
        let Some(connection) = self.connections.get(at) else { return Err(refused("no members".into())) };
        if let Some(member) = connection.get() {
            return Ok(member);
        }
        let _one = connection.making.lock().await;
        if let Some(member) = connection.get() {
            return Ok(member);
        }
        let options = self.connect_options().map_err(refused)?;
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        let client = Client::connect([format!("{scheme}://{}", self.name(at))], Some(options)).await;
        let client = client.map_err(|error| Failure { applied_nothing: true, ..self.failure(at, &error) })?;
        let member = Member {
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            watch: client.watch_client(),
            maintenance: client.maintenance_client(),
            number: self.made.fetch_add(1, Ordering::Relaxed),
        };
        *connection.member.write().unwrap_or_else(PoisonError::into_inner) = Some(member.clone());
        Ok(member)
    }

    fn connect_options(&self) -> Result<ConnectOptions, String> {
        let read = |what: &str, path: &Path| {
            std::fs::read(path).map_err(|error| format!("{what} {}: {error}", path.display()))
        };
        let mut options =
            ConnectOptions::new().with_connect_timeout(self.patience()).with_require_leader(true);
        if let Some(tls) = &self.options.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca", &tls.ca)?));
            if let Some((cert, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
            }
            options = options.with_tls(with);
        }
        if let Some((user, file)) = &self.options.user {
            let password = String::from_utf8_lossy(&read("password_file", file)?).into_owned();
            options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
        }
        Ok(options)
    }

    /// No answer in time.
    fn silent(&self, at: usize) -> Failure {
        let what = format!("etcd at {} does not answer in time; has the cluster a quorum?", self.name(at));
        Failure { what, passes: true, applied_nothing: false, compacted: false }
    }

    /// What an error means, and what may help.
    fn failure(&self, at: usize, error: &Error) -> Failure {
        let (code, said) = match error {
            Error::GRpcStatus(status) => {
                (status.code() as i32, chain(status.message().into(), status.source()))
            }
            // The connection could not even be tried: the address or a certificate is no good.
            Error::TransportError(error) => {
                (code::INVALID_ARGUMENT, chain(error.to_string(), error.source()))
            }
            other => (code::INVALID_ARGUMENT, other.to_string()),
        };
        // Tokens die with the member that gave them, and when users are changed.
        let renewed = code == code::UNAUTHENTICATED || said.contains("auth store is old");
        let busy = code == code::RESOURCE_EXHAUSTED && said.contains("too many requests");
        let definite = matches!(
            code,
            code::INVALID_ARGUMENT
                | code::PERMISSION_DENIED
                | code::RESOURCE_EXHAUSTED
                | code::FAILED_PRECONDITION
                | code::OUT_OF_RANGE
                | code::UNIMPLEMENTED
                | code::UNAUTHENTICATED
        );
        Failure {
            what: format!("etcd at {}: {said}{}", self.name(at), self.remedy(code, &said)),
            passes: !definite || renewed || busy,
            applied_nothing: definite,
            compacted: code == code::OUT_OF_RANGE && said.contains("compacted"),
        }
    }

    fn remedy(&self, code: i32, said: &str) -> String {
        match code {
            code::RESOURCE_EXHAUSTED if said.contains("space exceeded") => {
                "; its quota is used up: `etcdctl compact`, `etcdctl defrag`, then `etcdctl alarm disarm`, or raise \
                 --quota-backend-bytes"
                    .into()
            }
            code::PERMISSION_DENIED => {
                format!("; grant the user readwrite on the prefix {}", self.options.prefix)
            }
            code::FAILED_PRECONDITION if said.contains("not enabled") => {
                "; leave out user, or `etcdctl auth enable`".into()
            }
            code::INVALID_ARGUMENT if said.contains("invalid user ID or password") => {
                "; look at user and password_file".into()
            }
            code::INVALID_ARGUMENT if said.contains("user name is empty") => {
                "; it asks for user and password_file".into()
            }
            _ => String::new(),
        }
    }
}

/// What an error and its causes say, without what is said twice.
fn chain(mut text: String, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
        cause = error.source();
    }
    text
}
