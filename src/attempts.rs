//! Counting every attempt: from the caller's side, through an inbox, into one cell for each minute,
//! strategy and outcome.

mod cells;
mod inbox;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use self::cells::{CellKey, Cells, Counts};
use self::inbox::{Drained, Inbox, Pushed, Sample};
use crate::record::{BoundedText, RetrievalFailureType};
use crate::sketch::Sketch;

/// What strategies beyond the limit are counted as. A strategy that is really called so is one of them.
pub(crate) const OTHER_STRATEGIES: &str = "[other strategies]";
/// Without failures to write, attempts are written this often.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// As many cells are written without waiting for [`WRITE_EVERY`].
const MANY_CELLS: usize = 4096;
/// Cells of one transaction at most: it takes some ten milliseconds.
const CELLS_PER_TRANSACTION: usize = 2048;

/// Rows that are added up without waiting for the usual time: reading one costs a microsecond.
const MANY_ROWS: u64 = 1024;
/// A delta has sketches, and counts as so many rows.
const ROWS_PER_DELTA: u64 = 4;

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
    /// `None`: not measured.
    pub(crate) latency: Option<Duration>,
    pub(crate) top_score: Option<f32>,
}

/// Index of a series among all of a logger.
type SeriesId = u32;

/// What is known of a strategy, shared by all its monitors.
pub(crate) struct Series {
    id: SeriesId,
    pub(crate) name: BoundedText<64>,
    settings: Settings,
}

/// How a strategy is judged, for those who read the database later. Without a lock: monitors are
/// made in hot paths too.
#[derive(Default)]
struct Settings {
    /// Bits of an `f32`; NaN: none.
    threshold: AtomicU32,
    /// 0: not set; 1: higher scores are better; 2: lower ones.
    direction: AtomicU8,
    /// Milliseconds; 0: none.
    timeout_ms: AtomicU64,
    /// `true` once an attempt was counted, and not only failures.
    has_attempts: AtomicBool,
    changed: AtomicBool,
}

/// A strategy's settings, to be stored, or as they are stored. A strategy has them as soon as one attempt of it is
/// counted: of others only failures are known, and no rate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StrategySettings {
    pub(crate) strategy: BoundedText<64>,
    pub(crate) threshold: Option<f32>,
    /// `None`: this process does not know it.
    pub(crate) direction: Option<ScoreDirection>,
    pub(crate) timeout_ms: Option<i64>,
}

impl Series {
    fn new(id: SeriesId, name: BoundedText<64>) -> Self {
        let settings = Settings { threshold: AtomicU32::new(f32::NAN.to_bits()), ..Settings::default() };
        Self { id, name, settings }
    }

    pub(crate) fn set_threshold(&self, threshold: f32) {
        let bits = threshold.to_bits();
        // Monitors are made again and again with the same settings, which are written once.
        if self.settings.threshold.swap(bits, Ordering::Relaxed) != bits {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn set_direction(&self, direction: ScoreDirection) {
        let direction = match direction {
            ScoreDirection::HigherIsBetter => 1,
            ScoreDirection::LowerIsBetter => 2,
        };
        if self.settings.direction.swap(direction, Ordering::Relaxed) != direction {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        if self.settings.timeout_ms.swap(ms, Ordering::Relaxed) != ms {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    /// Says that an attempt was counted.
    fn note_attempts(&self) {
        if !self.settings.has_attempts.swap(true, Ordering::Relaxed) {
            self.settings.changed.store(true, Ordering::Release);
        }
    }

    /// None for those that are counted together: they have not one threshold.
    fn changed_settings(&self) -> Option<StrategySettings> {
        if *self.name == *OTHER_STRATEGIES {
            return None;
        }
        let Settings { threshold, direction, timeout_ms, has_attempts: _, changed } = &self.settings;
        changed.swap(false, Ordering::AcqRel).then(|| {
            let threshold = f32::from_bits(threshold.load(Ordering::Relaxed));
            let timeout_ms = i64::try_from(timeout_ms.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            StrategySettings {
                strategy: self.name.clone(),
                threshold: threshold.is_finite().then_some(threshold),
                direction: match direction.load(Ordering::Relaxed) {
                    1 => Some(ScoreDirection::HigherIsBetter),
                    2 => Some(ScoreDirection::LowerIsBetter),
                    _ => None,
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
    pub(crate) fn add_unobserved(&mut self, latency_ms: Option<i64>) {
        self.attempts += 1;
        self.unobserved += 1;
        if let Some(latency_ms) = measured(latency_ms) {
            self.latency.add(latency_ms);
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
    pub(crate) owner: Owner,
    /// Start of the minute, in Unix milliseconds.
    pub(crate) started_at: i64,
    pub(crate) strategy: BoundedText<64>,
    pub(crate) kind: OutcomeKind,
    pub(crate) cell: Cell,
}

/// Whose a delta is. A logger adds up its own as soon as they are acknowledged, because it does not write them once
/// more; those of others may be repeated for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// As it is stored: never 0, which stands for deltas that are not repeated.
    pub(crate) fn number(self) -> i64 {
        i64::from(self.0)
    }
}

impl Default for Owner {
    /// An owner of its own.
    fn default() -> Self {
        let (_, low) = Uuid::new_v4().as_u64_pair();
        #[expect(clippy::cast_possible_truncation, reason = "four random bytes")]
        Self((low as u32).max(1))
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
    pub(crate) owner: Owner,
    /// What readers must look at because it is not added up, in rows: see [`MANY_ROWS`].
    behind: AtomicU64,
    /// Made with the first monitor: who has none does not pay for it.
    inbox: OnceLock<Inbox>,
    registry: Mutex<Registry>,
    pending: Mutex<Pending>,
    /// Attempts that monitors counted and that are committed.
    persisted: AtomicU64,
    many: Notify,
    refusal: Mutex<Option<Refusal>>,
}

/// The store takes records and refuses to count attempts. They wait, and cost no record.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) cause: String,
    pub(crate) pause: Duration,
    refused_at: Instant,
}

impl Refusal {
    /// How long attempts wait before they are tried once more, at most `longest`.
    pub(crate) fn retry_in(&self, longest: Duration) -> Duration {
        self.pause.min(longest).saturating_sub(self.refused_at.elapsed())
    }
}

/// The strategies of this logger, by the order in which they came.
#[derive(Default)]
struct Registry {
    /// Strategies that are told apart. Their names are labels of metrics, and each costs a few cells a minute.
    max: usize,
    /// The first strategy that found no place, and is not told yet.
    beyond: Option<BoundedText<64>>,
    by_name: HashMap<BoundedText<64>, Arc<Series>>,
    by_id: Vec<Arc<Series>>,
    /// An inbox that is made later is sealed from its beginning.
    sealed: bool,
}

impl Registry {
    /// Strategies that may still come.
    fn places(&self) -> usize {
        let own = self.by_id.len() - usize::from(self.by_name.contains_key(OTHER_STRATEGIES));
        self.max.saturating_sub(own)
    }

    /// The series of the strategy `name`, or of all the others if there are too many.
    fn series(&mut self, name: &str) -> Arc<Series> {
        if let Some(series) = self.by_name.get(name) {
            return Arc::clone(series);
        }
        let name = match self.places() {
            0 if name != OTHER_STRATEGIES => {
                self.beyond.get_or_insert_with(|| name.into());
                OTHER_STRATEGIES
            }
            _ => name,
        };
        let Self { by_name, by_id, .. } = self;
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
    cells: Cells,
    /// All attempts so far, by series and kind.
    totals: HashMap<(SeriesId, OutcomeKind), u64>,
    /// Swapped for the lists of the inbox.
    spare: Vec<Sample>,
    /// When cells were last taken.
    taken_at: Instant,
    /// Cells were taken that are not committed yet.
    in_flight: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            cells: Cells::default(),
            totals: HashMap::new(),
            spare: Vec::new(),
            taken_at: Instant::now(),
            in_flight: false,
        }
    }
}

impl Attempts {
    /// Counts `max_strategies` by themselves, and the rest together.
    pub(crate) fn new(max_strategies: usize) -> Self {
        let registry = Registry { max: max_strategies, ..Registry::default() };
        Self { registry: Mutex::new(registry), ..Self::default() }
    }

    /// Strategies that are counted by themselves.
    #[cfg(feature = "http")]
    pub(crate) fn strategies(&self) -> usize {
        let registry = lock(&self.registry);
        registry.max - registry.places()
    }

    /// Strategies of which an attempt was counted since the start, and not failures alone.
    #[cfg(feature = "http")]
    pub(crate) fn strategies_with_attempts(&self) -> Vec<String> {
        let has_attempts = |series: &&Arc<Series>| series.settings.has_attempts.load(Ordering::Relaxed);
        lock(&self.registry).by_id.iter().filter(has_attempts).map(|series| series.name.to_string()).collect()
    }

    /// The first strategy that found no place since the last call.
    pub(crate) fn take_beyond(&self) -> Option<BoundedText<64>> {
        lock(&self.registry).beyond.take()
    }

    /// The series of the strategy `name`, for a monitor.
    pub(crate) fn series(&self, name: &BoundedText<64>) -> Arc<Series> {
        let mut registry = lock(&self.registry);
        self.inbox.get_or_init(|| Inbox::new(registry.sealed));
        registry.series(name)
    }

    /// Counts an attempt that ends now.
    #[inline]
    pub(crate) fn push(&self, series: &Series, attempt: &Attempt, now: i64) {
        let Some(inbox) = self.inbox.get() else { return };
        let sample = Sample::new(series, attempt, now);
        match inbox.push(sample) {
            Pushed::Counted | Pushed::TooLate => {}
            Pushed::CountedAndMany => self.many.notify_one(),
            Pushed::Full => {
                inbox.spill(sample);
                self.many.notify_one();
            }
        }
    }

    /// Counts an attempt that ended at another time. If the inbox is full, it is emptied first, so that the attempt
    /// keeps its latency and score.
    pub(crate) fn add(&self, series: &Series, attempt: &Attempt, at: i64) {
        let Some(inbox) = self.inbox.get() else { return };
        match inbox.push(Sample::new(series, attempt, at)) {
            Pushed::Counted | Pushed::TooLate => {}
            Pushed::CountedAndMany => self.many.notify_one(),
            Pushed::Full => {
                self.collect();
                self.push(series, attempt, at);
            }
        }
    }

    /// Counts attempts of another log.
    #[cfg(feature = "cli")]
    pub(crate) fn add_counts(&self, strategy: &str, kind: OutcomeKind, at: i64, observed: u64, unobserved: u64) {
        if unobserved > 0 {
            let mut counting = self.unobserved();
            let key = CellKey::new(at, counting.series(strategy).id, kind);
            let counts = Counts { attempts: unobserved, unobserved, latency_ms: None, top_score: None };
            *counting.pending.totals.entry((key.series, kind)).or_default() += unobserved;
            counting.pending.cells.add(key, &counts);
        }
        if observed > 0 {
            let series = self.series(&BoundedText::from(strategy));
            if let Some(inbox) = self.inbox.get() {
                inbox.add_many(CellKey::new(at, series.id, kind), observed);
            }
        }
    }

    /// Puts samples into their cells, so that the inbox is empty again.
    pub(crate) fn collect(&self) {
        if let Some(inbox) = self.inbox.get() {
            lock(&self.pending).collect(inbox);
        }
    }

    /// Waits until a caller finds that many samples wait.
    pub(crate) async fn many_samples(&self) {
        self.many.notified().await;
    }

    /// Counts nothing any more. What was counted by then is a fixed number.
    pub(crate) fn seal(&self) {
        let mut registry = lock(&self.registry);
        registry.sealed = true;
        if let Some(inbox) = self.inbox.get() {
            inbox.seal();
        }
    }

    /// Counts failures that were logged without a monitor.
    pub(crate) fn unobserved(&self) -> Unobserved<'_> {
        Unobserved {
            pending: lock(&self.pending),
            registry: lock(&self.registry),
            last: None,
            expected: HashSet::new(),
        }
    }

    /// Returns `true` if attempts are to be written, though there are no failures to write.
    pub(crate) fn due(&self) -> bool {
        let pending = lock(&self.pending);
        let cells = pending.cells.len();
        pending.in_flight || cells >= MANY_CELLS || cells > 0 && pending.taken_at.elapsed() >= WRITE_EVERY
    }

    /// Cells that wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.pending).cells.len()
    }

    /// Returns `true` if everything that was collected is committed.
    pub(crate) fn are_written(&self) -> bool {
        let pending = lock(&self.pending);
        !pending.in_flight && pending.cells.len() == 0
    }

    /// As much of what was collected as one transaction takes. Nothing else is taken before it is committed.
    pub(crate) fn take(&self) -> AttemptBatch {
        // In this order wherever both are locked.
        let mut pending = lock(&self.pending);
        let registry = lock(&self.registry);
        pending.taken_at = Instant::now();
        let cells = pending.cells.take(CELLS_PER_TRANSACTION);
        let deltas = cells.filter_map(|(CellKey { started_at, series, kind }, cell)| {
            let series = registry.by_id.get(series as usize)?;
            if cell.attempts > cell.unobserved {
                series.note_attempts();
            }
            let strategy = series.name.clone();
            Some(Delta { id: Uuid::now_v7(), owner: self.owner, started_at, strategy, kind, cell })
        });
        let deltas = deltas.collect();
        let settings = registry.by_id.iter().filter_map(|series| series.changed_settings()).collect();
        let batch = AttemptBatch { deltas, settings };
        pending.in_flight = !batch.is_empty();
        batch
    }

    /// Says that the store refuses what was taken, which waits for twice as long as the last time.
    pub(crate) fn refused(&self, cause: String, first: Duration, longest: Duration) -> Refusal {
        let mut refusal = lock(&self.refusal);
        let pause = refusal.as_ref().map_or(first, |before| 2 * before.pause).min(longest);
        refusal.insert(Refusal { cause, pause, refused_at: Instant::now() }).clone()
    }

    /// Why attempts are not counted, if the store refused them the last time.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        lock(&self.refusal).clone()
    }

    /// Says that `batch` is committed.
    pub(crate) fn persisted(&self, batch: &AttemptBatch) {
        self.persisted.fetch_add(batch.attempts(), Ordering::AcqRel);
        self.behind.fetch_add(ROWS_PER_DELTA * batch.deltas.len() as u64, Ordering::AcqRel);
        lock(&self.pending).in_flight = false;
        *lock(&self.refusal) = None;
    }

    /// Adds failures that are counted from their rows to the totals: they are committed.
    pub(crate) fn counted_from_rows<'r>(&self, rows: impl Iterator<Item = UncountedFailure<'r>>) {
        let mut unobserved = self.unobserved();
        for UncountedFailure { strategy, failure, .. } in rows {
            let series = unobserved.series(strategy).id;
            *unobserved.pending.totals.entry((series, failure.into())).or_default() += 1;
        }
    }

    /// Says that readers must look at some more rows.
    pub(crate) fn are_behind(&self, rows: u64) {
        self.behind.fetch_add(rows, Ordering::AcqRel);
    }

    /// Returns `true` if so much is not added up that reads take longer for it.
    pub(crate) fn are_many(&self) -> bool {
        self.behind.load(Ordering::Acquire) >= MANY_ROWS
    }

    /// Says that what was written is being added up.
    pub(crate) fn add_up(&self) {
        self.behind.store(0, Ordering::Release);
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

    /// Attempts that monitors have counted, and how many of them are committed. Takes no lock.
    pub(crate) fn counts(&self) -> (u64, u64) {
        // First, because what is persisted was counted before.
        let persisted = self.persisted.load(Ordering::Acquire);
        (self.inbox.get().map_or(0, Inbox::counted), persisted)
    }
}

/// A failure that was logged without a monitor.
pub(crate) struct UncountedFailure<'r> {
    pub(crate) strategy: &'r str,
    pub(crate) failure: RetrievalFailureType,
    /// Unix milliseconds, UTC.
    pub(crate) at: i64,
    pub(crate) latency_ms: Option<i64>,
}

/// Counts while it lives, and keeps everybody else from counting.
pub(crate) struct Unobserved<'a> {
    pending: MutexGuard<'a, Pending>,
    registry: MutexGuard<'a, Registry>,
    /// Most failures are of the strategy of the one before.
    last: Option<Arc<Series>>,
    /// New strategies of rows that are counted once they are committed: a row that is stored already takes no place.
    expected: HashSet<BoundedText<64>>,
}

impl Unobserved<'_> {
    /// Returns `true` if the strategy is counted together with others, because there are too many.
    pub(crate) fn is_one_of_too_many(&mut self, strategy: &str) -> bool {
        if self.registry.by_name.contains_key(strategy) || self.expected.contains(strategy) {
            return false;
        }
        let has_place = self.expected.len() < self.registry.places();
        if has_place {
            self.expected.insert(strategy.into());
        } else {
            self.registry.beyond.get_or_insert_with(|| strategy.into());
        }
        !has_place
    }

    pub(crate) fn count(&mut self, UncountedFailure { strategy, failure, at, latency_ms }: UncountedFailure<'_>) {
        let series = self.series(strategy).id;
        self.pending.add_unobserved(CellKey::new(at, series, failure.into()), latency_ms);
    }

    fn series(&mut self, name: &str) -> Arc<Series> {
        match &self.last {
            Some(series) if series.name == *name => Arc::clone(series),
            _ => Arc::clone(self.last.insert(self.registry.series(name))),
        }
    }
}

impl Pending {
    fn collect(&mut self, inbox: &Inbox) {
        let Self { cells, totals, spare, .. } = self;
        if spare.capacity() == 0 {
            *spare = Inbox::empty();
        }
        inbox.drain(spare, |key, drained| {
            let counts = match drained {
                Drained::Spilled(attempts) => Counts { attempts, ..Counts::default() },
                Drained::Sample(Sample { latency, top_score, .. }) => Counts {
                    attempts: 1,
                    unobserved: 0,
                    // A cancelled attempt took as long as somebody was patient.
                    latency_ms: latency.filter(|_| key.kind != OutcomeKind::Cancelled).map(milliseconds),
                    // A sketch spans nine orders of magnitude: one that is used for "no match" would blur all others.
                    top_score: (top_score.abs() <= LARGEST_SCORE).then_some(f64::from(top_score)),
                },
            };
            *totals.entry((key.series, key.kind)).or_default() += counts.attempts;
            cells.add(key, &counts);
        });
    }

    fn add_unobserved(&mut self, key: CellKey, latency_ms: Option<i64>) {
        *self.totals.entry((key.series, key.kind)).or_default() += 1;
        let latency_ms = measured(latency_ms);
        self.cells.add(key, &Counts { attempts: 1, unobserved: 1, latency_ms, top_score: None });
    }
}

/// The latency of a logged failure. 0 is what a record has that was built without one, and what older rows have.
fn measured(latency_ms: Option<i64>) -> Option<f64> {
    latency_ms.filter(|latency_ms| *latency_ms > 0).map(|latency_ms| (latency_ms as f64).min(LONGEST_LATENCY_MS))
}

fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e3).min(LONGEST_LATENCY_MS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
