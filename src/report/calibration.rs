//! Calibration: the failure rate that each threshold would give, from the scores of a strategy.

use serde::Serialize;

use crate::error::ReadError;
use crate::model::outcome::OutcomeKind;
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::rates::{clipped, finest, for_each_bucket};
use crate::rollup::ScoreDirection;
use crate::rollup::sketch::Sketch;
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::Snapshot;

/// Parts into which the scores are divided.
const BUCKETS: u32 = 50;

/// The scores of a strategy's attempts, and the failure rate that any threshold would give.
///
/// Counts only attempts that a monitor observed, because the scores of failures say nothing without
/// those of the successes. Attempts without a result, with an error or with a timeout fail at any
/// threshold. Successes without a score succeed at any. If there were more attempts than the writer
/// could follow, some are counted without their scores.
///
/// Scores are known to half a percent of their value.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Calibration {
    /// The strategy.
    pub retrieval_strategy: String,
    /// The range that was counted.
    #[cfg_attr(feature = "http", schema(value_type = crate::model::time::TimeRangeSchema))]
    pub range: TimeRange,
    /// The threshold that was configured last.
    pub confidence_threshold: Option<f32>,
    /// The direction in which scores are better.
    pub score_direction: ScoreDirection,
    /// Attempts that were observed, without cancelled ones.
    pub attempts: u64,
    /// Of these, attempts that fail at any threshold.
    pub certain_failures: u64,
    /// The failure rate that was observed, 0 to 1, with the thresholds of that time.
    pub failure_rate: Option<f64>,
    /// Number of scores in each of 50 parts of equal width, from the lowest to the highest.
    pub distribution: Vec<ScoreBucket>,
    /// The failure rate for thresholds from the lowest score to the highest.
    pub curve: Vec<CurvePoint>,
    #[serde(skip)]
    scores: Scores,
}

/// Scores from a limit up to the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ScoreBucket {
    /// The lowest score that is counted here.
    pub from: f64,
    /// The score up to which is counted; the highest one of all is counted too.
    pub to: f64,
    /// Successes with such a score.
    pub successes: u64,
    /// Low-confidence failures with such a score.
    pub failures: u64,
}

/// The rates that a threshold would give.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct CurvePoint {
    /// The threshold.
    pub threshold: f64,
    /// The share of the attempts that would have failed, 0 to 1.
    pub failure_rate: f64,
}

#[derive(Clone, Default)]
struct Scores {
    successes: Sketch,
    failures: Sketch,
    all: Sketch,
}

impl std::fmt::Debug for Scores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scores")
            .field("count", &self.all.count())
            .finish_non_exhaustive()
    }
}

impl FailureReader {
    /// The scores of `strategy` in `range`, and what any threshold would make of them.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn calibration(
        &self,
        strategy: impl Into<String>,
        range: TimeRange,
    ) -> Result<Calibration, ReadError> {
        let strategy = strategy.into();
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            calibration(snapshot, &strategy, range, Timestamp::now(), deadline)
        };
        self.reads.run(Lane::Quick, self.timeout, run).await
    }
}

fn calibration(
    snapshot: &mut dyn Snapshot,
    strategy: &str,
    range: TimeRange,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Calibration, ReadError> {
    let settings = snapshot
        .strategies()?
        .into_iter()
        .find(|settings| *settings.strategy == *strategy);
    let mut scores = Scores::default();
    let (mut attempts, mut failures, mut certain_failures) = (0, 0, 0);
    let range = clipped(snapshot, range, now)?;
    let range = for_each_bucket(
        snapshot,
        range,
        finest(range, now),
        now,
        deadline,
        |bucket| {
            let is_neither = matches!(bucket.kind, OutcomeKind::Cancelled | OutcomeKind::Unknown);
            if bucket.strategy != strategy || is_neither {
                return;
            }
            let observed = bucket.attempts.saturating_sub(bucket.unobserved);
            attempts += observed;
            let sketch = bucket.top_score().unwrap_or_default();
            match bucket.kind {
                OutcomeKind::Success => scores.successes.merge(&sketch),
                OutcomeKind::LowConfidence => {
                    failures += observed;
                    // Those whose score is not known failed once, and count as if they always would.
                    certain_failures += observed.saturating_sub(sketch.count());
                    scores.failures.merge(&sketch);
                }
                _ => {
                    failures += observed;
                    certain_failures += observed;
                }
            }
        },
    )?;
    scores.all = scores.successes.clone();
    scores.all.merge(&scores.failures);
    let mut calibration = Calibration {
        retrieval_strategy: strategy.to_owned(),
        range,
        confidence_threshold: settings.as_ref().and_then(|settings| settings.threshold),
        score_direction: settings
            .and_then(|settings| settings.direction)
            .unwrap_or_default(),
        attempts,
        certain_failures,
        failure_rate: (attempts > 0).then(|| failures as f64 / attempts as f64),
        distribution: Vec::new(),
        curve: Vec::new(),
        scores,
    };
    calibration.draw();
    Ok(calibration)
}

impl Calibration {
    /// The share of the attempts that would have failed at this threshold, 0 to 1. `None`: no
    /// attempt was observed.
    pub fn failure_rate_at(&self, threshold: f64) -> Option<f64> {
        let scores = &self.scores.all;
        let missed = match self.score_direction {
            ScoreDirection::HigherIsBetter => scores.below(threshold),
            ScoreDirection::LowerIsBetter => scores.count() - scores.up_to(threshold),
        };
        (self.attempts > 0).then(|| (self.certain_failures + missed) as f64 / self.attempts as f64)
    }

    /// The strictest threshold at which no more than this share of the attempts, 0 to 1, would have
    /// failed, as near as half a percent and on the safe side. `None`: more than that fail at any
    /// threshold, or nothing is known.
    pub fn threshold_for(&self, failure_rate: f64) -> Option<f64> {
        let scores = &self.scores.all;
        // Attempts that may fail because of their score.
        let room = (failure_rate.clamp(0.0, 1.0) * self.attempts as f64 + 1e-9).floor()
            - self.certain_failures as f64;
        if room < 0.0 || scores.count() == 0 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count that is not negative"
        )]
        let room = (room as u64).min(scores.count() - 1);
        Some(match self.score_direction {
            ScoreDirection::HigherIsBetter => scores.at_most(room),
            ScoreDirection::LowerIsBetter => scores.at_least(scores.count() - 1 - room),
        })
    }

    /// Fills in the distribution and the curve.
    fn draw(&mut self) {
        let Scores {
            successes,
            failures,
            all,
        } = &self.scores;
        let (Some(min), Some(max)) = (all.min(), all.max()) else {
            return;
        };
        let limit = |nth: u32| min + (max - min) * f64::from(nth) / f64::from(BUCKETS);
        // The last part includes its end.
        let below = |sketch: &Sketch, nth| {
            if nth == BUCKETS {
                sketch.count()
            } else {
                sketch.below(limit(nth))
            }
        };
        let within =
            |sketch: &Sketch, nth| below(sketch, nth + 1).saturating_sub(below(sketch, nth));
        let distribution = (0..BUCKETS).map(|nth| ScoreBucket {
            from: limit(nth),
            to: limit(nth + 1),
            successes: within(successes, nth),
            failures: within(failures, nth),
        });
        let curve = (0..=BUCKETS).filter_map(|nth| {
            let threshold = limit(nth);
            Some(CurvePoint {
                threshold,
                failure_rate: self.failure_rate_at(threshold)?,
            })
        });
        (self.distribution, self.curve) = (distribution.collect(), curve.collect());
    }
}
