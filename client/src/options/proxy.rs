//! The proxy of the command line, whichever way it was given.

use sg_runtime::config::Invalid;
use sg_runtime::secret::Secret;

use super::Args;
use crate::proxy::Proxy;

impl Args {
    /// The proxy, if there is one.
    pub(super) fn read_proxy(&self, notices: &mut Vec<String>) -> Result<Option<Proxy>, Invalid> {
        let proxy = match (&self.proxy, &self.proxy_file) {
            (Some(text), _) => {
                let proxy = parse("--proxy", text)?;
                if proxy.has_password() {
                    notices.push(
                        "a proxy's password on the command line can be seen by every user of this machine: use --proxy-file"
                            .to_owned(),
                    );
                }
                proxy
            }
            (None, Some(path)) => {
                let text = Secret::read(path).map_err(|error| {
                    let remedy = "give a file with the proxy's URL";
                    Invalid::new("--proxy-file", path.display(), error.to_string(), remedy)
                })?;
                parse("--proxy-file", &text)?
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(proxy))
    }
}

/// What is written there may hold a password, so it is not repeated.
fn parse(key: &str, text: &Secret<String>) -> Result<Proxy, Invalid> {
    text.expose()
        .parse::<Proxy>()
        .map_err(|error| Invalid::new(key, "[not shown]", error.problem, error.remedy))
}
