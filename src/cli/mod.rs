//! The command line: what can be asked of the binary, and how it ends.

mod ask;
mod backup;
mod feed;
mod ingest;
mod output;
mod redact;
mod serve;
mod settings;
mod source;
mod tls;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use output::Format;
use settings::{Flags, LogFormat, ServiceFlags};

/// Records failed retrievals, and answers how often and why they fail.
///
/// Without a command, it serves: HTTP on 127.0.0.1:4318, and an SQLite file in the current folder.
#[derive(Parser)]
#[command(name = "failure-logger", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the answer is no (check), or records were lost (serve, ingest); \
    2 the command line or a setting is wrong; 3 the database or the service cannot be reached; \
    4 unknown: there are too few attempts (check)";

#[derive(Subcommand)]
enum Command {
    /// Take failures over HTTP, and answer questions (the default)
    Serve(ServiceFlags),
    /// Store failures from standard input: a JSON object a line
    Ingest(ingest::Ingest),
    /// Show failures, the newest first
    List(ask::List),
    /// Show the last failures, and with -f those that come
    Tail(ask::Tail),
    /// Show how often retrieval fails, by strategy
    Stats(ask::Stats),
    /// Show the questions that fail most
    Top(ask::Top),
    /// Say that a failing question is resolved or ignored, or open again
    Mark(feed::Mark),
    /// Show which threshold gives which failure rate
    Calibrate(ask::Calibrate),
    /// Write failures to standard output, as JSON lines or CSV
    Export(ask::Export),
    /// Delete old failures from the database file: those past the retention, or past an age
    Purge(feed::Purge),
    /// Delete the failures of a conversation or a query for good, with the statuses of their queries
    Delete(feed::Delete),
    /// Copy the database to a new file, also beside a running service
    Backup(backup::Backup),
    /// Replace the content of the database by that of a backup, also beside a running service
    Restore(backup::Restore),
    /// Tell by the exit code whether all is well
    Check(ask::Check),
    /// Show the settings in force, and where each comes from
    Config(Config),
    /// Take over a table of the reference implementation
    Import(feed::Import),
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output, or one for each command into a folder
    Man {
        /// The folder
        folder: Option<std::path::PathBuf>,
    },
}

/// What is asked: a database file, or a service.
#[derive(Args)]
struct Target {
    /// Ask or feed a running service instead of the database file, as http://127.0.0.1:4318; https:// works, too
    #[arg(long)]
    url: Option<String>,
    /// File with the service's token (the same as the service's --token-file)
    #[arg(long, requires = "url", value_name = "FILE")]
    url_token_file: Option<std::path::PathBuf>,
    /// File with the certificates, in PEM, of the authorities to trust with https:// [default: those of the system]
    #[arg(long, requires = "url", value_name = "FILE")]
    ca_file: Option<std::path::PathBuf>,
}

#[derive(Args)]
struct Config {
    #[command(flatten)]
    style: Style,
    /// Write a TOML file with every setting, its default and its description
    #[arg(long)]
    sample: bool,
}

/// How answers are written.
#[derive(Args)]
struct Style {
    /// How to write the answer [default: a table on a terminal, JSON lines elsewhere]
    #[arg(long, value_enum)]
    format: Option<Format>,
}

impl Style {
    fn format(&self) -> Format {
        self.format.unwrap_or(if io::stdout().is_terminal() { Format::Table } else { Format::Jsonl })
    }
}

/// Why a command did not do what it was told.
#[derive(Debug)]
enum Failure {
    /// The command line or a setting is wrong.
    Usage(String),
    /// The database or the service cannot be reached, or did not answer.
    Unreachable(String),
    /// The answer is no, or records were lost.
    No(String),
    /// There is too little to tell.
    Unknown(String),
    /// The log is JSON, and so is what is said of this.
    Logged(Box<Failure>),
    /// Whoever read the output has gone: nobody is to be told.
    Unheard,
}

impl Failure {
    /// What is wrong.
    fn text(self) -> String {
        match self {
            Self::Usage(text) | Self::Unreachable(text) | Self::No(text) | Self::Unknown(text) => text,
            Self::Logged(failure) => failure.text(),
            Self::Unheard => String::new(),
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Unheard => 0,
            Self::No(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Unknown(_) => 4,
            Self::Logged(failure) => failure.exit_code(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Unheard } else { Self::Unreachable(error.to_string()) }
    }
}

impl From<crate::error::ReadError> for Failure {
    fn from(error: crate::error::ReadError) -> Self {
        match error {
            crate::error::ReadError::Invalid { .. } => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<crate::error::StartError> for Failure {
    fn from(error: crate::error::StartError) -> Self {
        match error {
            crate::error::StartError::Config(error) => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<crate::error::LoggerError> for Failure {
    fn from(error: crate::error::LoggerError) -> Self {
        Self::No(error.to_string())
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = actix_web::rt::System::new().block_on(run(cli));
    match done {
        Ok(()) | Err(Failure::Unheard) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            let line = match failure {
                Failure::Logged(failure) => {
                    let (timestamp, message) = (jiff::Timestamp::now().to_string(), failure.text());
                    serde_json::json!({"timestamp": timestamp, "level": "ERROR", "fields": {"message": message}})
                        .to_string()
                }
                failure => format!("error: {}", failure.text()),
            };
            // Nobody to tell is no reason to fail otherwise.
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::from(code)
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let (command, flags) = match cli.command {
        None => (Command::Serve(ServiceFlags::default()), cli.flags),
        Some(Command::Serve(own)) => (Command::Serve(ServiceFlags::default()), cli.flags.with(&own)),
        Some(command) => (command, cli.flags),
    };
    let settings = settings::Settings::load(&flags)?;
    match command {
        Command::Serve(_) => {
            let served = serve::serve(&settings, &flags).await;
            let is_json = settings.service.log_format == LogFormat::Json;
            served.map_err(|failure| if is_json { Failure::Logged(Box::new(failure)) } else { failure })
        }
        Command::Ingest(ingest) => ingest::ingest(&settings, &ingest).await,
        Command::List(list) => ask::list(&settings, &list).await,
        Command::Tail(tail) => ask::tail(&settings, &tail).await,
        Command::Stats(stats) => ask::stats(&settings, &stats).await,
        Command::Top(top) => ask::top(&settings, &top).await,
        Command::Mark(mark) => feed::mark(&settings, &mark).await,
        Command::Calibrate(calibrate) => ask::calibrate(&settings, &calibrate).await,
        Command::Export(export) => ask::export(&settings, &export).await,
        Command::Purge(purge) => feed::purge(&settings, &purge),
        Command::Delete(delete) => feed::delete(&settings, &delete).await,
        Command::Backup(backup) => backup::backup(&settings, &backup).await,
        Command::Restore(restore) => backup::restore(&settings, &restore).await,
        Command::Check(check) => ask::check(&settings, &check).await,
        Command::Config(config) if config.sample => Ok(io::stdout().write_all(settings::sample().as_bytes())?),
        Command::Config(config) => settings.show(config.style.format()).await,
        Command::Import(import) => feed::import(&settings, &import).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "failure-logger", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
        Command::Man { folder: Some(folder) } => Ok(clap_mangen::generate_to(Cli::command(), folder)?),
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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
