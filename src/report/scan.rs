//! Reads many failures, as far as time and rows allow.

use serde::Serialize;

use crate::model::time::{TimeRange, Timestamp};
use crate::store::reads::Deadline;
use std::ops::ControlFlow;

/// Failures that one read visits, at most.
pub(crate) const MAX_ROWS: u64 = 1_000_000;
/// Rows between two checks of the deadline.
const ROWS_PER_LOOK: u64 = 1024;

/// The part of the failures that a read has visited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Scanned {
    /// The range that was visited: the requested one, or its newer part.
    #[cfg_attr(feature = "http", schema(value_type = crate::model::time::TimeRangeSchema))]
    pub range: TimeRange,
    /// Failures that were looked at.
    pub failures: u64,
    /// `true` if the read visited all failures. Otherwise there were more than a million, or the
    /// time was over.
    pub complete: bool,
}

impl Scanned {
    /// Counts a failure of the moment `at`, the newest first. Ends the read once it is one of too
    /// many, or `deadline` has passed.
    pub(crate) fn next(&mut self, at: Timestamp, deadline: Deadline) -> ControlFlow<()> {
        self.failures += 1;
        if self.failures == MAX_ROWS
            || (self.failures.is_multiple_of(ROWS_PER_LOOK) && deadline.passed())
        {
            (self.range.from, self.complete) = (at, false);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scanned(milliseconds: i64, timeout: Duration) -> Scanned {
        let range = TimeRange {
            from: Timestamp::from_millis(1000),
            to: Timestamp::from_millis(1000 + milliseconds),
            until_now: false,
        };
        let (mut scanned, deadline) = (
            Scanned {
                range,
                failures: 0,
                complete: true,
            },
            Deadline::after(timeout),
        );
        let _ = (0..milliseconds)
            .rev()
            .try_for_each(|after| scanned.next(range.from + after, deadline));
        scanned
    }

    #[test]
    fn scan_after_its_deadline_ends_and_names_the_part_it_read() {
        let scanned = scanned(5000, Duration::ZERO);
        assert_eq!((scanned.failures, scanned.complete), (1024, false));
        assert_eq!(
            [scanned.range.from, scanned.range.to],
            [6000 - 1024, 6000].map(Timestamp::from_millis)
        );
    }

    #[test]
    fn scan_within_its_deadline_reads_all_up_to_a_million() {
        for (rows, complete) in [(1, true), (5000, true), (1_000_001, false)] {
            let scanned = scanned(rows, Duration::from_secs(600));
            assert_eq!(
                (scanned.failures, scanned.complete),
                (rows.min(1_000_000).unsigned_abs(), complete)
            );
            assert_eq!(scanned.range.from.as_millis(), 1000 + i64::from(!complete));
        }
    }
}
