//! Counts between the tables: on their way to longer spans, and to readers.

use std::collections::HashMap;

use crate::model::outcome::OutcomeKind;
use crate::model::source::SenderId;
use crate::model::time::Timestamp;
use crate::rollup::Bucket;
use crate::rollup::resolution::Resolution;
use crate::rollup::sketch::Sketch;

/// Attempts to be added to what the table has.
///
/// A roll-up reads many deltas of the same minutes. Adding them here first means that each row of
/// the table is read and written once a transaction.
#[derive(Default)]
pub(crate) struct Sums(pub(crate) HashMap<SumKey, Bucket>);

/// The primary key of the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SumKey {
    pub(crate) resolution: Resolution,
    pub(crate) started_at: Timestamp,
    pub(crate) strategy: String,
    pub(crate) outcome: String,
    pub(crate) source_id: SenderId,
}

impl Sums {
    /// Adds `part` to the minute, the hour and the day of `at`.
    pub(crate) fn add(
        &mut self,
        at: Timestamp,
        strategy: &str,
        outcome: &str,
        source_id: SenderId,
        part: &Bucket,
    ) {
        for resolution in Resolution::ALL {
            let key = SumKey {
                resolution,
                started_at: resolution.floor(at),
                strategy: strategy.to_owned(),
                outcome: outcome.to_owned(),
                source_id,
            };
            self.0.entry(key).or_default().merge(part);
        }
    }

    #[cfg(test)]
    pub(crate) fn attempts(&self, of: Resolution) -> u64 {
        self.0
            .iter()
            .filter(|(key, _)| key.resolution == of)
            .map(|(_, bucket)| bucket.attempts)
            .sum()
    }
}

/// A bucket as it is read: whose it is, when it began, and what it counts.
pub(crate) struct ReadBucket {
    pub(crate) started_at: Timestamp,
    pub(crate) strategy: String,
    pub(crate) source_id: SenderId,
    pub(crate) kind: OutcomeKind,
    pub(crate) attempts: u64,
    pub(crate) unobserved: u64,
    pub(crate) latency: ReadSketch,
    pub(crate) top_score: ReadSketch,
}

/// A sketch as it was read. It is decoded when a report asks for it, because decoding takes longer
/// than reading, and many reports need the counts alone.
pub(crate) enum ReadSketch {
    Encoded(Option<Vec<u8>>),
    Decoded(Sketch),
}

impl ReadSketch {
    fn decoded(&self) -> Option<Sketch> {
        match self {
            Self::Encoded(bytes) => Sketch::decode(bytes.as_deref()?),
            Self::Decoded(sketch) => (sketch.count() > 0).then(|| sketch.clone()),
        }
    }
}

impl ReadBucket {
    pub(crate) fn new(
        started_at: Timestamp,
        strategy: String,
        source_id: SenderId,
        kind: OutcomeKind,
        bucket: Bucket,
    ) -> Self {
        let Bucket {
            attempts,
            unobserved,
            latency,
            top_score,
        } = bucket;
        let (latency, top_score) = (ReadSketch::Decoded(latency), ReadSketch::Decoded(top_score));
        Self {
            started_at,
            strategy,
            source_id,
            kind,
            attempts,
            unobserved,
            latency,
            top_score,
        }
    }

    pub(crate) fn latency(&self) -> Option<Sketch> {
        self.latency.decoded()
    }

    pub(crate) fn top_score(&self) -> Option<Sketch> {
        self.top_score.decoded()
    }
}
