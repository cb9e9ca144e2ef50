# The everyday commands. `just` alone lists them.

default:
    @just --list

# Format everything.
fmt:
    cargo fmt

# What every change must pass.
check:
    cargo fmt --check
    cargo clippy --all-targets --all-features -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --all-features

# The tests, then those that inject faults.
test:
    cargo test
    cargo test --features failpoints

# The search application over this repository's documents.
run:
    cargo run --release --example search_app

# Micro-benchmarks.
bench:
    cargo bench

# Licences, advisories and sources of the dependencies.
deny:
    cargo deny check

# All that continuous integration does.
ci:
    bash .ci/run
