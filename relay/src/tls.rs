//! TLS of users and of resources: both ends of a relayed connection that may be secured.
//!
//! * [`UserTls`] accepts users: [`UserTls::accept`] reads what a client asks for, [`Hello::finish`] goes on with
//!   the application protocol that the caller has chosen meanwhile.
//! * [`ResourceTls`] connects to a resource and checks it.
//!
//! Both are built once from plain values, are cheap to share, and give a [`TlsStream`] and the [`TlsFacts`] of
//! the handshake. A changed destination gets a new one, which connections that are open do not notice. What
//! fails is a [`TlsError`], whose word people can search for.
//!
//! The records are handled by `engine`, which knows no socket and holds no buffer while nothing moves; sockets
//! are read and written in large pieces.
//!
//! Not here: which certificates a destination has, and reading them ([`sg_runtime::tls::material`]); TLS between
//! the parts of Secure Gateway, which trusts by identity ([`sg_runtime::tls`]).

mod engine;
mod error;
mod facts;
mod handshake;
mod preface;
mod provider;
mod resource;
mod stream;
mod trust;
mod user;
mod verify;

use std::time::Duration;

pub use error::{TlsError, TlsSetupError};
pub use facts::{PeerCertificate, TlsFacts};
pub use resource::{ResourceTls, ResourceTlsSettings};
pub use sg_runtime::tls::material::Pair;
pub use stream::TlsStream;
pub use user::{Alpn, Hello, UserTls, UserTlsSettings};

pub(crate) use engine::{Engine, Fault};
pub(crate) use stream::{answer, poll_flush, poll_write};

/// How long each step of a handshake may take, whatever the caller allows.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
