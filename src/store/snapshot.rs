//! The reading half of the interface: one consistent view of a log.

use std::ops::{ControlFlow, Range};

use uuid::Uuid;

use crate::error::ReadError;
use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::query_status::StatusChange;
use crate::model::source::{Sender, SenderId};
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
#[cfg(feature = "program")]
use crate::retention::StoredRetention;
use crate::rollup::StrategySettings;
use crate::rollup::resolution::Span;
use crate::rollup::sums::ReadBucket;

/// A read transaction on a log. All methods see the same state.
///
/// Callbacks end a read by [`ControlFlow::Break`]; the method then returns `Ok`.
pub(crate) trait Snapshot {
    /// Returns the identity and the ends of the log.
    fn log(&mut self) -> Result<LogEdge, ReadError>;

    /// Returns the same, also of a log that an earlier version wrote: such a log has a nil
    /// `log_id`.
    fn log_of_any_version(&mut self) -> Result<LogEdge, ReadError>;

    /// Returns the moment of the oldest failure.
    fn oldest_failure(&mut self) -> Result<Option<Timestamp>, ReadError>;

    /// Returns the failure with this id.
    fn failure(&mut self, event_id: Uuid) -> Result<Option<Failure>, ReadError>;

    /// Returns the place at which the first `rows` failures within `places` end. `None`: there are
    /// fewer.
    fn window_end(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        rows: i64,
    ) -> Result<Option<Place>, ReadError>;

    /// Returns the first `limit` failures within `places`, and with an id up to `newest_id`, that
    /// `filter` lets through. Its range does not count.
    fn failures(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        newest_id: i64,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError>;

    /// Returns the first `limit` failures within `places` that were stored after the id
    /// `ids.start`, up to and with `ids.end`, and that `filter` lets through, in the order of their
    /// ids.
    fn stored_within(
        &mut self,
        ids: Range<i64>,
        places: Range<Place>,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError>;

    /// Returns the query of the failure with this id.
    fn query_text(&mut self, id: i64) -> Result<Option<String>, ReadError>;

    /// Gives `each` the queries of at most `limit` failures before a place, the newest first.
    fn queries(
        &mut self,
        before: Place,
        limit: u64,
        each: &mut dyn FnMut(FailedQuery) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// Gives `each` the moments and conversations of failures in `range`, the newest first.
    fn conversations(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(Timestamp, Option<String>) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// Gives `each` the counts within `span` that are rolled up, with or without their sketches.
    fn buckets(
        &mut self,
        span: Span,
        sketches: bool,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// Gives `each` the counts within `range` that are not rolled up.
    fn deltas(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// Returns the moment from which on attempts are counted.
    fn oldest_attempt(&mut self) -> Result<Option<Timestamp>, ReadError>;

    /// Returns all senders, by their ids.
    fn senders(&mut self) -> Result<Vec<(SenderId, Sender)>, ReadError>;

    /// Returns how each strategy was judged last.
    fn strategies(&mut self) -> Result<Vec<StrategySettings>, ReadError>;

    /// Returns the statuses of queries by their normalised text, the one that was set first comes
    /// first.
    fn statuses(&mut self) -> Result<Vec<(String, StatusChange)>, ReadError>;

    /// Returns the records that were dropped in `range`.
    fn drops(&mut self, range: Range<Timestamp>) -> Result<DropCounts, ReadError>;

    /// Returns the retention that the log contains.
    #[cfg(feature = "program")]
    fn retention(&mut self) -> Result<StoredRetention, ReadError>;
}

/// The log and its present end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogEdge {
    /// Distinguishes the log from any other that has had its name.
    pub(crate) log_id: Uuid,
    /// A reader with a position in another log resumes after this id.
    pub(crate) starts_after: i64,
    /// Largest id of all rows, the deleted ones included.
    pub(crate) newest_id: i64,
}

/// A failure and its place.
pub(crate) struct StoredFailure {
    pub(crate) place: Place,
    /// `None`: its type is one of a newer version.
    pub(crate) failure: Option<Failure>,
}

/// The part of a failure that a ranking reads.
pub(crate) struct FailedQuery {
    pub(crate) place: Place,
    /// The name of its type, which may be one of a newer version.
    pub(crate) failure_type: String,
    pub(crate) retrieval_strategy: String,
    pub(crate) query_text: String,
    pub(crate) top_score: Option<f32>,
}
