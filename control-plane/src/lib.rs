//! The control plane of Secure Gateway: what an operator asks for, kept in a store and brought to
//! the nodes.
//!
//! The way of a change, and of this crate: [`api`] decodes a request → [`service`] decides and
//! writes one transaction → [`store`] keeps it and tells of it → [`world`] holds what is there as
//! typed values → [`plan`] works out what each node group should serve → [`push`] brings it to the
//! nodes and takes their reports back, which [`api`] shows. `docs/change.md` walks it.
//!
//! Start with [`app`], which puts it together. It relays no user's byte, and nothing that a user's
//! connection needs waits for it.

pub mod api;
pub mod app;
pub mod authority;
pub mod bootstrap;
pub mod config;
mod gauges;
mod http;
mod ids;
mod keys;
pub mod plan;
pub mod push;
pub mod recover;
pub mod service;
pub mod store;
mod tasks;
pub mod vault;
pub mod world;
