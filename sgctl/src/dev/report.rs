//! What `sgctl dev` prints when all is ready: one line of JSON for scripts, or what to paste next.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sg_proto::api;

use super::demo::Demo;
use super::resource::Service;
use crate::failure::Failure;
use crate::show;

/// Everything that runs. The fields that are written are what scripts rely on.
#[derive(Debug, Serialize)]
pub(super) struct Up {
    pub(super) control_plane: String,
    pub(super) http: String,
    pub(super) ca_file: PathBuf,
    pub(super) token_file: PathBuf,
    pub(super) gateway: String,
    pub(super) gateway_id: String,
    pub(super) security_token_file: PathBuf,
    pub(super) tunnel: String,
    pub(super) destinations: Vec<DestinationLine>,
    pub(super) pids: Pids,
    #[serde(skip)]
    pub(super) logs: PathBuf,
    /// The resource, when none was given; serves for as long as this is kept.
    #[serde(skip)]
    pub(super) demo: Option<Demo>,
}

#[derive(Debug, Serialize)]
pub(super) struct DestinationLine {
    name: String,
    protocol: String,
    listen: String,
    resource: String,
    #[serde(skip)]
    hint: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Pids {
    pub(super) control_plane: u32,
    pub(super) data_plane: u32,
    pub(super) client: u32,
}

impl DestinationLine {
    pub(super) fn of(destination: &api::Destination) -> Self {
        let host = "127.0.0.1";
        let port = u16::try_from(destination.cloud_port).unwrap_or_default();
        let service = match destination.name.as_str() {
            "demo" => Some(Service::Http),
            _ => u16::try_from(destination.resource_port)
                .ok()
                .zip(destination.protocol.parse().ok())
                .and_then(|(port, protocol)| Service::of(protocol, port)),
        };
        Self {
            name: destination.name.clone(),
            protocol: destination.protocol.clone(),
            listen: format!("{host}:{port}"),
            resource: show::address(&destination.resource_host, destination.resource_port),
            hint: service.map(|service| service.command(host, port)),
        }
    }
}

impl Up {
    /// One line of JSON.
    pub(super) fn line(&self) -> Result<String, Failure> {
        serde_json::to_string(self)
            .map(|line| format!("{line}\n"))
            .map_err(|error| Failure::local("cannot write this as JSON", &error))
    }

    /// For a person.
    pub(super) fn text(&self, took: Duration) -> String {
        let mut text = format!(
            "Secure Gateway runs on this machine (ready after {:.1} s). Ctrl-C ends it.\n\n",
            took.as_secs_f64()
        );
        let width = self
            .destinations
            .iter()
            .map(|d| d.listen.len())
            .max()
            .unwrap_or_default();
        for d in &self.destinations {
            push(
                &mut text,
                &format!(
                    "  {:<width$}  reaches  {}  ({})",
                    d.listen, d.resource, d.name
                ),
            );
        }
        push(
            &mut text,
            "\nthrough a node, one TLS tunnel and a client, each a process of its own.",
        );
        if let Some(demo) = &self.demo {
            let address = demo.address;
            push(
                &mut text,
                &format!("No RESOURCE was given: {address} is a small HTTP server inside sgctl."),
            );
        }
        let hints: Vec<&String> = self
            .destinations
            .iter()
            .filter_map(|d| d.hint.as_ref())
            .collect();
        if !hints.is_empty() {
            push(&mut text, "\nUse it:\n");
            hints
                .into_iter()
                .for_each(|hint| push(&mut text, &format!("  {hint}")));
        }
        push(&mut text, "\nLook at it from another terminal:\n");
        push(
            &mut text,
            &format!(
                "  export SG_SERVER={} SG_CA={} SG_TOKEN_FILE={}",
                self.control_plane,
                shell_word(&self.ca_file.display().to_string()),
                shell_word(&self.token_file.display().to_string()),
            ),
        );
        let sgctl = own_name();
        for command in [
            "status",
            "client list dev",
            "destination list dev",
            "acl list dev",
        ] {
            push(&mut text, &format!("  {sgctl} {command}"));
        }
        push(&mut text, &format!("\nLogs are in {}", self.logs.display()));
        text
    }
}

fn push(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let written = writeln!(text, "{line}");
    debug_assert!(written.is_ok(), "a String takes everything");
}

/// As the person typed it, so that it can be pasted.
fn own_name() -> String {
    std::env::args()
        .next()
        .map_or_else(|| "sgctl".to_owned(), |name| shell_word(&name))
}

/// Quoted, if a shell would read it as anything but one word.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_documented_keys_in_order() {
        let destination = api::Destination {
            name: "postgres".into(),
            protocol: "tcp".into(),
            resource_host: "127.0.0.1".into(),
            resource_port: 5432,
            cloud_port: 20000,
            ..api::Destination::default()
        };
        let up = Up {
            control_plane: "127.0.0.1:1".into(),
            http: "http://127.0.0.1:2".into(),
            ca_file: "/d/ca.pem".into(),
            token_file: "/d/admin.token".into(),
            gateway: "dev".into(),
            gateway_id: "g1".into(),
            security_token_file: "/d/dev.token".into(),
            tunnel: "127.0.0.1:3".into(),
            destinations: vec![DestinationLine::of(&destination)],
            pids: Pids {
                control_plane: 11,
                data_plane: 12,
                client: 13,
            },
            logs: "/d/logs".into(),
            demo: None,
        };
        assert_eq!(
            up.line().expect("writes"),
            "{\"control_plane\":\"127.0.0.1:1\",\"http\":\"http://127.0.0.1:2\",\"ca_file\":\"/d/ca.pem\",\
             \"token_file\":\"/d/admin.token\",\"gateway\":\"dev\",\"gateway_id\":\"g1\",\
             \"security_token_file\":\"/d/dev.token\",\"tunnel\":\"127.0.0.1:3\",\"destinations\":[\
             {\"name\":\"postgres\",\"protocol\":\"tcp\",\"listen\":\"127.0.0.1:20000\",\
             \"resource\":\"127.0.0.1:5432\"}],\
             \"pids\":{\"control_plane\":11,\"data_plane\":12,\"client\":13}}\n"
        );
        let text = up.text(Duration::from_millis(800));
        assert!(
            text.contains("psql -h 127.0.0.1 -p 20000 -U postgres"),
            "{text}"
        );
        assert!(
            text.contains(
                "export SG_SERVER=127.0.0.1:1 SG_CA=/d/ca.pem SG_TOKEN_FILE=/d/admin.token"
            )
        );
    }

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(shell_word("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(shell_word("/tmp/x.pem"), "/tmp/x.pem");
    }
}
