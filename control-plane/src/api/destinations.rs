//! `securegateway.v1.Destinations`: decode, ask the service, encode; and watch.

use std::pin::Pin;

use futures_util::Stream;
use sg_model::{GatewayId, SourceOwner, SourceSpec};
use sg_proto::api as wire;
use sg_proto::api::destinations_server::Destinations;
use sg_proto::convert::api::{destination_draft, destination_to_api};
use sg_proto::convert::ends::source_from_wire;
use sg_proto::convert::store::DestinationRecord;
use tonic::{Request, Response, Status};

use super::Api;
use super::destination_fields::{edit, normalise, paths, set_fields};
use super::request::{call, child_name, fields, gateway_name, page};
use super::watch;
use crate::ids;
use crate::service::change::Call;
use crate::service::destinations::DestinationAnswer;
use crate::service::{ServiceError, status};

impl Api {
    fn encode_destination(&self, answer: &DestinationAnswer) -> wire::Destination {
        let view = self.core.views.now();
        let reports = self.core.observed.reports();
        let gateway = &answer.gateway.value;
        let record = &answer.destination.value;
        let host = view.world.cloud_host(&gateway.group);
        let name = gateway.gateway.name.as_str();
        let etag = answer.destination.etag();
        let mut destination = destination_to_api(record, name, &host, etag);
        destination.status = Some(status::destination(&view.world, &reports, gateway, record));
        destination
    }

    /// The destination as it is now.
    pub(super) async fn current_destination(
        &self,
        gateway: &str,
        name: &str,
    ) -> Result<wire::Destination, ServiceError> {
        let gateway = self.core.gateway(gateway).await?;
        let destination = self.core.destination(&gateway, name).await?;
        Ok(self.encode_destination(&DestinationAnswer {
            gateway,
            destination,
        }))
    }

    async fn switch_destination(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        enabled: bool,
    ) -> Result<wire::Destination, ServiceError> {
        let path = child_name(name, "destinations")?;
        let edit = |record: &DestinationRecord| {
            let mut record = record.clone();
            record.destination.enabled = enabled;
            Ok(record)
        };
        let answer = self
            .core
            .update_destination(call, path, etag, None, edit)
            .await?;
        Ok(self.encode_destination(&answer))
    }
}

#[tonic::async_trait]
impl Destinations for Api {
    async fn create_destination(
        &self,
        request: Request<wire::CreateDestinationRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.CreateDestination";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let mut destination = asked
                .destination
                .clone()
                .ok_or_else(|| ServiceError::invalid("destination", "must be given"))?;
            normalise(&mut destination)?;
            let draft = destination_draft(&destination)?;
            let parent = gateway_name(&asked.parent).map_err(|_| {
                ServiceError::invalid("parent", "must be gateways/GATEWAY, or the bare id or name")
            })?;
            let enabled = !asked.disabled;
            let answer = self
                .core
                .create_destination(&call, parent, &draft, enabled)
                .await?;
            Ok(self.encode_destination(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn get_destination(
        &self,
        request: Request<wire::GetDestinationRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        let asked = request.into_inner();
        let work = async {
            let (gateway, name) = child_name(&asked.name, "destinations")?;
            self.current_destination(gateway, name).await
        };
        self.rpcs.unary("Destinations.GetDestination", work).await
    }

    async fn list_destinations(
        &self,
        request: Request<wire::ListDestinationsRequest>,
    ) -> Result<Response<wire::ListDestinationsResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let only = match asked.parent.as_str() {
                "" | "-" | "gateways/-" => None,
                parent => Some(self.core.gateway(gateway_name(parent)?).await?),
            };
            let view = self.core.views.now();
            let wanted = |id: &GatewayId| {
                only.as_ref()
                    .is_none_or(|gateway| gateway.value.gateway.id == *id)
            };
            let all = view
                .world
                .gateways()
                .filter(|(gateway, _)| wanted(&gateway.value.gateway.id))
                .flat_map(|(gateway, entry)| {
                    entry.destinations().map(move |destination| {
                        let d = &destination.value.destination;
                        (format!("{}/{}", d.gateway, d.id), (gateway, destination))
                    })
                });
            let (found, next_page_token) = page(all, asked.page_size, &asked.page_token)?;
            let destinations = found
                .into_iter()
                .map(|(gateway, destination)| {
                    self.encode_destination(&DestinationAnswer {
                        gateway: gateway.clone(),
                        destination: destination.as_ref().clone(),
                    })
                })
                .collect();
            Ok(wire::ListDestinationsResponse {
                destinations,
                next_page_token,
            })
        };
        self.rpcs.unary("Destinations.ListDestinations", work).await
    }

    async fn update_destination(
        &self,
        request: Request<wire::UpdateDestinationRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.UpdateDestination";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let mut new = asked
                .destination
                .clone()
                .ok_or_else(|| ServiceError::invalid("destination", "must be given"))?;
            normalise(&mut new)?;
            let path = child_name(&asked.name, "destinations")?;
            let fields = fields(asked.update_mask.as_ref(), &paths(), &set_fields(&new))?;
            let edit = |record: &DestinationRecord| edit(record, &new, &fields);
            let force = Some(asked.force);
            let answer = self
                .core
                .update_destination(&call, path, &new.etag, force, edit)
                .await?;
            Ok(self.encode_destination(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn delete_destination(
        &self,
        request: Request<wire::DeleteDestinationRequest>,
    ) -> Result<Response<pbjson_types::Empty>, Status> {
        const METHOD: &str = "Destinations.DeleteDestination";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let path = child_name(&asked.name, "destinations")?;
            self.core
                .delete_destination(&call, path, &asked.etag, asked.force)
                .await?;
            Ok(pbjson_types::Empty {})
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn enable_destination(
        &self,
        request: Request<wire::EnableDestinationRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.EnableDestination";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = self.switch_destination(&call, &asked.name, &asked.etag, true);
        self.rpcs.unary(METHOD, work).await
    }

    async fn disable_destination(
        &self,
        request: Request<wire::DisableDestinationRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.DisableDestination";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = self.switch_destination(&call, &asked.name, &asked.etag, false);
        self.rpcs.unary(METHOD, work).await
    }

    async fn get_destination_certificates(
        &self,
        request: Request<wire::GetDestinationCertificatesRequest>,
    ) -> Result<Response<wire::DestinationCertificates>, Status> {
        let asked = request.into_inner();
        let work = async {
            let path = child_name(&asked.name, "destinations")?;
            let files = self.core.certificate_files(path).await?;
            Ok(wire::DestinationCertificates { files })
        };
        self.rpcs
            .unary("Destinations.GetDestinationCertificates", work)
            .await
    }

    async fn add_source(
        &self,
        request: Request<wire::AddSourceRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.AddSource";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let source = asked
                .source
                .as_ref()
                .ok_or_else(|| ServiceError::invalid("source", "must be given"))?;
            let rule = source_from_wire(source)?;
            let now = ids::now();
            if !rule.lives(now) {
                let text = "must be in the future";
                return Err(ServiceError::invalid("source.expire_time", text));
            }
            let path = child_name(&asked.name, "destinations")?;
            let edit = |record: &DestinationRecord| {
                let mut record = record.clone();
                let sources = &mut record.destination.user_end.sources;
                sources.add(rule.clone(), now)?;
                Ok(record)
            };
            let answer = self
                .core
                .update_destination(&call, path, &asked.etag, None, edit)
                .await?;
            Ok(self.encode_destination(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn remove_source(
        &self,
        request: Request<wire::RemoveSourceRequest>,
    ) -> Result<Response<wire::Destination>, Status> {
        const METHOD: &str = "Destinations.RemoveSource";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let owner = match asked.owner.as_str() {
                "" => None,
                owner => Some(owner.parse::<SourceOwner>()?),
            };
            let spec = match asked.spec.as_str() {
                "" => None,
                spec => Some(spec.parse::<SourceSpec>()?),
            };
            let path = child_name(&asked.name, "destinations")?;
            let edit = |record: &DestinationRecord| {
                let mut record = record.clone();
                let sources = &mut record.destination.user_end.sources;
                let removed = match (&spec, &owner) {
                    (Some(spec), owner) => sources.remove(spec, owner.as_ref()) > 0,
                    (None, Some(owner)) => sources.remove_owner(owner),
                    (None, None) => {
                        return Err(ServiceError::invalid("spec", "give spec or owner"));
                    }
                };
                if removed {
                    Ok(record)
                } else {
                    Err(ServiceError::not_found("source", asked.spec.as_str()))
                }
            };
            let answer = self
                .core
                .update_destination(&call, path, &asked.etag, None, edit)
                .await?;
            Ok(self.encode_destination(&answer))
        };
        self.rpcs.unary(METHOD, work).await
    }

    type WatchDestinationStream =
        Pin<Box<dyn Stream<Item = Result<wire::Destination, Status>> + Send>>;

    async fn watch_destination(
        &self,
        request: Request<wire::WatchDestinationRequest>,
    ) -> Result<Response<Self::WatchDestinationStream>, Status> {
        const METHOD: &str = "Destinations.WatchDestination";
        let name = request.into_inner().name;
        let first = async {
            let (gateway, name) = child_name(&name, "destinations")?;
            let gateway = self.core.gateway(gateway).await?;
            let destination = self.core.destination(&gateway, name).await?;
            let d = destination.value.destination;
            Ok((d.gateway.to_string(), d.id.to_string()))
        };
        // From here on by id, so that a rename does not end the watch.
        let (gateway, id) = self.rpcs.unary(METHOD, first).await?.into_inner();
        let api = self.clone();
        let stream = watch::values(self, move || {
            let (api, gateway, id) = (api.clone(), gateway.clone(), id.clone());
            async move { api.current_destination(&gateway, &id).await }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
