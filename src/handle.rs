//! What an application holds: cheap to clone, usable from any thread and any runtime.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use actix::Addr;
use actix::dev::channel::channel as mailbox;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::actor::{FailureLogger, FlushFor, MarkQuestion, Shutdown, Thread};
use crate::buffer::Origin;
use crate::clock;
use crate::error::{LoggerError, MarkError, StoreError, Unhealthy};
use crate::monitor::StrategyMonitor;
use crate::record::RetrievalFailureRecord;
use crate::report::{FailureReader, MAX_QUESTION_CHARACTERS, QuestionStatus, normalized};
use crate::shared::{Phase, Shared};
use crate::stats::{DropReason, FlushReport, LogOutcome, ShutdownReport, Stats};
use crate::store::marks::Mark;

/// How long dropping the last handle may take.
const DRAIN_ON_DROP: Duration = Duration::from_secs(1);
/// How much longer to wait for the logger's thread than it takes by itself.
const GRACE: Duration = Duration::from_secs(1);

/// The way to a running [`FailureLogger`]. Clone it freely: clones share one logger.
///
/// Dropping the last one drains the buffer for up to a second; [`shutdown`](Self::shutdown) does
/// it properly, and tells what was saved.
#[derive(Clone)]
pub struct LoggerHandle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    addr: Addr<FailureLogger>,
    /// `None`: the logger is disabled.
    thread: Option<Mutex<Thread>>,
}

impl LoggerHandle {
    pub(crate) fn new(shared: Arc<Shared>, addr: Addr<FailureLogger>, thread: Thread) -> Self {
        Self { inner: Arc::new(Inner { shared, addr, thread: Some(Mutex::new(thread)) }) }
    }

    /// A handle that does nothing: there is no thread and no database. Records given to it are
    /// dropped as [`Disabled`](crate::DropReason::Disabled), and not counted.
    pub fn disabled() -> Self {
        // Its receiver is gone, so that the address is closed.
        let (sender, _) = mailbox(1);
        Self { inner: Arc::new(Inner { shared: Arc::new(Shared::disabled()), addr: Addr::new(sender), thread: None }) }
    }

    /// Records a failed retrieval. Never blocks, never panics, allocates nothing, and makes no
    /// system call unless the record completes a batch while the logger sleeps.
    ///
    /// The record's moment is that of the call.
    pub fn log(&self, record: RetrievalFailureRecord) -> LogOutcome {
        self.inner.shared.log(record, None, Origin::Logged)
    }

    /// The same for a retrieval that failed at another moment: one that another process reports,
    /// or that was kept back. One that is older than the retention in force is dropped as
    /// [`TooOld`](crate::DropReason::TooOld); one that is dated more than five minutes ahead of the clock gets the
    /// moment of the call, and is counted in [`Stats::redated`].
    pub fn log_at(&self, record: RetrievalFailureRecord, at: SystemTime) -> LogOutcome {
        self.inner.shared.log(record, Some(clock::milliseconds_of(at)), Origin::Logged)
    }

    /// The same for a record that may come more than once, because its sender repeats what was not
    /// acknowledged: it is stored once for each `event_id`, best a UUIDv7.
    pub fn log_once(&self, record: RetrievalFailureRecord, at: SystemTime, event_id: Uuid) -> LogOutcome {
        self.inner.shared.log(record, Some(clock::milliseconds_of(at)), Origin::Repeatable(event_id))
    }

    /// Takes a record from a caller who retries it: one that is not taken is not lost, and not counted.
    pub(crate) fn offer(
        &self,
        record: RetrievalFailureRecord,
        at: Option<SystemTime>,
        event_id: Option<Uuid>,
    ) -> Result<(), DropReason> {
        let origin = event_id.map_or(Origin::Logged, Origin::Repeatable);
        self.inner.shared.offer(record, at.map(clock::milliseconds_of), origin)
    }

    /// A monitor for the retrieval strategy `name` (cut to 64 characters), that counts every
    /// attempt and logs those that fail.
    pub fn strategy(&self, name: &str) -> StrategyMonitor {
        StrategyMonitor::new(Arc::clone(&self.inner.shared), name)
    }

    /// Answers questions about what was logged and counted, from the database: what waits in memory
    /// is not included. Works on after the logger has ended, unless the database lived in memory.
    pub fn reader(&self) -> FailureReader {
        FailureReader::new(self.inner.shared.readers.clone())
    }

    /// The actor's address, for other actors: `addr.try_send(record)`, or
    /// `addr.clone().recipient::<RetrievalFailureRecord>()`. Its mailbox holds as many messages as
    /// the buffer holds records.
    ///
    /// Share one clone of it, for each further clone enlarges the mailbox by one (actix issue 329).
    pub fn addr(&self) -> &Addr<FailureLogger> {
        &self.inner.addr
    }

    /// Returns when everything that was logged before the call is committed.
    ///
    /// # Errors
    ///
    /// The store failed: the records are kept and written later, so that it may be called again. In the
    /// pause before the next try the store is not tried earlier: the call returns the last failure at
    /// once.
    pub async fn flush(&self) -> Result<FlushReport, LoggerError> {
        if self.inner.thread.is_none() {
            return Ok(FlushReport::default());
        }
        let (reply, answer) = oneshot::channel();
        self.inner.addr.do_send(FlushFor(reply));
        let mut phases = self.inner.shared.phases();
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or(Err(LoggerError::Closed)),
            phase = phases.wait_for(|phase| matches!(phase, Phase::Unavailable { .. } | Phase::Closed { .. })) => {
                match phase.as_deref() {
                    Ok(Phase::Unavailable { cause }) => Err(LoggerError::Unavailable { cause: cause.clone() }),
                    _ => Err(LoggerError::Closed),
                }
            }
        }
    }

    /// Says what became of a failing question: `question` is the [`key`](crate::QueryGroup::key) of a
    /// group, or any text of it, at most 512 characters. Kept in the database, for the whole group: what was
    /// set last for any of its texts holds.
    ///
    /// # Errors
    ///
    /// [`TooLong`](MarkError::TooLong): name the query as it is stored.
    /// [`Store`](MarkError::Store): try again, or look at the logger's health.
    pub async fn mark_question(&self, question: &str, status: QuestionStatus) -> Result<(), MarkError> {
        // Counted no further than necessary.
        if question.chars().nth(MAX_QUESTION_CHARACTERS).is_some() {
            return Err(MarkError::TooLong { characters: question.chars().count() });
        }
        if self.inner.thread.is_none() {
            return Err(MarkError::Closed);
        }
        let (reply, answer) = oneshot::channel();
        let mark = Mark { status, marked_at: clock::now() };
        self.inner.addr.do_send(MarkQuestion { question: normalized(question), mark, reply });
        answer.await.unwrap_or(Err(StoreError::GiveUp(String::new()))).map_err(|error| match error {
            StoreError::GiveUp(_) => MarkError::Closed,
            error => MarkError::Store(error),
        })
    }

    /// The counters, as of now. Takes no lock and disturbs nobody.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// Whether the logger keeps what it is given: it runs, and what it accepted ten seconds ago is
    /// written. Takes no lock that anyone holds for long.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn health(&self) -> Result<(), Unhealthy> {
        self.inner.shared.health()
    }

    /// Whether the buffer has room for a record, as of now.
    #[cfg(feature = "http")]
    pub(crate) fn has_room(&self) -> bool {
        self.inner.shared.buffer.has_room()
    }

    #[cfg(feature = "http")]
    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// Refuses new records, commits what was accepted, closes the database, and ends the logger's
    /// thread. Takes at most the configured `shutdown_timeout` and half a second. May be called
    /// several times, also at once: all get the same answer.
    ///
    /// Covers what was logged, and what was sent to the actor, before the call. Other actors that
    /// still have something to report must be drained first.
    ///
    /// # Errors
    ///
    /// [`Unsaved`](LoggerError::Unsaved): the deadline passed first. It says what is lost.
    pub async fn shutdown(&self) -> Result<ShutdownReport, LoggerError> {
        if self.inner.thread.is_none() {
            return Ok(ShutdownReport::default());
        }
        self.inner.close(self.inner.shared.config.shutdown_timeout);
        self.inner.shared.result().await
    }
}

impl fmt::Debug for LoggerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Inner {
    fn close(&self, timeout: Duration) {
        self.shared.close(Instant::now() + timeout);
        // Behind all records that other actors sent. A message, because the future of a request
        // takes it back when it is dropped.
        self.addr.do_send(Shutdown);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let thread = thread.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.close(DRAIN_ON_DROP);
        // The logger's own thread must not wait for itself.
        if thread.id != thread::current().id() {
            let _ = thread.ended.recv_timeout(DRAIN_ON_DROP + GRACE);
        }
    }
}
