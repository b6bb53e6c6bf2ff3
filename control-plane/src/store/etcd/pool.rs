//! The members of the cluster, one client each, and the failing over between them.
//!
//! Never several endpoints in one client: the library's balancer keeps choosing dead ones. Every
//! attempt is short, because a request given to a follower while the leader is dead is lost inside
//! and ends only with the caller's patience.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, ResponseHeader};
use sg_runtime::backoff::Backoff;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::super::error::StoreError;
use super::super::types::Revision;
use super::error::{Failure, judge};

/// One attempt at one member: the first, and the longest.
const FIRST_ATTEMPT: Duration = Duration::from_millis(500);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(1);
/// All attempts of one call together.
pub(super) const TOTAL: Duration = Duration::from_secs(5);
/// Connecting to a member, a TLS handshake or a login included.
const CONNECT: Duration = Duration::from_secs(1);
/// HTTP/2 pings, also while nothing is asked: what notices a member that was stopped or cut off.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Waits between rounds over the members.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);

/// One member.
struct Member {
    /// `HOST:PORT`, for people.
    address: String,
    url: String,
    client: OnceCell<Client>,
    version_checked: AtomicBool,
}

/// All members; see the module.
pub(super) struct Pool {
    members: Vec<Member>,
    /// The member that answered last, and is asked first.
    preferred: AtomicUsize,
    options: ConnectOptions,
    tls: bool,
    /// The newest revision that any answer carried.
    seen: AtomicU64,
}

impl Pool {
    /// `options` without timings, which are this module's.
    pub(super) fn new(endpoints: &[String], tls: bool, options: ConnectOptions) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let members = endpoints
            .iter()
            .map(|address| Member {
                address: address.clone(),
                url: format!("{scheme}://{address}"),
                client: OnceCell::new(),
                version_checked: AtomicBool::new(false),
            })
            .collect();
        Self {
            members,
            preferred: AtomicUsize::new(0),
            options: options
                .with_connect_timeout(CONNECT)
                .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
                .with_keep_alive_while_idle(true)
                .with_require_leader(true)
                .with_auto_token_refresh(true),
            tls,
            seen: AtomicU64::new(0),
        }
    }

    /// The newest revision seen so far: what is written from now on gets a greater one.
    pub(super) fn seen(&self) -> Revision {
        Revision::new(self.seen.load(Ordering::Acquire))
    }

    /// Notes the revision of an answer, and returns it.
    pub(super) fn note(&self, header: Option<&ResponseHeader>) -> Revision {
        let raw = header.map_or(0, |header| u64::try_from(header.revision()).unwrap_or(0));
        self.seen.fetch_max(raw, Ordering::AcqRel);
        Revision::new(raw)
    }

    pub(super) fn address(&self, member: usize) -> &str {
        self.members.get(member).map_or("?", |m| &m.address)
    }

    /// True the first time it is asked for this member.
    pub(super) fn first_version_check(&self, member: usize) -> bool {
        self.members
            .get(member)
            .is_some_and(|m| !m.version_checked.swap(true, Ordering::Relaxed))
    }

    /// Starts the attempts of one call, which together take at most `total`.
    pub(super) fn tries(&self, total: Duration) -> Tries<'_> {
        Tries {
            pool: self,
            first: self.preferred.load(Ordering::Relaxed),
            count: 0,
            deadline: Instant::now() + total,
            backoff: Backoff::new(BACKOFF, BACKOFF_LONGEST),
            last_message: None,
        }
    }

    /// Runs something that may be run twice, on one member after the other.
    pub(super) async fn read<T, F, Fut>(&self, limit: Limit, run: F) -> Result<T, Failure>
    where
        F: Fn(usize, Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut tries = self.tries(TOTAL);
        loop {
            let member = tries.next().await.map_err(Failure::Answer)?;
            let result = self
                .attempt(member, tries.attempt_timeout(limit), |client| {
                    run(member, client)
                })
                .await;
            match result {
                Err(Failure::Elsewhere { message, .. }) => tries.failed(member, message),
                other => return other,
            }
        }
    }

    /// One attempt at one member.
    pub(super) async fn attempt<T, F, Fut>(
        &self,
        member: usize,
        limit: Duration,
        run: F,
    ) -> Result<T, Failure>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let client = self.client(member).await?;
        let answer = timeout(limit, run(client))
            .await
            .map_err(|_| Failure::timed_out(limit))?;
        let answer = answer.map_err(|error| judge(&error));
        if !matches!(answer, Err(Failure::Elsewhere { .. })) {
            self.preferred.store(member, Ordering::Relaxed);
        }
        answer
    }

    /// The member's client; nothing is sent but a login, if there is a user.
    async fn client(&self, member: usize) -> Result<Client, Failure> {
        let not_connected = |message: String| Failure::Elsewhere {
            message,
            maybe_applied: false,
        };
        let Some(member) = self.members.get(member) else {
            return Err(not_connected("no such member".to_owned()));
        };
        let connect = member.client.get_or_try_init(|| async {
            let connecting = Client::connect([&member.url], Some(self.options.clone()));
            match timeout(CONNECT, connecting).await {
                Ok(Ok(client)) => Ok(client),
                Ok(Err(error)) => Err(match judge(&error) {
                    Failure::Elsewhere { message, .. } => not_connected(message),
                    other => other,
                }),
                Err(_) => Err(not_connected(format!("no login within {CONNECT:?}"))),
            }
        });
        connect.await.cloned()
    }
}

/// How patient one attempt is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// A request that is answered at once.
    Short,
    /// One whose answer may be megabytes.
    Long,
}

/// The attempts of one call: which member, when, and when no more.
pub(super) struct Tries<'a> {
    pool: &'a Pool,
    first: usize,
    count: usize,
    deadline: Instant,
    backoff: Backoff,
    last_message: Option<String>,
}

impl Tries<'_> {
    /// The next member to try: at once in the first round, then after a jittered wait.
    ///
    /// # Errors
    /// Retryable unavailability, once the time is over.
    pub(super) async fn next(&mut self) -> Result<usize, StoreError> {
        let members = self.pool.members.len();
        if self.count >= members {
            sleep(self.backoff.next_delay().min(self.left())).await;
        }
        if self.left().is_zero() {
            return Err(self.exhausted());
        }
        let member = (self.first + self.count) % members.max(1);
        self.count += 1;
        Ok(member)
    }

    /// How long the present attempt may take.
    pub(super) fn attempt_timeout(&self, limit: Limit) -> Duration {
        let round = self.count.saturating_sub(1) / self.pool.members.len().max(1);
        let grown = FIRST_ATTEMPT.saturating_mul(u32::try_from(round + 1).unwrap_or(u32::MAX));
        let attempt = match limit {
            Limit::Short => grown.min(LONGEST_ATTEMPT),
            Limit::Long => TOTAL,
        };
        attempt.min(self.left())
    }

    /// Notes why an attempt failed.
    pub(super) fn failed(&mut self, member: usize, message: String) {
        let address = self.pool.address(member);
        tracing::debug!(address, message, "etcd did not answer");
        if self.left().is_zero() && self.last_message.is_some() {
            // Cut short by the end of all attempts: those before it say more.
            return;
        }
        self.last_message = Some(format!("{address}: {message}"));
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn exhausted(&self) -> StoreError {
        let last = self.last_message.as_deref().unwrap_or("nothing was tried");
        let hint = self.hint(last);
        StoreError::unavailable(format!(
            "etcd gave no answer in {} attempts; the last at {last}{hint}",
            self.count
        ))
    }

    /// What a broken connection may come from. A refused client certificate shows in many ways,
    /// none of which says so.
    fn hint(&self, message: &str) -> &'static str {
        let explains_itself = [
            "etcdserver:",
            "tcp connect error",
            "no answer within",
            "deadline",
        ];
        if explains_itself.iter().any(|text| message.contains(text)) {
            ""
        } else if message.contains("peer certificate") {
            " (check --etcd-ca, and that the member's certificate has this host)"
        } else if self.pool.tls {
            " (if etcd asks for a client certificate, give --etcd-cert and --etcd-key; its CA is \
             --etcd-ca)"
        } else {
            " (if etcd speaks TLS, give --etcd-ca)"
        }
    }
}
