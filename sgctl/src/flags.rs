//! What the control plane says of fields of the API, in the words of the command line: it names `user_end.server_pairs`,
//! whoever typed the command knows it as `--server-cert`.
//!
//! Start with the one table, [`ROWS`].

const BOTH_OF_DESTINATION: &[&str] = &["destination create", "destination update"];
const BOTH_OF_GATEWAY: &[&str] = &["gateway create", "gateway update"];
const WITH_ETAG: &[&str] = &[
    "destination update",
    "destination delete",
    "destination enable",
    "destination disable",
    "gateway update",
    "gateway delete",
    "gateway enable",
    "gateway disable",
    "node delete",
];

/// Commands, a field as a refusal names it, and the flag of these commands that sets it, or else the argument.
const ROWS: &[(&[&str], &str, &str)] = &[
    (&["destination create"], "name", "GATEWAY/NAME"),
    (&["destination update"], "name", "--name"),
    (&["destination create"], "kind", "--kind"),
    (BOTH_OF_DESTINATION, "protocol", "--protocol"),
    (BOTH_OF_DESTINATION, "resource_host", "--resource"),
    (BOTH_OF_DESTINATION, "resource_port", "--resource"),
    (BOTH_OF_DESTINATION, "cloud_port", "--cloud-port"),
    (BOTH_OF_DESTINATION, "client_port", "--client-port"),
    (BOTH_OF_DESTINATION, "connect_timeout", "--connect-timeout"),
    (BOTH_OF_DESTINATION, "idle_timeout", "--idle-timeout"),
    (BOTH_OF_DESTINATION, "max_connections", "--max-connections"),
    (BOTH_OF_DESTINATION, "compression", "--compression"),
    (BOTH_OF_DESTINATION, "keepalive", "--keepalive"),
    (BOTH_OF_DESTINATION, "description", "--description"),
    (
        BOTH_OF_DESTINATION,
        "user_end.server_pairs",
        "--server-cert",
    ),
    (
        BOTH_OF_DESTINATION,
        "user_end.server_names",
        "--server-name",
    ),
    (BOTH_OF_DESTINATION, "user_end.certificates", "--user-ca"),
    (BOTH_OF_DESTINATION, "user_end.alpn", "--alpn"),
    (BOTH_OF_DESTINATION, "user_end.preface", "--preface"),
    (BOTH_OF_DESTINATION, "user_end.restrict", "--restrict"),
    (BOTH_OF_DESTINATION, "user_end.sources", "--allow-source"),
    // What is wrong with one rule is said of its parts.
    (BOTH_OF_DESTINATION, "source", "--allow-source"),
    (BOTH_OF_DESTINATION, "addresses", "--allow-source"),
    (BOTH_OF_DESTINATION, "ports", "--allow-source"),
    (BOTH_OF_DESTINATION, "user_end.forwarded", "--forwarded"),
    (BOTH_OF_DESTINATION, "resource_end.tls", "--resource-tls"),
    (
        BOTH_OF_DESTINATION,
        "resource_end.certificates",
        "--resource-ca",
    ),
    (
        BOTH_OF_DESTINATION,
        "resource_end.client_pair",
        "--resource-cert",
    ),
    (BOTH_OF_DESTINATION, "resource_end.sni", "--sni"),
    (
        BOTH_OF_DESTINATION,
        "resource_end.insecure_skip_verify",
        "--insecure-skip-verify",
    ),
    (BOTH_OF_DESTINATION, "resource_end.http", "--resource-http"),
    (BOTH_OF_DESTINATION, "resource_end.socks", "--socks"),
    (BOTH_OF_DESTINATION, "socks", "--socks"),
    (
        BOTH_OF_DESTINATION,
        "resource_end.proxy_protocol",
        "--proxy-protocol",
    ),
    (&["destination source add"], "source", "SPEC"),
    (&["destination source add"], "addresses", "SPEC"),
    (&["destination source add"], "ports", "SPEC"),
    (&["destination source add"], "source.expire_time", "--ttl"),
    (&["destination source remove"], "spec", "SPEC"),
    (
        &["destination source add", "destination source remove"],
        "owner",
        "--owner",
    ),
    (&["gateway create"], "name", "NAME"),
    (&["gateway update"], "name", "--name"),
    (BOTH_OF_GATEWAY, "group", "--group"),
    (BOTH_OF_GATEWAY, "policy", "--policy"),
    (BOTH_OF_GATEWAY, "description", "--description"),
    (BOTH_OF_GATEWAY, "resume_time", "--resume-time"),
    (BOTH_OF_GATEWAY, "token_expiry", "--token-expiry"),
    (
        BOTH_OF_GATEWAY,
        "client_certificates",
        "--client-certificates",
    ),
    (BOTH_OF_GATEWAY, "acl_edits", "--acl-edits"),
    (&["gateway create"], "token_days", "--token-days"),
    (&["gateway token rotate"], "token_days", "--days"),
    (&["gateway update"], "token_required", "--token-required"),
    (WITH_ETAG, "etag", "--etag"),
    (&["token create"], "name", "NAME"),
    (&["token create"], "role", "--role"),
    (&["token create"], "gateways", "--gateway"),
    (&["token create"], "days", "--days"),
    (&["node token create"], "ttl", "--ttl"),
    (&["audit list"], "gateway", "--gateway"),
    (&["audit list"], "since", "--since"),
];

/// The text of a refusal with flags of `command` (as `gateway create`) in place of fields: `FIELD: what is wrong`, several
/// of them with `; ` between.
pub(crate) fn named(command: &str, text: &str) -> String {
    let parts = text.split("; ").map(|part| {
        let of = part.split_once(": ");
        match of.and_then(|(field, what)| Some((flag(command, field)?, what))) {
            Some((flag, what)) => format!("{flag}: {what}"),
            None => part.to_owned(),
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn flag(command: &str, field: &str) -> Option<&'static str> {
    let row = ROWS
        .iter()
        .find(|(commands, of, _)| *of == field && commands.contains(&command));
    row.map(|(_, _, flag)| *flag)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sg_proto::api;

    use super::*;

    #[test]
    fn a_refusal_names_flags() {
        let text = "user_end.server_pairs: belongs to tls; name: must be short; enabled: is odd";
        assert_eq!(
            named("destination update", text),
            "--server-cert: belongs to tls; --name: must be short; enabled: is odd"
        );
        assert_eq!(named("gateway get", text), text);
        assert_eq!(
            named("gateway create", "no; nothing: of it"),
            "no; nothing: of it"
        );
    }

    #[test]
    fn every_flag_is_one_of_its_commands_and_no_field_has_two() {
        let grammar = crate::cli::grammar();
        let mut seen = BTreeSet::new();
        for (commands, field, flag) in ROWS {
            for path in *commands {
                assert!(seen.insert((path, field)), "{path} has {field} twice");
                let mut command = &grammar;
                for word in path.split(' ') {
                    command = command.find_subcommand(word).expect(path);
                }
                let there = command
                    .get_arguments()
                    .any(|arg| match flag.strip_prefix("--") {
                        Some(long) => arg.get_long() == Some(long),
                        None => {
                            let shown = arg.get_value_names().unwrap_or_default();
                            arg.is_positional() && shown.iter().any(|name| name == flag)
                        }
                    });
                assert!(there, "{path} has no {flag} for {field}");
            }
        }
    }

    /// Whatever a caller can set and nobody has given a flag here is named, so that it is not forgotten.
    #[test]
    fn every_field_that_can_be_set_has_its_row() {
        let fields = |message: serde_json::Value, prefix: &str| -> Vec<String> {
            let object = message.as_object().expect("a message").clone();
            let snake = |key: &String| {
                let mut text = prefix.to_owned();
                for letter in key.chars() {
                    if letter.is_ascii_uppercase() {
                        text.push('_');
                    }
                    text.push(letter.to_ascii_lowercase());
                }
                text
            };
            object.keys().map(snake).collect()
        };
        let whole = api::Destination {
            connect_timeout: Some(pbjson_types::Duration::default()),
            idle_timeout: Some(pbjson_types::Duration::default()),
            keepalive: Some(pbjson_types::Duration::default()),
            ..api::Destination::default()
        };
        let resource_end = api::ResourceEnd {
            client_pair: Some(api::KeyPair::default()),
            socks: Some(api::SocksProxy::default()),
            ..api::ResourceEnd::default()
        };
        let gateway = api::Gateway {
            resume_time: Some(pbjson_types::Duration::default()),
            ..api::Gateway::default()
        };
        let json = |value: Result<serde_json::Value, _>| value.expect("JSON");
        let mut of_destination = fields(json(serde_json::to_value(whole)), "");
        let user_end = json(serde_json::to_value(api::UserEnd::default()));
        of_destination.extend(fields(user_end, "user_end."));
        of_destination.extend(fields(
            json(serde_json::to_value(resource_end)),
            "resource_end.",
        ));
        let of_gateway = fields(json(serde_json::to_value(gateway)), "");
        // The server's own, or set by a command and not by a flag.
        let without = [
            "id",
            "gateway_id",
            "gateway",
            "cloud_host",
            "enabled",
            "generation",
            "security_token",
            "revoked_clients",
        ];
        for (command, all) in [
            ("destination create", of_destination),
            ("gateway create", of_gateway),
        ] {
            assert!(all.len() > 10, "{all:?}");
            for field in all {
                let has = flag(command, &field)
                    .or_else(|| flag(&command.replace("create", "update"), &field));
                assert_eq!(has.is_none(), without.contains(&field.as_str()), "{field}");
            }
        }
    }
}
