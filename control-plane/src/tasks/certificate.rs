//! Renews this control plane's own certificate, in memory, long before it ends.

use std::sync::Arc;
use std::time::Duration;

use sg_runtime::identity::PeerIdentity;
use sg_runtime::tls::ServerCertificate;

use crate::authority::Authority;

/// A failed renewal is tried again after this.
const RETRY: Duration = Duration::from_secs(3600);

/// Renews from a third of the certificate's life on, for ever.
pub(crate) async fn run(
    authority: Arc<Authority>,
    identity: PeerIdentity,
    names: Vec<String>,
    certificate: ServerCertificate,
) {
    let life = authority.lives().control_plane;
    let mut pause = life / 3;
    loop {
        tokio::time::sleep(pause).await;
        let issued = authority
            .control_plane(&identity, &names)
            .map_err(|e| e.to_string());
        let renewed = issued.and_then(|new| certificate.replace(&new).map_err(|e| e.to_string()));
        pause = match renewed {
            Ok(()) => {
                tracing::info!("own certificate renewed");
                life / 3
            }
            Err(error) => {
                tracing::error!(error, "own certificate could not be renewed");
                RETRY.min(life / 10)
            }
        };
    }
}
