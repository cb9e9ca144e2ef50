//! Watches retrievals: counts every attempt, judges its outcome, and logs the failures.
//!
//! # The two halves of a timeout
//!
//! A timeout has to be right for two kinds of retrieval:
//!
//! - One that waits, such as a request over a network, gives its thread back. The timer fires
//!   beside it, and the monitor stops polling it and drops it.
//! - One that blocks its thread gives the timer no chance. It returns after the limit, with a
//!   result. The monitor compares its latency with the limit and drops the result.
//!
//! With the first half alone, a slow retrieval would be a timeout on an idle runtime and a success
//! on a busy one. With the second half alone, a retrieval that never returns would never be
//! counted. [`StrategyMonitor::judge`] makes the same comparison, for retrievals that are no
//! futures.

use std::fmt::{self, Display, Write as _};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::model::entry::{Observed, Unmeasured};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::record::{BoundedText, ConversationId, RetrievalFailureRecord, StrategyName};
use crate::model::source::{Labels, Sender, SourceName};
use crate::model::time::Timestamp;
use crate::pipeline::state::Shared;
use crate::rollup::{Attempt, ScoreDirection, Series};

/// Watches the retrievals of one strategy.
/// [`LoggerHandle::strategy`](crate::LoggerHandle::strategy) returns it. It is cheap to clone, and
/// works on any thread and any runtime.
///
/// ```
/// # use failure_logger::{FailureLogger, LoggerConfig};
/// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
/// # async fn search(query: &str) -> Result<Vec<(&'static str, f32)>, std::io::Error> { Ok(vec![("key.txt", 0.8)]) }
/// # futures_executor::block_on(async {
/// let semantic = logger.strategy("semantic").confidence_threshold(0.3);
///
/// let query = "where is the key?";
/// let hits = semantic.observe(query, search(query)).await?;
/// assert_eq!(hits, [("key.txt", 0.8)]);
/// # logger.flush().await.unwrap();
/// # assert_eq!(logger.stats().attempts_persisted, 1);
/// # Ok::<(), std::io::Error>(())
/// # }).unwrap();
/// ```
///
/// A monitor does not keep the logger running. Keep a handle for as long as the monitor is in use.
///
/// The type parameter says if the monitor has a [`timeout`](StrategyMonitor::timeout).
#[derive(Clone)]
pub struct StrategyMonitor<Limit = NoTimeout> {
    shared: Arc<Shared>,
    /// The counters of the strategy, or, beyond `max_strategies`, those of `[other strategies]`.
    series: Arc<Series>,
    /// Name of the strategy in the records of its failures.
    name: StrategyName,
    threshold: Option<f32>,
    direction: ScoreDirection,
    /// `None`: retrievals may take any time.
    timeout: Option<Duration>,
    /// The type decides if `observe` can return a timeout, so that callers of a monitor without a
    /// timeout need not match on that error.
    limit: PhantomData<Limit>,
    /// Fields of failures that are set rarely. Behind an `Arc`, so that a clone of a monitor copies a
    /// pointer and no text. `None`: no field is set.
    context: Option<Arc<Context>>,
}

/// Type parameter of a monitor without a timeout.
#[derive(Debug, Clone, Copy)]
pub enum NoTimeout {}

/// Type parameter of a monitor with a timeout.
#[derive(Debug, Clone, Copy)]
pub enum Timeout {}

/// Fields that the failures of a monitor have in common.
#[derive(Clone, Default)]
struct Context {
    conversation: Option<ConversationId>,
    turn: Option<i64>,
    edge_types: Option<BoundedText<1024>>,
    source: Option<SourceName>,
    labels: Labels,
}

impl StrategyMonitor {
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> Self {
        let name = StrategyName::from(name);
        let series = shared.attempts.series(&name, None);
        Self {
            shared,
            series,
            name,
            threshold: None,
            direction: ScoreDirection::default(),
            timeout: None,
            limit: PhantomData,
            context: None,
        }
    }

    /// Sets the time after which a retrieval is dropped and counted as a timeout.
    /// [`observe`](StrategyMonitor::<Timeout>::observe) of the returned monitor may return
    /// [`TimeoutOr::Timeout`], and its [`judge`](StrategyMonitor::judge) returns a timeout for a
    /// longer latency.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LoggerConfig};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
    /// use std::time::Duration;
    ///
    /// use failure_logger::monitor::TimeoutOr;
    ///
    /// # futures_executor::block_on(async {
    /// let semantic = logger.strategy("semantic").timeout(Duration::from_millis(5));
    /// let never = std::future::pending::<Result<Vec<f32>, std::io::Error>>();
    /// let result = semantic.observe("where is the key?", never).await;
    /// assert!(matches!(result, Err(TimeoutOr::Timeout(_))));
    /// # });
    /// ```
    pub fn timeout(self, limit: Duration) -> StrategyMonitor<Timeout> {
        self.series.set_timeout(limit);
        let Self {
            shared,
            series,
            name,
            threshold,
            direction,
            context,
            ..
        } = self;
        StrategyMonitor {
            shared,
            series,
            name,
            threshold,
            direction,
            timeout: Some(limit),
            limit: PhantomData,
            context,
        }
    }

    /// Runs `retrieval`, counts and judges its result, and returns the result unchanged.
    ///
    /// An `Err` is an error. An empty result is a no-hit. A best score on the wrong side of the
    /// threshold is a low confidence. Any other result is a success. A success costs less than a
    /// microsecond and no allocation. If the caller drops the future before it is done, the attempt
    /// counts as cancelled, which is neither a success nor a failure.
    ///
    /// # Errors
    ///
    /// Those of `retrieval`, unchanged. The log has the first 256 characters of their text.
    pub async fn observe<T, E, F>(&self, query: &str, retrieval: F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        T: Retrieved,
        E: Display,
    {
        self.observe_by(query, retrieval, |found| Found {
            result_count: found.result_count(),
            top_score: found.top_score(self.direction),
        })
        .await
    }

    /// Observes a retrieval whose result cannot implement [`Retrieved`], such as a type of another
    /// crate. `found` describes the result.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LoggerConfig};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
    /// use failure_logger::monitor::Found;
    ///
    /// /// A type of another crate.
    /// struct Page {
    ///     documents: usize,
    ///     best: f32,
    /// }
    ///
    /// # futures_executor::block_on(async {
    /// let search = async { Ok::<_, std::io::Error>(Page { documents: 3, best: 0.8 }) };
    /// let semantic = logger.strategy("semantic");
    /// let describe = |page: &Page| Found { result_count: page.documents, top_score: Some(page.best) };
    /// let page = semantic.observe_by("where is the key?", search, describe).await?;
    /// assert_eq!(page.documents, 3);
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `retrieval`, unchanged.
    pub async fn observe_by<T, E, F>(
        &self,
        query: &str,
        retrieval: F,
        found: impl FnOnce(&T) -> Found,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let watch = Watch::start(self, query);
        let result = retrieval.await;
        let latency = watch.stop();
        self.record(self.judge(query, &result.as_ref().map(found), latency));
        result
    }
}

impl StrategyMonitor<Timeout> {
    /// Observes `retrieval` as a monitor without a timeout does. If the retrieval takes longer than
    /// the timeout, drops it and returns [`TimeoutOr::Timeout`].
    ///
    /// A retrieval that blocks its thread cannot be dropped in time. If it returns too late, the
    /// monitor drops its result and returns [`TimeoutOr::Timeout`], so that the count agrees with
    /// what the caller sees.
    ///
    /// A thread that all monitors share measures the time, so that the monitor works on any
    /// runtime. A retrieval that is ready at its first poll starts no timer.
    ///
    /// # Errors
    ///
    /// [`TimeoutOr::Timeout`], or those of `retrieval`.
    pub async fn observe<T, E, F>(&self, query: &str, retrieval: F) -> Result<T, TimeoutOr<E>>
    where
        F: Future<Output = Result<T, E>>,
        T: Retrieved,
        E: Display,
    {
        self.observe_by(query, retrieval, |found| Found {
            result_count: found.result_count(),
            top_score: found.top_score(self.direction),
        })
        .await
    }

    /// Observes a retrieval whose result cannot implement [`Retrieved`], such as a type of another
    /// crate. `found` describes the result.
    ///
    /// # Errors
    ///
    /// [`TimeoutOr::Timeout`], or those of `retrieval`.
    pub async fn observe_by<T, E, F>(
        &self,
        query: &str,
        retrieval: F,
        found: impl FnOnce(&T) -> Found,
    ) -> Result<T, TimeoutOr<E>>
    where
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let watch = Watch::start(self, query);
        let mut retrieval = pin!(retrieval);
        let mut timer = None;
        // Every monitor of this type has a timeout.
        let limit = self.timeout.unwrap_or(Duration::MAX);
        let result = std::future::poll_fn(|cx| {
            // The retrieval is polled first: a result that is ready at the limit counts, unless its
            // latency is above the limit. A retrieval that is ready at once needs no timer.
            if let Poll::Ready(result) = retrieval.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            // The timer gets the rest of the limit, because the first poll may have taken time.
            let rest = || limit.saturating_sub(watch.started.elapsed());
            let timer = timer.get_or_insert_with(|| futures_timer::Delay::new(rest()));
            pin!(timer).poll(cx).map(|()| None)
        })
        .await;
        let latency = watch.stop();
        // The second half of the timeout: a retrieval that blocked its thread beyond the limit.
        match result.filter(|_| latency <= limit) {
            Some(result) => {
                self.record(self.judge(query, &result.as_ref().map(found), latency));
                result.map_err(TimeoutOr::Other)
            }
            None => {
                self.record(Outcome::late(query, latency, limit));
                Err(TimeoutOr::Timeout(limit))
            }
        }
    }
}

impl<Limit> StrategyMonitor<Limit> {
    /// Sets the threshold: the score that the best result must reach. Default: none, so that any
    /// result is a success.
    ///
    /// The database stores it as the current threshold of the strategy, for calibration.
    pub fn confidence_threshold(mut self, threshold: f32) -> Self {
        self.threshold = Some(threshold);
        self.series.set_threshold(threshold);
        self
    }

    /// Sets if higher or lower scores are better. Default: higher, as with similarities.
    pub fn score_direction(mut self, direction: ScoreDirection) -> Self {
        self.direction = direction;
        self.series.set_direction(direction);
        self
    }

    /// Sets the conversation that failures belong to. Default: none.
    pub fn conversation(mut self, id: impl Into<ConversationId>) -> Self {
        self.context().conversation = Some(id.into());
        self
    }

    /// Sets the turn within the conversation. Default: unknown, NULL in the log.
    pub fn turn(mut self, turn: i64) -> Self {
        self.context().turn = Some(turn);
        self
    }

    /// Sets the graph edge types that are followed, as a JSON list. Default: none.
    pub fn edge_types(mut self, json: impl Into<BoundedText<1024>>) -> Self {
        self.context().edge_types = Some(json.into());
        self
    }

    /// Sets the program that retrieves, of which attempts and failures are; cut to 64 characters.
    /// Default: none.
    pub fn source(self, name: impl Into<BoundedText<64>>) -> Self {
        let labels = self.context.as_ref().map(|context| context.labels.clone());
        self.sender(Some(name.into()), labels.unwrap_or_default())
    }

    /// Sets the labels of attempts and failures, such as the version of the program. Default: none.
    pub fn labels(self, labels: Labels) -> Self {
        let source = self.context.as_ref();
        let source = source.and_then(|context| context.source.clone());
        self.sender(source, labels)
    }

    /// Sets both, and the series that counts their attempts.
    pub(crate) fn sender(mut self, source: Option<SourceName>, labels: Labels) -> Self {
        let sender = Sender::new(source, labels);
        self.series = self.shared.attempts.series(&self.name, sender.as_ref());
        let (source, labels) = sender.map_or_else(Default::default, |of| (of.source, of.labels));
        let context = self.context();
        (context.source, context.labels) = (source, labels);
        self
    }

    /// Counts an attempt with a known outcome, and logs it if it is a failure.
    #[inline]
    pub fn record(&self, outcome: Outcome<'_>) {
        let _ = self
            .shared
            .observe(&self.series, &outcome.attempt(), outcome.at, || {
                self.failure(&outcome)
            });
    }

    /// Records an outcome for a caller that retries after a drop: a dropped failure is neither
    /// counted nor logged.
    #[cfg(feature = "http")]
    pub(crate) fn offer(
        &self,
        outcome: Outcome<'_>,
        event_id: Option<uuid::Uuid>,
    ) -> Result<(), crate::model::stats::DropReason> {
        let (attempt, at) = (outcome.attempt(), outcome.at);
        match self.failure(&outcome) {
            Some(failure) => {
                self.shared
                    .offer_observed(&self.series, &attempt, at, failure, event_id)
            }
            None => match self.shared.observe(&self.series, &attempt, at, || None) {
                crate::model::stats::LogOutcome::Queued => Ok(()),
                crate::model::stats::LogOutcome::Dropped(reason) => Err(reason),
            },
        }
    }

    /// Returns the outcome that [`observe`](StrategyMonitor::observe) would record for `result`. A
    /// caller passes it to [`record`](Self::record) if the retrieval is no future. If the monitor
    /// has a timeout, a longer `latency` is a timeout, whatever the result.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LoggerConfig};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
    /// use std::time::Instant;
    ///
    /// let semantic = logger.strategy("semantic").confidence_threshold(0.3);
    /// let started = Instant::now();
    /// // A search that blocks.
    /// let result = Ok::<_, std::io::Error>(vec![("key.txt", 0.8_f32)]);
    /// semantic.record(semantic.judge("where is the key?", &result, started.elapsed()));
    /// assert_eq!(logger.stats().attempts, 1);
    /// ```
    #[inline]
    pub fn judge<'a, T: Retrieved, E: Display>(
        &self,
        query: &'a str,
        result: &'a Result<T, E>,
        latency: Duration,
    ) -> Outcome<'a> {
        if let Some(limit) = self.timeout.filter(|limit| latency > *limit) {
            return Outcome::late(query, latency, limit);
        }
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                return Outcome::failure(RetrievalFailureType::Error, query, latency).error(error);
            }
        };
        let count = found.result_count();
        let top_score = found
            .top_score(self.direction)
            .filter(|score| !score.is_nan());
        let kind = match (top_score, self.threshold) {
            _ if count == 0 => OutcomeKind::NoHit,
            (Some(score), Some(threshold)) if self.direction.misses(score, threshold) => {
                OutcomeKind::LowConfidence
            }
            _ => OutcomeKind::Success,
        };
        // An infinite score is judged by its threshold above. It is not stored, because a sketch
        // and JSON have no infinity.
        let top_score = top_score.filter(|score| score.is_finite());
        Outcome {
            top_score,
            result_count: Some(count),
            ..Outcome::new(kind, query, latency)
        }
    }

    /// Returns the record of a failure. `None`: the outcome is no failure.
    fn failure(&self, outcome: &Outcome<'_>) -> Option<Observed> {
        let context = self.context.as_deref();
        let turn = context.and_then(|context| context.turn);
        let record = RetrievalFailureRecord {
            conversation_id: context.and_then(|context| context.conversation.clone()),
            turn_index: turn.unwrap_or_default(),
            failure_type: outcome.kind.failure()?,
            retrieval_strategy: self.name.clone(),
            query_text: outcome.query.into(),
            query_len: outcome.query_len.unwrap_or(outcome.query.len()),
            top_score: outcome.top_score,
            confidence_threshold: self.threshold,
            result_count: outcome.result_count.unwrap_or_default(),
            latency_ms: outcome.latency.map_or(0, whole_milliseconds),
            edge_types: context.and_then(|context| context.edge_types.clone()),
            source: context.and_then(|context| context.source.clone()),
            labels: context.map_or_else(Labels::default, |context| context.labels.clone()),
            error_context: outcome.error.map(|error| match error {
                ErrorText::Said(error) => beginning(error),
                ErrorText::NoResultAfter(limit) => {
                    beginning(&TimeoutOr::<std::convert::Infallible>::Timeout(limit))
                }
            }),
        };
        let unmeasured = Unmeasured {
            turn_index: turn.is_none(),
            result_count: outcome.result_count.is_none(),
            latency_ms: outcome.latency.is_none(),
        };
        Some(Observed { record, unmeasured })
    }

    fn context(&mut self) -> &mut Context {
        Arc::make_mut(self.context.get_or_insert_default())
    }
}

impl<Limit: fmt::Debug> fmt::Debug for StrategyMonitor<Limit> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrategyMonitor")
            .field("strategy", &self.name)
            .field("threshold", &self.threshold)
            .field("direction", &self.direction)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Measures an attempt. If it is dropped before [`stop`](Self::stop), the caller dropped the
/// future, or the retrieval panicked. It then records the attempt as cancelled or as an error.
/// Otherwise no count would have the attempts that callers cancel, and those are often the slow
/// ones.
struct Watch<'m, Limit> {
    monitor: &'m StrategyMonitor<Limit>,
    query: &'m str,
    started: Instant,
    running: bool,
}

impl<'m, Limit> Watch<'m, Limit> {
    fn start(monitor: &'m StrategyMonitor<Limit>, query: &'m str) -> Self {
        Self {
            monitor,
            query,
            started: Instant::now(),
            running: true,
        }
    }

    fn stop(mut self) -> Duration {
        self.running = false;
        self.started.elapsed()
    }
}

impl<Limit> Drop for Watch<'_, Limit> {
    fn drop(&mut self) {
        if self.running {
            let latency = self.started.elapsed();
            // A future may also be dropped because another one on this thread panics. It is then
            // recorded as an error, because the two cases look the same from here.
            self.monitor.record(if std::thread::panicking() {
                Outcome::failure(RetrievalFailureType::Error, self.query, latency)
                    .error(&"the retrieval panicked")
            } else {
                Outcome::cancelled(latency)
            });
        }
    }
}

/// Outcome of an attempt, for [`StrategyMonitor::record`].
///
/// ```
/// # use std::time::Duration;
/// use failure_logger::{Outcome, RetrievalFailureType};
///
/// Outcome::success(Duration::from_millis(12)).top_score(0.8).result_count(5);
/// Outcome::failure(RetrievalFailureType::NoHit, "where is the key?", Duration::from_millis(9));
/// ```
#[derive(Clone, Copy)]
#[must_use = "nothing is counted until it is given to `StrategyMonitor::record`"]
pub struct Outcome<'a> {
    kind: OutcomeKind,
    query: &'a str,
    query_len: Option<usize>,
    latency: Option<Duration>,
    top_score: Option<f32>,
    result_count: Option<usize>,
    error: Option<ErrorText<'a>>,
    at: Option<Timestamp>,
}

/// Details of a failure.
#[derive(Clone, Copy)]
enum ErrorText<'a> {
    /// Error that the retrieval returned.
    Said(&'a dyn Display),
    /// Limit that passed without a result.
    NoResultAfter(Duration),
}

impl<'a> Outcome<'a> {
    /// Returns the fields that are counted.
    #[inline]
    fn attempt(&self) -> Attempt {
        Attempt {
            kind: self.kind,
            latency: self.latency,
            top_score: self.top_score,
        }
    }

    fn new(kind: OutcomeKind, query: &'a str, latency: Duration) -> Self {
        Self {
            kind,
            query,
            query_len: None,
            latency: Some(latency),
            top_score: None,
            result_count: None,
            error: None,
            at: None,
        }
    }

    /// Returns the outcome of an attempt that succeeded after `latency`.
    pub fn success(latency: Duration) -> Self {
        Self::new(OutcomeKind::Success, "", latency)
    }

    /// Returns the outcome of an attempt that failed after `latency`. The query is logged.
    pub fn failure(failure: RetrievalFailureType, query: &'a str, latency: Duration) -> Self {
        Self::new(failure.into(), query, latency)
    }

    /// Returns the outcome of an attempt that took longer than `limit`.
    fn late(query: &'a str, latency: Duration, limit: Duration) -> Self {
        let error = Some(ErrorText::NoResultAfter(limit));
        Self {
            error,
            ..Self::new(OutcomeKind::Timeout, query, latency)
        }
    }

    /// Returns the outcome of an attempt whose caller stopped waiting.
    pub fn cancelled(latency: Duration) -> Self {
        Self::new(OutcomeKind::Cancelled, "", latency)
    }

    /// Sets the best score that was found. NaN and infinities count as none. Default: none.
    pub fn top_score(mut self, score: f32) -> Self {
        self.top_score = Some(score).filter(|score| score.is_finite());
        self
    }

    /// Sets the number of results. Default: not measured, NULL in the log.
    pub fn result_count(mut self, results: usize) -> Self {
        self.result_count = Some(results);
        self
    }

    /// Returns the outcome of an attempt as its sender describes it.
    #[cfg(feature = "http")]
    pub(crate) fn of(kind: OutcomeKind, query: &'a str, latency: Option<Duration>) -> Self {
        Self {
            latency,
            ..Self::new(kind, query, Duration::ZERO)
        }
    }

    /// Sets the length in bytes of the original query. Default: that of the query.
    #[cfg(feature = "http")]
    pub(crate) fn query_len(self, bytes: usize) -> Self {
        Self {
            query_len: Some(bytes),
            ..self
        }
    }

    /// Sets the message of the backend. Failures keep its first 256 characters. Default: none.
    pub fn error(mut self, error: &'a dyn Display) -> Self {
        self.error = Some(ErrorText::Said(error));
        self
    }

    /// Sets the moment at which the attempt ended. Default: now. Dates that the retention would
    /// delete at once, and dates in the future, are treated as those of
    /// [`log_at`](crate::LoggerHandle::log_at).
    pub fn at(mut self, moment: SystemTime) -> Self {
        self.at = Some(moment.into());
        self
    }

    /// Returns the kind of the outcome.
    pub fn kind(&self) -> OutcomeKind {
        self.kind
    }
}

impl fmt::Debug for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("kind", &self.kind)
            .field("latency", &self.latency)
            .field("top_score", &self.top_score)
            .field("result_count", &self.result_count)
            .finish_non_exhaustive()
    }
}

/// The parts of a result that a monitor judges.
#[diagnostic::on_unimplemented(
    message = "a monitor cannot tell what was found in `{Self}`",
    label = "has no result count and top score",
    note = "return a `Vec`, slice, array or `Option` of scored results, such as `Vec<(Document, \
        f32)>`",
    note = "or implement `failure_logger::monitor::Retrieved` for `{Self}`",
    note = "or, for a type of another crate, call `observe_by(query, retrieval, |found| Found {{ \
        .. }})`"
)]
///
/// ```
/// use failure_logger::ScoreDirection;
/// use failure_logger::monitor::Retrieved;
///
/// struct Page {
///     documents: Vec<(String, f32)>,
/// }
///
/// impl Retrieved for Page {
///     fn result_count(&self) -> usize {
///         self.documents.len()
///     }
///
///     fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
///         self.documents.top_score(direction)
///     }
/// }
///
/// let page = Page { documents: vec![("a".into(), 0.2), ("b".into(), 0.8)] };
/// assert_eq!(page.top_score(ScoreDirection::HigherIsBetter), Some(0.8));
/// assert_eq!(page.top_score(ScoreDirection::LowerIsBetter), Some(0.2));
/// ```
pub trait Retrieved {
    /// Returns the number of results.
    fn result_count(&self) -> usize;

    /// Returns the best of their scores, if they have any.
    fn top_score(&self, direction: ScoreDirection) -> Option<f32>;
}

/// Description of a result, for [`observe_by`](StrategyMonitor::observe_by).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Found {
    /// Number of results.
    pub result_count: usize,
    /// The best of their scores, if they have any.
    pub top_score: Option<f32>,
}

impl Retrieved for Found {
    fn result_count(&self) -> usize {
        self.result_count
    }

    fn top_score(&self, _: ScoreDirection) -> Option<f32> {
        self.top_score
    }
}

/// A result with a score: a number, or a pair that ends with one.
#[diagnostic::on_unimplemented(
    message = "a monitor cannot tell the score of `{Self}`",
    label = "has no score",
    note = "return pairs that end with the score, such as `(Document, f32)`",
    note = "or implement `failure_logger::monitor::Scored` for `{Self}`; without a score it \
        returns NaN",
    note = "or, for a type of another crate, call `observe_by(query, retrieval, |found| Found {{ \
        .. }})`"
)]
///
/// ```
/// use failure_logger::ScoreDirection;
/// use failure_logger::monitor::{Retrieved as _, Scored};
///
/// struct Document {
///     score: f32,
/// }
///
/// impl Scored for Document {
///     fn score(&self) -> f32 {
///         self.score
///     }
/// }
///
/// let found = vec![Document { score: 0.2 }, Document { score: 0.8 }];
/// assert_eq!(found.top_score(ScoreDirection::HigherIsBetter), Some(0.8));
/// ```
pub trait Scored {
    /// Returns the score, or NaN if there is none.
    fn score(&self) -> f32;
}

impl Scored for f32 {
    fn score(&self) -> f32 {
        *self
    }
}

#[expect(clippy::cast_possible_truncation, reason = "scores are kept as f32")]
impl Scored for f64 {
    fn score(&self) -> f32 {
        *self as f32
    }
}

impl<T> Scored for (T, f32) {
    fn score(&self) -> f32 {
        self.1
    }
}

impl<T> Scored for (T, f64) {
    fn score(&self) -> f32 {
        self.1.score()
    }
}

impl<T: Scored> Scored for &T {
    fn score(&self) -> f32 {
        (**self).score()
    }
}

impl<T: Scored> Retrieved for [T] {
    fn result_count(&self) -> usize {
        self.len()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        let scores = self
            .iter()
            .map(Scored::score)
            .filter(|score| !score.is_nan());
        scores.reduce(|one, other| direction.better(one, other))
    }
}

impl<T: Scored, const N: usize> Retrieved for [T; N] {
    fn result_count(&self) -> usize {
        N
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        self.as_slice().top_score(direction)
    }
}

impl<T: Scored> Retrieved for Vec<T> {
    fn result_count(&self) -> usize {
        self.len()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        self.as_slice().top_score(direction)
    }
}

impl<T: Scored> Retrieved for Option<T> {
    fn result_count(&self) -> usize {
        self.as_slice().len()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        self.as_slice().top_score(direction)
    }
}

impl<T: Retrieved + ?Sized> Retrieved for &T {
    fn result_count(&self) -> usize {
        (**self).result_count()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        (**self).top_score(direction)
    }
}

impl<T: Retrieved + ?Sized> Retrieved for Box<T> {
    fn result_count(&self) -> usize {
        (**self).result_count()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        (**self).top_score(direction)
    }
}

impl<T: Retrieved + ?Sized> Retrieved for Arc<T> {
    fn result_count(&self) -> usize {
        (**self).result_count()
    }

    fn top_score(&self, direction: ScoreDirection) -> Option<f32> {
        (**self).top_score(direction)
    }
}

/// Error of a retrieval: its own, or a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutOr<E> {
    /// The retrieval gave no result within this time. Raise the timeout, or make the retrieval
    /// faster.
    #[error("no result after {0:?}")]
    Timeout(Duration),
    /// The retrieval's own error.
    #[error(transparent)]
    Other(E),
}

/// Returns milliseconds rounded to whole ones, as the log keeps them.
fn whole_milliseconds(latency: Duration) -> u64 {
    u64::try_from((latency.as_micros() + 500) / 1000).unwrap_or(u64::MAX)
}

/// Returns the first 256 characters of the text of `error`. Holds about a kilobyte of the text at
/// most.
fn beginning(error: &dyn Display) -> BoundedText<256> {
    struct Bounded(String);

    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            // 1024 bytes are at least 256 characters, because a character has at most four bytes.
            // The text is cut while the error prints it, because an error may print megabytes, or
            // without end, in the hot path of the caller.
            let full = |text: &String| text.len() > 4 * 256;
            for character in text.chars() {
                if full(&self.0) {
                    return Err(fmt::Error);
                }
                self.0.push(character);
            }
            Ok(())
        }
    }

    let mut text = Bounded(String::new());
    // `fmt::Error` means that the text is long enough.
    let _ = write!(text, "{error}");
    text.0.into()
}
