//! The counters of records: received, persisted, dropped by reason, buffered.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Result of [`LoggerHandle::log`](crate::LoggerHandle::log). Callers may ignore it: the logger
/// counts drops, and warns about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogOutcome {
    /// The record is in the buffer and will be stored.
    Queued,
    /// The record was dropped, for this reason.
    Dropped(DropReason),
}

/// Reason why a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DropReason {
    /// The buffer holds as many records as it may. Cure: a larger `buffer_capacity`, or a faster
    /// disk.
    BufferFull,
    /// The buffer is full because the logger cannot be restarted. Cure: see the last warning it
    /// logged.
    Unavailable,
    /// The logger was shut down before the record came.
    Closed,
    /// The store refuses this very record, though it takes others.
    Rejected,
    /// The record is dated before everything that the retention keeps, and would be deleted at
    /// once. Cure: a longer `retention_days`, or a right `created_at`.
    TooOld,
    /// Accepted, but not stored when the deadline of the shutdown passed.
    Unsaved,
    /// The logger was configured with `enabled(false)`. Not counted: nothing is received.
    Disabled,
}

impl DropReason {
    /// The reason in one or two words: `buffer_full` and so on.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::Unavailable => "unavailable",
            Self::Closed => "closed",
            Self::Rejected => "rejected",
            Self::TooOld => "too_old",
            Self::Unsaved => "unsaved",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Dropped records by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct DropCounts {
    /// See [`DropReason::BufferFull`].
    pub buffer_full: u64,
    /// See [`DropReason::Unavailable`].
    pub unavailable: u64,
    /// See [`DropReason::Closed`].
    pub closed: u64,
    /// See [`DropReason::Rejected`].
    pub rejected: u64,
    /// See [`DropReason::TooOld`].
    pub too_old: u64,
    /// See [`DropReason::Unsaved`].
    pub unsaved: u64,
}

impl DropCounts {
    /// All lost records.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, records)| records).sum()
    }

    /// Each reason for which records may be lost, with how many were.
    pub fn by_reason(&self) -> [(DropReason, u64); 6] {
        let Self {
            buffer_full,
            unavailable,
            closed,
            rejected,
            too_old,
            unsaved,
        } = *self;
        [
            (DropReason::BufferFull, buffer_full),
            (DropReason::Unavailable, unavailable),
            (DropReason::Closed, closed),
            (DropReason::Rejected, rejected),
            (DropReason::TooOld, too_old),
            (DropReason::Unsaved, unsaved),
        ]
    }

    /// Returns the records dropped since `before`, an earlier count.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            buffer_full: self.buffer_full.saturating_sub(before.buffer_full),
            unavailable: self.unavailable.saturating_sub(before.unavailable),
            closed: self.closed.saturating_sub(before.closed),
            rejected: self.rejected.saturating_sub(before.rejected),
            too_old: self.too_old.saturating_sub(before.too_old),
            unsaved: self.unsaved.saturating_sub(before.unsaved),
        }
    }

    /// Adds other losses.
    pub(crate) fn merge(&mut self, other: &Self) {
        // By name, so that the compiler asks for a reason that is added later.
        let Self {
            buffer_full,
            unavailable,
            closed,
            rejected,
            too_old,
            unsaved,
        } = other;
        self.buffer_full += buffer_full;
        self.unavailable += unavailable;
        self.closed += closed;
        self.rejected += rejected;
        self.too_old += too_old;
        self.unsaved += unsaved;
    }

    /// Adds to the reason with this name. One of a newer version is passed over.
    pub(crate) fn add(&mut self, reason: &str, records: u64) {
        let Self {
            buffer_full,
            unavailable,
            closed,
            rejected,
            too_old,
            unsaved,
        } = self;
        let counters = [
            (DropReason::BufferFull, buffer_full),
            (DropReason::Unavailable, unavailable),
            (DropReason::Closed, closed),
            (DropReason::Rejected, rejected),
            (DropReason::TooOld, too_old),
            (DropReason::Unsaved, unsaved),
        ];
        for (known, counter) in counters {
            if known.as_str() == reason {
                *counter += records;
            }
        }
    }
}

/// A consistent snapshot of the logger's counters. All counts are since the logger was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Records that callers handed over: persisted, dropped and buffered ones. A record in the
    /// actor's mailbox is received when the actor takes it out.
    pub received: u64,
    /// Records that are committed to the database.
    pub persisted: u64,
    /// Records that are held in memory: queued, or in the batch that is being written.
    pub buffered: u64,
    /// Records that were lost.
    pub dropped: DropCounts,
    /// Batches that were committed.
    pub flushes: u64,
    /// Attempts to commit a batch that failed; the batch was kept.
    pub failed_flushes: u64,
    /// Old rows that were deleted.
    pub purged: u64,
    /// Of these, the ones that were deleted because the database was larger than
    /// [`max_database_bytes`](crate::LoggerConfig::max_database_bytes).
    pub purged_by_size: u64,
    /// Records and attempts that were dated more than five minutes ahead of the clock, and got the
    /// present moment instead.
    pub redated: u64,
    /// Restarts of the actor.
    pub restarts: u64,
    /// Of the persisted records, those that were stored already under the same `event_id`, and are
    /// not stored again.
    pub duplicates: u64,
    /// Records and attempts that were stored without their source or without their labels, because
    /// the log has 1,000 combinations of them already.
    #[serde(default)]
    pub sources_left_out: u64,
    /// Attempts that monitors counted, whatever their outcome.
    pub attempts: u64,
    /// Of these, the ones that are committed to the database. The rest is held in memory, a few
    /// numbers for each minute, strategy and outcome.
    pub attempts_persisted: u64,
    /// `true` while the actor leaves its mailbox unread because the buffer is full. Each address
    /// then holds one record at most that is not received yet; `do_send` may force in more.
    pub mailbox_full: bool,
    /// When a batch was committed last.
    pub last_flush: Option<SystemTime>,
}

impl Stats {
    /// Returns `true` if `received == persisted + dropped + buffered`, which holds at any instant.
    pub fn is_balanced(&self) -> bool {
        self.received == self.persisted + self.dropped.total() + self.buffered
    }
}

/// The accounting: `received 57 = persisted 57 + dropped 0 + buffered 0`.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            received,
            persisted,
            buffered,
            dropped,
            ..
        } = self;
        write!(
            f,
            "received {received} = persisted {persisted} + dropped {} + buffered {buffered}",
            dropped.total()
        )
    }
}

/// Result of [`delete`](crate::LoggerHandle::delete).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeleteReport {
    /// Failures that were deleted.
    pub rows: u64,
    /// Statuses of their queries that were deleted.
    pub statuses: u64,
    /// `true` if nothing of them is left in the file and its journal. Otherwise a reader keeps the
    /// journal for a while, or the file is an application's, whose free pages are not touched.
    pub is_erased: bool,
}

/// Result of [`flush`](crate::LoggerHandle::flush).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FlushReport {
    /// Records that were committed between the request and its answer.
    pub persisted: u64,
    /// Records that the store refused, between the request and its answer.
    pub rejected: u64,
}

/// Result of [`shutdown`](crate::LoggerHandle::shutdown).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Records that were committed after the shutdown began.
    pub drained: u64,
    /// Accepted records that were not stored when the deadline passed: lost.
    pub unsaved: u64,
    /// Attempts that monitors counted and that were not stored when the deadline passed: lost.
    pub attempts_unsaved: u64,
    /// Of the unsaved ones, those whose transaction was being committed at the deadline. They may
    /// turn up in the database after all.
    pub in_doubt: u64,
    /// The final counters.
    pub stats: Stats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_added_and_merged_reason_by_reason() {
        let mut all = DropCounts::default();
        for (records, (reason, _)) in (1..).zip(DropCounts::default().by_reason()) {
            let mut one = DropCounts::default();
            one.add(reason.as_str(), records);
            one.add(reason.as_str(), 10 * records);
            all.merge(&one);
            all.merge(&one);
        }
        assert_eq!(
            all.by_reason().map(|(_, records)| records),
            [22, 44, 66, 88, 110, 132]
        );
        let before = all;
        all.add("of a newer version", 1);
        assert_eq!(all, before);
    }
}
