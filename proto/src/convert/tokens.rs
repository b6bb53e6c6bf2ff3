//! Operators' tokens: at rest (`securegateway.store.v1`), in the API, and in the domain. The secret
//! itself is in none of them; only the answer that made it carries it.

use std::collections::BTreeSet;

use sg_model::{GatewayId, Invalid, Name, Role, Timestamp, TokenScope};

use super::{timestamp_from_wire, timestamp_to_wire};
use crate::{api, store};

/// An operator's token at rest. Its key holds the hash of the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTokenRecord {
    /// Never changes; empty for a token of the first version.
    pub id: String,
    /// Unique; stands in audit records.
    pub name: Name,
    /// What its holder may do.
    pub role: Role,
    /// With which gateways.
    pub scope: TokenScope,
    /// When it was made.
    pub created: Timestamp,
    /// From this instant on it is refused; `None`: never.
    pub expires: Option<Timestamp>,
    /// Name of the token that made it.
    pub created_by: String,
}

impl AdminTokenRecord {
    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|end| now < end)
    }

    /// As the API shows it, without its secret.
    #[must_use]
    pub fn to_api(&self) -> api::AdminToken {
        api::AdminToken {
            id: self.id.clone(),
            name: self.name.to_string(),
            role: self.role.to_string(),
            gateways: gateway_ids(&self.scope),
            create_time: Some(timestamp_to_wire(self.created)),
            expire_time: self.expires.map(timestamp_to_wire),
            created_by: self.created_by.clone(),
            token: String::new(),
        }
    }
}

fn gateway_ids(scope: &TokenScope) -> Vec<String> {
    match scope {
        TokenScope::All => Vec::new(),
        TokenScope::Gateways(ids) => ids.iter().map(ToString::to_string).collect(),
    }
}

impl From<&AdminTokenRecord> for store::AdminToken {
    fn from(record: &AdminTokenRecord) -> Self {
        Self {
            name: record.name.to_string(),
            role: record.role.to_string(),
            create_time: Some(timestamp_to_wire(record.created)),
            id: record.id.clone(),
            expire_time: record.expires.map(timestamp_to_wire),
            gateway_ids: gateway_ids(&record.scope),
            created_by: record.created_by.clone(),
        }
    }
}

impl TryFrom<&store::AdminToken> for AdminTokenRecord {
    type Error = Invalid;

    fn try_from(token: &store::AdminToken) -> Result<Self, Invalid> {
        let ids = token
            .gateway_ids
            .iter()
            .map(GatewayId::new)
            .collect::<Result<BTreeSet<_>, _>>()?;
        let date = |field, wire: Option<&pbjson_types::Timestamp>| {
            wire.map(|t| timestamp_from_wire(field, t)).transpose()
        };
        Ok(Self {
            id: token.id.clone(),
            name: Name::new(&token.name)?,
            role: token.role.parse()?,
            scope: if ids.is_empty() {
                TokenScope::All
            } else {
                TokenScope::Gateways(ids)
            },
            created: date("create_time", token.create_time.as_ref())?.unwrap_or_default(),
            expires: date("expire_time", token.expire_time.as_ref())?,
            created_by: token.created_by.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let record = AdminTokenRecord {
            id: "T1".to_owned(),
            name: Name::new("ci").unwrap(),
            role: Role::Editor,
            scope: TokenScope::Gateways([GatewayId::new("G1").unwrap()].into()),
            created: Timestamp(1000),
            expires: Some(Timestamp(2000)),
            created_by: "admin".to_owned(),
        };
        let stored = store::AdminToken::from(&record);
        assert_eq!(AdminTokenRecord::try_from(&stored).unwrap(), record);
        assert!(record.holds_at(Timestamp(1999)) && !record.holds_at(Timestamp(2000)));
        let shown = record.to_api();
        assert_eq!((shown.gateways.len(), shown.token.as_str()), (1, ""));
    }

    #[test]
    fn a_role_that_nobody_knows_is_no_token() {
        let mut stored = store::AdminToken {
            name: "x".to_owned(),
            role: "owner".to_owned(),
            ..store::AdminToken::default()
        };
        assert!(AdminTokenRecord::try_from(&stored).is_err());
        stored.role = "viewer".to_owned();
        stored.gateway_ids = vec!["a/b".to_owned()];
        assert!(AdminTokenRecord::try_from(&stored).is_err(), "and no wider");
    }
}
