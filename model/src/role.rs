//! What an operator may do: a role, and the gateways that it is for.
//!
//! Which call needs which role is the API's business; here is only what the words mean.

use std::collections::BTreeSet;

use crate::GatewayId;
use crate::words::words;

words!(
    /// What an operator may do, from little to everything. Each role may do what the one before it may.
    Role, "role" {
        /// Reads everything but secrets.
        Viewer = "viewer",
        /// Changes gateways and what belongs to them.
        Editor = "editor",
        /// Everything, tokens and nodes included.
        Admin = "admin",
    }
);

/// The gateways that an operator sees and touches; the others are to him as if they were not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TokenScope {
    /// The whole installation.
    #[default]
    All,
    /// These gateways and what belongs to them.
    Gateways(BTreeSet<GatewayId>),
}

impl TokenScope {
    /// Whether this is the whole installation.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether the gateway is in it.
    #[must_use]
    pub fn admits(&self, gateway: &str) -> bool {
        match self {
            Self::All => true,
            Self::Gateways(ids) => ids.iter().any(|id| id.as_str() == gateway),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_grow() {
        assert!(Role::Viewer < Role::Editor && Role::Editor < Role::Admin);
        assert_eq!("editor".parse(), Ok(Role::Editor));
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn a_scope_admits_what_it_names() {
        let g1 = GatewayId::new("G1").expect("an id");
        let scope = TokenScope::Gateways([g1].into());
        assert!(scope.admits("G1") && !scope.admits("G2") && !scope.is_all());
        assert!(TokenScope::All.admits("G2"));
        assert!(!TokenScope::Gateways(BTreeSet::new()).admits("G1"));
    }
}
