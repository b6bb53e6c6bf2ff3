//! `sgctl dev` when something goes wrong: with scripts in place of its sibling programs. That it
//! carries bytes is shown end to end, with the real ones.

#![allow(clippy::unwrap_used)]

mod mock;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mock::{Mock, Run};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sg_proto::api;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A folder with `sgctl` and what stands in for its siblings.
struct Installation(TempDir);

impl Installation {
    fn new(control_plane: Option<&str>) -> Self {
        let programs = control_plane.map(|body| ("sg-control-plane", body));
        Self::with(programs.as_slice())
    }

    /// With these shell scripts in place of its siblings.
    fn with(programs: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_sgctl"), folder.path().join("sgctl")).unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        for (name, body) in programs {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self) -> Child {
        self.start_with(&[])
    }

    fn start_with(&self, arguments: &[&str]) -> Child {
        Command::new(self.path("sgctl"))
            .args(["dev", "127.0.0.1:9"])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", self.path("tmp"))
            .env("SG_STORE", "memory:")
            .env("FOLDER", self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn nothing_is_left(&self) -> bool {
        std::fs::read_dir(self.path("tmp")).unwrap().count() == 0
    }
}

async fn written(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(
                Instant::now() < deadline,
                "{} is not written",
                path.display()
            ),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let installation = Installation::new(None);
    let run = Run::of(installation.start().wait_with_output().await.unwrap());
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert!(
        run.err.contains("sg-control-plane is not beside sgctl"),
        "{}",
        run.err
    );
    assert!(run.err.contains("try: ./quickstart"), "{}", run.err);
    assert!(installation.nothing_is_left());
}

#[tokio::test]
async fn a_program_that_does_not_start_is_shown_with_the_end_of_its_log() {
    let installation = Installation::new(Some(
        "echo SG_STORE is ${SG_STORE:-unset} >&2; echo the disk is full >&2; exit 3",
    ));
    let run = Run::of(installation.start().wait_with_output().await.unwrap());
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert!(
        run.err
            .contains("sg-control-plane ended while starting (exit status: 3)"),
        "{}",
        run.err
    );
    assert!(run.err.contains("the disk is full"), "{}", run.err);
    // What configures sgctl does not reach its children.
    assert!(run.err.contains("SG_STORE is unset"), "{}", run.err);
    assert!(installation.nothing_is_left());
}

/// The gateway is disabled, or the folder lost its token, or both; the next run serves all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_an_earlier_run_left_disabled_is_enabled_again() {
    for (token_is_there, enabled, expected) in [
        (true, true, None),
        (true, false, Some("enable gateway e1 gateways/dev")),
        (false, true, Some("rotate 0 gateways/dev")),
    ] {
        let mock = Mock::start().await;
        mock.script.lock().unwrap().existing = Some(api::Gateway {
            enabled,
            ..mock::services::gateway()
        });
        let folder = mock.path("dev");
        std::fs::create_dir(&folder).unwrap();
        if token_is_there {
            std::fs::write(folder.join("dev.token"), "sgt_kept").unwrap();
        }
        // In place of a control plane: the ready-file of one that runs, and its files.
        let control_plane = format!(
            "cp {0}/ca.pem {1}/control-plane/ca.pem; cp {0}/token {1}/control-plane/admin.token
             echo '{{\"listen\":\"{2}\",\"http_listen\":\"{2}\"}}' > {1}/run/sg-control-plane.json
             exec sleep 60",
            mock.folder.path().display(),
            folder.display(),
            mock.address
        );
        let programs = [
            ("sg-control-plane", control_plane.as_str()),
            ("sg-data-plane", "echo as far as the node >&2; exit 3"),
        ];
        let installation = Installation::with(&programs);
        let child = installation.start_with(&["--dir", folder.to_str().unwrap()]);
        let run = Run::of(child.wait_with_output().await.unwrap());
        assert!(run.err.contains("as far as the node"), "{}", run.err);
        let mut changes = mock.asked();
        changes.retain(|line| line.starts_with("enable") || line.starts_with("rotate"));
        assert_eq!(
            changes,
            Vec::from_iter(expected),
            "{token_is_there} {enabled}"
        );
        let token = std::fs::read_to_string(folder.join("dev.token")).unwrap();
        let wanted = if token_is_there {
            "sgt_kept"
        } else {
            "sgt_new"
        };
        assert_eq!(token.trim(), wanted);
    }
}

#[tokio::test]
async fn a_signal_in_the_middle_of_the_start_ends_even_a_stubborn_child() {
    let installation = Installation::new(Some(
        "trap '' TERM INT HUP; echo $$ > $FOLDER/pid; while :; do sleep 0.1; done",
    ));
    let child = installation.start();
    let stubborn: i32 = written(&installation.path("pid")).await.parse().unwrap();
    let dev = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let began = Instant::now();
    kill_process(dev, Signal::TERM).unwrap();
    let run = Run::of(child.wait_with_output().await.unwrap());
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{}", run.err);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert!(
        test_kill_process(Pid::from_raw(stubborn).unwrap()).is_err(),
        "the child is left"
    );
    assert!(installation.nothing_is_left());
}
