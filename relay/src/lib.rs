//! One relayed connection, as both the node and the client handle it: open the TCP side, join it with
//! a stream of a tunnel, count what passes, and write one line when it ends.
//!
//! Datagrams have their own module, [`udp`]; they share dialling, ends and books with connections.
//!
//! Not here: which tunnel carries a stream, who may open one, where ports are opened. Nothing here
//! knows the control plane or the wire messages.
//!
//! Where to start: [`join`] is the story of a connection's bytes and of how it ends; [`dial`] opens the
//! side towards a resource; [`tls`] secures either side; [`StreamAccount`] keeps the books, whatever happens.

mod account;
mod carrier;
mod carrier_io;
pub mod compress;
mod counters;
mod dial;
mod end;
pub mod http;
mod join;
mod limits;
mod local;
mod local_io;
mod material;
mod metrics;
pub mod proxy_protocol;
mod reach;
mod receive;
mod socket;
mod socks;
pub mod tls;
mod tunnel_board;
mod tunnel_transport;
pub mod udp;

pub use account::{Parties, StreamAccount, TcpEnd};
pub use carrier_io::{StreamBroken, StreamIo};
pub use counters::ByteCounters;
pub use dial::{Dial, DialError, Dialled, Permit, Via, dial};
pub use end::StreamEnd;
pub use join::{EndReason, Ended, JoinOptions, join};
pub use limits::{RateArg, TunnelLimits};
pub use local::{Local, RawEnd};
pub use local_io::LocalIo;
pub use material::MaterialProblem;
pub use metrics::{DestinationMeter, StreamMetrics};
pub use reach::{Approach, Purpose, ReachError, Reached, Redial, Relaying};
pub use receive::{Opened, Opener, ReceiveOptions, Reception, Wish};
pub use socket::{ResetOnDrop, listen, socket_error, tune, tune_accepted};
pub use socks::{Socks, SocksError, SocksVersion};
pub use tunnel_board::{Posted, TunnelBoard, TunnelInfo};
pub use tunnel_transport::TunnelTransport;
