//! rathole: its client connects to its server, and for each user once more, from a pool. It carries
//! datagrams too.

use anyhow::{Context as _, Result};

use super::pki::PASSWORD;
use super::{Place, Running, listens};

/// What protects its connections.
#[derive(Debug, Clone, Copy)]
pub(super) enum Transport {
    Plain,
    Tls,
    Noise,
}

pub(super) async fn start(place: &mut Place<'_>, transport: Transport) -> Result<Running> {
    let (address, between) = (place.address(), place.address());
    let (at_server, at_client) = sections(place, transport).await?;
    let server = format!(
        "[server]\nbind_addr = \"{between}\"\ndefault_token = \"bench\"\n{at_server}\
         [server.services.tcp]\nbind_addr = \"{address}\"\n\
         [server.services.udp]\ntype = \"udp\"\nbind_addr = \"{address}\"\n"
    );
    let client = format!(
        "[client]\nremote_addr = \"{between}\"\ndefault_token = \"bench\"\n{at_client}\
         [client.services.tcp]\nlocal_addr = \"{}\"\n\
         [client.services.udp]\ntype = \"udp\"\nlocal_addr = \"{}\"\n",
        place.resource, place.udp_resource
    );
    let start = |name: &str, text: &str| {
        let file = place.write(&format!("{name}.toml"), text)?;
        place
            .launch(name, "rathole")?
            .env("RUST_LOG", "error")
            .option(&format!("--{name}"), file)
            .start()
    };
    let server = start("server", &server)?;
    listens(between).await?;
    let client = start("client", &client)?;
    Ok(Running {
        address,
        processes: vec![("server", server), ("client", client)],
    })
}

/// What the configurations say about the transport, at the server and at the client.
async fn sections(place: &Place<'_>, transport: Transport) -> Result<(String, String)> {
    Ok(match transport {
        Transport::Plain => (String::new(), String::new()),
        Transport::Tls => (
            format!(
                "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\n\
                 pkcs12 = \"{}\"\npkcs12_password = \"{PASSWORD}\"\n",
                place.pki.pkcs12()?.display()
            ),
            format!(
                "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\n\
                 trusted_root = \"{}\"\nhostname = \"localhost\"\n",
                place.pki.authority().display()
            ),
        ),
        Transport::Noise => {
            let launch = place.launch("genkey", "rathole")?;
            let output = launch.arg("--genkey").run().await?;
            // A heading and the key on the line below it, twice.
            let key = |heading: &str| {
                let mut lines = output.lines().skip_while(|line| !line.contains(heading));
                lines.nth(1).map(str::trim).context("rathole --genkey")
            };
            let (private, public) = (key("Private")?, key("Public")?);
            (
                format!(
                    "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\n\
                     local_private_key = \"{private}\"\n"
                ),
                format!(
                    "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\n\
                     remote_public_key = \"{public}\"\n"
                ),
            )
        }
    })
}
