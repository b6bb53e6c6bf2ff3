//! `securegateway.v1.Tokens`: decode, ask the service, encode.

use std::time::Duration;

use sg_model::{Name, Role};
use sg_proto::api as wire;
use sg_proto::api::tokens_server::Tokens;
use sg_proto::convert::{duration_from_wire, timestamp_to_wire};
use tonic::{Request, Response, Status};

use super::Api;
use super::request::{call, page, token_name};
use crate::service::ServiceError;
use crate::service::tokens::TokenDraft;

fn draft(asked: &wire::CreateAdminTokenRequest) -> Result<TokenDraft, ServiceError> {
    let token = asked
        .admin_token
        .as_ref()
        .ok_or_else(|| ServiceError::invalid("admin_token", "must be given"))?;
    let mut faults = Vec::new();
    let mut note = |fault| faults.push(fault);
    let name = Name::new(&token.name).map_err(&mut note).ok();
    let role = token.role.parse::<Role>().map_err(&mut note).ok();
    match (name, role) {
        (Some(name), Some(role)) => Ok(TokenDraft {
            name,
            role,
            gateways: token.gateways.clone(),
            days: asked.days,
        }),
        _ => Err(ServiceError::Invalid(faults)),
    }
}

#[tonic::async_trait]
impl Tokens for Api {
    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<wire::JoinToken>, Status> {
        const METHOD: &str = "Tokens.CreateJoinToken";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let ttl: Option<Duration> = asked
                .ttl
                .as_ref()
                .map(|ttl| duration_from_wire("ttl", ttl))
                .transpose()?;
            let (token, expires) = self.core.create_join_token(&call, ttl).await?;
            let expire_time = Some(timestamp_to_wire(expires));
            Ok(wire::JoinToken {
                token: token.expose().clone(),
                expire_time,
            })
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn create_admin_token(
        &self,
        request: Request<wire::CreateAdminTokenRequest>,
    ) -> Result<Response<wire::AdminToken>, Status> {
        const METHOD: &str = "Tokens.CreateAdminToken";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let (record, secret) = self.core.create_admin_token(&call, draft(asked)?).await?;
            let mut token = record.to_api();
            if let Some(secret) = secret {
                secret.expose().clone_into(&mut token.token);
            }
            Ok(token)
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn get_admin_token(
        &self,
        request: Request<wire::GetAdminTokenRequest>,
    ) -> Result<Response<wire::AdminToken>, Status> {
        let asked = request.into_inner();
        let work = async { Ok(self.core.admin_token(token_name(&asked.name)?)?.to_api()) };
        self.rpcs.unary("Tokens.GetAdminToken", work).await
    }

    async fn list_admin_tokens(
        &self,
        request: Request<wire::ListAdminTokensRequest>,
    ) -> Result<Response<wire::ListAdminTokensResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let all = self.core.admin_tokens().into_iter();
            let keyed = all.map(|token| (token.id.clone(), token));
            let (found, next_page_token) = page(keyed, asked.page_size, &asked.page_token)?;
            Ok(wire::ListAdminTokensResponse {
                admin_tokens: found.iter().map(|token| token.to_api()).collect(),
                next_page_token,
            })
        };
        self.rpcs.unary("Tokens.ListAdminTokens", work).await
    }

    async fn delete_admin_token(
        &self,
        request: Request<wire::DeleteAdminTokenRequest>,
    ) -> Result<Response<pbjson_types::Empty>, Status> {
        const METHOD: &str = "Tokens.DeleteAdminToken";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let name = token_name(&asked.name)?;
            self.core.delete_admin_token(&call, name).await?;
            Ok(pbjson_types::Empty {})
        };
        self.rpcs.unary(METHOD, work).await
    }
}
