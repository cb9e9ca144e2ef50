//! Rejected records and ignored fields, counted by reason. Invalid input cannot flood the log: at
//! most one warning a minute of each kind is logged, with a sample.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::wire::{RejectReason, Rejected, Sent};

/// Minimum interval between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of names of unknown fields in one warning.
const MAX_NAMES: usize = 16;
/// Number of recent ids that are remembered. Together they take a few megabytes at most.
const MAX_IDS: usize = 65_536;

/// Rejected records since the start, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct RejectCounts {
    /// Records that are no complete JSON object.
    not_json: u64,
    /// Records without a required field.
    missing_field: u64,
    /// Records with an invalid value in a field.
    invalid_value: u64,
    /// Records with an unknown field. They are rejected only if `reject_unknown_fields` is set.
    unknown_field: u64,
    /// Records whose `event_id` was received before with different content.
    event_id_reused: u64,
    /// Records on a line longer than `max_line_bytes`.
    too_long: u64,
    /// Records that are older than the retention. They also count as received and dropped.
    too_old: u64,
}

/// Counters of rejected records, ignored fields and duplicates, with the recent ids.
///
/// Each mutex is locked alone, so their order does not matter.
#[derive(Default)]
pub(crate) struct Rejections {
    /// Counters in the order of [`RejectReason::ALL`].
    by_reason: [AtomicU64; RejectReason::ALL.len()],
    ignored_fields: AtomicU64,
    duplicate_attempts: AtomicU64,
    rejected_warning: Mutex<WarningThrottle<Option<String>>>,
    ignored_warning: Mutex<WarningThrottle<BTreeSet<String>>>,
    ids: Mutex<RecentIds>,
}

/// Throttle of a warning. Collects events until the next warning is due.
#[derive(Default)]
struct WarningThrottle<T> {
    warned_at: Option<Instant>,
    count: u64,
    sample: T,
}

impl<T: Default> WarningThrottle<T> {
    /// Counts an event and updates the sample. Returns the count and the sample since the last
    /// warning if a warning is due.
    fn record(&mut self, update_sample: impl FnOnce(&mut T)) -> Option<(u64, T)> {
        self.count += 1;
        update_sample(&mut self.sample);
        let now = Instant::now();
        if self.warned_at.is_some_and(|at| now - at < WARN_INTERVAL) {
            return None;
        }
        self.warned_at = Some(now);
        Some((
            std::mem::take(&mut self.count),
            std::mem::take(&mut self.sample),
        ))
    }
}

/// Relation of a record to an earlier record with the same `event_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The content is the same.
    Same,
    /// The content differs.
    Different,
}

/// The most recent ids, each with a fingerprint of its record.
#[derive(Default)]
struct RecentIds {
    fingerprints: HashMap<Uuid, u64>,
    in_order: VecDeque<Uuid>,
}

impl Rejections {
    /// Counts a rejected record. Logs a warning if one is due.
    pub(crate) fn count(&self, rejected: &Rejected) {
        let index = RejectReason::ALL
            .iter()
            .position(|reason| *reason == rejected.reason);
        if let Some(counter) = index.and_then(|index| self.by_reason.get(index)) {
            // Relaxed, as all counters here: statistics that no other memory depends on.
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let warning = lock(&self.rejected_warning).record(|sample| {
            sample.get_or_insert_with(|| rejected.text.clone());
        });
        if let Some((rejected, sample)) = warning {
            let sample = sample.unwrap_or_default();
            tracing::warn!(
                rejected,
                sample,
                "records were rejected; /v1/stats counts them by reason"
            );
        }
    }

    /// Counts ignored fields. Logs a warning if one is due.
    pub(crate) fn count_ignored(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        self.ignored_fields
            .fetch_add(names.len() as u64, Ordering::Relaxed);
        let warning = lock(&self.ignored_warning).record(|sample| {
            let room = MAX_NAMES.saturating_sub(sample.len());
            sample.extend(names.iter().take(room).cloned());
        });
        if let Some((records, names)) = warning {
            tracing::warn!(
                records,
                ?names,
                "unknown fields were ignored; set reject_unknown_fields to reject them"
            );
        }
    }

    /// Compares the record to an earlier one with the same id. Returns `None` if there is none
    /// among the recent ids.
    pub(crate) fn known(&self, sent: &Sent) -> Option<Known> {
        let fingerprint = *lock(&self.ids).fingerprints.get(&sent.event_id?)?;
        Some(if fingerprint == sent.fingerprint() {
            Known::Same
        } else {
            Known::Different
        })
    }

    /// Remembers the id of an accepted record, in place of the oldest one.
    pub(crate) fn remember(&self, sent: &Sent) {
        let Some(id) = sent.event_id else { return };
        let mut ids = lock(&self.ids);
        let RecentIds {
            fingerprints,
            in_order,
        } = &mut *ids;
        if fingerprints.insert(id, sent.fingerprint()).is_some() {
            return;
        }
        in_order.push_back(id);
        if in_order.len() > MAX_IDS
            && let Some(oldest) = in_order.pop_front()
        {
            fingerprints.remove(&oldest);
        }
    }

    /// Counts an attempt whose `event_id` was counted before. The store recognises such failures,
    /// but it keeps no ids of attempts.
    pub(crate) fn count_duplicate_attempt(&self) {
        self.duplicate_attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of rejected records for each reason.
    pub(crate) fn by_reason(&self) -> [(RejectReason, u64); RejectReason::ALL.len()] {
        let mut counters = self.by_reason.iter();
        RejectReason::ALL.map(|reason| {
            (
                reason,
                counters
                    .next()
                    .map_or(0, |counter| counter.load(Ordering::Relaxed)),
            )
        })
    }

    pub(crate) fn counts(&self) -> RejectCounts {
        let count = |reason| {
            self.by_reason()
                .into_iter()
                .find(|(other, _)| *other == reason)
                .map_or(0, |(_, count)| count)
        };
        RejectCounts {
            not_json: count(RejectReason::NotJson),
            missing_field: count(RejectReason::MissingField),
            invalid_value: count(RejectReason::InvalidValue),
            unknown_field: count(RejectReason::UnknownField),
            event_id_reused: count(RejectReason::EventIdReused),
            too_long: count(RejectReason::TooLong),
            too_old: count(RejectReason::TooOld),
        }
    }

    /// Returns the number of ignored fields.
    pub(crate) fn ignored_fields(&self) -> u64 {
        self.ignored_fields.load(Ordering::Relaxed)
    }

    /// Returns the number of attempts whose `event_id` was counted before with the same content.
    pub(crate) fn duplicate_attempts(&self) -> u64 {
        self.duplicate_attempts.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(id: u128, query: &str) -> Sent {
        let id = Uuid::from_u128(id);
        let json = format!(
            r#"{{"failure_type":"no_hit","strategy":"s","query_text":"{query}","event_id":"{id}"}}"#
        );
        Sent::from_json(json.as_bytes(), false).unwrap()
    }

    #[test]
    fn id_is_known_until_as_many_others_came() {
        let rejections = Rejections::default();
        assert_eq!(rejections.known(&sent(1, "one")), None);
        for _ in 0..2 {
            rejections.remember(&sent(1, "one"));
        }
        assert_eq!(rejections.known(&sent(1, "one")), Some(Known::Same));
        assert_eq!(rejections.known(&sent(1, "two")), Some(Known::Different));
        for other in 2..=MAX_IDS as u128 {
            rejections.remember(&sent(other, "x"));
        }
        assert_eq!(rejections.known(&sent(1, "one")), Some(Known::Same));
        rejections.remember(&sent(0xffff_ffff, "x"));
        assert_eq!(rejections.known(&sent(1, "one")), None);
        assert_eq!(lock(&rejections.ids).fingerprints.len(), MAX_IDS);
    }

    #[test]
    fn warning_comes_at_once_and_then_waits_for_its_interval() {
        let mut throttle = WarningThrottle::<Option<String>>::default();
        let mut record = |text: &str| {
            throttle.record(|sample| {
                sample.get_or_insert_with(|| text.to_owned());
            })
        };
        assert_eq!(record("first"), Some((1, Some("first".into()))));
        assert_eq!((record("second"), record("third")), (None, None));
        throttle.warned_at = throttle
            .warned_at
            .map(|at| at.checked_sub(WARN_INTERVAL).unwrap());
        let warning = throttle.record(|sample| {
            sample.get_or_insert_with(|| "fourth".to_owned());
        });
        assert_eq!(warning, Some((3, Some("second".into()))));
    }
}
