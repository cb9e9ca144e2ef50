//! Counts every attempt: a caller pushes into a counter, and the writer adds the counters to one
//! bucket for each minute, strategy and outcome.
//!
//! # From an attempt to a bucket
//!
//! 1. A caller pushes a sample of some bytes into a list of the counter (`counter`). It waits for
//!    nothing.
//! 2. [`Attempts::collect`] moves the samples into buckets in memory (`bucket`), at each tick and
//!    whenever a list is half full.
//! 3. [`Attempts::take`] makes deltas of the buckets, which a flush appends to a table in the
//!    transaction of its failures.
//! 4. The roll-up adds the deltas to their minutes, hours and days (`sums`).
//!
//! # Ids of deltas
//!
//! An insert may be repeated: the commit succeeded, and the process panicked before it knew. Each
//! delta therefore gets an id when it is taken, and keeps it until its commit is acknowledged. The
//! insert of an id that is in the table does nothing.
//!
//! This works only while the delta is in the table. The roll-up deletes deltas, so that it must
//! leave those whose logger may repeat them: [`Owner`]. A logger rolls up its own deltas when none
//! of them is in flight. It leaves those of another logger for an hour, unless that logger released
//! them.
//!
//! # Order of locks
//!
//! `pending`, then `registry`, then a list of the counter. [`Attempts::take`] holds the first two
//! at once. A function that locked `registry` first and then waited for `pending` would deadlock
//! with it. [`Attempts::seal`] holds `registry` while it locks the lists. `refusal` is locked
//! alone.

mod bucket;
mod counter;
pub(crate) mod resolution;
pub(crate) mod sketch;
pub(crate) mod sums;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use self::bucket::{BucketKey, Buckets, Counts};
use self::counter::{Counter, Drained, Pushed, Sample};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::record::StrategyName;
use crate::model::source::Sender;
use crate::model::time::Timestamp;
use crate::rollup::sketch::Sketch;

/// Name under which strategies beyond the limit are counted. A strategy with this very name is one
/// of them.
pub(crate) const OTHER_STRATEGIES: &str = "[other strategies]";
/// Interval in which attempts are written if there are no failures to write. Longer than the
/// interval of flushes, because a transaction for attempts alone costs as much as one with
/// failures.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// As many buckets are written without waiting for [`WRITE_EVERY`].
const MANY_BUCKETS: usize = 4096;
/// Buckets of one transaction at most: it takes some ten milliseconds.
const BUCKETS_PER_TRANSACTION: usize = 2048;

/// Series of a logger that are counted by themselves, about. The limit bounds memory and the rows of
/// a minute; strategies without a sender have a limit of their own.
const MAX_SERIES: usize = 4096;

/// Rows that start a roll-up before its time. A read visits each row that is not rolled up, at a
/// microsecond each: so many cost it about a millisecond.
const MANY_ROWS: u64 = 1024;
/// Rows that a delta counts as, because a read decodes its sketches.
const ROWS_PER_DELTA: u64 = 4;

/// Longest latency, in milliseconds: an hour. A longer one counts as an hour, so that one broken
/// clock of a client does not widen the sketch of a strategy.
const LONGEST_LATENCY_MS: f64 = 3_600_000.0;
/// Scores beyond this are no scores, but stand for something else.
const LARGEST_SCORE: f32 = 1e6;

/// The direction in which scores are better.
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
    /// Returns `true` if `score` is on the wrong side of `threshold`.
    pub(crate) fn misses(self, score: f32, threshold: f32) -> bool {
        match self {
            Self::HigherIsBetter => score < threshold,
            Self::LowerIsBetter => score > threshold,
        }
    }

    /// Returns the better one of two scores, none of which is NaN.
    pub(crate) fn better(self, one: f32, other: f32) -> f32 {
        match self {
            Self::HigherIsBetter => one.max(other),
            Self::LowerIsBetter => one.min(other),
        }
    }
}

/// The counted part of an attempt.
pub(crate) struct Attempt {
    pub(crate) kind: OutcomeKind,
    /// `None`: not measured.
    pub(crate) latency: Option<Duration>,
    /// `None`: nothing was found, or the results have no scores.
    pub(crate) top_score: Option<f32>,
}

/// Index of a series among all of a logger.
type SeriesId = u32;

/// Attempts that are counted together: those of one strategy and one sender.
pub(crate) struct Series {
    id: SeriesId,
    pub(crate) name: StrategyName,
    sender: SeriesSender,
    /// Those of the strategy.
    settings: Arc<Settings>,
}

/// The sender of the attempts of a series.
enum SeriesSender {
    /// `None`: neither a source nor labels.
    Of(Option<Sender>),
    /// Any: there are too many series.
    LeftOut,
}

/// A strategy and its series. All its monitors share the settings.
struct Strategy {
    settings: Arc<Settings>,
    without_sender: Arc<Series>,
    by_sender: HashMap<Sender, Arc<Series>>,
    /// Made with the first sender that finds no place.
    left_out: Option<Arc<Series>>,
}

/// Settings by which a strategy is judged, for later reads of the database. Without a lock, because
/// monitors are also created in hot paths.
struct Settings {
    /// Bits of an `f32`; NaN: none.
    ///
    /// Relaxed, as the others: `changed` orders them.
    threshold: AtomicU32,
    /// 0: not set; 1: higher scores are better; 2: lower ones.
    direction: AtomicU8,
    /// Milliseconds; 0: none.
    timeout_ms: AtomicU64,
    /// `true` once an attempt was counted, and not only failures.
    has_attempts: AtomicBool,
    /// `true` if a value differs from the one that was taken last. It is set with `Release` after
    /// the value, and taken with `Acquire` before the values are read: whichever value is missed
    /// sets it once more.
    changed: AtomicBool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threshold: AtomicU32::new(f32::NAN.to_bits()),
            direction: AtomicU8::default(),
            timeout_ms: AtomicU64::default(),
            has_attempts: AtomicBool::default(),
            changed: AtomicBool::default(),
        }
    }
}

/// A strategy's settings, to be stored, or as they are stored. A strategy has them as soon as one
/// attempt of it is counted: of others only failures are known, and no rate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StrategySettings {
    pub(crate) strategy: StrategyName,
    pub(crate) threshold: Option<f32>,
    /// `None`: this process does not know it.
    pub(crate) direction: Option<ScoreDirection>,
    /// Milliseconds. `None`: the strategy has none, or this process does not know it.
    pub(crate) timeout_ms: Option<i64>,
}

impl Series {
    /// Adds a series to those of the logger.
    fn push(
        name: StrategyName,
        sender: SeriesSender,
        settings: Arc<Settings>,
        by_id: &mut Vec<Arc<Self>>,
    ) -> Arc<Self> {
        let series = Arc::new(Self {
            id: SeriesId::try_from(by_id.len()).unwrap_or(SeriesId::MAX),
            name,
            sender,
            settings,
        });
        by_id.push(Arc::clone(&series));
        series
    }

    fn is_of(&self, name: &str, sender: Option<&Sender>) -> bool {
        let is_of_sender = matches!(&self.sender, SeriesSender::Of(own) if own.as_ref() == sender);
        is_of_sender && self.name == *name
    }

    /// Notes the present threshold. All monitors of a strategy share it, and the last one that sets
    /// it wins.
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

    /// Notes the present timeout, in whole milliseconds and at least one: 0 stands for none.
    pub(crate) fn set_timeout(&self, timeout: Duration) {
        let ms = u64::try_from(timeout.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
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

    /// Returns the settings if they changed since the last call. None for the strategies that are
    /// counted together, which share no threshold.
    fn changed_settings(&self) -> Option<StrategySettings> {
        if *self.name == *OTHER_STRATEGIES {
            return None;
        }
        let Settings {
            threshold,
            direction,
            timeout_ms,
            has_attempts: _,
            changed,
        } = &*self.settings;
        // Cleared before the values are read. In the other order, a value that is set between the
        // two would never be written.
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
pub(crate) struct Bucket {
    pub(crate) attempts: u64,
    /// Of these, failures that were logged without a monitor. Nothing counted the successes beside
    /// them, so no rate follows from them.
    pub(crate) unobserved: u64,
    /// In milliseconds.
    pub(crate) latency: Sketch,
    pub(crate) top_score: Sketch,
}

impl Bucket {
    /// Adds a failure that was logged without a monitor. Leaves out its score, because the scores
    /// of the successes beside it are unknown.
    pub(crate) fn add_unobserved(&mut self, latency_ms: Option<i64>) {
        self.attempts += 1;
        self.unobserved += 1;
        if let Some(latency_ms) = measured(latency_ms) {
            self.latency.add(latency_ms);
        }
    }

    /// Adds all attempts of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.unobserved += other.unobserved;
        self.latency.merge(&other.latency);
        self.top_score.merge(&other.top_score);
    }
}

/// A bucket that waits to be written.
pub(crate) struct Delta {
    /// UUIDv7 of the moment in which the counts were taken. It makes a repeated insert harmless, as
    /// with records, and orders deltas by age for the roll-up.
    pub(crate) id: Uuid,
    pub(crate) owner: Owner,
    /// Start of the minute.
    pub(crate) started_at: Timestamp,
    pub(crate) strategy: StrategyName,
    pub(crate) sender: Option<Sender>,
    pub(crate) kind: OutcomeKind,
    pub(crate) bucket: Bucket,
}

/// The logger that owns a delta. A logger rolls up its own deltas as soon as they are acknowledged,
/// because it does not repeat them then. Other loggers may repeat theirs for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// Returns the number as it is stored: never 0, which stands for deltas that no logger repeats.
    pub(crate) fn number(self) -> i64 {
        i64::from(self.0)
    }
}

impl Default for Owner {
    /// Returns a random owner. Two loggers with the same number, one pair in four thousand million,
    /// could roll up each other's deltas too early.
    fn default() -> Self {
        let (_, low) = Uuid::new_v4().as_u64_pair();
        #[expect(clippy::cast_possible_truncation, reason = "four random bytes")]
        Self((low as u32).max(1))
    }
}

/// Attempts that one transaction writes.
#[derive(Default)]
pub(crate) struct AttemptBatch {
    pub(crate) deltas: Vec<Delta>,
    /// Only those that changed since they were taken last.
    pub(crate) settings: Vec<StrategySettings>,
    /// Attempts whose sender found no place among the series.
    pub(crate) senders_left_out: u64,
}

impl AttemptBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.settings.is_empty()
    }

    /// Returns the attempts that monitors counted. Unobserved failures are left out, because the
    /// records count them.
    fn attempts(&self) -> u64 {
        self.deltas
            .iter()
            .map(|delta| delta.bucket.attempts - delta.bucket.unobserved)
            .sum()
    }
}

/// All attempts of one logger that are not written yet.
#[derive(Default)]
pub(crate) struct Attempts {
    pub(crate) owner: Owner,
    /// Rows that each read must visit because they are not rolled up: see [`MANY_ROWS`].
    ///
    /// A hint for the time of the next roll-up. A row that it misses is rolled up a minute later.
    behind: AtomicU64,
    /// Made with the first monitor: who has none does not pay for it.
    counter: OnceLock<Counter>,
    /// Locked after `pending`.
    registry: Mutex<Registry>,
    /// Locked before `registry`. Held while samples become buckets, which callers in a hot path do
    /// not wait for.
    pending: Mutex<Pending>,
    /// Attempts that monitors counted and that are committed.
    ///
    /// Changed after the commit. An attempt is in the counter before it is in a batch, so that this
    /// is never larger than `counted`.
    persisted: AtomicU64,
    /// Notified when a list is half full.
    many: Notify,
    /// Set when the store rejects the counts, and cleared with the next counts that are committed.
    refusal: Mutex<Option<Refusal>>,
}

/// State while the store takes records and rejects the counts of attempts. The counts wait, and no
/// record is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// Text of the store.
    pub(crate) cause: String,
    /// Doubles with each refusal in a row.
    pub(crate) pause: Duration,
    refused_at: Instant,
}

impl Refusal {
    /// Returns the pause before the next retry, at most `longest`.
    pub(crate) fn retry_in(&self, longest: Duration) -> Duration {
        self.pause
            .min(longest)
            .saturating_sub(self.refused_at.elapsed())
    }
}

/// The strategies of this logger, by the order in which they came.
#[derive(Default)]
struct Registry {
    /// Strategies that are counted by themselves, at most. Their names are labels of metrics, and
    /// each costs a few buckets a minute.
    max: usize,
    /// The first strategy beyond the limit, until a warning named it.
    beyond: Option<StrategyName>,
    by_name: HashMap<StrategyName, Strategy>,
    by_id: Vec<Arc<Series>>,
    /// `true` after the seal. A counter that is made later is sealed from its beginning: it would
    /// otherwise count attempts after the report of the shutdown.
    sealed: bool,
}

impl Registry {
    /// Returns the number of strategies that may still come.
    ///
    /// The series of the other strategies takes no place, so that `max` strategies have counts of
    /// their own beside it.
    fn places(&self) -> usize {
        let own = self.by_name.len() - usize::from(self.by_name.contains_key(OTHER_STRATEGIES));
        self.max.saturating_sub(own)
    }

    /// Returns the series of a strategy and a sender, or that of all the other strategies or senders
    /// if there are too many.
    fn series(&mut self, name: &str, sender: Option<&Sender>) -> Arc<Series> {
        let name = match self.places() {
            // A strategy that is really called so is counted with the others from the beginning.
            0 if name != OTHER_STRATEGIES && !self.by_name.contains_key(name) => {
                self.beyond.get_or_insert_with(|| name.into());
                OTHER_STRATEGIES
            }
            _ => name,
        };
        let Self { by_name, by_id, .. } = self;
        let strategy = match by_name.get_mut(name) {
            Some(strategy) => strategy,
            None => by_name
                .entry(name.into())
                .or_insert_with_key(|name| Strategy::new(name, by_id)),
        };
        let Some(sender) = sender else {
            return Arc::clone(&strategy.without_sender);
        };
        if let Some(series) = strategy.by_sender.get(sender) {
            return Arc::clone(series);
        }
        if by_id.len() < MAX_SERIES {
            let of = SeriesSender::Of(Some(sender.clone()));
            let series = strategy.add(of, by_id);
            strategy
                .by_sender
                .insert(sender.clone(), Arc::clone(&series));
            return series;
        }
        if strategy.left_out.is_none() {
            strategy.left_out = Some(strategy.add(SeriesSender::LeftOut, by_id));
        }
        let left_out = strategy.left_out.as_ref();
        Arc::clone(left_out.unwrap_or(&strategy.without_sender))
    }
}

impl Strategy {
    fn new(name: &StrategyName, by_id: &mut Vec<Arc<Series>>) -> Self {
        let settings = Arc::<Settings>::default();
        let without = SeriesSender::Of(None);
        let without_sender = Series::push(name.clone(), without, Arc::clone(&settings), by_id);
        Self {
            settings,
            without_sender,
            by_sender: HashMap::new(),
            left_out: None,
        }
    }

    fn series(&self) -> impl Iterator<Item = &Arc<Series>> {
        let of_senders = self.by_sender.values().chain(&self.left_out);
        std::iter::once(&self.without_sender).chain(of_senders)
    }

    fn add(&self, sender: SeriesSender, by_id: &mut Vec<Arc<Series>>) -> Arc<Series> {
        let name = self.without_sender.name.clone();
        Series::push(name, sender, Arc::clone(&self.settings), by_id)
    }
}

/// Attempts that were collected and not taken, under one lock.
struct Pending {
    buckets: Buckets,
    /// All attempts so far, by series and kind.
    totals: HashMap<(SeriesId, OutcomeKind), u64>,
    /// An empty list that is swapped for those of the counter, so that a caller waits for a swap of
    /// three words and not for the work on the samples.
    spare: Vec<Sample>,
    /// When buckets were last taken.
    taken_at: Instant,
    /// `true` while buckets were taken and are not committed. A flush is due then, however few they
    /// are.
    in_flight: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            buckets: Buckets::default(),
            totals: HashMap::new(),
            spare: Vec::new(),
            taken_at: Instant::now(),
            in_flight: false,
        }
    }
}

impl Attempts {
    /// Counts `max_strategies` by themselves, and the rest together.
    ///
    /// The limit bounds memory, the rows of a minute and the label values of the metrics.
    pub(crate) fn new(max_strategies: usize) -> Self {
        let registry = Registry {
            max: max_strategies,
            ..Registry::default()
        };
        Self {
            registry: Mutex::new(registry),
            ..Self::default()
        }
    }

    /// Strategies that are counted by themselves.
    #[cfg(feature = "http")]
    pub(crate) fn strategies(&self) -> usize {
        let registry = lock(&self.registry);
        registry.max - registry.places()
    }

    /// Returns the strategies of which an attempt was counted since the start, and not failures
    /// alone.
    #[cfg(feature = "http")]
    pub(crate) fn strategies_with_attempts(&self) -> Vec<String> {
        let has_attempts = |(_, strategy): &(&StrategyName, &Strategy)| {
            strategy.settings.has_attempts.load(Ordering::Relaxed)
        };
        lock(&self.registry)
            .by_name
            .iter()
            .filter(has_attempts)
            .map(|(name, _)| name.to_string())
            .collect()
    }

    /// Returns the first strategy that found no place since the last call.
    pub(crate) fn take_beyond(&self) -> Option<StrategyName> {
        lock(&self.registry).beyond.take()
    }

    /// Returns the series of a strategy and a sender, for a monitor.
    pub(crate) fn series(&self, name: &StrategyName, sender: Option<&Sender>) -> Arc<Series> {
        let mut registry = lock(&self.registry);
        // Under the lock of the registry, which `seal` holds as well: otherwise a counter could be
        // made from an unsealed registry after the seal had found no counter to seal.
        self.counter.get_or_init(|| Counter::new(registry.sealed));
        registry.series(name, sender)
    }

    /// Counts an attempt that ends now.
    #[inline]
    pub(crate) fn push(&self, series: &Series, attempt: &Attempt, now: Timestamp) {
        let Some(counter) = self.counter.get() else {
            return;
        };
        let sample = Sample::new(series, attempt, now);
        match counter.push(sample) {
            Pushed::Counted | Pushed::TooLate => {}
            Pushed::CountedAndMany => self.many.notify_one(),
            Pushed::Full => {
                // The caller must not wait for the reader, and the attempt must be counted: only
                // its latency and score are given up.
                counter.spill(sample);
                self.many.notify_one();
            }
        }
    }

    /// Counts an attempt that ended at another time. If the counter is full, it is emptied first, so
    /// that the attempt keeps its latency and score.
    pub(crate) fn add(&self, series: &Series, attempt: &Attempt, at: Timestamp) {
        let Some(counter) = self.counter.get() else {
            return;
        };
        match counter.push(Sample::new(series, attempt, at)) {
            Pushed::Counted | Pushed::TooLate => {}
            Pushed::CountedAndMany => self.many.notify_one(),
            Pushed::Full => {
                self.collect();
                self.push(series, attempt, at);
            }
        }
    }

    /// Counts attempts of another log.
    #[cfg(feature = "program")]
    pub(crate) fn add_counts(
        &self,
        strategy: &str,
        kind: OutcomeKind,
        at: Timestamp,
        observed: u64,
        unobserved: u64,
    ) {
        if unobserved > 0 {
            let mut counting = self.unobserved();
            let key = BucketKey::new(at, counting.series(strategy, None).id, kind);
            let counts = Counts {
                attempts: unobserved,
                unobserved,
                latency_ms: None,
                top_score: None,
            };
            *counting
                .pending
                .totals
                .entry((key.series, kind))
                .or_default() += unobserved;
            counting.pending.buckets.add(key, &counts);
        }
        if observed > 0 {
            let series = self.series(&StrategyName::from(strategy), None);
            if let Some(counter) = self.counter.get() {
                counter.add_many(BucketKey::new(at, series.id, kind), observed);
            }
        }
    }

    /// Moves samples into their buckets, and so makes room in the lists.
    pub(crate) fn collect(&self) {
        if let Some(counter) = self.counter.get() {
            lock(&self.pending).collect(counter);
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
        if let Some(counter) = self.counter.get() {
            counter.seal();
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

    /// Returns `true` if attempts must be written now, even without failures.
    pub(crate) fn due(&self) -> bool {
        let pending = lock(&self.pending);
        let buckets = pending.buckets.len();
        pending.in_flight
            || buckets >= MANY_BUCKETS
            || buckets > 0 && pending.taken_at.elapsed() >= WRITE_EVERY
    }

    /// Returns the number of buckets that wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.pending).buckets.len()
    }

    /// Returns `true` if everything that was collected is committed.
    pub(crate) fn are_written(&self) -> bool {
        let pending = lock(&self.pending);
        !pending.in_flight && pending.buckets.len() == 0
    }

    /// Takes as many buckets as one transaction writes, and gives them their ids. To be called only
    /// when the last batch is committed: a batch that is taken and not kept would be in no count.
    pub(crate) fn take(&self) -> AttemptBatch {
        // In this order wherever both are locked: see "Order of locks".
        let mut pending = lock(&self.pending);
        let registry = lock(&self.registry);
        pending.taken_at = Instant::now();
        let buckets = pending.buckets.take(BUCKETS_PER_TRANSACTION);
        let mut senders_left_out = 0;
        let deltas = buckets.filter_map(
            |(
                BucketKey {
                    started_at,
                    series,
                    kind,
                },
                bucket,
            )| {
                let series = registry.by_id.get(series as usize)?;
                // A strategy of which only failures are known has no rate. Its settings are written
                // as soon as one attempt of a monitor is counted.
                if bucket.attempts > bucket.unobserved {
                    series.note_attempts();
                }
                let sender = match &series.sender {
                    SeriesSender::Of(sender) => sender.clone(),
                    SeriesSender::LeftOut => {
                        senders_left_out += bucket.attempts - bucket.unobserved;
                        None
                    }
                };
                Some(Delta {
                    id: Uuid::now_v7(),
                    owner: self.owner,
                    started_at,
                    strategy: series.name.clone(),
                    sender,
                    kind,
                    bucket,
                })
            },
        );
        let deltas: Vec<Delta> = deltas.collect();
        let settings = registry
            .by_id
            .iter()
            .filter_map(|series| series.changed_settings())
            .collect();
        let batch = AttemptBatch {
            deltas,
            settings,
            senders_left_out,
        };
        pending.in_flight = !batch.is_empty();
        batch
    }

    /// Says that the store refuses what was taken, which waits for twice as long as the last time.
    pub(crate) fn refused(&self, cause: String, first: Duration, longest: Duration) -> Refusal {
        let mut refusal = lock(&self.refusal);
        let pause = refusal
            .as_ref()
            .map_or(first, |before| 2 * before.pause)
            .min(longest);
        refusal
            .insert(Refusal {
                cause,
                pause,
                refused_at: Instant::now(),
            })
            .clone()
    }

    /// Returns the reason for which the store rejected the attempts the last time.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        lock(&self.refusal).clone()
    }

    /// Says that `batch` is committed. To be called once for each batch, under the permit of its
    /// commit.
    pub(crate) fn persisted(&self, batch: &AttemptBatch) {
        self.persisted.fetch_add(batch.attempts(), Ordering::AcqRel);
        self.behind
            .fetch_add(ROWS_PER_DELTA * batch.deltas.len() as u64, Ordering::AcqRel);
        lock(&self.pending).in_flight = false;
        *lock(&self.refusal) = None;
    }

    /// Adds failures that are counted from their rows to the totals: they are committed.
    pub(crate) fn counted_from_rows<'r>(&self, rows: impl Iterator<Item = UncountedFailure<'r>>) {
        let mut unobserved = self.unobserved();
        for UncountedFailure {
            strategy,
            sender,
            failure,
            ..
        } in rows
        {
            let series = unobserved.series(strategy, sender).id;
            *unobserved
                .pending
                .totals
                .entry((series, failure.into()))
                .or_default() += 1;
        }
    }

    /// Says that readers must look at some more rows.
    pub(crate) fn add_rows_behind(&self, rows: u64) {
        self.behind.fetch_add(rows, Ordering::AcqRel);
    }

    /// Returns `true` if so many rows are not rolled up that reads take longer.
    pub(crate) fn many_rows_are_behind(&self) -> bool {
        self.behind.load(Ordering::Acquire) >= MANY_ROWS
    }

    /// Notes that a roll-up of the written rows begins. Set to 0 at the beginning and not at the
    /// end: rows that are written meanwhile count towards the next one.
    pub(crate) fn begin_rollup(&self) {
        self.behind.store(0, Ordering::Release);
    }

    /// Each strategy's attempts since the start, by kind, in the order of [`OutcomeKind::ALL`].
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "shown by the service")
    )]
    pub(crate) fn totals(&self) -> Vec<(StrategyName, [u64; OutcomeKind::ALL.len()])> {
        self.collect();
        let pending = lock(&self.pending);
        let registry = lock(&self.registry);
        let of = |(name, strategy): (&StrategyName, &Strategy)| {
            let total = |kind| {
                let of = |series: &Arc<Series>| pending.totals.get(&(series.id, kind));
                strategy.series().filter_map(of).sum()
            };
            // By position: readers of the array zip it with `OutcomeKind::ALL`, and never use a
            // number of their own.
            (name.clone(), OutcomeKind::ALL.map(total))
        };
        let mut totals: Vec<_> = registry.by_name.iter().map(of).collect();
        totals.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        totals
    }

    /// Returns the number of attempts that monitors have counted, and of those that are committed.
    /// Takes no lock.
    pub(crate) fn counts(&self) -> (u64, u64) {
        // Read first: each persisted attempt was counted before, so that the later count includes
        // it. In the other order the difference, which a shutdown reports as unsaved, could be
        // negative.
        let persisted = self.persisted.load(Ordering::Acquire);
        (self.counter.get().map_or(0, Counter::counted), persisted)
    }
}

/// A failure that was logged without a monitor.
pub(crate) struct UncountedFailure<'r> {
    pub(crate) strategy: &'r str,
    pub(crate) sender: Option<&'r Sender>,
    pub(crate) failure: RetrievalFailureType,
    pub(crate) at: Timestamp,
    pub(crate) latency_ms: Option<i64>,
}

/// Counts failures without a monitor, and excludes other counting while it exists.
pub(crate) struct Unobserved<'a> {
    pending: MutexGuard<'a, Pending>,
    registry: MutexGuard<'a, Registry>,
    /// Most failures are of the strategy and the sender of the one before.
    last: Option<Arc<Series>>,
    /// New strategies of rows that are counted once they are committed: a row that is stored
    /// already takes no place.
    expected: HashSet<StrategyName>,
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

    pub(crate) fn count(
        &mut self,
        UncountedFailure {
            strategy,
            sender,
            failure,
            at,
            latency_ms,
        }: UncountedFailure<'_>,
    ) {
        let series = self.series(strategy, sender).id;
        self.pending
            .add_unobserved(BucketKey::new(at, series, failure.into()), latency_ms);
    }

    fn series(&mut self, name: &str, sender: Option<&Sender>) -> Arc<Series> {
        match &self.last {
            Some(series) if series.is_of(name, sender) => Arc::clone(series),
            _ => Arc::clone(self.last.insert(self.registry.series(name, sender))),
        }
    }
}

impl Pending {
    /// Moves everything from the lists of `counter` to the buckets. A latency or score that says
    /// nothing of the strategy is left out, and its attempt is counted.
    fn collect(&mut self, counter: &Counter) {
        let Self {
            buckets,
            totals,
            spare,
            ..
        } = self;
        if spare.capacity() == 0 {
            *spare = Counter::empty();
        }
        counter.drain(spare, |key, drained| {
            let counts = match drained {
                Drained::Spilled(attempts) => Counts {
                    attempts,
                    ..Counts::default()
                },
                Drained::Sample(Sample {
                    latency, top_score, ..
                }) => Counts {
                    attempts: 1,
                    unobserved: 0,
                    // The latency of a cancelled attempt is that of its caller, not of the
                    // strategy.
                    latency_ms: latency
                        .filter(|_| key.kind != OutcomeKind::Cancelled)
                        .map(milliseconds),
                    // A sketch spans nine orders of magnitude: one that is used for "no match"
                    // would blur all others.
                    top_score: (top_score.abs() <= LARGEST_SCORE).then_some(f64::from(top_score)),
                },
            };
            *totals.entry((key.series, key.kind)).or_default() += counts.attempts;
            buckets.add(key, &counts);
        });
    }

    /// Adds a failure that was logged without a monitor, whose latency in milliseconds may be
    /// unknown.
    fn add_unobserved(&mut self, key: BucketKey, latency_ms: Option<i64>) {
        *self.totals.entry((key.series, key.kind)).or_default() += 1;
        let latency_ms = measured(latency_ms);
        self.buckets.add(
            key,
            &Counts {
                attempts: 1,
                unobserved: 1,
                latency_ms,
                top_score: None,
            },
        );
    }
}

/// Returns the latency of a logged failure in milliseconds. 0 is what a record has that was built
/// without one, and what older rows have.
fn measured(latency_ms: Option<i64>) -> Option<f64> {
    latency_ms
        .filter(|latency_ms| *latency_ms > 0)
        .map(|latency_ms| (latency_ms as f64).min(LONGEST_LATENCY_MS))
}

/// Returns milliseconds with their fraction, at most [`LONGEST_LATENCY_MS`].
fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e3).min(LONGEST_LATENCY_MS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
