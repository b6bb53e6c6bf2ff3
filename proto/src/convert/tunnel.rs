//! Messages inside a tunnel (`securegateway.tunnel.v1`) and the domain.

use std::fmt;

use sg_model::{Acl, AclVersion, HostPort, Invalid};

use super::acl::Fields;
use super::node::port_from_wire;
use crate::tunnel as wire;

impl From<&Acl> for wire::Acl {
    fn from(acl: &Acl) -> Self {
        Self {
            epoch: acl.version.epoch,
            generation: acl.version.generation,
            entries: acl.entries.iter().map(wire::AclEntry::from).collect(),
            unlisted: acl.unlisted.to_string(),
            path_prefix: acl.path_prefix.to_string(),
        }
    }
}

impl TryFrom<&wire::Acl> for Acl {
    type Error = Invalid;

    fn try_from(acl: &wire::Acl) -> Result<Self, Invalid> {
        super::acl::list(
            acl.version(),
            acl.entries.iter().map(Fields::from),
            &acl.unlisted,
            &acl.path_prefix,
        )
    }
}

impl wire::Acl {
    /// Which version the message speaks of, whether it can be understood or not.
    #[must_use]
    pub fn version(&self) -> AclVersion {
        AclVersion {
            epoch: self.epoch,
            generation: self.generation,
        }
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
