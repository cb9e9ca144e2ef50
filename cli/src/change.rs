//! Commands that change the log: `purge`, `set-status`, `delete`, `import`.
//!
//! `purge` and `import` change the database file only. `set-status` and `delete` can also ask a
//! service. A file may be in use by a service: SQLite lets one process write at a time, and the
//! others wait.
//!
//! A command on a file that needs a logger runs it without retention. A logger with the default
//! retention would purge at its start, which the command did not ask for, and could store that
//! retention in the database.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::ProgressBar;
use serde_json::json;

use failure_logger::error::{ChangeError, StoreError};
use failure_logger::program::{
    self, DatabaseLocation, Expired, ManualPurge, database_location, parse_span, query_of_group,
    without_retention,
};
use failure_logger::{Deletion, FailureLogger, QueryStatus};

use super::service::Service;
use super::settings::Settings;
use super::{CommandError, Target};

// The age is a text here and parsed by the command, so that the error names the flag and the
// expected form.
#[derive(Args)]
pub(super) struct Purge {
    /// Age of the failures to delete: a number and s, m, h, d or w, such as 30d [default: the
    /// retention in the database, also for counts of attempts]
    #[arg(long, value_name = "SPAN")]
    older_than: Option<String>,
    /// Delete failures dated more than a day in the future instead; retention does not delete them
    #[arg(long, conflicts_with = "older_than")]
    ahead: bool,
    /// Print the number of such failures and delete none
    #[arg(long)]
    dry_run: bool,
}

/// Deletes expired failures in steps of 1000 rows. Other processes can write between two steps, and
/// an interrupted purge leaves the rest for the next one.
///
/// The count comes first: it is the whole result of a dry run, and the length of the progress bar.
/// Ages are measured from the retention clock, so that a wrong system clock deletes nothing young.
pub(super) fn purge(settings: &Settings, purge: &Purge) -> Result<(), CommandError> {
    let age = purge.older_than.as_deref().map(|text| {
        parse_span(text).map_err(|expected| {
            CommandError::Usage(format!("--older-than {text}: expected {expected}"))
        })
    });
    let age = age.transpose()?;
    let expired = match age {
        None if purge.ahead => Expired::Ahead,
        None => Expired::ByRetention,
        Some(age) => Expired::OlderThan(age),
    };
    // The check comes before the open, which would create the file.
    existing(settings)?;
    let unreachable = |error: StoreError| CommandError::Unreachable(error.to_string());
    let mut manual = ManualPurge::open(&settings.logger, expired, purge.dry_run)?;
    if let Some((wall, trusted)) = manual.distrusted_clock() {
        writeln!(
            io::stderr(),
            "the system clock shows {wall}, but the retention clock is at {trusted}; ages are measured \
             from the latter until the system clock has run evenly for a day"
        )?;
    }
    let rows = manual.count().map_err(unreachable)?;
    if purge.dry_run {
        let description = match (&purge.older_than, manual.retention_days()) {
            _ if purge.ahead => "dated in the future".to_owned(),
            (Some(age), _) => format!("older than {age}"),
            (None, 0) => "past the retention (retention_days = 0 keeps all)".to_owned(),
            (None, days) => format!("older than the retention of {days} days"),
        };
        writeln!(io::stdout(), "{rows} failures are {description}")?;
        return Ok(());
    }
    let bar = if io::stderr().is_terminal() {
        ProgressBar::new(rows)
    } else {
        ProgressBar::hidden()
    };
    let rows = manual
        .run(|rows| bar.set_position(rows))
        .map_err(unreachable)?;
    bar.finish_and_clear();
    writeln!(io::stdout(), "{rows} failures deleted")?;
    Ok(())
}

#[derive(Args)]
pub(super) struct SetStatus {
    #[command(flatten)]
    target: Target,
    /// Query, or the `id` of a group from `top`
    query: String,
    /// Status of the group, which includes similar queries
    #[arg(value_parser = query_status())]
    status: QueryStatus,
}

/// Sets the status of the group of a query. The text `query` may be an id, since `top` prints ids
/// that are easier to copy than a query. The service resolves an id by itself.
///
/// The error of the change is reported after the shutdown, which releases the database in any case.
pub(super) async fn set_status(
    settings: &Settings,
    change: &SetStatus,
) -> Result<(), CommandError> {
    if let Some(url) = &change.target.url {
        // The API has two fields for the two forms.
        let name = if is_group_id(&change.query) {
            "id"
        } else {
            "query_text"
        };
        let body = json!({name: change.query, "status": change.status});
        Service::new(url, &change.target)?
            .put("/v1/queries/status", &body)
            .await?;
    } else {
        existing(settings)?;
        let logger = FailureLogger::spawn(without_retention(settings.logger.clone()))?;
        // The library sets the status by a query of the group. An id is looked up first.
        let key = match is_group_id(&change.query) {
            true => query_of_group(&logger.reader(), change.query.clone()).await?,
            false => Some(change.query.clone()),
        };
        let set = match key {
            Some(key) => logger.set_query_status(&key, change.status).await,
            None => Err(ChangeError::NotFound),
        };
        logger.shutdown().await?;
        set.map_err(|error| match error {
            ChangeError::NotFound => CommandError::Failed(error.to_string()),
            ChangeError::TooLong { .. } => CommandError::Usage(error.to_string()),
            _ => CommandError::Unreachable(error.to_string()),
        })?;
    }
    Ok(writeln!(io::stdout(), "{}", change.status)?)
}

/// Returns a parser of statuses that lists the names in errors and completions.
pub(super) fn query_status() -> impl TypedValueParser<Value = QueryStatus> {
    let names = QueryStatus::ALL.map(QueryStatus::as_str);
    PossibleValuesParser::new(names).try_map(|name| QueryStatus::parse(&name).ok_or("not a status"))
}

/// Returns `true` if `text` has the form of a group id: 16 lower-case hexadecimal digits. A query
/// of that form is improbable, and can be set over the API.
fn is_group_id(text: &str) -> bool {
    text.len() == 16
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Flag that selects the failures to erase.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct DeleteBy {
    /// Erase the failures of this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// Erase the failures with exactly this query
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
}

#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    by: DeleteBy,
}

/// Erases failures for good: the rows, the statuses of their queries, and the bytes in the file and
/// the journal.
///
/// The exit code is 1 if the rows are deleted, but their text may remain in the file. A promise to
/// a person who asked for the erasure depends on that, so that it is no warning.
pub(super) async fn delete(settings: &Settings, delete: &Delete) -> Result<(), CommandError> {
    let (name, value) = match &delete.by {
        DeleteBy {
            conversation: Some(id),
            ..
        } => ("conversation_id", id.clone()),
        DeleteBy { query, .. } => ("query_text", query.clone().unwrap_or_default()),
    };
    let (rows, statuses, is_erased) = if let Some(url) = &delete.target.url {
        let response = Service::new(url, &delete.target)?
            .delete("/v1/failures", &[(name, value)])
            .await?;
        let count = |name: &str| {
            response
                .get(name)
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0)
        };
        (
            count("rows"),
            count("statuses"),
            response.get("is_erased") == Some(&true.into()),
        )
    } else {
        existing(settings)?;
        let deletion = if name == "query_text" {
            Deletion::Query(value)
        } else {
            Deletion::Conversation(value)
        };
        let logger = FailureLogger::spawn(without_retention(settings.logger.clone()))?;
        let deleted = logger.delete(deletion).await;
        logger.shutdown().await?;
        let report = deleted.map_err(|error| CommandError::Unreachable(error.to_string()))?;
        (report.rows, report.statuses, report.is_erased)
    };
    // The numbers are printed in both cases: the rows are deleted, whatever remains of their text.
    let written = writeln!(
        io::stdout(),
        "{rows} failures and {statuses} statuses deleted"
    );
    if is_erased {
        return Ok(written?);
    }
    // A write error is ignored here: the caller must learn that text may remain.
    Err(CommandError::Failed(
        "cannot erase all deleted text: a reader holds the journal, or the file is shared \
         (retry later); a server keeps the text until its vacuum, and in its log and backups"
            .into(),
    ))
}

/// Fails if there is no database file, because an empty database has nothing to change. A misspelt
/// path would otherwise create a database, and the command would report success. A server says by
/// itself if it has no such database.
pub(super) fn existing(settings: &Settings) -> Result<(), CommandError> {
    match database_location(&settings.logger) {
        Ok(DatabaseLocation::File(path)) if path.exists() => Ok(()),
        Ok(DatabaseLocation::Server(_)) => Ok(()),
        Ok(DatabaseLocation::File(path)) => Err(CommandError::Unreachable(format!(
            "there is no database {}; set --db to the file",
            path.display()
        ))),
        Ok(DatabaseLocation::Memory) => Err(CommandError::Usage(
            "database_url = :memory:: expected a file; set --db".into(),
        )),
        Err(error) => Err(CommandError::Usage(error.to_string())),
    }
}

#[derive(Args)]
pub(super) struct Migrate {
    /// Write the SQL for PostgreSQL to standard output, and change nothing
    #[arg(long)]
    print: bool,
}

/// Creates or updates the schema, so that a service can run without the right to do so.
pub(super) fn migrate(settings: &Settings, migrate: &Migrate) -> Result<(), CommandError> {
    if migrate.print {
        return print_schema();
    }
    program::migrate(&settings.logger.clone().migrate(true))?;
    writeln!(
        io::stdout(),
        "{}: the schema is up to date",
        program::database_url(&settings.logger)
    )?;
    Ok(())
}

#[cfg(feature = "postgres")]
fn print_schema() -> Result<(), CommandError> {
    Ok(io::stdout().write_all(program::postgres_schema().as_bytes())?)
}

#[cfg(not(feature = "postgres"))]
fn print_schema() -> Result<(), CommandError> {
    Err(CommandError::Usage(
        "--print: this program was built without PostgreSQL; build it with the feature `postgres`"
            .into(),
    ))
}

#[derive(Args)]
pub(super) struct Import {
    /// Database file of the reference implementation, or the postgres:// URL of its database, which
    /// is only read
    #[arg(value_name = "PATH|URL")]
    path: PathBuf,
}

/// Copies the rows of the reference into the log. A row without an id gets one from its content, so
/// that a repeated import stores nothing twice. The number of duplicates is known after the
/// shutdown, which commits the last rows.
///
/// The reference is opened twice: once to validate it, and once to read it.
pub(super) async fn import(settings: &Settings, import: &Import) -> Result<(), CommandError> {
    use failure_logger::import::ImportError::NotAReference;
    use failure_logger::import::ImportError::Read;
    let path = program::without_password(&import.path.to_string_lossy());
    let command_error = |error| match error {
        NotAReference { .. } => CommandError::Usage(error.to_string()),
        Read(failure_logger::error::ReadError::Inaccessible { .. }) => {
            CommandError::Unreachable(error.to_string())
        }
        error => CommandError::Unreachable(format!("{path}: {error}")),
    };
    // A disabled logger validates the file first, so that a wrong path creates no empty database.
    let validator = FailureLogger::spawn(settings.logger.clone().enabled(false))?;
    if let Err(error @ (NotAReference { .. } | Read(_))) =
        validator.import_reference(&import.path).await
    {
        return Err(command_error(error));
    }
    let logger = FailureLogger::spawn(without_retention(settings.logger.clone()))?;
    let report = logger
        .import_reference(&import.path)
        .await
        .map_err(command_error);
    // The shutdown runs after an error, too, and commits the rows that were read before it.
    let duplicates = logger.shutdown().await?.stats.duplicates;
    let report = report?;
    writeln!(
        io::stdout(),
        "{} rows read, {} stored ({duplicates} of them by an earlier import), {} skipped, {} too old",
        report.read,
        report.stored,
        report.skipped,
        report.too_old
    )?;
    Ok(())
}
