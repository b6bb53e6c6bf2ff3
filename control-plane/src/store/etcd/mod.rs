//! The store in an etcd cluster, for real deployments with one or several control planes.
//!
//! Written to the level of etcd 3.4. All keys lie under the prefix of the URL; expiry is by leases.
//!
//! - `pool` has one client per member and fails over between them;
//! - `translate` puts our words into etcd's, `error` its errors into ours;
//! - `resolve` finds out what became of a write whose answer was lost;
//! - `lease` shares leases, `watch` runs one watch, `version` knows bad releases.

mod error;
mod lease;
mod pool;
mod resolve;
mod translate;
mod version;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, CompactionOptions, ConnectOptions, GetOptions, GetResponse, Identity,
    TlsOptions, Txn as EtcdTxn, TxnResponse,
};
use sg_runtime::secret::Secret;

use self::error::Failure;
use self::lease::Leases;
use self::pool::{Limit, Pool, TOTAL};
use self::resolve::Trace;
use self::translate::Namespace;
use super::error::StoreError;
use super::open::StoreOptions;
use super::types::{Health, KeyValue, Revision, Txn, TxnOutcome, Write};
use super::watch::WatchStream;
use super::{Store, limits};

/// Keys per page of a list, at first; fewer if the answer gets too long.
const PAGE: i64 = 1000;
/// An answer with more than this is asked for in smaller pages.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// The longest answer to a transaction: a conflict that reads back as many keys as it may.
const MAX_TXN_ANSWER_BYTES: usize =
    limits::MAX_TXN_OPERATIONS * (limits::MAX_VALUE_BYTES + 4 * limits::MAX_KEY_BYTES);
/// How often a list starts over because its revision was compacted under it.
const LIST_RESTARTS: usize = 3;
/// Finding out what became of a write, after its own time is over.
const RESOLVE: Duration = Duration::from_secs(2);

/// A store in etcd.
pub struct EtcdStore {
    pool: Pool,
    namespace: Namespace,
    leases: Leases,
    description: String,
}

impl EtcdStore {
    /// Prepares the clients; nothing is sent before the first call.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if an option lacks its partner or a file cannot be read.
    pub fn new(
        endpoints: &[String],
        prefix: &str,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let (tls, connect) = connect_options(options)?;
        Ok(Self {
            pool: Pool::new(endpoints, tls, connect),
            namespace: Namespace::new(prefix),
            leases: Leases::default(),
            description: format!("etcd://{}/{prefix}", endpoints.join(",")),
        })
    }

    /// One page of a range, at `revision` if given.
    async fn page(
        &self,
        start: Vec<u8>,
        end: &[u8],
        revision: Option<Revision>,
        page: i64,
        keys_only: bool,
    ) -> Result<GetResponse, Failure> {
        let mut options = GetOptions::new().with_range(end).with_limit(page);
        if let Some(revision) = revision {
            options = options.with_revision(translate::raw(revision));
        }
        if keys_only {
            options = options.with_keys_only();
        }
        self.pool
            .read(Limit::Long, |_, client| {
                let (start, options) = (start.clone(), options.clone());
                let mut kv = client
                    .kv_client()
                    .max_decoding_message_size(MAX_ANSWER_BYTES);
                async move { kv.get(start, Some(options)).await }
            })
            .await
    }

    /// Everything under a prefix at one revision.
    async fn range(
        &self,
        prefix: &str,
        keys_only: bool,
    ) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        limits::check_prefix(prefix)?;
        let first = self.namespace.put_on(prefix);
        let end = translate::prefix_end(&first);
        let mut restarts = 0;
        loop {
            match self.range_once(first.as_bytes(), &end, keys_only).await {
                Err(StoreError::Compacted) if restarts < LIST_RESTARTS => restarts += 1,
                other => return other,
            }
        }
    }

    async fn range_once(
        &self,
        first: &[u8],
        end: &[u8],
        keys_only: bool,
    ) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        let mut start = first.to_vec();
        let mut revision = None;
        let mut page = PAGE;
        let mut found = Vec::new();
        loop {
            let response = match self
                .page(start.clone(), end, revision, page, keys_only)
                .await
            {
                Err(Failure::AnswerTooLong) if page > 1 => {
                    page = (page / 4).max(1);
                    continue;
                }
                other => other.map_err(answer)?,
            };
            let at = self.pool.note(response.header());
            let at = *revision.get_or_insert(at);
            let kvs = response.kvs();
            found.extend(kvs.iter().filter_map(|kv| self.namespace.entry(kv)));
            match kvs.last() {
                Some(last) if response.more() => {
                    start = last.key().to_vec();
                    // The smallest key after it.
                    start.push(0);
                }
                _ => return Ok((at, found)),
            }
        }
    }

    /// A lease for each different expiry in the transaction.
    async fn leases_for(&self, txn: &Txn) -> Result<HashMap<Duration, i64>, StoreError> {
        let mut counts: HashMap<Duration, usize> = HashMap::new();
        for write in &txn.writes {
            if let Write::Put { ttl: Some(ttl), .. } = write {
                *counts.entry(*ttl).or_default() += 1;
            }
        }
        let mut leases = HashMap::with_capacity(counts.len());
        for (ttl, keys) in counts {
            let id = self.leases.get(&self.pool, ttl, keys).await;
            leases.insert(ttl, id.map_err(answer)?);
        }
        Ok(leases)
    }

    /// Reads back the keys of a transaction whose answer was lost; see [`resolve`].
    async fn trace(&self, txn: &Txn, before: Revision) -> Trace {
        let keys = self.namespace.read_keys(txn.writes.iter().map(Write::key));
        let read = self.pool.read(Limit::Short, |_, client| {
            let keys = keys.clone();
            async move { send(client, keys).await }
        });
        match tokio::time::timeout(RESOLVE, read).await {
            Ok(Ok(response)) => {
                resolve::trace(&txn.writes, &self.namespace.answers(&response), before)
            }
            Ok(Err(_)) | Err(_) => Trace::Unclear,
        }
    }

    /// The end of a transaction that may have been applied by a lost attempt.
    async fn resolve(
        &self,
        txn: &Txn,
        before: Revision,
        conflict: Option<TxnOutcome>,
        lost: &str,
    ) -> Result<TxnOutcome, StoreError> {
        match (self.trace(txn, before).await, conflict) {
            (Trace::Committed(revision), _) => Ok(TxnOutcome::Committed(revision)),
            (Trace::NotCommitted, Some(conflict)) => Ok(conflict),
            (Trace::NotCommitted | Trace::Unclear, _) => {
                Err(StoreError::UnknownOutcome(lost.to_owned()))
            }
        }
    }
}

async fn send(client: Client, txn: EtcdTxn) -> Result<TxnResponse, etcd_client::Error> {
    client
        .kv_client()
        .max_decoding_message_size(MAX_TXN_ANSWER_BYTES)
        .txn(txn)
        .await
}

/// The error of a failure that no member can mend.
fn answer(failure: Failure) -> StoreError {
    match failure {
        Failure::Answer(error) => error,
        Failure::Elsewhere { message, .. } => StoreError::unavailable(message),
        Failure::AnswerTooLong => {
            StoreError::Internal("one entry is longer than an answer may be".to_owned())
        }
        Failure::LeaseGone => StoreError::Internal("a lease is gone".to_owned()),
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<(Revision, Option<KeyValue>), StoreError> {
        limits::check_key(key)?;
        let key = self.namespace.put_on(key);
        let response = self
            .pool
            .read(Limit::Short, |_, mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await
            .map_err(answer)?;
        let entry = response.kvs().first();
        Ok((
            self.pool.note(response.header()),
            entry.and_then(|kv| self.namespace.entry(kv)),
        ))
    }

    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        self.range(prefix, false).await
    }

    async fn keys(&self, prefix: &str) -> Result<(Revision, Vec<(String, Revision)>), StoreError> {
        let (revision, entries) = self.range(prefix, true).await?;
        let keys = entries
            .into_iter()
            .map(|entry| (entry.key, entry.mod_revision))
            .collect();
        Ok((revision, keys))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check_txn(&txn)?;
        let guarded = resolve::guarded(&txn);
        let before = self.pool.seen();
        let mut request = self.namespace.txn(&txn, &self.leases_for(&txn).await?);
        // Set once an attempt was lost that may have been applied.
        let mut lost: Option<String> = None;
        let mut tries = self.pool.tries(TOTAL);
        loop {
            let member = match (tries.next().await, &lost) {
                (Ok(member), _) => member,
                (Err(_), Some(lost)) => return self.resolve(&txn, before, None, lost).await,
                (Err(error), None) => return Err(error),
            };
            let attempt =
                self.pool
                    .attempt(member, tries.attempt_timeout(Limit::Short), |client| {
                        let request = request.clone();
                        async move { send(client, request).await }
                    });
            match attempt.await {
                Ok(response) => {
                    let revision = self.pool.note(response.header());
                    if response.succeeded() {
                        return Ok(TxnOutcome::Committed(revision));
                    }
                    let current = self.namespace.answers(&response);
                    let current = txn.read_on_conflict.iter().cloned().zip(current).collect();
                    let conflict = TxnOutcome::Conflict { revision, current };
                    return match lost {
                        None => Ok(conflict),
                        Some(lost) => self.resolve(&txn, before, Some(conflict), &lost).await,
                    };
                }
                Err(Failure::Elsewhere {
                    message,
                    maybe_applied,
                }) => {
                    if maybe_applied && !txn.writes.is_empty() {
                        if !guarded {
                            return self.resolve(&txn, before, None, &message).await;
                        }
                        lost = Some(message.clone());
                    }
                    tries.failed(member, message);
                }
                Err(Failure::LeaseGone) => {
                    self.leases.forget();
                    tries.failed(member, "a lease was gone".to_owned());
                    request = self.namespace.txn(&txn, &self.leases_for(&txn).await?);
                }
                Err(failure) => {
                    return Err(match lost {
                        Some(lost) => StoreError::UnknownOutcome(lost),
                        None => answer(failure),
                    });
                }
            }
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        limits::check_prefix(prefix)?;
        limits::check_revision(from)?;
        watch::open(&self.pool, &self.namespace, prefix, from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        limits::check_revision(revision)?;
        let raw = translate::raw(revision);
        // Compacting twice answers "compacted", which is what a lost first answer would mean.
        self.pool
            .read(Limit::Long, |_, mut client| async move {
                let physical = CompactionOptions::new().with_physical();
                client.compact(raw, Some(physical)).await
            })
            .await
            .map(drop)
            .map_err(answer)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        // Any key will do: the revision comes with the answer.
        let (revision, _) = self.get("revision").await?;
        Ok(revision)
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn health(&self) -> Result<Health, StoreError> {
        let revision = self.revision().await?;
        let (member, status) = self
            .pool
            .read(Limit::Short, |member, mut client| async move {
                Ok((member, client.status().await?))
            })
            .await
            .map_err(answer)?;
        if self.pool.first_version_check(member)
            && let Some(warning) = version::warning(status.version())
        {
            tracing::warn!(address = self.pool.address(member), "{warning}");
        }
        if let Some(alarm) = status.errors().iter().find(|e| e.contains("NOSPACE")) {
            // Reads and watches go on, so this is no reason to stop following; writes will fail.
            tracing::error!(
                "etcd is full ({alarm}); compact and defragment it, then disarm its alarm"
            );
        }
        Ok(Health {
            cluster_id: status.header().map_or(0, |header| header.cluster_id()),
            revision,
            detail: format!("etcd {} at {}", status.version(), self.pool.address(member)),
        })
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// Whether to use TLS, and the options without timings.
fn connect_options(options: &StoreOptions) -> Result<(bool, ConnectOptions), StoreError> {
    let mut connect = ConnectOptions::new();
    match (&options.etcd_user, &options.etcd_password_file) {
        (Some(user), Some(file)) => {
            let password = Secret::read(file)
                .map_err(|error| unreadable("--etcd-password-file", file, &error))?;
            connect = connect.with_user(user, password.expose());
        }
        (Some(_), None) => return Err(partner("--etcd-user", "--etcd-password-file")),
        (None, Some(_)) => return Err(partner("--etcd-password-file", "--etcd-user")),
        (None, None) => (),
    }
    let identity = match (&options.etcd_cert, &options.etcd_key) {
        (Some(cert), Some(key)) => Some(Identity::from_pem(
            read("--etcd-cert", cert)?,
            read("--etcd-key", key)?,
        )),
        (Some(_), None) => return Err(partner("--etcd-cert", "--etcd-key")),
        (None, Some(_)) => return Err(partner("--etcd-key", "--etcd-cert")),
        (None, None) => None,
    };
    let Some(ca) = &options.etcd_ca else {
        return match identity {
            Some(_) => Err(partner("--etcd-cert", "--etcd-ca")),
            None => Ok((false, connect)),
        };
    };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("--etcd-ca", ca)?));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Ok((true, connect.with_tls(tls)))
}

fn read(option: &str, file: &std::path::Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(file).map_err(|error| unreadable(option, file, &error))
}

fn unreadable(option: &str, file: &std::path::Path, error: &std::io::Error) -> StoreError {
    StoreError::Invalid(format!("cannot read {option} {}: {error}", file.display()))
}

fn partner(given: &str, missing: &str) -> StoreError {
    StoreError::Invalid(format!("{given} is given without {missing}; give both"))
}
