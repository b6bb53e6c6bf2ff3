//! One conformance suite for all stores, and what only some of them can be asked.
//!
//! - `suite` is what every store must do; it runs against memory, embedded and etcd, and partly
//!   against three members of etcd;
//! - `crash` kills the process that holds the data, `cluster` kills and stops members,
//!   `secured` is TLS and logins of etcd, `following` is the follower, mostly over faults in memory;
//! - `etcd_server` starts real etcd processes. Without etcd these tests fail, they do not skip.

// A test owns its tasks: it awaits them or ends with them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

mod cluster;
mod crash;
mod etcd_server;
mod following;
mod secured;
mod suite;
mod support;

macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod memory {
            use std::sync::Arc;
            use sg_control_plane::store::memory::MemoryStore;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::suite::$case(Arc::new(MemoryStore::new())).await;
                }
            )*
        }
        mod embedded {
            use std::sync::Arc;
            use sg_control_plane::store::embedded::EmbeddedStore;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let folder = tempfile::tempdir().unwrap();
                    let store = EmbeddedStore::open(&folder.path().join("store.db")).unwrap();
                    crate::suite::$case(Arc::new(store)).await;
                }
            )*
        }
        mod etcd {
            use crate::etcd_server::Cluster;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let cluster = Cluster::start(1).await;
                    crate::suite::$case(cluster.store()).await;
                }
            )*
        }
    };
}

conformance!(
    compare_and_swap,
    revisions_rise_by_one,
    conflicts_name_the_keys,
    a_prefix_is_empty_or_not,
    a_watch_is_ordered_and_whole,
    a_watch_starts_in_the_past_or_the_future,
    compaction_ends_old_watches_only,
    keys_expire,
    limits_are_the_same_everywhere,
    one_of_a_hundred_writers_wins,
    a_list_is_one_revision_over_many_pages,
    large_values_are_listed_and_replayed,
    keys_are_sorted_by_their_bytes,
    a_store_knows_itself,
);
