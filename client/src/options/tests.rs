//! The command line as old scripts and new ones write it.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;

use sg_model::{Action, PrefixMode};

use super::*;

const CA: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn parse(line: &str) -> Result<Args, String> {
    let line = format!("sg-client --ca {CA} {line}");
    let none = |_: &str| -> Option<OsString> { None };
    sg_runtime::config::load_from(line.split(' ').filter(|word| !word.is_empty()), &none)
        .map_err(|error| error.to_string())
}

fn check(line: &str) -> Result<Settings, String> {
    parse(line)?.check().map_err(|error| error.to_string())
}

fn settings(line: &str) -> Settings {
    check(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn tokens(line: &str) -> Vec<Option<String>> {
    let gateways = settings(line).gateways;
    gateways
        .into_iter()
        .map(|gateway| gateway.token.map(|token| token.expose().clone()))
        .collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn short_options_may_have_two_dashes_and_stand_anywhere() {
    for line in [
        "g1 -t sgt_a -g n:1 -l DEBUG --noUI",
        "g1 --t sgt_a --g n:1 --l DEBUG --noUI",
        "--service --allow --noUI g1 --t=sgt_a -g=n:1 -l=debug",
        "-tsgt_a --noUI -gn:1 g1 --service -lDEBUG --allow",
        "--sectoken sgt_a --gateway n:1 --loglevel DEBUG --service g1",
    ] {
        let settings = settings(line);
        assert_eq!(settings.gateways[0].gateway, "g1", "{line}");
        assert_eq!(
            settings.gateways[0].token.as_ref().unwrap().expose(),
            "sgt_a",
            "{line}"
        );
        assert_eq!(
            settings.gateways[0].addresses,
            ["n:1".parse().unwrap()],
            "{line}"
        );
        assert_eq!(settings.log_filter.to_string(), "debug", "{line}");
    }
}

#[test]
fn every_option_of_old_scripts_is_accepted_and_what_does_nothing_is_said() {
    let quiet = settings("g1 -g n:1 --noUI --no_license");
    assert_eq!(quiet.notices, Vec::<String>::new());
    for (line, word) in [
        ("-t sgt_a", "--token-file"),
        ("-p /var/log/x.log", "-p is not in effect"),
        ("--p /var/log/x.log", "-p is not in effect"),
        ("-P 9003", "-P is not in effect"),
        ("--P 9003", "-P is not in effect"),
        ("-w secret", "-w is not in effect"),
        ("--w secret", "-w is not in effect"),
        ("-x http://me:secret@proxy:3128", "--proxy-file"),
        ("--allow", "--allow is not in effect"),
        ("--service", "--service"),
    ] {
        let notices = settings(&format!("g1 -g n:1 {line}")).notices;
        assert_eq!(notices.len(), 1, "{line}: {notices:?}");
        assert!(notices[0].contains(word), "{line}: {notices:?}");
        assert!(
            !notices[0].contains("secret ") && !notices[0].contains("sgt_a"),
            "{notices:?}"
        );
    }
}

#[test]
fn a_proxy_is_given_as_a_flag_or_in_a_file() {
    let address = |line: &str| {
        let proxy = settings(line).proxy;
        proxy.map(|proxy| proxy.address().to_string())
    };
    assert_eq!(address("g1 -g n:1"), None);
    for flag in ["-x", "--x", "--proxy"] {
        let line = format!("g1 -g n:1 {flag} socks5://proxy:1080");
        assert_eq!(address(&line), some("proxy:1080"), "{flag}");
        assert!(settings(&line).notices.is_empty());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "http://me:hidden@proxy:3128\n").unwrap();
    let line = format!("g1 -g n:1 --proxy-file {}", file.path().display());
    assert_eq!(address(&line), some("proxy:3128"));
    assert!(settings(&line).notices.is_empty());
    assert!(check(&format!("{line} -x http://proxy:1")).is_err());
    // What an authority is for, and for what it is not.
    let ca = tempfile::NamedTempFile::new().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["proxy".to_owned()]).unwrap();
    std::fs::write(ca.path(), certificate.cert.pem()).unwrap();
    let ca = ca.path().display();
    let secure = format!("g1 -g n:1 -x https://proxy:3129 --proxy-ca {ca}");
    assert_eq!(address(&secure), some("proxy:3129"));
    for needless in ["", "-x http://proxy:1"] {
        let error = check(&format!("g1 -g n:1 --proxy-ca {ca} {needless}")).unwrap_err();
        assert!(error.contains("--proxy-ca"), "{error}");
    }
    let missing = "g1 -g n:1 -x https://proxy:1 --proxy-ca /does/not/exist";
    assert!(check(missing).unwrap_err().contains("/does/not/exist"));
    for bad in ["ftp://me:hidden@p:1", "http://me:hidden@p:0"] {
        let error = check(&format!("g1 -g n:1 -x {bad}")).unwrap_err();
        assert!(
            error.contains("--proxy") && !error.contains("hidden"),
            "{error}"
        );
    }
}

#[test]
fn lists_follow_the_gateways() {
    for (list, expected) in [
        (
            "sgt_a--sgt_b--sgt_c",
            [some("sgt_a"), some("sgt_b"), some("sgt_c")],
        ),
        ("sgt_a", [some("sgt_a"), None, None]),
        ("none--sgt_b", [None, some("sgt_b"), None]),
        ("sgt_a--none--sgt_c", [some("sgt_a"), None, some("sgt_c")]),
        ("NONE----sgt_c", [None, None, some("sgt_c")]),
    ] {
        assert_eq!(
            tokens(&format!("g1 g2 g3 -g n:1 -t {list}")),
            expected,
            "{list}"
        );
    }
    let error = check("g1 -g n:1 -t sgt_abc--sgt_def").unwrap_err();
    assert!(
        error.contains("2 values for 1 gateways") && !error.contains("sgt_abc"),
        "{error}"
    );
}

#[test]
fn several_ids_may_stand_in_one_argument() {
    let none = |_: &str| -> Option<OsString> { None };
    let words = ["sg-client", "--ca", CA, "-g", "n:1", "g1 g2"];
    let args: Args = sg_runtime::config::load_from(words, &none).unwrap();
    let names: Vec<_> = args
        .check()
        .unwrap()
        .gateways
        .into_iter()
        .map(|g| g.gateway)
        .collect();
    assert_eq!(names, ["g1", "g2"]);
}

#[test]
fn a_token_file_has_one_line_per_gateway() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sgt_a\r\n\nnone\nsgt_c\n").unwrap();
    let path = file.path().display();
    assert_eq!(
        tokens(&format!("g1 g2 g3 -g n:1 --token-file {path}")),
        [some("sgt_a"), None, some("sgt_c")]
    );
    assert!(
        settings(&format!("g1 g2 g3 -g n:1 --token-file {path}"))
            .notices
            .is_empty()
    );
    assert!(check(&format!("g1 g2 -g n:1 --token-file {path}")).is_err());
    assert!(check(&format!("g1 -g n:1 --token-file {path} -t sgt_a")).is_err());
    let error = check("g1 -g n:1 --token-file /does/not/exist").unwrap_err();
    assert!(
        error.contains("--token-file") && error.contains("/does/not/exist"),
        "{error}"
    );
}

#[test]
fn tokens_of_another_kind_are_not_sent_to_a_node() {
    for token in ["sga_0123", "sgj_0123", "sgt_01 23", "sgt_\u{7f}"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), token).unwrap();
        let error =
            check(&format!("g1 -g n:1 --token-file {}", file.path().display())).unwrap_err();
        assert!(
            error.contains("--token-file") && !error.contains("23"),
            "{error}"
        );
    }
}

#[test]
fn nodes_are_shared_by_all_gateways_or_given_to_each() {
    let addresses = |line: &str| -> Vec<String> {
        settings(line)
            .gateways
            .into_iter()
            .map(|gateway| {
                gateway
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            })
            .collect()
    };
    assert_eq!(addresses("g1 g2 -g a:1,b:2,a:1"), ["a:1,b:2", "a:1,b:2"]);
    assert_eq!(addresses("g1 g2 -g a:1,b:2--c:3"), ["a:1,b:2", "c:3"]);
    assert_eq!(addresses("g1 g2 -g none--[::1]:3"), ["[::1]:3", "[::1]:3"]);
    for bad in ["a", "a:0", "a:99999", "::1:80", "none", ","] {
        let error = check(&format!("g1 -g {bad}")).unwrap_err();
        assert!(error.contains("--gateway"), "{bad}: {error}");
    }
}

#[test]
fn reconnect_is_for_ever_unless_said_otherwise() {
    for (line, expected) in [
        ("", Reconnect::Forever),
        ("-r -1", Reconnect::Forever),
        ("--r -1", Reconnect::Forever),
        ("-r 20", Reconnect::Attempts(20)),
        ("--reconnect=0", Reconnect::Attempts(0)),
        ("-r 5 --service", Reconnect::Forever),
        ("--once", Reconnect::Never),
        ("--once -r 5", Reconnect::Never),
    ] {
        assert_eq!(
            settings(&format!("g1 -g n:1 {line}")).reconnect,
            expected,
            "{line}"
        );
    }
    assert!(check("g1 -g n:1 -r -2").is_err());
    assert!(check("g1 -g n:1 -r many").is_err());
}

#[test]
fn the_most_verbose_log_level_of_all_gateways_counts() {
    for (line, expected, notices) in [
        ("", "info", 0),
        ("-l ERROR", "error", 0),
        ("-l ERROR--none", "info", 1),
        ("-l INFO--TRACE", "trace", 1),
        ("--log-level warn", "warn", 0),
        ("--log-level warn -l DEBUG--debug", "debug", 0),
    ] {
        let gateways = if line.contains("--n") || line.contains("--T") || line.contains("--d") {
            "g1 g2"
        } else {
            "g1"
        };
        let settings = settings(&format!("{gateways} -g n:1 {line}"));
        assert_eq!(settings.log_filter.to_string(), expected, "{line}");
        assert_eq!(
            settings.notices.len(),
            notices,
            "{line}: {:?}",
            settings.notices
        );
    }
    assert!(check("g1 -g n:1 -l LOUD").unwrap_err().contains("TRACE"));
}

#[test]
fn gateways_must_be_named_and_named_once() {
    for line in ["-g n:1", "g1 g1 -g n:1", "g/1 -g n:1", "g1"] {
        assert!(check(line).is_err(), "{line}");
    }
    assert!(check("g1 -g n:1 --connections 0").is_err());
    assert!(check("g1 -g n:1 --connections 17").is_err());
    assert_eq!(settings("g1 -g n:1 --connections 3").connections, 3);
}

#[test]
fn acl_files_belong_to_gateways_and_the_local_one_to_all() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# list\nacl allow db:5432\n").unwrap();
    let path = file.path().display();
    let settings = settings(&format!("g1 g2 -g n:1 --F none--{path} --local-acl {path}"));
    assert!(settings.gateways[0].acl.is_none());
    let acl = settings.gateways[1].acl.as_ref().unwrap();
    assert!(acl.decide(&"db:5432".parse().unwrap()).allowed);
    assert_eq!(acl.unlisted, Action::Deny);
    assert!(settings.local_acl.is_some());
    assert_eq!(settings.notices.len(), 1);
    // The narrower comparison unless another is asked for.
    for (option, mode) in [
        ("", PrefixMode::Segment),
        ("--acl-path-prefix segment", PrefixMode::Segment),
        ("--acl-path-prefix text", PrefixMode::Text),
    ] {
        let line = format!("g1 -g n:1 -F {path} --local-acl {path} {option}");
        let settings = self::settings(&line);
        let lists = [&settings.gateways[0].acl, &settings.local_acl];
        assert!(
            lists
                .iter()
                .all(|acl| acl.as_ref().unwrap().path_prefix == mode),
            "{option}"
        );
    }
    assert!(check("g1 -g n:1 --acl-path-prefix ibm").is_err());
    std::fs::write(file.path(), "acl allow db:5432\nacl permit x\n").unwrap();
    let error = check(&format!("g1 -g n:1 -F {path}")).unwrap_err();
    assert!(error.contains("line 2"), "{error}");
    assert!(check("g1 -g n:1 -F /does/not/exist").is_err());
}

#[test]
fn the_console_is_for_terminals_unless_something_else_is_said() {
    for (option, choice) in [
        ("", ConsoleChoice::Terminal),
        ("--console", ConsoleChoice::Always),
        ("--no-console", ConsoleChoice::Never),
    ] {
        let settings = settings(&format!("g1 -g n:1 {option}"));
        assert_eq!(settings.console, choice, "{option}");
    }
    assert!(check("g1 -g n:1 --console --no-console").is_err());
}

#[test]
fn secrets_are_in_no_debug_output() {
    let line = "g1 -g n:1 -t sgt_hidden -w pass_hidden -x http://u:hidden@p:1";
    let args = parse(line).unwrap();
    assert!(!format!("{args:?}").contains("hidden"));
    assert!(!format!("{:?}", args.check().unwrap()).contains("hidden"));
}

#[test]
fn the_help_says_how_values_are_written() {
    use clap::CommandFactory as _;
    let help = Args::command().render_help().to_string();
    // Lines are broken by the width.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        ":9002 (client)",
        "500ms, 30s, 5m or 24h",
        "as 64KiB",
        "1 to 16;",
        "1 to 1024",
        "ERROR, WARN, INFO, DEBUG or TRACE",
    ] {
        assert!(help.contains(part), "{part} is missing in: {help}");
    }
}
