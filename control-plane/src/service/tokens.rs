//! Operators' tokens: made, shown and taken back. Only the hash of the secret is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use sg_model::{Name, Role, Timestamp, TokenScope};
use sg_proto::convert::tokens::AdminTokenRecord;
use sg_proto::store as wire;
use sg_runtime::crypto;
use sg_runtime::secret::Secret;

use super::change::{Call, Change, RETRIES};
use super::gateways::name_taken;
use super::outcome::{Outcome, Replay};
use super::{Core, ServiceError};
use crate::ids;
use crate::keys;
use crate::world::World;

/// Longest life of a token that ends, in days.
const MAX_DAYS: u32 = 3650;
/// Most tokens.
const MAX_TOKENS: usize = 1_000;
/// Most gateways that one token is for.
const MAX_GATEWAYS: usize = 100;

/// What a caller chooses of a token.
#[derive(Debug)]
pub struct TokenDraft {
    /// Its name.
    pub name: Name,
    /// What its holder may do.
    pub role: Role,
    /// With which gateways, by id or name; none: with all.
    pub gateways: Vec<String>,
    /// Its life; 0: it never ends.
    pub days: u32,
}

impl Core {
    /// Makes a token. The secret is in this answer only, and in that to a repetition of the request.
    ///
    /// # Errors
    /// The name is taken, a gateway does not exist, or the store failed.
    pub async fn create_admin_token(
        &self,
        call: &Call,
        draft: TokenDraft,
    ) -> Result<(AdminTokenRecord, Option<Secret<String>>), ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.token_again(replay);
        }
        if draft.days > MAX_DAYS {
            let text = format!("must be 1 to {MAX_DAYS}; 0 means that it never ends");
            return Err(ServiceError::invalid("days", text));
        }
        let scope = self.scope_of(&draft).await?;
        if self.views.whole().world.admins().count() >= MAX_TOKENS {
            return Err(ServiceError::Exhausted {
                reason: "TOO_MANY_TOKENS",
                message: format!("there are {MAX_TOKENS} tokens; delete some first"),
            });
        }
        let now = ids::now();
        let record = AdminTokenRecord {
            id: ids::new_id('T', now),
            name: draft.name,
            role: draft.role,
            scope,
            created: now,
            expires: (draft.days > 0).then(|| now.plus_days(draft.days)),
            created_by: call.principal.clone(),
        };
        let name_key = keys::token_name(&record.name);
        if call.validate_only {
            self.name_is_free(&name_key, "token", &record.name).await?;
            return Ok((record, None));
        }
        let secret = ids::new_token("sga_");
        let hash = crypto::hex(&ids::token_hash(secret.expose()));
        let name = wire::Reference {
            kind: "token".to_owned(),
            id: record.id.clone(),
            name: record.name.to_string(),
            ..wire::Reference::default()
        };
        let change = Change::new(call, format!("token/{}", record.id), &record.id)
            .detail(format!("name={} role={}", record.name, record.role))
            .secret(Some(&secret))
            .create(keys::admin_token(&hash), &wire::AdminToken::from(&record))
            .create(name_key.clone(), &name);
        match self.commit(change).await? {
            Outcome::Done(_) => Ok((record, Some(secret))),
            Outcome::Replayed(replay) => self.token_again(replay),
            Outcome::Conflict(conflict) => Err(match conflict.holder(&name_key) {
                Some(holder) => name_taken("token", &record.name, &holder),
                None => ServiceError::contended(),
            }),
        }
    }

    /// A token by id or name.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub fn admin_token(&self, id_or_name: &str) -> Result<Arc<AdminTokenRecord>, ServiceError> {
        let view = self.views.whole();
        let (_, token) = find(&view.world, id_or_name)?;
        Ok(token)
    }

    /// All tokens, by id.
    pub fn admin_tokens(&self) -> Vec<Arc<AdminTokenRecord>> {
        let view = self.views.whole();
        let mut all: Vec<_> = view
            .world
            .admins()
            .map(|(_, token)| Arc::clone(token))
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// There is no such token, it is the last one of role admin, or the store failed.
    pub async fn delete_admin_token(&self, call: &Call, name: &str) -> Result<(), ServiceError> {
        if self.replayed(call).await?.is_some() {
            return Ok(());
        }
        for _ in 0..RETRIES {
            let view = self.views.whole();
            let (hash, token) = find(&view.world, name)?;
            let key = keys::admin_token(&crypto::hex(&hash));
            let Some(entry) = self.read(&key).await? else {
                return Err(ServiceError::not_found("admin token", name));
            };
            let mut change = Change::new(call, format!("token/{}", token.id), &token.id)
                .detail(format!("name={} role={}", token.name, token.role))
                .remove(key, entry.mod_revision)
                .delete(keys::token_name(&token.name));
            if token.role == Role::Admin {
                // In the same transaction another one must be there, so that two who delete each
                // other's token at once do not lock everybody out.
                let other = self.heir(&view.world, &hash).await?;
                change = change.require(other.key, other.mod_revision);
            }
            if call.validate_only {
                return Ok(());
            }
            match self.commit(change).await? {
                Outcome::Done(_) | Outcome::Replayed(_) => return Ok(()),
                // The view may be behind the store by some milliseconds.
                Outcome::Conflict(_) => tokio::time::sleep(super::change::MOMENT).await,
            }
        }
        Err(ServiceError::contended())
    }

    /// Another token of role admin that holds: the one that does so for longest.
    async fn heir(
        &self,
        world: &World,
        except: &[u8; 32],
    ) -> Result<crate::store::KeyValue, ServiceError> {
        let now = ids::now();
        let mut heirs: Vec<_> = world
            .admins()
            .filter(|(hash, token)| {
                *hash != except && token.role == Role::Admin && token.holds_at(now)
            })
            .map(|(hash, token)| (token.expires.unwrap_or(Timestamp(u64::MAX)), hash))
            .collect();
        heirs.sort_unstable();
        while let Some((_, hash)) = heirs.pop() {
            let key = keys::admin_token(&crypto::hex(hash));
            if let Some(entry) = self.read(&key).await? {
                return Ok(entry);
            }
        }
        Err(ServiceError::Precondition {
            reason: "LAST_ADMIN_TOKEN",
            message: "this is the last token of role admin; create another one first".to_owned(),
        })
    }

    async fn scope_of(&self, draft: &TokenDraft) -> Result<TokenScope, ServiceError> {
        if draft.gateways.is_empty() {
            return Ok(TokenScope::All);
        }
        if draft.role == Role::Admin {
            let text = "a token of role admin is for the whole installation; use the role editor for some gateways";
            return Err(ServiceError::invalid("gateways", text));
        }
        if draft.gateways.len() > MAX_GATEWAYS {
            let text = format!("must be at most {MAX_GATEWAYS}");
            return Err(ServiceError::invalid("gateways", text));
        }
        let mut ids = BTreeSet::new();
        for name in &draft.gateways {
            let bare = name.strip_prefix("gateways/").unwrap_or(name);
            ids.insert(self.gateway(bare).await?.value.gateway.id);
        }
        Ok(TokenScope::Gateways(ids))
    }

    fn token_again(
        &self,
        replay: Replay,
    ) -> Result<(AdminTokenRecord, Option<Secret<String>>), ServiceError> {
        let token = self.admin_token(&replay.id)?;
        Ok((token.as_ref().clone(), replay.secret))
    }
}

fn find(
    world: &World,
    id_or_name: &str,
) -> Result<([u8; 32], Arc<AdminTokenRecord>), ServiceError> {
    let named = |token: &AdminTokenRecord| {
        (!token.id.is_empty() && token.id == id_or_name) || token.name.as_str() == id_or_name
    };
    let mut all = world.admins();
    let found = all.find(|(_, token)| named(token));
    found
        .map(|(hash, token)| (*hash, Arc::clone(token)))
        .ok_or_else(|| ServiceError::not_found("admin token", id_or_name))
}
