//! The wall clock, and how far a purge may trust it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the wall clock may run from the monotonic one before it counts as having jumped.
const SLACK: Duration = Duration::from_secs(60 * 60);
/// How long a clock must run evenly before a purge trusts it, whatever the newest row says.
const TRUSTED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Now, in Unix milliseconds, UTC; 0 before 1970.
pub(crate) fn now() -> i64 {
    let now = milliseconds_of(SystemTime::now());
    #[cfg(feature = "failpoints")]
    let now = now
        + (|| {
            fail::fail_point!("clock-ahead-ms", |ms| ms.and_then(|ms| ms.parse().ok()).unwrap_or(0));
            0_i64
        })();
    now
}

/// A moment in Unix milliseconds, UTC; 0 before 1970.
pub(crate) fn milliseconds_of(moment: SystemTime) -> i64 {
    milliseconds(moment.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Tells which rows are old enough to be purged.
///
/// A wall clock that jumps ahead must not delete everything. So a cutoff counts from the earlier
/// of two clocks: the wall clock, and one that was set when the logger started and runs with the
/// monotonic clock. And a cutoff that is later than the newest row, as with a clock that was wrong
/// from the start, is no cutoff at all. After a day in which the wall clock ran evenly, it is
/// believed, whatever it says: then the rows are old because nothing has failed for long.
#[derive(Debug)]
pub(crate) struct PurgeClock {
    /// What is believed to have been the time at `anchored`, in Unix milliseconds.
    anchor: i64,
    anchored: Instant,
    /// When the wall clock was last seen to jump, or first seen at all.
    even_since: Instant,
    /// The wall clock then, in Unix milliseconds.
    wall_then: i64,
}

impl PurgeClock {
    pub(crate) fn new(wall: i64, now: Instant) -> Self {
        Self { anchor: wall, anchored: now, even_since: now, wall_then: wall }
    }

    /// Rows older than this may go, in Unix milliseconds. `newest` is the moment of the newest row.
    pub(crate) fn cutoff(&mut self, retention: Duration, newest: i64, wall: i64, now: Instant) -> Option<i64> {
        let even = now.saturating_duration_since(self.even_since);
        let expected = self.wall_then.saturating_add(milliseconds(even));
        if u128::from(wall.abs_diff(expected)) > SLACK.as_millis() {
            (self.even_since, self.wall_then) = (now, wall);
        } else if even >= TRUSTED_AFTER {
            (self.anchor, self.anchored) = (wall, now);
            return Some(wall.saturating_sub(milliseconds(retention)));
        }
        let believed = self.anchor.saturating_add(milliseconds(now.saturating_duration_since(self.anchored)));
        let cutoff = wall.min(believed).saturating_sub(milliseconds(retention));
        (cutoff <= newest).then_some(cutoff)
    }
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    const WALL: i64 = 1_790_000_000_000;

    #[test]
    fn a_clock_that_runs_evenly_is_followed() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL, start);
        assert_eq!(clock.cutoff(DAY, WALL, WALL, start), Some(WALL - DAY_MS));
        let later = clock.cutoff(DAY, WALL + 2 * DAY_MS, WALL + 2 * DAY_MS, start + 2 * DAY);
        assert_eq!(later, Some(WALL + DAY_MS));
    }

    #[test]
    fn a_jump_ahead_deletes_nothing_that_is_young_even_if_new_rows_came_with_it() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL, start);
        let ahead = WALL + 365 * DAY_MS;
        assert_eq!(clock.cutoff(90 * DAY, ahead, ahead, start), Some(WALL - 90 * DAY_MS));
        assert_eq!(clock.cutoff(90 * DAY, WALL, WALL, start), Some(WALL - 90 * DAY_MS), "and back");
    }

    #[test]
    fn a_clock_that_is_far_ahead_of_the_newest_row_deletes_nothing() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL + 365 * DAY_MS, start);
        assert_eq!(clock.cutoff(90 * DAY, WALL, WALL + 365 * DAY_MS, start), None);
    }

    #[test]
    fn rows_of_a_long_quiet_system_go_after_a_day_of_even_running() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL, start);
        let newest = WALL - 200 * DAY_MS;
        assert_eq!(clock.cutoff(90 * DAY, newest, WALL, start), None);
        assert_eq!(clock.cutoff(90 * DAY, newest, WALL + DAY_MS, start + DAY), Some(WALL - 89 * DAY_MS));
    }

    #[test]
    fn a_jump_back_deletes_less() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL, start);
        assert_eq!(clock.cutoff(DAY, WALL, WALL - 10 * DAY_MS, start), Some(WALL - 11 * DAY_MS));
    }

    #[test]
    fn a_new_time_is_believed_after_a_day_of_even_running() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(WALL, start);
        let ahead = WALL + 10 * DAY_MS;
        assert_eq!(clock.cutoff(DAY, ahead, ahead, start), Some(WALL - DAY_MS));
        assert_eq!(clock.cutoff(DAY, ahead, ahead + DAY_MS, start + DAY), Some(ahead));
    }
}
