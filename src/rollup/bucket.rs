//! Attempts that were counted and are not written yet, by minute, strategy and outcome.
//!
//! While the store fails, buckets pile up. Their memory is bounded by resolution: above a number of
//! bytes, attempts of a new minute are added to their hour, then to their day, and in the end to
//! one bucket for all times. No count is dropped, because a count that is wrong is worse than one
//! whose minute is unknown.

use std::collections::HashMap;
use std::mem::size_of;

use crate::model::outcome::OutcomeKind;
use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use crate::rollup::sketch::Sketch;
use crate::rollup::{Bucket, SeriesId};

/// Bytes of buckets at which minutes are given up: enough for 200,000 of them with one attempt each.
const MANY_BYTES: usize = 32 << 20;
/// Bytes of a bucket without its values. Twice its size, because a hash table has more places than
/// entries.
const BUCKET_BYTES: usize = 2 * size_of::<(BucketKey, Counted)>();
/// Values of a bucket up to this number are kept as they are: a sketch takes two kilobytes.
const FEW_VALUES: usize = 16;

/// The minute, strategy and outcome of a bucket; also a longer span that begins with the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BucketKey {
    /// The start of the minute, or of a longer span.
    pub(crate) started_at: Timestamp,
    pub(crate) series: SeriesId,
    pub(crate) kind: OutcomeKind,
}

impl BucketKey {
    /// Returns the key of the minute of `at`.
    pub(crate) fn new(at: Timestamp, series: SeriesId, kind: OutcomeKind) -> Self {
        Self {
            started_at: at.floor(MINUTE_MS),
            series,
            kind,
        }
    }

    /// Returns the key of the span of `span` milliseconds that contains this minute.
    fn within(self, span: i64) -> Self {
        Self {
            started_at: self.started_at.floor(span),
            ..self
        }
    }
}

/// Attempts that are added to a bucket, with latency and score if it is one.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) attempts: u64,
    /// Of these, failures that were logged without a monitor.
    pub(crate) unobserved: u64,
    /// Milliseconds; `None`: not measured, or given up.
    pub(crate) latency_ms: Option<f64>,
    /// `None`: there is none, or it was given up.
    pub(crate) top_score: Option<f64>,
}

/// All buckets that wait for the writer. Adding an attempt takes the same time however many there
/// are.
pub(crate) struct Buckets {
    buckets: HashMap<BucketKey, Counted>,
    bytes: usize,
    many_bytes: usize,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            buckets: HashMap::new(),
            bytes: 0,
            many_bytes: MANY_BYTES,
        }
    }
}

impl Buckets {
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Adds what `counts` says to its bucket.
    pub(crate) fn add(&mut self, key: BucketKey, counts: &Counts) {
        // Counts are kept beyond any bound, and values up to half as much again as the bound.
        let keeps_values = self.bytes < self.many_bytes + self.many_bytes / 2;
        let key = self.fitting_key(key);
        let bucket = self.buckets.entry(key).or_insert_with(|| {
            self.bytes += BUCKET_BYTES;
            Counted::default()
        });
        bucket.attempts += counts.attempts;
        bucket.unobserved += counts.unobserved;
        if keeps_values {
            let before = bucket.bytes();
            bucket.latency.extend(counts.latency_ms);
            bucket.top_score.extend(counts.top_score);
            // Many values may take less memory than few.
            self.bytes = (self.bytes + bucket.bytes()).saturating_sub(before);
        }
    }

    /// Removes at most `limit` buckets.
    pub(crate) fn take(&mut self, limit: usize) -> impl Iterator<Item = (BucketKey, Bucket)> {
        let bytes = &mut self.bytes;
        self.buckets
            .extract_if(|_, _| true)
            .take(limit)
            .map(|(key, bucket)| {
                *bytes = bytes.saturating_sub(BUCKET_BYTES + bucket.bytes());
                (key, bucket.into())
            })
    }

    /// Returns the key itself, or that of a longer span if there is no memory for another bucket:
    /// resolution is given up and no count. Buckets that are there stay as they are, so that
    /// nothing is ever rebuilt.
    fn fitting_key(&self, key: BucketKey) -> BucketKey {
        // Each further eighth of the bound makes the spans longer.
        let eighths = 8 * self.bytes / self.many_bytes.max(1);
        if eighths < 8 || self.buckets.contains_key(&key) {
            return key;
        }
        key.within(match eighths {
            8 => HOUR_MS,
            9 => DAY_MS,
            10 => 32 * DAY_MS,
            _ => i64::MAX,
        })
    }
}

/// A bucket that waits, in little memory.
#[derive(Default)]
struct Counted {
    attempts: u64,
    unobserved: u64,
    latency: Values,
    top_score: Values,
}

impl Counted {
    fn bytes(&self) -> usize {
        self.latency.bytes() + self.top_score.bytes()
    }
}

impl From<Counted> for Bucket {
    fn from(
        Counted {
            attempts,
            unobserved,
            latency,
            top_score,
        }: Counted,
    ) -> Self {
        Self {
            attempts,
            unobserved,
            latency: latency.into(),
            top_score: top_score.into(),
        }
    }
}

/// Values on their way to a sketch.
///
/// Most buckets have one value or few, and take no sketch of two kilobytes for them.
#[derive(Default)]
enum Values {
    #[default]
    None,
    One(f64),
    Few(Vec<f64>),
    Many(Box<Sketch>),
}

impl Values {
    /// Adds a value, if there is one.
    fn extend(&mut self, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            return;
        };
        match self {
            Self::None => *self = Self::One(value),
            Self::One(first) => *self = Self::Few(vec![*first, value]),
            Self::Few(values) if values.len() < FEW_VALUES => values.push(value),
            Self::Few(values) => {
                let mut sketch = Box::<Sketch>::default();
                values
                    .iter()
                    .chain([&value])
                    .for_each(|value| sketch.add(*value));
                *self = Self::Many(sketch);
            }
            Self::Many(sketch) => sketch.add(value),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::None | Self::One(_) => 0,
            Self::Few(values) => values.capacity() * size_of::<f64>(),
            Self::Many(sketch) => sketch.bytes(),
        }
    }
}

impl From<Values> for Sketch {
    fn from(values: Values) -> Self {
        let mut sketch = Self::default();
        match values {
            Values::None => {}
            Values::One(value) => sketch.add(value),
            Values::Few(values) => values.into_iter().for_each(|value| sketch.add(value)),
            Values::Many(many) => return *many,
        }
        sketch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(milliseconds: i64) -> BucketKey {
        BucketKey::new(
            Timestamp::from_millis(milliseconds),
            0,
            OutcomeKind::Success,
        )
    }

    fn one(latency_ms: f64, top_score: f64) -> Counts {
        Counts {
            attempts: 1,
            unobserved: 0,
            latency_ms: Some(latency_ms),
            top_score: Some(top_score),
        }
    }

    #[test]
    fn few_and_many_values_become_the_same_sketch() {
        for count in [0, 1, 2, FEW_VALUES, FEW_VALUES + 1, 1000] {
            let mut buckets = Buckets::default();
            let mut sketch = Sketch::default();
            for nth in 0..count {
                let value = 1.0 + nth as f64;
                buckets.add(key(0), &one(value, f64::NAN));
                sketch.add(value);
            }
            let bucket = buckets
                .take(usize::MAX)
                .next()
                .map(|(_, bucket)| bucket)
                .unwrap_or_default();
            assert_eq!(
                (bucket.attempts, bucket.latency.count()),
                (count as u64, count as u64)
            );
            assert_eq!(
                (bucket.latency.percentile(50), bucket.latency.max()),
                (sketch.percentile(50), sketch.max())
            );
            assert_eq!(bucket.top_score.count(), 0, "NaN is no value");
        }
    }

    #[test]
    fn taking_in_slices_returns_each_bucket_once_and_its_memory() {
        let mut buckets = Buckets::default();
        (0..1000).for_each(|minute| buckets.add(key(minute * MINUTE_MS), &one(1.0, 0.5)));
        let mut slices = Vec::new();
        let mut minutes = std::collections::HashSet::new();
        while buckets.len() > 0 {
            slices.push(
                buckets
                    .take(300)
                    .map(|(key, _)| minutes.insert(key.started_at))
                    .count(),
            );
        }
        assert_eq!(
            (slices, minutes.len(), buckets.bytes),
            (vec![300, 300, 300, 100], 1000, 0)
        );
    }

    #[test]
    fn a_week_of_minutes_of_many_strategies_keeps_its_resolution() {
        let mut buckets = Buckets::default();
        for series in 0..16 {
            for minute in 0..10_080 {
                buckets.add(
                    BucketKey {
                        series,
                        ..key(minute * MINUTE_MS)
                    },
                    &one(1.0, 0.5),
                );
            }
        }
        assert_eq!(buckets.len(), 16 * 10_080);
    }

    /// However many attempts of however many moments wait: memory is bounded, no count is lost, and
    /// what is given up is resolution of the later ones.
    #[test]
    fn a_store_that_fails_for_long_costs_resolution_and_no_count() {
        const ATTEMPTS: u64 = 1_000_000;
        let mut buckets = Buckets {
            many_bytes: 1 << 20,
            ..Buckets::default()
        };
        for nth in 0..ATTEMPTS {
            // From 1970 to the year 3000, each minute once, then again.
            let at = i64::try_from(nth).unwrap() * 541 * MINUTE_MS;
            buckets.add(key(at), &one(nth as f64, 0.5));
            buckets.add(
                key(at),
                &Counts {
                    unobserved: 1,
                    ..one(1.0, f64::NAN)
                },
            );
        }
        for nth in 0..100 {
            (0..2000).for_each(|_| buckets.add(key(nth * 541 * MINUTE_MS), &one(1.0, 0.5)));
        }
        assert!(buckets.bytes < 2 << 20, "{} bytes", buckets.bytes);
        let (mut attempts, mut unobserved, mut minutes) = (0, 0, 0);
        for (key, bucket) in buckets.take(usize::MAX) {
            attempts += bucket.attempts;
            unobserved += bucket.unobserved;
            minutes += u64::from(key.started_at != key.started_at.floor(HOUR_MS));
        }
        assert_eq!((attempts, unobserved), (2 * ATTEMPTS + 200_000, ATTEMPTS));
        assert!(minutes > 1000, "{minutes} minutes were there before");
    }
}
