//! What the end-to-end tests stand on: it starts the real programs of the product and the real
//! programs at both ends of it, each with its own directory and ports, and ends them again.
//! Nothing of the product is linked in: tests see what an operator sees, which is files, ports,
//! logs, metrics and `sgctl`.
//!
//! Start reading at [`Site`], one whole installation; [`Daemon`] is one process of it;
//! [`eventually`] is the only way to wait. The tests themselves are in `tests/e2e_*.rs`.

pub mod backend;
pub mod bytes;
pub mod canaries;
mod console;
pub mod counterpart;
mod daemon;
pub mod datagrams;
mod http;
pub mod link;
mod logs;
pub mod owner;
mod ports;
mod process;
mod programs;
pub mod proxy_header;
pub mod secure;
mod sgctl;
mod site;
mod wait;

pub use daemon::Daemon;
pub use http::{Metrics, get, get_when_served};
pub use logs::{AccessLine, LogLine};
pub use ports::Ports;
pub use process::{Launch, Process};
pub use programs::{debian, product};
pub use sgctl::{Answer, Sgctl};
pub use site::{Client, ClientSetup, Destination, Gateway, Site, SiteSetup};
pub use wait::{PATIENCE, eventually, within};

/// First line of every test: room for as many sockets as the test needs.
///
/// # Panics
/// The system refuses to raise the soft limit to the hard one.
pub fn prepare() {
    sg_runtime::net::raise_nofile_limit().expect("the soft limit may be raised to the hard one");
}
