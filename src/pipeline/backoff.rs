//! Pauses between attempts, and restarts that are spaced out by them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::LoggerConfig;
use crate::pipeline::phase::Phase;
use crate::pipeline::state::Shared;

/// Restarts in quick succession, after which the logger is unavailable. Up to then a fault is a
/// warning in the log; from then on health checks fail.
pub(crate) const UNAVAILABLE_AFTER_RESTARTS: u32 = 5;
/// The longest pause before a restart while a shutdown waits for it.
const PAUSE_WHILE_CLOSING: Duration = Duration::from_millis(100);

/// Restarts of one actor: counts them, and spaces them out.
pub(crate) struct Restarts {
    pauses: Backoff,
    longest: Duration,
    /// The last restart, by the clock of the timers, so that tests with a paused clock see it
    /// advance.
    last: Option<tokio::time::Instant>,
    /// Failures since the actor last ran for long.
    failed_restarts: u32,
}

impl Restarts {
    pub(crate) fn new(config: &LoggerConfig) -> Self {
        Self {
            pauses: Backoff::new(config),
            longest: config.longest_backoff,
            last: None,
            failed_restarts: 0,
        }
    }

    /// Notes that the actor failed. Returns the pause before its restart.
    pub(crate) fn failed(&mut self, shared: &Shared, panic: Option<String>) -> Duration {
        // Only time resets the count. A flush that succeeds proves little, because what fails may
        // be the timer or the purge: the actor would restart at the shortest pause for ever.
        if self.last.is_some_and(|at| at.elapsed() >= 2 * self.longest) {
            self.failed_restarts = 0;
            self.pauses.reset();
        }
        self.failed_restarts += 1;
        shared.counters.restarts.fetch_add(1, Ordering::AcqRel);
        if let Some(panic) = panic {
            shared.failed(format!("panic: {panic}"));
        }
        let (cause, failed_restarts, pause) = (
            shared.last_failure(),
            self.failed_restarts,
            self.pauses.next(),
        );
        let pause_ms = pause.as_millis();
        if failed_restarts >= UNAVAILABLE_AFTER_RESTARTS {
            shared.unavailable(&cause);
            log_without_panic(|| {
                tracing::error!(
                    cause,
                    failed_restarts,
                    pause_ms,
                    "the logger cannot be restarted; what is buffered is kept"
                );
            });
        } else {
            log_without_panic(|| {
                tracing::warn!(cause, pause_ms, "the logger failed, and is restarted")
            });
        }
        pause
    }

    /// Notes that the actor runs. Its time until the next failure begins.
    pub(crate) fn restarted(&mut self) {
        self.last = Some(tokio::time::Instant::now());
    }
}

/// Ends after `pause`, or soon if a shutdown waits.
pub(crate) async fn pause_before_restart(shared: &Shared, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = async { wait_for_closing(shared).await; tokio::time::sleep(PAUSE_WHILE_CLOSING.min(pause)).await } => {}
    }
}

/// Waits for a shutdown, and returns its deadline. If the logger has ended, the deadline is now.
pub(crate) async fn wait_for_closing(shared: &Shared) -> Instant {
    let mut phases: watch::Receiver<Phase> = shared.phases();
    let closing = phases
        .wait_for(|phase| matches!(phase, Phase::Closing { .. }))
        .await;
    match closing.as_deref() {
        Ok(Phase::Closing { deadline, .. }) => *deadline,
        _ => Instant::now(),
    }
}

/// Runs `log`, and drops a panic of a subscriber: the logger must not end because of its own
/// messages. The payload is forgotten, because its drop may panic as well.
pub(crate) fn log_without_panic(log: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(log)) {
        std::mem::forget(panic);
    }
}

/// Returns the message of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)").to_owned()
}

/// Pauses that double from the first to the longest. Each is three quarters to all of its length,
/// so that several processes that failed together do not try at the same moment.
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new(config: &LoggerConfig) -> Self {
        Self {
            first: config.first_backoff,
            longest: config.longest_backoff,
            pause: config.first_backoff,
        }
    }

    /// Returns the next pause, and doubles the one after it up to the longest.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest);
        // Three quarters to all of it. A fresh hasher is randomness enough, and at hand.
        let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
        pause.mul_f64(0.75 + 0.25 * random)
    }

    /// Begins with the first pause after a success.
    pub(crate) fn reset(&mut self) {
        self.pause = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_longest_and_begins_anew() {
        let config = LoggerConfig::default()
            .backoff(Duration::from_millis(100), Duration::from_millis(1000));
        let mut backoff = Backoff::new(&config);
        for _ in 0..2 {
            for longest in [100, 200, 400, 800, 1000, 1000, 1000] {
                let pause = backoff.next();
                let longest = Duration::from_millis(longest);
                assert!(
                    (longest.mul_f64(0.75)..=longest).contains(&pause),
                    "{pause:?} of {longest:?}"
                );
            }
            backoff.reset();
        }
        let pauses: std::collections::HashSet<_> = (0..100)
            .map(|_| (backoff.next(), backoff.reset()).0)
            .collect();
        assert!(
            pauses.len() > 10,
            "processes that fail together try at different moments"
        );
    }
}
