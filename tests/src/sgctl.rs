//! Runs `sgctl` as an operator does.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::product;

/// Where `sgctl` finds the control plane.
#[derive(Debug, Clone)]
pub struct Sgctl {
    server: String,
    ca: PathBuf,
    token_file: PathBuf,
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
