//! How things go wrong: exit codes, texts, other addresses, and what may be tried again.

#![allow(clippy::unwrap_used)]

mod mock;

use std::net::SocketAddr;
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mock::{Ca, Mock, Run, sgctl};
use sg_proto::api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Each way a call can end, by the exit code of the documentation.
#[tokio::test(flavor = "multi_thread")]
async fn exit_codes() {
    let mock = Mock::start().await;
    for (command, code, reason) in [
        ("gateway get missing", 3, "NOT_FOUND"),
        ("gateway get denied", 4, "PERMISSION_DENIED"),
        ("gateway create taken", 5, "NAME_TAKEN"),
        ("gateway delete busy", 5, "NOT_EMPTY"),
        ("gateway get odd", 1, "INTERNAL"),
        (
            "destination create dev/bad --resource h:1",
            2,
            "INVALID_ARGUMENT",
        ),
        ("destination get dev/missing", 3, "NOT_FOUND"),
        ("acl list missing", 3, "NOT_FOUND"),
        ("client list missing", 3, "NOT_FOUND"),
        ("node get missing", 3, "NOT_FOUND"),
    ] {
        let run = mock.run(command).await;
        assert_eq!(run.code, code, "{command}: {run:?}");
        assert_eq!(run.out, "", "{command}");
        assert!(
            run.err.starts_with("error: ") && run.err.contains(&format!("({reason})")),
            "{command}: {}",
            run.err
        );
        let json = mock.run(&format!("{command} -o json")).await;
        assert_eq!(json.code, code, "{command}");
        assert_eq!(json.json()["reason"], reason, "{command}");
        assert!(json.json()["code"].is_string() && json.json()["message"].is_string());
    }
    let run = mock.run("destination create dev/bad --resource h:1").await;
    assert_eq!(
        run.err,
        "error: a field cannot be accepted (INVALID_ARGUMENT)\n\
         cause: --protocol: 'gopher' is not one of tcp, udp\n"
    );
    let run = mock.run("gateway get missing").await;
    assert!(
        run.err.ends_with("try: sgctl gateway list\n"),
        "{}",
        run.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_in_place_of_an_address_is_refused() {
    let mock = Mock::start().await;
    for (command, problem) in [
        (
            "destination create dev/web --resource http://127.0.0.1:80",
            "write HOST:PORT, without http://",
        ),
        (
            "gateway list --server https://127.0.0.1:7400",
            "write HOST:PORT, without https://",
        ),
        (
            "acl allow dev http://web:80",
            "write HOST:PORT[/PATH], without http://",
        ),
        (
            "acl allow dev *.example.com:80",
            "there are no wildcards; write each host",
        ),
    ] {
        let refused = mock.run(command).await;
        assert_eq!(refused.code, 2, "{command}");
        assert!(refused.err.contains(problem), "{command}: {}", refused.err);
    }
    assert_eq!(mock.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_to_try_leads_out_of_the_error() {
    let mock = Mock::start().await;
    for (command, code, text) in [
        (
            "destination get dev/nowhere",
            3,
            "try: sgctl gateway list\n",
        ),
        ("client get dev/nowhere", 3, "try: sgctl gateway list\n"),
        (
            "destination get dev/missing",
            3,
            "try: sgctl destination list dev\n",
        ),
        (
            "destination source remove dev/pg 10.0.0.6",
            3,
            "try: sgctl destination source list dev/pg\n",
        ),
        ("client get dev", 2, "write GATEWAY/CLIENT"),
        (
            "gateway list --server 127.0.0.1",
            2,
            "try: 127.0.0.1:7400; 7400 is the port of a control plane by default\n",
        ),
        (
            "context add site --server ::1",
            2,
            "try: [::1]:7400; 7400 is the port of a control plane by default\n",
        ),
    ] {
        let run = mock.run(command).await;
        assert_eq!(run.code, code, "{command}: {run:?}");
        assert!(run.err.contains(text), "{command}: {}", run.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_told_what_is_missing() {
    let mock = Mock::start().await;
    let run = mock.run("-o json gateway create").await;
    assert_eq!(run.code, 2);
    assert_eq!(
        run.json()["message"],
        "the following required arguments were not provided: <NAME>"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_usage_is_2_and_says_so_to_scripts_too() {
    let mock = Mock::start().await;
    for command in [
        "",
        "gateway",
        "gateway fly dev",
        "gateway create a --token-days 0",
        "gateway create a --no-token --token-days 5",
        "destination create pg --resource h:1",
        "destination create dev/pg --resource h",
        "destination create dev/pg --resource h:1 --cloud-port 0",
        "destination create dev/pg --resource h:1 --resource-cert c.pem",
        "destination create dev/pg --resource h:1 --socks 6:h:1",
        "acl allow dev db:x",
        "gateway list --timeout 5",
        "gateway list -o xml",
        "gateway list --server nohost",
        "gateway list --config /no/such/file",
        "dev ftp://h:21",
        "dev h:1=0",
    ] {
        let run = mock.run(command).await;
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{command}: {run:?}");
        assert!(!run.err.is_empty(), "{command}");
    }
    let run = mock.run("gateway fly dev -o json").await;
    assert_eq!(run.code, 2);
    assert_eq!(run.json()["code"], "INVALID_ARGUMENT");
    assert_eq!(mock.asked(), [""; 0]);
}

/// However JSON was asked for, a failure is an object too.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_an_object_by_flag_variable_and_file() {
    let mock = Mock::start().await;
    std::fs::write(mock.path("sgctl.toml"), "output = \"json\"\n").unwrap();
    let config = format!("--config {}", mock.path("sgctl.toml").display());
    let by_file = mock.run(&format!("gateway get missing {config}")).await;
    assert_eq!(by_file.json()["reason"], "NOT_FOUND");
    let overruled = mock
        .run(&format!("{config} -o name gateway get missing"))
        .await;
    assert_eq!((overruled.code, overruled.out.as_str()), (3, ""));
    let with = async |variable: &str, arguments: &str| {
        let mut command = sgctl(mock.folder.path());
        command.env("SG_OUTPUT", variable);
        command.args(arguments.split_whitespace());
        Run::of(command.output().await.unwrap())
    };
    for wrong in ["gateway fly", "gateway list"] {
        assert_eq!(
            with("json", wrong).await.json()["reason"],
            "USAGE",
            "{wrong}"
        );
        assert_eq!(with("table", wrong).await.out, "", "{wrong}");
    }
    assert_eq!(with("json", "-o table gateway fly").await.out, "");
    let unreadable = with("json", "gateway list --config /no/such/file").await;
    assert_eq!(
        (unreadable.code, unreadable.json()["reason"] == "USAGE"),
        (2, true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_4_and_is_not_printed() {
    let mock = Mock::start().await;
    std::fs::write(mock.path("token"), "sga_wrong\n").unwrap();
    let run = mock.run("gateway list").await;
    assert_eq!(run.code, 4);
    assert!(run.err.contains("try: --token-file"), "{}", run.err);
    assert!(!run.err.contains("sga_wrong"), "{}", run.err);
    std::fs::remove_file(mock.path("token")).unwrap();
    assert_eq!(mock.run("gateway list").await.code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_kind_is_named_before_anybody_is_asked() {
    let mock = Mock::start().await;
    std::fs::write(mock.path("token"), "sgt_secret\n").unwrap();
    let run = mock.run_at(&closed_port().await, "gateway list").await;
    assert_eq!(run.code, 4);
    let said = "holds a security token (sgt_); sgctl needs an admin token (sga_) (TOKEN_MALFORMED)";
    assert!(run.err.contains(said), "{}", run.err);
    assert!(run.err.starts_with("error: --token-file "), "{}", run.err);
    assert_eq!(
        run.err.matches("--token-file").count(),
        2,
        "with the hint: {}",
        run.err
    );
    assert!(!run.err.contains("sgt_secret"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_control_plane_of_the_right_authority_is_talked_to() {
    let ca = Ca::new();
    let node = Mock::start_as(&ca, "node").await;
    let run = node.run("gateway list").await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("(WRONG_PEER)"), "{}", run.err);

    let mock = Mock::start().await;
    Ca::new().write(&mock.path("ca.pem"));
    let run = mock.run("gateway list").await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("(BAD_CERTIFICATE)"), "{}", run.err);
    assert_eq!(node.asked().len() + mock.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_6() {
    let mock = Mock::start().await;
    let run = mock.run_at(&closed_port().await, "gateway list").await;
    assert_eq!(run.code, 6);
    assert!(run.err.contains("(UNREACHABLE)"), "{}", run.err);
    mock.script.lock().unwrap().unavailable = true;
    assert_eq!(mock.run("gateway list").await.code, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_tried_when_one_is_dead_silent_or_unavailable() {
    let ca = Ca::new();
    let (live, sick) = tokio::join!(
        Mock::start_as(&ca, "control-plane"),
        Mock::start_as(&ca, "control-plane")
    );
    sick.script.lock().unwrap().unavailable = true;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_address = silent.local_addr().unwrap();
    for first in [
        closed_port().await,
        sick.address.to_string(),
        silent_address.to_string(),
    ] {
        let began = Instant::now();
        let run = live
            .run_at(
                &format!("{first},{}", live.address),
                "gateway list -o name --timeout 4s",
            )
            .await;
        assert_eq!(run.out, "dev\nsecond\n", "{first}: {}", run.err);
        assert!(began.elapsed() < Duration::from_secs(4), "{first}");
    }
    // A silent one alone: the time ends, the command too.
    let began = Instant::now();
    let run = live
        .run_at(&silent_address.to_string(), "gateway list --timeout 500ms")
        .await;
    assert_eq!(run.code, 6, "{run:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_sent_again_carries_the_same_request_id() {
    let ca = Ca::new();
    let (live, sick) = tokio::join!(
        Mock::start_as(&ca, "control-plane"),
        Mock::start_as(&ca, "control-plane")
    );
    sick.script.lock().unwrap().unavailable = true;
    let both = format!("{},{}", sick.address, live.address);
    let run = live
        .run_at(&both, "gateway create north --no-token -o name")
        .await;
    assert_eq!(run.out, "north\n", "{}", run.err);
    let (first, second) = (sick.asked(), live.asked());
    assert_eq!(first, second);
    let id = first[0].split(' ').nth(2).unwrap();
    assert_eq!(id.len(), 32, "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_success() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        ["completion", "bash"].as_slice(),
        &["--help"],
        &["version", "-o", "json"],
    ] {
        let mut child = sgctl(home.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let run = Run::of(child.wait_with_output().await.unwrap());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_survives_the_restart_of_the_only_control_plane() {
    for (command, watch) in [
        ("destination enable dev/pg --wait", "watch destination"),
        ("acl allow dev db:1 --wait 20s", "watch acl"),
    ] {
        let mock = Mock::start().await;
        let (door, connections) = forward("127.0.0.1:0", mock.address).await;
        let server = door.to_string();
        let command = format!("{command} --timeout 20s");
        let mut run = pin!(mock.run_at(&server, &command));
        let watching = async {
            let asked = || mock.asked().iter().any(|line| line.starts_with(watch));
            while !asked() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            run = &mut run => panic!("{command} did not wait: {run:?}"),
            () = watching => {}
        }
        // Gone with its connections; whoever knocks is refused.
        drop(connections);
        let gave_up = timeout(Duration::from_millis(500), &mut run).await;
        assert!(gave_up.is_err(), "{command} gave up: {gave_up:?}");
        {
            let mut script = mock.script.lock().unwrap();
            script.destination_states = vec![ready_destination()];
            script.acl_states = vec![enforced_acl()];
        }
        let _back = forward(&server, mock.address).await;
        let run = run.await;
        assert_eq!(run.code, 0, "{command}: {run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_control_plane_that_stays_away_ends_with_its_time_and_says_why() {
    let mock = Mock::start().await;
    let (door, connections) = forward("127.0.0.1:0", mock.address).await;
    let server = door.to_string();
    let began = Instant::now();
    let mut run = pin!(mock.run_at(&server, "destination enable dev/pg --wait --timeout 2s"));
    let watching = async {
        while !mock.asked().iter().any(|line| line.starts_with("watch")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        run = &mut run => panic!("it did not wait: {run:?}"),
        () = watching => {}
    }
    drop(connections);
    let run = run.await;
    assert_eq!(run.code, 6, "{run:?}");
    assert!(began.elapsed() > Duration::from_millis(1500), "{run:?}");
    assert!(run.err.contains("(NOT_READY)"), "{}", run.err);
    let cause = format!("cause: no connection to {server} (UNREACHABLE)");
    assert!(run.err.contains(&cause), "{}", run.err);
}

fn ready_destination() -> api::Destination {
    let status = api::DestinationStatus {
        ready: true,
        ..Default::default()
    };
    api::Destination {
        generation: 3,
        status: Some(status),
        ..Default::default()
    }
}

fn enforced_acl() -> api::Acl {
    let status = api::AclStatus {
        enforced: true,
        ..Default::default()
    };
    api::Acl {
        epoch: 1,
        generation: 7,
        status: Some(status),
        ..Default::default()
    }
}

/// Passes connections on until the returned set is dropped; then they are closed and new ones refused.
async fn forward(at: &str, to: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut door = JoinSet::new();
    door.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    // How a connection ends is no matter here.
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (address, door)
}

async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
