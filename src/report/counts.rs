//! The counts of attempts themselves, for other programs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use diesel::prelude::*;
use serde::Serialize;

use super::rates::Latency;
use super::{FailureReader, TimeRange, moment};
use crate::attempts::OutcomeKind;
use crate::clock;
use crate::error::ReadError;
use crate::sketch::Sketch;
use crate::store::attempts::{self, ReadCell, Resolution, Span};

/// Attempts of one day (UTC), strategy and outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AttemptCount {
    /// The beginning of the day.
    #[serde(serialize_with = "super::serialize_moment")]
    pub day: SystemTime,
    /// The strategy; `[other strategies]` for all beyond the limit.
    pub retrieval_strategy: String,
    /// How the attempts ended.
    pub outcome: OutcomeKind,
    /// Attempts.
    pub attempts: u64,
    /// Of these, failures that no monitor counted.
    pub unobserved: u64,
    /// How long they took. `None`: not measured.
    pub latency_ms: Option<Latency>,
}

impl FailureReader {
    /// The counts of each day that `range` touches, the oldest first.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn attempt_counts(&self, range: TimeRange) -> Result<Vec<AttemptCount>, ReadError> {
        self.pool.run(self.timeout, move |conn, _| Ok(attempt_counts(conn, range)?)).await
    }
}

/// Attempts of one day, on their way out.
struct Counted {
    outcome: OutcomeKind,
    attempts: u64,
    unobserved: u64,
    latency: Sketch,
}

fn attempt_counts(conn: &mut SqliteConnection, range: TimeRange) -> QueryResult<Vec<AttemptCount>> {
    let day = Resolution::Day;
    let (from, to) = (day.floor(range.from), day.ceil(range.end(clock::now()).min(i64::MAX - day.span())));
    let mut days: BTreeMap<(i64, String, u8), Counted> = BTreeMap::new();
    let mut add = |cell: ReadCell| {
        let key = (day.floor(cell.started_at), cell.strategy.clone(), cell.kind as u8);
        let counted = days.entry(key).or_insert_with(|| Counted {
            outcome: cell.kind,
            attempts: 0,
            unobserved: 0,
            latency: Sketch::default(),
        });
        counted.attempts += cell.attempts;
        counted.unobserved += cell.unobserved;
        if let Some(measured) = cell.latency() {
            counted.latency.merge(&measured);
        }
        true
    };
    attempts::read(conn, Span { resolution: day, from, to }, true, &mut add)?;
    attempts::read_recent(conn, from, to, &mut add)?;
    let count = |((at, retrieval_strategy, _), counted): ((i64, String, u8), Counted)| AttemptCount {
        day: moment(at),
        retrieval_strategy,
        outcome: counted.outcome,
        attempts: counted.attempts,
        unobserved: counted.unobserved,
        latency_ms: Latency::of(&counted.latency),
    };
    Ok(days.into_iter().map(count).collect())
}
