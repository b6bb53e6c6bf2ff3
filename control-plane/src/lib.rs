//! The control plane of Secure Gateway.

pub mod store;
