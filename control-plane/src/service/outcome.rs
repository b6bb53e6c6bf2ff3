//! What became of a change: written, answered before, or in conflict with what is there.

use std::collections::HashMap;

use prost::Message as _;
use sg_proto::store as wire;
use sg_runtime::secret::Secret;

use crate::store::{KeyValue, Revision};

/// What became of a change.
#[derive(Debug)]
pub enum Outcome {
    /// It is written.
    Done(Revision),
    /// The same request was answered before.
    Replayed(Replay),
    /// Something was not as required; nothing was written.
    Conflict(Conflict),
}

/// The first answer to a repeated request.
#[derive(Debug)]
pub struct Replay {
    /// Id of what the request made or changed.
    pub id: String,
    /// The secret in the answer, if there was one.
    pub secret: Option<Secret<String>>,
}

/// The required keys as they really were.
#[derive(Debug)]
pub struct Conflict {
    pub(super) current: HashMap<String, Option<KeyValue>>,
}

impl Conflict {
    /// Who holds an index key that was required to be absent.
    pub fn holder(&self, key: &str) -> Option<wire::Reference> {
        let entry = self.entry(key)?;
        Some(wire::Reference::decode(entry.value.as_ref()).unwrap_or_default())
    }

    /// The key as it was; `None` if it was absent or not asked about.
    pub fn entry(&self, key: &str) -> Option<&KeyValue> {
        self.current.get(key)?.as_ref()
    }
}
