//! `securegateway.v1.CertificateAuthority`: decode, ask the service, encode.

use sg_proto::api as wire;
use sg_proto::api::certificate_authority_server::CertificateAuthority;
use sg_runtime::crypto;
use sg_runtime::identity::{self, CertificateDer};
use tonic::{Request, Response, Status};

use super::Api;
use super::request::call;
use crate::authority::Authority;

#[tonic::async_trait]
impl CertificateAuthority for Api {
    async fn get_authority(
        &self,
        _request: Request<wire::GetAuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        let work = async { Ok(self.encode(&self.core.authority.get())) };
        self.rpcs
            .unary("CertificateAuthority.GetAuthority", work)
            .await
    }

    async fn rotate_authority(
        &self,
        request: Request<wire::RotateAuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        const METHOD: &str = "CertificateAuthority.RotateAuthority";
        let call = call(&request, METHOD, &request.get_ref().request_id, false)?;
        let work = async {
            let authority = self.core.rotate_authority(&call).await?;
            Ok(self.encode(&authority))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn finish_authority_rotation(
        &self,
        request: Request<wire::FinishAuthorityRotationRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        const METHOD: &str = "CertificateAuthority.FinishAuthorityRotation";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let authority = self.core.finish_authority(&call, asked.force).await?;
            Ok(self.encode(&authority))
        };
        self.rpcs.unary(METHOD, work).await
    }
}

impl Api {
    fn encode(&self, authority: &Authority) -> wire::Authority {
        let previous = authority.previous().map(|previous| &previous.certificate);
        let lagging = self.core.lagging(authority, &self.core.observed);
        wire::Authority {
            sha256: crypto::hex(authority.spki_sha256()),
            expire_time: ends(authority.certificate()),
            previous_sha256: previous
                .and_then(|root| identity::spki_sha256(root).ok())
                .map(|hash| crypto::hex(&hash))
                .unwrap_or_default(),
            previous_expire_time: previous.and_then(ends),
            certificates_pem: authority.trusted_pem(),
            lagging_nodes: lagging
                .into_iter()
                .map(|node| wire::LaggingNode {
                    node_id: node.id,
                    node: node.name,
                    connected: node.connected,
                })
                .collect(),
        }
    }
}

fn ends(root: &CertificateDer<'_>) -> Option<pbjson_types::Timestamp> {
    let seconds = identity::not_after(root).ok()?;
    Some(pbjson_types::Timestamp { seconds, nanos: 0 })
}
