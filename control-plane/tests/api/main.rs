//! The control plane as its callers see it: through real gRPC over TLS, in this process.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod audit;
mod certificates;
mod destinations;
mod edits;
mod gateways;
mod harness;
mod nodes;
mod roles;
mod sync;
mod threats;
