//! Access control entries, which four packages of messages have in the same shape.
//!
//! What a version does not understand must not widen a list: a range of ports has a `port` that versions without
//! ranges refuse, and whoever cannot read a list denies everything ([`Acl::deny_all`]).

use sg_model::{Acl, AclEntry, AclVersion, HostPattern, Invalid, PortRange, PrefixMode};

use super::node::port_from_wire;

/// `port` of an entry that has a range.
const RANGE: u32 = 65_536;

/// The fields of an entry between processes and at rest.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) action: String,
    pub(super) host: String,
    pub(super) port: u32,
    pub(super) path: String,
    pub(super) port_first: u32,
    pub(super) port_last: u32,
}

impl From<&AclEntry> for Fields {
    fn from(entry: &AclEntry) -> Self {
        let mut fields = Self {
            action: entry.action.to_string(),
            host: entry
                .host
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            path: entry
                .path
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            ..Self::default()
        };
        match entry.port {
            None => {}
            Some(ports) if ports.first() == ports.last() => fields.port = ports.first().into(),
            Some(ports) => {
                fields.port = RANGE;
                fields.port_first = ports.first().into();
                fields.port_last = ports.last().into();
            }
        }
        fields
    }
}

impl TryFrom<Fields> for AclEntry {
    type Error = Invalid;

    fn try_from(fields: Fields) -> Result<Self, Invalid> {
        let range = (fields.port_first, fields.port_last);
        let port = match (fields.port, range) {
            (0, (0, 0)) => None,
            (RANGE, (first, last)) => Some((first, last)),
            (one, (0, 0)) => Some((one, one)),
            _ => return Err(Invalid::new("port", "is one port and a range at once")),
        };
        entry(&fields.action, &fields.host, port, &fields.path)
    }
}

/// An entry from its parts; ports are the first and the last.
pub(super) fn entry(
    action: &str,
    host: &str,
    ports: Option<(u32, u32)>,
    path: &str,
) -> Result<AclEntry, Invalid> {
    let host = (!host.is_empty())
        .then(|| HostPattern::parse(host))
        .transpose()?;
    let ports = match ports {
        None => None,
        Some((first, last)) => {
            let (first, last) = (
                port_from_wire("port", first)?,
                port_from_wire("port", last)?,
            );
            Some(PortRange::new(first, last).map_err(|e| e.in_field("port"))?)
        }
    };
    let path = (!path.is_empty()).then(|| path.parse()).transpose()?;
    AclEntry::new(action.parse()?, host, ports, path)
}

/// A list from its parts.
pub(super) fn list(
    version: AclVersion,
    entries: impl ExactSizeIterator<Item = Fields>,
    unlisted: &str,
    path_prefix: &str,
) -> Result<Acl, Invalid> {
    if entries.len() > Acl::MAX_ENTRIES {
        return Err(Invalid::new(
            "entries",
            format!("a list has at most {} entries", Acl::MAX_ENTRIES),
        ));
    }
    Ok(Acl {
        version,
        entries: entries.map(AclEntry::try_from).collect::<Result<_, _>>()?,
        unlisted: unlisted.parse()?,
        path_prefix: path_prefix_from_wire(path_prefix)?,
    })
}

/// How paths are compared, where empty means by segments.
pub(super) fn path_prefix_from_wire(word: &str) -> Result<PrefixMode, Invalid> {
    match word {
        "" => Ok(PrefixMode::default()),
        word => word.parse(),
    }
}

/// Conversions of the entries of one package.
macro_rules! entries {
    ($($package:ident),+) => {
        $(
            impl From<&AclEntry> for crate::$package::AclEntry {
                fn from(entry: &AclEntry) -> Self {
                    let Fields { action, host, port, path, port_first, port_last } = entry.into();
                    Self { action, host, port, path, port_first, port_last }
                }
            }

            impl From<&crate::$package::AclEntry> for Fields {
                fn from(entry: &crate::$package::AclEntry) -> Self {
                    Self {
                        action: entry.action.clone(),
                        host: entry.host.clone(),
                        port: entry.port,
                        path: entry.path.clone(),
                        port_first: entry.port_first,
                        port_last: entry.port_last,
                    }
                }
            }
        )+
    };
}
entries!(node, store, tunnel);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::Action;

    use super::*;

    #[test]
    fn entries_of_every_form_round_trip() {
        for text in [
            ":443",
            "db:",
            "db:5432",
            "db:8000-8099",
            ":1-1023",
            "[::1]:80",
            "10.0.0.0/8:80",
            "[2001:db8::/32]:",
            "10.0.0.1-10.0.0.9:80-90",
            "web:80/my/api",
            ":/a%20b",
        ] {
            let entry = AclEntry::parse(Action::Allow, text).unwrap();
            assert_eq!(
                AclEntry::try_from(Fields::from(&entry)),
                Ok(entry),
                "{text}"
            );
        }
    }

    #[test]
    fn a_version_without_ranges_refuses_one() {
        let entry = AclEntry::parse(Action::Deny, "db:1-2").unwrap();
        assert!(u16::try_from(Fields::from(&entry).port).is_err());
    }

    #[test]
    fn entries_that_contradict_themselves_are_refused() {
        let fields = |port, port_first, port_last| Fields {
            action: "allow".to_owned(),
            port,
            port_first,
            port_last,
            ..Fields::default()
        };
        for bad in [
            fields(80, 80, 90),
            fields(0, 80, 90),
            fields(RANGE, 0, 90),
            fields(RANGE, 90, 80),
            fields(RANGE, 0, 0),
            fields(RANGE + 1, 0, 0),
        ] {
            assert!(AclEntry::try_from(bad).is_err());
        }
    }
}
