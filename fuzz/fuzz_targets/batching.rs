//! Entry point of libFuzzer; the body is in `targets.rs`, which the tests of the core share.
#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::batching(input));
