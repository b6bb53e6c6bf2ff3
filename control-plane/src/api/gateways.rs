//! `securegateway.v1.Gateways`: decode, ask the service, encode.

use sg_model::{Name, Policy};
use sg_proto::api as wire;
use sg_proto::api::gateways_server::Gateways;
use sg_proto::convert::api::{MAX_DESCRIPTION, gateway_draft, gateway_to_api, group_from_api};
use sg_proto::convert::node::{
    acl_edits_from_wire, client_certificates_from_wire, resume_time_from_wire,
    token_expiry_from_wire,
};
use sg_proto::convert::store::GatewayRecord;
use tonic::{Request, Response, Status};

use super::Api;
use super::request::{call, fields, gateway_name, page};
use crate::service::ServiceError;
use crate::service::change::Call;
use crate::service::gateways::{GatewayAnswer, TokenChoice};

const FIELDS: [&str; 10] = [
    "name",
    "policy",
    "description",
    "group",
    "token_required",
    "enabled",
    "resume_time",
    "token_expiry",
    "client_certificates",
    "acl_edits",
];

fn encode(answer: GatewayAnswer) -> wire::Gateway {
    let mut gateway = gateway_to_api(&answer.gateway.value, answer.gateway.etag());
    if let Some(secret) = answer.secret {
        secret.expose().clone_into(&mut gateway.security_token);
    }
    gateway
}

impl Api {
    async fn enable_or_disable(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        enabled: bool,
    ) -> Result<wire::Gateway, ServiceError> {
        let edit = |record: &mut GatewayRecord| {
            record.gateway.enabled = enabled;
            Ok(())
        };
        let name = gateway_name(name)?;
        self.core
            .update_gateway(call, name, etag, None, edit)
            .await
            .map(encode)
    }
}

#[tonic::async_trait]
impl Gateways for Api {
    async fn create_gateway(
        &self,
        request: Request<wire::CreateGatewayRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        const METHOD: &str = "Gateways.CreateGateway";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let asked = request.into_inner();
        let work = async {
            let gateway = asked
                .gateway
                .ok_or_else(|| ServiceError::invalid("gateway", "must be given"))?;
            let draft = gateway_draft(&gateway)?;
            let token = TokenChoice::new(asked.token_days, asked.no_token_expiry, asked.no_token)?;
            self.core
                .create_gateway(&call, draft, token, !asked.disabled)
                .await
                .map(encode)
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn get_gateway(
        &self,
        request: Request<wire::GetGatewayRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        let asked = request.into_inner();
        let work = async {
            let gateway = self.core.gateway(gateway_name(&asked.name)?).await?;
            Ok(gateway_to_api(&gateway.value, gateway.etag()))
        };
        self.rpcs.unary("Gateways.GetGateway", work).await
    }

    async fn list_gateways(
        &self,
        request: Request<wire::ListGatewaysRequest>,
    ) -> Result<Response<wire::ListGatewaysResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let view = self.core.views.now();
            let all = view
                .world
                .gateways()
                .map(|(g, _)| (g.value.gateway.id.to_string(), g));
            let (found, next_page_token) = page(all, asked.page_size, &asked.page_token)?;
            let gateways = found
                .into_iter()
                .map(|g| gateway_to_api(&g.value, g.etag()))
                .collect();
            Ok(wire::ListGatewaysResponse {
                gateways,
                next_page_token,
            })
        };
        self.rpcs.unary("Gateways.ListGateways", work).await
    }

    async fn update_gateway(
        &self,
        request: Request<wire::UpdateGatewayRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        const METHOD: &str = "Gateways.UpdateGateway";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let asked = request.into_inner();
        let work = async {
            let gateway = asked
                .gateway
                .ok_or_else(|| ServiceError::invalid("gateway", "must be given"))?;
            let names = [&asked.name, &gateway.id, &gateway.name];
            let name = names
                .into_iter()
                .find(|name| !name.is_empty())
                .map_or("", String::as_str);
            let set = [
                ("name", !gateway.name.is_empty() && !asked.name.is_empty()),
                ("policy", !gateway.policy.is_empty()),
                ("description", !gateway.description.is_empty()),
                ("group", !gateway.group.is_empty()),
                ("resume_time", gateway.resume_time.is_some()),
                ("token_expiry", !gateway.token_expiry.is_empty()),
                (
                    "client_certificates",
                    !gateway.client_certificates.is_empty(),
                ),
                ("acl_edits", !gateway.acl_edits.is_empty()),
            ];
            let fields = fields(asked.update_mask.as_ref(), &FIELDS, &set)?;
            // The group says which nodes get the gateway's secrets.
            if fields.iter().any(|field| field == "group") {
                self.core.needs_whole("changing the group")?;
            }
            let edit = |record: &mut GatewayRecord| edit(record, &gateway, &fields);
            let (name, force) = (gateway_name(name)?, Some(asked.force));
            self.core
                .update_gateway(&call, name, &gateway.etag, force, edit)
                .await
                .map(encode)
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn delete_gateway(
        &self,
        request: Request<wire::DeleteGatewayRequest>,
    ) -> Result<Response<pbjson_types::Empty>, Status> {
        const METHOD: &str = "Gateways.DeleteGateway";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let name = gateway_name(&asked.name)?;
            self.core
                .delete_gateway(&call, name, &asked.etag, asked.force, asked.cascade)
                .await?;
            Ok(pbjson_types::Empty {})
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn enable_gateway(
        &self,
        request: Request<wire::EnableGatewayRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        const METHOD: &str = "Gateways.EnableGateway";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = self.enable_or_disable(&call, &asked.name, &asked.etag, true);
        self.rpcs.unary(METHOD, work).await
    }

    async fn disable_gateway(
        &self,
        request: Request<wire::DisableGatewayRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        const METHOD: &str = "Gateways.DisableGateway";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = self.enable_or_disable(&call, &asked.name, &asked.etag, false);
        self.rpcs.unary(METHOD, work).await
    }

    async fn rotate_token(
        &self,
        request: Request<wire::RotateTokenRequest>,
    ) -> Result<Response<wire::Gateway>, Status> {
        const METHOD: &str = "Gateways.RotateToken";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let token = TokenChoice::new(asked.token_days, asked.no_token_expiry, false)?;
            self.core
                .rotate_token(&call, gateway_name(&asked.name)?, token)
                .await
                .map(encode)
        };
        self.rpcs.unary(METHOD, work).await
    }
}

/// Takes the named fields over.
fn edit(
    record: &mut GatewayRecord,
    new: &wire::Gateway,
    fields: &[String],
) -> Result<(), ServiceError> {
    let mut faults = Vec::new();
    for field in fields {
        let result = match field.as_str() {
            "name" => Name::new(&new.name).map(|name| record.gateway.name = name),
            "policy" => new
                .policy
                .parse::<Policy>()
                .map(|policy| record.gateway.policy = policy),
            "group" => group_from_api(&new.group).map(|group| record.group = group),
            "resume_time" => resume_time_from_wire(new.resume_time.as_ref())
                .map(|time| record.gateway.resume_time = time),
            "token_expiry" => token_expiry_from_wire(&new.token_expiry)
                .map(|expiry| record.gateway.token_expiry = expiry),
            "client_certificates" => client_certificates_from_wire(&new.client_certificates)
                .map(|wanted| record.gateway.client_certificates = wanted),
            "acl_edits" => {
                acl_edits_from_wire(&new.acl_edits).map(|edits| record.acl_edits = edits)
            }
            "enabled" => {
                record.gateway.enabled = new.enabled;
                Ok(())
            }
            "token_required" if new.token_required && record.gateway.tokens.is_empty() => {
                Err(sg_model::Invalid::new(
                    "token_required",
                    "the gateway has no security token yet; rotate it, which also requires it",
                ))
            }
            "token_required" => {
                record.gateway.token_required = new.token_required;
                Ok(())
            }
            _ if new.description.len() > MAX_DESCRIPTION => Err(sg_model::Invalid::new(
                "description",
                format!("must be at most {MAX_DESCRIPTION} bytes"),
            )),
            _ => {
                record.description.clone_from(&new.description);
                Ok(())
            }
        };
        faults.extend(result.err());
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(faults))
    }
}
