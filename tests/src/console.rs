//! A person at the console of a client.

use anyhow::{Context as _, Result};

use crate::{Client, PATIENCE, eventually, logs};

impl Client {
    /// The client has a console from its next start on.
    #[must_use]
    pub fn with_console(mut self) -> Self {
        let launch = self.daemon.launch_mut();
        *launch = launch.clone().arg("--console").console();
        self
    }

    /// Types a line; answers what is printed for it.
    ///
    /// # Errors
    /// There is no console, or no answer in time.
    pub async fn type_line(&mut self, line: &str) -> Result<String> {
        let path = self.daemon.how().printed();
        let before = logs::read(&path)?.len();
        // Lines are answered one after the other, and this one in a way that nothing else is.
        let last = format!("end-of-{before}");
        let process = self.daemon.process()?;
        process.type_line(line)?;
        process.type_line(&last)?;
        let end = format!("error: '{last}' is no command; help lists them\n");
        eventually(PATIENCE, &format!("an answer to {line}"), async || {
            let printed = logs::read(&path)?;
            let answer = printed.get(before..).context("the file has shrunk")?;
            let answer = answer.strip_suffix(&end);
            answer.map(str::to_owned).context("no end yet")
        })
        .await
    }
}
