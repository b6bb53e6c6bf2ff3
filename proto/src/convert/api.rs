//! The public API (`securegateway.v1`) and the domain.
//!
//! What a caller sends becomes a draft: everything a caller may choose, parsed, with *all* of its
//! faults reported at once. What a caller gets is written from a record of [`super::store`].

mod acl;

use std::time::Duration;

pub use acl::{acl_entry, acl_from_api, acl_replacement, acl_target, acl_to_api};

use sg_model::{
    AclEdits, ClientCertificates, Compression, Destination, DestinationKind, Host, HostPort,
    Invalid, Name, Policy, Protocol, ResourceEnd, TokenExpiry, UserEnd,
};

use super::ends::{
    WriteSecret, as_it_is, hidden, plain, resource_end_from_wire, resource_end_to_wire,
    user_end_from_wire, user_end_to_wire,
};
use super::node::{
    acl_edits_from_wire, client_certificates_from_wire, compression_from_wire, keepalive_from_wire,
    optional_port_from_wire, port_from_wire, resume_time_from_wire, token_expiry_from_wire,
};
use super::store::{DestinationRecord, GatewayRecord};
use super::{duration_from_wire, duration_to_wire, timestamp_to_wire};
use crate::api as wire;

/// Longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 1024;

/// What a caller may choose of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayDraft {
    /// Its name.
    pub name: Name,
    /// Node group that serves it.
    pub group: Name,
    /// How streams are spread.
    pub policy: Policy,
    /// How long a tunnel without a connection waits to be resumed; zero: not at all.
    pub resume_time: Duration,
    /// What becomes of tunnels whose security token expires.
    pub token_expiry: TokenExpiry,
    /// Whether clients get certificates.
    pub client_certificates: ClientCertificates,
    /// Who may change its list.
    pub acl_edits: AclEdits,
    /// Free text.
    pub description: String,
}

/// What a caller may choose of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationDraft {
    /// Its name.
    pub name: Name,
    /// On which side its users are.
    pub kind: DestinationKind,
    /// What its users speak.
    pub protocol: Protocol,
    /// What they reach.
    pub resource: HostPort,
    /// The port on the nodes; `None`: to be allocated, or not of this kind.
    pub cloud_port: Option<u16>,
    /// The port on the client, of a cloud destination.
    pub client_port: Option<u16>,
    /// How long connecting to the resource may take.
    pub connect_timeout: Duration,
    /// Streams without a byte for so long are closed; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Streams open at a time on each node; `None`: no limit.
    pub max_connections: Option<u32>,
    /// How its streams' bytes are compressed inside tunnels.
    pub compression: Compression,
    /// Time without a byte after which TCP asks after the other side; `None`: the default.
    pub keepalive: Option<Duration>,
    /// How users are received.
    pub user_end: UserEnd,
    /// How the resource is connected to.
    pub resource_end: ResourceEnd,
    /// Free text.
    pub description: String,
}

/// Collects what is wrong with a message, so that a caller learns of all of it at once.
#[derive(Debug, Default)]
struct Faults(Vec<Invalid>);

impl Faults {
    fn take<T>(&mut self, result: Result<T, Invalid>) -> Option<T> {
        result.map_err(|fault| self.0.push(fault)).ok()
    }

    fn description(&mut self, text: &str) {
        if text.len() > MAX_DESCRIPTION {
            let limit = format!("must be at most {MAX_DESCRIPTION} bytes");
            self.0.push(Invalid::new("description", limit));
        }
    }
}

/// The name of a node group; empty means `default`.
///
/// # Errors
/// When it is not a name.
pub fn group_from_api(group: &str) -> Result<Name, Invalid> {
    let group = if group.is_empty() { "default" } else { group };
    Name::new(group).map_err(|e| e.in_field("group"))
}

/// Parses what a caller chose of a gateway.
///
/// # Errors
/// Every field that cannot be accepted.
pub fn gateway_draft(g: &wire::Gateway) -> Result<GatewayDraft, Vec<Invalid>> {
    let mut faults = Faults::default();
    let name = faults.take(Name::new(&g.name));
    let group = faults.take(group_from_api(&g.group));
    let policy = faults.take(match g.policy.as_str() {
        "" => Ok(Policy::RoundRobin),
        word => word.parse(),
    });
    let resume_time = faults.take(resume_time_from_wire(g.resume_time.as_ref()));
    let token_expiry = faults.take(token_expiry_from_wire(&g.token_expiry));
    let client_certificates = faults.take(client_certificates_from_wire(&g.client_certificates));
    let acl_edits = faults.take(acl_edits_from_wire(&g.acl_edits));
    faults.description(&g.description);
    let draft = (
        name,
        group,
        policy,
        resume_time,
        token_expiry.zip(client_certificates).zip(acl_edits),
        faults.0.is_empty(),
    );
    match draft {
        (Some(name), Some(group), Some(policy), Some(resume_time), Some(words), true) => {
            Ok(GatewayDraft {
                name,
                group,
                policy,
                resume_time,
                token_expiry: words.0.0,
                client_certificates: words.0.1,
                acl_edits: words.1,
                description: g.description.clone(),
            })
        }
        _ => Err(faults.0),
    }
}

/// Parses what a caller chose of a destination.
///
/// # Errors
/// Every field that cannot be accepted.
pub fn destination_draft(d: &wire::Destination) -> Result<DestinationDraft, Vec<Invalid>> {
    let mut faults = Faults::default();
    let name = faults.take(Name::new(&d.name));
    let kind = faults.take(match d.kind.as_str() {
        "" => Ok(DestinationKind::OnPremises),
        word => word.parse(),
    });
    let protocol = faults.take(d.protocol.parse::<Protocol>());
    let host = faults.take(
        d.resource_host
            .parse::<Host>()
            .map_err(|e| e.in_field("resource_host")),
    );
    let port = faults.take(port_from_wire("resource_port", d.resource_port));
    let ports = kind.and_then(|kind| listen_ports(&mut faults, kind, d));
    let connect_timeout = faults.take(
        optional_duration("connect_timeout", d.connect_timeout.as_ref())
            .and_then(Destination::checked_connect_timeout),
    );
    let idle_timeout = faults.take(optional_duration("idle_timeout", d.idle_timeout.as_ref()));
    let compression =
        protocol.and_then(|protocol| faults.take(compression_from_wire(protocol, &d.compression)));
    let keepalive = faults.take(keepalive_from_wire(d.keepalive.as_ref()));
    let user_end = protocol.and_then(|protocol| {
        faults.take(user_end_from_wire(d.user_end.as_ref(), protocol, &as_it_is))
    });
    let resource_end = protocol.and_then(|protocol| {
        faults.take(resource_end_from_wire(
            d.resource_end.as_ref(),
            protocol,
            &as_it_is,
        ))
    });
    faults.description(&d.description);
    let resource = host.zip(port).and_then(|(host, port)| {
        faults.take(HostPort::new(host, port).map_err(|e| e.in_field("resource_port")))
    });
    let draft = (|| {
        let (cloud_port, client_port) = ports?;
        Some(DestinationDraft {
            name: name?,
            kind: kind?,
            protocol: protocol?,
            resource: resource?,
            cloud_port,
            client_port,
            connect_timeout: connect_timeout?,
            idle_timeout: idle_timeout?.filter(|t| !t.is_zero()),
            max_connections: (d.max_connections != 0).then_some(d.max_connections),
            compression: compression?,
            keepalive: keepalive?,
            user_end: user_end?,
            resource_end: resource_end?,
            description: d.description.clone(),
        })
    })();
    match draft {
        Some(draft) if faults.0.is_empty() => Ok(draft),
        _ => Err(faults.0),
    }
}

fn optional_duration(
    field: &'static str,
    wire: Option<&pbjson_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    wire.map(|t| duration_from_wire(field, t)).transpose()
}

/// The ports to listen on; on premises the port may still be open.
fn listen_ports(
    faults: &mut Faults,
    kind: DestinationKind,
    d: &wire::Destination,
) -> Option<(Option<u16>, Option<u16>)> {
    let cloud = faults.take(optional_port_from_wire("cloud_port", d.cloud_port));
    let client = faults.take(optional_port_from_wire("client_port", d.client_port));
    let (cloud, client) = cloud.zip(client)?;
    let fault = match kind {
        DestinationKind::OnPremises if client != 0 => Some(Invalid::new(
            "client_port",
            "belongs to cloud destinations; leave it out or set kind to cloud",
        )),
        DestinationKind::Cloud if client == 0 => Some(Invalid::new(
            "client_port",
            "a cloud destination needs the port that the client listens on, 1 to 65535",
        )),
        DestinationKind::Cloud if cloud != 0 => Some(Invalid::new(
            "cloud_port",
            "belongs to on-premises destinations; leave it out or set kind to on-premises",
        )),
        DestinationKind::OnPremises | DestinationKind::Cloud => None,
    };
    match fault {
        Some(fault) => faults.take(Err(fault)),
        None => Some((
            (cloud != 0).then_some(cloud),
            (client != 0).then_some(client),
        )),
    }
}

/// A gateway for the caller. The secret is the caller's to add.
#[must_use]
pub fn gateway_to_api(record: &GatewayRecord, etag: String) -> wire::Gateway {
    let g = &record.gateway;
    wire::Gateway {
        id: g.id.to_string(),
        name: g.name.to_string(),
        enabled: g.enabled,
        group: record.group.to_string(),
        policy: g.policy.to_string(),
        security_token: String::new(),
        token_required: g.token_required,
        token_expire_time: g
            .tokens
            .first()
            .and_then(|t| t.expires)
            .map(timestamp_to_wire),
        create_time: Some(timestamp_to_wire(record.created)),
        update_time: Some(timestamp_to_wire(record.updated)),
        generation: g.generation,
        etag,
        description: record.description.clone(),
        resume_time: Some(duration_to_wire(g.resume_time)),
        token_expiry: g.token_expiry.to_string(),
        client_certificates: g.client_certificates.to_string(),
        revoked_clients: g
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

/// A destination for the caller, without status and without keys.
#[must_use]
pub fn destination_to_api(
    record: &DestinationRecord,
    gateway: &str,
    cloud_host: &str,
    etag: String,
) -> wire::Destination {
    write_destination(record, gateway, cloud_host, etag, &hidden)
}

/// A destination as a caller would send it to have it as it is, keys included: what a change is laid over.
/// Never answered.
#[must_use]
pub fn destination_to_merge(record: &DestinationRecord) -> wire::Destination {
    write_destination(record, "", "", String::new(), &plain)
}

fn write_destination(
    record: &DestinationRecord,
    gateway: &str,
    cloud_host: &str,
    etag: String,
    secrets: WriteSecret<'_>,
) -> wire::Destination {
    let d = &record.destination;
    let cloud_port = d.listen.cloud_port();
    wire::Destination {
        id: d.id.to_string(),
        name: d.name.to_string(),
        gateway_id: d.gateway.to_string(),
        gateway: gateway.to_owned(),
        kind: d.kind().to_string(),
        protocol: d.protocol.to_string(),
        resource_host: d.resource.host().to_string(),
        resource_port: d.resource.port().into(),
        cloud_host: cloud_port
            .map(|_| cloud_host.to_owned())
            .unwrap_or_default(),
        cloud_port: cloud_port.unwrap_or_default().into(),
        client_port: d.listen.client_port().unwrap_or_default().into(),
        enabled: d.enabled,
        connect_timeout: Some(duration_to_wire(d.connect_timeout)),
        idle_timeout: d.idle_timeout.map(duration_to_wire),
        max_connections: d.max_connections.unwrap_or_default(),
        create_time: Some(timestamp_to_wire(record.created)),
        update_time: Some(timestamp_to_wire(record.updated)),
        generation: d.generation,
        etag,
        status: None,
        description: record.description.clone(),
        compression: d.compression.to_string(),
        keepalive: d.keepalive.map(duration_to_wire),
        user_end: Some(user_end_to_wire(&d.user_end, secrets)),
        resource_end: Some(resource_end_to_wire(&d.resource_end, secrets)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn destination() -> wire::Destination {
        wire::Destination {
            name: "db".to_owned(),
            protocol: "tcp".to_owned(),
            resource_host: "db.plant".to_owned(),
            resource_port: 5432,
            ..Default::default()
        }
    }

    #[test]
    fn a_draft_has_the_documented_defaults() {
        let draft = destination_draft(&destination()).unwrap();
        assert_eq!(draft.kind, DestinationKind::OnPremises);
        assert_eq!((draft.cloud_port, draft.client_port), (None, None));
        assert_eq!(draft.connect_timeout, sg_model::DEFAULT_CONNECT_TIMEOUT);
        assert_eq!((draft.idle_timeout, draft.max_connections), (None, None));
        assert_eq!(draft.compression, Compression::None);
        let draft = gateway_draft(&wire::Gateway {
            name: "dev".to_owned(),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(
            (draft.group.as_str(), draft.policy),
            ("default", Policy::RoundRobin)
        );
        assert_eq!(draft.resume_time, sg_model::DEFAULT_RESUME_TIME);
    }

    #[test]
    fn a_resume_time_of_zero_is_not_an_absent_one() {
        let draft = |seconds| {
            let resume_time = Some(pbjson_types::Duration { seconds, nanos: 0 });
            let name = "dev".to_owned();
            gateway_draft(&wire::Gateway {
                name,
                resume_time,
                ..Default::default()
            })
        };
        assert_eq!(draft(0).unwrap().resume_time, Duration::ZERO);
        assert_eq!(draft(601).unwrap_err()[0].field, "resume_time");
    }

    #[test]
    fn compression_depends_on_the_protocol() {
        let draft = |protocol: &str, compression: &str| {
            destination_draft(&wire::Destination {
                protocol: protocol.to_owned(),
                compression: compression.to_owned(),
                ..destination()
            })
        };
        assert_eq!(draft("tcp", "zstd").unwrap().compression, Compression::Zstd);
        assert_eq!(draft("tcp", "gzip").unwrap_err()[0].field, "compression");
        let faults = draft("https", "lz4").unwrap_err();
        assert_eq!(faults[0].field, "compression");
        assert!(faults[0].message.contains("secret"), "{faults:?}");
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let faults = destination_draft(&wire::Destination {
            name: "No".to_owned(),
            kind: "cloud".to_owned(),
            protocol: "tpc".to_owned(),
            resource_port: 70_000,
            description: "x".repeat(MAX_DESCRIPTION + 1),
            connect_timeout: Some(pbjson_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
            ..destination()
        })
        .unwrap_err();
        let mut fields: Vec<_> = faults.iter().map(|f| f.field).collect();
        fields.sort_unstable();
        let expected = [
            "client_port",
            "connect_timeout",
            "description",
            "name",
            "protocol",
            "resource_port",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn each_kind_has_its_own_port() {
        let field = |d: wire::Destination| destination_draft(&d).unwrap_err()[0].field;
        assert_eq!(
            field(wire::Destination {
                client_port: 1,
                ..destination()
            }),
            "client_port"
        );
        let cloud = wire::Destination {
            kind: "cloud".to_owned(),
            ..destination()
        };
        assert_eq!(
            field(wire::Destination {
                client_port: 1,
                cloud_port: 2,
                ..cloud.clone()
            }),
            "cloud_port"
        );
        let draft = destination_draft(&wire::Destination {
            client_port: 1,
            ..cloud
        })
        .unwrap();
        assert_eq!(draft.client_port, Some(1));
    }
}
