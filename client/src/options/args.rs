//! The flags as clap reads them. The short ones and their quirks are those of old start scripts:
//! `--t`, `--F` and `--l` mean `-t`, `-F` and `-l`, and several gateways share one option with
//! `--` between the values.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use sg_model::PrefixMode;
use sg_relay::TunnelLimits;
use sg_runtime::config::CommonArgs;
use sg_runtime::secret::Secret;
use sg_runtime::threads::Threads;
use sg_runtime::tls::Trust;

/// Connects the gateways of an on-premises network to the nodes of Secure Gateway
#[derive(Debug, Parser)]
#[command(
    name = "sg-client",
    version,
    after_help = format!(
        "Values for several gateways are joined by --, in the order of the gateways; `none` leaves one out.\n{}\n{}\n\
         Example: sg-client plant office --token-file tokens -g node1.example:9000,node2.example:9000 --ca ca.pem",
        sg_runtime::duration::HELP,
        sg_runtime::size::HELP,
    )
)]
pub struct Args {
    /// Gateways to connect to, by id or by name where that is unambiguous
    #[arg(value_name = "GATEWAY_ID", required = true)]
    pub gateway_id: Vec<String>,

    /// Security tokens; visible to other users of this machine: prefer --token-file
    #[arg(short = 't', long, alias = "t", value_name = "TOKEN[--TOKEN...]", value_parser = secret, conflicts_with = "token_file")]
    pub sectoken: Option<Secret<String>>,

    /// File with the security tokens, one per line in the order of the gateways
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Nodes to connect to
    #[arg(
        short = 'g',
        long,
        alias = "g",
        value_name = "HOST:PORT[,HOST:PORT...]",
        required = true
    )]
    pub gateway: String,

    /// CA certificate of the nodes: a PEM file, or sha256: and the hash of its public key
    #[arg(long, value_name = "FILE|sha256:HEX", required = true)]
    pub ca: Trust,

    /// File with access control entries, `acl allow HOST:PORT` per line; narrows the gateway's own list
    #[arg(short = 'F', long, alias = "F", value_name = "FILE[--FILE...]")]
    pub aclfile: Option<String>,

    /// As -F, for all gateways
    #[arg(long, value_name = "FILE")]
    pub local_acl: Option<PathBuf>,

    /// How paths of -F and --local-acl are compared: segment, or text as Secure Gateway did it (/my/api lets /my/apix through)
    #[arg(long, value_name = "segment|text", default_value_t = PrefixMode::Segment)]
    pub acl_path_prefix: PrefixMode,

    /// Directory for the key that identifies this client [default: the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// How the client calls itself to the nodes [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Tunnels to each node, 1 to 16; a client with more gets a larger share of the streams
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,

    /// Address that the ports of cloud destinations listen on; anything but loopback lets other machines connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    pub client_address: IpAddr,

    /// Failed attempts in a row after which a gateway is given up; -1: never
    #[arg(short = 'r', long, alias = "r", value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub reconnect: i64,

    /// Exit with 1 at the first failed connection instead of trying again
    #[arg(long)]
    pub once: bool,

    /// ERROR, WARN, INFO, DEBUG or TRACE; stronger than --log-level
    #[arg(short = 'l', long, alias = "l", value_name = "LEVEL[--LEVEL...]")]
    pub loglevel: Option<String>,

    /// Accepted and not in effect: file for the log
    #[arg(short = 'p', long, alias = "p", value_name = "FILE")]
    pub logpath: Option<String>,

    /// Accepted and not in effect: port of the local page
    #[arg(short = 'P', long, alias = "P", value_name = "PORT")]
    pub port: Option<u16>,

    /// Accepted and not in effect: password of the local page
    #[arg(short = 'w', long, alias = "w", value_name = "PASSWORD", value_parser = secret)]
    pub password: Option<Secret<String>>,

    /// Proxy for the tunnels: http://, https:// or socks5://[USER:PASSWORD@]HOST:PORT; for a password prefer --proxy-file
    #[arg(short = 'x', long, alias = "x", value_name = "URL", value_parser = secret, conflicts_with = "proxy_file")]
    pub proxy: Option<Secret<String>>,

    /// File with the proxy's URL
    #[arg(long, value_name = "FILE")]
    pub proxy_file: Option<PathBuf>,

    /// Certificates that an https:// proxy is checked by, PEM [default: the system's authorities]
    #[arg(long, value_name = "FILE")]
    pub proxy_ca: Option<PathBuf>,

    /// Accepted: there is no local page yet
    #[arg(long = "noUI", alias = "no-ui")]
    pub no_ui: bool,

    /// Accepted and not in effect: allow everything unless there is an access control file
    #[arg(long)]
    pub allow: bool,

    /// Never give up
    #[arg(long)]
    pub service: bool,

    /// Accepted: there is no licence prompt
    #[arg(long, alias = "no_license")]
    pub no_license: bool,

    /// Read commands from standard input, also when it is no terminal: A, D, N, S, F change and show the access control list
    #[arg(long)]
    pub console: bool,

    /// Do not read commands from a terminal
    #[arg(long, conflicts_with = "console")]
    pub no_console: bool,

    /// How many threads do the work.
    #[command(flatten)]
    pub threads: Threads,

    /// What tunnels may take
    #[command(flatten)]
    pub limits: TunnelLimits,

    /// Connections to resources that may be under way at a time; further ones wait
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit_dials: u32,

    /// The flags of every daemon
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A proxy's URL may hold a password, so it is kept like one.
fn secret(text: &str) -> Result<Secret<String>, std::convert::Infallible> {
    Ok(Secret::new(text.to_owned()))
}
