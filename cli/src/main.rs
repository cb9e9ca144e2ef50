//! The command line: commands, flags and exit codes.
//!
//! The program is the service, and the tool that reads and feeds it. It holds no logic of the log:
//! each command parses its flags, calls the library or a service, and prints the result. The
//! library provides what only this program needs in `failure_logger::program`, outside of its
//! stable API.
//!
//! | file | content |
//! | --- | --- |
//! | `serve.rs`, `listen.rs`, `descriptors.rs` | the service: sockets, signals, limits |
//! | `settings.rs`, `redact.rs` | settings from flags, variables and a file |
//! | `read.rs`, `client.rs`, `output.rs` | commands that read, from a file or a service |
//! | `change.rs`, `backup.rs`, `copy.rs`, `ingest.rs` | commands that write |
//! | `service.rs`, `tls.rs` | requests to a service |
//!
//! Standard output has the result alone, so that it can be piped. Messages, progress and errors go
//! to standard error. A reader of standard output that stops early, such as `head`, is no error.
//!
//! The exit codes are an interface. A script distinguishes its own mistake (2) from an outage (3),
//! and may retry only after the latter.

// Malformed input must not cause a panic. Tests may panic to report a failure.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable
    )
)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[cfg(not(unix))]
compile_error!("cannot build the program: it needs a Unix system; use the library instead");

mod backup;
mod change;
mod client;
mod copy;
mod descriptors;
mod ingest;
mod listen;
mod log;
mod output;
mod read;
mod redact;
mod serve;
mod service;
mod settings;
mod tls;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use output::Format;
use settings::{Flags, LogFormat, ServiceFlags};

/// Records failed retrievals and reports how often and why they fail.
///
/// Without a command, the program serves HTTP on 127.0.0.1:4318 and stores its data in an SQLite
/// file in the current folder.
#[derive(Parser)]
#[command(name = "failure-logger", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

/// Exit codes, as `--help` prints them. [`CommandError`] assigns them.
const EXIT_CODES: &str = "Exit codes: 0 success; 1 the check failed (check), \
    records were dropped or rejected (serve, ingest), or nothing matched; \
    2 the command line or a setting is invalid; 3 the database or the service cannot be reached; \
    4 too few attempts for a result (check)";

// The documentation of the commands and flags is their help. It is written for users, without a
// full stop at the end of a single sentence.
#[derive(Subcommand)]
enum Command {
    /// Run the HTTP service (the default)
    Serve(ServiceFlags),
    /// Store failures from standard input: JSON lines, CSV or queries of User Behavior Insights
    Ingest(ingest::Ingest),
    /// Show failures, newest first
    List(read::List),
    /// Show the last failures; with -f, also new ones as they arrive
    Tail(read::Tail),
    /// Show failure rates and latencies by strategy
    Stats(read::Stats),
    /// Show the groups of queries that fail most often
    Top(read::Top),
    /// Set the status of a group of failing queries: open, resolved or ignored
    #[command(alias = "mark")]
    SetStatus(change::SetStatus),
    /// Show the failure rate at each confidence threshold
    Calibrate(read::Calibrate),
    /// Write failures to standard output, as JSON lines or CSV
    Export(read::Export),
    /// Delete failures that are older than the retention or a given age from the database file
    Purge(change::Purge),
    /// Erase the failures of a conversation or a query, with the statuses of their queries
    Delete(change::Delete),
    /// Copy the database to a new file; a service may keep running
    Backup(backup::Backup),
    /// Replace the content of the database by that of a backup; a service may keep running
    Restore(backup::Restore),
    /// Copy the log to another database: from a file to PostgreSQL, back, or to another file
    Copy(copy::Copy),
    /// Check readiness and failure rate; the exit code is the result
    Check(read::Check),
    /// Show the effective settings and the origin of each
    Config(Config),
    /// Create or update the schema of the database, or write its SQL
    Migrate(change::Migrate),
    /// Import the table of the reference implementation
    Import(change::Import),
    /// Write a completion script to standard output
    Completions {
        /// Shell that reads the script
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output, or one page for each command into a folder
    Man {
        /// Folder for the pages
        folder: Option<std::path::PathBuf>,
    },
}

/// Flags that select a service in place of the database file.
#[derive(Args)]
struct Target {
    /// Address of a running service to use instead of the database file, such as
    /// http://127.0.0.1:4318 or https://fl.example
    #[arg(long)]
    url: Option<String>,
    /// File with the token of the service, in the format of the service's --token-file
    #[arg(long, requires = "url", value_name = "FILE")]
    url_token_file: Option<std::path::PathBuf>,
    /// PEM file with the certificate authorities to trust for https:// [default: those of the
    /// system]
    #[arg(long, requires = "url", value_name = "FILE")]
    ca_file: Option<std::path::PathBuf>,
    /// Allow sending the token over unencrypted HTTP to another host
    #[arg(long, requires = "url")]
    insecure: bool,
}

#[derive(Args)]
struct Config {
    #[command(flatten)]
    style: Style,
    /// Write a TOML file of all settings with their defaults and descriptions
    #[arg(long)]
    sample: bool,
}

/// Flag that selects the output format.
#[derive(Args)]
struct Style {
    /// Output format [default: table on a terminal, jsonl elsewhere]
    #[arg(long, value_enum)]
    format: Option<Format>,
}

impl Style {
    /// A table is for people. Another program gets JSON lines without a flag, because it would have
    /// to parse columns whose width depends on their content.
    fn format(&self) -> Format {
        self.format.unwrap_or(if io::stdout().is_terminal() {
            Format::Table
        } else {
            Format::Jsonl
        })
    }
}

/// Unsuccessful end of a command. Each variant but `Logged` has one exit code. The variant says who
/// has to act: the user, the operator or the caller of the check. The text names the cause and the
/// remedy.
#[derive(Debug)]
enum CommandError {
    /// The command line or a setting is invalid: exit code 2.
    Usage(String),
    /// The database or the service cannot be reached: exit code 3.
    Unreachable(String),
    /// A check failed, nothing matched, or records were dropped or rejected: exit code 1.
    Failed(String),
    /// There are too few attempts for a result: exit code 4.
    Inconclusive(String),
    /// An error that is printed as a JSON log line, because `log_format = json`.
    Logged(Box<CommandError>),
    /// The reader of standard output closed the pipe, such as `head`: exit code 0, no message.
    OutputClosed,
}

impl CommandError {
    /// Returns the message without a prefix.
    fn text(self) -> String {
        match self {
            Self::Usage(text)
            | Self::Unreachable(text)
            | Self::Failed(text)
            | Self::Inconclusive(text) => text,
            Self::Logged(error) => error.text(),
            Self::OutputClosed => String::new(),
        }
    }

    /// The codes are part of the interface, and documented in [`EXIT_CODES`].
    fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Inconclusive(_) => 4,
            Self::Logged(error) => error.exit_code(),
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        // Rust ignores SIGPIPE, so that a closed pipe arrives as an error of the write.
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Unreachable(error.to_string())
        }
    }
}

impl From<failure_logger::error::ReadError> for CommandError {
    fn from(error: failure_logger::error::ReadError) -> Self {
        match error {
            failure_logger::error::ReadError::Invalid { .. } => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<failure_logger::StartError> for CommandError {
    fn from(error: failure_logger::StartError) -> Self {
        match error {
            failure_logger::StartError::Config(error) => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<failure_logger::LoggerError> for CommandError {
    fn from(error: failure_logger::LoggerError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One event loop runs all commands, because several of them use the HTTP client of actix. The
/// workers of `serve` have event loops of their own.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = actix_rt::System::new().block_on(run(cli));
    match result {
        Ok(()) | Err(CommandError::OutputClosed) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            // A message may quote a service or an input line: control characters are escaped.
            let line = match error {
                CommandError::Logged(error) => {
                    let (timestamp, message) = (jiff::Timestamp::now().to_string(), error.text());
                    serde_json::json!({"timestamp": timestamp, "level": "ERROR", "fields": {"message": message}})
                        .to_string()
                }
                error => format!("error: {}", output::escaped_lines(&error.text())),
            };
            // A closed standard error does not change the exit code.
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::from(code)
        }
    }
}

/// Runs the command. The settings are read once for all commands, so that an invalid setting is an
/// error even of a command that does not use it: a script finds it before the service does.
async fn run(cli: Cli) -> Result<(), CommandError> {
    let (command, flags) = match cli.command {
        None => (Command::Serve(ServiceFlags::default()), cli.flags),
        Some(Command::Serve(service_flags)) => (
            Command::Serve(ServiceFlags::default()),
            cli.flags.with(&service_flags),
        ),
        Some(command) => (command, cli.flags),
    };
    // The handlers are installed first: without them, SIGHUP would end the process.
    let signals = match command {
        Command::Serve(_) => Some(serve::Signals::listen()?),
        _ => None,
    };
    let settings = settings::Settings::load(&flags)?;
    match command {
        Command::Serve(_) => {
            let signals = signals.map_or_else(serve::Signals::listen, Ok)?;
            let served = serve::serve(&settings, &flags, signals).await;
            let is_json = settings.service.log_format == LogFormat::Json;
            served.map_err(|error| {
                if is_json {
                    CommandError::Logged(Box::new(error))
                } else {
                    error
                }
            })
        }
        Command::Ingest(ingest) => ingest::ingest(&settings, &ingest).await,
        Command::List(list) => read::list(&settings, &list).await,
        Command::Tail(tail) => read::tail(&settings, &tail).await,
        Command::Stats(stats) => read::stats(&settings, &stats).await,
        Command::Top(top) => read::top(&settings, &top).await,
        Command::SetStatus(set) => change::set_status(&settings, &set).await,
        Command::Calibrate(calibrate) => read::calibrate(&settings, &calibrate).await,
        Command::Export(export) => read::export(&settings, &export).await,
        Command::Purge(purge) => change::purge(&settings, &purge),
        Command::Delete(delete) => change::delete(&settings, &delete).await,
        Command::Backup(backup) => backup::backup(&settings, &backup).await,
        Command::Restore(restore) => backup::restore(&settings, &restore).await,
        Command::Copy(copy) => copy::copy(&settings, &copy).await,
        Command::Check(check) => read::check(&settings, &check).await,
        Command::Config(config) if config.sample => {
            Ok(io::stdout().write_all(settings::sample().as_bytes())?)
        }
        Command::Config(config) => settings.show(config.style.format()).await,
        Command::Migrate(migrate) => change::migrate(&settings, &migrate),
        Command::Import(import) => change::import(&settings, &import).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "failure-logger", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
        Command::Man {
            folder: Some(folder),
        } => Ok(clap_mangen::generate_to(Cli::command(), folder)?),
        Command::Man { folder: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            Ok(io::stdout().write_all(&page)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
