//! Entry point of libFuzzer; the body is in `access.rs`, which the tests of the model share.
#![no_main]

#[path = "../access.rs"]
#[allow(dead_code)]
mod access;

libfuzzer_sys::fuzz_target!(|input: &[u8]| access::acl_matcher(input));
