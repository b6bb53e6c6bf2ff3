//! Keeps the certificates that the internal CA issued for destinations right: anew before they end, and when the hosts
//! of the nodes change. Several control planes may do it at once; the store lets one of them win.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::service::Core;

/// How often all destinations are looked at, beside when the world changes.
const PERIOD: Duration = Duration::from_secs(600);
/// Between two looks because of changes.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs for ever.
pub(crate) async fn run(core: Arc<Core>) {
    let mut views = core.views.clone();
    let mut timer = interval(PERIOD);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = views.changed() => {}
        }
        look(&core).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(core: &Core) {
    let view = core.views.now();
    let due: Vec<_> = view
        .world
        .gateways()
        .flat_map(|(gateway, entry)| {
            entry
                .destinations()
                .map(move |one| (&gateway.value, &one.value.destination))
        })
        .filter(|(gateway, destination)| core.needs_certificate(&view.world, gateway, destination))
        .map(|(_, destination)| (destination.gateway.to_string(), destination.id.to_string()))
        .collect();
    for (gateway, id) in due {
        match core.renew_certificate(&gateway, &id).await {
            Ok(()) => tracing::info!(gateway, destination = id, "server certificate issued anew"),
            Err(error) => {
                tracing::warn!(gateway, destination = id, %error, "server certificate not renewed; it is tried again");
            }
        }
    }
}
