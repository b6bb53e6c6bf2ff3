//! What only the whole program shows: its exit codes, and what it says on stderr.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use sg_runtime::files::DirLock;

const CA: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A client that finds nobody and does not try again.
fn run(data: &Path, more: &[&str]) -> Output {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    let fixed = ["dev", "-g", &nobody, "--ca", CA, "--once", "--no-console"];
    Command::new(env!("CARGO_BIN_EXE_sg-client"))
        .env_clear()
        .args(fixed)
        .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn a_client_without_a_token_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let said = |more: &[&str]| {
        let output = run(&dir.path().join("data"), more);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        text.matches("no security token was given; use --token-file")
            .count()
    };
    assert_eq!(said(&[]), 1);
    assert_eq!(said(&["-t", "sgt_a"]), 0);
}

#[test]
fn a_data_directory_that_another_process_uses_ends_it_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = DirLock::acquire(dir.path()).unwrap();
    let output = run(dir.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("another process uses"), "{text}");
}
