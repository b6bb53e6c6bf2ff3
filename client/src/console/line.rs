//! What a line of the console asks for, and of which gateway.

use std::sync::Arc;

use sg_model::ConsoleCommand;

/// A line that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: ConsoleCommand,
    /// Number of the gateway that was named, from 0.
    pub(super) gateway: Option<usize>,
}

/// Reads a line; `names` are the gateways, each as it was given and as a node told it. `None` for a blank line.
///
/// # Errors
/// It is no command, or names a gateway that this client has not.
pub(super) fn parse(line: &str, names: &[(Arc<str>, Arc<str>)]) -> Result<Option<Request>, String> {
    let line = line.trim();
    // No target begins with this sign.
    let named = line
        .rsplit_once(char::is_whitespace)
        .and_then(|(rest, last)| Some((rest, last.strip_prefix('@')?)));
    let (line, gateway) = match named {
        None => (line, None),
        Some((rest, name)) => {
            let is = |(given, told): &(Arc<str>, Arc<str>)| **given == *name || **told == *name;
            let Some(number) = names.iter().position(is) else {
                let problem = format!("this client has no gateway '{}'", name.escape_debug());
                return Err(problem);
            };
            (rest, Some(number))
        }
    };
    let command = ConsoleCommand::parse(line).map_err(|error| error.message)?;
    Ok(command.map(|command| Request { command, gateway }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_line_may_name_its_gateway() {
        let names = [
            ("G1".into(), "plant".into()),
            ("office".into(), "office".into()),
        ];
        let parse = |line: &str| parse(line, &names);
        let gateway = |line: &str| parse(line).unwrap().unwrap().gateway;
        for (line, expected) in [
            ("A db:1", None),
            ("A db:1 @plant", Some(0)),
            ("A db:1  @G1 ", Some(0)),
            ("N @office", Some(1)),
            ("acl file /my list @office", Some(1)),
        ] {
            assert_eq!(gateway(line), expected, "{line}");
        }
        assert_eq!(
            parse("F /my list @office").unwrap().unwrap().command,
            ConsoleCommand::File("/my list".into())
        );
        assert_eq!(parse("  "), Ok(None));
        for bad in ["A db:1 @elsewhere", "@plant", "a db:1", "A"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
