//! Judges the compares of a transaction for the stores that hold their own keys.
//!
//! etcd judges them itself; the conformance suite holds both to the same answers.

use super::types::{Compare, Revision};

/// What a store must answer about its present state for compares to be judged.
pub(super) trait Present {
    /// What reading can fail with.
    type Error;

    /// The mod revision of a key, [`Revision::NONE`] if it is absent.
    fn mod_revision(&self, key: &str) -> Result<Revision, Self::Error>;

    /// Whether any key starts with the prefix.
    fn any_under(&self, prefix: &str) -> Result<bool, Self::Error>;
}

/// Whether all compares hold.
pub(super) fn all_hold<P: Present>(present: &P, compares: &[Compare]) -> Result<bool, P::Error> {
    for compare in compares {
        let holds = match compare {
            Compare::ModRevision { key, revision } => present.mod_revision(key)? == *revision,
            Compare::Absent { key } => present.mod_revision(key)? == Revision::NONE,
            Compare::Present { key } => present.mod_revision(key)? != Revision::NONE,
            Compare::PrefixEmpty { prefix } => !present.any_under(prefix)?,
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}
