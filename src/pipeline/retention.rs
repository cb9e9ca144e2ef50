//! The retention of a database: read, changed by the settings of a logger, and applied.
//!
//! The database holds the retention, because several processes may use one file and a process that
//! keeps rows for 90 days must not meet another one that deletes them after 30. A logger writes its
//! own settings at its start; the last one wins, and a log line says so.

use crate::error::StoreError;
use crate::model::time::Timestamp;
use crate::retention::{
    ClockState, Reading, RetentionClock, RetentionDays, StoredRetention, cutoff,
};
use crate::rollup::resolution::Resolution;
use crate::store::write::{Progress, Store};

/// Days for which counts by minute and by hour are kept at most. The settings give those of counts
/// by day, which include them, so that a deleted minute is still in its hour and its day.
const MINUTES_KEPT_DAYS: u32 = 7;
const HOURS_KEPT_DAYS: u32 = 90;

/// The retention in force at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) days: RetentionDays,
    /// The time that decides how old rows are.
    pub(crate) time: Timestamp,
    /// The wall clock.
    pub(crate) wall: Timestamp,
}

/// Reads the retention in force from `store` without a change.
pub(crate) fn read(
    store: &mut dyn Store,
    clock: &mut RetentionClock,
) -> Result<InForce, StoreError> {
    let (reading, stored) = (Reading::now(), store.retention()?);
    let state = clock.advance(stored.clock, reading, stored.days().allowance());
    Ok(InForce {
        days: stored.days(),
        time: state.time_at(&reading),
        wall: reading.wall,
    })
}

/// Reads the retention in force, after `change` has changed the days and the clock has moved on.
/// Writes only what is worth it.
pub(crate) fn update(
    store: &mut dyn Store,
    clock: &mut RetentionClock,
    change: impl Fn(StoredRetention) -> StoredRetention,
) -> Result<InForce, StoreError> {
    let (reading, stored) = (Reading::now(), store.retention()?);
    let changed = change(stored);
    let allowance = changed.days().allowance();
    let before = *clock;
    let mut state = clock.advance(stored.clock, reading, allowance);
    let moved = stored
        .clock
        .is_none_or(|stored| stored.must_follow(&state, allowance));
    if moved || changed != stored {
        // Computed once more from what is stored within the transaction: another process may have
        // written its reading since `store.retention`, and an older reading must not replace a
        // newer one. The clock starts from its state before the first computation, because each
        // call of `advance` remembers its reading.
        store.change_retention(&mut |stored| {
            *clock = before;
            state = clock.advance(stored.clock, reading, allowance);
            StoredRetention {
                clock: Some(state),
                ..change(stored)
            }
        })?;
        log_days(&stored, &changed);
        log_doubt(stored.clock, &state, reading.wall);
    }
    Ok(InForce {
        days: changed.days(),
        time: state.time_at(&reading),
        wall: reading.wall,
    })
}

/// Deletes one chunk of the counts of attempts, and of drops, that are past their retention.
pub(crate) fn purge_attempts(
    store: &mut dyn Store,
    days: RetentionDays,
    time: Timestamp,
) -> Result<Progress, StoreError> {
    let kept = |most: u32| {
        if days.attempts == 0 {
            most
        } else {
            days.attempts.min(most)
        }
    };
    let minutes = store.expire(Resolution::Minute, cutoff(time, kept(MINUTES_KEPT_DAYS)))?;
    let hours = store.expire(Resolution::Hour, cutoff(time, kept(HOURS_KEPT_DAYS)))?;
    let before = cutoff(time, days.attempts);
    let days = store.expire(Resolution::Day, before)?;
    store.expire_drops(before)?;
    Ok(minutes.and(hours).and(days))
}

/// Logs what a logger changes for all others.
fn log_days(before: &StoredRetention, after: &StoredRetention) {
    let changes = [
        (
            "retention_days",
            before.failures_days,
            before.days().failures,
            after.days().failures,
        ),
        (
            "attempts_retention_days",
            before.attempts_days,
            before.days().attempts,
            after.days().attempts,
        ),
    ];
    for (setting, configured, before, after) in changes
        .into_iter()
        .filter(|(_, _, before, after)| before != after)
    {
        let is_shorter = after != 0 && (before == 0 || after < before);
        if is_shorter && configured.is_some() {
            tracing::warn!(
                setting,
                before,
                after,
                "the retention is shorter now: older rows are deleted"
            );
        } else {
            tracing::info!(setting, before, after, "the retention has changed");
        }
    }
}

fn log_doubt(before: Option<ClockState>, after: &ClockState, wall: Timestamp) {
    if after.ahead.is_some() && after.ahead != before.and_then(|before| before.ahead) {
        tracing::warn!(
            clock = wall.to_string(),
            trusted = after.trusted.wall.to_string(),
            "the clock moved on further than anything explains: old rows are kept until it was right for a day of use; \
             check the clock"
        );
    }
}
