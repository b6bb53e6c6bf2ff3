//! The last good configuration on disk, so that a node that starts without a control plane serves all the
//! same. Sealed under a key of this node; a file that does not open is set aside, never served.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::{NodeConfig, NodeId};
use sg_proto::convert::node::{object_from_wire, object_to_wire};
use sg_proto::node::Snapshot;
use sg_runtime::files;
use sg_runtime::sealed::{self, Key, KeyError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::metrics::NodeMetrics;

/// Binds the sealed bytes to what they are.
const PLACE: &str = "secure-gateway/node/last-good/1/";

/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// After a write, so many times as long as it took nothing is written.
const REST: u32 = 9;
/// But not longer than this: what changes meanwhile is not there after a crash without a control plane.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The file and its key.
#[derive(Debug, Clone)]
pub(crate) struct StateFile {
    path: PathBuf,
    place: Arc<str>,
    key: Key,
}

/// Why there is no configuration to load.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// It was damaged, or written under another key.
    #[error(transparent)]
    Sealed(#[from] sealed::OpenError),
    /// It opens, but is not what this version writes.
    #[error("it is of another version")]
    Content,
}

impl StateFile {
    /// The file of node `id` in `data_dir`; makes the key on the first start.
    pub(crate) fn open(data_dir: &Path, id: &NodeId) -> Result<Self, KeyError> {
        Ok(Self {
            path: data_dir.join("last-good.sealed"),
            place: format!("{PLACE}{id}").into(),
            key: Key::load_or_create(&data_dir.join("state.key"))?,
        })
    }

    /// Loads the configuration, if there is one. A file that cannot be used is renamed, for whoever wants to
    /// look at it.
    pub(crate) fn load(&self) -> Option<NodeConfig> {
        match self.read() {
            Ok(config) => config,
            Err(error @ LoadError::Read(_)) => {
                tracing::error!(path = %self.path.display(), error = %sg_runtime::telemetry::chain(&error), "the last good configuration cannot be read now");
                None
            }
            Err(error) => {
                let aside = self.path.with_extension("unusable");
                tracing::error!(path = %self.path.display(), aside = %aside.display(), error = %sg_runtime::telemetry::chain(&error), "the last good configuration cannot be used");
                if let Err(error) = std::fs::rename(&self.path, &aside) {
                    tracing::warn!(%error, "and cannot be set aside");
                }
                None
            }
        }
    }

    fn read(&self) -> Result<Option<NodeConfig>, LoadError> {
        let sealed = match std::fs::read(&self.path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LoadError::Read(error)),
        };
        let opened = sealed::open(&self.key, self.place.as_bytes(), &sealed)?;
        let snapshot =
            Snapshot::decode(opened.expose().as_slice()).map_err(|_| LoadError::Content)?;
        let objects = snapshot
            .objects
            .iter()
            .map(object_from_wire)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| LoadError::Content)?;
        let config = NodeConfig::complete(snapshot.epoch, snapshot.revision, objects);
        if config.digest() == snapshot.digest {
            Ok(Some(config))
        } else {
            Err(LoadError::Content)
        }
    }

    /// Replaces the file. A crash leaves the old one or the new one.
    pub(crate) fn save(&self, config: &NodeConfig) -> io::Result<()> {
        let snapshot = Snapshot {
            nonce: 0,
            epoch: config.epoch(),
            revision: config.revision(),
            part: 0,
            parts: 1,
            objects: config
                .objects()
                .map(|(revision, object)| object_to_wire(revision, object))
                .collect(),
            digest: config.digest(),
        };
        let sealed = sealed::seal(&self.key, self.place.as_bytes(), &snapshot.encode_to_vec());
        files::write_atomic(&self.path, &sealed, files::PRIVATE)
    }
}

/// Keeps the file as the configuration that is served, until `end` is cancelled. The disk may be slow or full:
/// the node serves all the same. Changes that follow each other fast share a write, so that writing a large
/// configuration takes no more than a part of a processor; the last one is always written.
pub(crate) async fn keep(
    file: StateFile,
    mut served: watch::Receiver<Arc<NodeConfig>>,
    metrics: NodeMetrics,
    end: CancellationToken,
) {
    let mut kept = None;
    let mut rest = Duration::ZERO;
    let version_of = |config: &NodeConfig| (config.epoch(), config.revision());
    loop {
        let config = Arc::clone(&served.borrow_and_update());
        let version = version_of(&config);
        let mut failed = false;
        if config.revision() > 0 && kept != Some(version) {
            let file = file.clone();
            let begun = Instant::now();
            let save = tokio::task::spawn_blocking(move || file.save(&config));
            let saved = save.await;
            rest = (begun.elapsed() * REST).min(LONGEST_REST);
            match saved {
                Ok(Ok(())) => kept = Some(version),
                Ok(Err(error)) => {
                    failed = true;
                    metrics.state_failures.inc();
                    tracing::error!(%error, revision = version.1, "the configuration cannot be kept on disk");
                }
                Err(_) => return,
            }
        }
        // Every arm can be cancelled without loss; whatever came last is written before the end.
        let rest = sleep(std::mem::take(&mut rest));
        let changed = async {
            rest.await;
            served.changed().await
        };
        tokio::select! {
            changed = changed => if changed.is_err() { return },
            () = sleep(RETRY), if failed => {}
            () = end.cancelled() => {
                let newest = version_of(&served.borrow());
                if newest.1 == 0 || kept == Some(newest) || (failed && newest == version) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::{acl, config, destination, gateway};

    fn node(id: &str) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn some() -> NodeConfig {
        let objects = [
            gateway("g1", true),
            destination("d1", "g1", 15000),
            acl("g1", 1, []),
        ];
        config(7, objects)
    }

    #[tokio::test]
    async fn the_last_of_many_changes_is_written_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path(), &node("n1")).unwrap();
        let (served, seen) = watch::channel(Arc::new(some()));
        let end = CancellationToken::new();
        let metrics = NodeMetrics::register(&sg_runtime::metrics::Metrics::new("test", "0"));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(keep(file.clone(), seen, metrics, end.clone()));
        for revision in 8..40 {
            served.send_replace(Arc::new(config(revision, [gateway("g1", true)])));
            tokio::task::yield_now().await;
        }
        end.cancel();
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(file.load().map(|config| config.revision()), Some(39));
    }

    #[test]
    fn what_was_saved_is_loaded_and_the_file_hides_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path(), &node("n1")).unwrap();
        assert_eq!(file.load(), None);
        file.save(&some()).unwrap();
        let again = StateFile::open(dir.path(), &node("n1")).unwrap();
        assert_eq!(again.load(), Some(some()));
        let bytes = std::fs::read(&file.path).unwrap();
        assert!(!bytes.windows(10).any(|w| w == b"gateway-g1"));
        assert!(!files::readable_by_others(&file.path).unwrap());
    }

    /// Row 30: whatever byte is changed, and wherever the file is cut, nothing of it is served, and it is kept for
    /// whoever looks into it.
    #[test]
    fn threat_30_a_file_with_any_byte_changed_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path(), &node("n1")).unwrap();
        let destinations = (0..10_u16).map(|n| destination(&format!("d{n}"), "g1", 15000 + n));
        let all = [gateway("g1", true), acl("g1", 1, [])];
        file.save(&config(7, all.into_iter().chain(destinations)))
            .unwrap();
        let good = std::fs::read(&file.path).unwrap();
        assert!(file.load().is_some());
        // Positions spread over the whole file, every one of a short one.
        let step = (good.len() / 1000).max(1);
        let mut tried = 0;
        for at in (0..good.len()).step_by(step) {
            for bit in [0x01, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                std::fs::write(&file.path, &bad).unwrap();
                assert_eq!(file.load(), None, "byte {at}");
                assert!(!file.path.exists(), "it is set aside");
                tried += 1;
            }
        }
        assert!(tried >= 1000 || good.len() * 2 == tried, "{tried}");
        for length in [0, 1, 12, 13, 29, good.len() / 2, good.len() - 1] {
            std::fs::write(&file.path, &good[..length]).unwrap();
            assert_eq!(file.load(), None, "cut at {length}");
        }
        // It is bound to its node and its key.
        std::fs::write(&file.path, &good).unwrap();
        let other = StateFile::open(dir.path(), &node("n2")).unwrap();
        assert_eq!(other.load(), None);
        std::fs::write(&file.path, &good).unwrap();
        let key = sg_runtime::crypto::hex(&[9; 32]);
        std::fs::write(dir.path().join("state.key"), key).unwrap();
        assert_eq!(
            StateFile::open(dir.path(), &node("n1")).unwrap().load(),
            None
        );
    }

    #[test]
    fn a_damaged_file_or_that_of_another_node_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path(), &node("n1")).unwrap();
        file.save(&some()).unwrap();
        let other = StateFile::open(dir.path(), &node("n2")).unwrap();
        assert_eq!(other.load(), None);
        assert!(!file.path.exists());

        file.save(&some()).unwrap();
        let mut bytes = std::fs::read(&file.path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file.path, bytes).unwrap();
        assert_eq!(file.load(), None);
        assert!(file.path.with_extension("unusable").exists());
        file.save(&some()).unwrap();
        assert_eq!(file.load(), Some(some()));
    }
}
