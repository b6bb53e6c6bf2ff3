//! HTTP destinations, both ends and all between, over pipes in memory: what is refused, what arrives, how things
//! end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    unreachable_pub
)]

mod bodies;
mod ends;
mod headers;
mod http2;
mod pipe;
mod raw;
mod rig;
mod upgrades;
