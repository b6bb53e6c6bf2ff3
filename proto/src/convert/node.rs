//! Node configuration (`securegateway.node.v1`) and the domain, both ways.

use std::collections::BTreeMap;
use std::time::Duration;

use sg_model::{
    Acl, AclEdits, AclVersion, Change, ClientCertificates, ClientId, Compression, Destination,
    DestinationId, Gateway, GatewayId, Host, HostPort, Invalid, Listen, MAX_REVOKED, Name, NodeId,
    NodeObject, NodePeer, ObjectKey, Protocol, Timestamp, TokenExpiry, TokenHash,
};

use super::acl::Fields;
use super::ends::{
    as_it_is, plain, resource_end_from_wire, resource_end_to_wire, user_end_from_wire,
    user_end_to_wire,
};
use super::{duration_from_wire, duration_to_wire, timestamp_from_wire, timestamp_to_wire};
use crate::node as wire;

/// A port on the wire, where 0 is not a port.
pub(super) fn port_from_wire(field: &'static str, port: u32) -> Result<u16, Invalid> {
    match optional_port_from_wire(field, port)? {
        0 => Err(Invalid::new(field, "must be 1 to 65535")),
        port => Ok(port),
    }
}

/// A port on the wire, where 0 means absent.
pub(super) fn optional_port_from_wire(field: &'static str, port: u32) -> Result<u16, Invalid> {
    u16::try_from(port).map_err(|_| Invalid::new(field, "must be 1 to 65535"))
}

/// A gateway's resume time, where absent means the default.
///
/// # Errors
/// When it is negative or too long.
pub fn resume_time_from_wire(wire: Option<&pbjson_types::Duration>) -> Result<Duration, Invalid> {
    let time = wire
        .map(|t| duration_from_wire("resume_time", t))
        .transpose()?;
    Gateway::checked_resume_time(time)
}

/// A destination's keepalive time, where absent and zero mean the default.
pub(super) fn keepalive_from_wire(
    wire: Option<&pbjson_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let time = wire
        .map(|t| duration_from_wire("keepalive", t))
        .transpose()?;
    Destination::checked_keepalive(time)
}

/// What becomes of tunnels whose token expires, where empty means that they are kept.
///
/// # Errors
/// When it is no such word.
pub fn token_expiry_from_wire(word: &str) -> Result<TokenExpiry, Invalid> {
    match word {
        "" => Ok(TokenExpiry::Keep),
        word => word.parse(),
    }
}

/// Whether a gateway's clients get certificates, where empty means that they do.
///
/// # Errors
/// When it is no such word.
pub fn client_certificates_from_wire(word: &str) -> Result<ClientCertificates, Invalid> {
    match word {
        "" => Ok(ClientCertificates::On),
        word => word.parse(),
    }
}

/// Revoked clients, of which there may be so many and no more.
pub(super) fn revoked_from_wire(
    clients: impl ExactSizeIterator<Item = Result<(ClientId, Timestamp), Invalid>>,
) -> Result<BTreeMap<ClientId, Timestamp>, Invalid> {
    if clients.len() > MAX_REVOKED {
        let text = format!("must be at most {MAX_REVOKED}");
        return Err(Invalid::new("revoked_clients", text));
    }
    clients.collect()
}

/// Who may change a gateway's list, where empty means its clients, too.
///
/// # Errors
/// When it is no such word.
pub fn acl_edits_from_wire(word: &str) -> Result<AclEdits, Invalid> {
    match word {
        "" => Ok(AclEdits::default()),
        word => word.parse(),
    }
}

/// A destination's compression, where empty means none.
pub(super) fn compression_from_wire(
    protocol: Protocol,
    word: &str,
) -> Result<Compression, Invalid> {
    let compression = match word {
        "" => Compression::None,
        word => word.parse()?,
    };
    Destination::checked_compression(protocol, compression)
}

impl From<&Gateway> for wire::Gateway {
    fn from(g: &Gateway) -> Self {
        Self {
            id: g.id.to_string(),
            name: g.name.to_string(),
            enabled: g.enabled,
            policy: g.policy.to_string(),
            token_required: g.token_required,
            tokens: g
                .tokens
                .iter()
                .map(|t| wire::TokenHash {
                    sha256: t.sha256.to_vec(),
                    expire_time: t.expires.map(timestamp_to_wire),
                })
                .collect(),
            generation: g.generation,
            resume_time: Some(duration_to_wire(g.resume_time)),
            token_expiry: g.token_expiry.to_string(),
            client_certificates: g.client_certificates.to_string(),
            token_generation: g.token_generation,
            revoked_clients: g.revoked.keys().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<&wire::Gateway> for Gateway {
    type Error = Invalid;

    fn try_from(g: &wire::Gateway) -> Result<Self, Invalid> {
        let token = |t: &wire::TokenHash| {
            Ok(TokenHash {
                sha256: <[u8; 32]>::try_from(t.sha256.as_ref())
                    .map_err(|_| Invalid::new("tokens", "a SHA-256 has 32 bytes"))?,
                expires: t
                    .expire_time
                    .as_ref()
                    .map(|e| timestamp_from_wire("expire_time", e))
                    .transpose()?,
            })
        };
        Ok(Self {
            id: GatewayId::new(&g.id)?,
            name: Name::new(&g.name)?,
            enabled: g.enabled,
            policy: g.policy.parse()?,
            token_required: g.token_required,
            tokens: g.tokens.iter().map(token).collect::<Result<_, Invalid>>()?,
            resume_time: resume_time_from_wire(g.resume_time.as_ref())?,
            token_expiry: token_expiry_from_wire(&g.token_expiry)?,
            client_certificates: client_certificates_from_wire(&g.client_certificates)?,
            token_generation: g.token_generation,
            // Since when is for people; a node asks only whether.
            revoked: revoked_from_wire(
                g.revoked_clients
                    .iter()
                    .map(|id| Ok((ClientId::new(id)?, Timestamp(0)))),
            )?,
            generation: g.generation,
        })
    }
}

impl From<&Destination> for wire::Destination {
    fn from(d: &Destination) -> Self {
        Self {
            id: d.id.to_string(),
            gateway_id: d.gateway.to_string(),
            name: d.name.to_string(),
            kind: d.kind().to_string(),
            protocol: d.protocol.to_string(),
            resource_host: d.resource.host().to_string(),
            resource_port: d.resource.port().into(),
            cloud_port: d.listen.cloud_port().unwrap_or_default().into(),
            client_port: d.listen.client_port().unwrap_or_default().into(),
            enabled: d.enabled,
            connect_timeout: Some(duration_to_wire(d.connect_timeout)),
            idle_timeout: d.idle_timeout.map(duration_to_wire),
            max_connections: d.max_connections.unwrap_or_default(),
            generation: d.generation,
            compression: d.compression.to_string(),
            keepalive: d.keepalive.map(duration_to_wire),
            user_end: Some(user_end_to_wire(&d.user_end, &plain)),
            resource_end: Some(resource_end_to_wire(&d.resource_end, &plain)),
        }
    }
}

impl TryFrom<&wire::Destination> for Destination {
    type Error = Invalid;

    fn try_from(d: &wire::Destination) -> Result<Self, Invalid> {
        let connect = d
            .connect_timeout
            .as_ref()
            .map(|t| duration_from_wire("connect_timeout", t))
            .transpose()?;
        let idle = d
            .idle_timeout
            .as_ref()
            .map(|t| duration_from_wire("idle_timeout", t))
            .transpose()?;
        let resource_host = d
            .resource_host
            .parse::<Host>()
            .map_err(|e| e.in_field("resource_host"))?;
        let protocol = d.protocol.parse()?;
        Ok(Self {
            id: DestinationId::new(&d.id)?,
            gateway: GatewayId::new(&d.gateway_id)?,
            name: Name::new(&d.name)?,
            listen: Listen::new(
                d.kind.parse()?,
                optional_port_from_wire("cloud_port", d.cloud_port)?,
                optional_port_from_wire("client_port", d.client_port)?,
            )?,
            protocol,
            resource: HostPort::new(
                resource_host,
                port_from_wire("resource_port", d.resource_port)?,
            )
            .map_err(|e| e.in_field("resource_port"))?,
            enabled: d.enabled,
            connect_timeout: Self::checked_connect_timeout(connect)?,
            idle_timeout: idle.filter(|t| !t.is_zero()),
            max_connections: (d.max_connections != 0).then_some(d.max_connections),
            compression: compression_from_wire(protocol, &d.compression)?,
            keepalive: keepalive_from_wire(d.keepalive.as_ref())?,
            user_end: user_end_from_wire(d.user_end.as_ref(), protocol, &as_it_is)?,
            resource_end: resource_end_from_wire(d.resource_end.as_ref(), protocol, &as_it_is)?,
            generation: d.generation,
        })
    }
}

fn acl_to_wire(gateway: &GatewayId, acl: &Acl) -> wire::Acl {
    wire::Acl {
        gateway_id: gateway.to_string(),
        epoch: acl.version.epoch,
        generation: acl.version.generation,
        entries: acl.entries.iter().map(wire::AclEntry::from).collect(),
        unlisted: acl.unlisted.to_string(),
        path_prefix: acl.path_prefix.to_string(),
    }
}

fn acl_from_wire(acl: &wire::Acl) -> Result<(GatewayId, Acl), Invalid> {
    let version = AclVersion {
        epoch: acl.epoch,
        generation: acl.generation,
    };
    let entries = acl.entries.iter().map(Fields::from);
    let list = super::acl::list(version, entries, &acl.unlisted, &acl.path_prefix)?;
    Ok((GatewayId::new(&acl.gateway_id)?, list))
}

/// What a node enforces in the place of an object that it cannot understand, if anything: of a list, one of the same
/// version that denies everything.
#[must_use]
pub fn stand_in(object: &wire::Object) -> Option<NodeObject> {
    let Some(wire::object::Object::Acl(acl)) = &object.object else {
        return None;
    };
    let version = AclVersion {
        epoch: acl.epoch,
        generation: acl.generation,
    };
    let gateway = GatewayId::new(&acl.gateway_id).ok()?;
    Some(NodeObject::Acl(gateway, Acl::deny_all(version)))
}

/// One object with the revision of its last change, for the wire.
#[must_use]
pub fn object_to_wire(revision: u64, object: &NodeObject) -> wire::Object {
    use wire::object::Object;
    let object = match object {
        NodeObject::Gateway(g) => Object::Gateway(g.into()),
        NodeObject::Destination(d) => Object::Destination(d.into()),
        NodeObject::Acl(gateway, acl) => Object::Acl(acl_to_wire(gateway, acl)),
        NodeObject::Peer(p) => Object::Node(wire::Node {
            id: p.id.to_string(),
            name: p.name.to_string(),
            tunnel_address: p.tunnel_address.clone(),
        }),
    };
    wire::Object {
        revision,
        object: Some(object),
    }
}

/// One object from the wire.
///
/// # Errors
/// When a field is not acceptable, or the kind of object is unknown here.
pub fn object_from_wire(object: &wire::Object) -> Result<(u64, NodeObject), Invalid> {
    use wire::object::Object;
    let parsed = match &object.object {
        Some(Object::Gateway(g)) => NodeObject::Gateway(g.try_into()?),
        Some(Object::Destination(d)) => NodeObject::Destination(d.try_into()?),
        Some(Object::Acl(acl)) => {
            let (gateway, acl) = acl_from_wire(acl)?;
            NodeObject::Acl(gateway, acl)
        }
        Some(Object::Node(n)) => NodeObject::Peer(NodePeer {
            id: NodeId::new(&n.id)?,
            name: Name::new(&n.name)?,
            tunnel_address: n.tunnel_address.clone(),
        }),
        None => {
            return Err(Invalid::new(
                "object",
                "a kind of object that this version does not know",
            ));
        }
    };
    Ok((object.revision, parsed))
}

/// Names a wire object even when it cannot be parsed, for a rejection: kind and id.
#[must_use]
pub fn object_name(object: &wire::Object) -> (&'static str, &str) {
    use wire::object::Object;
    match &object.object {
        Some(Object::Gateway(g)) => ("gateway", &g.id),
        Some(Object::Destination(d)) => ("destination", &d.id),
        Some(Object::Acl(acl)) => ("acl", &acl.gateway_id),
        Some(Object::Node(n)) => ("node", &n.id),
        None => ("unknown", ""),
    }
}

/// A removed object's name, for the wire.
#[must_use]
pub fn removal_to_wire(key: &ObjectKey) -> wire::Removal {
    wire::Removal {
        kind: key.kind().to_owned(),
        id: key.id().to_owned(),
    }
}

/// A removed object's name from the wire.
///
/// # Errors
/// When the kind is unknown or the id is not acceptable.
pub fn removal_from_wire(removal: &wire::Removal) -> Result<ObjectKey, Invalid> {
    match removal.kind.as_str() {
        "gateway" => Ok(ObjectKey::Gateway(GatewayId::new(&removal.id)?)),
        "destination" => Ok(ObjectKey::Destination(DestinationId::new(&removal.id)?)),
        "acl" => Ok(ObjectKey::Acl(GatewayId::new(&removal.id)?)),
        "node" => Ok(ObjectKey::Peer(NodeId::new(&removal.id)?)),
        _ => Err(Invalid::new(
            "kind",
            "is not gateway, destination, acl or node",
        )),
    }
}

/// A change as a delta message; nonce and digest are the sender's to fill in.
#[must_use]
pub fn change_to_delta(change: &Change) -> wire::Delta {
    wire::Delta {
        nonce: 0,
        epoch: change.epoch,
        from_revision: change.from.unwrap_or_default(),
        to_revision: change.to,
        upserts: change
            .upserts
            .iter()
            .map(|(rev, o)| object_to_wire(*rev, o))
            .collect(),
        removals: change.removals.iter().map(removal_to_wire).collect(),
        digest: 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::{Action, Policy};

    use super::*;

    fn objects() -> Vec<NodeObject> {
        let gateway = GatewayId::new("g1").unwrap();
        vec![
            NodeObject::Gateway(Gateway {
                id: gateway.clone(),
                name: Name::new("dev").unwrap(),
                enabled: true,
                policy: Policy::LeastLoaded,
                token_required: true,
                tokens: vec![TokenHash {
                    sha256: [7; 32],
                    expires: Some(Timestamp(1_700_000_000_123)),
                }],
                resume_time: Duration::ZERO,
                token_expiry: TokenExpiry::Cut,
                client_certificates: ClientCertificates::Off,
                token_generation: 4,
                revoked: BTreeMap::from([(ClientId::new("c1").unwrap(), Timestamp(0))]),
                generation: 3,
            }),
            NodeObject::Destination(Destination {
                id: DestinationId::new("d1").unwrap(),
                gateway: gateway.clone(),
                name: Name::new("db").unwrap(),
                listen: Listen::CloudPort(15000),
                protocol: Protocol::TlsMutual,
                resource: "[::1]:5432".parse().unwrap(),
                enabled: true,
                connect_timeout: Duration::from_millis(1500),
                idle_timeout: Some(Duration::from_secs(60)),
                max_connections: Some(9),
                compression: Compression::None,
                keepalive: Some(Duration::from_secs(7)),
                user_end: super::super::ends::tests::user_end(),
                resource_end: super::super::ends::tests::resource_end(),
                generation: 4,
            }),
            NodeObject::Acl(
                gateway,
                Acl {
                    path_prefix: sg_model::PrefixMode::Text,
                    version: AclVersion {
                        epoch: 1,
                        generation: 2,
                    },
                    entries: vec![
                        sg_model::AclEntry::parse(Action::Allow, "db:5432").unwrap(),
                        sg_model::AclEntry::parse(Action::Deny, "[::1]:").unwrap(),
                        sg_model::AclEntry::parse(Action::Allow, "10.0.0.0/8:80-90/a").unwrap(),
                    ],
                    unlisted: Action::Allow,
                },
            ),
            NodeObject::Peer(NodePeer {
                id: NodeId::new("n1").unwrap(),
                name: Name::new("node-1").unwrap(),
                tunnel_address: "node-1:9000".to_owned(),
            }),
        ]
    }

    #[test]
    fn every_object_survives_the_wire() {
        for object in objects() {
            assert_eq!(
                object_from_wire(&object_to_wire(5, &object)),
                Ok((5, object.clone()))
            );
            let key = object.key();
            assert_eq!(removal_from_wire(&removal_to_wire(&key)), Ok(key));
        }
    }

    #[test]
    fn a_bad_field_is_named() {
        let mut wire = object_to_wire(1, &objects()[1]);
        if let Some(wire::object::Object::Destination(d)) = &mut wire.object {
            d.resource_port = 70_000;
        }
        assert_eq!(
            object_from_wire(&wire).map_err(|e| e.field),
            Err("resource_port")
        );
        assert_eq!(object_name(&wire), ("destination", "d1"));
        assert!(object_from_wire(&wire::Object::default()).is_err());
    }
}
