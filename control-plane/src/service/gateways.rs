//! Gateways: create, change, delete, and their security tokens.

use std::collections::BTreeMap;

use prost::Message as _;
use sg_model::{Acl, AclVersion, Gateway, GatewayId, Name, Timestamp, TokenHash};
use sg_proto::convert::api::GatewayDraft;
use sg_proto::convert::store::{GatewayRecord, acl_to_store};
use sg_proto::store as wire;
use sg_runtime::secret::Secret;

use super::change::{Call, Change, RETRIES};
use super::etag::{parse_etag, required_etag};
use super::outcome::Outcome;
use super::{Core, ServiceError};
use crate::ids;
use crate::keys;
use crate::store::Revision;
use crate::world::Stored;

/// Life of a security token where none is asked for, in days.
const DEFAULT_TOKEN_DAYS: u32 = 90;
const MAX_TOKEN_DAYS: u32 = 365;

/// Which security token to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenChoice {
    /// One that ends after so many days.
    Days(u32),
    /// One that never ends.
    NoExpiry,
    /// None; clients need none.
    None,
}

impl TokenChoice {
    /// Reads the choice out of the API's fields, where 0 days mean the default.
    ///
    /// # Errors
    /// They contradict each other, or the number of days is out of range.
    pub fn new(days: u32, no_expiry: bool, none: bool) -> Result<Self, ServiceError> {
        match (days, no_expiry, none) {
            (0, false, false) => Ok(Self::Days(DEFAULT_TOKEN_DAYS)),
            (1..=MAX_TOKEN_DAYS, false, false) => Ok(Self::Days(days)),
            (0, true, false) => Ok(Self::NoExpiry),
            (0, false, true) => Ok(Self::None),
            (_, false, false) => Err(ServiceError::invalid(
                "token_days",
                "must be 1 to 365; 0 means 90",
            )),
            _ => Err(ServiceError::invalid(
                "token_days",
                "give only one of token_days, no_token_expiry and no_token",
            )),
        }
    }

    fn make(self, now: Timestamp) -> Option<(Secret<String>, TokenHash)> {
        let expires = match self {
            Self::Days(days) => Some(now.plus_days(days)),
            Self::NoExpiry => None,
            Self::None => return None,
        };
        let secret = ids::new_token("sgt_");
        let hash = TokenHash {
            sha256: ids::token_hash(secret.expose()),
            expires,
        };
        Some((secret, hash))
    }
}

/// A gateway as a change left it, with the secret the change made.
#[derive(Debug)]
pub struct GatewayAnswer {
    /// The gateway.
    pub gateway: Stored<GatewayRecord>,
    /// The security token, only in the answer to the request that made it.
    pub secret: Option<Secret<String>>,
}

impl Core {
    /// Creates a gateway with an empty access control list.
    ///
    /// # Errors
    /// The name is taken, or the store failed.
    pub async fn create_gateway(
        &self,
        call: &Call,
        draft: GatewayDraft,
        token: TokenChoice,
        enabled: bool,
    ) -> Result<GatewayAnswer, ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.answer_again(replay.id, replay.secret).await;
        }
        let now = ids::now();
        let id = GatewayId::new(ids::new_id('G', now))?;
        let token = token.make(now);
        let (secret, hash) =
            token.map_or((None, None), |(secret, hash)| (Some(secret), Some(hash)));
        let record = GatewayRecord {
            gateway: Gateway {
                id: id.clone(),
                name: draft.name,
                enabled,
                policy: draft.policy,
                token_required: hash.is_some(),
                tokens: hash.into_iter().collect(),
                resume_time: draft.resume_time,
                token_expiry: draft.token_expiry,
                client_certificates: draft.client_certificates,
                token_generation: 0,
                revoked: BTreeMap::new(),
                generation: 1,
            },
            group: draft.group,
            acl_edits: draft.acl_edits,
            description: draft.description,
            created: now,
            updated: now,
        };
        let name_key = keys::gateway_name(&record.gateway.name);
        if call.validate_only {
            self.name_is_free(&name_key, "gateway", &record.gateway.name)
                .await?;
            return Ok(GatewayAnswer {
                gateway: uncommitted(record),
                secret: None,
            });
        }
        let acl = Acl {
            version: AclVersion {
                epoch: 0,
                generation: 1,
            },
            ..Acl::default()
        };
        let change = Change::new(call, format!("gateway/{id}"), id.as_str())
            .detail(format!(
                "name={} group={}",
                record.gateway.name, record.group
            ))
            .secret(secret.as_ref())
            .create(keys::gateway(&id), &wire::Gateway::from(&record))
            .create(name_key.clone(), &reference(&record))
            .create(keys::acl(&id), &acl_to_store(&id, &acl));
        match self.commit(change).await? {
            Outcome::Done(revision) => Ok(GatewayAnswer {
                gateway: Stored {
                    value: record,
                    revision,
                },
                secret,
            }),
            Outcome::Replayed(replay) => self.answer_again(replay.id, replay.secret).await,
            Outcome::Conflict(conflict) => Err(match conflict.holder(&name_key) {
                Some(holder) => name_taken("gateway", &record.gateway.name, &holder),
                None => ServiceError::contended(),
            }),
        }
    }

    /// Changes a gateway by `edit`, which is called anew whenever somebody else was faster. `force`
    /// is `None` for changes that need no etag.
    ///
    /// # Errors
    /// It does not exist, the etag is missing or old, `edit` refuses, or the store failed.
    pub async fn update_gateway(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        force: Option<bool>,
        edit: impl Fn(&mut GatewayRecord) -> Result<(), ServiceError>,
    ) -> Result<GatewayAnswer, ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.answer_again(replay.id, replay.secret).await;
        }
        let expected = match force {
            Some(force) => required_etag(etag, force)?,
            None => parse_etag(etag)?,
        };
        self.change_gateway(call, name, expected, None, edit).await
    }

    /// Replaces the security token, which ends the certificates that were issued under it.
    ///
    /// # Errors
    /// As [`Core::update_gateway`].
    pub async fn rotate_token(
        &self,
        call: &Call,
        name: &str,
        token: TokenChoice,
    ) -> Result<GatewayAnswer, ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.answer_again(replay.id, replay.secret).await;
        }
        let Some((secret, hash)) = token.make(ids::now()) else {
            return Err(ServiceError::Internal(
                "rotation without a token".to_owned(),
            ));
        };
        self.change_gateway(call, name, None, Some(secret), |record| {
            record.gateway.tokens = vec![hash.clone()];
            record.gateway.token_required = true;
            // Whoever got a certificate for the old token could otherwise stay for ever.
            record.gateway.token_generation += 1;
            Ok(())
        })
        .await
    }

    async fn change_gateway(
        &self,
        call: &Call,
        name: &str,
        expected: Option<Revision>,
        secret: Option<Secret<String>>,
        edit: impl Fn(&mut GatewayRecord) -> Result<(), ServiceError>,
    ) -> Result<GatewayAnswer, ServiceError> {
        let mut current = self.gateway(name).await?;
        let id = current.value.gateway.id.clone();
        let mut read_first = false;
        for _ in 0..RETRIES {
            let fresh = read_first || expected.is_some_and(|expected| expected != current.revision);
            if fresh {
                let found = self.read_gateway(&id).await?;
                current = found.ok_or_else(|| ServiceError::not_found("gateway", name))?;
            }
            read_first = true;
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("gateway", name));
            }
            let mut record = current.value.clone();
            let edited = edit(&mut record);
            // "Refused" and "as it is already" are said only of what the store has now.
            if !fresh && (edited.is_err() || record == current.value) {
                continue;
            }
            edited?;
            if record == current.value {
                return Ok(GatewayAnswer {
                    gateway: current,
                    secret: None,
                });
            }
            record.gateway.generation += 1;
            record.updated = ids::now();
            if call.validate_only {
                if record.gateway.name != current.value.gateway.name {
                    let name_key = keys::gateway_name(&record.gateway.name);
                    self.name_is_free(&name_key, "gateway", &record.gateway.name)
                        .await?;
                }
                return Ok(GatewayAnswer {
                    gateway: Stored {
                        value: record,
                        revision: current.revision,
                    },
                    secret: None,
                });
            }
            let change = gateway_change(call, &current, &record).secret(secret.as_ref());
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    let gateway = Stored {
                        value: record,
                        revision,
                    };
                    return Ok(GatewayAnswer { gateway, secret });
                }
                Outcome::Replayed(replay) => {
                    return self.answer_again(replay.id, replay.secret).await;
                }
                Outcome::Conflict(conflict) => {
                    let renamed = record.gateway.name != current.value.gateway.name;
                    let holder = conflict.holder(&keys::gateway_name(&record.gateway.name));
                    if renamed && let Some(holder) = holder {
                        return Err(name_taken("gateway", &record.gateway.name, &holder));
                    }
                    let object = conflict.entry(&keys::gateway(&id));
                    let moved = record.group != current.value.group;
                    if moved && object.is_some_and(|entry| entry.mod_revision == current.revision) {
                        return Err(ServiceError::Precondition {
                            reason: "GATEWAY_NOT_EMPTY",
                            message: "a gateway with destinations cannot change its group, because their ports belong to it".to_owned(),
                        });
                    }
                }
            }
        }
        Err(ServiceError::contended())
    }

    /// Deletes a gateway. With `cascade` its destinations go first, a batch at a time.
    ///
    /// # Errors
    /// It does not exist, has destinations, the etag is missing or old, or the store failed.
    pub async fn delete_gateway(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        force: bool,
        cascade: bool,
    ) -> Result<(), ServiceError> {
        if self.replayed(call).await?.is_some() {
            return Ok(());
        }
        let expected = required_etag(etag, force)?;
        let id = self.gateway(name).await?.value.gateway.id;
        let mut partly = false;
        for _ in 0..RETRIES {
            let fresh = self.read_gateway(&id).await?;
            let current = fresh.ok_or_else(|| ServiceError::not_found("gateway", name))?;
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("gateway", name));
            }
            let (_, children) = match self.store.list(&keys::destinations_of(&id)).await {
                Ok(children) => children,
                Err(error) => {
                    self.health.bad(&error);
                    return Err(error.into());
                }
            };
            if !children.is_empty() && !cascade {
                return Err(ServiceError::Precondition {
                    reason: "GATEWAY_NOT_EMPTY",
                    message: format!(
                        "gateway {name:?} has {} destination(s); delete them first, or set cascade",
                        children.len()
                    ),
                });
            }
            if call.validate_only {
                return Ok(());
            }
            let result = self.delete_destinations(call, &current, children).await;
            partly |= matches!(result, Ok(true) | Err((true, _)));
            result.map_err(|(_, error)| in_parts(partly, error))?;
            let record = &current.value;
            let change = Change::new(call, format!("gateway/{id}"), id.as_str())
                .detail(format!("name={}", record.gateway.name))
                .remove(keys::gateway(&id), current.revision)
                .delete(keys::gateway_name(&record.gateway.name))
                .delete(keys::acl(&id))
                .require_empty(keys::destinations_of(&id));
            let committed = self.commit(change).await;
            match committed.map_err(|error| in_parts(partly, error))? {
                Outcome::Done(_) | Outcome::Replayed(_) => return Ok(()),
                // It was changed, or a destination was added in between.
                Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended())
    }

    /// The answer to a request that came before.
    async fn answer_again(
        &self,
        id: String,
        secret: Option<Secret<String>>,
    ) -> Result<GatewayAnswer, ServiceError> {
        let gone = || ServiceError::not_found("gateway", id.clone());
        let key = GatewayId::new(&id).map_err(|_| gone())?;
        let gateway = self.read_gateway(&key).await?.ok_or_else(gone)?;
        Ok(GatewayAnswer { gateway, secret })
    }

    /// For requests that only ask whether they would succeed.
    pub(super) async fn name_is_free(
        &self,
        key: &str,
        kind: &'static str,
        name: &Name,
    ) -> Result<(), ServiceError> {
        match self.read(key).await? {
            None => Ok(()),
            Some(entry) => {
                let holder = wire::Reference::decode(entry.value.as_ref())?;
                Err(name_taken(kind, name, &holder))
            }
        }
    }
}

/// What a failure means once a part of the change is done.
fn in_parts(partly: bool, error: ServiceError) -> ServiceError {
    if !partly {
        return error;
    }
    ServiceError::Aborted {
        reason: "PARTLY_DELETED",
        message: format!(
            "some destinations are deleted already, the gateway is not: {error}; repeat the request"
        ),
    }
}

fn gateway_change<'a>(
    call: &'a Call,
    current: &Stored<GatewayRecord>,
    record: &GatewayRecord,
) -> Change<'a> {
    let id = &record.gateway.id;
    let old = &current.value;
    let mut change = Change::new(call, format!("gateway/{id}"), id.as_str())
        .detail(format!(
            "name={} generation={}",
            record.gateway.name, record.gateway.generation
        ))
        .replace(
            keys::gateway(id),
            current.revision,
            &wire::Gateway::from(record),
        );
    if record.gateway.name != old.gateway.name {
        change = change
            .delete(keys::gateway_name(&old.gateway.name))
            .create(keys::gateway_name(&record.gateway.name), &reference(record));
    }
    if record.group != old.group {
        change = change.require_empty(keys::destinations_of(id));
    }
    change
}

fn reference(record: &GatewayRecord) -> wire::Reference {
    wire::Reference {
        kind: "gateway".to_owned(),
        id: record.gateway.id.to_string(),
        gateway_id: String::new(),
        name: record.gateway.name.to_string(),
    }
}

/// A name belongs to something else.
pub(super) fn name_taken(kind: &str, name: &Name, holder: &wire::Reference) -> ServiceError {
    ServiceError::Taken {
        reason: "NAME_TAKEN",
        message: format!("the name {name} is taken by {kind} {}", holder.id),
    }
}

/// A record that was only checked.
pub(super) const fn uncommitted<T>(value: T) -> Stored<T> {
    Stored {
        value,
        revision: Revision::NONE,
    }
}
