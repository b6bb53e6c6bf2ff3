//! Messages inside a tunnel (`securegateway.tunnel.v1`) and the domain.

use std::net::SocketAddr;

use sg_model::{Acl, AclVersion, HostPort, Invalid, UserFacts, UserTlsFacts};

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

/// Longest of each text about a user's TLS, in bytes: what a resource may want to see of it, and no more.
const LONGEST_TEXT: usize = 255;
/// Bytes of application protocols that are passed on.
const MOST_ALPN: usize = 1024;

impl wire::StreamOpen {
    /// Notes what the acceptor of the stream, or its resource, may want to know of the user. What is too long is cut.
    pub fn tell_of_user(
        &mut self,
        local: Option<SocketAddr>,
        tls: Option<&UserTlsFacts>,
        alpn: &[Vec<u8>],
    ) {
        self.local_address = local.map(|local| local.to_string()).unwrap_or_default();
        self.user_tls = tls.map(|tls| wire::UserTls {
            version: cut(&tls.version),
            cipher: cut(&tls.cipher),
            sni: cut(&tls.sni),
            alpn: tls.alpn.iter().copied().take(LONGEST_TEXT).collect(),
            common_name: cut(tls.common_name.as_deref().unwrap_or_default()),
            verified: tls.verified,
            certificate: tls.common_name.is_some(),
        });
        let mut left = MOST_ALPN;
        let fits = |name: &&Vec<u8>| {
            let fits = name.len() <= left;
            left = left.saturating_sub(name.len());
            fits
        };
        self.alpn = alpn.iter().take_while(fits).cloned().collect();
    }

    /// The user of the stream; `None` if its address cannot be understood.
    #[must_use]
    pub fn user(&self) -> Option<UserFacts> {
        let address: SocketAddr = self.user_address.parse().ok()?;
        Some(UserFacts {
            address,
            local: self.local_address.parse().unwrap_or(address),
            tls: self.user_tls.as_ref().map(|tls| UserTlsFacts {
                version: tls.version.clone(),
                cipher: tls.cipher.clone(),
                sni: tls.sni.clone(),
                alpn: tls.alpn.clone(),
                common_name: tls.certificate.then(|| tls.common_name.clone()),
                verified: tls.verified,
            }),
        })
    }

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

fn cut(text: &str) -> String {
    text.chars()
        .scan(0, |length, c| {
            *length += c.len_utf8();
            (*length <= LONGEST_TEXT).then_some(c)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_said_of_a_user_is_read_back_and_has_an_end() {
        let tls = UserTlsFacts {
            version: "TLSv1.3".to_owned(),
            cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
            sni: "ä".repeat(200),
            alpn: b"h2".to_vec(),
            common_name: Some("user".to_owned()),
            verified: true,
        };
        let mut open = wire::StreamOpen {
            user_address: "[::1]:7".to_owned(),
            ..wire::StreamOpen::default()
        };
        let local = "[::1]:443".parse().ok();
        open.tell_of_user(local, Some(&tls), &vec![vec![b'x'; 100]; 100]);
        assert_eq!(open.alpn.len(), 10);
        let user = open.user().unwrap();
        let said = user.tls.unwrap();
        assert_eq!(said.sni, "ä".repeat(127));
        assert_eq!(
            UserTlsFacts {
                sni: tls.sni.clone(),
                ..said
            },
            tls
        );
        assert!(prost::Message::encoded_len(&open) < 4096);
    }

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
