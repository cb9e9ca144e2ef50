//! Operational counters. The record balance itself is in `buffer`.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::model::histogram::Histogram;

/// Operational counters; the record balance itself is in [`Buffer`].
///
/// Each counter is read alone, so that no ordering between two of them matters. They are changed
/// with `AcqRel` and read with `Acquire` all the same: a thread that sees a flush counted sees what
/// the flush did, which costs nothing on common processors.
pub(crate) struct Counters {
    /// Transactions with records that were committed.
    pub(crate) flushes: AtomicU64,
    /// Flush jobs that ended with an error of the store.
    pub(crate) failed_flushes: AtomicU64,
    /// Rows that were deleted for their age or for the size of the database.
    pub(crate) purged: AtomicU64,
    /// The part of `purged` that was deleted for the size of the database.
    pub(crate) purged_by_size: AtomicU64,
    /// Records and attempts that were dated in the future and got the present moment.
    pub(crate) redated: AtomicU64,
    /// Failures of either actor after which it was restarted.
    pub(crate) restarts: AtomicU64,
    /// Records that were stored already under their `event_id`. They count as persisted, too.
    pub(crate) duplicates: AtomicU64,
    /// Records whose source or labels found no place in the store.
    pub(crate) sources_left_out: AtomicU64,
    /// Milliseconds of a [`Timestamp`]; 0: never.
    pub(crate) last_flush: AtomicI64,
    /// Seconds of a transaction with records, from its begin to its accounting.
    pub(crate) flush_seconds: Histogram<10>,
    /// Records of a transaction.
    pub(crate) flush_records: Histogram<7>,
    /// When records were committed last, or none waited, in milliseconds since `started`: an atomic
    /// has room for a number and not for an `Instant`.
    ready_at: AtomicU64,
    /// `true` from a failure of the store until it is proven that rows are committed.
    unproven: AtomicBool,
    /// When the event loop of the actor had a turn last, in milliseconds since the start.
    beat_at: AtomicU64,
    pub(super) started: Instant,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            flushes: AtomicU64::new(0),
            failed_flushes: AtomicU64::new(0),
            purged: AtomicU64::new(0),
            purged_by_size: AtomicU64::new(0),
            redated: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            sources_left_out: AtomicU64::new(0),
            last_flush: AtomicI64::new(0),
            flush_seconds: Histogram::new([
                0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
            ]),
            flush_records: Histogram::new([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 2048.0]),
            ready_at: AtomicU64::new(0),
            unproven: AtomicBool::new(false),
            beat_at: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

impl Counters {
    /// Notes that rows were committed, or could have been.
    pub(crate) fn store_works(&self) {
        // In this order: a thread that sees the fault gone and reads `ready_at` a moment too early
        // reports itself stale at worst.
        self.unproven.store(false, Ordering::Release);
        self.ready_at.store(self.now(), Ordering::Release);
    }

    /// Notes that nothing waits to be written. After a failure this proves nothing: the fault may
    /// show itself only with the next record, and a probe has to clear it.
    pub(crate) fn idle(&self) {
        if !self.is_unproven() {
            self.ready_at.store(self.now(), Ordering::Release);
        }
    }

    /// Notes that the store failed.
    pub(crate) fn store_failed(&self) {
        self.unproven.store(true, Ordering::Release);
    }

    /// Returns `true` if the store failed and has not proven since that it takes rows.
    pub(crate) fn is_unproven(&self) -> bool {
        self.unproven.load(Ordering::Acquire)
    }

    /// Notes that the event loop of the actor has a turn.
    ///
    /// A timer of the supervisor calls it each second. If it stops, something blocks the thread of
    /// the arbiter, such as a handler of the application.
    pub(crate) fn beat(&self) {
        self.beat_at.store(self.now(), Ordering::Release);
    }

    /// Returns the time since records were committed last, or none waited.
    pub(super) fn not_ready_for(&self) -> Duration {
        self.since(&self.ready_at)
    }

    /// Time since the event loop of the actor had a turn last.
    pub(super) fn beat_age(&self) -> Duration {
        self.since(&self.beat_at)
    }

    /// Returns milliseconds since `started`.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the time since `at`, a moment in milliseconds since `started`. Saturating, because
    /// another thread may have stored a moment after the clock was read here.
    fn since(&self, at: &AtomicU64) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(at.load(Ordering::Acquire)))
    }
}
