//! Items that only the program in cli/ and the targets in fuzz/ use, beyond the API. They may change
//! in any version.
//!
//! The module exists because these are packages of their own and can use public items alone. It is
//! hidden from the documentation and behind a feature, so that no application comes to depend on it.

use std::path::{Path, PathBuf};

use crate::config::{Location, LoggerConfig};
use crate::database_url::redacted;
use crate::error::{ConfigError, ReadError, StartError};
use crate::handle::LoggerHandle;
use crate::http::ops::health;
use crate::http::wire::otlp::{JsonRequest, ProtobufReader, Step};
use crate::http::{HttpOptions, Scope, Token};
use crate::report::FailureReader;
use crate::store;

pub use crate::copy::{Content, CopiedTable, CopyError, CopyPhase, CopyReport};
pub use crate::http::wire::counts::CountLine;
pub use crate::http::wire::lines::{Line, Lines, separator};
pub use crate::http::wire::{RejectReason, Rejected, Sent};
pub use crate::http::{
    NamedToken, PeriodBounds, VERSION_HEADER, parse_labels, parse_moment, parse_span,
};
pub use crate::pipeline::manual_purge::{Expired, ManualPurge};
pub use crate::report::{first_of_group, guarded, without_guards};
pub use crate::similarity::normalized;
pub use crate::store::sqlite::backup::{BackupError, Restored, Temporary, back_up};

/// Number of steps and spans in an export of OpenTelemetry, up to the first fault. A step is a
/// retrieval, or a span that is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceCounts {
    pub steps: usize,
    pub spans: u64,
}

/// Reads an export as protobuf in chunks. The targets in fuzz/ call this, because the reader is
/// private.
pub fn read_protobuf_traces(body: &[u8], chunk_bytes: usize) -> TraceCounts {
    let (mut reader, mut steps) = (ProtobufReader::new(), 0);
    'body: for chunk in body.chunks(chunk_bytes.max(1)) {
        reader.push(chunk);
        loop {
            match reader.next() {
                Ok(Step::End) => break,
                Ok(Step::Retrieval(_) | Step::Rejected(_)) => steps += 1,
                Err(_) => break 'body,
            }
        }
    }
    // The end of the body within a field is a fault, too, and the spans before it stay.
    let _ = reader.finish();
    TraceCounts {
        steps,
        spans: reader.spans(),
    }
}

/// Reads an export as JSON, for the targets in fuzz/. Nothing counts in an invalid body.
pub fn read_json_traces(body: &[u8]) -> TraceCounts {
    let request = JsonRequest::parse(&String::from_utf8_lossy(body)).unwrap_or_default();
    TraceCounts {
        steps: request.steps.len(),
        spans: request.spans,
    }
}

/// Location of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseLocation {
    File(PathBuf),
    Memory,
    /// A server, by its URL without a password.
    Server(String),
}

/// Checks the settings, and returns the location of the database.
///
/// # Errors
///
/// [`ConfigError`] names the setting that is not accepted.
pub fn database_location(config: &LoggerConfig) -> Result<DatabaseLocation, ConfigError> {
    Ok(match config.validate()? {
        Location::File(path) => DatabaseLocation::File(path),
        Location::Memory => DatabaseLocation::Memory,
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => DatabaseLocation::Server(url.to_string()),
    })
}

/// Returns a reader of the database that `config` names. The first read opens it.
///
/// # Errors
///
/// [`ConfigError`] names the setting that is not accepted.
pub fn reader(config: &LoggerConfig) -> Result<FailureReader, ConfigError> {
    let reads = store::reads_at(&config.validate()?, config.pool_size);
    Ok(FailureReader::new(reads))
}

/// Opens the database once, which creates or updates its schema, and closes it.
///
/// # Errors
///
/// [`StartError`] as that of [`spawn`](crate::FailureLogger::spawn).
pub fn migrate(config: &LoggerConfig) -> Result<(), StartError> {
    let mut store = store::backend(&config.validate()?, 1, config.migrate).open()?;
    store.close();
    Ok(())
}

/// Returns the statements that create the tables in PostgreSQL, for an operator who runs them.
#[cfg(feature = "postgres")]
pub fn postgres_schema() -> String {
    store::postgres::migrate::script()
}

/// Returns a refusal of a setting.
pub fn refused(setting: &'static str, value: String, expected: &'static str) -> ConfigError {
    ConfigError {
        setting,
        value,
        expected,
    }
}

/// Returns the database as the settings name it, without a password.
pub fn database_url(config: &LoggerConfig) -> String {
    config.database_url.to_string()
}

/// Returns a `database_url` without its password.
pub fn without_password(url: &str) -> String {
    redacted(url)
}

/// Copies the log in the database `from`, or in that of `config`, to the database `to`, and
/// compares both. `progress` is called after each chunk, with the phase, and the rows that are done
/// and that there are. `config` says whether the schema of `to` may be changed.
///
/// # Errors
///
/// See [`CopyError`]. What was copied stays, and the next call resumes.
pub fn copy(
    config: &LoggerConfig,
    from: Option<String>,
    to: String,
    progress: &mut dyn FnMut(CopyPhase, u64, u64),
) -> Result<CopyReport, CopyError> {
    // With the timeouts and the other settings of connections.
    let location = |url: String| {
        let mut config = config.clone();
        config.database_url.replace(url);
        config.validate()
    };
    let from = from.map_or_else(|| config.validate(), location)?;
    crate::copy::copy(&from, &location(to)?, config.migrate, progress)
}

/// Replaces the log in the database of `config` by that of `backup`, in one transaction. A missing
/// database is created, a damaged one is renamed.
///
/// # Errors
///
/// [`BackupError`] says which of both is at fault. The database stays as it was.
pub fn restore(
    backup: &Path,
    config: &LoggerConfig,
    work: &Temporary,
) -> Result<Restored, BackupError> {
    let Location::File(path) = config
        .validate()
        .map_err(|error| BackupError::Target(error.into()))?
    else {
        return Err(BackupError::Same(backup.into()));
    };
    store::sqlite::backup::restore(backup, &path, config.migrate, work)
}

/// Returns the configuration of a logger that leaves the retention of the database alone, and
/// purges nothing.
pub fn without_retention(config: LoggerConfig) -> LoggerConfig {
    config.without_retention()
}

/// Returns the days for which the database keeps failures and counts of attempts, as far as a
/// logger set them.
///
/// # Errors
///
/// [`ReadError`], if the database cannot be read.
pub async fn stored_retention(reader: &FailureReader) -> Result<[Option<u32>; 2], ReadError> {
    let stored = reader.retention().await?;
    Ok([stored.failures_days, stored.attempts_days])
}

/// Returns a query of the group with this id, if there is one.
///
/// # Errors
///
/// [`ReadError`], if the database cannot be read.
pub async fn query_of_group(
    reader: &FailureReader,
    id: String,
) -> Result<Option<String>, ReadError> {
    reader.key_of_group(id).await
}

/// Returns the options of a service that has its listeners for itself.
pub fn alone(options: HttpOptions) -> HttpOptions {
    options.alone()
}

/// Returns the scopes that need a token by `before`, and none by `after`.
pub fn opened_scopes(before: &HttpOptions, after: &HttpOptions) -> Vec<Scope> {
    before.opened_by(after)
}

/// Returns `true` if the actor and the workers have run within the last seconds.
pub fn is_alive(logger: &LoggerHandle, options: &HttpOptions) -> bool {
    health::is_alive(logger, options)
}

/// Returns the secret itself, to be sent to a service.
pub fn reveal(token: &Token) -> &str {
    token.reveal()
}
