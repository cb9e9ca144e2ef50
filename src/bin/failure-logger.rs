//! Serves, feeds and asks a failure log. All of it is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    failure_logger::cli::main()
}
