//! The documents keep their promises: every word of failure in the sources is explained on the page
//! that says so, and every link leads somewhere. It reads files; nothing is started.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/errors.md";
/// Where the API's words are made.
const API: [&str; 2] = ["control-plane/src/api", "control-plane/src/service"];
/// Where the words of streams, tunnels, listeners and TLS are made.
const PROCESSES: [&str; 14] = [
    "client/src/session.rs",
    "client/src/session/establish.rs",
    "client/src/supervisor.rs",
    "control-plane/src/service/status.rs",
    "data-plane/src/connection.rs",
    "data-plane/src/control/desired.rs",
    "data-plane/src/reconcile",
    "data-plane/src/tunnels",
    "relay/src/account.rs",
    "relay/src/dial.rs",
    "relay/src/join.rs",
    "runtime/src/tls/error.rs",
    "tunnel/core/src/closed.rs",
    "tunnel/core/src/code.rs",
];
/// Literals in those files that are no words of failure: kinds and states that are well, fields.
const OTHERS: [&str; 6] = ["certificate", "client", "node", "ready", "stream", "token"];

#[test]
fn every_word_of_failure_is_on_the_page() {
    let page = read(PAGE);
    let explained: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let mut words = BTreeSet::new();
    for (path, text) in API.iter().flat_map(|at| sources(at)) {
        // Words of gRPC itself and of the build are of no interest.
        let lines = text.lines().filter(|line| !line.contains("env!("));
        let literals = lines.flat_map(literals);
        words.extend(literals.filter(|l| is_upper(l)).map(|l| (l, path.clone())));
    }
    for (path, text) in PROCESSES.iter().flat_map(|at| sources(at)) {
        // What a value shows of itself has names of fields.
        let lines = text.lines().filter(|line| !line.contains(".field("));
        let literals = lines.flat_map(literals);
        words.extend(
            literals
                .filter(|l| is_lower(l) && !OTHERS.contains(&l.as_str()))
                .map(|l| (l, path.clone())),
        );
    }
    for (path, text) in sources("sgctl/src") {
        // Its own words are the first literal after a code; others are headings of tables.
        let after = ["Code::", "within("].map(|mark| text.split(mark).skip(1));
        for rest in after.into_iter().flatten() {
            let rest = rest.trim_start_matches(char::is_alphanumeric);
            let rest = rest.trim_start_matches([',', ' ', '\n']);
            let word = rest.strip_prefix('"').and_then(|r| r.split('"').next());
            words.extend(
                word.filter(|w| is_upper(w))
                    .map(|w| (w.to_owned(), path.clone())),
            );
        }
    }
    assert!(
        words.len() > 80,
        "the words are not found any more: {words:?}"
    );
    let missing: Vec<_> = words
        .iter()
        .filter(|(word, _)| !explained.contains(word.as_str()))
        .collect();
    assert!(missing.is_empty(), "not on {PAGE}: {missing:?}");
}

#[test]
fn every_link_leads_somewhere() {
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut broken = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            if !file.exists() || !(anchor.is_empty() || anchors(&file).contains(anchor)) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The production code of a file or folder: up to the tests inside, without files of tests.
fn sources(at: &str) -> Vec<(String, String)> {
    let paths = match root().join(at) {
        path if path.is_dir() => files(&path, "rs"),
        path => vec![path],
    };
    let mut found = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if !name.contains("tests") {
            let text = read(&name);
            let production = text.split("#[cfg(test)]").next().unwrap().to_owned();
            found.push((name, production));
        }
    }
    found
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

/// The string literals of a line; comments have none of interest.
fn literals(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn is_upper(text: &str) -> bool {
    text.len() > 2 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

fn is_lower(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// The anchors of the headings of a page.
fn anchors(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}
