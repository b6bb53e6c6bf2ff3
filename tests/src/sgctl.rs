//! Runs `sgctl` as an operator does.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::canaries::Evidence;
use crate::product;

/// Words of commands whose answer is a secret by right.
const TELLS_SECRETS: [&str; 4] = ["create", "rotate", "certs", "dev"];
/// Time for a reading command at the end of a test, which may find nobody.
const LAST_READ: &str = "3s";

/// Where `sgctl` finds the control plane.
#[derive(Debug, Clone)]
pub struct Sgctl {
    server: String,
    ca: PathBuf,
    token_file: PathBuf,
    evidence: Option<Evidence>,
}

/// What one run of `sgctl` gave.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Its standard output as JSON.
    ///
    /// # Errors
    /// It is not one JSON document.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("stdout {:?}", self.stdout))
    }
}

impl Sgctl {
    /// `server` is HOST:PORT, or several with commas.
    #[must_use]
    pub fn new(server: &str, ca: &Path, token_file: &Path) -> Self {
        Self {
            server: server.to_owned(),
            ca: ca.to_owned(),
            token_file: token_file.to_owned(),
            evidence: None,
        }
    }

    /// What it says is evidence.
    #[must_use]
    pub(crate) fn seen_by(mut self, evidence: &Evidence) -> Self {
        self.evidence = Some(evidence.clone());
        self
    }

    /// Calls what reads, so that the answers are seen. Whoever is away answers nothing.
    pub(crate) fn read_everything(&self) {
        let Ok(program) = product("sgctl") else {
            return;
        };
        for command in [["gateway", "list"], ["audit", "list"]] {
            let output = std::process::Command::new(&program)
                .args(command)
                .args(["-o", "json", "--timeout", LAST_READ])
                .env("SG_SERVER", &self.server)
                .env("SG_CA", &self.ca)
                .env("SG_TOKEN_FILE", &self.token_file)
                .stdin(Stdio::null())
                .output();
            let Ok(output) = output else { return };
            self.note(&command, &output.stdout, &output.stderr);
            if !output.status.success() {
                return;
            }
        }
    }

    fn note(&self, arguments: &[&str], stdout: &[u8], stderr: &[u8]) {
        let Some(evidence) = &self.evidence else {
            return;
        };
        evidence.note("sgctl", stderr);
        if !arguments.iter().any(|word| TELLS_SECRETS.contains(word)) {
            evidence.note("sgctl", stdout);
        }
    }

    /// Runs it and answers whatever comes.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn call(&self, arguments: &[&str]) -> Result<Answer> {
        let output = tokio::process::Command::new(product("sgctl")?)
            .args(arguments)
            .env("SG_SERVER", &self.server)
            .env("SG_CA", &self.ca)
            .env("SG_TOKEN_FILE", &self.token_file)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("running sgctl")?;
        self.note(arguments, &output.stdout, &output.stderr);
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it; it must succeed.
    ///
    /// # Errors
    /// It fails; the error carries what it says.
    pub async fn run(&self, arguments: &[&str]) -> Result<Answer> {
        let answer = self.call(arguments).await?;
        if answer.code != 0 {
            let Answer {
                code,
                stdout,
                stderr,
            } = answer;
            bail!(
                "sgctl {} ends with {code}: {stdout}{stderr}",
                arguments.join(" ")
            );
        }
        Ok(answer)
    }

    /// Runs it with `-o json`; it must succeed.
    ///
    /// # Errors
    /// It fails or does not print JSON.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        self.run(&arguments).await?.json()
    }
}
