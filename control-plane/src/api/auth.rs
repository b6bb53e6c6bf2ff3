//! Who is calling. Everything public but health and reflection asks for an administrator's token;
//! nodes are known by their certificates alone.

use std::sync::atomic::Ordering;

use sg_model::NodeId;
use sg_runtime::identity::PeerKind;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::errors::status;
use super::serve::ConnectionInfo;
use crate::ids;
use crate::world::keeper::Views;

/// An administrator, found by the token. Only [`BearerAuth`] makes one.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// For the record.
    pub(super) name: String,
    /// Tells callers apart in keys.
    pub(super) key: String,
}

/// Lets requests through that carry a valid token, and says in them whose it is.
#[derive(Debug, Clone)]
pub(super) struct BearerAuth {
    views: Views,
}

impl BearerAuth {
    pub(super) const fn new(views: Views) -> Self {
        Self { views }
    }
}

impl Interceptor for BearerAuth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let refuse = |reason, text| Err(status(Code::Unauthenticated, reason, text));
        let Some(value) = request.metadata().get("authorization") else {
            return refuse(
                "TOKEN_MISSING",
                "send the admin token as 'authorization: Bearer sga_…'",
            );
        };
        let text = value.to_str().unwrap_or_default();
        let token = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => "",
        };
        if !token.starts_with("sga_") {
            return refuse(
                "TOKEN_MALFORMED",
                "the authorization is not 'Bearer' and an admin token, which begins with sga_",
            );
        }
        let hash = ids::token_hash(token);
        let view = self.views.now();
        let Some(admin) = view.world.admin(&hash) else {
            return refuse("TOKEN_UNKNOWN", "the admin token is not known here");
        };
        if admin.role != "admin" {
            let text = "the token's role does not allow this";
            return Err(status(Code::PermissionDenied, "ROLE_NOT_SUFFICIENT", text));
        }
        let key = sg_runtime::crypto::hex(hash.first_chunk::<8>().unwrap_or(&[0; 8]));
        if let Some(connection) = request.extensions().get::<ConnectionInfo>() {
            connection.proved.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(Caller {
            name: admin.name.clone(),
            key,
        });
        Ok(request)
    }
}

/// The caller of a request that came through [`BearerAuth`].
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let found = request.extensions().get::<Caller>().cloned();
    found.ok_or_else(|| {
        status(
            Code::Unauthenticated,
            "TOKEN_MISSING",
            "no admin token was sent",
        )
    })
}

/// The node whose certificate the connection proved.
pub(super) fn node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let refuse = |text| status(Code::Unauthenticated, "NODE_CERTIFICATE_REQUIRED", text);
    let identity = request
        .extensions()
        .get::<ConnectionInfo>()
        .and_then(|connection| connection.identity.as_ref())
        .ok_or_else(|| refuse("connect with the node's certificate"))?;
    if identity.kind != PeerKind::Node {
        return Err(refuse("the certificate belongs to no node"));
    }
    NodeId::new(&identity.id).map_err(|_| refuse("the certificate names no node"))
}
