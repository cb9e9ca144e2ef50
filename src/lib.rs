#![doc = include_str!("../README.md")]
// A panic in the hot path of an application is an outage. In a test it is the report.
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

/// Compiles and runs the samples of the page.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct EmbeddingPage;

mod clock;
pub mod config;
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
pub use model::stats::{self, DropReason, FlushReport, LogOutcome, ShutdownReport, Stats};
pub use model::time::TimeRange;
pub use monitor::{Outcome, StrategyMonitor};
pub use pipeline::actor::FailureLogger;
pub use report::{FailureReader, PageRequest};
pub use rollup::ScoreDirection;
pub use store::sqlite::embed as sqlite;
