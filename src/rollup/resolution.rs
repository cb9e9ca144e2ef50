//! The spans in which attempts are counted.

use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS};

/// Length of the spans in which attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Resolution {
    Minute,
    Hour,
    Day,
}

impl Resolution {
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

    pub(crate) const fn floor(self, at: i64) -> i64 {
        at.saturating_sub(at.rem_euclid(self.span()))
    }

    pub(crate) const fn ceil(self, at: i64) -> i64 {
        self.floor(at.saturating_add(self.span() - 1))
    }

    /// Start of the spans that ended before `before` is earlier than this.
    pub(crate) const fn ended_before(self, before: i64) -> i64 {
        before.saturating_sub(self.span()).saturating_add(1)
    }

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
