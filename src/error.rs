//! Errors by their remedy: each variant says what the caller can do. A cause that an error prints
//! is not its `source()`, so that a report of the chain prints it once.

use std::path::PathBuf;

use crate::model::stats::ShutdownReport;

/// Reason why [`FailureLogger::spawn`](crate::FailureLogger::spawn) failed. Nothing was created or
/// changed, unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Correct the setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Choose another file: this one is not an SQLite database, and it stays untouched.
    #[error("database_url = {}: not an SQLite database; name another file, or move this one away", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// Restore a backup, or choose another file: this database is damaged, and it stays untouched.
    #[error("database_url = {}: the database is damaged ({cause}); restore a backup, or name \
        another file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage, as far as it is known.
        cause: String,
    },
    /// Create the folder or grant access to it.
    #[error("database_url = {}: cannot be opened for writing ({cause}); the folder must exist and \
        be writable", path.display())]
    Inaccessible {
        /// The file.
        path: PathBuf,
        /// Message of the system.
        cause: String,
    },
    /// Choose another file: this database has a table of the same name that is not ours.
    #[error("database_url = {}: the database does not fit this version ({cause}); name another file", path.display())]
    Incompatible {
        /// The file.
        path: PathBuf,
        /// The part that does not fit.
        cause: String,
    },
    /// Call [`sqlite::run_migrations`](crate::sqlite::run_migrations), or start a logger once with
    /// [`migrate(true)`](crate::LoggerConfig::migrate): the schema is missing or too old, and this
    /// logger may not change it.
    #[error(
        "database_url = {}: the schema is missing or too old (versions found: {}; needed: {}); \
         call sqlite::run_migrations, or start once with migrate = true",
        path.display(), listed(found), listed(needed)
    )]
    SchemaTooOld {
        /// The file.
        path: PathBuf,
        /// Versions that the database has, in ascending order.
        found: Vec<String>,
        /// Versions that this program needs, in ascending order.
        needed: Vec<String>,
    },
    /// Use a newer version of this crate: one has updated the schema.
    #[error(
        "database_url = {}: the schema is too new (versions found: {}; needed: {}); \
         use a newer version of failure-logger, or name another file",
        path.display(), listed(found), listed(needed)
    )]
    SchemaTooNew {
        /// The file.
        path: PathBuf,
        /// Versions that the database has, in ascending order.
        found: Vec<String>,
        /// Versions that this program needs, in ascending order. It knows no others.
        needed: Vec<String>,
    },
    /// Do what the cause says: the server of the database cannot be reached or used. The variant
    /// occurs with the feature `postgres` alone.
    #[error("database_url = {database}: {cause}")]
    Server {
        /// The URL, without its password.
        database: String,
        /// The fault, and its remedy.
        cause: String,
    },
    /// Correct the pool, or the file that it leads to: see
    /// [`with_pool`](crate::FailureLogger::with_pool).
    #[error("cannot use the pool: {cause}")]
    Pool {
        /// The fault, and its remedy.
        cause: String,
    },
    /// Do what the [`StoreError`] says. The database file may have been created.
    #[error("cannot open the store: {0}")]
    Store(StoreError),
    /// Free a thread or file descriptors: the system refused a thread or an event loop.
    #[error("cannot start the thread of the logger: {0}")]
    Thread(std::io::Error),
}

// By hand, because a derived `From` makes the cause the source as well.
impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A setting that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value}: expected {expected}")]
#[non_exhaustive]
pub struct ConfigError {
    /// Name of the setting, or of the environment variable it came from.
    pub setting: &'static str,
    /// The given value.
    pub value: String,
    /// The accepted values.
    pub expected: &'static str,
}

/// Failure of the store, by the remedy of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Retry later: the file is locked, busy or read-only, the disk is full, or I/O failed.
    #[error("{0}")]
    Retry(String),
    /// Split the batch: the store may reject one of its rows.
    #[error("{0}")]
    Split(String),
    /// Reopen the store: the file was deleted or replaced, or the table is missing.
    #[error("{0}")]
    Reopen(String),
    /// Quarantine the file, then reopen the store: the file is damaged.
    #[error("{0}")]
    Corrupt(String),
    /// Give up: the deadline of the shutdown has passed.
    #[error("{0}")]
    GiveUp(String),
}

/// Reason why [`sqlite::run_migrations`](crate::sqlite::run_migrations) did not update a schema.
/// The database is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// Use a newer version of this crate: one has updated the schema.
    #[error(
        "the schema is too new (versions found: {}; needed: {}); use a newer version of failure-logger",
        listed(found),
        listed(needed)
    )]
    TooNew {
        /// Versions that the database has, in ascending order.
        found: Vec<String>,
        /// Versions that this program needs, in ascending order. It knows no others.
        needed: Vec<String>,
    },
    /// Call it outside of a transaction: it needs one of its own.
    #[error("a transaction is open on the connection; call sqlite::run_migrations outside of it")]
    InTransaction,
    /// Choose another database, or restore the definitions of its tables: another program created
    /// or changed them.
    #[error("the database does not fit this version: {0}")]
    Incompatible(String),
    /// Do what the [`StoreError`] says.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(versions: &[String]) -> String {
    if versions.is_empty() {
        "none".into()
    } else {
        versions.join(", ")
    }
}

/// Reason why a read of the database failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Request a shorter range of time, or raise the timeout: the read reached its deadline. With a
    /// `pool_size` of 1 that is one second.
    #[error(
        "the read took too long; request a shorter range of time, or raise the timeout of the reader"
    )]
    TimedOut,
    /// Retry later: too many reads wait, or no connection was free in time.
    #[error("too many reads at once; retry later")]
    Busy,
    /// Correct the parameters.
    #[error("{parameter} = {value}: expected {expected}")]
    Invalid {
        /// Name of the parameter.
        parameter: &'static str,
        /// The given value.
        value: String,
        /// The accepted values.
        expected: &'static str,
    },
    /// Name another file, or grant access to it.
    #[error("cannot read {}: {cause}", path.display())]
    Inaccessible {
        /// The file.
        path: PathBuf,
        /// Message of the system.
        cause: String,
    },
    /// The logger is disabled: there is no database.
    #[error("the logger is disabled, and has no database")]
    Disabled,
    /// Do what the [`StoreError`] says.
    #[error("cannot read the database: {0}")]
    Store(StoreError),
    /// Free the disk, or name another file: the export failed.
    #[error("cannot write the export: {0}")]
    Export(String),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl ReadError {
    /// Returns the error of an export.
    pub(crate) fn export(error: impl std::fmt::Display) -> Self {
        Self::Export(error.to_string())
    }
}

/// Reason why the logger does not persist records as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unhealthy {
    /// Enable it.
    #[error("the logger is disabled")]
    Disabled,
    /// Start another: it was shut down, or is being shut down.
    #[error("the logger was shut down")]
    Closed,
    /// Remove the cause: the logger cannot restart, and retries.
    #[error("cannot restart the logger, which retries: {cause}")]
    Unavailable {
        /// The last failure.
        cause: String,
    },
    /// Remove the cause: records are persisted, but attempts wait in memory.
    #[error("cannot count attempts: {cause}")]
    AttemptsRefused {
        /// Message of the store.
        cause: String,
    },
    /// Remove the cause: records wait in memory.
    #[error("no commit for {seconds} s: {cause}")]
    Stale {
        /// Seconds since the last commit.
        seconds: u64,
        /// The last failure. Empty: none, the store is only slow.
        cause: String,
    },
}

/// Reason why a call of the logger failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoggerError {
    /// Wait, or retry: the store failed. The logger keeps the records, and writes them when the
    /// store works.
    #[error("{buffered} records wait for the store: {cause}")]
    Waiting {
        /// Records that are held in memory.
        buffered: u64,
        /// Message of the store.
        cause: String,
    },
    /// Remove the cause: the logger cannot restart, and retries. It keeps the buffered records.
    #[error("cannot restart the logger, which retries: {cause}")]
    Unavailable {
        /// The last failure.
        cause: String,
    },
    /// Too late: the logger was shut down.
    #[error("the logger was shut down")]
    Closed,
    /// Raise `shutdown_timeout`, or accept the loss: the deadline passed before all records were
    /// persisted.
    #[error("{} accepted records and {} attempts were not persisted before the deadline: {cause}", report.unsaved, report.attempts_unsaved)]
    Unsaved {
        /// The persisted and the unsaved records.
        report: Box<ShutdownReport>,
        /// Reason for the delay, as far as it is known.
        cause: String,
    },
}

/// Reason why a status was not set, or failures were not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Too late: the logger was shut down, or it is disabled.
    #[error("the logger was shut down")]
    Closed,
    /// Name a query that failed, as it is stored, or the group's key.
    #[error(
        "no failure of the log has this query, or one that is similar; `top` and `/v1/queries` \
         list them"
    )]
    NotFound,
    /// Name the query as it is stored, or the group's key.
    #[error(
        "the query has {characters} characters: expected {} at most; name the query as it is \
         stored, or the group's key",
        crate::model::record::BoundedQuery::MAX_CHARACTERS
    )]
    TooLong {
        /// Characters of the query.
        characters: usize,
    },
    /// Do what the [`StoreError`] says.
    #[error("cannot change the log: {0}")]
    Store(StoreError),
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn chain_of_an_error_names_each_cause_once() {
        let store = || StoreError::Retry("database is locked".into());
        let errors: [Box<dyn Error>; 6] = [
            Box::new(StartError::from(store())),
            Box::new(StartError::Thread(std::io::Error::other(
                "database is locked",
            ))),
            Box::new(MigrationError::from(store())),
            Box::new(ReadError::from(store())),
            Box::new(ChangeError::Store(store())),
            Box::new(LoggerError::Waiting {
                buffered: 1,
                cause: "database is locked".into(),
            }),
        ];
        for error in errors {
            let mut chain = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                chain = format!("{chain}: {cause}");
                source = cause.source();
            }
            assert_eq!(chain.matches("database is locked").count(), 1, "{chain}");
        }
    }
}
