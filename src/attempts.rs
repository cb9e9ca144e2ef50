//! Counting every attempt: from the caller's side, through a queue, into one cell for each minute,
//! strategy and outcome.
//!
//! A caller pushes a sample of a few bytes. Whatever becomes of the queue, the count is right: a
//! sample that finds it full is counted without its latency and score.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock;
use crate::record::{BoundedText, RetrievalFailureType};
use crate::sketch::Sketch;

/// Strategies that are told apart; the rest are counted as [`OTHER_STRATEGIES`]. Those names are
/// labels of metrics, and each costs a few cells a minute.
pub(crate) const MAX_STRATEGIES: usize = 64;
/// What strategies beyond [`MAX_STRATEGIES`] are counted as.
pub(crate) const OTHER_STRATEGIES: &str = "other";
/// Samples that wait for the writer at most.
const SAMPLES: usize = 16_384;
/// Without failures to write, attempts are written this often.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Cells that wait for the writer, beyond which minutes are added up to hours, and hours to days.
const MAX_CELLS: usize = 4096;

/// Deltas that are added up without waiting for the usual time: reading one costs a microsecond.
const MANY_DELTAS: u64 = 256;

/// Longer latencies count as an hour, so that none blurs all others.
const LONGEST_LATENCY_MS: f64 = 3_600_000.0;
/// Scores beyond this are no scores, but stand for something else.
const LARGEST_SCORE: f32 = 1e6;

pub(crate) const MINUTE_MS: i64 = 60_000;
pub(crate) const HOUR_MS: i64 = 60 * MINUTE_MS;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;

/// How a retrieval ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Something was found that is good enough.
    Success,
    /// Nothing was found.
    NoHit,
    /// The best score was on the wrong side of the threshold.
    LowConfidence,
    /// The lookup did not finish in time.
    Timeout,
    /// The backend returned an error.
    Error,
    /// The caller gave up waiting. Neither a success nor a failure.
    Cancelled,
}

impl OutcomeKind {
    /// Every kind, in the order of their declaration.
    pub const ALL: [Self; 6] =
        [Self::Success, Self::NoHit, Self::LowConfidence, Self::Timeout, Self::Error, Self::Cancelled];

    /// The name under which the kind is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::NoHit => "no_hit",
            Self::LowConfidence => "low_confidence",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }

    /// The type of failure, if it is one.
    pub const fn failure(self) -> Option<RetrievalFailureType> {
        match self {
            Self::NoHit => Some(RetrievalFailureType::NoHit),
            Self::LowConfidence => Some(RetrievalFailureType::LowConfidence),
            Self::Timeout => Some(RetrievalFailureType::Timeout),
            Self::Error => Some(RetrievalFailureType::Error),
            Self::Success | Self::Cancelled => None,
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl From<RetrievalFailureType> for OutcomeKind {
    fn from(failure: RetrievalFailureType) -> Self {
        match failure {
            RetrievalFailureType::NoHit => Self::NoHit,
            RetrievalFailureType::LowConfidence => Self::LowConfidence,
            RetrievalFailureType::Timeout => Self::Timeout,
            RetrievalFailureType::Error => Self::Error,
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which scores are the better ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScoreDirection {
    /// Similarities: a score below the threshold is too low.
    #[default]
    HigherIsBetter,
    /// Distances: a score above the threshold is too far.
    LowerIsBetter,
}

impl ScoreDirection {
    /// Whether `score` is on the wrong side of `threshold`.
    pub(crate) fn misses(self, score: f32, threshold: f32) -> bool {
        match self {
            Self::HigherIsBetter => score < threshold,
            Self::LowerIsBetter => score > threshold,
        }
    }

    /// The better one of two scores, none of which is NaN.
    pub(crate) fn better(self, one: f32, other: f32) -> f32 {
        match self {
            Self::HigherIsBetter => one.max(other),
            Self::LowerIsBetter => one.min(other),
        }
    }
}

/// What is counted of an attempt.
pub(crate) struct Attempt {
    pub(crate) kind: OutcomeKind,
    pub(crate) latency: Duration,
    pub(crate) top_score: Option<f32>,
}

/// One attempt, on its way to its cell.
struct Sample {
    series: SeriesId,
    kind: OutcomeKind,
    /// Unix milliseconds, UTC: the end of the attempt.
    at: i64,
    latency: Duration,
    /// NaN: none.
    top_score: f32,
}

impl Sample {
    fn new(series: &Series, &Attempt { kind, latency, top_score }: &Attempt, at: i64) -> Self {
        Self { series: series.id, kind, at, latency, top_score: top_score.unwrap_or(f32::NAN) }
    }
}

/// Index of a series among all of a logger.
type SeriesId = u32;

/// What is known of a strategy, shared by all its monitors.
pub(crate) struct Series {
    id: SeriesId,
    pub(crate) name: BoundedText<64>,
    /// Attempts that found the queue full, by kind.
    spilled: [AtomicU64; OutcomeKind::ALL.len()],
    settings: Settings,
}

/// How a strategy is judged, for those who read the database later. Without a lock: monitors are
/// made in hot paths too.
#[derive(Default)]
struct Settings {
    /// Bits of an `f32`; NaN: none.
    threshold: AtomicU32,
    lower_is_better: AtomicBool,
    /// Milliseconds; 0: none.
    timeout_ms: AtomicU64,
    changed: AtomicBool,
}

/// A strategy's settings, to be stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StrategySettings {
    pub(crate) strategy: BoundedText<64>,
    pub(crate) threshold: Option<f32>,
    pub(crate) direction: ScoreDirection,
    pub(crate) timeout_ms: Option<i64>,
}

impl Series {
    fn new(id: SeriesId, name: BoundedText<64>) -> Self {
        let settings = Settings { threshold: AtomicU32::new(f32::NAN.to_bits()), ..Settings::default() };
        Self { id, name, spilled: Default::default(), settings }
    }

    pub(crate) fn set_threshold(&self, threshold: f32) {
        let bits = threshold.to_bits();
        // Monitors are made again and again with the same settings, which are written once.
        if self.settings.threshold.swap(bits, Ordering::Relaxed) != bits {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn set_direction(&self, direction: ScoreDirection) {
        let lower = direction == ScoreDirection::LowerIsBetter;
        if self.settings.lower_is_better.swap(lower, Ordering::Relaxed) != lower {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        if self.settings.timeout_ms.swap(ms, Ordering::Relaxed) != ms {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    /// None for those that are counted together: they have not one threshold.
    fn changed_settings(&self) -> Option<StrategySettings> {
        if *self.name == *OTHER_STRATEGIES {
            return None;
        }
        let Settings { threshold, lower_is_better, timeout_ms, changed } = &self.settings;
        changed.swap(false, Ordering::AcqRel).then(|| {
            let threshold = f32::from_bits(threshold.load(Ordering::Relaxed));
            let timeout_ms = i64::try_from(timeout_ms.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            StrategySettings {
                strategy: self.name.clone(),
                threshold: threshold.is_finite().then_some(threshold),
                direction: match lower_is_better.load(Ordering::Relaxed) {
                    true => ScoreDirection::LowerIsBetter,
                    false => ScoreDirection::HigherIsBetter,
                },
                timeout_ms: (timeout_ms > 0).then_some(timeout_ms),
            }
        })
    }
}

/// Attempts of one strategy with one outcome within one span of time.
#[derive(Clone, Default)]
pub(crate) struct Cell {
    pub(crate) attempts: u64,
    /// Of these, failures that were logged without a monitor: nobody counted the successes beside
    /// them, so that no rate follows from them.
    pub(crate) unobserved: u64,
    /// In milliseconds.
    pub(crate) latency: Sketch,
    pub(crate) top_score: Sketch,
}

impl Cell {
    /// Adds a failure that was logged without a monitor. Its score is left out: nobody knows those of
    /// the successes beside it.
    pub(crate) fn add_unobserved(&mut self, latency_ms: i64) {
        self.attempts += 1;
        self.unobserved += 1;
        // 0: not measured.
        if latency_ms > 0 {
            self.latency.add((latency_ms as f64).min(LONGEST_LATENCY_MS));
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.unobserved += other.unobserved;
        self.latency.merge(&other.latency);
        self.top_score.merge(&other.top_score);
    }
}

/// A cell that waits to be written.
pub(crate) struct Delta {
    /// UUIDv7: makes a repeated insert harmless, as with records.
    pub(crate) id: Uuid,
    /// Start of the minute, in Unix milliseconds.
    pub(crate) started_at: i64,
    pub(crate) strategy: BoundedText<64>,
    pub(crate) kind: OutcomeKind,
    pub(crate) cell: Cell,
}

/// Ends the ids of a logger's deltas, so that it knows which are its own: those it adds up as soon as they
/// are acknowledged, for it will not write them again. Those of others might come again for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u32);

impl Tag {
    /// Of deltas that nobody writes again, whatever becomes of their transaction.
    pub(crate) const NEVER_AGAIN: Self = Self(0);

    fn of_a_new_logger() -> Self {
        let (_, low) = Uuid::new_v4().as_u64_pair();
        #[expect(clippy::cast_possible_truncation, reason = "four random bytes")]
        Self((low as u32).max(1))
    }

    /// A UUIDv7 that ends with the tag.
    pub(crate) fn id(self) -> Uuid {
        Uuid::from_u128(Uuid::now_v7().as_u128() & !u128::from(u32::MAX) | u128::from(self.0))
    }

    pub(crate) fn bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl Default for Tag {
    fn default() -> Self {
        Self::of_a_new_logger()
    }
}

/// What one transaction takes along.
#[derive(Default)]
pub(crate) struct AttemptBatch {
    pub(crate) deltas: Vec<Delta>,
    pub(crate) settings: Vec<StrategySettings>,
}

impl AttemptBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.settings.is_empty()
    }

    fn attempts(&self) -> u64 {
        self.deltas.iter().map(|delta| delta.cell.attempts - delta.cell.unobserved).sum()
    }
}

/// All attempts of one logger that are not written yet.
#[derive(Default)]
pub(crate) struct Attempts {
    pub(crate) tag: Tag,
    /// Deltas that were written since some were added up last.
    deltas: AtomicU64,
    /// Made with the first monitor: who has none does not pay for it.
    samples: OnceLock<ArrayQueue<Sample>>,
    registry: Mutex<Registry>,
    pending: Mutex<Pending>,
    /// Attempts that monitors counted, once they have been collected.
    observed: AtomicU64,
    persisted: AtomicU64,
    /// Whether attempts have been taken that are not committed yet.
    in_flight: AtomicBool,
}

/// The strategies of this logger, by the order in which they came.
#[derive(Default)]
struct Registry {
    by_name: HashMap<BoundedText<64>, Arc<Series>>,
    by_id: Vec<Arc<Series>>,
}

impl Registry {
    /// The series of the strategy `name`, or of all the others if there are too many.
    fn series(&mut self, name: &str) -> Arc<Series> {
        if let Some(series) = self.by_name.get(name) {
            return Arc::clone(series);
        }
        let name = if self.by_id.len() >= MAX_STRATEGIES { OTHER_STRATEGIES } else { name };
        let Self { by_name, by_id } = self;
        let series = by_name.entry(name.into()).or_insert_with_key(|name| {
            let id = SeriesId::try_from(by_id.len()).unwrap_or(SeriesId::MAX);
            let series = Arc::new(Series::new(id, name.clone()));
            by_id.push(Arc::clone(&series));
            series
        });
        Arc::clone(series)
    }
}

struct Pending {
    cells: HashMap<CellKey, Cell>,
    /// All attempts so far, by series and kind.
    totals: HashMap<(SeriesId, OutcomeKind), u64>,
    /// When cells were last taken.
    taken_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct CellKey {
    started_at: i64,
    series: SeriesId,
    kind: OutcomeKind,
}

impl CellKey {
    fn new(at: i64, series: SeriesId, kind: OutcomeKind) -> Self {
        Self { started_at: at - at.rem_euclid(MINUTE_MS), series, kind }
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self { cells: HashMap::new(), totals: HashMap::new(), taken_at: Instant::now() }
    }
}

impl Attempts {
    /// The series of the strategy `name`, for a monitor.
    pub(crate) fn series(&self, name: &BoundedText<64>) -> Arc<Series> {
        self.samples.get_or_init(|| ArrayQueue::new(SAMPLES));
        lock(&self.registry).series(name)
    }

    /// Counts an attempt that ends now: whether the writer should look after the queue soon. Waits
    /// for nobody.
    pub(crate) fn push(&self, series: &Series, attempt: &Attempt, now: i64) -> bool {
        let Some(samples) = self.samples.get() else { return false };
        if samples.push(Sample::new(series, attempt, now)).is_err() {
            if let Some(spilled) = series.spilled.get(attempt.kind as usize) {
                spilled.fetch_add(1, Ordering::AcqRel);
            }
            return true;
        }
        samples.len() >= SAMPLES / 2
    }

    /// Whether so many samples wait that callers wake the writer.
    pub(crate) fn are_waiting(&self) -> bool {
        self.samples.get().is_some_and(|samples| samples.len() >= SAMPLES / 2)
    }

    /// Counts an attempt that ended at another time. Waits for its turn.
    pub(crate) fn add(&self, series: &Series, attempt: &Attempt, at: i64) {
        let mut pending = lock(&self.pending);
        pending.add(Sample::new(series, attempt, at));
        pending.bound();
        self.observed.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts samples into their cells, so that the queue is empty again.
    pub(crate) fn collect(&self) {
        let Some(samples) = self.samples.get() else { return };
        let mut pending = lock(&self.pending);
        let mut observed = 0;
        // No more than the queue holds: callers may be faster.
        for _ in 0..SAMPLES {
            let Some(sample) = samples.pop() else { break };
            pending.add(sample);
            observed += 1;
        }
        let now = clock::now();
        for series in &lock(&self.registry).by_id {
            for (kind, spilled) in OutcomeKind::ALL.into_iter().zip(&series.spilled) {
                if spilled.load(Ordering::Acquire) > 0 {
                    let attempts = spilled.swap(0, Ordering::AcqRel);
                    pending.cell(now, series.id, kind, attempts).attempts += attempts;
                    observed += attempts;
                }
            }
        }
        pending.bound();
        // While nobody can take them: what is persisted has been observed.
        self.observed.fetch_add(observed, Ordering::AcqRel);
    }

    /// Counts failures that were logged without a monitor.
    pub(crate) fn unobserved(&self) -> Unobserved<'_> {
        Unobserved { pending: lock(&self.pending), registry: lock(&self.registry), last: None }
    }

    /// Whether it is time to write attempts, though there are no failures to write.
    pub(crate) fn due(&self) -> bool {
        let pending = lock(&self.pending);
        self.in_flight.load(Ordering::Acquire) || !pending.cells.is_empty() && pending.taken_at.elapsed() >= WRITE_EVERY
    }

    /// Everything that has been counted, to be written. Nothing else is taken before it is.
    pub(crate) fn take(&self) -> AttemptBatch {
        // In this order wherever both are locked.
        let mut pending = lock(&self.pending);
        let registry = lock(&self.registry);
        pending.taken_at = Instant::now();
        let deltas = pending.cells.drain().filter_map(|(CellKey { started_at, series, kind }, cell)| {
            let strategy = registry.by_id.get(series as usize)?.name.clone();
            Some(Delta { id: self.tag.id(), started_at, strategy, kind, cell })
        });
        let deltas = deltas.collect();
        let settings = registry.by_id.iter().filter_map(|series| series.changed_settings()).collect();
        let batch = AttemptBatch { deltas, settings };
        self.in_flight.store(!batch.is_empty(), Ordering::Release);
        batch
    }

    /// Says that `batch` is committed.
    pub(crate) fn persisted(&self, batch: &AttemptBatch) {
        self.persisted.fetch_add(batch.attempts(), Ordering::AcqRel);
        self.deltas.fetch_add(batch.deltas.len() as u64, Ordering::AcqRel);
        self.in_flight.store(false, Ordering::Release);
    }

    /// Adds what was counted as it was written to the totals.
    pub(crate) fn written(&self, batch: &AttemptBatch) {
        if batch.deltas.is_empty() {
            return;
        }
        let mut pending = lock(&self.pending);
        let mut registry = lock(&self.registry);
        for Delta { strategy, kind, cell, .. } in &batch.deltas {
            let series = registry.series(strategy.as_str()).id;
            *pending.totals.entry((series, *kind)).or_default() += cell.attempts;
        }
        self.deltas.fetch_add(batch.deltas.len() as u64, Ordering::AcqRel);
    }

    /// Whether so many deltas were written that questions would take longer for them.
    pub(crate) fn are_many(&self) -> bool {
        self.deltas.load(Ordering::Acquire) >= MANY_DELTAS
    }

    /// Says that what was written is being added up.
    pub(crate) fn add_up(&self) {
        self.deltas.store(0, Ordering::Release);
    }

    /// What a strategy is counted as.
    pub(crate) fn name_of(&self, strategy: &str) -> BoundedText<64> {
        lock(&self.registry).series(strategy).name.clone()
    }

    /// Each strategy's attempts since the start, by kind, in the order of [`OutcomeKind::ALL`].
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "shown by the service"))]
    pub(crate) fn totals(&self) -> Vec<(BoundedText<64>, [u64; OutcomeKind::ALL.len()])> {
        self.collect();
        let pending = lock(&self.pending);
        let registry = lock(&self.registry);
        let of = |series: &Arc<Series>| {
            let total = |kind| pending.totals.get(&(series.id, kind)).copied().unwrap_or(0);
            (series.name.clone(), OutcomeKind::ALL.map(total))
        };
        registry.by_id.iter().map(of).collect()
    }

    /// Attempts that monitors have counted, and how many of them are committed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let persisted = self.persisted.load(Ordering::Acquire);
        let waiting = self.samples.get().map_or(0, ArrayQueue::len) as u64;
        (self.observed.load(Ordering::Acquire) + waiting, persisted)
    }
}

/// A failure that was logged without a monitor.
pub(crate) struct UncountedFailure<'r> {
    pub(crate) strategy: &'r str,
    pub(crate) failure: RetrievalFailureType,
    /// Unix milliseconds, UTC.
    pub(crate) at: i64,
    pub(crate) latency_ms: i64,
}

/// Counts while it lives, and keeps everybody else from counting.
pub(crate) struct Unobserved<'a> {
    pending: MutexGuard<'a, Pending>,
    registry: MutexGuard<'a, Registry>,
    /// Most failures are of the strategy of the one before.
    last: Option<Arc<Series>>,
}

impl Unobserved<'_> {
    pub(crate) fn count(&mut self, UncountedFailure { strategy: name, failure, at, latency_ms }: UncountedFailure<'_>) {
        let series = match &self.last {
            Some(series) if series.name == *name => series.id,
            _ => self.last.insert(self.registry.series(name)).id,
        };
        self.pending.cell(at, series, failure.into(), 1).add_unobserved(latency_ms);
    }
}

impl Drop for Unobserved<'_> {
    fn drop(&mut self) {
        self.pending.bound();
    }
}

impl Pending {
    /// The cell for some more attempts, which are added to the totals.
    fn cell(&mut self, at: i64, series: SeriesId, kind: OutcomeKind, attempts: u64) -> &mut Cell {
        *self.totals.entry((series, kind)).or_default() += attempts;
        self.cells.entry(CellKey::new(at, series, kind)).or_default()
    }

    fn add(&mut self, Sample { series, kind, at, latency, top_score }: Sample) {
        let cell = self.cell(at, series, kind, 1);
        cell.attempts += 1;
        // A cancelled attempt took as long as somebody was patient.
        if kind != OutcomeKind::Cancelled {
            cell.latency.add(milliseconds(latency));
        }
        // A sketch spans nine orders of magnitude: one that is used for "no match" would blur all others.
        if top_score.abs() <= LARGEST_SCORE {
            cell.top_score.add(f64::from(top_score));
        }
    }

    /// Gives up resolution, never a count, while the store takes nothing for long.
    fn bound(&mut self) {
        for span in [HOUR_MS, DAY_MS] {
            if self.cells.len() <= MAX_CELLS {
                return;
            }
            let mut coarse: HashMap<CellKey, Cell> = HashMap::new();
            for (key, cell) in self.cells.drain() {
                let started_at = key.started_at - key.started_at.rem_euclid(span);
                coarse.entry(CellKey { started_at, ..key }).or_default().merge(&cell);
            }
            self.cells = coarse;
        }
    }
}

fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e3).min(LONGEST_LATENCY_MS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
