//! Entry point of libFuzzer; the body is in `runtime/src/tls/records/fuzzing.rs`, beside what it runs.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sg_runtime::tls::fuzzing::hostile_records(input));
