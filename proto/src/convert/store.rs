//! Stored values (`securegateway.store.v1`) and the domain.
//!
//! A record is a domain object with what only the control plane keeps: group, dates, description.
//! Secrets and keys are not here: they are stored sealed, as bytes.

use sg_model::{
    Acl, AclEdits, AclVersion, ClientId, Destination, DestinationId, Gateway, GatewayId, Host,
    HostPort, Invalid, Listen, Name, NodeId, PortRange, Timestamp, TokenHash,
};

use super::acl::Fields;
use super::ends::{
    ReadSecret, WriteSecret, resource_end_from_wire, resource_end_to_wire, user_end_from_wire,
    user_end_to_wire,
};
use super::node::{
    acl_edits_from_wire, client_certificates_from_wire, compression_from_wire, keepalive_from_wire,
    optional_port_from_wire, port_from_wire, resume_time_from_wire, revoked_from_wire,
    token_expiry_from_wire,
};
use super::{duration_from_wire, duration_to_wire, timestamp_from_wire, timestamp_to_wire};
use crate::store as wire;

/// A gateway at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRecord {
    /// What its nodes get.
    pub gateway: Gateway,
    /// Node group that serves it.
    pub group: Name,
    /// Who may change its access control list.
    pub acl_edits: AclEdits,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
}

/// A destination at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRecord {
    /// What the nodes get.
    pub destination: Destination,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
}

/// A node at rest, as it last introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node.
    pub id: NodeId,
    /// Unique among nodes.
    pub name: Name,
    /// The group it joined.
    pub group: Name,
    /// HOST:PORT of its tunnel listener; empty until it said so.
    pub tunnel_address: String,
    /// Host where users reach destination ports; empty until it said so.
    pub destination_host: String,
    /// Ports it opens for destinations; `None` until it said so.
    pub ports: Option<PortRange>,
    /// Its software version.
    pub version: String,
    /// When it joined.
    pub created: Timestamp,
}

fn date(field: &'static str, wire: Option<&pbjson_types::Timestamp>) -> Result<Timestamp, Invalid> {
    wire.map_or_else(
        || Ok(Timestamp::default()),
        |t| timestamp_from_wire(field, t),
    )
}

impl From<&GatewayRecord> for wire::Gateway {
    fn from(record: &GatewayRecord) -> Self {
        let gateway = &record.gateway;
        let token = gateway.tokens.first();
        Self {
            id: gateway.id.to_string(),
            name: gateway.name.to_string(),
            enabled: gateway.enabled,
            group: record.group.to_string(),
            policy: gateway.policy.to_string(),
            token_required: gateway.token_required,
            token_sha256: token.map(|t| t.sha256.to_vec()).unwrap_or_default(),
            token_expire_time: token.and_then(|t| t.expires).map(timestamp_to_wire),
            create_time: Some(timestamp_to_wire(record.created)),
            update_time: Some(timestamp_to_wire(record.updated)),
            generation: gateway.generation,
            description: record.description.clone(),
            resume_time: Some(duration_to_wire(gateway.resume_time)),
            token_expiry: gateway.token_expiry.to_string(),
            client_certificates: gateway.client_certificates.to_string(),
            token_generation: gateway.token_generation,
            revoked_clients: gateway
                .revoked
                .iter()
                .map(|(id, since)| wire::RevokedClient {
                    client_id: id.to_string(),
                    revoke_time: Some(timestamp_to_wire(*since)),
                })
                .collect(),
            acl_edits: record.acl_edits.to_string(),
        }
    }
}

impl TryFrom<&wire::Gateway> for GatewayRecord {
    type Error = Invalid;

    fn try_from(g: &wire::Gateway) -> Result<Self, Invalid> {
        let tokens = match g.token_sha256.as_slice() {
            [] => Vec::new(),
            bytes => vec![TokenHash {
                sha256: <[u8; 32]>::try_from(bytes)
                    .map_err(|_| Invalid::new("token_sha256", "a SHA-256 has 32 bytes"))?,
                expires: g
                    .token_expire_time
                    .as_ref()
                    .map(|t| timestamp_from_wire("token_expire_time", t))
                    .transpose()?,
            }],
        };
        Ok(Self {
            gateway: Gateway {
                id: GatewayId::new(&g.id)?,
                name: Name::new(&g.name)?,
                enabled: g.enabled,
                policy: g.policy.parse()?,
                token_required: g.token_required,
                tokens,
                resume_time: resume_time_from_wire(g.resume_time.as_ref())?,
                token_expiry: token_expiry_from_wire(&g.token_expiry)?,
                client_certificates: client_certificates_from_wire(&g.client_certificates)?,
                token_generation: g.token_generation,
                revoked: revoked_from_wire(g.revoked_clients.iter().map(|one| {
                    let since = date("revoke_time", one.revoke_time.as_ref())?;
                    Ok((ClientId::new(&one.client_id)?, since))
                }))?,
                generation: g.generation,
            },
            group: Name::new(&g.group).map_err(|e| e.in_field("group"))?,
            acl_edits: acl_edits_from_wire(&g.acl_edits)?,
            description: g.description.clone(),
            created: date("create_time", g.create_time.as_ref())?,
            updated: date("update_time", g.update_time.as_ref())?,
        })
    }
}

impl DestinationRecord {
    /// For the store; `seal` writes keys and passwords.
    #[must_use]
    pub fn to_store(&self, seal: WriteSecret<'_>) -> wire::Destination {
        let (record, d) = (self, &self.destination);
        wire::Destination {
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
            create_time: Some(timestamp_to_wire(record.created)),
            update_time: Some(timestamp_to_wire(record.updated)),
            generation: d.generation,
            description: record.description.clone(),
            compression: d.compression.to_string(),
            keepalive: d.keepalive.map(duration_to_wire),
            user_end: Some(user_end_to_wire(&d.user_end, seal)),
            resource_end: Some(resource_end_to_wire(&d.resource_end, seal)),
        }
    }

    /// From the store; `open` reads keys and passwords.
    ///
    /// # Errors
    /// When a field is not acceptable, or a secret does not open.
    pub fn from_store(d: &wire::Destination, open: ReadSecret<'_>) -> Result<Self, Invalid> {
        let timeout = |field, wire: Option<&pbjson_types::Duration>| {
            wire.map(|t| duration_from_wire(field, t)).transpose()
        };
        let host = d.resource_host.parse::<Host>()?;
        let port = port_from_wire("resource_port", d.resource_port)?;
        let protocol = d.protocol.parse()?;
        let destination = Destination {
            id: DestinationId::new(&d.id)?,
            gateway: GatewayId::new(&d.gateway_id)?,
            name: Name::new(&d.name)?,
            listen: Listen::new(
                d.kind.parse()?,
                optional_port_from_wire("cloud_port", d.cloud_port)?,
                optional_port_from_wire("client_port", d.client_port)?,
            )?,
            protocol,
            resource: HostPort::new(host, port)?,
            enabled: d.enabled,
            connect_timeout: Destination::checked_connect_timeout(timeout(
                "connect_timeout",
                d.connect_timeout.as_ref(),
            )?)?,
            idle_timeout: timeout("idle_timeout", d.idle_timeout.as_ref())?
                .filter(|t| !t.is_zero()),
            max_connections: (d.max_connections != 0).then_some(d.max_connections),
            compression: compression_from_wire(protocol, &d.compression)?,
            keepalive: keepalive_from_wire(d.keepalive.as_ref())?,
            user_end: user_end_from_wire(d.user_end.as_ref(), protocol, open)?,
            resource_end: resource_end_from_wire(d.resource_end.as_ref(), protocol, open)?,
            generation: d.generation,
        };
        Ok(Self {
            destination,
            description: d.description.clone(),
            created: date("create_time", d.create_time.as_ref())?,
            updated: date("update_time", d.update_time.as_ref())?,
        })
    }
}

/// A list at rest. The epoch is not stored with it: it is that of the store.
#[must_use]
pub fn acl_to_store(gateway: &GatewayId, acl: &Acl) -> wire::Acl {
    wire::Acl {
        gateway_id: gateway.to_string(),
        generation: acl.version.generation,
        entries: acl.entries.iter().map(wire::AclEntry::from).collect(),
        unlisted: acl.unlisted.to_string(),
        path_prefix: acl.path_prefix.to_string(),
    }
}

/// A list as it was stored, under the store's `epoch`.
///
/// # Errors
/// When a field is not acceptable.
pub fn acl_from_store(epoch: u64, acl: &wire::Acl) -> Result<(GatewayId, Acl), Invalid> {
    let version = AclVersion {
        epoch,
        generation: acl.generation,
    };
    let entries = acl.entries.iter().map(Fields::from);
    let list = super::acl::list(version, entries, &acl.unlisted, &acl.path_prefix)?;
    Ok((GatewayId::new(&acl.gateway_id)?, list))
}

impl From<&NodeRecord> for wire::Node {
    fn from(node: &NodeRecord) -> Self {
        Self {
            id: node.id.to_string(),
            name: node.name.to_string(),
            group: node.group.to_string(),
            tunnel_address: node.tunnel_address.clone(),
            destination_host: node.destination_host.clone(),
            port_first: node.ports.map(|p| p.first().into()).unwrap_or_default(),
            port_last: node.ports.map(|p| p.last().into()).unwrap_or_default(),
            version: node.version.clone(),
            create_time: Some(timestamp_to_wire(node.created)),
        }
    }
}

impl TryFrom<&wire::Node> for NodeRecord {
    type Error = Invalid;

    fn try_from(n: &wire::Node) -> Result<Self, Invalid> {
        Ok(Self {
            id: NodeId::new(&n.id)?,
            name: Name::new(&n.name)?,
            group: Name::new(&n.group).map_err(|e| e.in_field("group"))?,
            tunnel_address: n.tunnel_address.clone(),
            destination_host: n.destination_host.clone(),
            ports: port_range("port_first", n.port_first, n.port_last)?,
            version: n.version.clone(),
            created: date("create_time", n.create_time.as_ref())?,
        })
    }
}

/// A range of ports on the wire, where 0 to 0 means none.
///
/// # Errors
/// When it is not a range of ports.
pub fn port_range(
    field: &'static str,
    first: u32,
    last: u32,
) -> Result<Option<PortRange>, Invalid> {
    if (first, last) == (0, 0) {
        return Ok(None);
    }
    PortRange::new(port_from_wire(field, first)?, port_from_wire(field, last)?)
        .map(Some)
        .map_err(|e| e.in_field(field))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::{Compression, DEFAULT_RESUME_TIME};

    use super::*;
    use crate::convert::ends::{as_it_is, plain};

    #[test]
    fn a_gateway_stored_before_resumption_has_the_default() {
        let mut stored = wire::Gateway {
            id: "g1".to_owned(),
            name: "dev".to_owned(),
            group: "default".to_owned(),
            policy: "round-robin".to_owned(),
            ..Default::default()
        };
        let record = GatewayRecord::try_from(&stored).unwrap();
        assert_eq!(record.gateway.resume_time, DEFAULT_RESUME_TIME);
        // Off is kept as off.
        stored.resume_time = Some(pbjson_types::Duration::default());
        let record = GatewayRecord::try_from(&stored).unwrap();
        assert!(record.gateway.resume_time.is_zero());
        let again = GatewayRecord::try_from(&wire::Gateway::from(&record));
        assert_eq!(again, Ok(record));
    }

    #[test]
    fn a_destination_stored_before_compression_has_none() {
        let mut stored = wire::Destination {
            id: "d1".to_owned(),
            gateway_id: "g1".to_owned(),
            name: "db".to_owned(),
            kind: "on-premises".to_owned(),
            protocol: "tcp".to_owned(),
            resource_host: "db".to_owned(),
            resource_port: 5432,
            cloud_port: 15000,
            ..Default::default()
        };
        let record = DestinationRecord::from_store(&stored, &as_it_is).unwrap();
        assert_eq!(record.destination.compression, Compression::None);
        stored.compression = "lz4".to_owned();
        let record = DestinationRecord::from_store(&stored, &as_it_is).unwrap();
        assert_eq!(record.destination.compression, Compression::Lz4);
        let again = DestinationRecord::from_store(&record.to_store(&plain), &as_it_is);
        assert_eq!(again, Ok(record));
    }
}
