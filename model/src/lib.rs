//! The domain of Secure Gateway in plain values: gateways, destinations, access control lists, and the
//! configuration that a node serves.
//!
//! What it is not: nothing here waits, connects, stores, or asks for the time. Dates come in as
//! [`Timestamp`]s and every decision is a function of its arguments.
//!
//! Where to start: [`Gateway`] and [`Destination`] are what an operator makes; [`Acl::decide`] says
//! what a client may reach, [`SourcePolicy::admits`] from where users may come; [`NodeConfig`] is the
//! complete state a node should serve, and [`NodeConfig::apply`] the only way to change it.
//!
//! Invariants held by construction (fields are parsed, not checked later):
//! - a [`Name`] is 1 to 63 of `a-z 0-9 -`, a [`Host`] is an IP address or a lower-case DNS name
//!   without a trailing dot, a port is never 0;
//! - an on-premises destination may have a cloud port and never a client port; a cloud destination
//!   has a client port and never a cloud port;
//! - a [`CanonicalPath`] is read in one way by every server: no encoded slash, no dot segment, nothing encoded twice.

mod acl;
mod credential;
mod destination;
mod endpoint;
mod ends;
mod error;
mod gateway;
mod id;
mod ip_range;
mod node_config;
mod path;
mod role;
mod shared_map;
mod source;
mod timestamp;
mod user;
mod words;

pub use acl::{
    Acl, AclCommand, AclEdit, AclEntry, AclFile, AclFileError, AclVersion, Action, ConsoleCommand,
    Decision, Finding, FindingKind, HostPattern, Reached, Scope, Why, canonical_address,
    is_special, lint,
};
pub use credential::{CertificateRefusal, ClientCertificate};
pub use destination::{
    DEFAULT_CONNECT_TIMEOUT, Destination, DestinationKind, Listen, MAX_CONNECT_TIMEOUT,
    MAX_KEEPALIVE,
};
pub use endpoint::{Host, HostPort, PortRange};
pub use ends::{
    Certificate, ForwardedHeaders, KeyPair, MAX_ALPN, MAX_ALPN_NAME, MAX_CERTIFICATES,
    MAX_SERVER_PAIRS, PairOrigin, Preface, ProxyProtocol, ResourceEnd, ResourceHttp, ResourceTls,
    SecretBytes, Socks, SocksVersion, UserEnd,
};
pub use error::Invalid;
pub use gateway::{
    DEFAULT_RESUME_TIME, Gateway, MAX_RESUME_TIME, MAX_REVOKED, TOKEN_GRACE, TokenHash,
    TokenRefusal,
};
pub use id::{ClientId, DestinationId, GatewayId, Name, NodeId};
pub use ip_range::IpRange;
pub use node_config::{
    Change, ConfigObject, NodeConfig, NodeObject, NodePeer, ObjectKey, StaleChange,
};
pub use path::{CanonicalPath, PathPrefix, PathRefusal, PrefixMode};
pub use role::{Role, TokenScope};
pub use shared_map::{Difference, Keyed, SharedMap};
pub use source::{SourceOwner, SourcePolicy, SourceRule, SourceSpec};
pub use timestamp::Timestamp;
pub use user::{UserFacts, UserTlsFacts};
pub use words::{AclEdits, ClientCertificates, Compression, Policy, Protocol, TokenExpiry};
