//! Cloud destinations: ports of this machine, from which users come out at a resource in the cloud. And what the client
//! must know of any destination beyond what the opening of a stream says.
//!
//! | to see … | read |
//! |---|---|
//! | what the nodes told of destinations | `known` |
//! | which ports are open, and why one is not | `ports` |
//! | the story of one user's connection | `connection` |
//! | who may send datagrams, and their flows | `flow` |
//! | which tunnel carries it | `tunnels` |

mod connection;
mod flow;
mod known;
mod ports;
mod tunnels;
mod users;

pub use known::{Known, KnownDestination, Outcome, State};
pub use ports::{ClientPorts, Ports, Report};
pub use tunnels::{Entered, Health, Tunnels, Way};
pub use users::Users;
