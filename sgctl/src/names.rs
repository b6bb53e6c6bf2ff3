//! How people name things (`dev`, `dev/pg`) and how requests do (`gateways/dev/destinations/pg`).
//! Both forms are accepted; ids and names alike.

use std::str::FromStr;

/// A gateway, by id or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayRef(String);

impl GatewayRef {
    /// As the server gave it.
    pub(crate) fn from_id(id: &str) -> Self {
        Self(id.to_owned())
    }

    pub(crate) fn path(&self) -> String {
        format!("gateways/{}", self.0)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GatewayRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("gateways/").unwrap_or(text);
        if name.is_empty() || name.contains('/') {
            return Err("give the gateway's name or id".to_owned());
        }
        Ok(Self(name.to_owned()))
    }
}

/// Something that belongs to a gateway: `GATEWAY/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberRef {
    pub(crate) gateway: GatewayRef,
    pub(crate) name: String,
}

impl MemberRef {
    pub(crate) fn path(&self, collection: &str) -> String {
        format!("{}/{collection}/{}", self.gateway.path(), self.name)
    }
}

impl std::fmt::Display for MemberRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.gateway.as_str(), self.name)
    }
}

impl FromStr for MemberRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write GATEWAY/NAME, as dev/db".to_owned();
        let parts: Vec<&str> = text.split('/').collect();
        let (["gateways", gateway, "destinations" | "clients", name] | [gateway, name]) =
            parts.as_slice()
        else {
            return Err(bad());
        };
        if name.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            gateway: gateway.parse().map_err(|_| bad())?,
            name: (*name).to_owned(),
        })
    }
}

/// A new id for a request, so that sending it again does nothing twice.
pub(crate) fn request_id() -> String {
    sg_runtime::crypto::hex(&sg_runtime::crypto::random_bytes::<16>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms_name_the_same() {
        let long: MemberRef = "gateways/dev/destinations/pg".parse().expect("parses");
        assert_eq!(Ok(long.clone()), "dev/pg".parse());
        assert_eq!(long.path("destinations"), "gateways/dev/destinations/pg");
        assert_eq!("gateways/dev".parse::<GatewayRef>(), "dev".parse());
    }

    #[test]
    fn incomplete_names_are_refused() {
        for bad in ["", "dev", "dev/", "/pg", "a/b/c"] {
            assert!(bad.parse::<MemberRef>().is_err(), "{bad:?}");
        }
        for bad in ["", "gateways/", "a/b"] {
            assert!(bad.parse::<GatewayRef>().is_err(), "{bad:?}");
        }
    }
}
