//! The walls between the crates, held by a test instead of by good will: who may depend on whom,
//! what every file must have, and how long it may be. The table is that of docs/architecture.md.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crate, and the crates of the workspace that it may depend on directly.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("sg-model", &[]),
    ("sg-proto", &["sg-model"]),
    ("sg-tunnel", &[]),
    ("sg-tunnel-io", &["sg-tunnel"]),
    ("sg-runtime", &[]),
    (
        "sg-relay",
        &["sg-model", "sg-tunnel", "sg-tunnel-io", "sg-runtime"],
    ),
    ("sg-control-plane", &["sg-model", "sg-proto", "sg-runtime"]),
    (
        "sg-data-plane",
        &[
            "sg-model",
            "sg-proto",
            "sg-tunnel",
            "sg-tunnel-io",
            "sg-relay",
            "sg-runtime",
        ],
    ),
    (
        "sg-client",
        &[
            "sg-model",
            "sg-proto",
            "sg-tunnel",
            "sg-tunnel-io",
            "sg-relay",
            "sg-runtime",
        ],
    ),
    ("sgctl", &["sg-model", "sg-proto", "sg-runtime"]),
];

/// They see everything and are part of nothing.
const FREE: [&str; 2] = ["sg-tests", "sg-bench"];

/// Packages from outside, and the only crates that may depend on them directly.
const RESERVED: [(&str, &[&str]); 4] = [
    ("etcd-client", &["sg-control-plane"]),
    ("redb", &["sg-control-plane"]),
    ("rustls", &["sg-runtime", "sg-tunnel-io", "sg-relay"]),
    ("tokio-rustls", &["sg-runtime", "sg-tunnel-io", "sg-relay"]),
];

/// Crates, and what they never depend on directly.
const NEVER: [(&str, &[&str]); 7] = [
    (
        "sg-model",
        &["tokio", "tonic", "prost", "rustls", "rand", "tracing"],
    ),
    (
        "sg-tunnel",
        &["tokio", "tonic", "prost", "rustls", "rand", "tracing"],
    ),
    ("sg-tunnel-io", &["tonic", "prost"]),
    ("sg-runtime", &["tonic", "prost"]),
    ("sg-relay", &["tonic", "prost"]),
    ("sg-client", &["tonic"]),
    ("sg-proto", &["tokio", "rustls"]),
];

/// Rows of the threat model for which docs/threats.md names the tests.
const THREATS: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 42, 44, 45, 46,
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["common", "utils", "util", "shared", "helpers"];

/// Lines of a file outside its test modules.
const LONGEST_FILE: usize = 500;

/// A member of the workspace.
struct Member {
    folder: PathBuf,
    /// Names of its direct, normal dependencies.
    dependencies: BTreeSet<String>,
}

fn members() -> BTreeMap<String, Member> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
            let dependencies = package["dependencies"].as_array().unwrap();
            let normal = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].is_null());
            let member = Member {
                folder: manifest.parent().unwrap().to_owned(),
                dependencies: normal
                    .map(|one| one["name"].as_str().unwrap().to_owned())
                    .collect(),
            };
            (package["name"].as_str().unwrap().to_owned(), member)
        })
        .collect()
}

/// Every Rust file of the workspace.
fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for member in members().values() {
        collect(&member.folder, &mut files);
    }
    assert!(files.len() > 50, "only {} files were found", files.len());
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if name != "target" {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            files.push(path);
        }
    }
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn every_edge_between_our_crates_is_in_the_table() {
    let members = members();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).chain(FREE).collect();
    let actual: BTreeSet<&str> = members.keys().map(String::as_str).collect();
    assert_eq!(
        actual, known,
        "a crate came or went: change the table and docs/architecture.md"
    );

    let mut violations = Vec::new();
    for (name, allowed) in ALLOWED {
        for dependency in &members[name].dependencies {
            if known.contains(dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                violations.push(format!("{name} may not depend on {dependency}"));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn what_is_reserved_stays_with_its_crates() {
    let members = members();
    let mut violations = Vec::new();
    for (package, owners) in RESERVED {
        for (name, member) in &members {
            let free = FREE.contains(&name.as_str()) || owners.contains(&name.as_str());
            if !free && member.dependencies.contains(package) {
                violations.push(format!("{package} is for {owners:?}, not for {name}"));
            }
        }
    }
    for (name, never) in NEVER {
        for package in never {
            if members[name].dependencies.contains(*package) {
                violations.push(format!("{name} must not know {package}"));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn the_lints_of_the_workspace_hold_in_every_crate() {
    let members = members();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(
        manifest.contains("unsafe_code = \"forbid\""),
        "the workspace forbids unsafe code"
    );
    let mut violations = Vec::new();
    for (name, member) in &members {
        let manifest = std::fs::read_to_string(member.folder.join("Cargo.toml")).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            violations.push(format!("{name} does not take the lints of the workspace"));
        }
    }
    assert_none(&violations);
}

#[test]
fn every_file_says_what_it_is() {
    let violations: Vec<String> = files()
        .iter()
        .filter(|path| !std::fs::read_to_string(path).unwrap().starts_with("//! "))
        .map(|path| format!("{} does not open with what it is", path.display()))
        .collect();
    assert_none(&violations);
}

#[test]
fn no_file_is_too_long() {
    let mut violations = Vec::new();
    for path in files() {
        let lines = production_lines(&std::fs::read_to_string(&path).unwrap());
        let is_test = path.components().any(|part| part.as_os_str() == "tests");
        if lines > LONGEST_FILE && !is_test && !path.ends_with("tests.rs") {
            violations.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert_none(&violations);
}

/// Lines outside `#[cfg(test)] mod … { … }`, whose end is the next brace at the line's start.
fn production_lines(text: &str) -> usize {
    let mut count = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let opens = lines
            .peek()
            .is_some_and(|next| next.contains("mod ") && next.ends_with('{'));
        if line == "#[cfg(test)]" && opens {
            while lines.next().is_some_and(|inner| inner != "}") {}
        } else {
            count += 1;
        }
    }
    count
}

#[test]
fn a_test_module_is_not_counted_as_production() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
    assert_eq!(production_lines(text), 2);
}

#[test]
fn no_folder_or_file_has_an_empty_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned();
    let violations: Vec<String> = files()
        .iter()
        .filter(|path| {
            let inside = path.strip_prefix(&root).unwrap().with_extension("");
            inside
                .components()
                .any(|part| EMPTY_NAMES.iter().any(|name| part.as_os_str() == *name))
        })
        .map(|path| format!("{}: name it after what it does", path.display()))
        .collect();
    assert_none(&violations);
}

/// The tests of the threat table, by their rows.
fn tests_of_threats() -> BTreeMap<u8, BTreeSet<String>> {
    let mut tests: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        // What stands in a text, as in this function, is no function of its own.
        for line in text.lines().map(str::trim_start) {
            let line = line.strip_prefix("async ").unwrap_or(line);
            let Some(rest) = line.strip_prefix("fn threat_") else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let row = name.get(..2).and_then(|row| row.parse().ok());
            let row = row.unwrap_or_else(|| panic!("threat_{name} begins with its row"));
            tests
                .entry(row)
                .or_default()
                .insert(format!("threat_{name}"));
        }
    }
    tests
}

#[test]
fn every_row_of_the_threats_has_its_tests_and_the_page_names_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/threats.md")).unwrap();
    let tests = tests_of_threats();
    let mut violations = Vec::new();
    for row in THREATS {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("| {row} |")));
        let named: BTreeSet<String> = line
            .unwrap_or_default()
            .split('`')
            .filter(|part| part.starts_with("threat_"))
            .map(str::to_owned)
            .collect();
        let written = tests.get(&row).cloned().unwrap_or_default();
        if written.is_empty() {
            violations.push(format!("row {row} has no test `fn threat_{row:02}_...`"));
        }
        for name in named.symmetric_difference(&written) {
            violations.push(format!(
                "row {row}: docs/threats.md and the tests differ in {name}"
            ));
        }
        for path in line
            .unwrap_or_default()
            .split('`')
            .filter(|part| part.contains(".rs"))
        {
            let folders = ["", "control-plane/src/", "relay/src/", "data-plane/src/"];
            if !folders
                .iter()
                .any(|folder| root.join(folder).join(path).is_file())
            {
                violations.push(format!("row {row}: {path} is no file"));
            }
        }
    }
    assert_none(&violations);
}
