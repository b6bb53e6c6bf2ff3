//! A destination that becomes another one: its port stays, what is open goes on, and who comes after that finds what it is
//! now.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use sg_tests::secure::{self, Authority, Resource, text};
use sg_tests::{ClientSetup, PATIENCE, Site, SiteSetup, bytes, eventually, prepare};

/// Where the client's ports are, apart from those of the node.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

#[tokio::test]
async fn every_protocol_can_become_every_other() -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        node_environment: vec![("SG_CLOUD_ALLOW", "127.0.0.0/8".to_owned())],
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let mut client = site.prepare_client(
        &gateway,
        ClientSetup {
            options: vec!["--client-address".to_owned(), CLIENT.to_string()],
            ..ClientSetup::default()
        },
    )?;
    client.connect().await?;
    site.sgctl
        .run(&["acl", "allow", "dev", ":", "--wait", "10s"])
        .await?;
    let folder = site.folder().to_owned();
    let authority = Authority::new(&folder, "authority")?;
    let own = authority.issue("resource", &["127.0.0.1"])?;
    let alice = authority.issue("alice", &[])?;
    let ca = text(&authority.file)?;
    let plain = Resource::start(None).await?;
    let secured = Resource::start(Some(secure::server(&own, None)?)).await?;
    let client_port = site.ports().destinations().0.to_string();
    for kind in ["on-premises", "cloud"] {
        let path = format!("dev/{kind}");
        let mut options = vec!["--kind", kind];
        let (host, name) = match kind {
            "cloud" => {
                options.extend(["--client-port", &client_port]);
                (CLIENT.into(), "localhost")
            }
            _ => (Site::node_host(0), "127.0.0.1"),
        };
        let port = secure::create(&site, &path, &plain.address(), &options).await?;
        let at = SocketAddr::new(host, port);
        secure::listens(at).await?;
        let mut open = secure::connect(at, None).await?;
        bytes::echo(&mut open, 1, 1000).await?;
        let steps = [
            ("http", "none", &plain),
            ("https", "tls", &secured),
            ("tls", "none", &plain),
            ("https-mutual", "tls", &secured),
            ("tls-mutual", "none", &plain),
            ("tcp", "tls", &secured),
            ("https", "none", &plain),
            ("http", "tls", &secured),
            ("tls", "tls", &secured),
            ("tcp", "none", &plain),
        ];
        for (step, (protocol, mode, resource)) in steps.into_iter().enumerate() {
            let what = format!("{kind}, step {step}: {protocol} and {mode}");
            let address = resource.address();
            let mut update = vec!["destination", "update", &path, "--wait"];
            update.extend(["--protocol", protocol, "--resource-tls", mode]);
            update.extend(["--resource", &address]);
            if mode == "tls" {
                update.extend(["--resource-ca", ca]);
            }
            if protocol.ends_with("mutual") {
                update.extend(["--user-ca", ca]);
            }
            site.sgctl
                .run(&update)
                .await
                .with_context(|| what.clone())?;
            let tls = match protocol {
                "tcp" | "http" => None,
                _ => {
                    let out = folder.join(format!("certs-{kind}-{step}"));
                    let certs = ["destination", "certs", &path, "--out", text(&out)?];
                    site.sgctl.run(&certs).await?;
                    let shown = protocol.ends_with("mutual").then_some(&alice);
                    Some((secure::user(&out.join("ca.pem"), shown)?, name))
                }
            };
            eventually(PATIENCE, &what, async || {
                let mut user = secure::connect(at, tls.clone()).await?;
                secure::carries(&mut *user, protocol, &address).await
            })
            .await?;
            bytes::echo(&mut open, 2, 1000).await.context(what)?;
        }
    }
    drop(client);
    site.finish()
}
