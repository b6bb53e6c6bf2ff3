//! What a caller may change of a destination, field by field, and uploads brought into one form.

use sg_model::{Destination, Invalid, Listen};
use sg_proto::api as wire;
use sg_proto::convert::api::{destination_draft, destination_to_merge};
use sg_proto::convert::store::DestinationRecord;
use sg_runtime::identity::{self, CertificateDer};
use sg_runtime::secret::Secret;
use sg_runtime::tls::material::{self, Pair};

use crate::service::ServiceError;

/// Longest value of both ends together, encoded, in bytes: what one object of the store may take.
const MAX_ENDS: usize = 256 * 1024;

/// A field of the message: its path, whether it is set, and how it is taken over.
struct Field {
    path: &'static str,
    is_set: fn(&wire::Destination) -> bool,
    take: fn(&mut wire::Destination, &wire::Destination),
}

/// One line of the table: `path, |message| message.field`.
macro_rules! field {
    ($path:literal, $($name:ident).+) => {
        Field {
            path: $path,
            is_set: |d| d.$($name).+ != wire::Destination::default().$($name).+,
            take: |into, from| into.$($name).+ = from.$($name).+.clone(),
        }
    };
    ($path:literal, user $name:ident) => {
        Field {
            path: $path,
            is_set: |d| user(d).$name != wire::UserEnd::default().$name,
            take: |into, from| into.user_end.get_or_insert_default().$name = user(from).$name,
        }
    };
    ($path:literal, resource $name:ident) => {
        Field {
            path: $path,
            is_set: |d| resource(d).$name != wire::ResourceEnd::default().$name,
            take: |into, from| into.resource_end.get_or_insert_default().$name = resource(from).$name,
        }
    };
}

fn user(d: &wire::Destination) -> wire::UserEnd {
    d.user_end.clone().unwrap_or_default()
}

fn resource(d: &wire::Destination) -> wire::ResourceEnd {
    d.resource_end.clone().unwrap_or_default()
}

const FIELDS: [Field; 29] = [
    field!("name", name),
    field!("protocol", protocol),
    field!("resource_host", resource_host),
    field!("resource_port", resource_port),
    field!("cloud_port", cloud_port),
    field!("client_port", client_port),
    // A message without a mask cannot say "not" or "no limit".
    Field {
        path: "enabled",
        is_set: |_| false,
        take: |into, from| into.enabled = from.enabled,
    },
    Field {
        path: "max_connections",
        is_set: |_| false,
        take: |into, from| into.max_connections = from.max_connections,
    },
    field!("connect_timeout", connect_timeout),
    field!("idle_timeout", idle_timeout),
    field!("keepalive", keepalive),
    field!("compression", compression),
    field!("description", description),
    field!("user_end.server_pairs", user server_pairs),
    field!("user_end.server_names", user server_names),
    field!("user_end.certificates", user certificates),
    field!("user_end.alpn", user alpn),
    field!("user_end.preface", user preface),
    field!("user_end.restrict", user restrict),
    field!("user_end.sources", user sources),
    field!("user_end.forwarded", user forwarded),
    field!("resource_end.tls", resource tls),
    field!("resource_end.certificates", resource certificates),
    field!("resource_end.client_pair", resource client_pair),
    field!("resource_end.sni", resource sni),
    field!("resource_end.insecure_skip_verify", resource insecure_skip_verify),
    field!("resource_end.http", resource http),
    field!("resource_end.socks", resource socks),
    field!("resource_end.proxy_protocol", resource proxy_protocol),
];

/// The paths of all fields.
pub(super) fn paths() -> [&'static str; FIELDS.len()] {
    FIELDS.map(|field| field.path)
}

/// The fields that are set in a message without a mask.
pub(super) fn set_fields(d: &wire::Destination) -> [(&'static str, bool); FIELDS.len()] {
    FIELDS.map(|field| (field.path, (field.is_set)(d)))
}

/// The record with the named fields taken over: laid over the old one as the caller sees it, and
/// parsed as a whole, so that fields are checked together.
pub(super) fn edit(
    record: &DestinationRecord,
    new: &wire::Destination,
    fields: &[String],
) -> Result<DestinationRecord, ServiceError> {
    let mut merged = destination_to_merge(record);
    for path in fields {
        if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
            (field.take)(&mut merged, new);
        }
    }
    forget_what_was_made(&mut merged);
    let draft = destination_draft(&merged)?;
    let old = &record.destination;
    let cloud_port = draft
        .cloud_port
        .or_else(|| old.listen.cloud_port())
        .unwrap_or_default();
    let listen = Listen::new(
        draft.kind,
        cloud_port,
        draft.client_port.unwrap_or_default(),
    )?;
    Ok(DestinationRecord {
        destination: Destination {
            id: old.id.clone(),
            gateway: old.gateway.clone(),
            name: draft.name,
            listen,
            protocol: draft.protocol,
            resource: draft.resource,
            enabled: merged.enabled,
            connect_timeout: draft.connect_timeout,
            idle_timeout: draft.idle_timeout,
            max_connections: draft.max_connections,
            compression: draft.compression,
            keepalive: draft.keepalive,
            user_end: draft.user_end,
            resource_end: draft.resource_end,
            generation: old.generation,
        },
        description: draft.description,
        ..record.clone()
    })
}

/// What the control plane made itself is no reason to refuse another protocol: it is made anew or dropped.
fn forget_what_was_made(merged: &mut wire::Destination) {
    let mutual = matches!(
        merged.resource_end.as_ref().map(|end| end.tls.as_str()),
        Some("mutual")
    );
    if let Some(end) = &mut merged.resource_end
        && !mutual
        && end
            .client_pair
            .as_ref()
            .is_some_and(|pair| pair.origin != "uploaded")
    {
        end.client_pair = None;
    }
}

/// Brings what a caller uploaded into one form: certificates in DER, each on its own, keys in DER, marked as uploaded.
///
/// # Errors
/// Every upload that cannot be used, with its field.
pub(super) fn normalise(destination: &mut wire::Destination) -> Result<(), Vec<Invalid>> {
    let mut faults = Vec::new();
    if let Some(end) = &mut destination.user_end {
        end.generated_pair = None;
        for pair in &mut end.server_pairs {
            normalise_pair(pair, "user_end.server_pairs", &mut faults);
        }
        normalise_list(&mut end.certificates, "user_end.certificates", &mut faults);
    }
    if let Some(end) = &mut destination.resource_end {
        if let Some(pair) = &mut end.client_pair {
            normalise_pair(pair, "resource_end.client_pair", &mut faults);
        }
        normalise_list(
            &mut end.certificates,
            "resource_end.certificates",
            &mut faults,
        );
    }
    let user = destination
        .user_end
        .as_ref()
        .map_or(0, prost::Message::encoded_len);
    let resource = destination
        .resource_end
        .as_ref()
        .map_or(0, prost::Message::encoded_len);
    if user + resource > MAX_ENDS {
        let limit = format!(
            "certificates and rules of both ends are longer than {MAX_ENDS} bytes together"
        );
        faults.push(Invalid::new("user_end", limit));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

fn normalise_list(list: &mut Vec<Vec<u8>>, field: &'static str, faults: &mut Vec<Invalid>) {
    let mut found = Vec::new();
    for upload in list.iter() {
        match material::certificates(upload, field) {
            Ok(certificates) => {
                for certificate in certificates {
                    if !found
                        .iter()
                        .any(|one: &Vec<u8>| *one == certificate.as_ref())
                    {
                        found.push(certificate.to_vec());
                    }
                }
            }
            Err(error) => faults.push(Invalid::new(field, error.problem.to_string())),
        }
    }
    *list = found;
}

fn normalise_pair(pair: &mut wire::KeyPair, field: &'static str, faults: &mut Vec<Invalid>) {
    "uploaded".clone_into(&mut pair.origin);
    let before = faults.len();
    normalise_list(&mut pair.certificates, field, faults);
    if faults.len() > before {
        return;
    }
    let chain: Vec<_> = pair
        .certificates
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let pem = identity::certificates_to_pem(&chain);
    let key = Secret::new(std::mem::take(&mut pair.key));
    match Pair::parse(pem.as_bytes(), &key, field) {
        Ok(parsed) => {
            pair.certificates = parsed.chain().iter().map(|one| one.to_vec()).collect();
            pair.key = parsed.key().to_pem().expose().clone().into_bytes();
        }
        Err(error) => faults.push(Invalid::new(field, error.problem.to_string())),
    }
}
