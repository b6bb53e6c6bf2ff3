//! The node's static configuration: flags as they come, and settings as they are used.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use sg_model::{Host, HostPort, IpRange, Name, PortRange};
use sg_relay::TunnelLimits;
use sg_runtime::admin_http::AdminListen;
use sg_runtime::config::{CommonArgs, Invalid, listen_address};
use sg_runtime::threads::Threads;
use sg_runtime::{duration, size};

use crate::cloud::CloudAllow;

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
/// Control planes that may be named.
const MOST_CONTROL_PLANES: usize = 4;

/// Relays between users and the tunnels of clients
#[derive(Debug, Clone, Parser)]
#[command(name = "sg-data-plane", version, after_help = format!("{}\n{}", duration::HELP, size::HELP))]
pub struct Args {
    /// Everything that all daemons have.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How many threads do the work.
    #[command(flatten)]
    pub threads: Threads,
    /// Control planes to get configuration from; not needed once known
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT...]", value_delimiter = ',')]
    pub control_plane: Vec<HostPort>,
    /// File with the one-time join token; needed for the first start only
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Directory for the node's key, certificate and last good configuration
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address that clients connect to
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:9000", value_parser = listen_address)]
    pub tunnel_listen: SocketAddr,
    /// Address that destinations listen on
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0")]
    pub destination_address: IpAddr,
    /// Ports that destinations get by themselves
    #[arg(long, value_name = "A-B", default_value = "15000-19999")]
    pub destination_ports: PortRange,
    /// Host at which clients and users reach this node [default: this machine's name]
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<Host>,
    /// Name of this node, at the first start only [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Node group that it joins, at the first start only [default: default]
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// What cloud destinations may reach from here; nothing without it
    #[arg(
        long,
        value_name = "HOST[:PORT]|CIDR[:PORT][,...]",
        value_delimiter = ','
    )]
    pub cloud_allow: Vec<String>,
    /// Balancers in front of this node, which tell who connects by the PROXY protocol, and have to
    #[arg(long, value_name = "CIDR[,CIDR...]", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpRange>,
    /// What tunnels may take
    #[command(flatten)]
    pub limits: TunnelLimits,
    /// Connections to the tunnel listener that have not said yet who they are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit_handshakes: u32,
    /// The same for one source address
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit_handshakes_per_source: u32,
    /// Connections of users from one source address that are open at a time; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub limit_streams_per_source: u32,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) common: CommonArgs,
    pub(crate) admin: AdminListen,
    pub(crate) control_planes: Vec<HostPort>,
    pub(crate) join_token_file: Option<PathBuf>,
    pub(crate) data_dir: PathBuf,
    pub(crate) tunnel_listen: SocketAddr,
    pub(crate) destination_address: IpAddr,
    pub(crate) destination_ports: PortRange,
    pub(crate) advertise: Host,
    pub(crate) name: Name,
    pub(crate) group: Name,
    /// Which of both somebody asked for.
    pub(crate) asked: Asked,
    pub(crate) limits: TunnelLimits,
    /// Handshakes under way: in all, and of one source address.
    pub(crate) handshakes: (u32, u32),
    pub(crate) streams_per_source: u32,
    pub(crate) trusted_proxies: Vec<IpRange>,
    pub(crate) cloud_allow: CloudAllow,
}

/// Which flags were given that count when a node joins, and not later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) name: bool,
    pub(crate) group: bool,
}

impl Args {
    /// Checks what no single flag can know.
    ///
    /// # Errors
    /// [`Invalid`] names the flag and what to do.
    pub fn check(self) -> Result<Settings, Invalid> {
        if self.control_plane.len() > MOST_CONTROL_PLANES {
            return Err(Invalid::new(
                "--control-plane",
                self.control_plane.len(),
                "too many addresses",
                format!("name at most {MOST_CONTROL_PLANES}"),
            ));
        }
        let asked = Asked {
            name: self.name.is_some(),
            group: self.group.is_some(),
        };
        let name = match self.name {
            Some(name) => parse_name("--name", &name)?,
            None => machine_name(),
        };
        let advertise = match self.advertise {
            Some(host) => host,
            None => default_advertise(self.tunnel_listen.ip(), &name),
        };
        Ok(Settings {
            admin: self.common.admin(DEFAULT_ADMIN),
            common: self.common,
            control_planes: self.control_plane,
            join_token_file: self.join_token_file,
            data_dir: self.data_dir,
            tunnel_listen: self.tunnel_listen,
            destination_address: self.destination_address,
            destination_ports: self.destination_ports,
            advertise,
            name,
            group: parse_name("--group", self.group.as_deref().unwrap_or("default"))?,
            asked,
            limits: self.limits,
            handshakes: (self.limit_handshakes, self.limit_handshakes_per_source),
            streams_per_source: self.limit_streams_per_source,
            trusted_proxies: self.trusted_proxies,
            cloud_allow: CloudAllow::parse(&self.cloud_allow).map_err(|(entry, error)| {
                Invalid::new(
                    "--cloud-allow",
                    entry,
                    error.message,
                    "write HOST[:PORT] or CIDR[:PORT], several with commas",
                )
            })?,
        })
    }
}

fn parse_name(flag: &str, text: &str) -> Result<Name, Invalid> {
    Name::new(text).map_err(|error| Invalid::new(flag, text, error.message, "choose another name"))
}

/// The machine's name without its domain, as far as it makes a name.
fn machine_name() -> Name {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let first = text.trim().split('.').next().unwrap_or_default();
    let folded: String = first
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    Name::new(folded.trim_matches('-'))
        .or_else(|_| Name::new("node"))
        .expect("invariant: the constant is a name")
}

fn default_advertise(listen: IpAddr, name: &Name) -> Host {
    if listen.is_unspecified() {
        Host::Name(name.to_string())
    } else {
        Host::Ip(listen.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use sg_runtime::config::load_from;

    use super::*;

    fn check(flags: &[&str]) -> Result<Settings, Invalid> {
        let arguments = ["sg-data-plane", "--data-dir", "/tmp/x"]
            .iter()
            .chain(flags);
        let args: Result<Args, _> = load_from(arguments, &|_| None);
        let Ok(args) = args else {
            panic!("each flag parses by itself");
        };
        args.check()
    }

    #[test]
    fn lists_take_commas_and_repetition() {
        let flags = [
            "--control-plane",
            "a:1,b:2",
            "--cloud-allow",
            "127.0.0.0/8",
            "--cloud-allow",
            "::1/128",
            "--trusted-proxies",
            "10.0.0.0/8,192.0.2.1",
            "--trusted-proxies",
            "2001:db8::/32",
        ];
        let settings = check(&flags).unwrap();
        let found: Vec<_> = settings
            .control_planes
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["a:1", "b:2"]);
        let trusted: Vec<_> = settings
            .trusted_proxies
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(trusted, ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]);
    }

    #[test]
    fn what_is_advertised_follows_the_tunnel_listener() {
        let settings = check(&["--tunnel-listen", "127.0.0.2:0", "--name", "n"]).unwrap();
        assert_eq!(settings.advertise.to_string(), "127.0.0.2");
        let settings = check(&["--name", "n"]).unwrap();
        assert_eq!(settings.advertise.to_string(), "n");
        let settings = check(&["--advertise", "gw.example.com"]).unwrap();
        assert_eq!(settings.advertise.to_string(), "gw.example.com");
    }

    #[test]
    fn the_help_says_how_values_are_written() {
        use clap::CommandFactory as _;
        let help = Args::command().render_help().to_string();
        // Lines are broken by the width.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            ":9001 (node)",
            "500ms, 30s, 5m or 24h",
            "as 64KiB",
            "1 to 1024",
            "--control-plane <HOST:PORT[,HOST:PORT...]>",
            "--cloud-allow <HOST[:PORT]|CIDR[:PORT][,...]>",
            "--trusted-proxies <CIDR[,CIDR...]>",
            "at the first start only [default: default]",
        ] {
            assert!(help.contains(part), "{part} is missing in: {help}");
        }
    }

    #[test]
    fn wrong_values_name_the_flag() {
        assert_eq!(check(&["--name", "Not A Name"]).unwrap_err().key, "--name");
        let many = ["--control-plane", "a:1,b:1,c:1,d:1,e:1"];
        assert_eq!(check(&many).unwrap_err().key, "--control-plane");
    }
}
