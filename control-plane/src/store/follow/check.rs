//! One comparison of a follower's copy with the store's keys, beside a running watch.
//!
//! The store's keys are read at some revision R, while the copy moves on. So versions of the copy
//! are kept (they are cheap) from before the read until the watch has passed R, and the last one
//! that is not newer than R is compared. If the watch says nothing, that may be because nothing
//! happened or because an event was lost; after a grace time the copy is judged as it is.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::super::error::StoreError;
use super::super::types::Revision;
use super::entries::Entries;

/// How long the watch may take to deliver what the store has already.
const GRACE: Duration = Duration::from_secs(2);
/// More versions than this, and the check is given up: the store is too busy to compare.
const MAX_VERSIONS: usize = 4096;

/// The store's keys and mod revisions, at the revision they were read.
pub(super) type Keys = (Revision, Vec<(String, Revision)>);

pub(super) struct Check {
    versions: Vec<(Revision, Entries)>,
    phase: Phase,
}

enum Phase {
    Reading(BoxFuture<'static, Result<Keys, StoreError>>),
    Waiting { keys: Keys, until: Instant },
}

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The copy is right, up to this revision at least.
    Equal(Revision),
    /// It is wrong; this is the first key that differs.
    Differs(String),
    /// It could not be told.
    GivenUp(String),
}

impl Check {
    pub(super) fn start(
        read: BoxFuture<'static, Result<Keys, StoreError>>,
        revision: Revision,
        entries: &Entries,
    ) -> Self {
        Self {
            versions: vec![(revision, entries.clone())],
            phase: Phase::Reading(read),
        }
    }

    /// Notes that the copy moved on.
    pub(super) fn moved(&mut self, revision: Revision, entries: &Entries) {
        self.versions.push((revision, entries.clone()));
    }

    /// The verdict, as soon as the versions noted so far allow one. Cancel safe; must be called
    /// again after [`Check::moved`].
    pub(super) async fn verdict(&mut self) -> Verdict {
        loop {
            if self.versions.len() > MAX_VERSIONS {
                return Verdict::GivenUp("too many changes meanwhile".to_owned());
            }
            match &mut self.phase {
                Phase::Reading(read) => match read.await {
                    Ok(keys) => {
                        let until = Instant::now() + GRACE;
                        self.phase = Phase::Waiting { keys, until };
                    }
                    Err(error) => return Verdict::GivenUp(error.to_string()),
                },
                Phase::Waiting { keys, until } => {
                    let at = keys.0;
                    if self.versions.last().is_none_or(|(newest, _)| *newest < at) {
                        tokio::time::sleep_until(*until).await;
                    }
                    return judge(&self.versions, keys);
                }
            }
        }
    }
}

fn judge(versions: &[(Revision, Entries)], (at, keys): &Keys) -> Verdict {
    let comparable = versions.iter().rev().find(|(revision, _)| revision <= at);
    let Some((_, entries)) = comparable else {
        return Verdict::GivenUp("the store answered from before the check".to_owned());
    };
    match entries.first_difference(keys) {
        None => Verdict::Equal(*at),
        Some(key) => Verdict::Differs(key),
    }
}
