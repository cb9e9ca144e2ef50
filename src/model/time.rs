//! Moments and ranges of time.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::error::ReadError;

pub(crate) const MINUTE_MS: i64 = 60_000;
pub(crate) const HOUR_MS: i64 = 60 * MINUTE_MS;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;

/// A moment: Unix milliseconds in UTC, as the columns of the database have it.
///
/// Lengths of time are `i64` milliseconds, so that the difference of two moments may be negative.
/// Sums and differences saturate. As text and as JSON a moment is RFC 3339:
/// `2026-11-24T10:30:36.123Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Timestamp(i64);

impl Timestamp {
    /// Before every moment: the cutoff that makes no row too old, and the start of a range that has
    /// none.
    pub(crate) const MIN: Self = Self(i64::MIN);
    /// The beginning of 1970. Clocks and callers give no earlier moment.
    pub(crate) const EPOCH: Self = Self(0);
    /// The last moment that can be written down, a day before the end of the year 9999.
    pub(crate) const END_OF_TIME: Self = Self(253_402_200_000_000);
    /// After every moment: the end of a range that has none.
    pub(crate) const MAX: Self = Self(i64::MAX);

    #[inline]
    pub(crate) const fn from_millis(milliseconds: i64) -> Self {
        Self(milliseconds)
    }

    #[inline]
    pub(crate) const fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns the start of the span that contains the moment, among spans of `length` milliseconds
    /// that begin at multiples of it since 1970. Moments before 1970 belong to the span that begins
    /// before them, hence the Euclidean remainder.
    #[inline]
    pub(crate) const fn floor(self, length: i64) -> Self {
        Self(self.0.saturating_sub(self.0.rem_euclid(length)))
    }

    /// Returns the nearest moment that can be written down.
    fn within_limits(self) -> Self {
        self.clamp(Self::EPOCH, Self::END_OF_TIME)
    }
}

impl Add<i64> for Timestamp {
    type Output = Self;

    #[inline]
    fn add(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

impl Sub<i64> for Timestamp {
    type Output = Self;

    #[inline]
    fn sub(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_sub(milliseconds))
    }
}

impl Sub for Timestamp {
    type Output = i64;

    /// Returns the milliseconds since `earlier`.
    #[inline]
    fn sub(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<SystemTime> for Timestamp {
    /// Returns 1970 for an earlier moment, and [`END_OF_TIME`](Self::END_OF_TIME) for a later one.
    #[inline]
    fn from(moment: SystemTime) -> Self {
        let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(milliseconds(since)).min(Self::END_OF_TIME)
    }
}

impl From<Timestamp> for SystemTime {
    /// Returns a moment within the same limits.
    fn from(moment: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(moment.within_limits().0.unsigned_abs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = jiff::Timestamp::from_millisecond(self.within_limits().0).unwrap_or_default();
        write!(f, "{moment:.3}")
    }
}

impl fmt::Debug for Timestamp {
    /// Writes RFC 3339, and a number for what cannot be written down: two moments that differ must
    /// not look equal in a failed assertion.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == self.within_limits() {
            fmt::Display::fmt(self, f)
        } else {
            write!(f, "{} ms", self.0)
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Serializes a moment of the public interface as a [`Timestamp`].
pub(crate) fn serialize_moment<S: Serializer>(
    moment: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    Timestamp::from(*moment).serialize(serializer)
}

pub(crate) fn serialize_optional_moment<S: Serializer>(
    moment: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    moment.map(Timestamp::from).serialize(serializer)
}

/// Returns whole milliseconds, rounded down; `i64::MAX` for longer durations.
#[inline]
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    // `as_millis` computes with 128 bits, which a hot path need not.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(duration.subsec_millis()))
}

/// A range of time, from a moment up to, and without, another. Serialized as `from` and `to`, in
/// RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeRange {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// `true` if the range ends at the time of its use. It then includes rows that are dated ahead
    /// of the clock.
    pub(crate) until_now: bool,
}

impl TimeRange {
    /// Returns the time since `span` ago. It ends at this call, and includes rows that are dated
    /// later, because clocks differ by seconds.
    pub fn last(span: Duration) -> Self {
        let now = Timestamp::now();
        Self {
            from: (now - milliseconds(span)).max(Timestamp::EPOCH),
            // One more, to include records of this very millisecond.
            to: now + 1,
            until_now: true,
        }
    }

    /// Returns the range that includes all time.
    pub fn all() -> Self {
        Self {
            from: Timestamp::EPOCH,
            to: Timestamp::MAX,
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
            from: from.into(),
            to: to.into(),
            until_now: false,
        };
        if range.from < range.to {
            return Ok(range);
        }
        Err(ReadError::Invalid {
            parameter: "to",
            value: range.to.to_string(),
            expected: "a moment after `from`",
        })
    }

    /// The first moment.
    pub fn from(&self) -> SystemTime {
        self.from.into()
    }

    /// The moment after the last.
    pub fn to(&self) -> SystemTime {
        self.to.into()
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

    /// Returns the moment before which a read of the range ends. The one rule for all reports, so
    /// that they agree about the same failures: a range that reaches `now` has no end.
    pub(crate) fn end(&self, now: Timestamp) -> Timestamp {
        if self.reaches(now) {
            Timestamp::MAX
        } else {
            self.to
        }
    }

    pub(crate) fn reaches(&self, now: Timestamp) -> bool {
        self.until_now || (self.from <= now && self.to > now)
    }

    /// Returns the range of the same length before this one.
    pub(crate) fn before(self) -> Self {
        Self {
            from: self.from - (self.to - self.from),
            to: self.from,
            until_now: false,
        }
    }
}

impl fmt::Debug for TimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

impl Serialize for TimeRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut range = serializer.serialize_struct("TimeRange", 2)?;
        range.serialize_field("from", &self.from)?;
        range.serialize_field("to", &self.to)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_from_outside_the_limits_becomes_the_nearest_within() {
        let second = Duration::from_secs(1);
        let end = SystemTime::from(Timestamp::END_OF_TIME);
        for (moment, expected) in [
            (UNIX_EPOCH - second, Timestamp::EPOCH),
            (UNIX_EPOCH, Timestamp::EPOCH),
            (UNIX_EPOCH + second, Timestamp::from_millis(1000)),
            (end, Timestamp::END_OF_TIME),
            (end + second, Timestamp::END_OF_TIME),
        ] {
            assert_eq!(Timestamp::from(moment), expected);
        }
        assert_eq!(SystemTime::from(Timestamp::MIN), UNIX_EPOCH);
        assert_eq!(SystemTime::from(Timestamp::MAX), end);
    }

    #[test]
    fn moment_is_written_as_rfc_3339_with_milliseconds() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_516_236_120, "2026-11-24T10:30:36.120Z"),
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-30T20:00:00.000Z"),
        ] {
            let moment = Timestamp::from_millis(milliseconds);
            assert_eq!(moment.to_string(), text);
            assert_eq!(serde_json::to_value(moment).unwrap(), text);
        }
        assert_eq!(format!("{:?}", Timestamp::from_millis(-1)), "-1 ms");
    }

    #[test]
    fn arithmetic_of_moments_saturates() {
        assert_eq!(Timestamp::MAX + 1, Timestamp::MAX);
        assert_eq!(Timestamp::MIN - 1, Timestamp::MIN);
        assert_eq!(Timestamp::MAX - Timestamp::MIN, i64::MAX);
        assert_eq!(Timestamp::MIN - Timestamp::MAX, i64::MIN);
        assert_eq!(Timestamp::MIN.floor(DAY_MS), Timestamp::MIN);
    }

    #[test]
    fn floor_before_1970_is_the_start_of_the_earlier_span() {
        for (milliseconds, start) in [
            (-1, -MINUTE_MS),
            (-MINUTE_MS, -MINUTE_MS),
            (0, 0),
            (MINUTE_MS - 1, 0),
            (MINUTE_MS, MINUTE_MS),
        ] {
            let moment = Timestamp::from_millis(milliseconds);
            assert_eq!(moment.floor(MINUTE_MS), Timestamp::from_millis(start));
        }
    }
}
