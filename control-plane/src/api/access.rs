//! Which call needs what: one row for every method of every service. A method without a row is
//! refused, and a test over the descriptors does not let it come to that.
//!
//! Which gateways a caller sees is not decided here: a handler gets a [`crate::service::Core`] that
//! holds no others (see [`super::auth`]).

use sg_model::Role;

/// What a call needs before a handler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// An operator's token of at least this role.
    Operator {
        /// Least role.
        role: Role,
        /// Whether it concerns more than single gateways, so that a token for some is not enough.
        whole: bool,
        /// Whether it changes something: refusals of those are worth a line in the audit log.
        changes: bool,
    },
    /// A node's certificate.
    Node,
    /// A join token, which the handler looks into.
    JoinToken,
}

/// One method.
#[derive(Debug)]
pub struct Rule {
    /// As in `securegateway.v1.Gateways`.
    pub service: &'static str,
    /// As in `CreateGateway`.
    pub method: &'static str,
    /// What it needs.
    pub need: Need,
}

const fn operator(
    service: &'static str,
    method: &'static str,
    role: Role,
    whole: bool,
    changes: bool,
) -> Rule {
    Rule {
        service,
        method,
        need: Need::Operator {
            role,
            whole,
            changes,
        },
    }
}

/// Reads something of single gateways.
const fn reads(service: &'static str, method: &'static str) -> Rule {
    operator(service, method, Role::Viewer, false, false)
}

/// Changes something of single gateways, or reads their secrets.
const fn edits(service: &'static str, method: &'static str) -> Rule {
    operator(service, method, Role::Editor, false, true)
}

/// Reads something of the whole installation.
const fn surveys(service: &'static str, method: &'static str) -> Rule {
    operator(service, method, Role::Viewer, true, false)
}

/// Changes something of the whole installation.
const fn rules(service: &'static str, method: &'static str) -> Rule {
    operator(service, method, Role::Admin, true, true)
}

const ACLS: &str = "securegateway.v1.Acls";
const AUTHORITY: &str = "securegateway.v1.CertificateAuthority";
const AUDIT: &str = "securegateway.v1.Audit";
const CLIENTS: &str = "securegateway.v1.Clients";
const DESTINATIONS: &str = "securegateway.v1.Destinations";
const GATEWAYS: &str = "securegateway.v1.Gateways";
const NODES: &str = "securegateway.v1.Nodes";
const SYSTEM: &str = "securegateway.v1.System";
const TOKENS: &str = "securegateway.v1.Tokens";

/// Every method there is.
pub const RULES: &[Rule] = &[
    reads(ACLS, "GetAcl"),
    reads(ACLS, "WatchAcl"),
    edits(ACLS, "AddAclEntry"),
    edits(ACLS, "RemoveAclEntry"),
    edits(ACLS, "ReplaceAcl"),
    edits(ACLS, "ResetAcl"),
    reads(AUDIT, "ListAuditRecords"),
    reads(AUDIT, "WatchAuditRecords"),
    surveys(AUDIT, "VerifyAudit"),
    surveys(AUTHORITY, "GetAuthority"),
    rules(AUTHORITY, "RotateAuthority"),
    rules(AUTHORITY, "FinishAuthorityRotation"),
    reads(CLIENTS, "GetClient"),
    reads(CLIENTS, "ListClients"),
    edits(CLIENTS, "RevokeClient"),
    edits(CLIENTS, "RestoreClient"),
    reads(DESTINATIONS, "GetDestination"),
    reads(DESTINATIONS, "ListDestinations"),
    reads(DESTINATIONS, "WatchDestination"),
    edits(DESTINATIONS, "CreateDestination"),
    edits(DESTINATIONS, "DeleteDestination"),
    edits(DESTINATIONS, "DisableDestination"),
    edits(DESTINATIONS, "EnableDestination"),
    edits(DESTINATIONS, "UpdateDestination"),
    edits(DESTINATIONS, "AddSource"),
    edits(DESTINATIONS, "RemoveSource"),
    // Keys that were made for users are among them.
    edits(DESTINATIONS, "GetDestinationCertificates"),
    reads(GATEWAYS, "GetGateway"),
    reads(GATEWAYS, "ListGateways"),
    edits(GATEWAYS, "DeleteGateway"),
    edits(GATEWAYS, "DisableGateway"),
    edits(GATEWAYS, "EnableGateway"),
    edits(GATEWAYS, "RotateToken"),
    edits(GATEWAYS, "UpdateGateway"),
    // Whoever may do this with some gateways only would not see what he made.
    operator(GATEWAYS, "CreateGateway", Role::Editor, true, true),
    surveys(NODES, "GetNode"),
    surveys(NODES, "ListNodes"),
    rules(NODES, "DeleteNode"),
    reads(SYSTEM, "GetStatus"),
    rules(TOKENS, "CreateAdminToken"),
    rules(TOKENS, "CreateJoinToken"),
    rules(TOKENS, "DeleteAdminToken"),
    operator(TOKENS, "GetAdminToken", Role::Admin, true, false),
    operator(TOKENS, "ListAdminTokens", Role::Admin, true, false),
    Rule {
        service: "securegateway.node.v1.Enrollment",
        method: "Join",
        need: Need::JoinToken,
    },
    Rule {
        service: "securegateway.node.v1.NodeSync",
        method: "Sync",
        need: Need::Node,
    },
];

/// The row of a path, as `/securegateway.v1.Gateways/GetGateway`.
pub(super) fn rule(path: &str) -> Option<&'static Rule> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    RULES
        .iter()
        .find(|rule| rule.service == service && rule.method == method)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_method_has_one_row_and_every_row_a_method() {
        let pool =
            prost_reflect::DescriptorPool::decode(sg_proto::DESCRIPTORS).expect("descriptors");
        let methods: BTreeSet<_> = pool
            .services()
            .flat_map(|service| {
                let name = service.full_name().to_owned();
                let methods: Vec<_> = service.methods().map(|m| m.name().to_owned()).collect();
                methods
                    .into_iter()
                    .map(move |method| (name.clone(), method))
            })
            .collect();
        let rows: BTreeSet<_> = RULES
            .iter()
            .map(|rule| (rule.service.to_owned(), rule.method.to_owned()))
            .collect();
        assert_eq!(rows.len(), RULES.len(), "a method has two rows");
        let missing: Vec<_> = methods.difference(&rows).collect();
        assert!(missing.is_empty(), "say in RULES who may call {missing:?}");
        let stale: Vec<_> = rows.difference(&methods).collect();
        assert!(
            stale.is_empty(),
            "RULES names what does not exist: {stale:?}"
        );
    }

    #[test]
    fn paths_find_their_row_and_no_other() {
        let found = rule("/securegateway.v1.Gateways/GetGateway").map(|rule| rule.method);
        assert_eq!(found, Some("GetGateway"));
        for path in [
            "",
            "/",
            "/securegateway.v1.Gateways",
            "/securegateway.v1.Gateways/Get",
            "/securegateway.v1.Gateways/GetGateway/",
            "//securegateway.v1.Gateways/GetGateway",
            "/securegateway.v1.gateways/GetGateway",
        ] {
            assert!(rule(path).is_none(), "{path}");
        }
    }
}
