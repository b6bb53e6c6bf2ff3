//! Messages inside a tunnel (`securegateway.tunnel.v1`) and the domain.

use std::fmt;

use sg_model::{Acl, AclEntry, AclVersion, HostPort, Invalid};

use super::node::{entry_from_words, port_from_wire};
use crate::tunnel as wire;

impl From<&Acl> for wire::Acl {
    fn from(acl: &Acl) -> Self {
        Self {
            epoch: acl.version.epoch,
            generation: acl.version.generation,
            entries: acl.entries.iter().map(wire::AclEntry::from).collect(),
            unlisted: acl.unlisted.to_string(),
        }
    }
}

impl From<&AclEntry> for wire::AclEntry {
    fn from(entry: &AclEntry) -> Self {
        Self {
            action: entry.action.to_string(),
            host: entry
                .host
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            port: entry.port.map(u32::from).unwrap_or_default(),
            path: String::new(),
        }
    }
}

impl TryFrom<&wire::Acl> for Acl {
    type Error = Invalid;

    fn try_from(acl: &wire::Acl) -> Result<Self, Invalid> {
        if acl.entries.len() > Self::MAX_ENTRIES {
            return Err(Invalid::new(
                "entries",
                format!("a list has at most {} entries", Self::MAX_ENTRIES),
            ));
        }
        Ok(Self {
            version: AclVersion {
                epoch: acl.epoch,
                generation: acl.generation,
            },
            entries: acl
                .entries
                .iter()
                .map(|e| entry_from_words(&e.action, &e.host, e.port, &e.path))
                .collect::<Result<_, _>>()?,
            unlisted: acl.unlisted.parse()?,
        })
    }
}

impl wire::StreamOpen {
    /// The resource to connect to.
    ///
    /// # Errors
    /// When host or port is not acceptable.
    pub fn resource(&self) -> Result<HostPort, Invalid> {
        HostPort::new(
            self.resource_host.parse()?,
            port_from_wire("resource_port", self.resource_port)?,
        )
    }
}

/// Everything but the secret of the resumption.
impl fmt::Debug for wire::Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("node_id", &self.node_id)
            .field("node_name", &self.node_name)
            .field("gateway_id", &self.gateway_id)
            .field("gateway_name", &self.gateway_name)
            .field("acl", &self.acl)
            .field("endpoints", &self.endpoints)
            .field("resume_ms", &self.resume_ms)
            .field("resumed", &self.resumed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_an_answer_shows_nothing_of_its_secret() {
        let accepted = wire::Accepted {
            node_id: "n1".to_owned(),
            resume_secret: vec![201; 32],
            ..wire::Accepted::default()
        };
        let shown = format!("{:?}", wire::server_hello::Answer::Accepted(accepted));
        assert!(shown.contains("n1") && !shown.contains("201"), "{shown}");
    }
}
