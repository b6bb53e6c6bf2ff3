//! Who may do what, what is written down of it, and what can be read out of the store: real processes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sg_runtime::sealed::KeyRing;
use sg_tests::{ClientSetup, Site, SiteSetup};

/// Whether any file under a folder holds these bytes.
fn found_under(folder: &Path, bytes: &[u8]) -> Result<bool> {
    for entry in std::fs::read_dir(folder).context("folder")? {
        let path = entry.context("folder")?.path();
        let found = if path.is_dir() {
            found_under(&path, bytes)?
        } else {
            let content = std::fs::read(&path).with_context(|| path.display().to_string())?;
            memchr::memmem::find(&content, bytes).is_some()
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Rows 28 and 29: nothing that opens anything is in etcd's files, which hold old revisions too.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_holds_no_secret_in_the_clear() -> Result<()> {
    let mut site = Site::with(SiteSetup {
        etcd: true,
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("plant").await?;
    let token_file = site.folder().join("ci.token");
    let out = token_file.display().to_string();
    let create = ["token", "create", "ci", "--role", "editor", "--token-out"];
    site.sgctl.run(&[&create[..], &[&out]].concat()).await?;
    let ci = std::fs::read_to_string(&token_file)?;
    let ci = site.secret_file("ci.token", ci.trim())?;
    site.sgctl_with(&ci)
        .run(&["acl", "allow", "plant", "localhost:1"])
        .await?;
    let rotated = site.folder().join("rotated.token").display().to_string();
    let rotate = ["gateway", "token", "rotate", "plant", "--token-out"];
    site.sgctl.run(&[&rotate[..], &[&rotated]].concat()).await?;
    let _client = site.prepare_client(&gateway, ClientSetup::default())?;

    let etcd = site.folder().join("etcd");
    // What must be there, so that the search is known to work.
    ensure!(found_under(&etcd, b"v1/obj/gateway/")?, "the files of etcd");
    let canaries = site.canaries()?;
    ensure!(canaries.len() > 5, "{} canaries", canaries.len());
    for canary in &canaries {
        ensure!(!found_under(&etcd, canary.as_bytes())?, "a secret in etcd");
        // The same as bytes, where it is hexadecimal.
        let digits = canary.rsplit('_').next().unwrap_or_default();
        if let Some(bytes) = sg_runtime::crypto::unhex(digits).filter(|bytes| bytes.len() >= 16) {
            ensure!(!found_under(&etcd, &bytes)?, "a secret in etcd, as bytes");
        }
    }
    KeyRing::load(&site.folder().join("control-plane-1/store.key"))?;
    for text in ["PRIVATE KEY", "sga_", "sgt_", "sgj_"] {
        ensure!(!found_under(&etcd, text.as_bytes())?, "{text} in etcd");
    }
    site.sgctl.run(&["audit", "verify"]).await?;
    site.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_do_what_their_role_allows_and_it_is_written_down() -> Result<()> {
    let mut site = Site::with(SiteSetup {
        nodes: 0,
        ..SiteSetup::default()
    })
    .await?;
    site.gateway("own").await?;
    site.gateway("foreign").await?;
    let mut tokens = Vec::new();
    for (name, more) in [
        ("viewer", vec!["--role", "viewer"]),
        ("editor", vec!["--role", "editor", "--gateway", "own"]),
    ] {
        let made = site
            .sgctl
            .json(&[&["token", "create", name][..], &more].concat())
            .await?;
        let secret = made["token"].as_str().context("token")?.to_owned();
        let file = site.secret_file(&format!("{name}.token"), &secret)?;
        tokens.push(site.sgctl_with(&file));
    }
    let [viewer, editor] = tokens.as_slice() else {
        panic!("two were made");
    };
    ensure!(
        viewer.json(&["gateway", "list"]).await?["gateways"]
            .as_array()
            .unwrap()
            .len()
            == 2
    );
    ensure!(viewer.call(&["gateway", "disable", "own"]).await?.code == 4);
    ensure!(viewer.call(&["token", "list"]).await?.code == 4);
    ensure!(
        editor.json(&["gateway", "list"]).await?["gateways"]
            .as_array()
            .unwrap()
            .len()
            == 1
    );
    editor.run(&["acl", "allow", "own", "db:5432"]).await?;
    ensure!(
        editor
            .call(&["acl", "allow", "foreign", "db:5432"])
            .await?
            .code
            == 3
    );
    ensure!(editor.call(&["gateway", "create", "third"]).await?.code == 4);
    editor
        .run(&["gateway", "update", "own", "--token-expiry", "cut"])
        .await?;

    let records = site
        .sgctl
        .json(&["audit", "list", "--gateway", "own"])
        .await?;
    let records = records["auditRecords"].as_array().context("records")?;
    let last = records.last().context("a record")?;
    ensure!(
        last["principal"] == "editor" && last["method"] == "Gateways.UpdateGateway",
        "{last}"
    );
    let fields = last["changes"][0]["fields"].as_array().context("fields")?;
    let field = fields
        .iter()
        .find(|f| f["name"] == "token_expiry")
        .context("the field")?;
    ensure!(
        field["before"] == "keep" && field["after"] == "cut",
        "{field}"
    );
    let verified = site.sgctl.json(&["audit", "verify"]).await?;
    ensure!(verified["intact"] == true, "{verified}");

    let refused = site.control_plane().lines()?;
    let refused = refused
        .iter()
        .filter(|line| line.field("target").as_deref() == Some("audit"));
    let reasons: Vec<_> = refused.filter_map(|line| line.field("reason")).collect();
    ensure!(
        reasons.iter().any(|reason| reason == "ROLE_NOT_SUFFICIENT"),
        "{reasons:?}"
    );
    ensure!(
        reasons.iter().any(|reason| reason == "NOT_FOUND"),
        "{reasons:?}"
    );
    site.sgctl.run(&["token", "delete", "editor"]).await?;
    ensure!(editor.call(&["gateway", "list"]).await?.code == 4);
    site.finish()
}
