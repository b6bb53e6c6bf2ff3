//! Waiting costs nothing: neither idle streams nor half-closed nor blocked ones keep a processor busy.
//! Alone in its process, because it measures the process.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod rig;

use std::time::Duration;

use rig::{Rig, fill, read_all};
use tokio::io::AsyncWriteExt as _;

/// User and system time of this process so far, in milliseconds.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn streams_that_wait_use_no_processor() {
    let mut rig = Rig::new().await;
    let mut kept = Vec::new();
    for _ in 0..20 {
        kept.push(rig.connect().await);
    }
    // Half-closed by the user; half-closed by the resource; blocked one way; half-closed and blocked.
    for _ in 0..5 {
        let mut pair = rig.connect().await;
        pair.user.shutdown().await.unwrap();
        read_all(&mut pair.resource).await.1.unwrap();
        kept.push(pair);
        let mut pair = rig.connect().await;
        pair.resource.shutdown().await.unwrap();
        read_all(&mut pair.user).await.1.unwrap();
        kept.push(pair);
        let mut pair = rig.connect().await;
        fill(&mut pair.user).await;
        kept.push(pair);
        let mut pair = rig.connect().await;
        fill(&mut pair.resource).await;
        pair.resource.shutdown().await.unwrap();
        kept.push(pair);
    }
    let before = cpu_ms();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = cpu_ms() - before;
    assert!(
        used < 200,
        "{used} ms of processor time in a second of waiting"
    );
}
