//! A data-plane node: users connect to the ports it opens, clients to its tunnel listener, and it relays
//! between the two.
//!
//! What it is not: it decides nothing about configuration (the control plane does) and resolves or connects
//! to no on-premises resource (the client does). Nothing on the path of a user's byte, of a connection or of
//! a client's reconnection waits for the control plane: a node serves what it has, also from its disk.
//!
//! Where to start:
//!
//! | to see … | read |
//! |---|---|
//! | what runs, and in which order | `app` |
//! | the story of one user's connection | `connection` |
//! | the same of datagrams | `udp` |
//! | the same the other way round, for users at a client | `cloud` |
//! | how configuration arrives and status leaves | `control` |
//! | how it becomes open ports | `reconcile` |
//! | how a client gets its tunnel, and which one carries a stream | `tunnels` |
//!
//! One writer each: `control` writes the desired configuration, `reconcile` the served one; all others read
//! immutable snapshots of it.

pub mod app;
mod balancers;
mod certificates;
mod cloud;
pub mod config;
mod connection;
mod control;
mod edits;
mod enroll;
mod for_clients;
mod listener;
mod log_limit;
mod metrics;
mod node;
mod receptions;
mod reconcile;
mod state;
mod streams;
mod tunnels;
mod udp;

#[cfg(test)]
mod tests;
