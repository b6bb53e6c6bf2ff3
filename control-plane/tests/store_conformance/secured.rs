//! etcd behind TLS with client certificates, and etcd with users and passwords.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::Client;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sg_control_plane::store::etcd::EtcdStore;
use sg_control_plane::store::{StoreError, StoreOptions, StoreUrl, Txn, open};

use crate::etcd_server::Cluster;
use crate::following;
use crate::support::{SOON, commit};

/// PEM files of a CA, and of a server and a client that it signed.
struct Pki {
    folder: tempfile::TempDir,
}

impl Pki {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let save =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        save("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        for (name, host) in [("server", "127.0.0.1"), ("client", "control-plane")] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([host.to_owned()]).unwrap();
            save(
                &format!("{name}.pem"),
                params.signed_by(&key, &issuer).unwrap().pem(),
            );
            save(&format!("{name}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.path(name).display())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_asks_for_a_client_certificate() {
    let pki = Pki::make();
    let cluster = Cluster::launch(
        1,
        "https",
        &[
            pki.flag("--cert-file", "server.pem"),
            pki.flag("--key-file", "server.key"),
            pki.flag("--trusted-ca-file", "ca.pem"),
            "--client-cert-auth".to_owned(),
        ],
    );
    let right = StoreOptions {
        etcd_ca: Some(pki.path("ca.pem")),
        etcd_cert: Some(pki.path("client.pem")),
        etcd_key: Some(pki.path("client.key")),
        ..StoreOptions::default()
    };
    cluster.ready(&right).await;
    let store = cluster.store_with(&right);
    commit(&*store, Txn::new().when_absent("f/a").put("f/a", "1")).await;
    let (follower, _driver) = following::start(store);
    assert_eq!(following::content(&*follower.loaded().await), ["f/a=1"]);

    let without_certificate = StoreOptions {
        etcd_ca: Some(pki.path("ca.pem")),
        ..StoreOptions::default()
    };
    let other_ca = Pki::make();
    let wrong_ca = StoreOptions {
        etcd_ca: Some(other_ca.path("ca.pem")),
        ..right.clone()
    };
    for (options, hint) in [
        (without_certificate, "--etcd-cert"),
        (wrong_ca, "--etcd-ca"),
        (StoreOptions::default(), "--etcd-ca"),
    ] {
        let error = cluster.store_with(&options).get("f/a").await.unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_asks_for_a_user() {
    let cluster = Cluster::launch(1, "http", &["--auth-token-ttl=1".to_owned()]);
    cluster.ready(&StoreOptions::default()).await;
    let mut root = Client::connect(cluster.endpoints(), None).await.unwrap();
    root.user_add("root", "right-password", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let login = |password: &str| {
        let file = folder.path().join(password);
        std::fs::write(&file, format!("{password}\n")).unwrap();
        StoreOptions {
            etcd_user: Some("root".to_owned()),
            etcd_password_file: Some(file),
            ..StoreOptions::default()
        }
    };
    let store = cluster.store_with(&login("right-password"));
    commit(&*store, Txn::new().put("f/a", "1")).await;
    assert!(!store.describe().contains("password"));
    let (follower, _driver) = following::start(cluster.store_with(&login("right-password")));
    follower.loaded().await;

    for (options, hint) in [
        (login("wrong-password"), "authentication failed"),
        (StoreOptions::default(), "--etcd-user"),
    ] {
        let error = cluster.store_with(&options).get("f/a").await.unwrap_err();
        assert!(matches!(error, StoreError::Auth(_)), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }

    // Longer than a login lasts (asking whether it is over would prolong it): it is renewed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let at = commit(&*store, Txn::new().put("f/a", "2")).await;
    follower.reached(at, SOON).await.unwrap();
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("exists");
    std::fs::write(&file, "x").unwrap();
    let given = |path: &Path| Some(path.to_owned());
    let none = StoreOptions::default;
    let etcd: StoreUrl = "etcd://127.0.0.1:1".parse().unwrap();
    for (options, hint) in [
        (
            StoreOptions {
                etcd_user: Some("u".to_owned()),
                ..none()
            },
            "--etcd-password-file",
        ),
        (
            StoreOptions {
                etcd_password_file: given(&file),
                ..none()
            },
            "--etcd-user",
        ),
        (
            StoreOptions {
                etcd_cert: given(&file),
                ..none()
            },
            "--etcd-key",
        ),
        (
            StoreOptions {
                etcd_key: given(&file),
                ..none()
            },
            "--etcd-cert",
        ),
        (
            StoreOptions {
                etcd_cert: given(&file),
                etcd_key: given(&file),
                ..none()
            },
            "--etcd-ca",
        ),
        (
            StoreOptions {
                etcd_ca: given(Path::new("/nowhere")),
                ..none()
            },
            "/nowhere",
        ),
    ] {
        let error = EtcdStore::new(&["h:1".to_owned()], "p", &options).unwrap_err();
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
        let error = open(&etcd, &options).await.err().unwrap();
        assert!(error.to_string().contains(hint), "{error}");
    }
    let options = StoreOptions {
        etcd_ca: given(&file),
        ..none()
    };
    let error = open(&StoreUrl::Memory, &options).await.err().unwrap();
    assert!(error.to_string().contains("--etcd-ca"), "{error}");
    open(&StoreUrl::Memory, &none()).await.unwrap();
    open(&StoreUrl::Embedded(folder.path().join("s.db")), &none())
        .await
        .unwrap();
}
