//! Every message that leaves a process or is stored, and the only conversions between these and the
//! domain words of `sg-model`.
//!
//! What it is not: no sockets, no decisions. Which package is spoken where:
//!
//! | module | between |
//! |---|---|
//! | [`api`] (`securegateway.v1`) | anyone with an admin token and the control plane; also its JSON |
//! | [`node`] (`securegateway.node.v1`) | data-plane nodes and the control plane |
//! | [`tunnel`] (`securegateway.tunnel.v1`) | client and node, inside their TLS connection |
//! | [`store`] (`securegateway.store.v1`) | the control plane and its store |
//!
//! Start with [`convert`]: a handler never touches a generated type after its first line.

/// Encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod convert;
mod debug;
pub mod pieces;

/// What the packages became, nested as they are named: messages of one refer to those of another so.
mod generated {
    #[allow(
        missing_debug_implementations,
        clippy::all,
        clippy::use_self,
        clippy::redundant_clone,
        clippy::let_underscore_must_use,
        clippy::unwrap_used,
        clippy::pedantic,
        unreachable_pub,
        unused_qualifications
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/securegateway.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/securegateway.v1.serde.rs"));
    }

    pub(crate) mod node {
        #[allow(
            missing_debug_implementations,
            clippy::all,
            clippy::use_self,
            clippy::redundant_clone,
            clippy::let_underscore_must_use,
            clippy::unwrap_used,
            unreachable_pub,
            unused_qualifications
        )]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/securegateway.node.v1.rs"));
        }
    }

    pub(crate) mod tunnel {
        #[allow(
            missing_debug_implementations,
            clippy::all,
            clippy::use_self,
            unreachable_pub,
            unused_qualifications
        )]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/securegateway.tunnel.v1.rs"));
        }
    }

    pub(crate) mod store {
        #[allow(
            missing_debug_implementations,
            clippy::all,
            clippy::use_self,
            unreachable_pub,
            unused_qualifications
        )]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/securegateway.store.v1.rs"));
        }
    }
}

/// What nodes and control planes say to each other.
pub use generated::node::v1 as node;
/// Values at rest.
pub use generated::store::v1 as store;
/// What clients and nodes say to each other.
pub use generated::tunnel::v1 as tunnel;
/// The public API.
pub use generated::v1 as api;
