//! Replays the committed inputs of the fuzzers of access control (`fuzz/corpus`) with the stable compiler: what a fuzzer
//! has once found stays found.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(unreachable_pub, clippy::redundant_pub_crate)]

use std::path::Path;

#[path = "../../fuzz/access.rs"]
mod access;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        // Cuts of an input are inputs as well.
        for end in 0..=input.len() {
            target(&input[..end]);
        }
        seen += 1;
    }
    assert!(seen >= 5, "{name}: {seen}");
}

#[test]
fn inputs_of_the_path_matcher() {
    replay("path_matcher", access::path_matcher);
}

#[test]
fn inputs_of_the_acl_matcher() {
    replay("acl_matcher", access::acl_matcher);
}
