//! Access control lists: one object per gateway, changed as a whole.

use prost::Message as _;
use sg_model::{Acl, GatewayId};
use sg_proto::convert::store::{GatewayRecord, acl_from_store, acl_to_store};
use sg_proto::store as wire;

use super::change::{Call, Change, RETRIES};
use super::etag::parse_etag;
use super::outcome::Outcome;
use super::{Core, ServiceError};
use crate::keys;
use crate::store::KeyValue;
use crate::world::Stored;

/// A list with the gateway it belongs to.
#[derive(Debug, Clone)]
pub struct AclAnswer {
    /// The gateway.
    pub gateway: Stored<GatewayRecord>,
    /// Its list.
    pub acl: Stored<Acl>,
}

impl Core {
    /// The list of a gateway.
    ///
    /// # Errors
    /// The gateway does not exist, or the store failed.
    pub async fn acl(&self, name: &str) -> Result<AclAnswer, ServiceError> {
        let gateway = self.gateway(name).await?;
        let id = &gateway.value.gateway.id;
        let acl = match self.views.now().world.acl(id) {
            Some(acl) => acl,
            None => self.read_acl(id).await?,
        };
        Ok(AclAnswer { gateway, acl })
    }

    /// Changes a list by `edit`, which is called anew whenever somebody else was faster, and says
    /// whether anything changed.
    ///
    /// # Errors
    /// The gateway does not exist, the etag is old, `edit` refuses, or the store failed.
    pub async fn change_acl(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        edit: impl Fn(&mut Acl) -> Result<bool, ServiceError>,
    ) -> Result<AclAnswer, ServiceError> {
        let mut answer = self.acl(name).await?;
        if self.replayed(call).await?.is_some() {
            let id = &answer.gateway.value.gateway.id;
            answer.acl = self.read_acl(id).await?;
            return Ok(answer);
        }
        let expected = parse_etag(etag)?;
        let id = answer.gateway.value.gateway.id.clone();
        let mut read_first = false;
        for _ in 0..RETRIES {
            let fresh =
                read_first || expected.is_some_and(|expected| expected != answer.acl.revision);
            if fresh {
                answer.acl = self.read_acl(&id).await?;
            }
            read_first = true;
            if expected.is_some_and(|expected| expected != answer.acl.revision) {
                return Err(ServiceError::etag_mismatch("access control list", name));
            }
            let mut acl = answer.acl.value.clone();
            let edited = edit(&mut acl);
            // "Refused" and "as it is already" are said only of what the store has now: a denial
            // must not be confirmed that others have lifted meanwhile.
            if !fresh && !matches!(edited, Ok(true)) {
                continue;
            }
            if !edited? {
                return Ok(answer);
            }
            acl.version.generation = answer.acl.value.version.generation + 1;
            let change = Change::new(call, format!("acl/{id}"), id.as_str())
                .detail(format!(
                    "generation={} entries={}",
                    acl.version.generation,
                    acl.entries.len()
                ))
                .replace(
                    keys::acl(&id),
                    answer.acl.revision,
                    &acl_to_store(&id, &acl),
                );
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    answer.acl = Stored {
                        value: acl,
                        revision,
                    };
                    return Ok(answer);
                }
                Outcome::Replayed(_) => {
                    answer.acl = self.read_acl(&id).await?;
                    return Ok(answer);
                }
                Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended())
    }

    pub(super) async fn read_acl(&self, gateway: &GatewayId) -> Result<Stored<Acl>, ServiceError> {
        let missing = || ServiceError::not_found("gateway", gateway.as_str());
        let entry: KeyValue = self.read(&keys::acl(gateway)).await?.ok_or_else(missing)?;
        let wire = wire::Acl::decode(entry.value.as_ref())?;
        let epoch = self.views.now().world.epoch;
        let (_, value) = acl_from_store(epoch, &wire).map_err(super::unreadable)?;
        Ok(Stored {
            value,
            revision: entry.mod_revision,
        })
    }
}
