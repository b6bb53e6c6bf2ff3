//! `securegateway.v1.Acls`: decode, ask the service, encode; and watch.

use std::pin::Pin;

use futures_util::Stream;
use sg_model::{AclEntry, PrefixMode};
use sg_proto::api as wire;
use sg_proto::api::acls_server::Acls;
use sg_proto::convert::api::{acl_entry, acl_replacement, acl_target, acl_to_api};
use tonic::{Request, Response, Status};

use super::Api;
use super::request::{call, gateway_name};
use super::watch;
use crate::service::acls::AclAnswer;
use crate::service::{ServiceError, status};

impl Api {
    fn encode_acl(&self, answer: &AclAnswer) -> wire::Acl {
        let view = self.core.views.now();
        let reports = self.core.observed.reports();
        let gateway = &answer.gateway.value;
        let (id, name) = (&gateway.gateway.id, gateway.gateway.name.as_str());
        let mut acl = acl_to_api(id, name, &answer.acl.value, answer.acl.etag());
        let version = answer.acl.value.version;
        acl.status = Some(status::acl(&view.world, &reports, gateway, version));
        acl
    }

    async fn current_acl(&self, gateway: &str) -> Result<wire::Acl, ServiceError> {
        let answer = self.core.acl(gateway).await?;
        Ok(self.encode_acl(&answer))
    }
}

fn entry(
    entry: Option<&wire::AclEntry>,
    parse: impl Fn(&wire::AclEntry) -> Result<AclEntry, sg_model::Invalid>,
) -> Result<AclEntry, ServiceError> {
    let entry = entry.ok_or_else(|| ServiceError::invalid("entry", "must be given"))?;
    Ok(parse(entry)?)
}

#[tonic::async_trait]
impl Acls for Api {
    async fn get_acl(
        &self,
        request: Request<wire::GetAclRequest>,
    ) -> Result<Response<wire::Acl>, Status> {
        let asked = request.into_inner();
        let work = async { self.current_acl(gateway_name(&asked.name)?).await };
        self.rpcs.unary("Acls.GetAcl", work).await
    }

    async fn add_acl_entry(
        &self,
        request: Request<wire::AddAclEntryRequest>,
    ) -> Result<Response<wire::Acl>, Status> {
        const METHOD: &str = "Acls.AddAclEntry";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let name = gateway_name(&asked.name)?;
            let entry = entry(asked.entry.as_ref(), acl_entry)?;
            let answer = self
                .core
                .change_acl(&call, name, &asked.etag, |acl| Ok(acl.add(entry.clone())?))
                .await?;
            Ok(self.encode_acl(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn remove_acl_entry(
        &self,
        request: Request<wire::RemoveAclEntryRequest>,
    ) -> Result<Response<wire::Acl>, Status> {
        const METHOD: &str = "Acls.RemoveAclEntry";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let name = gateway_name(&asked.name)?;
            let target = entry(asked.entry.as_ref(), acl_target)?;
            let missing =
                || ServiceError::not_found("access control entry", target.target_and_path());
            let answer = self
                .core
                .change_acl(&call, name, &asked.etag, |acl| {
                    if acl.remove(&target) {
                        Ok(true)
                    } else {
                        Err(missing())
                    }
                })
                .await?;
            Ok(self.encode_acl(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn reset_acl(
        &self,
        request: Request<wire::ResetAclRequest>,
    ) -> Result<Response<wire::Acl>, Status> {
        const METHOD: &str = "Acls.ResetAcl";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let name = gateway_name(&asked.name)?;
            let answer = self
                .core
                .change_acl(&call, name, &asked.etag, |acl| {
                    let before = acl.clone();
                    acl.reset();
                    Ok(*acl != before)
                })
                .await?;
            Ok(self.encode_acl(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn replace_acl(
        &self,
        request: Request<wire::ReplaceAclRequest>,
    ) -> Result<Response<wire::Acl>, Status> {
        const METHOD: &str = "Acls.ReplaceAcl";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let name = gateway_name(&asked.name)?;
            // Faults of the request are told before the store is asked.
            acl_replacement(asked, PrefixMode::default())?;
            let answer = self
                .core
                .change_acl(&call, name, &asked.etag, |acl| {
                    let mut next = acl_replacement(asked, acl.path_prefix)?;
                    next.version = acl.version;
                    let changed = next != *acl;
                    *acl = next;
                    Ok(changed)
                })
                .await?;
            Ok(self.encode_acl(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    type WatchAclStream = Pin<Box<dyn Stream<Item = Result<wire::Acl, Status>> + Send>>;

    async fn watch_acl(
        &self,
        request: Request<wire::WatchAclRequest>,
    ) -> Result<Response<Self::WatchAclStream>, Status> {
        let name = request.into_inner().name;
        let first = async {
            let gateway = self.core.gateway(gateway_name(&name)?).await?;
            Ok(gateway.value.gateway.id.to_string())
        };
        let id = self.rpcs.unary("Acls.WatchAcl", first).await?.into_inner();
        let api = self.clone();
        let stream = watch::values(self, move || {
            let (api, id) = (api.clone(), id.clone());
            async move { api.current_acl(&id).await }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
