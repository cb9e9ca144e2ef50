#![doc = include_str!("../README.md")]
// A panic in somebody else's hot path is an outage. In a test it is the report.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)
)]
// A record is evidence: none of it is lost to a cast.
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

/// A place where a test may inject a fault; nothing without the feature `failpoints`.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($($point:tt)*) => { fail::fail_point!($($point)*) };
}
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($($point:tt)*) => {};
}

/// Compiles and runs the samples of the page.
#[cfg(doctest)]
#[doc = include_str!("../docs/actors.md")]
struct ActorsPage;

mod actor;
mod attempts;
mod buffer;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod clock;
mod config;
mod error;
mod handle;
#[cfg(feature = "http")]
pub mod http;
mod import;
mod losses;
mod metrics;
mod monitor;
mod record;
mod report;
mod retention;
mod shared;
mod sketch;
pub mod sqlite;
mod stats;
mod store;

pub use actor::FailureLogger;
pub use attempts::{OutcomeKind, ScoreDirection};
pub use config::{
    DEFAULT_ATTEMPTS_RETENTION_DAYS, DEFAULT_BACKOFF, DEFAULT_BATCH_SIZE, DEFAULT_BUFFER_CAPACITY,
    DEFAULT_CLEANUP_EVERY, DEFAULT_DATABASE_URL, DEFAULT_FLUSH_INTERVAL, DEFAULT_MAX_STRATEGIES, DEFAULT_POOL_SIZE,
    DEFAULT_RETENTION_DAYS, DEFAULT_SHUTDOWN_TIMEOUT, LoggerConfig,
};
pub use error::{ConfigError, LoggerError, MarkError, ReadError, StartError, StoreError, Unhealthy};
pub use handle::{GetHandle, LoggerHandle};
pub use import::{ImportError, ImportReport};
pub use monitor::{Found, NoTimeout, Outcome, Retrieved, Scored, StrategyMonitor, Timeout, TimeoutOr};
pub use record::{BoundedText, ConversationId, RetrievalFailureRecord, RetrievalFailureType};
pub use report::*;
pub use stats::{DeleteReport, DropCounts, DropReason, FlushReport, LogOutcome, ShutdownReport, Stats};
pub use store::delete::Deletion;
