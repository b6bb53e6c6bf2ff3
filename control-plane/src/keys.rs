//! Where everything lies in the store. All keys are made and read here.
//!
//! | key under `v1/` | value (`securegateway.store.v1`) |
//! |---|---|
//! | `obj/gateway/<id>`, `obj/destination/<gateway>/<id>`, `obj/acl/<gateway>`, `obj/node/<id>` | the objects; their mod revision is the etag |
//! | `idx/name/gateway/<name>`, `idx/name/destination/<gateway>/<name>`, `idx/name/node/<name>`, `idx/name/token/<name>` | `Reference`: makes names unique |
//! | `idx/cloudport/<group>/<port>`, `idx/clientport/<gateway>/<port>` | `Reference`: makes ports unique |
//! | `quarantine/<group>/<port>` | `Reference` to the gateway that had the port; expires after a day |
//! | `token/join/<sha256>`, `token/admin/<sha256>` | `JoinToken`, `AdminToken` |
//! | `idem/<principal>/<request id>` | `Idempotency`; expires after an hour |
//! | `audit/<bucket>/<number>` | `Audit`, counted without a gap; a hundred numbers make a bucket |
//! | `chain/head`, `chain/anchor` | `SealedSecret` with an `AuditMark`: the last record, and the last one dropped |
//! | `live/control-plane/<id>` | `ControlPlane`; expires unless renewed |
//! | `meta/format`, `meta/epoch`, `meta/ca` | `Format`, `Epoch`, `CertificateAuthority` |
//!
//! Ports have five digits, so that they sort.

use sg_model::{DestinationId, GatewayId, Name, NodeId};

/// Version of this layout; a control plane refuses a store with a greater one.
pub(crate) const FORMAT: u32 = 1;

/// Everything a node's configuration is made of.
pub(crate) const OBJECTS: &str = "v1/obj/";
/// What the whole installation shares.
pub(crate) const META: &str = "v1/meta/";
/// Hashes of the tokens of operators.
pub(crate) const ADMIN_TOKENS: &str = "v1/token/admin/";
/// Index keys and freed ports, whose values are references.
pub(crate) const REFERENCES: [&str; 2] = ["v1/idx/", "v1/quarantine/"];
/// The name of the token that the first start makes.
pub(crate) const FIRST_TOKEN_NAME: &str = "v1/idx/name/token/admin";
/// Control planes that are alive.
pub(crate) const LIVE: &str = "v1/live/control-plane/";
/// The audit trail.
pub(crate) const AUDIT: &str = "v1/audit/";
/// Records in one bucket of the audit trail.
pub(crate) const AUDIT_BUCKET: u64 = 100;
/// Where the chain of the audit trail begins and ends.
pub(crate) const CHAIN: &str = "v1/chain/";
/// The last record.
pub(crate) const CHAIN_HEAD: &str = "v1/chain/head";
/// The last record that was dropped.
pub(crate) const CHAIN_ANCHOR: &str = "v1/chain/anchor";
/// All destinations of all gateways.
pub(crate) const DESTINATIONS: &str = "v1/obj/destination/";
/// What was answered to requests.
pub(crate) const IDEMPOTENCY: &str = "v1/idem/";
/// Layout version.
pub(crate) const META_FORMAT: &str = "v1/meta/format";
/// Epoch.
pub(crate) const META_EPOCH: &str = "v1/meta/epoch";
/// Certificate authority.
pub(crate) const META_CA: &str = "v1/meta/ca";

/// An object's key taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectPath<'a> {
    /// A gateway.
    Gateway(&'a str),
    /// A destination: gateway, then its own id.
    Destination(&'a str, &'a str),
    /// The access control list of a gateway.
    Acl(&'a str),
    /// A node.
    Node(&'a str),
}

/// Takes a key under [`OBJECTS`] apart; `None` for anything this version does not know.
pub(crate) fn parse_object(key: &str) -> Option<ObjectPath<'_>> {
    let mut parts = key.strip_prefix(OBJECTS)?.split('/');
    let path = match (parts.next()?, parts.next()?) {
        ("gateway", id) => ObjectPath::Gateway(id),
        ("destination", gateway) => ObjectPath::Destination(gateway, parts.next()?),
        ("acl", gateway) => ObjectPath::Acl(gateway),
        ("node", id) => ObjectPath::Node(id),
        _ => return None,
    };
    parts.next().is_none().then_some(path)
}

/// A gateway.
pub(crate) fn gateway(id: &GatewayId) -> String {
    format!("{OBJECTS}gateway/{id}")
}

/// All destinations of a gateway.
pub(crate) fn destinations_of(gateway: &GatewayId) -> String {
    format!("{OBJECTS}destination/{gateway}/")
}

/// A destination.
pub(crate) fn destination(gateway: &GatewayId, id: &DestinationId) -> String {
    format!("{OBJECTS}destination/{gateway}/{id}")
}

/// The access control list of a gateway.
pub(crate) fn acl(gateway: &GatewayId) -> String {
    format!("{OBJECTS}acl/{gateway}")
}

/// A node.
pub(crate) fn node(id: &NodeId) -> String {
    format!("{OBJECTS}node/{id}")
}

/// The name of a gateway.
pub(crate) fn gateway_name(name: &Name) -> String {
    format!("v1/idx/name/gateway/{name}")
}

/// The name of a destination.
pub(crate) fn destination_name(gateway: &GatewayId, name: &Name) -> String {
    format!("v1/idx/name/destination/{gateway}/{name}")
}

/// The name of a node.
pub(crate) fn node_name(name: &Name) -> String {
    format!("v1/idx/name/node/{name}")
}

/// All cloud ports in use in a group.
pub(crate) fn cloud_ports(group: &Name) -> String {
    format!("v1/idx/cloudport/{group}/")
}

/// A cloud port in use in a group.
pub(crate) fn cloud_port(group: &Name, port: u16) -> String {
    format!("v1/idx/cloudport/{group}/{port:05}")
}

/// A client port in use by a gateway.
pub(crate) fn client_port(gateway: &GatewayId, port: u16) -> String {
    format!("v1/idx/clientport/{gateway}/{port:05}")
}

/// All ports of a group that were freed lately.
pub(crate) fn quarantined(group: &Name) -> String {
    format!("v1/quarantine/{group}/")
}

/// A port of a group that was freed lately.
pub(crate) fn quarantine(group: &Name, port: u16) -> String {
    format!("v1/quarantine/{group}/{port:05}")
}

/// The port at the end of a key of [`cloud_ports`] or [`quarantined`].
pub(crate) fn port_of(key: &str) -> Option<u16> {
    key.rsplit('/').next()?.parse().ok()
}

/// A join token by its hash in hexadecimal.
pub(crate) fn join_token(sha256: &str) -> String {
    format!("v1/token/join/{sha256}")
}

/// The name of an operator's token.
pub(crate) fn token_name(name: &Name) -> String {
    format!("v1/idx/name/token/{name}")
}

/// The gateway that a key under [`OBJECTS`] belongs to, if it belongs to one.
pub(crate) fn gateway_of(key: &str) -> Option<&str> {
    match parse_object(key)? {
        ObjectPath::Gateway(id) | ObjectPath::Destination(id, _) | ObjectPath::Acl(id) => Some(id),
        ObjectPath::Node(_) => None,
    }
}

/// An operator's token by its hash in hexadecimal.
pub(crate) fn admin_token(sha256: &str) -> String {
    format!("{ADMIN_TOKENS}{sha256}")
}

/// What was answered to a request.
pub(crate) fn idempotency(principal: &str, request_id: &str) -> String {
    format!("{IDEMPOTENCY}{principal}/{request_id}")
}

/// The record of a change.
pub(crate) fn audit(number: u64) -> String {
    format!("{}{number:020}", audit_bucket(audit_bucket_of(number)))
}

/// The records of a bucket.
pub(crate) fn audit_bucket(bucket: u64) -> String {
    format!("{AUDIT}{bucket:018}/")
}

/// The bucket of a record.
pub(crate) const fn audit_bucket_of(number: u64) -> u64 {
    number / AUDIT_BUCKET
}

/// The first number in the bucket of a record.
pub(crate) const fn audit_bucket_start(number: u64) -> u64 {
    audit_bucket_of(number) * AUDIT_BUCKET
}

/// The number at the end of a key of [`audit`].
pub(crate) fn audit_number(key: &str) -> Option<u64> {
    key.rsplit('/').next()?.parse().ok()
}

/// What lies under a key, for the record of a change: the object as people know it, and the type of
/// its stored value. `None` for keys that only serve others.
pub(crate) fn recorded(key: &str) -> Option<(&str, &'static str)> {
    if let Some(object) = key.strip_prefix(OBJECTS) {
        let kind = match parse_object(key)? {
            ObjectPath::Gateway(_) => "Gateway",
            ObjectPath::Destination(..) => "Destination",
            ObjectPath::Acl(_) => "Acl",
            ObjectPath::Node(_) => "Node",
        };
        return Some((object, kind));
    }
    key.starts_with(ADMIN_TOKENS)
        .then_some(("token", "AdminToken"))
}

/// A control plane that is alive.
pub(crate) fn live(control_plane: &str) -> String {
    format!("{LIVE}{control_plane}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn object_keys_are_read_as_they_are_written() {
        let gateway_id = GatewayId::new("G1").unwrap();
        let id = DestinationId::new("D1").unwrap();
        assert_eq!(
            parse_object(&gateway(&gateway_id)),
            Some(ObjectPath::Gateway("G1"))
        );
        assert_eq!(
            parse_object(&destination(&gateway_id, &id)),
            Some(ObjectPath::Destination("G1", "D1"))
        );
        assert_eq!(parse_object(&acl(&gateway_id)), Some(ObjectPath::Acl("G1")));
        assert_eq!(parse_object("v1/obj/gateway/G1/x"), None);
        assert_eq!(parse_object("v1/obj/cert/C1"), None);
        assert_eq!(parse_object("v1/meta/ca"), None);
    }

    #[test]
    fn records_sort_by_number_and_are_read_back() {
        assert!(audit(99) < audit(100) && audit(100) < audit(u64::MAX));
        assert!(audit(150).starts_with(&audit_bucket(1)));
        assert_eq!(
            (audit_number(&audit(150)), audit_bucket_start(150)),
            (Some(150), 100)
        );
    }

    #[test]
    fn ports_sort_and_are_read_back() {
        let group = Name::new("default").unwrap();
        assert!(cloud_port(&group, 999) < cloud_port(&group, 15000));
        assert_eq!(port_of(&quarantine(&group, 999)), Some(999));
    }
}
