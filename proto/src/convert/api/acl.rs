//! Access control lists of the public API (`securegateway.v1.Acls`).

use sg_model::{Acl, AclEntry, AclVersion, GatewayId, Invalid, PrefixMode};

use crate::api as wire;

/// Parses one access control entry.
///
/// # Errors
/// When a part is not acceptable.
pub fn acl_entry(entry: &wire::AclEntry) -> Result<AclEntry, Invalid> {
    entry_with_action(&entry.action, entry)
}

/// Parses the target of an entry to remove; its action does not matter.
///
/// # Errors
/// When a part is not acceptable.
pub fn acl_target(entry: &wire::AclEntry) -> Result<AclEntry, Invalid> {
    entry_with_action("allow", entry)
}

fn entry_with_action(action: &str, entry: &wire::AclEntry) -> Result<AclEntry, Invalid> {
    let ports = match (entry.port, entry.port_last) {
        (0, 0) => None,
        (port, 0) => Some((port, port)),
        range => Some(range),
    };
    super::super::acl::entry(action, &entry.host, ports, &entry.path)
}

impl From<&AclEntry> for wire::AclEntry {
    fn from(entry: &AclEntry) -> Self {
        let ports = entry.port.map(|ports| (ports.first(), ports.last()));
        Self {
            action: entry.action.to_string(),
            host: entry
                .host
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            port: ports.map(|(first, _)| first.into()).unwrap_or_default(),
            path: entry
                .path
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            port_last: ports
                .filter(|(first, last)| first != last)
                .map(|(_, last)| last.into())
                .unwrap_or_default(),
        }
    }
}

/// Parses a whole list that is to replace one; how paths are compared stays with `path_prefix` if nothing is said.
///
/// # Errors
/// When there are too many entries, one is not acceptable, or two contradict each other.
pub fn acl_replacement(
    request: &wire::ReplaceAclRequest,
    path_prefix: PrefixMode,
) -> Result<Acl, Invalid> {
    let mut acl = Acl {
        path_prefix: match request.path_prefix.as_str() {
            "" => path_prefix,
            word => word.parse()?,
        },
        ..Acl::default()
    };
    if request.entries.len() > Acl::MAX_ENTRIES {
        let problem = format!("a list has at most {} entries", Acl::MAX_ENTRIES);
        return Err(Invalid::new("entries", problem));
    }
    for entry in &request.entries {
        let entry = acl_entry(entry)?;
        if entry.is_everything() && entry.path.is_none() {
            let problem = "what is said of everything belongs into unlisted";
            return Err(Invalid::new("entries", problem));
        }
        let contradicts = |old: &AclEntry| old.same_target(&entry) && old.action != entry.action;
        if acl.entries.iter().any(contradicts) {
            let problem = format!(
                "{} is both allowed and denied; leave one out",
                entry.target()
            );
            return Err(Invalid::new("entries", problem));
        }
        acl.add(entry)?;
    }
    if !request.unlisted.is_empty() {
        acl.unlisted = request.unlisted.parse()?;
    }
    Ok(acl)
}

/// A list as the API showed it.
///
/// # Errors
/// When it has something that this version does not know.
pub fn acl_from_api(acl: &wire::Acl) -> Result<Acl, Invalid> {
    Ok(Acl {
        version: AclVersion {
            epoch: acl.epoch,
            generation: acl.generation,
        },
        entries: acl
            .entries
            .iter()
            .map(acl_entry)
            .collect::<Result<_, _>>()?,
        unlisted: acl.unlisted.parse()?,
        path_prefix: super::super::acl::path_prefix_from_wire(&acl.path_prefix)?,
    })
}

/// An access control list for the caller, without status.
#[must_use]
pub fn acl_to_api(id: &GatewayId, gateway: &str, acl: &Acl, etag: String) -> wire::Acl {
    wire::Acl {
        gateway_id: id.to_string(),
        gateway: gateway.to_owned(),
        entries: acl.entries.iter().map(wire::AclEntry::from).collect(),
        unlisted: acl.unlisted.to_string(),
        epoch: acl.version.epoch,
        generation: acl.version.generation,
        etag,
        status: None,
        path_prefix: acl.path_prefix.to_string(),
    }
}
