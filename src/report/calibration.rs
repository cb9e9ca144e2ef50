//! Calibration: the failure rate that each threshold would give, from the scores of a strategy.

use serde::Serialize;

use crate::error::ReadError;
use crate::model::outcome::OutcomeKind;
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::rates::{AttemptFilter, Selected, clipped, finest, for_each_bucket};
use crate::rollup::ScoreDirection;
use crate::rollup::sketch::Sketch;
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::Snapshot;

/// Parts into which the scores are divided. There may be one more, so that the threshold is the
/// limit of two parts.
const BUCKETS: u32 = 50;

/// Relative error of a score, with some room: a sketch rounds it by half a percent.
const SKETCH_ERROR: f64 = 0.01;

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
    /// Number of scores in each of 50 or 51 parts of equal width, from the lowest to the highest.
    /// The configured threshold is the limit of two parts, so that none is on both of its sides.
    pub distribution: Vec<ScoreBucket>,
    /// The failure rate for thresholds from the lowest score to the highest.
    pub curve: Vec<CurvePoint>,
    #[serde(skip)]
    scores: Scores,
}

/// Scores from a limit up to the next. A score that equals the limit of two parts is in the better
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ScoreBucket {
    /// The beginning of the part.
    pub from: f64,
    /// The end of the part.
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

/// Attempts whose outcome another threshold would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ThresholdChanges {
    /// Successes that would have failed.
    pub newly_failing: u64,
    /// Low-confidence failures that would have succeeded.
    pub newly_passing: u64,
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
    /// The scores of `strategy` in a range of time, or of an [`AttemptFilter`], and what any threshold
    /// would make of them.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn calibration(
        &self,
        strategy: impl Into<String>,
        filter: impl Into<AttemptFilter>,
    ) -> Result<Calibration, ReadError> {
        let (strategy, filter) = (strategy.into(), filter.into());
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            calibration(snapshot, &strategy, &filter, Timestamp::now(), deadline)
        };
        self.reads.run(Lane::Quick, self.timeout, run).await
    }
}

fn calibration(
    snapshot: &mut dyn Snapshot,
    strategy: &str,
    AttemptFilter { range, sources }: &AttemptFilter,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Calibration, ReadError> {
    let selected = Selected::read(snapshot, sources)?;
    let settings = snapshot
        .strategies()?
        .into_iter()
        .find(|settings| *settings.strategy == *strategy);
    let mut scores = Scores::default();
    let (mut attempts, mut failures, mut certain_failures) = (0, 0, 0);
    let range = clipped(snapshot, *range, now)?;
    let range = for_each_bucket(
        snapshot,
        range,
        finest(range, now),
        now,
        deadline,
        |bucket| {
            let is_neither = matches!(bucket.kind, OutcomeKind::Cancelled | OutcomeKind::Unknown);
            if bucket.strategy != strategy || is_neither || !selected.has(bucket.source_id) {
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

    /// Returns the successes that would have failed at this threshold, and the low-confidence
    /// failures that would have succeeded.
    pub fn changes_at(&self, threshold: f64) -> ThresholdChanges {
        let Scores {
            successes,
            failures,
            ..
        } = &self.scores;
        let up_to = |scores: &Sketch, is_success| self.before(scores, threshold, is_success);
        let (successes_before, failures_before) = (up_to(successes, true), up_to(failures, false));
        match self.score_direction {
            ScoreDirection::HigherIsBetter => ThresholdChanges {
                newly_failing: successes_before,
                newly_passing: failures.count() - failures_before,
            },
            ScoreDirection::LowerIsBetter => ThresholdChanges {
                newly_failing: successes.count() - successes_before,
                newly_passing: failures_before,
            },
        }
    }

    /// Returns the number of scores below a limit. A score at the limit is on its better side.
    ///
    /// A sketch knows scores to half a percent. Those that are so near to the configured threshold
    /// are on the side on which they were judged.
    fn before(&self, scores: &Sketch, limit: f64, is_success: bool) -> u64 {
        let is_lower_better = self.score_direction == ScoreDirection::LowerIsBetter;
        let is_configured = self
            .confidence_threshold
            .is_some_and(|threshold| f64::from(threshold) == limit);
        let tolerance = if is_configured {
            SKETCH_ERROR * limit.abs()
        } else {
            0.0
        };
        let limit = if is_success == is_lower_better {
            limit + tolerance
        } else {
            limit - tolerance
        };
        if is_lower_better {
            scores.up_to(limit)
        } else {
            scores.below(limit)
        }
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

    /// Returns the limits of the parts of the distribution, from the lowest to the highest. The
    /// configured threshold is one of them if it is between the scores.
    fn limits(&self, min: f64, max: f64) -> Vec<f64> {
        let width = (max - min) / f64::from(BUCKETS);
        let threshold = self
            .confidence_threshold
            .map(f64::from)
            .filter(|threshold| (min..max).contains(threshold) && width > 0.0);
        let Some(threshold) = threshold else {
            return (0..=BUCKETS)
                .map(|nth| min + width * f64::from(nth))
                .collect();
        };
        let below = ((threshold - min) / width).ceil();
        // Rounding must not cut the highest score off.
        let above = ((max - threshold) / width).ceil().max(1.0);
        let first = threshold - below * width;
        let mut limits = Vec::new();
        let mut nth = 0.0;
        while nth <= below + above {
            limits.push(if nth == below {
                threshold
            } else {
                first + nth * width
            });
            nth += 1.0;
        }
        limits
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
        let limits = self.limits(min, max);
        let parts = limits.len() - 1;
        let within = |sketch: &Sketch, is_success, nth: usize, from: f64, to: f64| {
            // The first and the last part include their ends.
            let end = if nth + 1 == parts {
                sketch.count()
            } else {
                self.before(sketch, to, is_success)
            };
            let begin = if nth == 0 {
                0
            } else {
                self.before(sketch, from, is_success)
            };
            end.saturating_sub(begin)
        };
        let distribution =
            limits
                .iter()
                .zip(limits.iter().skip(1))
                .enumerate()
                .map(|(nth, (from, to))| ScoreBucket {
                    from: *from,
                    to: *to,
                    successes: within(successes, true, nth, *from, *to),
                    failures: within(failures, false, nth, *from, *to),
                });
        let curve = limits.iter().filter_map(|threshold| {
            Some(CurvePoint {
                threshold: *threshold,
                failure_rate: self.failure_rate_at(*threshold)?,
            })
        });
        (self.distribution, self.curve) = (distribution.collect(), curve.collect());
    }
}
