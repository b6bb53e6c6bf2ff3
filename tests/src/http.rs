//! Asking an admin port. The client is a few lines here, so that the tests do not depend on the
//! library that serves it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{PATIENCE, eventually};

/// Status and body of `GET path`.
///
/// # Errors
/// Nothing listens, or the answer is not HTTP.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.context("admin port")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end of head")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .context("an answer without a status")?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        unchunk(body)?
    } else {
        body.to_owned()
    };
    Ok((status.parse().context("status")?, body))
}

/// As [`get`], for a server that may still be starting.
///
/// # Errors
/// Nothing answers in time.
pub async fn get_when_served(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    eventually(PATIENCE, &format!("{address} answers"), async || {
        get(address, path).await
    })
    .await
}

fn unchunk(mut text: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("size of a chunk")?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(rest.get(..size).context("a short chunk")?);
        text = rest.get(size + 2..).context("a chunk without an end")?;
    }
}

/// One reading of `/metrics`.
#[derive(Debug, Clone)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Reads the metrics of the process with this admin port.
    ///
    /// # Errors
    /// It does not answer, or a line is not in the exposition format.
    pub async fn read(admin: SocketAddr) -> Result<Self> {
        let (status, body) = get(admin, "/metrics").await?;
        if status != 200 {
            bail!("/metrics answers {status}");
        }
        let lines = body
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(sample).collect::<Result<_>>().map(Self)
    }

    /// Sum of the samples of this name that carry all these labels; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &Sample, label: &(&str, &str)| {
            sample
                .labels
                .iter()
                .any(|(key, value)| (key.as_str(), value.as_str()) == *label)
        };
        let matching =
            |sample: &&Sample| sample.name == name && labels.iter().all(|label| has(sample, label));
        self.0
            .iter()
            .filter(matching)
            .map(|sample| sample.value)
            .sum()
    }

    /// Whether there is a sample of this name, whatever its value.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }

    /// All label values, to look for what must not be in them.
    pub fn label_values(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .flat_map(|sample| sample.labels.iter().map(|(_, value)| value.as_str()))
    }
}

fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line
        .rsplit_once(' ')
        .with_context(|| format!("metric line {line}"))?;
    let value = value
        .parse()
        .with_context(|| format!("metric line {line}"))?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    };
    let labels = labels
        .split("\",")
        .filter(|label| !label.is_empty())
        .map(|label| {
            let (key, value) = label
                .split_once("=\"")
                .with_context(|| format!("label {label}"))?;
            Ok((key.to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect::<Result<_>>()?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}
