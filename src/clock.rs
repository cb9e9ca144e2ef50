//! The wall clock. How far retention trusts it: see [`retention`](crate::retention).
//!
//! Nothing here is monotonic. Durations are measured by `Instant`.

use std::time::SystemTime;

#[cfg(target_os = "linux")]
use nix::{sys::time::TimeValLike as _, time::ClockId};

use crate::model::time::Timestamp;

impl Timestamp {
    /// Returns the present moment.
    #[inline]
    pub(crate) fn now() -> Self {
        Self::from(SystemTime::now()) + ahead()
    }

    /// Returns the same to within a tick of the kernel, 1 to 10 ms, in a quarter of the time. Used
    /// for attempts, which are counted by the minute; records have the exact time.
    #[cfg(target_os = "linux")]
    #[inline]
    pub(crate) fn coarse_now() -> Self {
        let Ok(time) = ClockId::CLOCK_REALTIME_COARSE.now() else {
            return Self::now();
        };
        let milliseconds = time.num_milliseconds();
        Self::from_millis(milliseconds).clamp(Self::EPOCH, Self::END_OF_TIME) + ahead()
    }

    #[cfg(not(target_os = "linux"))]
    #[inline]
    pub(crate) fn coarse_now() -> Self {
        Self::now()
    }
}

/// Returns the milliseconds that a test adds to the clock.
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
