//! Layers against each other, with an environment made up for each test.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result)]

use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
#[command(name = "sg-test", version)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Which gateway
    gateway_id: String,
    /// How many
    #[arg(short, long, default_value_t = 1)]
    connections: u16,
    /// Allowed addresses
    #[arg(long)]
    allow: Vec<String>,
    /// Once only
    #[arg(long)]
    once: bool,
    /// A token
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token
    #[arg(long)]
    token_file: Option<PathBuf>,
}

fn load(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Args, ConfigError> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| OsString::from(value))
    };
    load_from(
        std::iter::once("sg-test").chain(arguments.iter().copied()),
        &environment,
    )
}

fn with_file(
    content: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<Args, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sg.toml");
    std::fs::write(&path, content).unwrap();
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(arguments);
    load(&all, variables)
}

fn message(result: Result<Args, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn each_layer_is_overruled_by_the_one_above() {
    let file = "connections = 2\ngateway-id = 'f'";
    assert_eq!(load(&["g"], &[]).unwrap().connections, 1);
    assert_eq!(with_file(file, &[], &[]).unwrap().connections, 2);
    let variables = [("SG_CONNECTIONS", "3")];
    assert_eq!(with_file(file, &[], &variables).unwrap().connections, 3);
    let args = with_file(file, &["-c", "4", "g"], &variables).unwrap();
    assert_eq!((args.connections, args.gateway_id.as_str()), (4, "g"));
}

#[test]
fn the_file_can_come_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sg.toml");
    std::fs::write(&path, "connections = 9").unwrap();
    let args = load(&["g"], &[("SG_CONFIG", path.to_str().unwrap())]).unwrap();
    assert_eq!(args.connections, 9);
    assert_eq!(args.common.config.as_deref(), Some(Path::new(&path)));
}

#[test]
fn switches_lists_and_both_spellings_work_in_every_layer() {
    let file = "once = true\nallow = ['a', 'b']\nlog_format = 'json'\ndrain-timeout = '5m'";
    let args = with_file(file, &["g"], &[]).unwrap();
    assert!(args.once);
    assert_eq!(args.allow, ["a", "b"]);
    assert_eq!(args.common.log_format, Some(LogFormat::Json));
    assert_eq!(args.common.drain_timeout.to_string(), "5m");
    let variables = [
        ("SG_ONCE", "0"),
        ("SG_ALLOW", "c, d"),
        ("SG_LOG_FORMAT", "text"),
    ];
    let args = with_file(file, &["g"], &variables).unwrap();
    assert_eq!(args.allow, ["c", "d"]);
    assert_eq!(args.common.log_format, Some(LogFormat::Text));
    let args = with_file(file, &["g", "--allow", "e"], &variables).unwrap();
    assert_eq!(args.allow, ["e"]);
    assert!(!load(&["g"], &variables).unwrap().once);
}

#[test]
fn a_switch_that_is_off_above_stays_off() {
    assert!(
        !with_file("once = true", &["g"], &[("SG_ONCE", "false")])
            .unwrap()
            .once
    );
}

#[test]
fn the_log_level_has_two_variables() {
    let level = |variables: &[_]| {
        load(&["g"], variables)
            .unwrap()
            .common
            .log_level
            .to_string()
    };
    assert_eq!(level(&[]), "info");
    assert_eq!(level(&[("SG_LOG", "debug")]), "debug");
    assert_eq!(level(&[("SG_LOG_LEVEL", "trace")]), "trace");
}

#[test]
fn a_positional_argument_can_come_from_below_also_after_a_double_dash() {
    assert_eq!(
        load(&[], &[("SG_GATEWAY_ID", "e")]).unwrap().gateway_id,
        "e"
    );
    assert_eq!(
        load(&["--"], &[("SG_GATEWAY_ID", "-e")])
            .unwrap()
            .gateway_id,
        "-e"
    );
    let args = load(&["--", "g"], &[("SG_CONNECTIONS", "7")]).unwrap();
    assert_eq!((args.gateway_id.as_str(), args.connections), ("g", 7));
}

#[test]
fn a_flag_overrules_what_it_conflicts_with_below() {
    let args = load(&["g", "--token", "t"], &[("SG_TOKEN_FILE", "f")]).unwrap();
    assert_eq!((args.token.as_deref(), args.token_file), (Some("t"), None));
    let args = with_file("token = 't'", &["g", "--token-file", "f"], &[]).unwrap();
    assert_eq!((args.token, args.token_file), (None, Some("f".into())));
    assert!(load(&["g", "--token", "t", "--token-file", "f"], &[]).is_err());
}

#[test]
fn an_empty_variable_is_not_set() {
    assert_eq!(
        load(&["g"], &[("SG_CONNECTIONS", "")]).unwrap().connections,
        1
    );
}

#[test]
fn an_unknown_key_is_named_with_its_value_and_a_guess() {
    let text = message(with_file("conections = 3", &["g"], &[]));
    for part in [
        "key `conections`",
        "sg.toml",
        "value: 3",
        "did you mean `connections`?",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let text = message(with_file("colour = 'red'", &["g"], &[]));
    assert!(
        text.contains("key `colour`") && text.contains("--help"),
        "{text}"
    );
    assert!(message(with_file("config = 'x'", &["g"], &[])).contains("key `config`"));
    assert!(message(with_file("help = true", &["g"], &[])).contains("key `help`"));
}

#[test]
fn a_wrong_value_is_named_with_where_it_stands() {
    let text = message(with_file("connections = 'many'", &["g"], &[]));
    for part in [
        "key `connections`",
        "sg.toml",
        "value: many",
        "invalid digit",
        "--connections",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let text = message(load(&["g"], &[("SG_DRAIN_TIMEOUT", "soon")]));
    for part in ["SG_DRAIN_TIMEOUT", "value: soon", "not a duration", "500ms"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let text = message(load(&["g"], &[("SG_LOG_FORMAT", "xml")]));
    assert!(
        text.contains("SG_LOG_FORMAT") && text.contains("text, json"),
        "{text}"
    );
    let text = message(load(&["g"], &[("SG_ONCE", "maybe")]));
    assert!(
        text.contains("SG_ONCE") && text.contains("true or false"),
        "{text}"
    );
}

#[test]
fn a_wrong_flag_is_reported_by_its_own_name() {
    let variables = [("SG_CONNECTIONS", "3")];
    let text = message(load(&["--unknown", "-c", "2", "g"], &variables));
    assert!(text.contains("--unknown"), "{text}");
    let text = message(load(&["g", "-c", "x"], &variables));
    assert!(text.contains("--connections"), "{text}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    assert!(
        message(load(&["g", "--config", "/nonexistent/sg.toml"], &[]))
            .contains("/nonexistent/sg.toml")
    );
    assert!(message(with_file("connections =", &["g"], &[])).contains("not valid TOML"));
    assert!(message(with_file("[section]\nx = 1", &["g"], &[])).contains("key `section`"));
    assert!(
        message(with_file("connections = [1, 2]", &["g"], &[]))
            .contains("an array is not possible")
    );
    let twice = with_file("log-format = 'json'\nlog_format = 'text'", &["g"], &[]);
    assert!(message(twice).contains("twice"));
}

#[test]
fn what_looks_like_a_token_is_not_repeated() {
    let token = format!("sgt_{}", "0a".repeat(32));
    let text = message(with_file(&format!("tokens = '{token}'"), &["g"], &[]));
    assert!(
        text.contains("key `tokens`") && !text.contains("0a0a"),
        "{text}"
    );
    let text = message(load(&["g"], &[("SG_CONNECTIONS", &token)]));
    assert!(
        text.contains("SG_CONNECTIONS") && !text.contains("0a0a"),
        "{text}"
    );
}

#[test]
fn help_and_version_come_before_anything_else() {
    let variables = [("SG_CONFIG", "/nonexistent"), ("SG_CONNECTIONS", "x")];
    for (flag, part) in [
        ("--help", "[env: SG_DRAIN_TIMEOUT]"),
        ("--help", "[env: SG_LOG]"),
        ("--version", "sg-test"),
    ] {
        let Err(ConfigError::Usage(error)) = load(&[flag], &variables) else {
            panic!("{flag}")
        };
        assert_eq!(error.exit_code(), 0);
        assert!(error.to_string().contains(part), "{error}");
        assert!(
            !error.to_string().contains("nonexistent"),
            "values of variables are not shown"
        );
    }
}
