//! Programs that ask as fast as they can: wrk and h2load for HTTP, dnsperf for DNS by UDP and by TCP. Nothing may fail
//! on the way. Rates are not judged here; `sg-bench` measures them.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use sg_tests::counterpart::dns::{self, Unbound};
use sg_tests::counterpart::nginx::Nginx;
use sg_tests::{Client, Launch, PATIENCE, Site, debian, secure, within};

const KINDS: [&str; 2] = ["on-premises", "cloud"];

struct Rig {
    site: Site,
    client: Client,
    folder: PathBuf,
}

impl Rig {
    async fn start() -> Result<Self> {
        let (site, client) = secure::open_site().await?;
        let folder = site.folder().to_owned();
        Ok(Self {
            site,
            client,
            folder,
        })
    }

    /// A destination of this kind and protocol; answers its port.
    async fn create(&mut self, kind: &str, protocol: &str, resource: &str) -> Result<u16> {
        let port = self.site.ports().server().to_string();
        let mut options = vec!["--kind", kind, "--protocol", protocol];
        if kind == "cloud" {
            options.extend(["--client-port", &port]);
        }
        let path = format!("dev/{kind}-{protocol}");
        let port = secure::create(&self.site, &path, resource, &options).await?;
        if protocol != "udp" {
            secure::listens(([127, 0, 0, 1], port).into()).await?;
        }
        Ok(port)
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let launch = Launch::new(program, debian(program)?, &self.folder);
        let launch = arguments.iter().fold(launch, |l, one| l.arg(*one));
        within(PATIENCE * 2, program, launch.run()).await?
    }

    fn finish(self) -> Result<()> {
        drop(self.client);
        self.site.finish()
    }
}

/// The number that stands before this word.
fn count(text: &str, word: &str) -> Result<u64> {
    let words: Vec<&str> = text
        .split([' ', '\n', ','])
        .filter(|w| !w.is_empty())
        .collect();
    let pair = words.windows(2).find(|pair| pair.last() == Some(&word));
    let number = pair
        .and_then(|pair| pair.first())
        .context(word.to_owned())?;
    number.parse().with_context(|| format!("{number} {word}"))
}

#[tokio::test]
async fn wrk_and_h2load_get_all_their_answers() -> Result<()> {
    let mut rig = Rig::start().await?;
    let root = rig.folder.join("www");
    std::fs::create_dir(&root)?;
    std::fs::write(root.join("page"), "x".repeat(1000))?;
    let nginx = Nginx::start(&rig.folder, &root, rig.site.ports().server()).await?;
    for kind in KINDS {
        let mut https = 0;
        for protocol in ["http", "https"] {
            let port = rig.create(kind, protocol, &nginx.address()).await?;
            let url = format!("{protocol}://127.0.0.1:{port}/page");
            let shown = rig
                .run("wrk", &["-t", "1", "-c", "20", "-d", "2s", &url])
                .await?;
            let requests = count(&shown, "requests")?;
            ensure!(requests > 100, "{kind} {protocol}: {shown}");
            for trouble in ["Socket errors", "Non-2xx"] {
                ensure!(!shown.contains(trouble), "{kind} {protocol}: {shown}");
            }
            https = port;
        }
        // HTTP/2, by ALPN: 10 users with 10 requests at a time each.
        let url = format!("https://127.0.0.1:{https}/page");
        let arguments = ["-n", "2000", "-c", "10", "-m", "10", &url];
        let shown = rig.run("h2load", &arguments).await?;
        let agreed = shown.contains("Application protocol: h2");
        ensure!(agreed, "{kind}: {shown}");
        for word in ["succeeded", "2xx"] {
            ensure!(count(&shown, word)? == 2000, "{kind}: {shown}");
        }
    }
    drop(nginx);
    rig.finish()
}

#[tokio::test]
async fn dnsperf_loses_no_question_to_unbound() -> Result<()> {
    let mut rig = Rig::start().await?;
    let unbound = Unbound::start(&rig.folder, rig.site.ports().server()).await?;
    let questions = rig.folder.join("questions");
    std::fs::write(&questions, unbound.questions())?;
    let questions = secure::text(&questions)?.to_owned();
    for kind in KINDS {
        for (mode, protocol) in [("udp", "udp"), ("tcp", "tcp")] {
            let port = rig.create(kind, protocol, &unbound.address()).await?;
            let answer = match mode {
                "udp" => dns::dig(port, "machine7.plant.test").await?,
                _ => dns::dig_by_tcp(port, "machine7.plant.test").await?,
            };
            ensure!(answer == "192.0.2.7", "{kind} {mode}: dig gets {answer:?}");
            let port = port.to_string();
            let server = ["-s", "127.0.0.1", "-p", &port, "-m", mode];
            let load = ["-d", &questions, "-c", "5", "-l", "2", "-Q", "2000"];
            let shown = rig.run("dnsperf", &[&server[..], &load].concat()).await?;
            let line = |word: &str| {
                let line = shown.lines().find(|line| line.trim().starts_with(word));
                line.with_context(|| format!("{word} in {shown}"))
            };
            let number = |word: &str| -> Result<u64> {
                let rest = line(word)?.split(':').nth(1).context("number")?;
                let number = rest.split_whitespace().next().context("number")?;
                Ok(number.parse()?)
            };
            let sent = number("Queries sent")?;
            ensure!(sent > 100, "{kind} {mode}: {shown}");
            ensure!(number("Queries lost")? == 0, "{kind} {mode}: {shown}");
            ensure!(
                number("Queries completed")? == sent,
                "{kind} {mode}: {shown}"
            );
            ensure!(
                line("Response codes")?.contains(&format!("NOERROR {sent} ")),
                "{kind} {mode}: {shown}"
            );
        }
    }
    drop(unbound);
    rig.finish()
}
