//! The wall clock, and how far a purge may trust it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the wall clock may run from the monotonic one before it counts as having jumped.
const SLACK: Duration = Duration::from_secs(60 * 60);
/// How far the wall clock may have moved on while nobody ran. A wrong clock within that deletes what
/// is a day too young.
const PLAUSIBLE_ABSENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a clock must run evenly before a purge trusts it, whatever was believed before.
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

/// The last moment that can be written down, a day before the end of the year 9999.
pub(crate) const END_OF_TIME: i64 = 253_402_200_000_000;

/// A moment in Unix milliseconds, UTC; 0 before 1970, and no later than the year 9999.
pub(crate) fn milliseconds_of(moment: SystemTime) -> i64 {
    milliseconds(moment.duration_since(UNIX_EPOCH).unwrap_or_default()).min(END_OF_TIME)
}

/// Tells which rows are old enough to be purged.
///
/// A wall clock that jumps ahead must not delete everything, neither while the logger runs nor
/// between two of its lives. So the time that is believed is kept in the database, and the wall
/// clock is only followed as far as it runs evenly from there: it may have moved a day on while
/// nobody ran, or an hour apart from the monotonic clock. After a day in which it ran evenly, it is
/// believed again, whatever it says.
#[derive(Debug)]
pub(crate) struct PurgeClock {
    /// What was believed to be the time at `anchored`, in Unix milliseconds.
    anchor: i64,
    anchored: Instant,
    /// When the wall clock was last seen to jump, or first seen at all.
    even_since: Instant,
    /// The wall clock then, in Unix milliseconds.
    wall_then: i64,
    /// Whether the wall clock then was in doubt.
    doubted: bool,
}

impl PurgeClock {
    /// `stored`: what was believed last, in Unix milliseconds. `None`: nothing, all is new.
    pub(crate) fn new(stored: Option<i64>, wall: i64, now: Instant) -> Self {
        let doubted = stored.is_some_and(|stored| wall.saturating_sub(stored) > milliseconds(PLAUSIBLE_ABSENCE));
        let anchor = if doubted { stored.unwrap_or(wall) } else { wall };
        Self { anchor, anchored: now, even_since: now, wall_then: wall, doubted }
    }

    /// What is believed to be the time, in Unix milliseconds: never later than the wall clock says.
    pub(crate) fn believed(&mut self, wall: i64, now: Instant) -> i64 {
        let even = now.saturating_duration_since(self.even_since);
        let expected = self.wall_then.saturating_add(milliseconds(even));
        if u128::from(wall.abs_diff(expected)) > SLACK.as_millis() {
            (self.anchor, self.anchored) = (self.believed_alone(now), now);
            (self.even_since, self.wall_then, self.doubted) = (now, wall, true);
        } else if !self.doubted || even >= TRUSTED_AFTER {
            (self.anchor, self.anchored, self.doubted) = (wall, now, false);
            return wall;
        }
        wall.min(self.believed_alone(now))
    }

    /// The believed time, carried on by the monotonic clock.
    fn believed_alone(&self, now: Instant) -> i64 {
        self.anchor.saturating_add(milliseconds(now.saturating_duration_since(self.anchored)))
    }

    /// Whether the wall clock is not believed at present.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted
    }
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    const WALL: i64 = 1_790_000_000_000;

    #[test]
    fn a_clock_that_runs_evenly_is_followed() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(None, WALL, start);
        assert_eq!(clock.believed(WALL, start), WALL);
        assert_eq!(clock.believed(WALL + 2 * DAY_MS + 1000, start + 2 * DAY), WALL + 2 * DAY_MS + 1000);
    }

    #[test]
    fn a_jump_ahead_is_not_followed_and_a_jump_back_is() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(None, WALL, start);
        assert_eq!(clock.believed(WALL + 365 * DAY_MS, start), WALL);
        assert_eq!(clock.believed(WALL + 365 * DAY_MS + 1000, start + SECOND), WALL + 1000);
        assert!(clock.is_doubted());
        assert_eq!(clock.believed(WALL + 2000, start + 2 * SECOND), WALL + 2000, "and back");
        assert_eq!(clock.believed(WALL - 10 * DAY_MS, start + 3 * SECOND), WALL - 10 * DAY_MS);
    }

    #[test]
    fn a_clock_that_is_wrong_from_the_start_is_not_followed_however_often_the_logger_starts() {
        let wrong = WALL + 365 * DAY_MS;
        let mut stored = WALL;
        for _ in 0..5 {
            let start = Instant::now();
            let mut clock = PurgeClock::new(Some(stored), wrong, start);
            stored = clock.believed(wrong + 60_000, start + 60 * SECOND);
        }
        assert_eq!(stored, WALL + 5 * 60_000);
    }

    #[test]
    fn a_short_absence_is_believed_at_once_and_a_long_one_after_a_day() {
        let start = Instant::now();
        let mut clock = PurgeClock::new(Some(WALL), WALL + DAY_MS - 1000, start);
        assert_eq!(clock.believed(WALL + DAY_MS - 1000, start), WALL + DAY_MS - 1000);
        let back = WALL + 200 * DAY_MS;
        let mut clock = PurgeClock::new(Some(WALL), back, start);
        assert_eq!(clock.believed(back, start), WALL);
        assert_eq!(clock.believed(back + DAY_MS, start + DAY), back + DAY_MS);
        assert!(!clock.is_doubted());
    }
}
