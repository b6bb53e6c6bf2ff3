//! Every numbered sentence of `docs/tunnel-protocol.md` is cited by a test (`protocol 207` in a comment
//! or an assertion), or stands here with the reason why no test of the tunnel's two crates can hold it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Sentences that cannot be tested at this level, and why.
const ELSEWHERE: [(u32, &str); 12] = [
    (
        201,
        "TLS and ALPN are set up by the processes: tests/tests/e2e_refusals.rs",
    ),
    (
        202,
        "the Hello is data-plane and client: data-plane/src/tests, client/src",
    ),
    (203, "a definition"),
    (213, "what Accepted carries: data-plane/src/tests/resume.rs"),
    (
        214,
        "the proof over a real exporter: data-plane/src/tests/resume.rs",
    ),
    (215, "whose tunnel it is: data-plane/src/tests/resume.rs"),
    (
        216,
        "offers that name no tunnel: data-plane/src/tests/resume.rs",
    ),
    (217, "the secret before: data-plane/src/tests/resume.rs"),
    (
        218,
        "policy first: data-plane/src/tests/resume.rs, tests/tests/e2e_resume.rs",
    ),
    (
        219,
        "another boot id: data-plane/src/tests/resume.rs, tests/tests/e2e_resume.rs",
    ),
    (220, "when a client tries again: tests/tests/e2e_resume.rs"),
    (
        603,
        "the size follows a real transport: tunnel/io/src/driver, by measurement",
    ),
];

/// Folders whose tests count: everything in `tests`, and the test modules in `src`.
const FOLDERS: [&str; 4] = [
    "tunnel/core/tests",
    "tunnel/core/src",
    "tunnel/io/tests",
    "tunnel/io/src",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The numbers in front of the sentences.
fn sentences() -> BTreeSet<u32> {
    let text = std::fs::read_to_string(root().join("docs/tunnel-protocol.md")).unwrap();
    let numbered = text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(". ")?;
        let is_sentence = !rest.is_empty() && number.len() >= 3;
        number.parse().ok().filter(|_| is_sentence)
    });
    numbered.collect()
}

/// Numbers that follow the word `protocol`: `protocol 207`, `protocol 207, 208 and 801`.
fn cited(text: &str, found: &mut BTreeMap<u32, PathBuf>, file: &Path) {
    for (at, word) in text.match_indices("protocol ") {
        let list = &text.as_bytes()[at + word.len()..];
        let mut number = 0;
        for byte in list.iter().chain(b".") {
            match byte {
                b'0'..=b'9' => number = number * 10 + u32::from(byte - b'0'),
                b' ' | b',' | b'a' | b'n' | b'd' | b':' | b'.' | b'/' | b'\n' | b')' => {
                    if number > 0 {
                        found.entry(number).or_insert_with(|| file.to_owned());
                    }
                    number = 0;
                    if matches!(byte, b'.' | b':' | b')') {
                        break;
                    }
                }
                _ => {
                    if number > 0 {
                        found.entry(number).or_insert_with(|| file.to_owned());
                    }
                    break;
                }
            }
        }
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<u32, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let is_test = path.components().any(|part| part.as_os_str() == "tests");
            let tests = if is_test {
                &text
            } else {
                text.split_once("#[cfg(test)]")
                    .map_or("", |(_, tests)| tests)
            };
            cited(tests, found, &path);
        }
    }
}

#[test]
fn every_sentence_of_the_protocol_is_cited_by_a_test() {
    let sentences = sentences();
    assert!(sentences.len() > 60, "only {} sentences", sentences.len());
    let mut found = BTreeMap::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut found);
    }
    let elsewhere: BTreeSet<u32> = ELSEWHERE.iter().map(|(number, _)| *number).collect();
    let missing: Vec<u32> = sentences
        .iter()
        .filter(|number| !found.contains_key(number) && !elsewhere.contains(number))
        .copied()
        .collect();
    assert!(missing.is_empty(), "no test cites {missing:?}");
    let unknown: Vec<_> = found
        .iter()
        .filter(|(number, _)| !sentences.contains(number))
        .collect();
    assert!(
        unknown.is_empty(),
        "cited, but not in the protocol: {unknown:?}"
    );
    for (number, reason) in ELSEWHERE {
        assert!(sentences.contains(&number) && !reason.is_empty());
        assert!(
            !found.contains_key(&number),
            "{number} is tested by now: take it off the list"
        );
    }
}
