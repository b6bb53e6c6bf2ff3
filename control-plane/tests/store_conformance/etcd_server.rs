//! Real etcd processes: free loopback ports, own data directories, ended with the test.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sg_control_plane::store::etcd::EtcdStore;
use sg_control_plane::store::{Store, StoreOptions};

use crate::support::eventually;

/// From start to the first answer, on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// A cluster of one or three members.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    /// Data and logs of the members; removed after them.
    _folder: tempfile::TempDir,
}

/// One member; its process may be down.
pub(crate) struct Member {
    name: String,
    pub(crate) client_port: u16,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` members without TLS and waits until they answer.
    pub(crate) async fn start(count: usize) -> Self {
        let cluster = Self::launch(count, "http", &[]);
        cluster.ready(&StoreOptions::default()).await;
        cluster
    }

    /// Starts `count` members with further arguments; the caller waits until they are ready.
    pub(crate) fn launch(count: usize, client_scheme: &str, more: &[String]) -> Self {
        sg_runtime::crypto::install();
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(count * 2);
        let (client, peer) = ports.split_at(count);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let initial: Vec<_> = (0..count)
            .map(|index| format!("m{index}={}", url(&peer[index])))
            .collect();
        let members = (0..count)
            .map(|index| {
                let client_url = format!("{client_scheme}://127.0.0.1:{}", client[index]);
                let data = folder.path().join(format!("m{index}"));
                let mut arguments: Vec<String> = [
                    ("--name", format!("m{index}")),
                    ("--data-dir", data.display().to_string()),
                    ("--listen-client-urls", client_url.clone()),
                    ("--advertise-client-urls", client_url),
                    ("--listen-peer-urls", url(&peer[index])),
                    ("--initial-advertise-peer-urls", url(&peer[index])),
                    ("--initial-cluster", initial.join(",")),
                    ("--logger", "zap".to_owned()),
                    ("--log-level", "warn".to_owned()),
                ]
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value])
                .collect();
                arguments.extend_from_slice(more);
                let mut member = Member {
                    name: format!("m{index}"),
                    client_port: client[index],
                    arguments,
                    log: folder.path().join(format!("m{index}.log")),
                    process: None,
                };
                member.start();
                member
            })
            .collect();
        Self {
            members,
            _folder: folder,
        }
    }

    /// Waits until every member answers.
    pub(crate) async fn ready(&self, options: &StoreOptions) {
        for member in &self.members {
            member.ready(options).await;
        }
    }

    /// `HOST:PORT` of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// A store over all members.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.store_with(&StoreOptions::default())
    }

    /// A store over all members under a prefix of its own.
    pub(crate) fn store_under(&self, prefix: &str) -> Arc<dyn Store> {
        let options = StoreOptions::default();
        Arc::new(EtcdStore::new(&self.endpoints(), prefix, &options).unwrap())
    }

    pub(crate) fn store_with(&self, options: &StoreOptions) -> Arc<dyn Store> {
        Arc::new(EtcdStore::new(&self.endpoints(), "test/prefix", options).unwrap())
    }

    /// The index of the member that leads.
    pub(crate) async fn leader(&self) -> usize {
        let endpoints = self.endpoints();
        eventually("a leader", READY, || async {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let connecting = etcd_client::Client::connect([endpoint], None);
                let Ok(mut client) = connecting.await else {
                    continue;
                };
                let status = tokio::time::timeout(Duration::from_secs(1), client.status()).await;
                if let Ok(Ok(status)) = status
                    && status.leader() != 0
                    && status
                        .header()
                        .is_some_and(|h| h.member_id() == status.leader())
                {
                    return Some(index);
                }
            }
            None
        })
        .await
    }
}

impl Member {
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Starts the process, on the data it has.
    pub(crate) fn start(&mut self) {
        let program = std::env::var("ETCD_BIN").unwrap_or_else(|_| "etcd".to_owned());
        let log = File::options()
            .append(true)
            .create(true)
            .open(&self.log)
            .unwrap();
        let started = Command::new(&program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(started.unwrap_or_else(|error| {
            panic!(
                "these tests need etcd, and {program:?} cannot be started ({error}): install it \
                 (Debian: apt-get install etcd-server) or set ETCD_BIN"
            )
        }));
    }

    /// Ends the process without warning.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the member runs");
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    pub(crate) async fn ready(&self, options: &StoreOptions) {
        let store = EtcdStore::new(&[self.endpoint()], "probe", options).unwrap();
        let deadline = tokio::time::Instant::now() + READY;
        loop {
            let Err(error) = store.health().await else {
                return;
            };
            assert!(
                tokio::time::Instant::now() < deadline,
                "etcd {} is not ready: {error}\n{}",
                self.name,
                std::fs::read_to_string(&self.log).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}
