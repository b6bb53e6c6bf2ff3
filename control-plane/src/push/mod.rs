//! From plans to nodes, and back what the nodes observe.
//!
//! A node keeps a stream to every control plane. [`session`] is one such stream: it sends the
//! node its configuration (if the node asked this control plane to), at most one unacknowledged
//! change at a time, always the newest. [`observed`] holds what all nodes last reported; the API
//! shows it, and no plan ever depends on it.

mod cursor;
pub mod observed;
pub mod session;

pub use observed::Observed;
