//! The spans in which attempts are counted.
//!
//! Spans begin at multiples of their length since 1970, in UTC. A day therefore begins at midnight
//! in UTC, and each minute lies within one hour and one day.

use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};

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

    /// Returns the start of the span that contains `at`.
    pub(crate) const fn floor(self, at: Timestamp) -> Timestamp {
        at.floor(self.span())
    }

    /// Returns `at` if a span begins there, or the start of the next span.
    pub(crate) fn ceil(self, at: Timestamp) -> Timestamp {
        self.floor(at + (self.span() - 1))
    }

    /// Returns the bound such that each span that begins earlier has ended at `before` or sooner. A
    /// span is deleted as a whole, when the last of its attempts is too old.
    pub(crate) fn ended_before(self, before: Timestamp) -> Timestamp {
        before - self.span() + 1
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

/// Selects the buckets of a read. Both ends are multiples of the resolution.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) resolution: Resolution,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}
