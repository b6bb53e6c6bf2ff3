//! A gRPC channel to one control plane, over our own TLS: trust by identity, never by host name.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use sg_model::{Host, HostPort};
use sg_runtime::tls::{self, ClientTls};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// The application protocol of gRPC.
pub(crate) const ALPN: &[u8] = b"h2";
const CONNECT: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(4);

/// Connects once; the channel does not reconnect by itself in a way that anybody relies on.
pub(crate) async fn connect(address: &HostPort, tls: &ClientTls) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true);
    let (address, tls) = (address.clone(), tls.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        Box::pin(async move {
            let host = match address.host() {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
            let tcp = TcpStream::connect((host.as_str(), address.port())).await?;
            tcp.set_nodelay(true)?;
            let (stream, _) = tls::connect(&tls, tcp, &host)
                .await
                .map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        })
    });
    endpoint.connect_with_connector(connector).await
}
