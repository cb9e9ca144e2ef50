//! The wall clock. How far retention trusts it: see [`retention`](crate::retention).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
