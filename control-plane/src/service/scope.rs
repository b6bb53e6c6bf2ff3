//! What of the store a scope shows and lets be written, by the keys alone. It stands where the store
//! is read and written, so that it holds for every use case.

use prost::Message as _;
use sg_model::TokenScope;
use sg_proto::store as wire;

use super::{Core, ServiceError};
use crate::keys;
use crate::store::{KeyValue, Txn};

/// In place of what must not be shown.
const HIDDEN: &str = "(not shown)";

impl Core {
    /// The use cases over these gateways only.
    #[must_use]
    pub fn for_scope(&self, scope: TokenScope) -> Self {
        Self {
            views: self.views.for_scope(scope),
            ..self.clone()
        }
    }

    /// Refuses what concerns more than single gateways.
    ///
    /// # Errors
    /// [`ServiceError::Denied`] if the scope is not the whole installation.
    pub fn needs_whole(&self, what: &str) -> Result<(), ServiceError> {
        if self.views.scope().is_all() {
            return Ok(());
        }
        Err(ServiceError::Denied {
            reason: "SCOPE_NOT_SUFFICIENT",
            message: format!(
                "{what} concerns the whole installation, and the token is for some gateways only"
            ),
        })
    }
}

/// The entry as it may be seen; `None` if it may not. Who holds a name or a port may be known to
/// everybody; that somebody holds it must be, or nobody could choose another.
pub(super) fn shown(scope: &TokenScope, mut entry: KeyValue) -> Option<KeyValue> {
    if scope.is_all() {
        return Some(entry);
    }
    if let Some(gateway) = keys::gateway_of(&entry.key) {
        return scope.admits(gateway).then_some(entry);
    }
    if keys::REFERENCES
        .iter()
        .any(|prefix| entry.key.starts_with(prefix))
    {
        let mut holder = wire::Reference::decode(entry.value.as_ref()).unwrap_or_default();
        let own = scope.admits(&holder.gateway_id)
            || (holder.kind == "gateway" && scope.admits(&holder.id));
        if !own {
            HIDDEN.clone_into(&mut holder.id);
            HIDDEN.clone_into(&mut holder.gateway_id);
            holder.name = format!("{HIDDEN}/{HIDDEN}");
            entry.value = holder.encode_to_vec().into();
        }
    }
    Some(entry)
}

/// Whether everything that a transaction writes of gateways is in scope.
///
/// # Errors
/// It is not, which no use case should let come to this.
pub(super) fn check(scope: &TokenScope, txn: &Txn) -> Result<(), ServiceError> {
    let mut touched = txn
        .writes
        .iter()
        .filter_map(|write| keys::gateway_of(write.key()));
    match touched.find(|gateway| !scope.admits(gateway)) {
        None => Ok(()),
        Some(gateway) => Err(ServiceError::not_found("gateway", gateway)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::GatewayId;

    use super::*;
    use crate::store::Revision;

    fn entry(key: &str, value: Vec<u8>) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: value.into(),
            mod_revision: Revision::new(2),
            create_revision: Revision::new(2),
        }
    }

    #[test]
    fn foreign_objects_are_absent_and_foreign_holders_nameless() {
        let scope = TokenScope::Gateways([GatewayId::new("G1").unwrap()].into());
        assert!(shown(&scope, entry("v1/obj/gateway/G1", vec![])).is_some());
        for key in [
            "v1/obj/gateway/G2",
            "v1/obj/destination/G2/D1",
            "v1/obj/acl/G2",
        ] {
            assert!(shown(&scope, entry(key, vec![])).is_none(), "{key}");
            assert!(
                shown(&TokenScope::All, entry(key, vec![])).is_some(),
                "{key}"
            );
        }
        let holder = |gateway: &str| {
            let value = wire::Reference {
                kind: "destination".to_owned(),
                id: "D9".to_owned(),
                gateway_id: gateway.to_owned(),
                name: "plant/db".to_owned(),
            };
            let key = "v1/idx/cloudport/default/15000";
            let seen = shown(&scope, entry(key, value.encode_to_vec())).unwrap();
            wire::Reference::decode(seen.value.as_ref()).unwrap().name
        };
        assert_eq!(holder("G1"), "plant/db");
        assert!(!holder("G2").contains("plant"));
    }

    #[test]
    fn what_is_out_of_scope_is_not_written() {
        let scope = TokenScope::Gateways([GatewayId::new("G1").unwrap()].into());
        let own = Txn::new()
            .put("v1/obj/acl/G1", vec![])
            .put("v1/audit/x", vec![]);
        assert!(check(&scope, &own).is_ok());
        assert!(check(&scope, &own.clone().delete("v1/obj/destination/G2/D1")).is_err());
        assert!(check(&TokenScope::All, &own.delete("v1/obj/destination/G2/D1")).is_ok());
    }
}
