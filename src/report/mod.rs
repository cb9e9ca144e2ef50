//! Questions to the database: which retrievals failed, how often, and which threshold is right.

mod calibration;
mod conversations;
mod counts;
mod export;
mod failures;
mod grouping;
mod queries;
mod rates;
mod scan;
mod text;

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

pub use calibration::{Calibration, CurvePoint, ScoreBucket};
pub use conversations::{Conversation, Conversations};
pub use counts::AttemptCount;
#[cfg(feature = "cli")]
pub(crate) use export::guarded;
#[cfg(feature = "cli")]
pub(crate) use export::without_guards;
pub use export::{Export, ExportFormat};
pub use failures::{Cursor, Failure, FailureFilter, FailurePage, Followed, PageRequest, Position};
pub(crate) use grouping::{normalized, texts_are_nearly_the_same};
pub(crate) use queries::MAX_QUESTION_CHARACTERS;
pub use queries::{QueryFilter, QueryGroup, QuestionStatus, TopQueries};
pub use rates::{Latency, Rates, StrategyPoints, StrategySummary, Summary, TimePoint, Timeseries, TypeRate};
pub use scan::Scanned;
pub(crate) use text::contains;

use crate::clock::{self, END_OF_TIME};
use crate::error::ReadError;
use crate::store::reader::{ReadPool, Source};

/// How long a query may take, unless the reader is told otherwise.
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers questions about failures and attempts. Cheap to clone.
///
/// Its futures work on any runtime, and do not block it: queries run on threads of the reader's own, two unless
/// [`pool_size`](crate::LoggerConfig::pool_size) allows more, over connections that cannot write meanwhile. The reader of a
/// logger draws on its pool. Each query is bounded in time and in rows.
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
    pool: ReadPool,
    timeout: Duration,
}

impl FailureReader {
    pub(crate) fn new(pool: ReadPool) -> Self {
        Self { pool, timeout: DEFAULT_READ_TIMEOUT }
    }

    /// A reader of the database at `path`, beside whoever writes it. The file is opened with the
    /// first query.
    pub fn open(path: impl AsRef<Path>) -> Self {
        Self::new(ReadPool::new(Some(Source::file(path.as_ref()))))
    }

    /// Reads the retention that the database contains.
    #[cfg(feature = "cli")]
    pub(crate) async fn retention(&self) -> Result<crate::store::StoredRetention, ReadError> {
        self.pool.run(self.timeout, |conn, _| Ok(crate::store::retention::read(conn)?)).await
    }

    /// How long a query may take, with the time that it waits for others. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// A range of time, from a moment up to, and without, another. Serialized as `from` and `to`, in
/// RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeRange {
    /// Unix milliseconds, UTC.
    from: i64,
    to: i64,
    /// Whether it ends now, whenever it is used: then it includes what is dated ahead of the clock.
    until_now: bool,
}

impl TimeRange {
    /// The time since `span` ago. The moment when it is made is its end. It includes what is dated
    /// after that: clocks differ by seconds.
    pub fn last(span: Duration) -> Self {
        let now = clock::now();
        // One more, for what was logged in this very millisecond.
        let to = now.saturating_add(1);
        Self { from: now.saturating_sub(clock::milliseconds(span)).max(0), to, until_now: true }
    }

    /// All time there is.
    pub fn all() -> Self {
        Self { from: 0, to: i64::MAX, until_now: true }
    }

    /// From `from` up to `to`.
    ///
    /// # Errors
    ///
    /// `to` is not later than `from`.
    pub fn between(from: SystemTime, to: SystemTime) -> Result<Self, ReadError> {
        let range = Self { from: clock::milliseconds_of(from), to: clock::milliseconds_of(to), until_now: false };
        if range.from < range.to {
            return Ok(range);
        }
        Err(ReadError::Invalid { parameter: "to", value: rfc3339(range.to), expected: "a moment after `from`" })
    }

    /// Its first moment.
    pub fn from(&self) -> SystemTime {
        moment(self.from)
    }

    /// The moment after its last.
    pub fn to(&self) -> SystemTime {
        moment(self.to)
    }

    /// From `from` until now.
    #[cfg(feature = "http")]
    pub(crate) fn since(from: SystemTime) -> Result<Self, ReadError> {
        let range = Self::between(from, SystemTime::now() + Duration::from_millis(1))?;
        Ok(Self { until_now: true, ..range })
    }

    /// Returns the moment before which a read of the range ends, in Unix milliseconds. The one rule for all reports, so
    /// that they agree about the same failures: a range that reaches `now` has no end.
    fn end(&self, now: i64) -> i64 {
        if self.reaches(now) { i64::MAX } else { self.to }
    }

    fn reaches(&self, now: i64) -> bool {
        self.until_now || (self.from <= now && self.to > now)
    }

    /// The range of the same length before it.
    fn before(self) -> Self {
        let length = self.to.saturating_sub(self.from);
        Self { from: self.from.saturating_sub(length), to: self.from, until_now: false }
    }
}

impl fmt::Debug for TimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", rfc3339(self.from), rfc3339(self.to))
    }
}

impl Serialize for TimeRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut range = serializer.serialize_struct("TimeRange", 2)?;
        range.serialize_field("from", &rfc3339(self.from))?;
        range.serialize_field("to", &rfc3339(self.to))?;
        range.end()
    }
}

/// How a range of time is written down.
#[cfg(feature = "http")]
#[derive(utoipa::ToSchema)]
#[schema(as = TimeRange)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct TimeRangeSchema {
    /// Its first moment.
    #[schema(format = DateTime)]
    from: String,
    /// The moment after its last.
    #[schema(format = DateTime)]
    to: String,
}

fn moment(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.clamp(0, END_OF_TIME).unsigned_abs())
}

/// Unix milliseconds as text: `2026-11-24T10:30:36.123Z`.
pub(crate) fn rfc3339(ms: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(ms.clamp(0, END_OF_TIME)).unwrap_or_default();
    format!("{moment:.3}")
}

/// Unix milliseconds, serialized as RFC 3339.
fn serialize_optional_moment<S: Serializer>(moment: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serialize_moment(moment, serializer),
        None => serializer.serialize_none(),
    }
}

fn serialize_moment<S: Serializer>(ms: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(clock::milliseconds_of(*ms)))
}
