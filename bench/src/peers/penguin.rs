//! rusty-penguin: all users' connections in one WebSocket over TLS. It forwards from its client's
//! side, so its listener is at the client and the resource behind the server. It carries datagrams.

use anyhow::Result;

use super::{Place, Running, listens};

pub(super) async fn start(place: &mut Place<'_>) -> Result<Running> {
    let (address, between) = (place.address(), place.address());
    let server = place
        .launch("server", "penguin")?
        .arg("server")
        .arg("-q")
        .option("--host", between.ip().to_string())
        .option("-p", between.port().to_string())
        .option("--tls-key", place.pki.key())
        .option("--tls-cert", place.pki.certificate())
        .start()?;
    listens(between).await?;
    let client = place
        .launch("client", "penguin")?
        .arg("client")
        .arg("-q")
        .option("-t", place.pki.authority())
        .arg(format!("wss://{between}/ws"))
        .arg(format!("{address}:{}", place.resource))
        .arg(format!("{address}:{}/udp", place.udp_resource))
        .start()?;
    Ok(Running {
        address,
        processes: vec![("server", server), ("client", client)],
    })
}
