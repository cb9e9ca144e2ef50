//! The spans in which attempts are counted.
//!
//! Spans begin at multiples of their length since 1970, in UTC. A day therefore begins at midnight
//! in UTC, and each minute lies within one hour and one day.

use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS};

/// Length of the spans in which attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Resolution {
    Minute,
    Hour,
    Day,
}

impl Resolution {
    /// From the shortest to the longest.
    pub(crate) const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// In milliseconds.
    pub(crate) const fn span(self) -> i64 {
        match self {
            Self::Minute => MINUTE_MS,
            Self::Hour => HOUR_MS,
            Self::Day => DAY_MS,
        }
    }

    /// As it is stored.
    pub(crate) fn seconds(self) -> i64 {
        self.span() / 1000
    }

    /// Returns the start of the span that contains `at`, in Unix milliseconds. Moments before 1970
    /// belong to the span that begins before them, hence the Euclidean remainder.
    pub(crate) const fn floor(self, at: i64) -> i64 {
        at.saturating_sub(at.rem_euclid(self.span()))
    }

    /// Returns `at` if a span begins there, or the start of the next span.
    pub(crate) const fn ceil(self, at: i64) -> i64 {
        self.floor(at.saturating_add(self.span() - 1))
    }

    /// Returns the bound such that each span that begins earlier has ended at `before` or sooner. A
    /// span is deleted as a whole, when the last of its attempts is too old.
    pub(crate) const fn ended_before(self, before: i64) -> i64 {
        before.saturating_sub(self.span()).saturating_add(1)
    }

    /// Returns the next shorter resolution. `None`: there is none.
    pub(crate) const fn finer(self) -> Option<Self> {
        match self {
            Self::Minute => None,
            Self::Hour => Some(Self::Minute),
            Self::Day => Some(Self::Hour),
        }
    }
}

/// Selects the buckets of a read.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) resolution: Resolution,
    /// In Unix milliseconds, multiples of the resolution.
    pub(crate) from: i64,
    pub(crate) to: i64,
}
