//! Row 37 of the threat table: which versions, suites and protocols of TLS every listener takes, asked by openssl.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::secure::{self, Authority, text};
use sg_tests::{PATIENCE, Site, debian, prepare, within};

/// What openssl says of one handshake.
async fn ask(address: &str, options: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(debian("openssl")?)
        .args(["s_client", "-connect", address, "-servername", "localhost"])
        .args(options)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within(PATIENCE, "openssl ends", output).await??;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// The version and the suite that were agreed on, if any were.
fn agreed(said: &str) -> Option<&str> {
    let line = said.lines().find(|line| line.starts_with("New, "))?;
    // The rest of a handshake that was broken off after the first answer is not one.
    let whole = !line.contains("(NONE)") && !said.contains("no peer certificate available");
    whole.then_some(line)
}

/// Versions and suites that nobody may get, whatever they allow themselves.
const NEVER: [&[&str]; 10] = [
    &["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
    &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    &["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
    &["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA:@SECLEVEL=0"],
    &["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-GCM-SHA384"],
    &[
        "-tls1_2",
        "-cipher",
        "ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0",
    ],
    &["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"],
    &["-tls1_2", "-cipher", "CAMELLIA:SEED:3DES:RC4:@SECLEVEL=0"],
    &["-tls1_2", "-cipher", "PSK:SRP:@SECLEVEL=0"],
    &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256"],
];

#[tokio::test]
async fn threat_37_our_own_listeners_take_tls_1_3_and_their_own_protocol() -> Result<()> {
    prepare();
    let site = Site::start().await?;
    let tunnel = site.tunnel_address(0).to_string();
    let api = site.control_addresses()[0].clone();
    for (address, own) in [(&tunnel, "sg-tunnel/1"), (&api, "h2")] {
        for options in NEVER {
            let said = ask(address, &[options, &["-alpn", own]].concat()).await?;
            ensure!(agreed(&said).is_none(), "{address} {options:?}: {said}");
        }
        // TLS 1.2 as such, with the best that it has.
        let said = ask(address, &["-tls1_2", "-alpn", own]).await?;
        ensure!(agreed(&said).is_none(), "{address}: {said}");
        let said = ask(address, &["-tls1_3", "-alpn", own]).await?;
        ensure!(
            agreed(&said).is_some_and(|line| line.contains("TLSv1.3")),
            "{address}: {said}"
        );
        ensure!(
            said.contains(&format!("ALPN protocol: {own}")),
            "{address}: {said}"
        );
        // Early data could be replayed.
        ensure!(!said.contains("Max Early Data: 1"), "{address}: {said}");
        ensure!(
            !said.contains("Early data was accepted"),
            "{address}: {said}"
        );
        // Another protocol, so that nobody's bytes are taken for those of another one.
        for other in [
            "http/1.1",
            "h2",
            "sg-tunnel/1",
            "sg-tunnel/2",
            "postgresql",
            "ftp",
            "smtp,imap",
        ] {
            if other == own {
                continue;
            }
            let said = ask(address, &["-tls1_3", "-alpn", other]).await?;
            ensure!(agreed(&said).is_none(), "{address} as {other}: {said}");
        }
    }
    site.finish()
}

/// A session that openssl has kept, taken up again with early data.
async fn early_data(address: &str, folder: &Path, options: &[&str]) -> Result<String> {
    let session = folder.join("session.pem");
    let session = text(&session)?;
    ask(address, &[options, &["-sess_out", session]].concat()).await?;
    if !Path::new(session).exists() {
        return Ok(String::new());
    }
    let early: PathBuf = folder.join("early.txt");
    std::fs::write(&early, "GET / HTTP/1.1\r\n\r\n")?;
    let more = ["-sess_in", session, "-early_data", text(&early)?];
    ask(address, &[options, &more].concat()).await
}

#[tokio::test]
async fn threat_37_listeners_of_users_take_no_weak_suite_and_nothing_before_the_handshake()
-> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let _client = site.client(&gateway).await?;
    let echo = Echo::start().await?;
    let folder = site.folder().to_owned();
    let authority = Authority::new(&folder, "users-ca")?;
    let own = authority.issue("localhost", &["localhost"])?;
    site.sgctl
        .run(&["acl", "allow", "dev", ":", "--wait", "10s"])
        .await?;
    for (protocol, alpn) in [("tls", "http/1.1"), ("https", "http/1.1"), ("https", "h2")] {
        let name = format!("{protocol}-{}", alpn.replace(['/', '.'], "-"));
        let options = [
            "--protocol",
            protocol,
            "--server-cert",
            text(&own.chain)?,
            "--server-key",
            text(&own.key)?,
        ];
        let path = format!("dev/{name}");
        let port = secure::create(&site, &path, &echo.address(), &options).await?;
        let address = format!("127.0.0.1:{port}");
        for options in NEVER {
            let said = ask(&address, options).await?;
            ensure!(agreed(&said).is_none(), "{protocol} {options:?}: {said}");
        }
        for version in ["TLSv1.2", "TLSv1.3"] {
            let flag = format!(
                "-{}",
                version.to_lowercase().replace('v', "").replace('.', "_")
            );
            let said = ask(&address, &[&flag, "-alpn", alpn]).await?;
            ensure!(
                agreed(&said).is_some_and(|line| line.contains(version)),
                "{protocol}: {said}"
            );
            ensure!(
                said.contains("Compression: NONE") || version == "TLSv1.3",
                "{said}"
            );
        }
        // Renegotiation is asked for by a line with R.
        let said = renegotiate(&address).await?;
        ensure!(!said.contains("verify return:1\nRENEGOTIATED"), "{said}");
        let said = early_data(&address, &folder, &["-tls1_3", "-alpn", alpn]).await?;
        ensure!(!said.contains("Early data was accepted"), "{said}");
        if protocol == "https" {
            for other in ["sg-tunnel/1", "ftp", "postgresql"] {
                let said = ask(&address, &["-alpn", other]).await?;
                ensure!(agreed(&said).is_none(), "https as {other}: {said}");
            }
        }
    }
    site.finish()
}

/// Asks for a renegotiation, which must end the connection.
async fn renegotiate(address: &str) -> Result<String> {
    use tokio::io::AsyncWriteExt as _;

    let mut openssl = tokio::process::Command::new(debian("openssl")?)
        .args([
            "s_client",
            "-connect",
            address,
            "-tls1_2",
            "-servername",
            "localhost",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = openssl.stdin.take().context("stdin")?;
    input.write_all(b"R\n").await?;
    input.flush().await?;
    let output = within(PATIENCE, "the connection ends", openssl.wait_with_output()).await??;
    drop(input);
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    ensure!(
        !output.status.success() || said.contains("no renegotiation"),
        "{said}"
    );
    Ok(said)
}
