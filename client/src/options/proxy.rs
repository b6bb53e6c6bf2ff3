//! The proxy of the command line, whichever way it was given.

use sg_runtime::config::Invalid;
use sg_runtime::identity;
use sg_runtime::secret::Secret;

use super::Args;
use crate::proxy::Proxy;

impl Args {
    /// The proxy, if there is one.
    pub(super) fn read_proxy(&self, notices: &mut Vec<String>) -> Result<Option<Proxy>, Invalid> {
        let mut proxy = match (&self.proxy, &self.proxy_file) {
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
            (None, None) if self.proxy_ca.is_some() => return Err(self.needless_ca()),
            (None, None) => return Ok(None),
        };
        let certificates = match &self.proxy_ca {
            None => Vec::new(),
            Some(path) => identity::read_certificates(path).map_err(|error| {
                let remedy = "give a file with certificates in PEM";
                Invalid::new("--proxy-ca", path.display(), error.to_string(), remedy)
            })?,
        };
        let secured = proxy.trust(certificates).map_err(|error| {
            let remedy = "give the certificate of its authority, or its own, with --proxy-ca";
            Invalid::new("--proxy", "[not shown]", error.to_string(), remedy)
        })?;
        if self.proxy_ca.is_some() && !secured {
            return Err(self.needless_ca());
        }
        Ok(Some(proxy))
    }

    fn needless_ca(&self) -> Invalid {
        let path = self.proxy_ca.clone().unwrap_or_default();
        let remedy = "leave it out, or name the proxy by an https:// URL";
        Invalid::new(
            "--proxy-ca",
            path.display(),
            "there is no https:// proxy to check",
            remedy,
        )
    }
}

/// What is written there may hold a password, so it is not repeated.
fn parse(key: &str, text: &Secret<String>) -> Result<Proxy, Invalid> {
    text.expose()
        .parse::<Proxy>()
        .map_err(|error| Invalid::new(key, "[not shown]", error.problem, error.remedy))
}
