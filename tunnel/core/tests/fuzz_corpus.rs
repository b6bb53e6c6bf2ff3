//! Replays the committed inputs of the fuzzers (`fuzz/corpus`), and every single frame and cut of them,
//! with the stable compiler: what a fuzzer has once found stays found.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation
)]
#![allow(unreachable_pub, clippy::redundant_pub_crate)]

#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// Runs `target` over its inputs; returns how many there were.
fn replay(name: &str, target: fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
            eprintln!("the input is {}", path.display());
            std::panic::resume_unwind(panic);
        }
        count += 1;
    }
    count
}

#[test]
fn the_frame_parser_stands_its_corpus() {
    assert!(replay("frame_parser", targets::frame_parser) > 10);
}

#[test]
fn a_core_stands_its_hostile_peers() {
    assert!(replay("hostile_peer", targets::hostile_peer) > 10);
}

#[test]
fn other_boundaries_change_nothing_in_the_corpus() {
    assert!(replay("batching", targets::batching) > 10);
}

/// Inputs that no fuzzer has chosen, so that a corpus that has grown stale does not hide much.
#[test]
fn the_targets_stand_random_inputs() {
    let count = std::env::var("INPUTS").map_or(1500, |count| count.parse().unwrap());
    let mut state = 1_u64;
    for number in 0..count {
        let mut input = Vec::new();
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut random = state;
        for _ in 0..30 + number % 600 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            input.push((random >> 40) as u8);
        }
        for target in [
            targets::frame_parser,
            targets::hostile_peer,
            targets::batching,
        ] {
            if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                eprintln!("input {number}: {input:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
