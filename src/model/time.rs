//! Moments and ranges of time.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::clock::{self, END_OF_TIME};
use crate::error::ReadError;

pub(crate) const MINUTE_MS: i64 = 60_000;
pub(crate) const HOUR_MS: i64 = 60 * MINUTE_MS;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;

/// A range of time, from a moment up to, and without, another. Serialized as `from` and `to`, in
/// RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeRange {
    /// Unix milliseconds, UTC.
    pub(crate) from: i64,
    pub(crate) to: i64,
    /// `true` if the range ends at the time of its use. It then includes rows that are dated ahead
    /// of the clock.
    pub(crate) until_now: bool,
}

impl TimeRange {
    /// Returns the time since `span` ago. It ends at this call, and includes rows that are dated
    /// later, because clocks differ by seconds.
    pub fn last(span: Duration) -> Self {
        let now = clock::now();
        // One more, to include records of this very millisecond.
        let to = now.saturating_add(1);
        Self {
            from: now.saturating_sub(clock::milliseconds(span)).max(0),
            to,
            until_now: true,
        }
    }

    /// Returns the range that includes all time.
    pub fn all() -> Self {
        Self {
            from: 0,
            to: i64::MAX,
            until_now: true,
        }
    }

    /// Returns the range from `from` up to, and without, `to`.
    ///
    /// # Errors
    ///
    /// `to` is not later than `from`.
    pub fn between(from: SystemTime, to: SystemTime) -> Result<Self, ReadError> {
        let range = Self {
            from: clock::milliseconds_of(from),
            to: clock::milliseconds_of(to),
            until_now: false,
        };
        if range.from < range.to {
            return Ok(range);
        }
        Err(ReadError::Invalid {
            parameter: "to",
            value: rfc3339(range.to),
            expected: "a moment after `from`",
        })
    }

    /// The first moment.
    pub fn from(&self) -> SystemTime {
        moment(self.from)
    }

    /// The moment after the last.
    pub fn to(&self) -> SystemTime {
        moment(self.to)
    }

    /// Returns the range from `from` until now.
    ///
    /// # Errors
    ///
    /// [`ReadError::Invalid`], if `from` is in the future.
    pub fn since(from: SystemTime) -> Result<Self, ReadError> {
        let range = Self::between(from, SystemTime::now() + Duration::from_millis(1))?;
        Ok(Self {
            until_now: true,
            ..range
        })
    }

    /// Returns the moment before which a read of the range ends, in Unix milliseconds. The one rule
    /// for all reports, so that they agree about the same failures: a range that reaches `now` has
    /// no end.
    pub(crate) fn end(&self, now: i64) -> i64 {
        if self.reaches(now) { i64::MAX } else { self.to }
    }

    pub(crate) fn reaches(&self, now: i64) -> bool {
        self.until_now || (self.from <= now && self.to > now)
    }

    /// Returns the range of the same length before this one.
    pub(crate) fn before(self) -> Self {
        let length = self.to.saturating_sub(self.from);
        Self {
            from: self.from.saturating_sub(length),
            to: self.from,
            until_now: false,
        }
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

/// The JSON of a range of time.
#[cfg(feature = "http")]
#[derive(utoipa::ToSchema)]
#[schema(as = TimeRange)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct TimeRangeSchema {
    /// The first moment.
    #[schema(format = DateTime)]
    from: String,
    /// The moment after the last.
    #[schema(format = DateTime)]
    to: String,
}

pub(crate) fn moment(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.clamp(0, END_OF_TIME).unsigned_abs())
}

/// Unix milliseconds as text: `2026-11-24T10:30:36.123Z`.
pub(crate) fn rfc3339(ms: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(ms.clamp(0, END_OF_TIME)).unwrap_or_default();
    format!("{moment:.3}")
}

/// Unix milliseconds, serialized as RFC 3339.
pub(crate) fn serialize_optional_moment<S: Serializer>(
    moment: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serialize_moment(moment, serializer),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn serialize_moment<S: Serializer>(
    ms: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(clock::milliseconds_of(*ms)))
}
