//! The tunnel protocol as a machine without IO. Under construction: see `docs/tunnel-protocol.md`.

pub mod code;

mod closed;
mod config;

pub use closed::{CloseReason, Closed};
pub use config::{Config, Rate, Rates};
