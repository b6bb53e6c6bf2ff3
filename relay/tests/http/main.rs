//! HTTP destinations, both ends and all between, over pipes in memory: what is refused, what arrives, how things
//! end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::string_slice,
    unreachable_pub
)]

mod bodies;
mod ends;
mod headers;
mod http2;
mod pipe;
mod raw;
mod rig;
mod threats;
mod tunnel;
mod upgrades;
