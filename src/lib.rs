//! Records every failed retrieval of a search system in an SQLite file, and counts the successful
//! ones.
//!
//! Some applications search before they answer: a RAG system searches documents, an agent searches
//! its memory, a shop searches its catalogue. One such search is a *retrieval*. A failed retrieval
//! is quiet. It finds nothing, finds only results with low scores, takes too long or returns an
//! error, and the user sees a worse answer. This crate keeps a row for each failure and a count of
//! each attempt, so that the application can tell how often retrieval fails, on which queries and
//! since when.
//!
//! # Example
//!
//! A monitor runs a search, judges its result, counts the attempt and logs a failure. The best
//! score of this search is below the threshold, so that the log has one failure afterwards.
//!
//! ```
//! use failure_logger::{FailureLogger, LoggerConfig};
//!
//! # #[actix::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
//! let semantic = logger.strategy("semantic").confidence_threshold(0.3);
//!
//! let search = async { Ok::<_, std::io::Error>(vec![("key.txt", 0.2_f32)]) };
//! let hits = semantic.observe("where is the key?", search).await?;
//! assert_eq!(hits, [("key.txt", 0.2)]);
//!
//! let report = logger.shutdown().await?;
//! assert_eq!((report.stats.persisted, report.stats.attempts), (1, 1));
//! # Ok(())
//! # }
//! ```
//!
//! An application that judges its results by itself calls [`LoggerHandle::log`] with a
//! [`RetrievalFailureRecord`], or [`StrategyMonitor::record`] with an [`Outcome`].
//!
//! # Ways to embed the logger
//!
//! | application | start | call |
//! | --- | --- | --- |
//! | any, with any async runtime or none | [`FailureLogger::spawn`]: a thread of its own | [`LoggerHandle::strategy`], [`LoggerHandle::log`] |
//! | actors of actix | [`FailureLogger::new`], then [`start`](actix::Actor::start) | `try_send` to the address, or [`FailureLogger::handle`] |
//! | actors that receive no address | the [system registry](actix::SystemService), with the settings of the environment | the message [`GetHandle`] |
//! | with an SQLite pool of its own | [`FailureLogger::with_pool`] | as the ways above |
//! | with migrations of its own | [`sqlite::run_migrations`] and [`LoggerConfig::migrate`] | as the ways above |
//! | that only reads a log | [`FailureReader::open`] | the methods of [`FailureReader`] |
//! | where logging is off | [`LoggerHandle::disabled`] | the same calls, which do nothing |
//!
//! # Invariants
//!
//! - `received = persisted + dropped + buffered`, at any instant and in every state. The counters
//!   are those of [`Stats`]. Each dropped record has a [`DropReason`].
//! - A call of [`LoggerHandle::log`] takes no lock, makes no system call and allocates nothing. It
//!   wakes a thread only if its record completes a batch while the writer sleeps. It never waits
//!   and never panics.
//! - The buffer outlives the actor. A panic in the logger restarts the actor. The restarted actor
//!   keeps the records, the batch that was being written, the addresses and the counters.
//! - The types enforce the bounds. [`BoundedText`] and [`ConversationId`] cut a text when it is
//!   made. A record therefore takes at most about 8 KB, and a full buffer a known amount of memory.
//! - A record with an `event_id` is stored once, however often its sender repeats it:
//!   [`LoggerHandle::log_once`].
//! - [`LoggerHandle::shutdown`] commits every accepted record, or reports how many it could not
//!   commit.
//!
//! # Features
//!
//! | feature | content |
//! | --- | --- |
//! | none (the default) | the logger, its monitors and its reads |
//! | `csv` | exports as comma-separated values |
//! | `http` | the module `http`: JSON routes, metrics and the dashboard, for any actix-web application; includes `csv` |
//! | `program` | items for the program `failure-logger` alone; they are not part of the API |
//! | `failpoints` | faults that the tests inject; never for production |
//!
//! # Where to read on
//!
//! | to | read |
//! | --- | --- |
//! | change a setting | [`LoggerConfig`], [`config`] |
//! | measure retrievals, and describe results of other types | [`monitor`] |
//! | read pages, rates, groups of queries and calibration | [`report`] |
//! | find the remedy of an error | [`error`] |
//! | read the counters | [`stats`] |
//! | import a table of the reference implementation | [`import`] |
//! | share a database file with the application's own tables | [`sqlite`] |
//! | learn the terms | [glossary] |
//! | see longer samples | [embedding], [actors] |
//! | find the test of each guarantee | [reliability] |
//! | change the code | [architecture] |
//!
//! [glossary]: https://docs.rs/crate/failure-logger/latest/source/docs/glossary.md
//! [embedding]: https://docs.rs/crate/failure-logger/latest/source/docs/embedding.md
//! [actors]: https://docs.rs/crate/failure-logger/latest/source/docs/actors.md
//! [reliability]: https://docs.rs/crate/failure-logger/latest/source/docs/reliability.md
//! [architecture]: https://docs.rs/crate/failure-logger/latest/source/docs/architecture.md

// A panic of the library would fail a request of the application. A test may panic, because that is
// how it reports a failure.
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
// A cast that truncates would change a field of a record without an error.
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

/// Marks a place at which a test may inject a fault. Expands to nothing without the feature
/// `failpoints`.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($($point:tt)*) => { fail::fail_point!($($point)*) };
}
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($($point:tt)*) => {};
}

/// Compiles the samples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles and runs the samples of docs/actors.md.
#[cfg(doctest)]
#[doc = include_str!("../docs/actors.md")]
struct ActorsPage;

/// Compiles and runs the samples of docs/embedding.md.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct EmbeddingPage;

mod clock;
pub mod config;
#[cfg(feature = "program")]
mod copy;
mod database_url;
pub mod error;
mod handle;
#[cfg(feature = "http")]
pub mod http;
pub mod import;
mod model;
pub mod monitor;
mod pipeline;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod program;
pub mod report;
mod retention;
mod rollup;
#[cfg(feature = "postgres")]
mod server;
mod similarity;
mod store;

pub use config::LoggerConfig;
pub use error::{LoggerError, StartError};
pub use handle::{GetHandle, LoggerHandle};
pub use model::deletion::Deletion;
pub use model::failure::FailureFilter;
pub use model::outcome::{OutcomeKind, RetrievalFailureType};
pub use model::query_status::QueryStatus;
pub use model::record::{BoundedText, ConversationId, RetrievalFailureRecord};
pub use model::source::{LabelError, Labels, SourceFilter};
pub use model::stats::{self, DropReason, FlushReport, LogOutcome, ShutdownReport, Stats};
pub use model::time::TimeRange;
pub use monitor::{Outcome, StrategyMonitor};
pub use pipeline::actor::FailureLogger;
pub use report::{FailureReader, PageRequest};
pub use rollup::ScoreDirection;
pub use store::sqlite::embed as sqlite;
