# The entry points for daily work. `just` alone lists them.

default:
    @just --list

# Formatting, lints and the walls: what must be clean before a change is shown.
check: lint deny
    cargo fmt --all --check

# Clippy over everything, warnings are errors.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Unit and integration tests of every crate, without the end-to-end runs.
test:
    cargo test --workspace --exclude sg-tests --exclude sg-bench

# Every order in which handles and the driver of a tunnel can meet; part of `test`.
loom:
    cargo test -p sg-tunnel-io --test loom

# Real processes end to end.
e2e:
    cargo build --workspace --bins
    cargo test -p sg-tests

# One benchmark by name: just bench throughput -o json
bench +arguments:
    cargo run --release -p sg-bench -- {{ arguments }}

# Licences, bans and sources. `cargo deny check advisories` needs the network besides.
deny:
    cargo deny check bans licenses sources

# One fuzzer by name, with cargo-fuzz and a nightly compiler: just fuzz hostile_peer -runs=1000000
fuzz target *arguments:
    cargo +nightly fuzz run -s none {{ target }} -- -max_len=1200 {{ arguments }}

# The model of the tunnel over many more runs than ./test makes.
model seeds="100000":
    SEEDS={{ seeds }} cargo test -p sg-tunnel --test model -- --nocapture
