//! Errors that say what to do about them.

use std::path::PathBuf;

use crate::stats::ShutdownReport;

/// Why [`FailureLogger::spawn`](crate::FailureLogger::spawn) did not start a logger. Nothing was
/// created or changed, unless the variant says so.
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
    #[error("database_url = {}: the database is damaged ({cause}); restore a backup, or name another file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage, as far as it is known.
        cause: String,
    },
    /// Create the folder or grant access to it.
    #[error("database_url = {}: cannot be opened for writing ({cause}); the folder must exist and be writable", path.display())]
    Inaccessible {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Choose another file: this database has a table of the same name that is not ours.
    #[error("database_url = {}: the database does not fit this version ({cause}); name another file", path.display())]
    Incompatible {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        cause: String,
    },
    /// Call [`sqlite::run_migrations`](crate::sqlite::run_migrations), or start a logger once with
    /// [`migrate(true)`](crate::LoggerConfig::migrate): the schema is missing or too old, and this logger may not
    /// change it.
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
    /// Correct the pool, or the file that it leads to: see
    /// [`with_pool`](crate::FailureLogger::with_pool).
    #[error("the pool cannot be used: {cause}")]
    Pool {
        /// What is wrong, and what to do about it.
        cause: String,
    },
    /// Do what the [`StoreError`] says. The database file may have been created.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The system gives no thread, or no event loop.
    #[error("the logger's thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// A setting that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value}: expected {expected}")]
#[non_exhaustive]
pub struct ConfigError {
    /// Name of the setting, or of the environment variable it came from.
    pub setting: &'static str,
    /// The value that was given.
    pub value: String,
    /// What is accepted.
    pub expected: &'static str,
}

/// Why the store did not do as it was told, by what the caller should do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Try the same again later: locked, busy, full, read-only, or an I/O error.
    #[error("{0}")]
    Retry(String),
    /// Split the batch: one of its rows may be refused.
    #[error("{0}")]
    Split(String),
    /// Open the store anew: the file was deleted or replaced, or the table is gone.
    #[error("{0}")]
    Reopen(String),
    /// Set the file aside, then open the store anew: the file is damaged.
    #[error("{0}")]
    Corrupt(String),
    /// Give up: the deadline of the shutdown has passed.
    #[error("{0}")]
    GiveUp(String),
}

/// Why [`sqlite::run_migrations`](crate::sqlite::run_migrations) did not update a schema. The database is as it was.
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
    /// Choose another database, or restore the definitions of its tables: another program created or changed them.
    #[error("the database does not fit this version: {0}")]
    Incompatible(String),
    /// Do what the [`StoreError`] says.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(versions: &[String]) -> String {
    if versions.is_empty() { "none".into() } else { versions.join(", ") }
}

/// Why a question to the database has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Ask for a shorter range of time, or allow more: the query was given up. A `pool_size` of 1 allows one second.
    #[error("the query took too long; ask for a shorter range of time, or raise the reader's timeout")]
    TimedOut,
    /// Ask again later: too many queries wait already, or no connection came free in time.
    #[error("too many queries at once; ask again later")]
    Busy,
    /// Correct the question.
    #[error("{parameter} = {value}: expected {expected}")]
    Invalid {
        /// What is wrong.
        parameter: &'static str,
        /// The value that was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Name another file, or grant access to it.
    #[error("{}: cannot be read ({cause})", path.display())]
    Inaccessible {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The logger is disabled: there is no database.
    #[error("the logger is disabled, and has no database")]
    Disabled,
    /// Do what the [`StoreError`] says.
    #[error("the database cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The file that is exported to cannot be written.
    #[error("the export cannot be written: {0}")]
    Export(String),
}

/// Why the logger does not keep what it is given as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unhealthy {
    /// Enable it.
    #[error("the logger is disabled")]
    Disabled,
    /// Start another: it was shut down, or is being shut down.
    #[error("the logger was shut down")]
    Closed,
    /// Look at the cause: it cannot be restarted, and goes on trying.
    #[error("the logger cannot be restarted and goes on trying: {cause}")]
    Unavailable {
        /// What failed last.
        cause: String,
    },
    /// Look at the cause: records are stored, but attempts wait in memory.
    #[error("attempts cannot be counted: {cause}")]
    AttemptsRefused {
        /// What the store said.
        cause: String,
    },
    /// Look at the cause: records wait, and are not written.
    #[error("nothing could be written for {seconds} s: {cause}")]
    Stale {
        /// For how long.
        seconds: u64,
        /// What failed last; empty if nothing did, and the store is only slow.
        cause: String,
    },
}

/// Why the logger did not do as it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoggerError {
    /// Wait, or ask again: the store failed, the records are kept and written when it is back.
    #[error("{buffered} records wait for the store: {cause}")]
    Waiting {
        /// Records that are held in memory.
        buffered: u64,
        /// What the store said.
        cause: String,
    },
    /// Look at the cause: the logger cannot be restarted, and goes on trying. What is buffered is kept.
    #[error("the logger cannot be restarted and goes on trying: {cause}")]
    Unavailable {
        /// What failed last.
        cause: String,
    },
    /// Too late: the logger was shut down.
    #[error("the logger was shut down")]
    Closed,
    /// Raise `shutdown_timeout`, or accept the loss: the deadline passed before everything was stored.
    #[error("{} accepted records and {} attempts were not stored before the deadline: {cause}", report.unsaved, report.attempts_unsaved)]
    Unsaved {
        /// What was stored, and what was not.
        report: Box<ShutdownReport>,
        /// Why it took so long, as far as known.
        cause: String,
    },
}

/// Why a question was not marked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// Too late: the logger was shut down, or it is disabled.
    #[error("the logger was shut down")]
    Closed,
    /// Name a query that failed, as it is stored, or the group's key.
    #[error("no failure of the log has this query, or one that is similar; `top` and `/v1/queries` list them")]
    NotFound,
    /// Name the query as it is stored, or the group's key.
    #[error(
        "the question has {characters} characters: expected {} at most; name the query as it is stored, or the group's key",
        crate::report::MAX_QUESTION_CHARACTERS
    )]
    TooLong {
        /// Characters that it has.
        characters: usize,
    },
    /// Do what the [`StoreError`] says.
    #[error("the question cannot be marked: {0}")]
    Store(#[source] StoreError),
}
