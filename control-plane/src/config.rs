//! The flags of `sg-control-plane`, and what is checked of them before anything starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use sg_model::Host;
use sg_runtime::config::{CommonArgs, listen_address};
use sg_runtime::duration::HumanDuration;

use crate::authority::Lives;
use crate::service::audit::trim::Kept;
use crate::store::{StoreOptions, StoreUrl};

/// Where admin HTTP listens by default.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7481);

/// The control plane of Secure Gateway: API, certificate authority, configuration of the nodes
#[derive(Debug, Clone, Parser)]
#[command(name = "sg-control-plane", version, after_help = sg_runtime::duration::HELP)]
pub struct Args {
    /// etcd://HOST:PORT[,HOST:PORT...][/PREFIX], embedded:PATH or memory:
    #[arg(long, value_name = "URL")]
    pub store: StoreUrl,
    /// Directory for ca.pem, admin.token and store.key
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address of the gRPC API (TLS)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Address of the HTTP API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7480", value_parser = listen_address)]
    pub http_listen: SocketAddr,
    /// Names in the certificate beside localhost, loopback and the host name; the first is told to nodes
    #[arg(long, value_name = "HOST[,HOST...]", value_delimiter = ',', value_parser = parse_host)]
    pub advertise: Vec<String>,
    /// Keys that open the secrets in the store, one per line; the first one seals [default: DATA_DIR/store.key]
    #[arg(long, value_name = "FILE")]
    pub store_key_file: Option<PathBuf>,
    /// Audit records that are kept; the oldest go first
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub audit_records: u64,
    /// Days that audit records are kept
    #[arg(long, value_name = "DAYS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub audit_days: u64,
    /// Life of clients' certificates, renewed from a third of it on; at least twice what an outage may last
    #[arg(long, value_name = "DURATION", default_value = "336h", value_parser = parse_life)]
    pub client_certificate_life: HumanDuration,
    /// Life of nodes' certificates, renewed from a third of it on
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = parse_life)]
    pub node_certificate_life: HumanDuration,
    /// Life of this control plane's own certificate, renewed from a third of it on
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = parse_life)]
    pub own_certificate_life: HumanDuration,
    /// Make an admin token that holds for a day, write it to DATA_DIR/recovered-admin.token, and end: the way
    /// back in when no admin token is left. Needs the store and its key
    #[arg(long)]
    pub recover_admin: bool,
    /// CA of the etcd members (PEM); turns TLS on
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate for etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Key of the certificate for etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "USER", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,
    /// File with the password of the etcd user
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
    /// Leave the compaction of etcd's history to others, as when etcd is shared; without this,
    /// history of more than ten minutes is dropped, for all who use that etcd
    #[arg(long)]
    pub no_compaction: bool,
    /// Flags of every daemon.
    #[command(flatten)]
    pub common: CommonArgs,
}

fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim().parse::<Host>().map_err(|fault| fault.message)?;
    Ok(host.to_string())
}

/// Shorter lives are for tests; what is shorter than these cannot be renewed in time.
fn parse_life(text: &str) -> Result<HumanDuration, String> {
    const LEAST: Duration = Duration::from_secs(3);
    const MOST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let life: HumanDuration = text.parse().map_err(|error| format!("{error}"))?;
    match (LEAST..=MOST).contains(&life.get()) {
        true => Ok(life),
        false => Err("must be 3s to 87600h (ten years)".to_owned()),
    }
}

impl Args {
    /// How long what this control plane issues holds.
    pub const fn lives(&self) -> Lives {
        Lives {
            control_plane: self.own_certificate_life.get(),
            node: self.node_certificate_life.get(),
            client: self.client_certificate_life.get(),
        }
    }

    /// The key file, given or by default.
    pub fn store_key_file(&self) -> PathBuf {
        self.store_key_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("store.key"))
    }

    /// How much of the audit trail is kept.
    pub const fn audit_kept(&self) -> Kept {
        Kept {
            records: self.audit_records,
            age: Duration::from_secs(self.audit_days * 24 * 3600),
        }
    }

    /// How to reach the store.
    pub fn store_options(&self) -> StoreOptions {
        StoreOptions {
            etcd_ca: self.etcd_ca.clone(),
            etcd_cert: self.etcd_cert.clone(),
            etcd_key: self.etcd_key.clone(),
            etcd_user: self.etcd_user.clone(),
            etcd_password_file: self.etcd_password_file.clone(),
        }
    }

    /// Names and addresses for the certificate.
    pub fn certificate_names(&self, host_name: Option<&str>) -> Vec<String> {
        let mut names: Vec<String> = self.advertise.clone();
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        let usable = host_name.filter(|name| name.parse::<Host>().is_ok());
        names.extend(usable.map(str::to_owned));
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// HOST:PORT that nodes are told, given the address really bound.
    pub fn advertised(&self, bound: SocketAddr, host_name: Option<&str>) -> String {
        let host = match (self.advertise.first(), host_name) {
            (Some(host), _) => host.clone(),
            (None, Some(name)) if bound.ip().is_unspecified() => name.to_owned(),
            _ => bound.ip().to_string(),
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        format!("{host}:{}", bound.port())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn args(more: &[&str]) -> Result<Args, clap::Error> {
        let fixed = ["sg-control-plane", "--store", "memory:", "--data-dir", "/d"];
        Args::try_parse_from(fixed.iter().chain(more))
    }

    #[test]
    fn nodes_are_told_an_address_they_can_dial() {
        let bound = "0.0.0.0:7400".parse().unwrap();
        let told = |more: &[&str]| args(more).unwrap().advertised(bound, Some("host-1"));
        assert_eq!(told(&[]), "host-1:7400");
        assert_eq!(
            told(&["--advertise", "cp.example,10.0.0.1"]),
            "cp.example:7400"
        );
        assert_eq!(told(&["--advertise", "fd00::1"]), "[fd00::1]:7400");
        let loopback = "127.0.0.1:1".parse().unwrap();
        assert_eq!(
            args(&[]).unwrap().advertised(loopback, Some("host-1")),
            "127.0.0.1:1"
        );
    }

    #[test]
    fn the_help_says_how_values_are_written() {
        use clap::CommandFactory as _;
        let help = Args::command().render_help().to_string();
        // Lines are broken by the width.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "127.0.0.1:7481 (control plane)",
            "500ms, 30s, 5m or 24h",
            "--advertise <HOST[,HOST...]>",
        ] {
            assert!(help.contains(part), "{part} is missing in: {help}");
        }
        let error = args(&["--listen", "0.0.0.0"]).unwrap_err().to_string();
        let remedy = "write ADDRESS:PORT, as 127.0.0.1:7400";
        assert!(error.contains(remedy), "{error}");
    }

    #[test]
    fn bad_values_are_refused() {
        assert!(args(&["--advertise", "a b"]).is_err());
        assert!(args(&["--etcd-user", "u"]).is_err());
        assert!(args(&["--listen", "7400"]).is_err());
        assert!(args(&["--client-certificate-life", "2s"]).is_err());
        assert!(args(&["--client-certificate-life", "87601h"]).is_err());
        assert_eq!(args(&[]).unwrap().lives(), Lives::default());
        assert_eq!(
            args(&[]).unwrap().store_key_file(),
            PathBuf::from("/d/store.key")
        );
    }
}
