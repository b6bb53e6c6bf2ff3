//! OpenSSH with a remote forwarding: all users' connections are channels of one encrypted
//! connection. The server has its own configuration, port and keys.

use anyhow::{Context as _, Result};

use super::{Place, Running, listens};

/// Where the server drops its rights; Debian makes it when the service starts.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

pub(super) async fn start(place: &mut Place<'_>, cipher: Option<&str>) -> Result<Running> {
    let (address, between) = (place.address(), place.address());
    let user = user()?;
    for key in ["host", "id"] {
        let path = place.folder.join(key);
        let launch = place.launch("keygen", "ssh-keygen")?;
        let launch = launch.arg("-q").option("-t", "ed25519");
        launch.option("-N", "").option("-f", path).run().await?;
    }
    let read = |name: &str| {
        std::fs::read_to_string(place.folder.join(name)).with_context(|| format!("key {name}"))
    };
    let host = read("host.pub")?;
    let known = place.write(
        "known",
        &format!("[{}]:{} {host}", between.ip(), between.port()),
    )?;
    let authorized = place.write("authorized", &read("id.pub")?)?;
    let configuration = format!(
        "Port {}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
         PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
         AllowTcpForwarding yes\nLogLevel ERROR\n",
        between.port(),
        between.ip(),
        place.folder.join("host").display(),
        authorized.display(),
    );
    let configuration = place.write("sshd.conf", &configuration)?;
    if user == "root" {
        std::fs::create_dir_all(PRIVILEGE_SEPARATION).context(PRIVILEGE_SEPARATION)?;
    }
    let server = place
        .launch("server", "sshd")?
        .arg("-D")
        .arg("-e")
        .option("-f", configuration)
        .start()?;
    listens(between).await?;
    let mut client = place
        .launch("client", "ssh")?
        .option("-F", "none")
        .arg("-N")
        .option("-p", between.port().to_string())
        .option("-i", place.folder.join("id"));
    for option in [
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=yes",
        "ExitOnForwardFailure=yes",
        "LogLevel=ERROR",
        &format!("UserKnownHostsFile={}", known.display()),
    ] {
        client = client.option("-o", option);
    }
    if let Some(cipher) = cipher {
        client = client.option("-c", cipher);
    }
    let client = client
        .option("-R", format!("{address}:{}", place.resource))
        .arg(format!("{user}@{}", between.ip()))
        .start()?;
    Ok(Running {
        address,
        processes: vec![("server", server), ("client", client)],
    })
}

/// Who runs this; the server lets nobody else in.
fn user() -> Result<String> {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .context("running id")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
