//! The state that handles, actor and writer share. It outlives the actor.
//!
//! # Order of changes
//!
//! Several variables describe the progress of a shutdown: phase, admission, seal and gate. No lock
//! spans all of them, because callers read the admission on each call. They change in a fixed order
//! instead, and `Shared::is_legal` has the combinations that this order allows:
//!
//! 1. `close` sets the admission, so that new calls drop their records, and then publishes the
//!    phase.
//! 2. `seal` fixes the number of records and attempts.
//! 3. The gate is closed, so that no transaction commits any more.
//! 4. The report is computed from counts that cannot change, and published with the last phase.
//!
//! A later step before an earlier one would make the report wrong: a record that is accepted after
//! the report, or committed after it, is in no count of it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
#[cfg(feature = "http")]
use uuid::Uuid;

use crate::config::LoggerConfig;
use crate::error::{LoggerError, Unhealthy};
use crate::model::entry::{Entry, Observed, Origin};
use crate::model::histogram::Histogram;
use crate::model::record::RetrievalFailureRecord;
use crate::model::source::Labels;
use crate::model::stats::{DropCounts, DropReason, LogOutcome, ShutdownReport, Stats};
use crate::model::time::Timestamp;
use crate::pipeline::buffer::Buffer;
use crate::pipeline::losses::Losses;
use crate::retention::{RetentionClock, RetentionInForce};
use crate::rollup::{Attempt, AttemptBatch, Attempts, Refusal, Series};
use crate::store;
use crate::store::backend::Backend;
use crate::store::gate::CommitGate;
use crate::store::reads::Reads;
use crate::store::row::Row;
use crate::store::write::Store;

/// Time of failing or hanging flushes after which the logger is stale.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to write while a shutdown waits.
const RETRY_WHILE_CLOSING: Duration = Duration::from_millis(250);

/// Stands in for text whose redaction failed.
const NOT_REDACTED: &str = "[the redactor panicked]";

/// The state of one logger.
pub(crate) struct Shared {
    pub(crate) config: LoggerConfig,
    /// Records between callers and the writer, and their counts.
    pub(crate) buffer: Buffer,
    /// Attempts between monitors and the writer, and their counts.
    pub(crate) attempts: Attempts,
    pub(crate) counters: Counters,
    /// Closed once, at the end of a shutdown.
    pub(crate) gate: CommitGate,
    /// Reads of the database. They work on after the end of the logger.
    pub(crate) reads: Reads,
    /// Published by the writer, and read by callers that date their records.
    pub(crate) retention: RetentionInForce,
    /// A hint for callers, which spares them the work on a record that is dropped anyway. A call
    /// that read it before a shutdown may still push until the buffer is sealed: the seal decides,
    /// not this.
    admission: AtomicU8,
    /// Held for a whole job. In the order of locks it comes after `finishing` and before the locks
    /// of `attempts`.
    writer: Mutex<Writer>,
    /// Changed by `send_if_modified` alone until the end, so that two threads that change it at
    /// once see each other's change.
    phase: watch::Sender<Phase>,
    /// `true` once everything that was accepted is committed and the store is closed: the
    /// supervisor then takes the end of the control actor for the end of the logger, not for a
    /// failure.
    drained: AtomicBool,
    /// `true` while the actor leaves its mailbox unread.
    /// Shown by `stats`; nothing else depends on it.
    pub(crate) mailbox_is_full: AtomicBool,
    /// `true` once a shutdown has taken what was in the mailbox: what comes later is handed back.
    ///
    /// Set by the control actor, and read by the actor with each record. A record that the actor
    /// takes just before it sees the change comes in, or meets the seal: it is counted once in both
    /// cases.
    pub(crate) mailbox_has_ended: AtomicBool,
    /// At the end of a shutdown: the actor counts what is in its mailbox.
    pub(crate) mailbox_counted: Notify,
    /// Held while the report of the shutdown is made. The supervisor, a handle whose timeout passed
    /// and the drop of the actor may all do so at once; one does, and the others find the phase
    /// closed. The first of the order of locks.
    finishing: Mutex<()>,
    /// Text of the last failure; empty before the first one.
    failure: Mutex<String>,
    /// Drops that are noted and not stored yet. Held for some instructions, with no lock below it.
    losses: Mutex<Losses>,
    /// Called before a shutdown closes the admission.
    before_close: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

/// The data of the writer. Behind a lock, so that one flush runs at a time, even while a flush of
/// an earlier incarnation still runs.
pub(crate) struct Writer {
    pub(crate) database: Box<dyn Backend>,
    /// `None`: the next job opens it.
    pub(crate) store: Option<Box<dyn Store>>,
    /// The batch that is being written. A row stays here until it is committed or dropped, so that
    /// a panic, a failure or a new incarnation repeats it. Its `event_id` makes the repetition
    /// harmless.
    pub(crate) in_flight: VecDeque<Row>,
    /// The attempts that are written with it. They stay here as well, with their ids: if attempts
    /// were collected once more under new ids, a commit whose acknowledgement was lost would count
    /// them twice.
    pub(crate) attempts: AttemptBatch,
    /// Last reading of this process. A new incarnation continues with it.
    pub(crate) retention_clock: RetentionClock,
    /// `true` once the retention that this logger was configured with is in the database.
    pub(crate) retention_is_stored: bool,
    /// Drops that are not stored yet, by minute.
    pub(crate) drops: BTreeMap<Timestamp, DropCounts>,
}

impl Writer {
    pub(crate) fn new(database: Box<dyn Backend>, store: Option<Box<dyn Store>>) -> Self {
        Self {
            database,
            store,
            in_flight: VecDeque::new(),
            attempts: AttemptBatch::default(),
            retention_clock: RetentionClock::default(),
            retention_is_stored: false,
            drops: BTreeMap::new(),
        }
    }
}

/// Operational counters; the record balance itself is in [`Buffer`].
///
/// Each counter is read alone, so that no ordering between two of them matters. They are changed
/// with `AcqRel` and read with `Acquire` all the same: a thread that sees a flush counted sees what
/// the flush did, which costs nothing on common processors.
pub(crate) struct Counters {
    /// Transactions with records that were committed.
    pub(crate) flushes: AtomicU64,
    /// Flush jobs that ended with an error of the store.
    pub(crate) failed_flushes: AtomicU64,
    /// Rows that were deleted for their age or for the size of the database.
    pub(crate) purged: AtomicU64,
    /// The part of `purged` that was deleted for the size of the database.
    pub(crate) purged_by_size: AtomicU64,
    /// Records and attempts that were dated in the future and got the present moment.
    pub(crate) redated: AtomicU64,
    /// Failures of either actor after which it was restarted.
    pub(crate) restarts: AtomicU64,
    /// Records that were stored already under their `event_id`. They count as persisted, too.
    pub(crate) duplicates: AtomicU64,
    /// Records whose source or labels found no place in the store.
    pub(crate) sources_left_out: AtomicU64,
    /// Milliseconds of a [`Timestamp`]; 0: never.
    pub(crate) last_flush: AtomicI64,
    /// Seconds of a transaction with records, from its begin to its accounting.
    pub(crate) flush_seconds: Histogram<10>,
    /// Records of a transaction.
    pub(crate) flush_records: Histogram<7>,
    /// When records were committed last, or none waited, in milliseconds since `started`: an atomic
    /// has room for a number and not for an `Instant`.
    ready_at: AtomicU64,
    /// `true` from a failure of the store until it is proven that rows are committed.
    unproven: AtomicBool,
    /// When the event loop of the actor had a turn last, in milliseconds since the start.
    beat_at: AtomicU64,
    started: Instant,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            flushes: AtomicU64::new(0),
            failed_flushes: AtomicU64::new(0),
            purged: AtomicU64::new(0),
            purged_by_size: AtomicU64::new(0),
            redated: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            sources_left_out: AtomicU64::new(0),
            last_flush: AtomicI64::new(0),
            flush_seconds: Histogram::new([
                0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
            ]),
            flush_records: Histogram::new([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 2048.0]),
            ready_at: AtomicU64::new(0),
            unproven: AtomicBool::new(false),
            beat_at: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

impl Counters {
    /// Notes that rows were committed, or could have been.
    pub(crate) fn store_works(&self) {
        // In this order: a thread that sees the fault gone and reads `ready_at` a moment too early
        // reports itself stale at worst.
        self.unproven.store(false, Ordering::Release);
        self.ready_at.store(self.now(), Ordering::Release);
    }

    /// Notes that nothing waits to be written. After a failure this proves nothing: the fault may
    /// show itself only with the next record, and a probe has to clear it.
    pub(crate) fn idle(&self) {
        if !self.is_unproven() {
            self.ready_at.store(self.now(), Ordering::Release);
        }
    }

    /// Notes that the store failed.
    pub(crate) fn store_failed(&self) {
        self.unproven.store(true, Ordering::Release);
    }

    /// Returns `true` if the store failed and has not proven since that it takes rows.
    pub(crate) fn is_unproven(&self) -> bool {
        self.unproven.load(Ordering::Acquire)
    }

    /// Notes that the event loop of the actor has a turn.
    ///
    /// A timer of the supervisor calls it each second. If it stops, something blocks the thread of
    /// the arbiter, such as a handler of the application.
    pub(crate) fn beat(&self) {
        self.beat_at.store(self.now(), Ordering::Release);
    }

    /// Returns the time since records were committed last, or none waited.
    fn not_ready_for(&self) -> Duration {
        self.since(&self.ready_at)
    }

    /// Time since the event loop of the actor had a turn last.
    fn beat_age(&self) -> Duration {
        self.since(&self.beat_at)
    }

    /// Returns milliseconds since `started`.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the time since `at`, a moment in milliseconds since `started`. Saturating, because
    /// another thread may have stored a moment after the clock was read here.
    fn since(&self, at: &AtomicU64) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(at.load(Ordering::Acquire)))
    }
}

/// Phase of the logger.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Running,
    /// Restarts keep failing. Records come in while the buffer has room, and a flush that succeeds
    /// leads back to `Running`.
    Unavailable {
        cause: String,
    },
    /// A shutdown drains mailbox and buffer, at most until the deadline. `persisted_before` is the
    /// count at its beginning, from which the report computes how many records the shutdown saved.
    Closing {
        deadline: Instant,
        persisted_before: u64,
    },
    Closed {
        result: Result<ShutdownReport, LoggerError>,
    },
}

/// Admission of records through the handle. The actor admits those of its mailbox until the mailbox
/// is drained, because they were sent before the shutdown.
///
/// | admission | a call | set by |
/// | --- | --- | --- |
/// | `Open` | is accepted, or dropped as `buffer_full` | the start, a store that works again |
/// | `Unavailable` | is accepted, or dropped as `unavailable` | restarts that keep failing |
/// | `Unusable` | is dropped as `unavailable` | invalid settings; never left but by a shutdown |
/// | `Closed` | is dropped as `closed` | a shutdown; never left |
/// | `Disabled` | does nothing, and counts nothing | `enabled(false)`; never left |
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Admission {
    Open,
    /// Open, but a full buffer has a worse reason than speed.
    Unavailable,
    /// There is no database, and will be none.
    Unusable,
    Closed,
    Disabled,
}

/// Returns `true` for the combinations that occur: the table of docs/architecture.md, "States".
///
/// - A sealed buffer or a closed gate without a shutdown would keep all records for ever.
/// - A closed gate before the seal would let a record in that is in no report.
/// - An open admission during a shutdown would let callers fill the buffer while the writer drains
///   it.
/// - An unsealed buffer after the end would accept a record that no writer takes out.
#[cfg(test)]
fn is_legal(phase: &Phase, admission: Admission, is_sealed: bool, gate_is_closed: bool) -> bool {
    match phase {
        Phase::Running | Phase::Unavailable { .. } if is_sealed || gate_is_closed => false,
        // Phase and admission change one after the other, so that each may be seen with the old
        // value of the other.
        Phase::Running => admission != Admission::Unusable,
        Phase::Unavailable { .. } => admission != Admission::Disabled,
        Phase::Closing { .. } => admission == Admission::Closed && (is_sealed || !gate_is_closed),
        Phase::Closed { .. } => {
            matches!(admission, Admission::Closed | Admission::Disabled)
                && is_sealed
                && gate_is_closed
        }
    }
}

/// The moment of a record or attempt.
struct Moment {
    at: Timestamp,
    /// `true` if its caller gave another one, which lies in the future.
    redated: bool,
    /// `true` if the retention of failures would delete it at once.
    failure_too_old: bool,
    /// `true` if the retention of attempts would.
    attempt_too_old: bool,
}

impl Moment {
    /// Returns the moment of a call, which is neither too old nor in the future.
    fn now(now: Timestamp) -> Self {
        Self {
            at: now,
            redated: false,
            failure_too_old: false,
            attempt_too_old: false,
        }
    }
}

impl Shared {
    pub(crate) fn new(config: LoggerConfig, writer: Writer) -> Self {
        let reads = if config.enabled {
            writer.database.reads()
        } else {
            Reads::new(None)
        };
        Self {
            reads,
            buffer: Buffer::new(config.buffer_capacity, config.batch_size),
            attempts: Attempts::new(config.max_strategies),
            retention: RetentionInForce::default(),
            counters: Counters::default(),
            gate: CommitGate::default(),
            admission: AtomicU8::new(if config.enabled {
                Admission::Open
            } else {
                Admission::Disabled
            } as u8),
            writer: Mutex::new(writer),
            phase: watch::Sender::new(Phase::Running),
            drained: AtomicBool::new(false),
            mailbox_is_full: AtomicBool::new(false),
            mailbox_has_ended: AtomicBool::new(false),
            mailbox_counted: Notify::new(),
            finishing: Mutex::default(),
            failure: Mutex::default(),
            losses: Mutex::default(),
            before_close: Mutex::default(),
            config,
        }
    }

    /// Returns the state of a logger that does nothing.
    pub(crate) fn disabled() -> Self {
        let config = LoggerConfig::default()
            .enabled(false)
            .buffer_capacity(1)
            .batch_size(1);
        let database = store::in_memory();
        Self::new(config, Writer::new(database, None))
    }

    /// Takes a record from a handle. `at`: the moment that its caller gives; `None`: now.
    pub(crate) fn log(
        &self,
        record: RetrievalFailureRecord,
        at: Option<Timestamp>,
        origin: Origin,
    ) -> LogOutcome {
        match self.refusal() {
            Some(DropReason::Disabled) => LogOutcome::Dropped(DropReason::Disabled),
            Some(reason) => self.count_drop(reason),
            None => self.accept(record, &self.moment(at), origin),
        }
    }

    /// Counts an attempt that a monitor saw end, and logs `failure` if it is one. `at`: the moment
    /// that its caller gives; `None`: now. Returns [`TooOld`](DropReason::TooOld) for an attempt
    /// that is not counted.
    ///
    /// A failure between both retentions is counted, and dropped: the attempt would outlive it
    /// anyway.
    pub(crate) fn observe(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        failure: impl FnOnce() -> Option<Observed>,
    ) -> LogOutcome {
        if at.is_some() || self.refusal().is_some() {
            return self.observe_dated(series, attempt, at, failure());
        }
        // The fast path: an attempt that ends now needs no comparison with the retention. The
        // coarse clock costs a quarter of the exact one, and its error of some milliseconds matters
        // to no minute's count.
        let now = Timestamp::coarse_now();
        self.attempts.push(series, attempt, now);
        if let Some(failure) = failure() {
            self.accept_observed(failure, &Moment::now(now));
        }
        LogOutcome::Queued
    }

    /// Counts an attempt that ended at another time, or comes after the end.
    #[inline(never)]
    fn observe_dated(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        failure: Option<Observed>,
    ) -> LogOutcome {
        if self.refusal().is_some() {
            if let Some(Observed { record, unmeasured }) = failure {
                self.log(
                    record,
                    at,
                    Origin {
                        is_observed: true,
                        event_id: None,
                        unmeasured,
                    },
                );
            }
            return LogOutcome::Queued;
        }
        let moment = self.moment(at);
        if !moment.attempt_too_old {
            self.note_redated(&moment);
            self.attempts.add(series, attempt, moment.at);
        }
        if let Some(failure) = failure {
            self.accept_observed(failure, &moment);
        }
        if moment.attempt_too_old {
            LogOutcome::Dropped(DropReason::TooOld)
        } else {
            LogOutcome::Queued
        }
    }

    /// Takes a failure that a monitor saw. Out of line, so that an attempt that is no failure does
    /// not pay for the record.
    ///
    /// A drop is counted by its reason and not returned: the attempt counts in any case.
    #[inline(never)]
    fn accept_observed(&self, Observed { record, unmeasured }: Observed, moment: &Moment) {
        self.accept(
            record,
            moment,
            Origin {
                is_observed: true,
                event_id: None,
                unmeasured,
            },
        );
    }

    /// Takes a failure that a monitor saw from a caller who retries it, and counts it if it was
    /// taken, or is too old only to be logged.
    ///
    /// The attempt is counted after the record was taken. In the other order a caller that meets a
    /// full buffer and retries would count its attempt with each try.
    #[cfg(feature = "http")]
    pub(crate) fn offer_observed(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        Observed { record, unmeasured }: Observed,
        event_id: Option<Uuid>,
    ) -> Result<(), DropReason> {
        let moment = self.moment(at);
        let origin = Origin {
            is_observed: true,
            event_id,
            unmeasured,
        };
        match self
            .refusal()
            .map_or_else(|| self.take(record, &moment, origin), Err)
        {
            Ok(()) => {}
            Err(DropReason::TooOld) => {
                self.count_drop(DropReason::TooOld);
                if moment.attempt_too_old {
                    return Err(DropReason::TooOld);
                }
            }
            Err(reason) => return Err(reason),
        }
        self.note_redated(&moment);
        self.attempts.add(series, attempt, moment.at);
        Ok(())
    }

    /// Returns the moment of a record that its caller dates `at`, and what the retention makes of
    /// it. The one rule for dates, on every way in.
    #[inline]
    fn moment(&self, at: Option<Timestamp>) -> Moment {
        // A call's own moment is right by definition, and costs no comparison.
        at.map_or_else(
            || Moment::now(Timestamp::now()),
            |claimed| self.dated(claimed),
        )
    }

    /// Returns the moment of a record that claims to be of `claimed`: the date that it gets, and if
    /// each retention would delete it at once.
    fn dated(&self, claimed: Timestamp) -> Moment {
        let now = Timestamp::now();
        let at = self.retention.dated(claimed, now);
        let (failures, attempts) = self.retention.cutoffs(now);
        Moment {
            at,
            redated: at != claimed,
            failure_too_old: at < failures,
            attempt_too_old: at < attempts,
        }
    }

    /// Counts a record or attempt that was taken, if it has another date than its caller gave it.
    fn note_redated(&self, moment: &Moment) {
        if moment.redated {
            self.counters.redated.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Returns the reason for which the handle admits no records; `None` if it admits them.
    ///
    /// Acquire and Release order nothing else: the seal of the buffer decides about a call that
    /// comes at the same time as a shutdown. Jobs that must not begin after a shutdown ask behind
    /// the writer's lock.
    pub(crate) fn refusal(&self) -> Option<DropReason> {
        match self.admission() {
            Admission::Open | Admission::Unavailable => None,
            Admission::Disabled => Some(DropReason::Disabled),
            Admission::Closed => Some(DropReason::Closed),
            Admission::Unusable => Some(DropReason::Unavailable),
        }
    }

    /// Takes a record from the actor's mailbox. It comes in until the buffer is sealed, and may use
    /// the places that calls may not.
    pub(crate) fn accept_sent(&self, record: RetrievalFailureRecord) -> LogOutcome {
        // `Closed` is left out, because a shutdown takes what was sent before it out of the
        // mailbox.
        if let Some(reason @ (DropReason::Disabled | DropReason::Unavailable)) = self.refusal() {
            return if reason == DropReason::Disabled {
                LogOutcome::Dropped(reason)
            } else {
                self.count_drop(reason)
            };
        }
        match self.take_into(
            record,
            &self.moment(None),
            Origin::LOGGED,
            Buffer::push_sent,
        ) {
            Ok(()) => LogOutcome::Queued,
            Err(reason) => self.count_drop(reason),
        }
    }

    /// Takes a record, unless it is too old or the buffer is full.
    fn accept(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
    ) -> LogOutcome {
        match self.take(record, moment, origin) {
            Ok(()) => LogOutcome::Queued,
            Err(reason) => self.count_drop(reason),
        }
    }

    /// Takes a record from a caller who retries it. One that is not taken is not lost, and not
    /// counted, unless it is too old: it will be so at any later time.
    pub(crate) fn offer(
        &self,
        record: RetrievalFailureRecord,
        at: Option<Timestamp>,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let moment = self.moment(at);
        let taken = self
            .refusal()
            .map_or_else(|| self.take(record, &moment, origin), Err);
        if taken == Err(DropReason::TooOld) {
            self.count_drop(DropReason::TooOld);
        }
        taken
    }

    #[inline]
    fn take(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
    ) -> Result<(), DropReason> {
        self.take_into(record, moment, origin, Buffer::push)
    }

    /// Takes a record by `push`, after the checks that cost least: the seal, the date, and then the
    /// redactor.
    ///
    /// # Errors
    ///
    /// [`DropReason::Closed`], [`DropReason::TooOld`], or that of `push`. Nothing is counted.
    #[inline]
    fn take_into(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        // A shortcut that spares the redactor's work. The admission below checks the seal once
        // more.
        if self.buffer.is_sealed() {
            return Err(DropReason::Closed);
        }
        if moment.failure_too_old {
            return Err(DropReason::TooOld);
        }
        if tracing::level_enabled!(tracing::Level::DEBUG) {
            self.push_traced(record, moment, origin, push)
        } else {
            self.redact_and_push(record, moment, origin, push)
        }
    }

    /// Pushes within a span. A subscriber that panics costs the span, not the record.
    #[cold]
    fn push_traced(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        let enter = || tracing::debug_span!("memory.retrieval_failure.log").entered();
        let span = catch_unwind(AssertUnwindSafe(enter));
        let pushed = self.redact_and_push(record, moment, origin, push);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(span))) {
            std::mem::forget(panic);
        }
        pushed
    }

    /// Runs the redactor and pushes. The redactor comes before the buffer, so that no thread but
    /// the caller's ever sees the text that it takes out.
    #[inline]
    fn redact_and_push(
        &self,
        mut record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        self.redact(&mut record);
        push(
            &self.buffer,
            Entry {
                record,
                logged_at: moment.at,
                origin,
            },
        )
        // The buffer of an unavailable logger is full because nothing empties it. A larger one
        // would not help, so that the caller gets the other reason.
        .map_err(|reason| match reason {
            DropReason::BufferFull
                if self.admission.load(Ordering::Acquire) == Admission::Unavailable as u8 =>
            {
                DropReason::Unavailable
            }
            reason => reason,
        })?;
        // That of a monitor was counted with its attempt.
        if !origin.is_observed {
            self.note_redated(moment);
        }
        Ok(())
    }

    /// Counts a drop, and returns it as the outcome of the call.
    pub(crate) fn count_drop(&self, reason: DropReason) -> LogOutcome {
        self.buffer.count_drop(reason);
        LogOutcome::Dropped(reason)
    }

    /// Runs the redactor of the application. After a panic every field that may hold text of a
    /// person is replaced or emptied, because the redactor may have stopped anywhere.
    fn redact(&self, record: &mut RetrievalFailureRecord) {
        let Some(redact) = &self.config.redactor else {
            return;
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| redact(record))) {
            // Dropping what was thrown may panic as well.
            std::mem::forget(panic);
            record.query_text = NOT_REDACTED.into();
            record.error_context = record.error_context.as_ref().map(|_| NOT_REDACTED.into());
            record.edge_types = None;
            record.conversation_id = None;
            record.source = None;
            record.labels = Labels::default();
        }
    }

    /// Returns the counters. Those of records balance among themselves, and so do those of
    /// attempts; the others are read one after the other.
    pub(crate) fn stats(&self) -> Stats {
        let balance = self.buffer.balance();
        let (attempts, attempts_persisted) = self.attempts.counts();
        let last_flush = self.counters.last_flush.load(Ordering::Acquire);
        Stats {
            received: balance.received,
            persisted: balance.persisted,
            buffered: balance.buffered,
            dropped: balance.dropped,
            flushes: self.counters.flushes.load(Ordering::Acquire),
            failed_flushes: self.counters.failed_flushes.load(Ordering::Acquire),
            purged: self.counters.purged.load(Ordering::Acquire),
            purged_by_size: self.counters.purged_by_size.load(Ordering::Acquire),
            redated: self.counters.redated.load(Ordering::Acquire),
            restarts: self.counters.restarts.load(Ordering::Acquire),
            attempts,
            attempts_persisted,
            duplicates: self.counters.duplicates.load(Ordering::Acquire),
            sources_left_out: self.counters.sources_left_out.load(Ordering::Acquire),
            mailbox_full: self.mailbox_is_full.load(Ordering::Acquire),
            last_flush: (last_flush > 0).then(|| Timestamp::from_millis(last_flush).into()),
        }
    }

    /// Returns the size of the database file in bytes, without its journal; 0 in memory.
    pub(crate) fn database_bytes(&self) -> u64 {
        self.reads
            .path()
            .and_then(|path| std::fs::metadata(path).ok())
            .map_or(0, |file| file.len())
    }

    /// Returns the reason for which the logger is unhealthy, if it is.
    pub(crate) fn health(&self) -> Result<(), Unhealthy> {
        match &*self.phase.borrow() {
            _ if !self.config.enabled => return Err(Unhealthy::Disabled),
            Phase::Running => {}
            Phase::Unavailable { cause } => {
                return Err(Unhealthy::Unavailable {
                    cause: cause.clone(),
                });
            }
            Phase::Closing { .. } | Phase::Closed { .. } => return Err(Unhealthy::Closed),
        }
        let not_ready = self.counters.not_ready_for();
        if not_ready > STALE_AFTER + 3 * self.config.flush_interval {
            return Err(Unhealthy::Stale {
                seconds: not_ready.as_secs(),
                cause: self.last_failure(),
            });
        }
        if let Some(Refusal { cause, .. }) = self.attempts.refusal() {
            return Err(Unhealthy::AttemptsRefused { cause });
        }
        Ok(())
    }

    /// Returns `true` after the end of the shutdown.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Closed { .. })
    }

    /// Returns the time since the event loop of the actor had a turn last. `None`: it has ended, or
    /// never begins.
    pub(crate) fn beat_age(&self) -> Option<Duration> {
        let is_over = !self.config.enabled || self.is_closed();
        (!is_over).then(|| self.counters.beat_age())
    }

    /// Returns the writer's data, under its lock.
    ///
    /// After a panic the store is dropped, because a statement may have been left half done, and
    /// the next job reopens it. The batch is unchanged: rows leave it only after their commit was
    /// accounted for.
    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poisoned| {
            self.writer.clear_poison();
            let mut writer = poisoned.into_inner();
            writer.store = None;
            writer
        })
    }

    /// Notes what was lost since this was done last, so that it is stored at its minute however
    /// late. Moves all that was noted to `writer`, if it is given.
    pub(crate) fn note_losses(&self, writer: Option<&mut BTreeMap<Timestamp, DropCounts>>) {
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        // The counters are read under the lock. Of two threads that read before it, the one with
        // the older counts could come second, and the difference to the newer ones would be
        // negative.
        losses.note(Timestamp::now(), self.buffer.balance().dropped);
        if let Some(writer) = writer {
            losses.move_to(writer);
        }
    }

    /// Notes the cause of the last failure, for reports and errors of later calls.
    pub(crate) fn failed(&self, cause: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// Returns the text of the last failure, also if the store works again; empty before the first
    /// one.
    pub(crate) fn last_failure(&self) -> String {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns a receiver of the phases. It sees the present one at once, so that a caller that
    /// subscribes after the end does not wait.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Notes that restarts keep failing, for this reason.
    pub(crate) fn unavailable(&self, cause: &str) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Running | Phase::Unavailable { .. } => {
                *phase = Phase::Unavailable {
                    cause: cause.into(),
                };
                // Within the lock of the phase, so that two changes of the phase cannot set the
                // admission in the other order.
                self.move_admission(Admission::Open, Admission::Unavailable);
                true
            }
            _ => false,
        });
    }

    /// Notes that every record is dropped, for this reason.
    pub(crate) fn unusable(&self, cause: &str) {
        self.failed(cause.into());
        self.unavailable(cause);
        self.move_admission(Admission::Unavailable, Admission::Unusable);
    }

    /// Notes that the store works. Returns `true` if the logger was unavailable before.
    pub(crate) fn available(&self) -> bool {
        self.phase.send_if_modified(|phase| {
            let was_unavailable = matches!(phase, Phase::Unavailable { .. });
            if was_unavailable {
                *phase = Phase::Running;
                self.move_admission(Admission::Unavailable, Admission::Open);
            }
            was_unavailable
        })
    }

    /// Registers a function that gives the logger what its owner has acknowledged and holds back. A
    /// shutdown calls it while records are still admitted.
    #[cfg(feature = "http")]
    pub(crate) fn before_close(&self, submit: impl Fn() + Send + 'static) {
        self.before_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(submit));
    }

    /// Calls the functions of [`before_close`](Self::before_close).
    pub(crate) fn prepare_close(&self) {
        let functions = self
            .before_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        functions.iter().for_each(|submit| submit());
    }

    /// Refuses new records, and has what was accepted drained until `deadline`; an earlier
    /// shutdown's deadline stands.
    pub(crate) fn close(&self, deadline: Instant) {
        // A store, not an exchange: a shutdown has the last word about every other admission.
        self.admission
            .store(Admission::Closed as u8, Ordering::Release);
        self.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Running | Phase::Unavailable { .. });
            if first {
                *phase = Phase::Closing {
                    deadline,
                    persisted_before: self.buffer.balance().persisted,
                };
            }
            first
        });
    }

    /// Fixes the number of records and attempts: none of them comes in any more. May be called
    /// several times.
    ///
    /// The mailbox ends first. A record that the actor takes out afterwards is dropped as closed,
    /// whichever of the two seals it meets.
    pub(crate) fn seal(&self) {
        self.mailbox_has_ended.store(true, Ordering::Release);
        self.buffer.seal();
        self.attempts.seal();
    }

    /// Returns the reason for which attempts are not retried now: the store rejected them a short
    /// time ago.
    pub(crate) fn attempts_refusal(&self) -> Option<Refusal> {
        let longest = if self.refusal().is_some() {
            self.longest_pause_while_closing()
        } else {
            Duration::MAX
        };
        self.attempts
            .refusal()
            .filter(|refusal| !refusal.retry_in(longest).is_zero())
    }

    /// Returns the longest pause between two tries while a shutdown waits: a quarter of its timeout
    /// at most, so that there are several tries before the deadline.
    pub(crate) fn longest_pause_while_closing(&self) -> Duration {
        RETRY_WHILE_CLOSING.min(self.config.shutdown_timeout / 4)
    }

    /// Notes that everything that was accepted is committed, and the store is closed.
    pub(crate) fn drained(&self) {
        self.drained.store(true, Ordering::Release);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    /// Returns the lock under which the report of the shutdown is made.
    pub(crate) fn finishing(&self) -> MutexGuard<'_, ()> {
        self.finishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the result of the shutdown. To be called under the lock of [`Self::finishing`],
    /// once.
    pub(crate) fn closed(&self, result: Result<ShutdownReport, LoggerError>) {
        self.phase.send_replace(Phase::Closed { result });
    }

    /// Returns the result of the shutdown, once it is over.
    pub(crate) async fn result(&self) -> Result<ShutdownReport, LoggerError> {
        match self
            .phases()
            .wait_for(|phase| matches!(phase, Phase::Closed { .. }))
            .await
            .as_deref()
        {
            Ok(Phase::Closed { result }) => result.clone(),
            _ => Err(LoggerError::Closed),
        }
    }

    /// Returns `true` if phase, admission, seal and gate fit together.
    #[cfg(test)]
    pub(crate) fn is_legal(&self) -> bool {
        let phase = self.phase.borrow();
        is_legal(
            &phase,
            self.admission(),
            self.buffer.is_sealed(),
            self.gate.is_closed(),
        )
    }

    /// Returns the admission. Each record passes it: one load, and one comparison if the logger is
    /// open. The catch-all arm is `Closed`, because a number that is none of ours must let nothing
    /// in.
    #[inline]
    fn admission(&self) -> Admission {
        match self.admission.load(Ordering::Acquire) {
            stored if stored == Admission::Open as u8 => Admission::Open,
            stored if stored == Admission::Unavailable as u8 => Admission::Unavailable,
            stored if stored == Admission::Unusable as u8 => Admission::Unusable,
            stored if stored == Admission::Disabled as u8 => Admission::Disabled,
            _ => Admission::Closed,
        }
    }

    /// Changes the admission only if it is still `from`. With a plain store, a shutdown could close
    /// the logger between the decision and the store of another thread, which would then open it
    /// for good.
    fn move_admission(&self, from: Admission, to: Admission) {
        let _ = self.admission.compare_exchange(
            from as u8,
            to as u8,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(config: LoggerConfig) -> Shared {
        Shared::new(config, Writer::new(store::in_memory(), None))
    }

    #[test]
    fn logger_without_a_success_for_long_is_stale() {
        let started = |seconds| {
            Instant::now()
                .checked_sub(Duration::from_secs(seconds))
                .unwrap()
        };
        // Ten seconds and three intervals.
        for (interval, seconds) in [
            (Duration::from_millis(100), 10),
            (Duration::from_secs(5), 25),
        ] {
            let mut shared = shared(LoggerConfig::new(":memory:").flush_interval(interval));
            shared.counters.started = started(seconds - 2);
            assert_eq!(shared.health(), Ok(()));
            shared.counters.started = started(seconds + 2);
            shared.failed("disk full".into());
            let cause = "disk full".to_owned();
            assert_eq!(
                shared.health(),
                Err(Unhealthy::Stale {
                    seconds: seconds + 2,
                    cause
                })
            );
            // That nothing waits proves nothing after a failure.
            shared.counters.store_failed();
            shared.counters.idle();
            assert!(matches!(shared.health(), Err(Unhealthy::Stale { .. })));
            shared.counters.store_works();
            assert_eq!(shared.health(), Ok(()));
            assert!(!shared.counters.is_unproven());
        }
    }

    #[test]
    fn each_step_of_a_logger_is_a_legal_combination_of_its_states() {
        let shared = shared(LoggerConfig::new(":memory:"));
        let legal = |step: &str| assert!(shared.is_legal(), "{step}");
        legal("begun");
        shared.unavailable("injected");
        legal("unavailable");
        shared.available();
        legal("available");
        shared.close(Instant::now());
        legal("closing");
        shared.seal();
        legal("sealed");
        shared.gate.close(Duration::ZERO);
        legal("gate closed");
        shared.closed(Err(LoggerError::Closed));
        legal("closed");
        let admissions = [
            Admission::Open,
            Admission::Unavailable,
            Admission::Unusable,
            Admission::Closed,
            Admission::Disabled,
        ];
        let phases = [
            Phase::Running,
            Phase::Unavailable {
                cause: String::new(),
            },
            Phase::Closing {
                deadline: Instant::now(),
                persisted_before: 0,
            },
            Phase::Closed {
                result: Err(LoggerError::Closed),
            },
        ];
        let combinations = |phase: &Phase| {
            let all = admissions
                .into_iter()
                .flat_map(|of| [(of, false), (of, true)]);
            all.flat_map(|(of, sealed)| [false, true].map(|gate| is_legal(phase, of, sealed, gate)))
                .filter(|is| *is)
                .count()
        };
        assert_eq!(phases.each_ref().map(combinations), [4, 4, 3, 2]);
        // Illegal: records are admitted or committed after the end.
        let [.., closing, closed] = &phases;
        assert!(!is_legal(closing, Admission::Open, false, false));
        assert!(
            !is_legal(closing, Admission::Closed, false, true),
            "the gate closes behind the seal"
        );
        assert!(!is_legal(closed, Admission::Closed, true, false));
    }

    #[test]
    fn disabled_logger_is_neither_healthy_nor_dropping() {
        let shared = Shared::disabled();
        assert_eq!(
            (shared.health(), shared.refusal()),
            (Err(Unhealthy::Disabled), Some(DropReason::Disabled))
        );
        let record = RetrievalFailureRecord::new(
            crate::model::outcome::RetrievalFailureType::NoHit,
            "s",
            "q",
        );
        assert_eq!(
            shared.log(record, None, Origin::LOGGED),
            LogOutcome::Dropped(DropReason::Disabled)
        );
        assert_eq!(shared.stats(), Stats::default(), "nothing is counted");
    }

    #[test]
    fn closed_logger_stays_closed_whatever_the_store_does() {
        let shared = shared(LoggerConfig::new(":memory:"));
        shared.unavailable("injected");
        assert_eq!(
            shared.health(),
            Err(Unhealthy::Unavailable {
                cause: "injected".into()
            })
        );
        assert_eq!(shared.refusal(), None, "records are buffered");
        // Between the two steps of a shutdown.
        shared
            .admission
            .store(Admission::Closed as u8, Ordering::Release);
        assert!(shared.available());
        shared.unavailable("injected");
        assert_eq!(shared.refusal(), Some(DropReason::Closed));
        let record = || {
            RetrievalFailureRecord::new(
                crate::model::outcome::RetrievalFailureType::NoHit,
                "s",
                "q",
            )
        };
        assert_eq!(
            shared.log(record(), None, Origin::LOGGED),
            LogOutcome::Dropped(DropReason::Closed)
        );
        assert_eq!(shared.stats().dropped.closed, 1);
        let deadline = Instant::now();
        shared.close(deadline);
        shared.close(deadline + Duration::from_secs(60));
        assert!(
            matches!(*shared.phases().borrow(), Phase::Closing { deadline: first, .. } if first == deadline)
        );
        assert!(!shared.available());
        assert_eq!(shared.health(), Err(Unhealthy::Closed));
    }

    #[test]
    fn full_buffer_of_an_unavailable_logger_names_that_reason() {
        let shared = shared(
            LoggerConfig::new(":memory:")
                .buffer_capacity(1)
                .batch_size(1),
        );
        let record = || {
            RetrievalFailureRecord::new(
                crate::model::outcome::RetrievalFailureType::NoHit,
                "s",
                "q",
            )
        };
        let log = || shared.log(record(), None, Origin::LOGGED);
        assert_eq!(log(), LogOutcome::Queued);
        assert_eq!(log(), LogOutcome::Dropped(DropReason::BufferFull));
        shared.unavailable("injected");
        assert_eq!(log(), LogOutcome::Dropped(DropReason::Unavailable));
        assert!(
            shared.available() && !shared.available(),
            "it was not, and is"
        );
        assert_eq!(log(), LogOutcome::Dropped(DropReason::BufferFull));
        assert!(shared.stats().is_balanced());
    }
}
