//! What was sent and not accepted, counted by reason. It never fills the log: one warning a minute has a sample.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::wire::{RejectReason, Rejected, Sent};

/// Interval between two warnings of the same kind.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Names of unknown fields in one warning.
const MAX_NAMES: usize = 16;
/// Ids of which a repetition is recognised before it is stored.
const MAX_IDS: usize = 65_536;

/// Records that were rejected since the start, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct RejectCounts {
    /// No JSON object, or one that was cut.
    not_json: u64,
    /// A field that must be there is not.
    missing_field: u64,
    /// A field has a value that is not understood.
    invalid_value: u64,
    /// A field is not known, and `reject_unknown_fields` is set.
    unknown_field: u64,
    /// Another record was sent under the same `event_id`.
    event_id_reused: u64,
    /// The line is longer than `max_line_bytes`.
    too_long: u64,
    /// The record is older than the retention. It is counted as received and dropped, too.
    too_old: u64,
}

#[derive(Default)]
pub(super) struct Rejections {
    /// In the order of [`RejectReason::ALL`].
    by_reason: [AtomicU64; RejectReason::ALL.len()],
    ignored_fields: AtomicU64,
    repeated_attempts: AtomicU64,
    rejected: Mutex<Notice<Option<String>>>,
    ignored: Mutex<Notice<BTreeSet<String>>>,
    ids: Mutex<RecentIds>,
}

/// What happened since the last warning.
#[derive(Default)]
struct Notice<T> {
    warned_at: Option<Instant>,
    count: u64,
    sample: T,
}

impl<T: Default> Notice<T> {
    /// Counts one more. Returns what a warning has to say, if it is time for one.
    fn note(&mut self, sample: impl FnOnce(&mut T)) -> Option<(u64, T)> {
        self.count += 1;
        sample(&mut self.sample);
        let now = Instant::now();
        if self.warned_at.is_some_and(|at| now - at < WARN_EVERY) {
            return None;
        }
        self.warned_at = Some(now);
        Some((std::mem::take(&mut self.count), std::mem::take(&mut self.sample)))
    }
}

/// An id that came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// With the same content.
    Same,
    /// With another one.
    Other,
}

/// The ids that came last, with a fingerprint of what they stand for.
#[derive(Default)]
struct RecentIds {
    contents: HashMap<Uuid, u64>,
    in_order: VecDeque<Uuid>,
}

impl Rejections {
    pub(super) fn count(&self, rejected: &Rejected) {
        let nth = RejectReason::ALL.iter().position(|reason| *reason == rejected.reason);
        if let Some(counter) = nth.and_then(|nth| self.by_reason.get(nth)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let told = lock(&self.rejected).note(|sample| {
            sample.get_or_insert_with(|| rejected.text.clone());
        });
        if let Some((rejected, sample)) = told {
            let sample = sample.unwrap_or_default();
            tracing::warn!(rejected, sample, "records were rejected; /v1/stats counts them by reason");
        }
    }

    /// Counts fields that were ignored.
    pub(super) fn ignore(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        self.ignored_fields.fetch_add(names.len() as u64, Ordering::Relaxed);
        let told = lock(&self.ignored).note(|known| {
            let room = MAX_NAMES.saturating_sub(known.len());
            known.extend(names.iter().take(room).cloned());
        });
        if let Some((records, names)) = told {
            tracing::warn!(records, ?names, "unknown fields were ignored; set reject_unknown_fields to reject them");
        }
    }

    /// Returns whether the id came before, without remembering it.
    pub(super) fn known(&self, sent: &Sent) -> Option<Known> {
        let content = *lock(&self.ids).contents.get(&sent.event_id?)?;
        Some(if content == sent.fingerprint() { Known::Same } else { Known::Other })
    }

    /// Remembers the id of a record that was accepted.
    pub(super) fn remember(&self, sent: &Sent) {
        let Some(id) = sent.event_id else { return };
        let mut ids = lock(&self.ids);
        let RecentIds { contents, in_order } = &mut *ids;
        if contents.insert(id, sent.fingerprint()).is_some() {
            return;
        }
        in_order.push_back(id);
        if in_order.len() > MAX_IDS
            && let Some(oldest) = in_order.pop_front()
        {
            contents.remove(&oldest);
        }
    }

    /// Counts an attempt that was counted before. A failure is recognised by the store.
    pub(super) fn count_repeated_attempt(&self) {
        self.repeated_attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that were rejected, by reason.
    pub(super) fn by_reason(&self) -> [(RejectReason, u64); RejectReason::ALL.len()] {
        let mut counters = self.by_reason.iter();
        RejectReason::ALL.map(|reason| (reason, counters.next().map_or(0, |counter| counter.load(Ordering::Relaxed))))
    }

    pub(super) fn counts(&self) -> RejectCounts {
        let of =
            |reason| self.by_reason().into_iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| count);
        RejectCounts {
            not_json: of(RejectReason::NotJson),
            missing_field: of(RejectReason::MissingField),
            invalid_value: of(RejectReason::InvalidValue),
            unknown_field: of(RejectReason::UnknownField),
            event_id_reused: of(RejectReason::EventIdReused),
            too_long: of(RejectReason::TooLong),
            too_old: of(RejectReason::TooOld),
        }
    }

    /// Fields that were ignored.
    pub(super) fn ignored_fields(&self) -> u64 {
        self.ignored_fields.load(Ordering::Relaxed)
    }

    /// Attempts whose id came before with the same content.
    pub(super) fn repeated_attempts(&self) -> u64 {
        self.repeated_attempts.load(Ordering::Relaxed)
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
        let json = format!(r#"{{"failure_type":"no_hit","strategy":"s","query_text":"{query}","event_id":"{id}"}}"#);
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
        assert_eq!(rejections.known(&sent(1, "two")), Some(Known::Other));
        for other in 2..=MAX_IDS as u128 {
            rejections.remember(&sent(other, "x"));
        }
        assert_eq!(rejections.known(&sent(1, "one")), Some(Known::Same));
        rejections.remember(&sent(0xffff_ffff, "x"));
        assert_eq!(rejections.known(&sent(1, "one")), None);
        assert_eq!(lock(&rejections.ids).contents.len(), MAX_IDS);
    }

    #[test]
    fn warning_comes_at_once_and_then_waits_for_its_interval() {
        let mut notice = Notice::<Option<String>>::default();
        let mut note = |text: &str| {
            notice.note(|sample| {
                sample.get_or_insert_with(|| text.to_owned());
            })
        };
        assert_eq!(note("first"), Some((1, Some("first".into()))));
        assert_eq!((note("second"), note("third")), (None, None));
        notice.warned_at = notice.warned_at.map(|at| at.checked_sub(WARN_EVERY).unwrap());
        let told = notice.note(|sample| {
            sample.get_or_insert_with(|| "fourth".to_owned());
        });
        assert_eq!(told, Some((3, Some("second".into()))));
    }
}
