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
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::config::LoggerConfig;
use crate::error::{LoggerError, Unhealthy};
use crate::model::stats::{DropCounts, ShutdownReport, Stats};
use crate::model::time::Timestamp;
use crate::pipeline::buffer::Buffer;
use crate::pipeline::counters::Counters;
use crate::pipeline::losses::Losses;
#[cfg(test)]
use crate::pipeline::phase::is_legal;
use crate::pipeline::phase::{Admission, Phase};
use crate::retention::{RetentionClock, RetentionInForce};
use crate::rollup::{AttemptBatch, Attempts, Refusal};
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
    pub(super) fn admission(&self) -> Admission {
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
    use crate::model::entry::Origin;
    use crate::model::record::RetrievalFailureRecord;
    use crate::model::stats::{DropReason, LogOutcome};

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
