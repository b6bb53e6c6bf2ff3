//! Row 42 of the threat table with real processes: the control plane is killed again and again while changes are made. What was
//! acknowledged is there, every change has its record and every record its change, and the chain holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::{PATIENCE, Sgctl, Site, SiteSetup, eventually, prepare};
use tokio::task::JoinSet;

const KILLS: usize = 6;
const WRITERS: usize = 3;

/// Makes gateways until it is told to stop; answers the names that were acknowledged.
async fn write(
    sgctl: Sgctl,
    writer: usize,
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<String>> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("g-{writer}-{number}");
        let answer = sgctl
            .call(&["gateway", "create", &name, "--no-token", "--timeout", "2s"])
            .await?;
        if answer.code == 0 {
            acknowledged.push(name);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(acknowledged)
}

async fn killed_under_writes(etcd: bool) -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        etcd,
        nodes: 0,
        ..SiteSetup::default()
    })
    .await?;
    let (done, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let owned = (site.sgctl.clone(), Arc::clone(&done), Arc::clone(&stop));
        writers.spawn(write(owned.0, writer, owned.1, owned.2));
    }
    for kill in 0..KILLS {
        // Some more were made since the last time; a different number each time, so that it is hit elsewhere.
        let goal = done.load(Ordering::Relaxed) + 2 + kill;
        eventually(PATIENCE, "changes are made", async || {
            let now = done.load(Ordering::Relaxed);
            ensure!(now >= goal, "{now}");
            Ok(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(7 * kill as u64)).await;
        site.control_plane().kill()?;
        site.control_plane().start().await?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeSet::new();
    while let Some(ended) = writers.join_next().await {
        acknowledged.extend(ended??);
    }

    let verified = site.sgctl.json(&["audit", "verify"]).await?;
    ensure!(verified["intact"] == true, "{verified}");
    let list = site.sgctl.json(&["gateway", "list"]).await?;
    let list = list["gateways"].as_array().context("gateways")?;
    let there: BTreeSet<(String, String)> = list
        .iter()
        .map(|gateway| {
            let text = |name: &str| gateway[name].as_str().unwrap_or_default().to_owned();
            (text("id"), text("name"))
        })
        .collect();
    let names: BTreeSet<String> = there.iter().map(|(_, name)| name.clone()).collect();
    ensure!(names.len() == there.len(), "a name twice");
    let lost: Vec<_> = acknowledged.difference(&names).collect();
    ensure!(lost.is_empty(), "acknowledged and not there: {lost:?}");

    let records = site
        .sgctl
        .json(&["audit", "list", "--limit", "10000"])
        .await?;
    let records = records["auditRecords"].as_array().context("records")?;
    let made: Vec<&str> = records
        .iter()
        .filter(|record| record["method"] == "Gateways.CreateGateway")
        .filter_map(|record| record["object"].as_str()?.strip_prefix("gateway/"))
        .collect();
    let of_records: BTreeSet<&str> = made.iter().copied().collect();
    ensure!(of_records.len() == made.len(), "two records for one change");
    let of_objects: BTreeSet<&str> = there.iter().map(|(id, _)| id.as_str()).collect();
    ensure!(of_records == of_objects, "changes and records differ");
    ensure!(there.len() > KILLS, "{} gateways", there.len());
    site.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_42_a_kill_under_writes_loses_neither_change_nor_record_embedded() -> Result<()> {
    killed_under_writes(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_42_a_kill_under_writes_loses_neither_change_nor_record_etcd() -> Result<()> {
    killed_under_writes(true).await
}
