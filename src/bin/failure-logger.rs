//! The service: HTTP in, a dashboard out. Still to come; for now it says so.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "failure-logger {}: the service (HTTP in, a dashboard out) is not built yet; use the library, \
         for example as in examples/search_app.rs",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::FAILURE
}
