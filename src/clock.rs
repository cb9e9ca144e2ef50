//! The wall clock. How far retention trusts it: see [`retention`](crate::retention).
//!
//! All moments of the crate are Unix milliseconds in UTC, as `i64`: the type of the column, in
//! which a difference cannot underflow. Nothing here is monotonic. Durations are measured by
//! `Instant`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the present moment, in Unix milliseconds, UTC; 0 before 1970.
pub(crate) fn now() -> i64 {
    milliseconds_of(SystemTime::now()) + ahead()
}

/// Returns the same to within a tick of the kernel, 1 to 10 ms, in a quarter of the time. Used for
/// attempts, which are counted by the minute; records have the exact time.
#[cfg(target_os = "linux")]
pub(crate) fn coarse_now() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let milliseconds = time
        .tv_sec
        .saturating_mul(1000)
        .saturating_add(time.tv_nsec / 1_000_000);
    milliseconds.clamp(0, END_OF_TIME) + ahead()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn coarse_now() -> i64 {
    now()
}

/// Returns the offset that a test adds to the clock.
#[cfg(feature = "failpoints")]
fn ahead() -> i64 {
    fail::fail_point!("clock-ahead-ms", |ms| ms
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(0));
    0
}

#[cfg(not(feature = "failpoints"))]
const fn ahead() -> i64 {
    0
}

/// The last moment that can be written down, a day before the end of the year 9999.
pub(crate) const END_OF_TIME: i64 = 253_402_200_000_000;

/// Returns a moment in Unix milliseconds, UTC; 0 before 1970, and no later than the year 9999.
pub(crate) fn milliseconds_of(moment: SystemTime) -> i64 {
    milliseconds(moment.duration_since(UNIX_EPOCH).unwrap_or_default()).min(END_OF_TIME)
}

/// Returns whole milliseconds, rounded down; `i64::MAX` for longer durations.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    // `as_millis` computes with 128 bits, which a hot path need not.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(duration.subsec_millis()))
}
