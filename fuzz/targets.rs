//! What the fuzzers do with their input. Shared by the entry points here, which need libFuzzer, and by
//! `tunnel/core/tests/fuzz_corpus.rs`, which replays the committed inputs with a stable compiler.
//!
//! * [`frame_parser`]: records and frames; what can be read can be written again, the same.
//! * [`hostile_peer`]: one core against any peer and any use by its own side.
//! * [`batching`]: the same conversation with other boundaries has the same result.

#[path = "targets/batching.rs"]
mod batching;
#[path = "targets/hostile.rs"]
mod hostile;
#[path = "targets/parser.rs"]
mod parser;
#[path = "targets/script.rs"]
mod script;
#[path = "../tunnel/core/tests/support/wire.rs"]
mod wire;

#[allow(unused_imports)]
pub use batching::batching;
#[allow(unused_imports)]
pub use hostile::hostile_peer;
#[allow(unused_imports)]
pub use parser::frame_parser;
