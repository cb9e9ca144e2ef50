//! Records that were lost, by the time of their loss, until they are stored: the store may be away
//! for long.

use std::collections::BTreeMap;

use crate::model::stats::DropCounts;
use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};

/// Number of spans above which drops are merged: the minutes of a day. A longer outage merges them
/// by the hour, and then by the day, so that an outage of months takes a bounded amount of memory
/// and no count is dropped.
const MANY_SPANS: usize = 24 * 60;

/// Losses by the beginning of their minute.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// All losses that were noted so far.
    noted: DropCounts,
    by_minute: BTreeMap<Timestamp, DropCounts>,
}

impl Losses {
    /// Notes what was lost until `now`: `dropped` is all that was ever lost.
    pub(crate) fn note(&mut self, now: Timestamp, dropped: DropCounts) {
        let new_drops = dropped.since(&self.noted);
        if new_drops.total() > 0 {
            self.noted = dropped;
            self.by_minute
                .entry(now.floor(MINUTE_MS))
                .or_default()
                .merge(&new_drops);
            bound(&mut self.by_minute);
        }
    }

    /// Moves what was noted to `others`.
    pub(crate) fn move_to(&mut self, others: &mut BTreeMap<Timestamp, DropCounts>) {
        for (minute, drops) in std::mem::take(&mut self.by_minute) {
            others.entry(minute).or_default().merge(&drops);
        }
        bound(others);
    }
}

/// Merges spans if there are many: gives up resolution, never a count.
fn bound(spans: &mut BTreeMap<Timestamp, DropCounts>) {
    for span in [HOUR_MS, DAY_MS] {
        if spans.len() <= MANY_SPANS {
            return;
        }
        for (at, drops) in std::mem::take(spans) {
            spans.entry(at.floor(span)).or_default().merge(&drops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millis(milliseconds)
    }

    fn full(buffer_full: u64) -> DropCounts {
        DropCounts {
            buffer_full,
            ..DropCounts::default()
        }
    }

    #[test]
    fn losses_are_noted_at_their_minute_and_once() {
        let mut losses = Losses::default();
        losses.note(at(MINUTE_MS - 1), full(3));
        losses.note(at(MINUTE_MS), full(3));
        losses.note(at(5 * MINUTE_MS + 7), full(10));
        losses.note(
            at(5 * MINUTE_MS + 8),
            DropCounts {
                unsaved: 2,
                ..full(11)
            },
        );
        let mut moved = BTreeMap::new();
        losses.move_to(&mut moved);
        let expected = [
            (at(0), full(3)),
            (
                at(5 * MINUTE_MS),
                DropCounts {
                    unsaved: 2,
                    ..full(8)
                },
            ),
        ];
        assert_eq!(moved, BTreeMap::from(expected));
        losses.note(
            at(9 * MINUTE_MS),
            DropCounts {
                unsaved: 2,
                ..full(12)
            },
        );
        losses.move_to(&mut moved);
        assert_eq!(
            (moved.len(), moved.get(&at(9 * MINUTE_MS))),
            (3, Some(&full(1)))
        );
    }

    #[test]
    fn an_outage_of_months_costs_minutes_and_no_count() {
        let mut losses = Losses::default();
        let minutes = 100 * 24 * 60_u32;
        for minute in 0..minutes {
            losses.note(
                at(i64::from(minute) * MINUTE_MS),
                full(u64::from(minute) + 1),
            );
            assert!(losses.by_minute.len() <= MANY_SPANS + 1);
        }
        let lost: u64 = losses.by_minute.values().map(DropCounts::total).sum();
        assert_eq!(lost, u64::from(minutes));
        assert!(losses.by_minute.len() > 60, "days at least");
    }
}
