//! This control plane's own certificate, and whose it accepts: renewed in memory from a third of its life on, and at once when
//! there is another authority. Connections that are open are left alone.

use std::time::Duration;

use sg_runtime::identity::PeerIdentity;
use sg_runtime::tls::{self, ClientAuth, ServerCertificate, ServerTls};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::authority::Authority;
use crate::service::authority::Current;

/// A failed renewal is tried again after this.
const RETRY: Duration = Duration::from_secs(3600);

/// Who this control plane is, and how it is reached.
#[derive(Debug)]
pub(crate) struct Own {
    /// Its identity.
    pub(crate) identity: PeerIdentity,
    /// DNS names and addresses.
    pub(crate) names: Vec<String>,
}

impl Own {
    /// A new certificate under this authority, and trust in all that it trusts.
    ///
    /// # Errors
    /// What is wrong, as text.
    pub(crate) fn tls(&self, authority: &Authority) -> Result<ServerTls, String> {
        let issued = authority
            .control_plane(&self.identity, &self.names)
            .map_err(|error| error.to_string())?;
        let shown = ServerCertificate::new(&issued).map_err(|error| error.to_string())?;
        let nodes = ClientAuth::OptionalCa(authority.trusted());
        tls::server_config(&shown, &nodes, &[b"h2"]).map_err(|error| error.to_string())
    }
}

/// Renews for ever.
pub(crate) async fn run(own: Own, mut authority: Current, tls: watch::Sender<ServerTls>) {
    let life = authority.get().lives().control_plane;
    let mut pause = life / 3;
    loop {
        // Both can be cancelled without loss.
        tokio::select! {
            () = sleep(pause) => {}
            () = authority.changed() => {}
        }
        pause = match own.tls(&authority.get()) {
            Ok(new) => {
                tls.send_replace(new);
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
