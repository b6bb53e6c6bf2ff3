//! `sgctl dev` when something goes wrong: with scripts in place of its sibling programs. That it
//! carries bytes is shown end to end, with the real ones.

#![allow(clippy::unwrap_used)]

mod mock;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mock::Run;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A folder with `sgctl` and what stands in for its siblings.
struct Installation(TempDir);

impl Installation {
    fn new(control_plane: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_sgctl"), folder.path().join("sgctl")).unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        if let Some(body) = control_plane {
            let path = folder.path().join("sg-control-plane");
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self) -> Child {
        Command::new(self.path("sgctl"))
            .args(["dev", "127.0.0.1:9"])
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
