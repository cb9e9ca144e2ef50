//! Failure rates, from the counts of attempts. The cost of a read does not grow with the number of
//! failures.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use crate::error::ReadError;
use crate::model::outcome::{FailuresByType, OutcomeKind, RetrievalFailureType};
use crate::model::source::{SenderId, SourceFilter};
use crate::model::stats::DropCounts;
use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS, TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sketch::Sketch;
use crate::rollup::sums::ReadBucket;
use crate::rollup::{ScoreDirection, StrategySettings};
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::Snapshot;
use std::ops::ControlFlow;

/// Ranges up to this length begin and end at a minute; longer ones at an hour.
const MINUTES_UP_TO: i64 = 2 * DAY_MS;
/// Minutes are kept for 7 days and hours for 90; a little less, so that none is missing.
const MINUTES_SINCE: i64 = 7 * DAY_MS - HOUR_MS;
const HOURS_SINCE: i64 = 90 * DAY_MS - HOUR_MS;
/// Steps of a timeseries.
const STEPS: [i64; 8] = [
    MINUTE_MS,
    5 * MINUTE_MS,
    15 * MINUTE_MS,
    HOUR_MS,
    6 * HOUR_MS,
    DAY_MS,
    7 * DAY_MS,
    28 * DAY_MS,
];
/// Ranges beyond this are cut down to what there is: fifteen years.
const LONGEST_MS: i64 = MAX_STEPS as i64 * 28 * DAY_MS;
/// Steps of a timeseries at most.
pub(crate) const MAX_STEPS: usize = 200;

/// Rates of a range of time, in all and by strategy, beside those of the range before.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Summary {
    /// The range that was counted: the requested one, or a little more, because attempts are
    /// counted by minutes, hours and days.
    #[cfg_attr(feature = "http", schema(value_type = crate::model::time::TimeRangeSchema))]
    pub range: TimeRange,
    /// All strategies.
    pub total: Rates,
    /// All strategies, in the range of the same length just before.
    pub previous: Rates,
    /// Each strategy, the one with the most failures first.
    pub strategies: Vec<StrategySummary>,
    /// The moment of the oldest failure in the log. Counts reach further back: they outlive the
    /// failures. `None`: there is none.
    #[serde(serialize_with = "crate::model::time::serialize_optional_moment")]
    #[cfg_attr(feature = "http", schema(value_type = Option<String>, format = DateTime))]
    pub rows_since: Option<SystemTime>,
    /// The beginning of the oldest count, which may be that of its day. A range that begins
    /// earlier is not covered as a whole. `None`: no attempt was counted yet.
    #[serde(serialize_with = "crate::model::time::serialize_optional_moment")]
    #[cfg_attr(feature = "http", schema(value_type = Option<String>, format = DateTime))]
    pub attempts_since: Option<SystemTime>,
    /// Records that were lost in the range, by reason: nothing else is known of them. What the
    /// present process lost in the last minute may be missing.
    pub dropped: DropCounts,
    /// Records that were lost in the range of the same length just before.
    pub previous_dropped: DropCounts,
    /// The log that was read.
    #[serde(skip)]
    pub(crate) log_id: Uuid,
}

/// Rates of one strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct StrategySummary {
    /// Its name; `[other strategies]` for all that came after the limit (`max_strategies`).
    pub retrieval_strategy: String,
    /// In the range.
    pub rates: Rates,
    /// In the range of the same length before.
    pub previous: Rates,
    /// The threshold that was configured last.
    pub confidence_threshold: Option<f32>,
    /// The direction in which its scores are better.
    pub score_direction: ScoreDirection,
    /// The timeout that was configured last, in milliseconds.
    pub timeout_ms: Option<i64>,
}

/// Rates and latencies of attempts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Rates {
    /// Attempts that succeeded or failed.
    pub attempts: u64,
    /// Attempts that succeeded.
    pub successes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Of the failures, those that were logged by themselves: no monitor counted the attempt.
    pub unobserved: u64,
    /// Attempts that were cancelled, which are neither.
    pub cancelled: u64,
    /// Attempts whose outcome is unknown, because their traces do not say whether something was
    /// found. They are in no rate.
    pub unknown: u64,
    /// The share of the attempts that failed, 0 to 1. `None`: there are none, nothing but failures
    /// was ever reported, or no outcome but failures is known.
    pub failure_rate: Option<f64>,
    /// Each type of failure, in the order of [`RetrievalFailureType::ALL`].
    pub types: [TypeRate; RetrievalFailureType::ALL.len()],
    /// Latencies of the attempts. `None`: not measured.
    pub latency_ms: Option<Latency>,
}

/// Rate of one type of failure.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TypeRate {
    /// The type.
    pub failure_type: RetrievalFailureType,
    /// Attempts that failed with this type.
    pub failures: u64,
    /// The share of the attempts that failed with this type, 0 to 1. `None`: as `failure_rate`.
    pub rate: Option<f64>,
}

impl Default for TypeRate {
    fn default() -> Self {
        let [failure_type, ..] = RetrievalFailureType::ALL;
        Self {
            failure_type,
            failures: 0,
            rate: None,
        }
    }
}

/// Latencies in milliseconds, by nearest rank: exact for up to 32 attempts, otherwise to half a
/// percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 95 % of the attempts took no longer.
    pub p95: f64,
    /// 99 % of the attempts took no longer.
    pub p99: f64,
}

/// Rates in each step of a range of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Timeseries {
    /// The range that was counted, in whole steps.
    #[cfg_attr(feature = "http", schema(value_type = crate::model::time::TimeRangeSchema))]
    pub range: TimeRange,
    /// Length of a step, in seconds.
    pub step_seconds: u64,
    /// One point for each step, the oldest first; also for steps in which nothing happened.
    pub points: Vec<TimePoint>,
    /// The same by strategy, in the order of their names; only the requested ones.
    pub strategies: Vec<StrategyPoints>,
}

/// Attempts and failures of one strategy, in each step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct StrategyPoints {
    /// Its name.
    pub retrieval_strategy: String,
    /// Attempts that succeeded or failed, in each step.
    pub attempts: Vec<u64>,
    /// Attempts that failed, in each step.
    pub failures: Vec<u64>,
    /// 95 % of the attempts of each step took no longer, in milliseconds. Empty unless
    /// [`TimeseriesRequest::latency`] asks for it; `None` for a step without a latency.
    pub latency_p95_ms: Vec<Option<f64>>,
}

/// Selects attempts. A [`TimeRange`] alone selects those of all sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFilter {
    /// Only those within this range.
    pub range: TimeRange,
    /// Only those of these sources.
    pub sources: SourceFilter,
}

impl From<TimeRange> for AttemptFilter {
    fn from(range: TimeRange) -> Self {
        Self {
            range,
            sources: SourceFilter::default(),
        }
    }
}

/// The ids that a filter selects.
pub(crate) enum Selected {
    Any,
    Ids(HashSet<SenderId>),
}

impl Selected {
    pub(crate) fn read(
        snapshot: &mut dyn Snapshot,
        filter: &SourceFilter,
    ) -> Result<Self, ReadError> {
        Ok(if filter.is_empty() {
            Self::Any
        } else {
            Self::Ids(filter.ids(&snapshot.senders()?).collect())
        })
    }

    pub(crate) fn has(&self, id: SenderId) -> bool {
        match self {
            Self::Any => true,
            Self::Ids(ids) => ids.contains(&id),
        }
    }

    /// Returns `true` if attempts were ever reported of what is selected, and thus a rate is known.
    /// `settings_exist`: some were reported of the strategy, by whatever source.
    fn has_rate(&self, settings_exist: bool) -> bool {
        // Another source may have reported them.
        matches!(self, Self::Any) && settings_exist
    }
}

/// The content of a timeseries besides its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeseriesRequest {
    /// Only attempts of these strategies. Empty, the default: of all.
    pub strategies: Vec<String>,
    /// Maximum number of steps, 1 to 200; 200 by default. A range that begins or ends within a step
    /// has one more.
    pub max_steps: usize,
    /// Reads latencies, too. They cost more than counts. Default: `false`.
    pub latency: bool,
}

impl Default for TimeseriesRequest {
    fn default() -> Self {
        Self {
            strategies: Vec::new(),
            max_steps: MAX_STEPS,
            latency: false,
        }
    }
}

impl From<Vec<String>> for TimeseriesRequest {
    fn from(strategies: Vec<String>) -> Self {
        Self {
            strategies,
            ..Self::default()
        }
    }
}

/// Rates of one step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TimePoint {
    /// When the step begins.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub at: SystemTime,
    /// Attempts that succeeded or failed.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that failed, by type.
    #[serde(flatten)]
    pub types: FailuresByType,
    /// The share of the attempts that failed, 0 to 1. `None`: there are none, or nothing but
    /// failures was ever reported.
    pub failure_rate: Option<f64>,
}

impl FailureReader {
    /// Reads the rates of a range of time, or of an [`AttemptFilter`], in all and by strategy,
    /// beside those of the range before. What was dropped is that of all sources.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn summary(&self, filter: impl Into<AttemptFilter>) -> Result<Summary, ReadError> {
        let filter = filter.into();
        self.reads
            .run(Lane::Quick, self.timeout, move |snapshot, deadline| {
                summary(snapshot, &filter, Timestamp::now(), deadline)
            })
            .await
    }

    /// Strategies of which an attempt was ever reported.
    #[cfg(feature = "http")]
    pub(crate) async fn strategies_with_rate(&self) -> Result<HashSet<String>, ReadError> {
        let read = |snapshot: &mut dyn Snapshot, _| {
            let settings = snapshot.strategies()?;
            Ok(settings
                .into_iter()
                .map(|settings| settings.strategy.to_string())
                .collect())
        };
        self.reads.run(Lane::Quick, self.timeout, read).await
    }

    /// Reads the rates in each step of a range of time, or of an [`AttemptFilter`], of all strategies or of those of the request. The
    /// step is the smallest one that gives at most `max_steps`. With the default of 200 it is a
    /// minute for up to three hours, an hour for a week, six hours for a month.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn timeseries(
        &self,
        filter: impl Into<AttemptFilter>,
        request: impl Into<TimeseriesRequest>,
    ) -> Result<Timeseries, ReadError> {
        let (filter, request) = (filter.into(), request.into());
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            timeseries(snapshot, &filter, &request, Timestamp::now(), deadline)
        };
        self.reads.run(Lane::Quick, self.timeout, run).await
    }
}

fn summary(
    snapshot: &mut dyn Snapshot,
    AttemptFilter { range, sources }: &AttemptFilter,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Summary, ReadError> {
    let selected = Selected::read(snapshot, sources)?;
    let range = clipped(snapshot, *range, now)?;
    let mut counts: BTreeMap<String, (Counts, Counts)> = BTreeMap::new();
    // The same spans for both, so that they neither overlap nor differ in length.
    let finest = finest(
        TimeRange {
            from: range.before().from,
            ..range
        },
        now,
    );
    let covered = for_each_bucket(snapshot, range, finest, now, deadline, |bucket| {
        if !selected.has(bucket.source_id) {
            return;
        }
        counts
            .entry(bucket.strategy.clone())
            .or_default()
            .0
            .add(&bucket, true);
    })?;
    let length = finest.ceil(covered.to) - covered.from;
    let before = TimeRange {
        from: covered.from - length,
        to: covered.from,
        until_now: false,
    };
    for_each_bucket(snapshot, before, finest, now, deadline, |bucket| {
        if !selected.has(bucket.source_id) {
            return;
        }
        counts
            .entry(bucket.strategy.clone())
            .or_default()
            .1
            .add(&bucket, true);
    })?;
    let (mut total, mut previous) = (Counts::default(), Counts::default());
    for (in_range, before) in counts.values() {
        total.merge(in_range);
        previous.merge(before);
    }
    let mut settings = snapshot.strategies()?;
    let is_known = Known {
        any: selected.has_rate(!settings.is_empty())
            || total.has_attempts()
            || previous.has_attempts(),
    };
    let mut strategies: Vec<StrategySummary> = counts
        .into_iter()
        .map(|(strategy, (in_range, before))| {
            let position = settings
                .iter()
                .position(|settings| settings.strategy == *strategy);
            let settings = position.map(|at| settings.swap_remove(at));
            let known = Known {
                any: selected.has_rate(settings.is_some())
                    || in_range.has_attempts()
                    || before.has_attempts(),
            };
            StrategySummary::new(
                strategy,
                in_range.rates(known),
                before.rates(known),
                settings,
            )
        })
        .collect();
    strategies.sort_by_key(|strategy| {
        std::cmp::Reverse((strategy.rates.failures, strategy.rates.attempts))
    });
    Ok(Summary {
        range: covered,
        total: total.rates(is_known),
        previous: previous.rates(is_known),
        strategies,
        rows_since: snapshot.oldest_failure()?.map(Into::into),
        attempts_since: snapshot.oldest_attempt()?.map(Into::into),
        dropped: snapshot.drops(covered.from..covered.to)?,
        previous_dropped: snapshot.drops(before.from..before.to)?,
        log_id: snapshot.log_of_any_version()?.log_id,
    })
}

impl StrategySummary {
    fn new(
        strategy: String,
        rates: Rates,
        previous: Rates,
        settings: Option<StrategySettings>,
    ) -> Self {
        Self {
            retrieval_strategy: strategy,
            rates,
            previous,
            confidence_threshold: settings.as_ref().and_then(|settings| settings.threshold),
            score_direction: settings
                .as_ref()
                .and_then(|settings| settings.direction)
                .unwrap_or_default(),
            timeout_ms: settings.and_then(|settings| settings.timeout_ms),
        }
    }
}

fn timeseries(
    snapshot: &mut dyn Snapshot,
    AttemptFilter { range, sources }: &AttemptFilter,
    request: &TimeseriesRequest,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Timeseries, ReadError> {
    let TimeseriesRequest {
        strategies,
        max_steps,
        latency,
    } = request;
    let selected = Selected::read(snapshot, sources)?;
    let range = clipped(snapshot, *range, now)?;
    let length = range.to - range.from;
    let finest = finest(range, now).span();
    let max_steps = i64::try_from(*max_steps.min(&MAX_STEPS))
        .unwrap_or(1)
        .max(1);
    let fits = |step: &i64| *step >= finest && length / step <= max_steps;
    let step = STEPS.into_iter().find(fits).unwrap_or(28 * DAY_MS);
    let from = range.from.floor(step);
    let steps = ((range.to - from).div_euclid(step)
        + i64::from((range.to - from).rem_euclid(step) > 0))
    .max(1);
    let until_now = range.until_now;
    let range = TimeRange {
        from,
        to: from + steps * step,
        until_now,
    };

    let steps = usize::try_from(steps).unwrap_or(0);
    let is_wanted =
        |name: &str| strategies.is_empty() || strategies.iter().any(|wanted| wanted == name);
    let mut counts = vec![Counts::default(); steps];
    let mut by_strategy: BTreeMap<String, StrategyPoints> = BTreeMap::new();
    let mut latencies: BTreeMap<String, Vec<Sketch>> = BTreeMap::new();
    let resolution = Resolution::ALL
        .into_iter()
        .rev()
        .find(|resolution| step % resolution.span() == 0);
    let to = if until_now { Timestamp::MAX } else { range.to };
    let span = Span {
        resolution: resolution.unwrap_or(Resolution::Minute),
        from: range.from,
        to,
    };
    let add = |bucket: ReadBucket| {
        // Rows that are dated ahead of the clock belong to the present step.
        let step = usize::try_from((bucket.started_at - from).div_euclid(step))
            .unwrap_or(usize::MAX)
            .min(steps - 1);
        if let Some(counts) = counts.get_mut(step)
            && is_wanted(&bucket.strategy)
            && selected.has(bucket.source_id)
        {
            counts.add(&bucket, false);
            if *latency && let Some(measured) = bucket.latency() {
                let sketches = latencies
                    .entry(bucket.strategy.clone())
                    .or_insert_with(|| vec![Sketch::default(); steps]);
                if let Some(sketch) = sketches.get_mut(step) {
                    sketch.merge(&measured);
                }
            }
            let points = by_strategy
                .entry(bucket.strategy)
                .or_insert_with_key(|name| StrategyPoints::none(name, steps));
            points.add(step, bucket.kind, bucket.attempts);
        }
    };
    read(
        snapshot,
        &[span],
        TimeRange { to, ..range },
        deadline,
        *latency,
        add,
    )?;
    let settings = snapshot.strategies()?;
    let is_set = settings
        .iter()
        .any(|settings| is_wanted(&settings.strategy));
    let known = Known {
        any: selected.has_rate(is_set) || counts.iter().any(Counts::has_attempts),
    };
    let points = counts
        .iter()
        .zip(0..)
        .map(|(counts, nth)| counts.point(from + nth * step, known))
        .collect();
    for (strategy, sketches) in latencies {
        if let Some(points) = by_strategy.get_mut(&strategy) {
            let p95 = |sketch: &Sketch| Latency::of(sketch).map(|latency| latency.p95);
            points.latency_p95_ms = sketches.iter().map(p95).collect();
        }
    }
    let strategies = by_strategy.into_values().collect();
    Ok(Timeseries {
        range,
        step_seconds: (step / 1000).unsigned_abs(),
        points,
        strategies,
    })
}

impl StrategyPoints {
    fn none(strategy: &str, steps: usize) -> Self {
        Self {
            retrieval_strategy: strategy.into(),
            attempts: vec![0; steps],
            failures: vec![0; steps],
            latency_p95_ms: Vec::new(),
        }
    }

    fn add(&mut self, step: usize, kind: OutcomeKind, attempts: u64) {
        let counts = match kind {
            OutcomeKind::Cancelled | OutcomeKind::Unknown => return,
            kind => [
                Some(&mut self.attempts),
                kind.failure().map(|_| &mut self.failures),
            ],
        };
        for count in counts
            .into_iter()
            .flatten()
            .filter_map(|counts| counts.get_mut(step))
        {
            *count += attempts;
        }
    }
}

/// `range` without the time after now; and one that is too long begins with the first attempt.
pub(crate) fn clipped(
    snapshot: &mut dyn Snapshot,
    range: TimeRange,
    now: Timestamp,
) -> Result<TimeRange, ReadError> {
    // A millisecond more, to include the present one.
    let to = range.to.min(now + 1);
    let from = if to - range.from > LONGEST_MS {
        snapshot
            .oldest_attempt()?
            .unwrap_or(to - DAY_MS)
            .min(to - 1)
            .max(range.from)
            .max(to - LONGEST_MS)
    } else {
        range.from
    };
    Ok(TimeRange {
        from: from.min(to),
        to,
        until_now: range.reaches(now),
    })
}

/// The smallest spans that are there for all of `range`, and few enough.
pub(crate) fn finest(range: TimeRange, now: Timestamp) -> Resolution {
    if range.from < now - HOURS_SINCE {
        Resolution::Day
    } else if range.from < now - MINUTES_SINCE || range.to - range.from > 2 * MINUTES_UP_TO {
        Resolution::Hour
    } else {
        Resolution::Minute
    }
}

/// Gives `each` all buckets of `range`, which is widened to whole spans: to what.
pub(crate) fn for_each_bucket(
    snapshot: &mut dyn Snapshot,
    range: TimeRange,
    finest: Resolution,
    now: Timestamp,
    deadline: Deadline,
    each: impl FnMut(ReadBucket),
) -> Result<TimeRange, ReadError> {
    if range.from >= range.to {
        return Ok(range);
    }
    let from = finest.floor(range.from);
    let to = if range.reaches(now) {
        Resolution::Day.floor(Timestamp::MAX)
    } else {
        finest.ceil(range.to)
    };
    let mut spans = Vec::new();
    cover(from, to, Resolution::Day, finest, &mut spans);
    read(
        snapshot,
        &spans,
        TimeRange { from, to, ..range },
        deadline,
        true,
        each,
    )?;
    Ok(if range.reaches(now) {
        TimeRange { from, ..range }
    } else {
        TimeRange { from, to, ..range }
    })
}

/// Parts `from..to`, multiples of `finest`, into as few spans as there are.
fn cover(
    from: Timestamp,
    to: Timestamp,
    resolution: Resolution,
    finest: Resolution,
    spans: &mut Vec<Span>,
) {
    if from >= to {
        return;
    }
    let (first, last) = (resolution.ceil(from), resolution.floor(to));
    let finer = (resolution > finest).then(|| resolution.finer()).flatten();
    match finer {
        None => spans.push(Span {
            resolution,
            from,
            to,
        }),
        Some(finer) if first < last => {
            cover(from, first, finer, finest, spans);
            spans.push(Span {
                resolution,
                from: first,
                to: last,
            });
            cover(last, to, finer, finest, spans);
        }
        Some(finer) => cover(from, to, finer, finest, spans),
    }
}

/// Reads `spans`, and the deltas within `range` that are not rolled up.
fn read(
    snapshot: &mut dyn Snapshot,
    spans: &[Span],
    range: TimeRange,
    deadline: Deadline,
    sketches: bool,
    mut each: impl FnMut(ReadBucket),
) -> Result<(), ReadError> {
    let mut buckets = 0_u32;
    let mut in_time = true;
    let mut each = |bucket| {
        buckets += 1;
        in_time &= !buckets.is_multiple_of(256) || !deadline.passed();
        if !in_time {
            return ControlFlow::Break(());
        }
        each(bucket);
        ControlFlow::Continue(())
    };
    for span in spans {
        snapshot.buckets(*span, sketches, &mut each)?;
    }
    snapshot.deltas(range.from..range.to, &mut each)?;
    if in_time {
        Ok(())
    } else {
        Err(ReadError::TimedOut)
    }
}

/// Tells whether any attempt was ever reported, and not failures alone: only then is there a rate.
#[derive(Clone, Copy)]
struct Known {
    any: bool,
}

/// Attempts by outcome, on their way to rates.
#[derive(Clone, Default)]
struct Counts {
    by_kind: [(u64, u64); OutcomeKind::ALL.len()],
    latency: Sketch,
}

impl Counts {
    fn add(&mut self, bucket: &ReadBucket, with_latency: bool) {
        if let Some((attempts, unobserved)) = self.by_kind.get_mut(bucket.kind as usize) {
            *attempts += bucket.attempts;
            *unobserved += bucket.unobserved;
        }
        if with_latency && let Some(latency) = bucket.latency() {
            self.latency.merge(&latency);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (count, other) in self.by_kind.iter_mut().zip(other.by_kind) {
            *count = (count.0 + other.0, count.1 + other.1);
        }
        self.latency.merge(&other.latency);
    }

    fn of(&self, kind: OutcomeKind) -> (u64, u64) {
        self.by_kind.get(kind as usize).copied().unwrap_or_default()
    }

    /// Returns `true` if an attempt was counted that is more than a logged failure.
    fn has_attempts(&self) -> bool {
        self.by_kind
            .iter()
            .any(|(attempts, unobserved)| attempts > unobserved)
    }

    fn rates(&self, known: Known) -> Rates {
        let successes = self.of(OutcomeKind::Success).0;
        let types = RetrievalFailureType::ALL.map(|failure| (failure, self.of(failure.into())));
        let failures: u64 = types.iter().map(|(_, (failures, _))| failures).sum();
        let unobserved: u64 = types.iter().map(|(_, (_, unobserved))| unobserved).sum();
        let attempts = successes + failures;
        let unknown = self.of(OutcomeKind::Unknown).0;
        // Traces without documents show errors and hide successes: no rate follows from them.
        let is_biased = successes == 0 && unknown > 0;
        let rate = |failures| share(failures, attempts).filter(|_| known.any && !is_biased);
        Rates {
            attempts,
            successes,
            failures,
            unobserved,
            cancelled: self.of(OutcomeKind::Cancelled).0,
            unknown,
            failure_rate: rate(failures),
            types: types.map(|(failure_type, (failures, _))| TypeRate {
                failure_type,
                failures,
                rate: rate(failures),
            }),
            latency_ms: Latency::of(&self.latency),
        }
    }

    fn point(&self, at: Timestamp, known: Known) -> TimePoint {
        let Rates {
            attempts,
            failures,
            failure_rate,
            ..
        } = self.rates(known);
        TimePoint {
            at: at.into(),
            attempts,
            failures,
            types: FailuresByType::new(|failure| self.of(failure.into()).0),
            failure_rate,
        }
    }
}

impl Latency {
    pub(crate) fn of(sketch: &Sketch) -> Option<Self> {
        let percentile = |percent| sketch.percentile(percent);
        Some(Self {
            p50: percentile(50)?,
            p95: percentile(95)?,
            p99: percentile(99)?,
        })
    }
}

/// Returns the share of `part` in `all`. `None`: `all` is 0.
fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryLog;

    #[test]
    fn a_range_is_covered_once_by_the_largest_spans_that_fit() {
        let from = Timestamp::EPOCH + DAY_MS - 2 * HOUR_MS - 3 * MINUTE_MS;
        let to = Timestamp::EPOCH + 4 * DAY_MS + HOUR_MS + MINUTE_MS;
        let mut spans = Vec::new();
        cover(from, to, Resolution::Day, Resolution::Minute, &mut spans);
        let mut at = from;
        for span in &spans {
            assert_eq!(span.from, at, "no gap, no overlap");
            at = span.to;
        }
        assert_eq!(at, to);
        let lengths: Vec<_> = spans
            .iter()
            .map(|span| (span.to - span.from) / span.resolution.span())
            .collect();
        assert_eq!(
            lengths,
            [3, 2, 3, 1, 1],
            "minutes, hours, days, hours, minutes"
        );
    }

    #[test]
    fn resolution_is_the_finest_that_is_kept_for_the_whole_range() {
        const NOW: Timestamp = Timestamp::from_millis(20_000 * DAY_MS);
        use Resolution::{Day, Hour, Minute};
        // Minutes are kept for 7 days and hours for 90; a range of minutes is at most twice
        // MINUTES_UP_TO long.
        for (begins, ends, expected) in [
            (HOUR_MS, 0, Minute),
            (4 * DAY_MS, 0, Minute),
            (4 * DAY_MS + 1, 0, Hour),
            (7 * DAY_MS - HOUR_MS, 5 * DAY_MS, Minute),
            (7 * DAY_MS - HOUR_MS + 1, 5 * DAY_MS, Hour),
            (7 * DAY_MS, 5 * DAY_MS, Hour),
            (90 * DAY_MS - HOUR_MS, 0, Hour),
            (90 * DAY_MS - HOUR_MS + 1, 0, Day),
            (400 * DAY_MS, 399 * DAY_MS, Day),
        ] {
            let range = TimeRange {
                from: NOW - begins,
                to: NOW - ends,
                until_now: false,
            };
            assert_eq!(
                finest(range, NOW),
                expected,
                "from {begins} to {ends} ms ago"
            );
        }
    }

    #[test]
    fn timeseries_covers_its_range_and_the_step_that_it_ends_in() {
        const NOW: Timestamp = Timestamp::from_millis(20_000 * DAY_MS);
        let minute = |nth| {
            (
                Resolution::Minute,
                NOW - HOUR_MS + nth * MINUTE_MS,
                OutcomeKind::Success,
                1,
            )
        };
        let mut log = MemoryLog {
            buckets: (0..100).map(minute).collect(),
            ..MemoryLog::default()
        };
        // One attempt a minute.
        for (from, to, points) in [
            (0, 30 * MINUTE_MS, 30),
            (0, 30 * MINUTE_MS + 1, 31),
            (0, 30 * MINUTE_MS - 1, 30),
            (MINUTE_MS / 2, 30 * MINUTE_MS + MINUTE_MS / 2, 31),
            (MINUTE_MS, MINUTE_MS, 1),
        ] {
            let range = TimeRange {
                from: NOW - HOUR_MS + from,
                to: NOW - HOUR_MS + to,
                until_now: false,
            };
            let series = timeseries(
                &mut log,
                &range.into(),
                &TimeseriesRequest::default(),
                NOW,
                Deadline::after(std::time::Duration::MAX),
            )
            .unwrap();
            assert_eq!(
                series
                    .points
                    .iter()
                    .map(|point| point.attempts)
                    .collect::<Vec<_>>(),
                vec![1; points]
            );
            assert!(
                series.range.from <= range.from && series.range.to >= range.to,
                "{from} {to}"
            );
        }
    }

    #[test]
    fn rate_is_of_all_attempts_and_none_of_failures_alone() {
        let mut counts = Counts::default();
        counts.by_kind[OutcomeKind::NoHit as usize] = (5, 5);
        assert!(!counts.has_attempts());
        let alone = counts.rates(Known { any: false });
        assert_eq!(
            (alone.failures, alone.unobserved, alone.failure_rate),
            (5, 5, None)
        );
        // In an outage of a strategy whose successes are reported.
        assert_eq!(counts.rates(Known { any: true }).failure_rate, Some(1.0));
        counts.by_kind[OutcomeKind::Success as usize] = (4, 0);
        counts.by_kind[OutcomeKind::Error as usize] = (1, 0);
        counts.by_kind[OutcomeKind::Cancelled as usize] = (7, 0);
        assert!(counts.has_attempts());
        let rates = counts.rates(Known { any: true });
        assert_eq!(
            (rates.attempts, rates.failures, rates.failure_rate),
            (10, 6, Some(0.6))
        );
        assert_eq!(
            rates.types.iter().map(|of| of.rate).collect::<Vec<_>>(),
            [0.5, 0.0, 0.0, 0.1].map(Some)
        );
    }

    #[test]
    fn reading_after_the_deadline_is_an_error() {
        let minute = |nth| {
            (
                Resolution::Minute,
                Timestamp::EPOCH + nth * MINUTE_MS,
                OutcomeKind::Success,
                1,
            )
        };
        let mut log = MemoryLog {
            buckets: (0..600).map(minute).collect(),
            ..MemoryLog::default()
        };
        let spans = [Span {
            resolution: Resolution::Minute,
            from: Timestamp::EPOCH,
            to: Timestamp::EPOCH + 10 * HOUR_MS,
        }];
        let mut buckets = |seconds| {
            let deadline = Deadline::after(std::time::Duration::from_secs(seconds));
            let mut buckets = 0;
            let done = read(&mut log, &spans, TimeRange::all(), deadline, false, |_| {
                buckets += 1
            });
            (done, buckets)
        };
        assert_eq!(
            buckets(0),
            (Err(ReadError::TimedOut), 255),
            "it looks at the clock from time to time"
        );
        assert_eq!(buckets(600), (Ok(()), 600));
    }
}
