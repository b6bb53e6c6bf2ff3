//! Commands that need no server: contexts, versions, completion, and where settings come from.

#![allow(clippy::unwrap_used)]

mod mock;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mock::{Mock, Run, sgctl};

async fn run(home: &Path, arguments: &str) -> Run {
    let mut command = sgctl(home);
    command.current_dir(home);
    Run::of(
        command
            .args(arguments.split_whitespace())
            .output()
            .await
            .unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_kept_for_the_owner_alone() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let none = run(home, "context current").await;
    assert_eq!((none.code, none.out.as_str()), (3, ""));
    assert_eq!(run(home, "context list").await.code, 0);

    let flags = "--ca ca.pem --token-file token";
    let added = run(home, &format!("context add one --server a:1,b:2 {flags}")).await;
    assert_eq!(added.code, 0, "{}", added.err);
    assert!(added.err.contains("does not exist yet"), "{}", added.err);
    run(
        home,
        "context add two --server c:3 --ca sha256:0000000000000000000000000000000000000000000000000000000000000000 --token-file /t",
    )
    .await;
    assert_eq!(run(home, "context current -o name").await.out, "one\n");
    assert_eq!(run(home, "context use two -o name").await.out, "two\n");
    let list = run(home, "context list").await.out;
    assert_eq!(
        list,
        "NAME  CURRENT  SERVER\none   -        a:1,b:2\ntwo   *        c:3\n"
    );
    let json: serde_json::Value = run(home, "context list -o json").await.json();
    let token_file = json["contexts"][0]["tokenFile"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(Path::new(&token_file).is_absolute(), "{token_file}");

    let file = home.join(".config/secure-gateway/contexts.toml");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run(home, "context use three").await.code, 3);
    assert_eq!(run(home, "context add x --server a:1").await.code, 2);
    let removed = run(home, "context remove two").await;
    assert_eq!(removed.err, "context two removed\n");
    assert_eq!(run(home, "context current").await.code, 3);

    std::fs::write(&file, "nonsense = 1\n").unwrap();
    assert_eq!(run(home, "context list").await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_beat_variables_beat_the_file_beat_the_context() {
    let mock = Mock::start().await;
    let home = mock.folder.path();
    let unknown = run(home, "gateway list").await;
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("sgctl context add"), "{}", unknown.err);

    let files = "--ca ca.pem --token-file token";
    run(
        home,
        &format!("context add here --server {} {files}", mock.address),
    )
    .await;
    assert_eq!(run(home, "gateway list -o name").await.out, "dev\nsecond\n");
    run(
        home,
        &format!("context add gone --use --server 127.0.0.1:1 {files}"),
    )
    .await;
    assert_eq!(run(home, "gateway list").await.code, 6);
    assert_eq!(run(home, "gateway list --context here").await.code, 0);

    let config = home.join("sgctl.toml");
    std::fs::write(&config, "context = \"here\"\noutput = \"name\"\n").unwrap();
    let by_file = run(home, "gateway list --config sgctl.toml").await;
    assert_eq!(by_file.out, "dev\nsecond\n");
    let mut command = sgctl(home);
    command
        .current_dir(home)
        .env("SG_CONTEXT", "gone")
        .env("SG_CONFIG", &config);
    let by_variable = Run::of(command.args(["gateway", "list"]).output().await.unwrap());
    assert_eq!(by_variable.code, 6, "{by_variable:?}");

    // A context that is typed beats what lies in the environment, and what is in the file; flags beat it.
    std::fs::write(&config, "server = \"127.0.0.1:1\"\n").unwrap();
    let surrounded = async |arguments: &str| {
        let mut command = sgctl(home);
        command
            .current_dir(home)
            .env("SG_SERVER", "127.0.0.1:1")
            .env("SG_CA", "nonsense.pem")
            .env("SG_TOKEN_FILE", "nothing")
            .env("SG_CONFIG", &config)
            .args(arguments.split(' '));
        Run::of(command.output().await.unwrap())
    };
    let typed = surrounded("gateway list -o name --context here").await;
    assert_eq!(typed.out, "dev\nsecond\n", "{typed:?}");
    let flag = surrounded("gateway list --context here --server 127.0.0.1:1").await;
    assert_eq!(flag.code, 6, "{flag:?}");
    let named = surrounded("gateway list").await;
    assert_eq!(named.code, 2, "{named:?}");
    assert!(
        named
            .err
            .starts_with("error: --ca (from SG_CA) nonsense.pem: "),
        "{named:?}"
    );
    let token = surrounded("gateway list --ca ca.pem").await;
    assert!(
        token
            .err
            .starts_with("error: --token-file (from SG_TOKEN_FILE) nothing cannot be read"),
        "{token:?}"
    );
    let unmarked = surrounded("gateway list --ca nonsense.pem").await;
    assert!(
        unmarked.err.starts_with("error: --ca nonsense.pem: "),
        "{unmarked:?}"
    );

    std::fs::write(&config, "sever = \"x:1\"\n").unwrap();
    let bad = run(home, "gateway list --config sgctl.toml").await;
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("sever"), "{}", bad.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_may_come_through_stdin() {
    let mock = Mock::start().await;
    let token = std::fs::File::open(mock.path("token")).unwrap();
    let mut command = sgctl(mock.folder.path());
    command
        .args(["--server", &mock.address.to_string(), "--token-file", "-"])
        .arg("--ca")
        .arg(mock.path("ca.pem"))
        .args(["gateway", "list", "-o", "name"])
        .stdin(token);
    let run = Run::of(command.output().await.unwrap());
    assert_eq!(run.out, "dev\nsecond\n", "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_completion() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let version = run(home, "version -o json").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        run(home, "version").await.out,
        run(home, "--version").await.out
    );
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = run(home, &format!("completion {shell}")).await;
        assert!(
            script.code == 0 && script.out.contains("destination"),
            "{shell}"
        );
    }
    let help = run(home, "--help").await;
    assert!(
        help.code == 0 && help.out.contains("Exit codes:"),
        "{help:?}"
    );
}
