//! Certificates for who is known already: nodes renew theirs, and clients that a node has let in get one for their key.
//!
//! Everything is decided from memory, so certificates are renewed while the store is away. A node vouches for its clients: it
//! knows what they have shown, and may speak for the gateways of its group only. What it says beyond that is not
//! believed: that the gateway is enabled, wants certificates, has not replaced its security token since, and has not
//! revoked the client is looked up here.

use sg_model::{ClientCertificate, ClientCertificates, ClientId, GatewayId, NodeId};
use sg_proto::node as wire;
use sg_proto::node::certificate_request::Holder;
use sg_runtime::crypto;
use sg_runtime::identity::{self, PeerIdentity, PeerKind};

use super::Core;
use super::change::AUDIT;

/// Longest public key that is looked at, in bytes.
const LONGEST_KEY: usize = 1024;

/// Why there is no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// The gateway wants none.
    Off,
    /// The client, its gateway or its token do not hold, or the node may not speak for it.
    Unauthenticated,
    /// The node is not among those that are known here.
    NodeUnknown,
    /// The request is wrong, or the authority failed.
    Failed,
}

impl Refused {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unauthenticated => "unauthenticated",
            Self::NodeUnknown => "node-unknown",
            Self::Failed => "failed",
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::Off => "the gateway wants no client certificates",
            Self::Unauthenticated => {
                "the client, its gateway or its security token does not hold any more"
            }
            Self::NodeUnknown => "the node was removed, or has joined elsewhere a moment ago",
            Self::Failed => "the certificate cannot be issued",
        }
    }
}

impl Core {
    /// The answer to a node that asks for a certificate.
    pub fn certify(&self, node: &NodeId, asked: wire::CertificateRequest) -> wire::Certificate {
        let id = asked.id;
        let issued = match asked.holder {
            Some(Holder::NodeCsrDer(csr)) => self.certify_node(node, &csr),
            Some(Holder::Client(client)) => self.certify_client(node, &client),
            None => Err(Refused::Failed),
        };
        match issued {
            Ok(certificates_der) => wire::Certificate {
                id,
                certificates_der,
                ..wire::Certificate::default()
            },
            Err(refused) => wire::Certificate {
                id,
                reason: refused.as_str().to_owned(),
                message: refused.message().to_owned(),
                ..wire::Certificate::default()
            },
        }
    }

    fn certify_node(&self, node: &NodeId, csr: &[u8]) -> Result<Vec<Vec<u8>>, Refused> {
        // While the store is away its stream goes on: who was removed is not to get a longer life by that.
        if self.views.now().world.node(node).is_none() {
            return Err(Refused::NodeUnknown);
        }
        let identity =
            PeerIdentity::new(PeerKind::Node, node.as_str()).map_err(|_| Refused::Failed)?;
        let chain = self.authority.get().node(&identity, csr).map_err(|error| {
            tracing::warn!(%node, %error, "a node's certificate was not renewed");
            Refused::Failed
        })?;
        tracing::info!(target: AUDIT, principal = %format_args!("node/{node}"), method = "NodeSync.Sync",
            object = %format_args!("node/{node}"), "node certificate issued");
        Ok(chain.into_iter().map(|der| der.to_vec()).collect())
    }

    fn certify_client(
        &self,
        node: &NodeId,
        asked: &wire::ClientKey,
    ) -> Result<Vec<Vec<u8>>, Refused> {
        let unknown = |_| Refused::Unauthenticated;
        let id = GatewayId::new(&asked.gateway_id).map_err(unknown)?;
        let view = self.views.now();
        let group = view.world.node(node).map(|node| &node.value.group);
        let (gateway, _) = view.world.gateway(&id).ok_or(Refused::Unauthenticated)?;
        if group != Some(&gateway.value.group) {
            return Err(Refused::Unauthenticated);
        }
        let gateway = &gateway.value.gateway;
        if gateway.client_certificates == ClientCertificates::Off {
            return Err(Refused::Off);
        }
        if asked.public_key_der.len() > LONGEST_KEY {
            return Err(Refused::Failed);
        }
        // Whose key it is follows from the key; nobody is asked.
        let client = identity::client_id(&crypto::sha256(&asked.public_key_der));
        let client = ClientId::new(client).map_err(|_| Refused::Failed)?;
        let holds = gateway.enabled && asked.token_generation == gateway.token_generation;
        if !holds || gateway.is_revoked(client.as_str()) {
            return Err(Refused::Unauthenticated);
        }
        let name = ClientCertificate::identity_of(&gateway.id, gateway.token_generation, &client);
        let issued = PeerIdentity::new(PeerKind::Client, name)
            .map_err(|error| error.to_string())
            .and_then(|identity| {
                let authority = self.authority.get();
                let issued = authority.client(&identity, &asked.public_key_der);
                issued.map_err(|error| error.to_string())
            });
        let chain = issued.map_err(|error| {
            tracing::warn!(%node, gateway = %gateway.name, %client, error, "a client's certificate was not issued");
            Refused::Failed
        })?;
        tracing::info!(target: AUDIT, principal = %format_args!("node/{node}"), method = "NodeSync.Sync",
            object = %format_args!("gateway/{}/client/{client}", gateway.id), "client certificate issued");
        Ok(chain.into_iter().map(|der| der.to_vec()).collect())
    }
}
