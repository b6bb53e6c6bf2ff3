//! Flags of the two ends of a destination: TLS and HTTP towards its users, TLS and proxies towards its resource.

use std::path::{Path, PathBuf};

use sg_model::{Protocol, Socks};
use sg_proto::api;

use crate::failure::Failure;

/// Longest file that is sent, in bytes.
const LONGEST_FILE: u64 = 128 * 1024;

/// Given instead of a value: takes out what is there. A file of this name is given as `./none`.
const NONE: &str = "none";

/// How users are received, and how the resource is connected to.
#[derive(Debug, clap::Args)]
pub(crate) struct EndFields {
    /// Speak TLS to the resource: none, tls or mutual [default: none]
    #[arg(long, value_name = "MODE", help_heading = "Resource side")]
    resource_tls: Option<String>,
    /// Certificates to believe the resource by: of authorities, or its own; PEM or DER, repeatable; none takes them out
    /// [default: the authorities that the dialling machine trusts]
    #[arg(long, value_name = "FILE", help_heading = "Resource side")]
    resource_ca: Vec<PathBuf>,
    /// Certificate to show to the resource; none goes back to the default [default with mutual: a generated one]
    #[arg(long, value_name = "FILE", help_heading = "Resource side")]
    resource_cert: Option<PathBuf>,
    /// Key of --resource-cert
    #[arg(
        long,
        value_name = "FILE",
        requires = "resource_cert",
        help_heading = "Resource side"
    )]
    resource_key: Option<PathBuf>,
    /// Name to ask the resource for and to find in its certificate [default: the resource's host]
    #[arg(long, value_name = "NAME", help_heading = "Resource side")]
    sni: Option<String>,
    /// Accept any certificate of the resource
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true,
        help_heading = "Resource side")]
    insecure_skip_verify: Option<bool>,
    /// HTTP of the resource: auto, 1 or 2 [default: auto, which is what TLS agrees on, else 1]
    #[arg(long, value_name = "VERSION", help_heading = "Resource side")]
    resource_http: Option<String>,
    /// Reach the resource through a proxy: 4:HOST:PORT, 4a:HOST:PORT or 5:HOST:PORT; none takes it out
    #[arg(long, value_name = "PROXY", help_heading = "Resource side")]
    socks: Option<String>,
    /// User name for the proxy
    #[arg(
        long,
        value_name = "NAME",
        requires = "socks",
        help_heading = "Resource side"
    )]
    socks_user: Option<String>,
    /// File with the password for the proxy (SOCKS 5)
    #[arg(
        long,
        value_name = "FILE",
        requires = "socks_user",
        help_heading = "Resource side"
    )]
    socks_password_file: Option<PathBuf>,
    /// Tell the resource who its user is by the PROXY protocol: none, v1 or v2 [default: none]
    #[arg(long, value_name = "VERSION", help_heading = "Resource side")]
    proxy_protocol: Option<String>,
    /// Whom mutual TLS accepts: certificates of authorities, or of users; PEM or DER, repeatable; none goes back to the
    /// default [default: a generated one, see `sgctl destination certs`]
    #[arg(long, value_name = "FILE", help_heading = "User side")]
    user_ca: Vec<PathBuf>,
    /// Certificate chain to show to users, repeatable; chosen by the name they ask for; none goes back to the default
    /// [default: one of the internal CA]
    #[arg(long, value_name = "FILE", help_heading = "User side")]
    server_cert: Vec<PathBuf>,
    /// Key of --server-cert, in the same order
    #[arg(
        long,
        value_name = "FILE",
        requires = "server_cert",
        help_heading = "User side"
    )]
    server_key: Vec<PathBuf>,
    /// Further name in the certificate of the internal CA, repeatable; none takes them out
    #[arg(long, value_name = "NAME", help_heading = "User side")]
    server_name: Vec<String>,
    /// Application protocols (ALPN) to accept, with commas; mirror for what user and resource agree on [default: mirror]
    #[arg(long, value_name = "LIST", help_heading = "User side")]
    alpn: Option<String>,
    /// What users say before TLS: none or postgres [default: none]
    #[arg(long, value_name = "PREFACE", help_heading = "User side")]
    preface: Option<String>,
    /// Admit only sources that are allowed; with none allowed, nobody
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true,
        help_heading = "User side")]
    restrict: Option<bool>,
    /// Address that may connect, repeatable: IP, IP-IP or CIDR, each with an optional source PORT or PORT:PORT, or
    /// :PORT alone; counts only with --restrict; replaces all rules that are there; none takes them out
    #[arg(long, value_name = "SPEC", help_heading = "User side")]
    allow_source: Vec<String>,
    /// X-Forwarded-* and Forwarded headers: set, append (trust what users send) or off [default: set]
    #[arg(long, value_name = "MODE", help_heading = "User side")]
    forwarded: Option<String>,
}

impl EndFields {
    /// Sets what was given; answers the names of these fields.
    pub(super) fn apply(
        &self,
        destination: &mut api::Destination,
    ) -> Result<Vec<&'static str>, Failure> {
        let mut paths = Vec::new();
        self.apply_user(destination.user_end.get_or_insert_default(), &mut paths)?;
        self.apply_resource(destination.resource_end.get_or_insert_default(), &mut paths)?;
        Ok(paths)
    }

    /// Whether rules are given of who may connect.
    pub(super) fn admits_sources(&self) -> bool {
        !given(&self.allow_source).is_empty()
    }

    /// What means nothing any more with this new protocol, or with this way to speak to the resource, beside what is
    /// given as well: it goes with the update.
    pub(super) fn taken_out(
        &self,
        protocol: Option<&str>,
        given: &[&'static str],
    ) -> Vec<&'static str> {
        let mut paths = Vec::new();
        if let Some(protocol) = protocol.and_then(|text| text.parse::<Protocol>().ok()) {
            if !protocol.is_encrypted() {
                paths.extend(["user_end.server_pairs", "user_end.server_names"]);
                paths.push("user_end.alpn");
            }
            if !protocol.is_encrypted() || protocol.is_http() {
                paths.push("user_end.preface");
            }
            if !protocol.is_mutual() {
                paths.push("user_end.certificates");
            }
            if !protocol.is_http() {
                paths.extend(["user_end.forwarded", "resource_end.http"]);
            }
        }
        if let Some(mode) = self.resource_tls.as_deref() {
            if mode == "none" {
                paths.extend(["resource_end.certificates", "resource_end.sni"]);
                paths.push("resource_end.insecure_skip_verify");
            }
            if mode != "mutual" {
                paths.push("resource_end.client_pair");
            }
        }
        paths.retain(|path| !given.contains(path));
        paths
    }

    fn apply_user(
        &self,
        end: &mut api::UserEnd,
        paths: &mut Vec<&'static str>,
    ) -> Result<(), Failure> {
        if is_none(&self.server_cert) && self.server_key.is_empty() {
            end.server_pairs = Vec::new();
            paths.push("user_end.server_pairs");
        } else if self.server_cert.len() != self.server_key.len() {
            return Err(Failure::usage(
                "every --server-cert needs its --server-key, in the same order",
            ));
        } else if !self.server_cert.is_empty() {
            let pairs = self.server_cert.iter().zip(&self.server_key);
            end.server_pairs = pairs
                .map(|(chain, key)| pair(chain, key))
                .collect::<Result<_, _>>()?;
            paths.push("user_end.server_pairs");
        }
        if !self.server_name.is_empty() {
            end.server_names = given(&self.server_name);
            paths.push("user_end.server_names");
        }
        if !self.user_ca.is_empty() {
            end.certificates = read_all(&self.user_ca)?;
            paths.push("user_end.certificates");
        }
        if let Some(list) = &self.alpn {
            end.alpn = match list.as_str() {
                "mirror" => Vec::new(),
                list => list.split(',').map(|name| name.trim().to_owned()).collect(),
            };
            paths.push("user_end.alpn");
        }
        if let Some(preface) = &self.preface {
            end.preface.clone_from(preface);
            paths.push("user_end.preface");
        }
        if let Some(restrict) = self.restrict {
            end.restrict = restrict;
            paths.push("user_end.restrict");
        }
        if !self.allow_source.is_empty() {
            let rule = |spec: &String| api::SourceRule {
                spec: spec.clone(),
                ..api::SourceRule::default()
            };
            end.sources = given(&self.allow_source).iter().map(rule).collect();
            paths.push("user_end.sources");
        }
        if let Some(mode) = &self.forwarded {
            end.forwarded.clone_from(mode);
            paths.push("user_end.forwarded");
        }
        Ok(())
    }

    fn apply_resource(
        &self,
        end: &mut api::ResourceEnd,
        paths: &mut Vec<&'static str>,
    ) -> Result<(), Failure> {
        if let Some(mode) = &self.resource_tls {
            end.tls.clone_from(mode);
            paths.push("resource_end.tls");
        }
        if !self.resource_ca.is_empty() {
            end.certificates = read_all(&self.resource_ca)?;
            paths.push("resource_end.certificates");
        }
        if let Some(chain) = &self.resource_cert {
            end.client_pair = match &self.resource_key {
                Some(key) => Some(pair(chain, key)?),
                None if chain.as_os_str() == NONE => None,
                None => return Err(Failure::usage("--resource-cert needs its --resource-key")),
            };
            paths.push("resource_end.client_pair");
        }
        if let Some(name) = &self.sni {
            end.sni.clone_from(name);
            paths.push("resource_end.sni");
        }
        if let Some(skip) = self.insecure_skip_verify {
            end.insecure_skip_verify = skip;
            paths.push("resource_end.insecure_skip_verify");
        }
        if let Some(version) = &self.resource_http {
            end.http.clone_from(version);
            paths.push("resource_end.http");
        }
        if let Some(proxy) = &self.socks {
            end.socks = self.proxy(proxy)?;
            paths.push("resource_end.socks");
        }
        if let Some(version) = &self.proxy_protocol {
            end.proxy_protocol.clone_from(version);
            paths.push("resource_end.proxy_protocol");
        }
        Ok(())
    }

    fn proxy(&self, text: &str) -> Result<Option<api::SocksProxy>, Failure> {
        if text == NONE {
            return Ok(None);
        }
        let socks =
            Socks::parse(text).map_err(|error| Failure::usage(format!("--socks: {error}")))?;
        let password = match &self.socks_password_file {
            None => Vec::new(),
            Some(path) => read(path)?.trim_ascii().to_vec(),
        };
        Ok(Some(api::SocksProxy {
            version: socks.version.to_string(),
            address: socks.address.to_string(),
            user: self.socks_user.clone().unwrap_or_default(),
            password,
        }))
    }
}

fn pair(chain: &Path, key: &Path) -> Result<api::KeyPair, Failure> {
    Ok(api::KeyPair {
        certificates: vec![read(chain)?],
        key: read(key)?,
        origin: String::new(),
    })
}

/// What was given, or nothing where that is the word for it.
fn given(values: &[String]) -> Vec<String> {
    match values {
        [only] if only == NONE => Vec::new(),
        values => values.to_vec(),
    }
}

fn is_none(paths: &[PathBuf]) -> bool {
    matches!(paths, [only] if only.as_os_str() == NONE)
}

/// The files' contents; none, where that is the word for it.
fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Failure> {
    if is_none(paths) {
        return Ok(Vec::new());
    }
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed =
        |error: &std::io::Error| Failure::local(format!("cannot read {}", path.display()), error);
    let length = std::fs::metadata(path)
        .map_err(|error| failed(&error))?
        .len();
    if length > LONGEST_FILE {
        return Err(Failure::usage(format!(
            "{} is longer than {LONGEST_FILE} bytes",
            path.display()
        )));
    }
    std::fs::read(path).map_err(|error| failed(&error))
}
