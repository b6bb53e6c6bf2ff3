//! One relayed connection, as both the node and the client handle it: open the TCP side, join it with
//! a stream of a tunnel, count what passes, and write one line when it ends.
//!
//! Datagrams have their own module, [`udp`]; they share dialling, ends and books with connections.
//!
//! Not here: which tunnel carries a stream, who may open one, where ports are opened. Nothing here
//! knows the control plane or the wire messages.
//!
//! Where to start: [`join`] is the story of a connection's bytes and of how it ends; [`dial`] opens the
//! side towards a resource; [`StreamAccount`] keeps the books, whatever happens.

mod account;
mod carrier;
pub mod compress;
mod counters;
mod dial;
mod end;
pub mod http;
mod join;
mod limits;
mod metrics;
mod socket;
mod tunnel_board;
pub mod udp;

pub use account::{Parties, StreamAccount, TcpEnd};
pub use counters::ByteCounters;
pub use dial::{DialError, dial};
pub use end::StreamEnd;
pub use join::{EndReason, Ended, JoinOptions, join};
pub use limits::{RateArg, TunnelLimits};
pub use metrics::{DestinationMeter, StreamMetrics};
pub use socket::{ResetOnDrop, socket_error, tune};
pub use tunnel_board::{Posted, TunnelBoard, TunnelInfo};
