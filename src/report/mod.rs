//! Questions to the database: which retrievals failed, how often, and which threshold is right.

mod calibration;
mod conversations;
mod counts;
#[cfg(feature = "csv")]
mod csv;
mod export;
mod facets;
mod failures;
mod grouping;
mod list;
mod queries;
mod rates;
mod scan;

use std::path::Path;
use std::time::Duration;

pub use crate::model::failure::Failure;
pub use crate::model::outcome::FailuresByType;
pub use calibration::{Calibration, CurvePoint, ScoreBucket, ThresholdChanges};
pub use conversations::{Conversation, Conversations};
pub use counts::AttemptCount;
#[cfg(feature = "program")]
pub use csv::guarded;
#[cfg(feature = "program")]
pub use csv::without_guards;
pub use export::{Export, ExportFormat};
pub use facets::StrategyCount;
pub use failures::{Cursor, FailurePage, PageRequest, Position, TailPage};
#[cfg(feature = "program")]
#[doc(hidden)]
pub use grouping::first_of_group;
pub use list::{ListCursor, ListRequest};
#[cfg(feature = "http")]
pub(crate) use queries::group_id;
pub use queries::{QueryFilter, QueryGroup, QueryOrder, StatusCounts, TopQueries};
#[cfg(feature = "http")]
pub(crate) use rates::MAX_STEPS;
pub use rates::{
    AttemptFilter, Latency, Rates, StrategyPoints, StrategySummary, Summary, TimePoint, Timeseries,
    TimeseriesRequest, TypeRate,
};
pub use scan::Scanned;

use crate::store;

use crate::store::reads::Reads;

/// Longest time of a read, unless the reader has another timeout.
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads failures and attempts. Cheap to clone.
///
/// Its futures work on any runtime, and do not block it: queries run on threads of the reader's
/// own, two unless [`pool_size`](crate::LoggerConfig::pool_size) allows more, over connections that
/// cannot write meanwhile. The reader of a logger draws on its pool. Each query is bounded in time
/// and in rows.
///
/// ```
/// # use std::time::Duration;
/// use failure_logger::{FailureLogger, LoggerConfig, TimeRange};
///
/// # futures_executor::block_on(async {
/// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
/// let summary = logger.reader().summary(TimeRange::last(Duration::from_secs(24 * 60 * 60))).await?;
/// println!("{} of {} attempts failed", summary.total.failures, summary.total.attempts);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct FailureReader {
    reads: Reads,
    timeout: Duration,
}

impl FailureReader {
    pub(crate) fn new(reads: Reads) -> Self {
        Self {
            reads,
            timeout: DEFAULT_READ_TIMEOUT,
        }
    }

    /// Returns a reader of the database at `path`, which other processes may write. The first read
    /// opens the file.
    pub fn open(path: impl AsRef<Path>) -> Self {
        Self::new(store::reads_of(path.as_ref()))
    }

    /// Reads the retention that the database contains.
    #[cfg(feature = "program")]
    pub(crate) async fn retention(
        &self,
    ) -> Result<crate::retention::StoredRetention, crate::error::ReadError> {
        use crate::store::reads::Lane;

        self.reads
            .run(Lane::Quick, self.timeout, |snapshot, _| {
                snapshot.retention()
            })
            .await
    }

    /// Sets the longest time of a read, including its wait for other reads. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}
