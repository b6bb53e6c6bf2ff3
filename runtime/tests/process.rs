//! What only a whole process shows: exit codes, and what reaches stderr. The test program starts
//! itself again as a daemon would start, so it brings its own `main`.

use std::io::{self, Write as _};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use sg_runtime::{config, crypto};

const CHILD: &str = "RUNTIME_TEST_CHILD";
/// The child logs more lines than a pipe and the writer hold together.
const FLOOD: &str = "RUNTIME_TEST_FLOOD";

/// A daemon that logs two lines, panics in a thread, and ends.
#[derive(Debug, clap::Parser)]
#[command(name = "sg-child", version)]
struct Args {
    #[command(flatten)]
    common: config::CommonArgs,
}

fn child() -> ExitCode {
    crypto::install();
    let args: Args = config::load();
    let _logging = args.common.init_telemetry("sg-child");
    if std::env::var_os(FLOOD).is_some() {
        for number in 0..60_000 {
            tracing::info!(number, "somebody should read this, and nobody does");
        }
        return ExitCode::SUCCESS;
    }
    tracing::info!(answer = 42, "hello");
    tracing::debug!("detail");
    let panicked = std::thread::spawn(|| panic!("on purpose")).join();
    ExitCode::from(u8::from(panicked.is_ok()))
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().expect("own path");
    let mut command = Command::new(program);
    command.env_clear().env(CHILD, "1").args(arguments);
    command
        .envs(variables.iter().copied())
        .output()
        .expect("started")
}

fn stderr(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "stdout is for data only");
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn logs_are_json_without_a_terminal() {
    let output = run(&[], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stderr(&output);
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        (&lines[0]["message"], &lines[0]["answer"]),
        (&"hello".into(), &42.into())
    );
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(
        (&lines[1]["target"], &lines[1]["message"]),
        (&"panic".into(), &"on purpose".into())
    );
}

fn text_has_no_colours_without_a_terminal() {
    let text = stderr(&run(&["--log-format", "text"], &[("SG_LOG", "debug")]));
    assert!(
        text.contains("hello answer=42") && text.contains("detail"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
}

/// Whoever logs goes on, and the process ends, when nobody reads stderr.
fn a_reader_of_the_log_that_stopped_stops_nobody() {
    let program = std::env::current_exe().expect("own path");
    let mut child = Command::new(program)
        .env_clear()
        .envs([(CHILD, "1"), (FLOOD, "1")])
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    // Held and not read. When this process ends, a child that still waits for a reader ends too.
    let _pipe = child.stderr.take();
    let (tell, ended) = sync_channel(1);
    std::thread::spawn(move || tell.send(child.wait()));
    let status = ended
        .recv_timeout(Duration::from_secs(60))
        .expect("it does not wait for its reader")
        .expect("own child");
    assert!(status.success(), "{status}");
}

fn bad_usage_ends_with_2_and_says_why() {
    for (arguments, variables, part) in [
        (&["--unknown"][..], &[][..], "--unknown"),
        (&["--drain-timeout", "soon"], &[], "not a duration"),
        (&[], &[("SG_DRAIN_TIMEOUT", "soon")], "SG_DRAIN_TIMEOUT"),
        (&["--config", "/nonexistent.toml"], &[], "/nonexistent.toml"),
        (&[], &[("SG_LOG", "x=loud")], "SG_LOG"),
        (
            &["--log-level", "warning"],
            &[],
            "no such level; write error,",
        ),
        (&[], &[("SG_LOG", "verbose")], "no such level; write error,"),
    ] {
        let output = run(arguments, variables);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part), "{part} is missing in: {text}");
        let cause = "No such file or directory";
        assert!(text.matches(cause).count() <= 1, "said twice: {text}");
    }
}

fn help_and_version_end_with_0() {
    for flag in ["--help", "--version"] {
        let output = run(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

type Test = (&'static str, fn());

const TESTS: [Test; 5] = [
    (
        "logs_are_json_without_a_terminal",
        logs_are_json_without_a_terminal,
    ),
    (
        "text_has_no_colours_without_a_terminal",
        text_has_no_colours_without_a_terminal,
    ),
    (
        "a_reader_of_the_log_that_stopped_stops_nobody",
        a_reader_of_the_log_that_stopped_stops_nobody,
    ),
    (
        "bad_usage_ends_with_2_and_says_why",
        bad_usage_ends_with_2_and_says_why,
    ),
    ("help_and_version_end_with_0", help_and_version_end_with_0),
];

/// Runs the tests that are asked for; all of them without arguments.
fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if asked("--list") {
        // What cargo-nextest asks for, and again for those that are not to be run.
        for (name, _) in TESTS.iter().filter(|_| !asked("--ignored")) {
            writeln!(io::stdout(), "{name}: test").expect("stdout");
        }
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| !asked("--exact") || asked(name);
    for (_, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        test();
    }
    ExitCode::SUCCESS
}
