//! What the protocol of a destination costs: one download by curl from nginx, through destinations of tcp, http, tls and
//! https in turn, and by HTTP/2 where there is TLS. Ratios are to the tcp destination of the same run.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sg_tests::counterpart::nginx::Nginx;
use sg_tests::{ClientSetup, Site, SiteSetup};
use tokio::process::Command;

use crate::Plan;
use crate::account::{Meter, Process};
use crate::report::{Report, Row, median};

/// A way to download, and what curl is told.
const WAYS: [(&str, &str, &[&str]); 5] = [
    ("tcp", "http", &["--http1.1"]),
    ("http", "http", &["--http1.1"]),
    ("tls", "https", &["--http1.1"]),
    ("https", "https", &["--http1.1"]),
    ("https by HTTP/2", "https", &["--http2"]),
];
/// Length of the file; it is not read to its end.
const FILE: u64 = 1 << 40;
const GIB: f64 = (1_u64 << 30) as f64;

/// Rate and cost of one way.
struct Figures {
    gib_per_s: f64,
    cpu_s_per_gib: f64,
}

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let folder = tempfile::tempdir().context("folder")?;
    let root = folder.path().join("files");
    std::fs::create_dir(&root).context("folder of files")?;
    // It takes no room on the disk.
    let file = std::fs::File::create(root.join("zeros")).context("file")?;
    file.set_len(FILE).context("length of the file")?;
    let mut site = Site::with(SiteSetup {
        etcd: plan.etcd,
        ..SiteSetup::default()
    })
    .await?;
    let port = site.ports().server();
    let nginx = Nginx::start(folder.path(), &root, port).await?;
    let gateway = site.gateway("bench").await?;
    let mut client = site.prepare_client(&gateway, ClientSetup::default())?;
    client.connect().await?;
    let allow = ["acl", "allow", "bench", &nginx.address(), "--wait", "10s"];
    site.sgctl.run(&allow).await?;
    let mut ports = Vec::new();
    for protocol in ["tcp", "http", "tls", "https"] {
        ports.push((
            protocol,
            destination(&site, protocol, &nginx.address()).await?,
        ));
    }
    let processes = [
        Process {
            name: "node",
            id: site.node().id(),
        },
        Process {
            name: "client",
            id: client.daemon.id(),
        },
    ];
    let mut report = Report::new("protocols");
    let mut base: Option<Figures> = None;
    for (name, scheme, options) in WAYS {
        let protocol = name.split(' ').next().unwrap_or(name);
        let found = ports.iter().find(|(known, _)| *known == protocol);
        let (_, port) = found.context("a destination of every protocol")?;
        let url = format!("{scheme}://127.0.0.1:{port}/zeros");
        let ca = site.ca_file().display().to_string();
        let mut rates = Vec::new();
        let mut costs = Vec::new();
        for _ in 0..plan.repeat {
            let meter = Meter::start(&processes)?;
            let (gib, seconds) = download(plan, &url, &ca, options).await?;
            let cpu: f64 = meter.spent()?.iter().map(|spent| spent.cpu).sum();
            rates.push(gib / seconds);
            costs.push(cpu / gib);
        }
        let figures = Figures {
            gib_per_s: median(&rates),
            cpu_s_per_gib: median(&costs),
        };
        let mut row = Row::new(name);
        row.figure("gib_per_s", figures.gib_per_s);
        row.figure("cpu_s_per_gib", figures.cpu_s_per_gib);
        match &base {
            None => base = Some(figures),
            Some(base) => {
                row.figure("rate_to_tcp_ratio", figures.gib_per_s / base.gib_per_s);
                row.figure(
                    "cpu_to_tcp_ratio",
                    figures.cpu_s_per_gib / base.cpu_s_per_gib,
                );
            }
        }
        report.push(row);
    }
    drop(nginx);
    site.finish()?;
    Ok(report)
}

/// Makes a destination of this protocol; answers its port.
async fn destination(site: &Site, protocol: &str, resource: &str) -> Result<u64> {
    let path = format!("bench/{protocol}");
    let made = site
        .sgctl
        .json(&[
            "destination",
            "create",
            &path,
            "--protocol",
            protocol,
            "--resource",
            resource,
            "--wait",
        ])
        .await?;
    made.get("cloudPort")
        .and_then(Value::as_u64)
        .context("cloudPort")
}

/// One download for as long as a measurement takes; answers GiB and seconds.
async fn download(plan: &Plan, url: &str, ca: &str, options: &[&str]) -> Result<(f64, f64)> {
    let output = Command::new("curl")
        .args(["--silent", "--output", "/dev/null", "--cacert", ca])
        .args(["--max-time", &plan.time.as_secs().to_string()])
        .args(["--write-out", "%{size_download} %{time_total} %{http_code}"])
        .args(options)
        .arg(url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("curl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = text.split(' ');
    let mut number = || parts.next().and_then(|part| part.parse::<f64>().ok());
    let (bytes, seconds, status) = (number(), number(), number());
    let (bytes, seconds) = bytes
        .zip(seconds)
        .with_context(|| format!("curl said {text}"))?;
    ensure!(
        status == Some(200.0) && bytes > 0.0,
        "curl got nothing: {text}"
    );
    Ok((bytes / GIB, seconds))
}
