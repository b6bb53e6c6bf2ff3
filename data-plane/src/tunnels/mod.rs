//! Tunnels of clients: accepted, authenticated, kept in a registry, chosen for streams.
//!
//! [`acceptor`] takes connections and does the handshakes; [`admit`] decides who may stay, offline, by what the
//! control plane pushed earlier; [`session`] lives as long as one tunnel, [`resume`] lets it outlive a connection; [`registry`] knows all of them and
//! says which one carries the next stream; [`hold`] bounds the connections that wait for a client;
//! [`settings`] are shared by tunnels.

pub(crate) mod acceptor;
mod admit;
mod credential;
mod edits;
mod exchange;
mod hello;
mod hold;
mod refusals;
mod registry;
mod resume;
mod session;
mod settings;
mod updates;

pub(crate) use hold::Hold;
pub(crate) use registry::{Choice, Health, Registry};
pub(crate) use session::Session;
