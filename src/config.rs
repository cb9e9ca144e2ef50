//! The settings, their defaults and their limits.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::database_url::DatabaseUrl;
use crate::error::ConfigError;
use crate::model::record::RetrievalFailureRecord;
#[cfg(feature = "postgres")]
use crate::server::ServerConfig;

/// Database file, in the current folder.
pub const DEFAULT_DATABASE_URL: &str = "retrieval-failures.db";
/// Records held in memory at most.
pub const DEFAULT_BUFFER_CAPACITY: usize = 8192;
/// Records that are written at once, without waiting for the timer.
pub const DEFAULT_BATCH_SIZE: usize = 256;
/// Longest wait of a record before it is written.
pub const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Age at which rows are deleted, in days, until a logger sets another one.
pub const DEFAULT_RETENTION_DAYS: u32 = 90;
/// Age at which counts of attempts are deleted, in days, until a logger sets another one.
pub const DEFAULT_ATTEMPTS_RETENTION_DAYS: u32 = 400;
/// Flushes between two purges.
pub const DEFAULT_CLEANUP_EVERY: u32 = 500;
/// Connections to the database at most, once started.
pub const DEFAULT_POOL_SIZE: u32 = 4;
/// Strategies that are counted by themselves.
pub const DEFAULT_MAX_STRATEGIES: usize = 64;
/// Longest time of a connect to a server.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time of a statement that writes to a server.
pub const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time of a shutdown.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The first and the longest pause between two attempts after a failure.
pub const DEFAULT_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(5));

/// Divisor: the mailbox has an eighth of the buffer, unless its capacity is set.
const DEFAULT_MAILBOX_SHARE: usize = 8;
/// Limits in records. The queue is allocated at the start, with a slot for each record.
const BUFFER_CAPACITY: RangeInclusive<usize> = 1..=1 << 20;
/// Limits in connections. Each has a page cache of up to 8 MB and, if it reads, a thread.
const POOL_SIZE: RangeInclusive<u32> = 1..=64;
/// Limits in bytes. PostgreSQL cuts a longer name.
const APPLICATION_NAME_BYTES: RangeInclusive<usize> = 1..=63;
/// Limits in strategies. Each takes a few buckets a minute, and its name is a label in the metrics.
const MAX_STRATEGIES: RangeInclusive<usize> = 1..=1024;
/// Smallest bound of the database, in bytes: 1 MiB. The tables alone take about 200 kB, and a purge
/// by size needs rows that it can delete.
const LEAST_DATABASE_BYTES: u64 = 1 << 20;
/// Longest duration of a setting: a day. `Instant` overflows at durations that are thousands of
/// years long, and this bound keeps every sum of settings far below.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Shared by clones of a configuration. Called by any thread of the application, several at once.
type Redactor = Arc<dyn Fn(&mut RetrievalFailureRecord) + Send + Sync>;

/// Settings of a logger. Defaults serve; nothing is checked before
/// [`FailureLogger::spawn`](crate::FailureLogger::spawn).
///
/// ```
/// use std::time::Duration;
/// use failure_logger::LoggerConfig;
///
/// let config = LoggerConfig::new("failures.db")
///     .retention_days(30)
///     .flush_interval(Duration::from_millis(250))
///     .redactor(|record| record.error_context = None);
/// ```
///
/// With serde, durations are whole milliseconds (`flush_interval_ms`), and unknown keys are errors. A
/// serialised configuration has `***` in the place of a password in its `database_url`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use = "a configuration does nothing until it is given to `FailureLogger::spawn`"]
pub struct LoggerConfig {
    /// As it was given; [`Location::parse`] reads it.
    pub(crate) database_url: DatabaseUrl,
    /// Records, those of the batch that is being written included.
    pub(crate) buffer_capacity: usize,
    /// `None`: an eighth of the buffer.
    pub(crate) mailbox_capacity: Option<usize>,
    /// Records that wake a sleeping writer. At most the capacity of the buffer: a larger number would
    /// never be reached.
    pub(crate) batch_size: usize,
    #[serde(rename = "flush_interval_ms", with = "milliseconds")]
    pub(crate) flush_interval: Duration,
    /// `None`: as the database says.
    pub(crate) retention_days: Option<u32>,
    /// `None`: as the database says.
    pub(crate) attempts_retention_days: Option<u32>,
    /// Flushes between two purges.
    pub(crate) cleanup_every: u32,
    /// Connections, at most.
    pub(crate) pool_size: u32,
    #[serde(rename = "connect_timeout_ms", with = "milliseconds")]
    pub(crate) connect_timeout: Duration,
    #[serde(rename = "statement_timeout_ms", with = "milliseconds")]
    pub(crate) statement_timeout: Duration,
    /// `None`: that of the environment, or the name of the program.
    pub(crate) application_name: Option<String>,
    /// `false`: for a pooler that does not keep track of prepared statements.
    pub(crate) prepared_statements: bool,
    /// Strategies that are counted by themselves.
    pub(crate) max_strategies: usize,
    /// 0: no bound.
    pub(crate) max_database_bytes: u64,
    #[serde(rename = "shutdown_timeout_ms", with = "milliseconds")]
    pub(crate) shutdown_timeout: Duration,
    #[serde(rename = "first_backoff_ms", with = "milliseconds")]
    pub(crate) first_backoff: Duration,
    #[serde(rename = "longest_backoff_ms", with = "milliseconds")]
    pub(crate) longest_backoff: Duration,
    /// `false`: the application updates the schema.
    pub(crate) migrate: bool,
    /// `false`: there is no thread, no database and no count.
    pub(crate) enabled: bool,
    /// Not part of a serialised configuration, because a closure has no text.
    #[serde(skip)]
    pub(crate) redactor: Option<Redactor>,
    /// `true` if the logger deletes old rows and writes its retention to the database. Commands
    /// that only bring something in do neither.
    #[serde(skip)]
    pub(crate) applies_retention: bool,
}

impl LoggerConfig {
    /// Returns default settings for the database at `database_url`: a path, `sqlite:PATH`,
    /// `sqlite://PATH`, or `:memory:` for one that ends with the logger. With the feature
    /// `postgres` also `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with the parameters of libpq
    /// behind a `?`.
    pub fn new(database_url: impl Into<String>) -> Self {
        Self {
            database_url: DatabaseUrl::from(database_url.into()),
            ..Self::default()
        }
    }

    /// Defaults, overridden by the environment: `FAILURE_LOGGER_` and the name of the setting in
    /// capitals, durations in milliseconds with `_MS` behind it, for example
    /// `FAILURE_LOGGER_DATABASE_URL` and `FAILURE_LOGGER_FLUSH_INTERVAL_MS`.
    ///
    /// Setters called on the result take precedence.
    ///
    /// ```no_run
    /// use failure_logger::LoggerConfig;
    ///
    /// // The environment decides everything but the retention.
    /// let config = LoggerConfig::from_env()?.retention_days(30);
    /// # Ok::<(), failure_logger::error::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A variable that cannot be parsed.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(|name| {
            std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
        })
    }

    /// Reads the settings from `variable`, which the tests replace. A variable that is unset leaves
    /// the default. One that is set and empty does not: a number fails to parse, and an empty path
    /// fails [`Self::validate`].
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        fn set<T: FromStr>(
            field: &mut T,
            name: &'static str,
            value: Option<String>,
            expected: &'static str,
        ) -> Result<(), ConfigError> {
            if let Some(value) = value {
                *field = value.trim().parse().map_err(|_| ConfigError {
                    setting: name,
                    value,
                    expected,
                })?;
            }
            Ok(())
        }
        macro_rules! read_optional {
            ($field:expr, $name:literal, $expected:literal) => {
                if let Some(text) = variable($name) {
                    set($field.get_or_insert_default(), $name, Some(text), $expected)?;
                }
            };
        }
        macro_rules! read {
            ($field:expr, $name:literal, $expected:literal) => {
                set(&mut $field, $name, variable($name), $expected)?
            };
            (ms $field:expr, $name:literal) => {
                let mut ms = milliseconds::whole(&$field);
                read!(ms, $name, "a whole number of milliseconds");
                $field = Duration::from_millis(ms);
            };
        }
        let mut config = Self::default();
        if let Some(url) = variable("FAILURE_LOGGER_DATABASE_URL") {
            config.database_url.replace(url.trim().to_owned());
        }
        read!(
            config.buffer_capacity,
            "FAILURE_LOGGER_BUFFER_CAPACITY",
            "a whole number"
        );
        read_optional!(
            config.mailbox_capacity,
            "FAILURE_LOGGER_MAILBOX_CAPACITY",
            "a whole number"
        );
        read!(
            config.batch_size,
            "FAILURE_LOGGER_BATCH_SIZE",
            "a whole number"
        );
        read!(ms config.flush_interval, "FAILURE_LOGGER_FLUSH_INTERVAL_MS");
        read_optional!(
            config.retention_days,
            "FAILURE_LOGGER_RETENTION_DAYS",
            "a whole number of days"
        );
        read_optional!(
            config.attempts_retention_days,
            "FAILURE_LOGGER_ATTEMPTS_RETENTION_DAYS",
            "a whole number of days"
        );
        read!(
            config.cleanup_every,
            "FAILURE_LOGGER_CLEANUP_EVERY",
            "a whole number"
        );
        read!(
            config.pool_size,
            "FAILURE_LOGGER_POOL_SIZE",
            "a whole number"
        );
        read!(ms config.connect_timeout, "FAILURE_LOGGER_CONNECT_TIMEOUT_MS");
        read!(ms config.statement_timeout, "FAILURE_LOGGER_STATEMENT_TIMEOUT_MS");
        read_optional!(
            config.application_name,
            "FAILURE_LOGGER_APPLICATION_NAME",
            "a name"
        );
        read!(
            config.prepared_statements,
            "FAILURE_LOGGER_PREPARED_STATEMENTS",
            "true or false"
        );
        read!(
            config.max_strategies,
            "FAILURE_LOGGER_MAX_STRATEGIES",
            "a whole number"
        );
        read!(
            config.max_database_bytes,
            "FAILURE_LOGGER_MAX_DATABASE_BYTES",
            "a number of bytes"
        );
        read!(ms config.shutdown_timeout, "FAILURE_LOGGER_SHUTDOWN_TIMEOUT_MS");
        read!(ms config.first_backoff, "FAILURE_LOGGER_FIRST_BACKOFF_MS");
        read!(ms config.longest_backoff, "FAILURE_LOGGER_LONGEST_BACKOFF_MS");
        read!(config.migrate, "FAILURE_LOGGER_MIGRATE", "true or false");
        read!(config.enabled, "FAILURE_LOGGER_ENABLED", "true or false");
        Ok(config)
    }

    /// Sets the largest number of records in memory, 1 to 1,048,576. Further records are dropped.
    /// Default: 8192.
    pub fn buffer_capacity(mut self, records: usize) -> Self {
        self.buffer_capacity = records;
        self
    }

    /// Sets the largest number of records in the actor's mailbox, 1 to the buffer's capacity.
    /// `try_send` hands further records back. The mailbox is part of `buffer_capacity`: once the
    /// actor's address is in use, [`log`](crate::LoggerHandle::log) and monitors leave twice this
    /// number of places for what is sent to it, because a full mailbox is read on into the buffer.
    /// Default: an eighth of the buffer.
    ///
    /// ```
    /// use failure_logger::LoggerConfig;
    ///
    /// // Of 8192 places, 1000 are kept for the mailbox once its address is in use.
    /// let config = LoggerConfig::new("failures.db").buffer_capacity(8192).mailbox_capacity(500);
    /// ```
    pub fn mailbox_capacity(mut self, records: usize) -> Self {
        self.mailbox_capacity = Some(records);
        self
    }

    /// Returns the capacity of the mailbox while the buffer has room, at least 1.
    pub(crate) fn mailbox_places(&self) -> usize {
        self.mailbox_capacity
            .unwrap_or(self.buffer_capacity / DEFAULT_MAILBOX_SHARE)
            .max(1)
    }

    /// Returns the places of the buffer that only records from the mailbox may take: twice its
    /// capacity, because senders may fill it once more while its content moves to the buffer. One
    /// place is left for a call.
    pub(crate) fn mailbox_reserve(&self) -> usize {
        (2 * self.mailbox_places()).min(self.buffer_capacity - 1)
    }

    /// Sets the number of records that starts a flush without waiting for the timer; at most the
    /// buffer's capacity. Default: 256.
    pub fn batch_size(mut self, records: usize) -> Self {
        self.batch_size = records;
        self
    }

    /// Sets the longest wait of a record before it is written; 1 ms to 1 day. Default: 100 ms.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// Sets the age at which rows are deleted, in days; 0 keeps every row.
    ///
    /// The logger writes this to the database at its start, where every logger and command that
    /// uses the database finds it. Default: what the database says, which is 90 until a logger says
    /// otherwise.
    pub fn retention_days(mut self, days: u32) -> Self {
        self.retention_days = Some(days);
        self
    }

    /// Sets the age at which counts of attempts are deleted, in days; 0 keeps them. Minutes are
    /// kept for at most 7 days and hours for at most 90, because the days include them. Kept in the
    /// database like [`retention_days`](Self::retention_days). Default: what the database says, at
    /// first 400.
    pub fn attempts_retention_days(mut self, days: u32) -> Self {
        self.attempts_retention_days = Some(days);
        self
    }

    /// Makes a logger that deletes no row for its age, and leaves the retention in the database as
    /// it is.
    #[cfg(feature = "program")]
    pub(crate) fn without_retention(mut self) -> Self {
        self.applies_retention = false;
        self
    }

    /// Sets the number of flushes between two purges; at least 1. Old rows are also purged at start
    /// and hourly. Default: 500.
    pub fn cleanup_every(mut self, flushes: u32) -> Self {
        self.cleanup_every = flushes;
        self
    }

    /// Sets the largest number of connections to the database after the start, 1 to 64. They are
    /// opened as they are needed. Default: 4.
    ///
    /// The writer, the [reader](crate::LoggerHandle::reader) of the same logger and checkpoints
    /// share them. Readers and checkpoints leave one to the writer. With 1 they take turns with it,
    /// and a query ends after one second, whatever its reader's timeout. Above 4, each connection
    /// more is one for a query more at the same time.
    ///
    /// A database in memory has one, and another one that keeps it alive and does nothing.
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.pool_size = connections;
        self
    }

    /// Sets the longest time of a connect to a PostgreSQL server, 1 ms to 1 day, rounded up to
    /// seconds. A `connect_timeout` of the URL takes precedence. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the longest time of one statement that writes to a PostgreSQL server, 1 ms to 1 day.
    /// The server ends a longer one, and the logger retries it. A migration of large tables may need
    /// more. A read has the timeout of its reader instead. Default: 60 s.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// Sets the name under which a PostgreSQL server lists the connections, 1 to 63 bytes. An
    /// `application_name` of the URL takes precedence. Default: that of the variable `PGAPPNAME`, or
    /// `failure-logger`.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// Sets whether statements stay prepared on connections to a PostgreSQL server. `false` is for a
    /// pooler in transaction mode that does not keep track of them, such as pgbouncer before 1.21.
    /// Default: `true`.
    pub fn prepared_statements(mut self, keep: bool) -> Self {
        self.prepared_statements = keep;
        self
    }

    /// Sets the largest size of the database, in bytes. If it is larger, its oldest failures are
    /// deleted, however young, and the file shrinks. Counts stay. The journal comes on top. 0: no
    /// bound. Without effect on a database in which an application has tables. Default: 0.
    pub fn max_database_bytes(mut self, bytes: u64) -> Self {
        self.max_database_bytes = bytes;
        self
    }

    /// Sets the number of strategies that are counted by themselves, 1 to 1024, in the order in
    /// which they come after a start. The rest are counted together, as `[other strategies]`; their
    /// failures keep their names in the log. Default: 64.
    pub fn max_strategies(mut self, strategies: usize) -> Self {
        self.max_strategies = strategies;
        self
    }

    /// Sets the longest time of [`shutdown`](crate::LoggerHandle::shutdown); 1 ms to 1 day.
    /// Default: 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets the first and the longest pause between two attempts, after the store failed or the
    /// actor had to be restarted; each pause is about twice the one before. 1 ms to 1 day. Default:
    /// 50 ms and 5 s.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.first_backoff, self.longest_backoff) = (first, longest);
        self
    }

    /// Runs in the caller on each record before it is queued, to take out what must not be stored.
    /// If it panics, the panic is caught and the record's text is replaced. Default: none.
    ///
    /// ```
    /// use failure_logger::LoggerConfig;
    ///
    /// let config = LoggerConfig::new(":memory:").redactor(|record| {
    ///     if record.query_text.contains('@') {
    ///         record.query_text = "[an address]".into();
    ///     }
    ///     record.error_context = None;
    /// });
    /// ```
    pub fn redactor(
        mut self,
        redact: impl Fn(&mut RetrievalFailureRecord) + Send + Sync + 'static,
    ) -> Self {
        self.redactor = Some(Arc::new(redact));
        self
    }

    /// Sets whether the logger may change the schema. `false`: it never creates or changes it. A
    /// schema that is missing or too old is an error then
    /// ([`StartError::SchemaTooOld`](crate::StartError::SchemaTooOld)); the application updates it
    /// when it wants, by [`sqlite::run_migrations`](crate::sqlite::run_migrations). Without effect
    /// on `:memory:`, which begins empty. Default: `true`, the logger updates the schema when it
    /// opens the database.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Turns the logger off with `false`: its handle does nothing and opens nothing. Default:
    /// `true`.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Checks every setting, and returns the location of the database.
    ///
    /// # Errors
    ///
    /// The first setting that is not accepted, with its value and the accepted range.
    pub(crate) fn validate(&self) -> Result<Location, ConfigError> {
        self.validate_without_url()?;
        let location = Location::parse(&self.database_url)?;
        #[cfg(feature = "postgres")]
        if let Location::Postgres(server) = location {
            return Ok(Location::Postgres(ServerConfig {
                url: server.url,
                connect_timeout: self.connect_timeout,
                statement_timeout: self.statement_timeout,
                application_name: self.application_name.clone(),
                prepared_statements: self.prepared_statements,
            }));
        }
        Ok(location)
    }

    /// Checks every setting but the `database_url`.
    pub(crate) fn validate_without_url(&self) -> Result<(), ConfigError> {
        let refuse = |setting, value: &dyn fmt::Display, expected| {
            Err(ConfigError {
                setting,
                value: value.to_string(),
                expected,
            })
        };
        if !BUFFER_CAPACITY.contains(&self.buffer_capacity) {
            return refuse(
                "buffer_capacity",
                &self.buffer_capacity,
                "1 to 1048576 records",
            );
        }
        if let Some(records) = self.mailbox_capacity
            && !(1..=self.buffer_capacity).contains(&records)
        {
            return refuse(
                "mailbox_capacity",
                &records,
                "1 record to the buffer_capacity",
            );
        }
        if !(1..=self.buffer_capacity).contains(&self.batch_size) {
            return refuse(
                "batch_size",
                &self.batch_size,
                "1 record to the buffer_capacity",
            );
        }
        if self.cleanup_every == 0 {
            return refuse(
                "cleanup_every",
                &self.cleanup_every,
                "at least 1 flush (retention_days = 0 turns purging off)",
            );
        }
        if !POOL_SIZE.contains(&self.pool_size) {
            return refuse("pool_size", &self.pool_size, "1 to 64 connections");
        }
        if let Some(name) = &self.application_name
            && (!APPLICATION_NAME_BYTES.contains(&name.len()) || name.chars().any(char::is_control))
        {
            return refuse(
                "application_name",
                &name.escape_debug(),
                "1 to 63 bytes without control characters",
            );
        }
        if !MAX_STRATEGIES.contains(&self.max_strategies) {
            return refuse(
                "max_strategies",
                &self.max_strategies,
                "1 to 1024 strategies",
            );
        }
        if (1..LEAST_DATABASE_BYTES).contains(&self.max_database_bytes) {
            return refuse(
                "max_database_bytes",
                &self.max_database_bytes,
                "at least 1048576 bytes, or 0 for no bound",
            );
        }
        for (setting, duration) in [
            ("flush_interval", self.flush_interval),
            ("shutdown_timeout", self.shutdown_timeout),
            ("connect_timeout", self.connect_timeout),
            ("statement_timeout", self.statement_timeout),
            ("first backoff", self.first_backoff),
            ("longest backoff", self.longest_backoff),
        ] {
            if !(Duration::from_millis(1)..=LONGEST).contains(&duration) {
                return refuse(setting, &format_args!("{duration:?}"), "1 ms to 1 day");
            }
        }
        if self.longest_backoff < self.first_backoff {
            return refuse(
                "longest backoff",
                &format_args!("{:?}", self.longest_backoff),
                "at least the first backoff",
            );
        }
        Ok(())
    }
}

impl Default for LoggerConfig {
    fn default() -> Self {
        Self {
            database_url: DatabaseUrl::from(DEFAULT_DATABASE_URL.to_owned()),
            buffer_capacity: DEFAULT_BUFFER_CAPACITY,
            mailbox_capacity: None,
            batch_size: DEFAULT_BATCH_SIZE,
            flush_interval: DEFAULT_FLUSH_INTERVAL,
            retention_days: None,
            attempts_retention_days: None,
            cleanup_every: DEFAULT_CLEANUP_EVERY,
            pool_size: DEFAULT_POOL_SIZE,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
            application_name: None,
            prepared_statements: true,
            max_strategies: DEFAULT_MAX_STRATEGIES,
            max_database_bytes: 0,
            shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
            first_backoff: DEFAULT_BACKOFF.0,
            longest_backoff: DEFAULT_BACKOFF.1,
            migrate: true,
            enabled: true,
            redactor: None,
            applies_retention: true,
        }
    }
}

impl fmt::Debug for LoggerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerConfig")
            .field("database_url", &self.database_url)
            .field("buffer_capacity", &self.buffer_capacity)
            .field("mailbox_capacity", &self.mailbox_places())
            .field("batch_size", &self.batch_size)
            .field("flush_interval", &self.flush_interval)
            .field("retention_days", &self.retention_days)
            .field("attempts_retention_days", &self.attempts_retention_days)
            .field("cleanup_every", &self.cleanup_every)
            .field("pool_size", &self.pool_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("application_name", &self.application_name)
            .field("prepared_statements", &self.prepared_statements)
            .field("max_strategies", &self.max_strategies)
            .field("max_database_bytes", &self.max_database_bytes)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .field("first_backoff", &self.first_backoff)
            .field("longest_backoff", &self.longest_backoff)
            .field("migrate", &self.migrate)
            .field("enabled", &self.enabled)
            .field("redactor", &self.redactor.as_ref().map(|_| ".."))
            .finish()
    }
}

/// Location of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Memory,
    File(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(ServerConfig),
}

impl Location {
    /// Returns the location that `url` names.
    ///
    /// # Errors
    ///
    /// The value is empty, contains a NUL, or has another scheme than `sqlite`, `postgres` and
    /// `postgresql`. The error repeats the scheme alone, because a URL may carry a password.
    fn parse(url: &DatabaseUrl) -> Result<Self, ConfigError> {
        if url.is_postgres() && !url.reveal().contains('\0') {
            #[cfg(feature = "postgres")]
            return Ok(Self::Postgres(url.clone().into()));
            #[cfg(not(feature = "postgres"))]
            return Err(ConfigError {
                setting: "database_url",
                value: url.to_string(),
                expected: "a path, because this program was built without PostgreSQL; build it \
                    with the feature `postgres` (cargo build --features postgres)",
            });
        }
        let url = url.reveal();
        let refuse = || {
            // A URL may carry a password: only its scheme is repeated.
            let value = url
                .split_once(':')
                .map_or("(empty)".into(), |(scheme, _)| format!("{scheme}:.."));
            Err(ConfigError {
                setting: "database_url",
                value,
                expected: "a path, sqlite:PATH, sqlite://PATH, :memory: or postgres://..",
            })
        };
        let path = match url.split_once(':') {
            // First, because the text before its colon is empty and no scheme.
            _ if url == ":memory:" => url,
            Some(("sqlite", rest)) => rest.strip_prefix("//").unwrap_or(rest),
            // One letter is a drive, not a scheme; and a scheme has neither slash nor dot.
            Some((scheme, _)) if scheme.len() > 1 && !scheme.contains(['/', '\\', '.']) => {
                return refuse();
            }
            _ => url,
        };
        match path {
            ":memory:" => Ok(Self::Memory),
            "" => refuse(),
            path if path.contains('\0') => refuse(),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Returns whole milliseconds, rounded down.
    pub(crate) fn whole(duration: &Duration) -> u64 {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(whole(duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: LoggerConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn each_bad_setting_is_refused_by_name() {
        let config = || LoggerConfig::new("x.db");
        for (bad, said) in [
            (
                config().buffer_capacity(0),
                "buffer_capacity = 0: expected 1 to 1048576 records",
            ),
            (
                config().batch_size(0),
                "batch_size = 0: expected 1 record to the buffer_capacity",
            ),
            (
                config().batch_size(8193),
                "batch_size = 8193: expected 1 record to the buffer_capacity",
            ),
            (
                config().flush_interval(Duration::ZERO),
                "flush_interval = 0ns: expected 1 ms to 1 day",
            ),
            (
                config().flush_interval(Duration::MAX),
                "flush_interval = 18446744073709551615.999999999s: expected 1 ms to 1 day",
            ),
            (
                config().pool_size(0),
                "pool_size = 0: expected 1 to 64 connections",
            ),
            (
                config().connect_timeout(Duration::ZERO),
                "connect_timeout = 0ns: expected 1 ms to 1 day",
            ),
            (
                config().statement_timeout(Duration::ZERO),
                "statement_timeout = 0ns: expected 1 ms to 1 day",
            ),
            (
                config().application_name("a\0b"),
                "application_name = a\\0b: expected 1 to 63 bytes without control characters",
            ),
            (
                config().max_database_bytes(1),
                "max_database_bytes = 1: expected at least 1048576 bytes, or 0 for no bound",
            ),
            (
                config().max_strategies(0),
                "max_strategies = 0: expected 1 to 1024 strategies",
            ),
        ] {
            assert_eq!(refused(bad), said);
        }
    }

    fn parse(url: &str) -> Result<Location, ConfigError> {
        Location::parse(&DatabaseUrl::from(url.to_owned()))
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn url_of_postgres_is_a_location() {
        for url in ["postgres://u:secret@h/d", "postgresql://h"] {
            assert!(matches!(parse(url), Ok(Location::Postgres(_))), "{url}");
        }
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn url_of_postgres_without_its_feature_names_the_feature() {
        let refusal = parse("postgres://u:secret@h/d").unwrap_err().to_string();
        assert!(refusal.starts_with("database_url = postgres://u:***@h/d: expected"));
        assert!(refusal.contains("feature `postgres`"), "{refusal}");
    }

    #[test]
    fn locations_are_paths_or_memory_and_other_schemes_are_refused() {
        for (url, path) in [
            ("a.db", "a.db"),
            ("sqlite:a.db", "a.db"),
            ("sqlite:///a.db", "/a.db"),
            ("./a:b.db", "./a:b.db"),
            (r"C:\a.db", r"C:\a.db"),
        ] {
            assert_eq!(parse(url), Ok(Location::File(path.into())));
        }
        for url in [":memory:", "sqlite::memory:", "sqlite://:memory:"] {
            assert_eq!(parse(url), Ok(Location::Memory));
        }
        for url in [
            "",
            "sqlite:",
            "postgres:u:secret@h/d",
            "postgres://u:secret@h/d\0",
            "mysql://u:secret@h/d",
            "file:a.db?mode=ro",
            "a\0b",
        ] {
            let refusal = parse(url).unwrap_err().to_string();
            assert!(
                refusal.starts_with("database_url = ") && !refusal.contains("secret"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn environment_overrides_defaults_and_its_mistakes_are_named() {
        let config = LoggerConfig::from_variables(|name| match name {
            "FAILURE_LOGGER_DATABASE_URL" => Some("env.db".into()),
            "FAILURE_LOGGER_FLUSH_INTERVAL_MS" => Some(" 250 ".into()),
            "FAILURE_LOGGER_RETENTION_DAYS" => Some("0".into()),
            "FAILURE_LOGGER_MIGRATE" => Some("false".into()),
            "FAILURE_LOGGER_STATEMENT_TIMEOUT_MS" => Some("9".into()),
            "FAILURE_LOGGER_CONNECT_TIMEOUT_MS" => Some("8".into()),
            "FAILURE_LOGGER_APPLICATION_NAME" => Some("search".into()),
            "FAILURE_LOGGER_PREPARED_STATEMENTS" => Some("false".into()),
            "FAILURE_LOGGER_ENABLED" => Some("false".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(config.database_url.reveal(), "env.db");
        assert_eq!(config.flush_interval, Duration::from_millis(250));
        assert_eq!(config.batch_size, DEFAULT_BATCH_SIZE);
        assert_eq!(
            (config.retention_days, config.attempts_retention_days),
            (Some(0), None),
            "set, though to 0"
        );
        assert!(!config.migrate && !config.enabled && !config.prepared_statements);
        assert_eq!(
            [config.connect_timeout, config.statement_timeout],
            [8, 9].map(Duration::from_millis)
        );
        assert_eq!(config.application_name.as_deref(), Some("search"));

        let error = LoggerConfig::from_variables(|name| {
            (name == "FAILURE_LOGGER_BATCH_SIZE").then(|| "many".into())
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "FAILURE_LOGGER_BATCH_SIZE = many: expected a whole number"
        );
    }

    #[test]
    fn settings_survive_serde_and_unknown_keys_are_errors() {
        let config: LoggerConfig =
            serde_json::from_str(r#"{"database_url":"s.db","flush_interval_ms":7}"#).unwrap();
        assert_eq!(config.flush_interval, Duration::from_millis(7));
        assert!(config.migrate && config.applies_retention);
        let config = config.migrate(false);
        let again: LoggerConfig =
            serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
        assert!(!again.migrate && format!("{again:?}").contains("migrate: false"));
        assert!(serde_json::from_str::<LoggerConfig>(r#"{"flush_intervall_ms":7}"#).is_err());
    }
}
