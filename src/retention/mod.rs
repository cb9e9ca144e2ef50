//! Retention: the age at which rows are deleted, the clock that measures it, and the dates that a
//! record may have.
//!
//! The retention in force, and the state of its clock, are one row of the database: all loggers and
//! commands that use the database read that row. Only a running logger and `failure-logger purge`
//! delete rows for their age.
//!
//! # Units
//!
//! Spans are milliseconds, and settings are days of 24 hours.
//! 0 days keep rows for ever. Only [`cutoff`] computes a cutoff, so that 0 days never become a
//! cutoff of "now".
//!
//! # Two clocks
//!
//! Two clocks judge the date of a record. The later one of wall clock and retention clock decides
//! if the date lies in the future. The earlier one decides if the record is too old. A wrong wall
//! clock can therefore neither delete rows nor drop records of the present.

mod clock;

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use crate::config::{DEFAULT_ATTEMPTS_RETENTION_DAYS, DEFAULT_RETENTION_DAYS};
use crate::model::time::{DAY_MS, MINUTE_MS, Timestamp};
pub(crate) use clock::{Boot, ClockState, Reading, RetentionClock};
use clock::{MAX_ALLOWANCE_MS, SLACK_MS};

/// Largest distance by which a record may be dated ahead of the clock, in milliseconds. Clocks that
/// a time server keeps differ by less. The logger replaces a later date, because no purge would
/// ever delete a row of the year 9999.
pub(crate) const MAX_AHEAD_MS: i64 = 5 * MINUTE_MS;

/// The ages at which rows are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetentionDays {
    /// 0: failures are kept for ever.
    pub(crate) failures: u32,
    /// 0: counts of attempts are kept for ever.
    pub(crate) attempts: u32,
}

impl Default for RetentionDays {
    fn default() -> Self {
        Self {
            failures: DEFAULT_RETENTION_DAYS,
            attempts: DEFAULT_ATTEMPTS_RETENTION_DAYS,
        }
    }
}

impl RetentionDays {
    /// Returns the largest advance of the wall clock that is trusted without an explanation, in
    /// milliseconds.
    ///
    /// The allowance is a tenth of the shorter retention, because a clock that is wrong by less
    /// than the allowance deletes rows too early by that difference. The filter leaves out rows
    /// that are kept for ever, because they need no protection.
    pub(crate) fn allowance(self) -> i64 {
        [self.failures, self.attempts]
            .into_iter()
            .filter(|days| *days > 0)
            .map(|days| (span(days) / 10).clamp(SLACK_MS, MAX_ALLOWANCE_MS))
            .min()
            .unwrap_or(MAX_ALLOWANCE_MS)
    }
}

/// Returns the milliseconds of `days`.
fn span(days: u32) -> i64 {
    i64::from(days) * DAY_MS
}

/// Returns the moment before which rows kept for `days` are too old; `days` = 0 keeps all.
pub(crate) fn cutoff(now: Timestamp, days: u32) -> Timestamp {
    if days == 0 {
        Timestamp::MIN
    } else {
        now - span(days)
    }
}

/// The retention in force, for callers that check the date of a record. The writer publishes it
/// with each reading of the retention clock.
#[derive(Debug)]
pub(crate) struct RetentionInForce {
    failures_days: AtomicU32,
    attempts_days: AtomicU32,
    /// The retention clock, in milliseconds of a [`Timestamp`]. `i64::MIN`: no reading yet, so that
    /// nothing is too old.
    time: AtomicI64,
}

impl Default for RetentionInForce {
    fn default() -> Self {
        let RetentionDays { failures, attempts } = RetentionDays::default();
        Self {
            failures_days: AtomicU32::new(failures),
            attempts_days: AtomicU32::new(attempts),
            time: AtomicI64::new(Timestamp::MIN.as_millis()),
        }
    }
}

impl RetentionInForce {
    // Relaxed throughout, because each number is right by itself: a caller that sees a new one
    // beside an old one decides as it would have a moment before or after. Only the writer stores
    // them, under its lock, so that no older reading replaces a newer one.
    /// Publishes a reading of the retention.
    pub(crate) fn publish(&self, days: RetentionDays, time: Timestamp) {
        self.failures_days.store(days.failures, Ordering::Relaxed);
        self.attempts_days.store(days.attempts, Ordering::Relaxed);
        self.time.store(time.as_millis(), Ordering::Relaxed);
    }

    pub(crate) fn days(&self) -> RetentionDays {
        RetentionDays {
            failures: self.failures_days.load(Ordering::Relaxed),
            attempts: self.attempts_days.load(Ordering::Relaxed),
        }
    }

    /// Returns the date with which a record is stored. `at` is the date from its sender, and `now`
    /// is the wall clock. Returns `now` if `at` lies in the future.
    pub(crate) fn dated(&self, at: Timestamp, now: Timestamp) -> Timestamp {
        // A wall clock behind the retention clock is wrong. The later one of the two is the bound,
        // so that the logger keeps the dates of a sender whose clock is right.
        let latest = now.max(self.time()) + MAX_AHEAD_MS;
        if at > latest { now } else { at }
    }

    /// Returns the moment before which failures are too old, and the one before which attempts are.
    ///
    /// Both are [`Timestamp::MIN`], and nothing is too old, before the first reading of the
    /// database: a record that is dropped cannot be brought back, and one that is kept too long is
    /// purged later.
    pub(crate) fn cutoffs(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let (time, days) = (self.time().min(now), self.days());
        (cutoff(time, days.failures), cutoff(time, days.attempts))
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(self.time.load(Ordering::Relaxed))
    }
}

/// The retention that the database contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StoredRetention {
    /// `None`: no logger was configured with one.
    pub(crate) failures_days: Option<u32>,
    /// `None`: no logger was configured with one.
    pub(crate) attempts_days: Option<u32>,
    /// `None`: the log is new.
    pub(crate) clock: Option<ClockState>,
}

impl StoredRetention {
    /// Returns the days in force: the defaults unless a logger was configured otherwise.
    pub(crate) fn days(&self) -> RetentionDays {
        let default = RetentionDays::default();
        RetentionDays {
            failures: self.failures_days.unwrap_or(default.failures),
            attempts: self.attempts_days.unwrap_or(default.attempts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = DAY_MS;
    const YEAR: i64 = 365 * DAY;
    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    #[test]
    fn allowance_is_a_tenth_of_the_shorter_retention_within_limits() {
        for (failures, attempts, allowance) in [
            (90, 400, 9 * DAY),
            (0, 30, 3 * DAY),
            (400, 400, 10 * DAY),
            (0, 0, 10 * DAY),
            (1, 0, DAY / 10),
            (u32::MAX, u32::MAX, 10 * DAY),
        ] {
            assert_eq!(
                RetentionDays { failures, attempts }.allowance(),
                allowance,
                "{failures} {attempts}"
            );
        }
    }

    #[test]
    fn date_is_kept_up_to_five_minutes_ahead_of_the_later_clock() {
        let force = RetentionInForce::default();
        assert_eq!(
            force.cutoffs(NOW),
            (Timestamp::MIN, Timestamp::MIN),
            "before the first reading"
        );
        force.publish(
            RetentionDays {
                failures: 30,
                attempts: 0,
            },
            NOW,
        );
        assert_eq!(force.dated(NOW + MAX_AHEAD_MS, NOW), NOW + MAX_AHEAD_MS);
        assert_eq!(force.dated(NOW + MAX_AHEAD_MS + 1, NOW), NOW);
        assert_eq!(
            force.dated(NOW, NOW - YEAR),
            NOW,
            "the wall clock is a year behind"
        );
        assert_eq!(force.cutoffs(NOW), (NOW - 30 * DAY, Timestamp::MIN));
        assert_eq!(
            force.cutoffs(NOW + YEAR),
            (NOW - 30 * DAY, Timestamp::MIN),
            "the wall clock is a year ahead"
        );
        assert_eq!(
            force.cutoffs(NOW - YEAR),
            (NOW - YEAR - 30 * DAY, Timestamp::MIN),
            "the wall clock is a year behind"
        );
    }

    #[test]
    fn extreme_dates_overflow_nothing() {
        let walls = [
            Timestamp::MIN,
            Timestamp::EPOCH - 1,
            Timestamp::EPOCH,
            NOW,
            Timestamp::END_OF_TIME,
            Timestamp::MAX,
        ];
        let force = RetentionInForce::default();
        for wall in walls {
            force.publish(
                RetentionDays {
                    failures: u32::MAX,
                    attempts: 0,
                },
                wall,
            );
            for at in walls {
                assert!(force.dated(at, NOW) <= at.max(NOW));
                assert_eq!(force.cutoffs(at).1, Timestamp::MIN);
            }
        }
    }
}
