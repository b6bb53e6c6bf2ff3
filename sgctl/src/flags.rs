//! What the control plane says of fields of the API, in the words of the command line: it names `user_end.server_pairs`,
//! whoever typed the command knows it as `--server-cert`.
//!
//! A flag has the name of its field: `user_end.alpn` is `--alpn`. Start with those that have another, [`ROWS`].

use clap::Command;

/// Commands that set a destination's fields.
const BOTH: &[&str] = &["destination create", "destination update"];

/// Commands, a field as a refusal names it, and the flag of these commands that sets it, or else the argument, where its name is
/// not the field's.
const ROWS: &[(&[&str], &str, &str)] = &[
    (&["destination create"], "name", "GATEWAY/NAME"),
    (BOTH, "resource_host", "--resource"),
    (BOTH, "resource_port", "--resource"),
    (BOTH, "user_end.server_pairs", "--server-cert"),
    (BOTH, "user_end.server_names", "--server-name"),
    (BOTH, "user_end.certificates", "--user-ca"),
    (BOTH, "user_end.sources", "--allow-source"),
    // What is wrong with one rule is said of its parts.
    (BOTH, "source", "--allow-source"),
    (BOTH, "addresses", "--allow-source"),
    (BOTH, "ports", "--allow-source"),
    (BOTH, "resource_end.tls", "--resource-tls"),
    (BOTH, "resource_end.certificates", "--resource-ca"),
    (BOTH, "resource_end.client_pair", "--resource-cert"),
    (BOTH, "resource_end.http", "--resource-http"),
    (&["destination source add"], "source", "SPEC"),
    (&["destination source add"], "addresses", "SPEC"),
    (&["destination source add"], "ports", "SPEC"),
    (&["destination source add"], "source.expire_time", "--ttl"),
    (&["destination source remove"], "spec", "SPEC"),
    (&["gateway create"], "name", "NAME"),
    (&["gateway token rotate"], "token_days", "--days"),
    (&["token create"], "name", "NAME"),
    (&["token create"], "gateways", "--gateway"),
];

/// The text of a refusal with flags of `command` (as `gateway create`) in place of fields: `FIELD: what is wrong`, several
/// of them with `; ` between.
pub(crate) fn named(command: &str, text: &str) -> String {
    let grammar = crate::cli::grammar();
    let parts = text.split("; ").map(|part| {
        let parted = part.split_once(": ");
        match parted.and_then(|(field, what)| Some((flag(&grammar, command, field)?, what))) {
            Some((flag, what)) => format!("{flag}: {what}"),
            None => part.to_owned(),
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn flag(grammar: &Command, command: &str, field: &str) -> Option<String> {
    let row = ROWS
        .iter()
        .find(|(commands, named, _)| *named == field && commands.contains(&command));
    if let Some((_, _, flag)) = row {
        return Some((*flag).to_owned());
    }
    let ends = ["user_end.", "resource_end."];
    let of_an_end = ends.iter().find_map(|end| field.strip_prefix(end));
    let long = of_an_end.unwrap_or(field).replace('_', "-");
    has_flag(command_at(grammar, command)?, &long).then(|| format!("--{long}"))
}

/// The command of this path, as `gateway create`.
fn command_at<'a>(grammar: &'a Command, path: &str) -> Option<&'a Command> {
    path.split(' ')
        .try_fold(grammar, |command, word| command.find_subcommand(word))
}

fn has_flag(command: &Command, long: &str) -> bool {
    command
        .get_arguments()
        .any(|argument| argument.get_long() == Some(long))
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
            named("destination create", "user_end.alpn: a; kind: b; etag: c"),
            "--alpn: a; --kind: b; etag: c"
        );
        assert_eq!(named("gateway delete", "etag: d"), "--etag: d");
        // Only fields of a destination's ends have dots.
        let text = "db.plant.name: is taken";
        assert_eq!(named("destination update", text), text);
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
                let command = command_at(&grammar, path).expect(path);
                let there = match flag.strip_prefix("--") {
                    Some(long) => has_flag(command, long),
                    None => command.get_positionals().any(|argument| {
                        let shown = argument.get_value_names().unwrap_or_default();
                        shown.iter().any(|name| name == flag)
                    }),
                };
                assert!(there, "{path} has no {flag} for {field}");
            }
        }
    }

    /// Whatever a caller can set and nobody has given a flag here is named, so that it is not forgotten.
    #[test]
    fn every_field_that_can_be_set_has_its_flag() {
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
            let grammar = crate::cli::grammar();
            let [create, update] = [command.to_owned(), command.replace("create", "update")];
            let lacks = |path: &str, flag: &str| {
                let long = flag.trim_start_matches('-');
                !has_flag(command_at(&grammar, path).expect("a command"), long)
            };
            for field in all {
                let made = flag(&grammar, &create, &field);
                let updated = flag(&grammar, &update, &field);
                // A flag that both have is named by both.
                match (&made, &updated) {
                    (None, Some(flag)) => assert!(lacks(&create, flag), "{field}"),
                    (Some(flag), None) => assert!(lacks(&update, flag), "{field}"),
                    _ => {}
                }
                let none = made.or(updated).is_none();
                assert_eq!(none, without.contains(&field.as_str()), "{field}");
            }
        }
    }
}
