//! The counts of attempts themselves, for other programs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use crate::error::ReadError;
use crate::model::outcome::OutcomeKind;
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::rates::Latency;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sketch::Sketch;
use crate::rollup::sums::ReadBucket;
use crate::store::reads::Lane;
use crate::store::snapshot::Snapshot;
use std::ops::ControlFlow;

/// Attempts of one day (UTC), strategy and outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AttemptCount {
    /// The beginning of the day.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    pub day: SystemTime,
    /// The strategy; `[other strategies]` for all beyond the limit.
    pub retrieval_strategy: String,
    /// The outcome of the attempts.
    pub outcome: OutcomeKind,
    /// Attempts.
    pub attempts: u64,
    /// Of these, failures that no monitor counted.
    pub unobserved: u64,
    /// Latencies of the attempts. `None`: not measured.
    pub latency_ms: Option<Latency>,
}

impl FailureReader {
    /// The counts of each day that `range` touches, the oldest first.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn attempt_counts(&self, range: TimeRange) -> Result<Vec<AttemptCount>, ReadError> {
        self.reads
            .run(Lane::Heavy, self.timeout, move |snapshot, _| {
                attempt_counts(snapshot, range)
            })
            .await
    }
}

/// Attempts of one day, on their way out.
struct Counted {
    outcome: OutcomeKind,
    attempts: u64,
    unobserved: u64,
    latency: Sketch,
}

fn attempt_counts(
    snapshot: &mut dyn Snapshot,
    range: TimeRange,
) -> Result<Vec<AttemptCount>, ReadError> {
    let day = Resolution::Day;
    let (from, to) = (
        day.floor(range.from),
        day.ceil(range.end(Timestamp::now()).min(Timestamp::MAX - day.span())),
    );
    let mut days: BTreeMap<(Timestamp, String, u8), Counted> = BTreeMap::new();
    let mut add = |bucket: ReadBucket| {
        let key = (
            day.floor(bucket.started_at),
            bucket.strategy.clone(),
            bucket.kind as u8,
        );
        let counted = days.entry(key).or_insert_with(|| Counted {
            outcome: bucket.kind,
            attempts: 0,
            unobserved: 0,
            latency: Sketch::default(),
        });
        counted.attempts += bucket.attempts;
        counted.unobserved += bucket.unobserved;
        if let Some(measured) = bucket.latency() {
            counted.latency.merge(&measured);
        }
        ControlFlow::Continue(())
    };
    snapshot.buckets(
        Span {
            resolution: day,
            from,
            to,
        },
        true,
        &mut add,
    )?;
    snapshot.deltas(from..to, &mut add)?;
    let count =
        |((at, retrieval_strategy, _), counted): ((Timestamp, String, u8), Counted)| AttemptCount {
            day: at.into(),
            retrieval_strategy,
            outcome: counted.outcome,
            attempts: counted.attempts,
            unobserved: counted.unobserved,
            latency_ms: Latency::of(&counted.latency),
        };
    Ok(days.into_iter().map(count).collect())
}
