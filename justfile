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
    cargo clippy --package failure-logger --all-targets -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --all-features

# Formatter, linter and type check of the dashboard's modules; needs npm and Node.js 20.19 or newer.
dashboard:
    npm ci --prefix tools/dashboard
    npm run --prefix tools/dashboard check

# Format the dashboard's modules.
dashboard-fmt:
    npm ci --prefix tools/dashboard
    npm run --prefix tools/dashboard format

# The tests, then those that inject faults.
test:
    cargo test
    cargo test --features failpoints

# A second program opens and closes the database beside an application and two loggers, a hundred times.
locks:
    cargo test --features failpoints --test locks
    FAILURE_LOGGER_TEST_SQLITE3=sqlite3 cargo test --features failpoints --test locks

# Half an hour of 20,000 records a second, with restarts; 8 GB in the folder.
soak folder="/var/tmp" seconds="1800":
    FAILURE_LOGGER_SOAK_FOLDER={{folder}} FAILURE_LOGGER_SOAK_SECONDS={{seconds}} \
        cargo test --release --features failpoints --test soak -- --ignored --nocapture

# Four senders that never pause, while the database is locked for half of the time; 4 GB for temporary files.
flood seconds="600":
    FAILURE_LOGGER_FLOOD_SECONDS={{seconds}} cargo test --release --test flood -- --ignored --nocapture

# The search application over this repository's documents.
run:
    cargo run --release --example search_app

# Micro-benchmarks.
bench:
    cargo bench

# Bytes that each failure writes, beside those of another binary: ten minutes at one failure a second.
write-bytes old seconds="600" rate="1":
    cargo build --release
    benches/write_bytes.sh {{old}} target/release/failure-logger {{seconds}} {{rate}}

# Licences, advisories and sources of the dependencies.
deny:
    cargo deny check

# All that continuous integration does.
ci:
    bash .ci/run
