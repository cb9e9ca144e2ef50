//! What an application holds: cheap to clone, usable from any thread and any runtime.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use actix::dev::channel::channel as mailbox;
use actix::{Addr, AsyncContext as _, Context, Handler, Message, MessageResult, SystemService};
use futures_timer::Delay;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::actor::{
    Control, DeleteFailures, FailureLogger, Flush, MailboxMarker, MarkQuestion, Shutdown, Thread, finish,
};
use crate::buffer::{Origin, Room};
use crate::clock;
use crate::config::LoggerConfig;
use crate::error::{LoggerError, MarkError, StartError, StoreError, Unhealthy};
use crate::monitor::StrategyMonitor;
use crate::record::{BoundedText, ConversationId, RetrievalFailureRecord};
use crate::report::{FailureFilter, FailureReader, MAX_QUESTION_CHARACTERS, PageRequest, QuestionStatus, normalized};
use crate::shared::{Phase, Shared};
use crate::sqlite;
use crate::stats::{DeleteReport, DropReason, FlushReport, LogOutcome, ShutdownReport, Stats};
use crate::store::delete::{Deleted, Deletion};
use crate::store::marks::Mark;
use crate::store::{Database, Erased};

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
    control: Addr<Control>,
    /// Empty until the actor is started.
    addr: Arc<OnceLock<Addr<FailureLogger>>>,
    /// Stands in for it.
    closed_addr: Addr<FailureLogger>,
    /// The logger's own thread, which ends with the last handle.
    thread: Option<Mutex<Thread>>,
}

impl FailureLogger {
    /// Opens the database, brings its schema up to date, and returns the actor, to be started in the application's own
    /// system. Blocks while the database is opened, usually for a few milliseconds.
    ///
    /// ```
    /// use actix::prelude::*;
    /// use failure_logger::{FailureLogger, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    ///
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("failures.db").to_string_lossy().into_owned();
    /// let mut actor = FailureLogger::new(LoggerConfig::new(path))?;
    /// let logger = actor.handle();
    /// let addr = actor.start();
    /// let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "where is the key?");
    /// if let Err(SendError::Full(record)) = addr.try_send(record) {
    ///     eprintln!("not logged: {}", record.query_text);
    /// }
    /// assert_eq!(logger.shutdown().await?.stats.persisted, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The logger ends when [`shutdown`](LoggerHandle::shutdown) is called, when no address and no handle is left, or
    /// when its event loop is dropped. In each case it commits what was accepted, within the `shutdown_timeout`.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn new(config: LoggerConfig) -> Result<Self, StartError> {
        let location = config.validate()?;
        if !config.enabled {
            return Ok(Self::with_shared(Arc::new(Shared::disabled())));
        }
        let database = Database::new(&location, config.pool_size);
        Self::open(config, database)
    }

    /// Returns the actor with the connections of `pool`, which the application built and goes on to use: its tables and the
    /// logger's are in one file.
    ///
    /// The pool says where the file is and how many connections there are: `database_url` and
    /// [`pool_size`](LoggerConfig::pool_size) have no effect. The logger takes a connection for each transaction, and
    /// up to one less than the pool has for queries and checkpoints at the same time. In a pool of one connection it
    /// takes turns with itself, and with the application. If the application has all of them for longer than the pool's
    /// `connection_timeout` (6 s at most), records wait in the buffer, and the logger tries again.
    ///
    /// The logger creates its tables and keeps them up to date. It changes nothing else about the file: no journal mode,
    /// no page size, no permissions, no vacuum, no statistics. It never renames the file, not even a damaged one. On a
    /// connection it sets `query_only` for a query, and `busy_timeout`, and restores both before it returns it; and it
    /// adds one SQL function. [`CustomizeConnection`](crate::sqlite::CustomizeConnection) says what else suits the
    /// logger. Without it, SQLite's own checkpoints are the only ones.
    ///
    /// The pool stays open when the logger has ended. If its file is deleted or replaced, records are kept in memory,
    /// and the logger is [`Unavailable`](crate::Unhealthy::Unavailable) until the file is back.
    ///
    /// # Errors
    ///
    /// [`StartError::Pool`]: a pool of a database in memory or of a temporary one, whose connections may not write, or
    /// whose file is missing, was replaced, is damaged, or has a table of the same name that is not ours. All that is
    /// wrong is said with its remedy. [`StartError::Store`] with [`StoreError::Retry`]: another connection holds a
    /// lock, or all connections are in use.
    pub fn with_pool(config: LoggerConfig, pool: sqlite::Pool) -> Result<Self, StartError> {
        config.validate_without_url()?;
        if !config.enabled {
            return Ok(Self::with_shared(Arc::new(Shared::disabled())));
        }
        let database = Database::of_application(pool)?;
        let (pool_size, setting) = (database.pool_size(), config.pool_size);
        if pool_size != setting {
            tracing::info!(pool_size, setting, "the size of the application's pool counts, not the setting pool_size");
        }
        Self::open(config, database)
    }

    /// Opens the database, brings its schema up to date, and starts the actor on a thread of its own. Works from any
    /// thread, with or without a runtime. Blocks while the database is opened, usually for a few milliseconds.
    ///
    /// # Errors
    ///
    /// Settings that are not accepted, and a database that cannot be opened, by what to do about it. Nothing is
    /// overwritten.
    pub fn spawn(config: LoggerConfig) -> Result<LoggerHandle, StartError> {
        Self::new(config)?.start_on_thread()
    }

    /// Starts the actor on a thread of its own, which ends with the last handle. Works from any thread, with or without a
    /// runtime.
    ///
    /// # Errors
    ///
    /// [`Thread`](StartError::Thread): the system gives no thread, or no event loop.
    pub fn start_on_thread(mut self) -> Result<LoggerHandle, StartError> {
        if !self.shared.config.enabled {
            return Ok(LoggerHandle::disabled());
        }
        // Its address is not known to anyone before a handle gives it away.
        self.shared.buffer.reserve(0);
        let mut inner = self.inner();
        let (addr, thread) = Thread::start(self)?;
        let _ = inner.addr.set(addr);
        inner.thread = Some(Mutex::new(thread));
        Ok(LoggerHandle { inner: Arc::new(inner) })
    }

    /// Returns a handle to this logger. Dropping it does not end the logger.
    pub fn handle(&mut self) -> LoggerHandle {
        LoggerHandle { inner: Arc::new(self.inner()) }
    }

    fn inner(&mut self) -> Inner {
        let addr = self.address.upgrade().unwrap_or_default();
        self.address = Arc::downgrade(&addr);
        Inner::new(Arc::clone(&self.shared), self.control.clone(), addr)
    }
}

/// Requests a handle to the logger, for those who have only its address, such as that of the
/// [system registry](SystemService::from_registry).
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "LoggerHandle")]
pub struct GetHandle;

impl Handler<GetHandle> for FailureLogger {
    type Result = MessageResult<GetHandle>;

    fn handle(&mut self, _: GetHandle, ctx: &mut Context<Self>) -> Self::Result {
        let handle = FailureLogger::handle(self);
        let _ = handle.inner.addr.set(ctx.address());
        MessageResult(handle)
    }
}

/// A logger with the settings of the environment, for the system registry. If they are not accepted, or the database
/// cannot be opened, its [health](LoggerHandle::health) is [`Unavailable`](Unhealthy::Unavailable): it buffers records,
/// and opens the database as soon as that is possible. With settings that are not accepted it drops every record as
/// [`Unavailable`](DropReason::Unavailable).
impl Default for FailureLogger {
    fn default() -> Self {
        let config = LoggerConfig::from_env().and_then(|config| Ok((config.validate()?, config)));
        match config {
            Err(error) => Self::unconfigured(&error),
            Ok((_, config)) if !config.enabled => Self::with_shared(Arc::new(Shared::disabled())),
            Ok((location, config)) => {
                let database = || Database::new(&location, config.pool_size);
                Self::open(config.clone(), database())
                    .unwrap_or_else(|error| Self::unopened(config.clone(), database(), &error))
            }
        }
    }
}

/// Registered by `SystemRegistry::set(FailureLogger::new(config)?.start())`, or with [`Default`] when it is first asked
/// for.
impl SystemService for FailureLogger {}

impl LoggerHandle {
    /// A handle that does nothing: there is no thread and no database. Records given to it are
    /// dropped as [`Disabled`](crate::DropReason::Disabled), and not counted.
    pub fn disabled() -> Self {
        let shared = Arc::new(Shared::disabled());
        Self { inner: Arc::new(Inner::new(shared, closed_address(), Arc::default())) }
    }

    /// Records a failed retrieval. Never blocks, never panics, allocates nothing, and makes no
    /// system call unless the record completes a batch while the logger sleeps.
    ///
    /// The record's moment is that of the call.
    pub fn log(&self, record: RetrievalFailureRecord) -> LogOutcome {
        self.inner.shared.log(record, None, Origin::LOGGED)
    }

    /// Waits at most `timeout` for room in the buffer, then records a failed retrieval as [`log`](Self::log) does. Works
    /// on any runtime. The record's moment is that of its admission.
    pub async fn log_within(&self, record: RetrievalFailureRecord, timeout: Duration) -> LogOutcome {
        let shared = &self.inner.shared;
        let mut timeout = Delay::new(timeout);
        while shared.closed_door().is_none() {
            // Another caller may take the room that this one waited for.
            if shared.offer(record.clone(), None, Origin::LOGGED).is_ok() {
                return LogOutcome::Queued;
            }
            tokio::select! {
                biased;
                () = shared.buffer.wait_for(Room::ForAll) => {}
                () = &mut timeout => break,
            }
        }
        self.log(record)
    }

    /// The same for a retrieval that failed at another moment: one that another process reports,
    /// or that was kept back. One that is older than the retention in force is dropped as
    /// [`TooOld`](crate::DropReason::TooOld); one that is dated more than five minutes ahead of the clock gets the
    /// moment of the call, and is counted in [`Stats::redated`].
    pub fn log_at(&self, record: RetrievalFailureRecord, at: SystemTime) -> LogOutcome {
        self.inner.shared.log(record, Some(clock::milliseconds_of(at)), Origin::LOGGED)
    }

    /// The same for a record that may come more than once, because its sender repeats what was not
    /// acknowledged: it is stored once for each `event_id`, best a UUIDv7.
    pub fn log_once(&self, record: RetrievalFailureRecord, at: SystemTime, event_id: Uuid) -> LogOutcome {
        self.inner.shared.log(
            record,
            Some(clock::milliseconds_of(at)),
            Origin { event_id: Some(event_id), ..Origin::LOGGED },
        )
    }

    /// Takes a record from a caller who retries it: one that is not taken is not lost, and not counted.
    pub(crate) fn offer(
        &self,
        record: RetrievalFailureRecord,
        at: Option<SystemTime>,
        origin: Origin,
    ) -> Result<(), DropReason> {
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
    /// `addr.clone().recipient::<RetrievalFailureRecord>()`. It is closed before the actor is started, and after the end.
    ///
    /// From the first call on, the mailbox has its part of the buffer. Share one clone of the address, for each further
    /// clone enlarges the mailbox by one (actix issue 329).
    pub fn addr(&self) -> &Addr<FailureLogger> {
        let Some(addr) = self.inner.addr.get() else { return &self.inner.closed_addr };
        let shared = &self.inner.shared;
        if shared.buffer.reserve(shared.config.mailbox_reserve()) {
            // The actor compares the room with the new bound before it takes a record.
            addr.do_send(MailboxMarker(oneshot::channel().0));
        }
        addr
    }

    /// Returns when everything that was logged before the call is committed, and what was sent to the actor before.
    ///
    /// # Errors
    ///
    /// The store failed: the records are kept and written later, so that it may be called again. In the
    /// pause before the next try the store is not tried earlier: the call returns the last failure at
    /// once.
    pub async fn flush(&self) -> Result<FlushReport, LoggerError> {
        if !self.inner.shared.config.enabled {
            return Ok(FlushReport::default());
        }
        let (reply, answer) = oneshot::channel();
        self.inner.control.do_send(Flush(reply));
        let mut phases = self.inner.shared.phases();
        tokio::select! {
            biased;
            Ok(answer) = answer => answer,
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
    /// [`NotFound`](MarkError::NotFound): no failure of the log is in this group. `Open` is always accepted.
    /// [`TooLong`](MarkError::TooLong): name the query as it is stored.
    /// [`Store`](MarkError::Store): try again, or look at the logger's health.
    pub async fn mark_question(&self, question: &str, status: QuestionStatus) -> Result<(), MarkError> {
        // Counted no further than necessary.
        if question.chars().nth(MAX_QUESTION_CHARACTERS).is_some() {
            return Err(MarkError::TooLong { characters: question.chars().count() });
        }
        if !self.inner.shared.config.enabled {
            return Err(MarkError::Closed);
        }
        // A misspelt query must not look like one that is dealt with.
        if status != QuestionStatus::Open && !self.may_have_failed(question).await {
            return Err(MarkError::NotFound);
        }
        let (reply, answer) = oneshot::channel();
        let mark = Mark { status, marked_at: clock::now() };
        self.inner.control.do_send(MarkQuestion { question: normalized(question), mark, reply });
        answer.await.unwrap_or(Err(StoreError::GiveUp(String::new()))).map_err(|error| match error {
            StoreError::GiveUp(_) => MarkError::Closed,
            error => MarkError::Store(error),
        })
    }

    /// Deletes failures for good: those of a conversation, or with exactly one query, also what waits in the buffer.
    /// Statuses of their queries are deleted, too. Counts stay.
    ///
    /// The file is written anew without them, which takes as long as copying it and as much space on the disk, and its
    /// journal is emptied. Backups are not reached. A record that its sender repeats under the same `event_id` is stored
    /// as a new one.
    ///
    /// # Errors
    ///
    /// [`Store`](MarkError::Store): call it again; what was deleted by then stays deleted. [`Closed`](MarkError::Closed):
    /// the logger has ended.
    pub async fn delete(&self, deletion: Deletion) -> Result<DeleteReport, MarkError> {
        if !self.inner.shared.config.enabled {
            return Err(MarkError::Closed);
        }
        self.flush().await.map_err(|error| match error {
            LoggerError::Waiting { cause, .. } | LoggerError::Unavailable { cause } => {
                MarkError::Store(StoreError::Retry(cause))
            }
            _ => MarkError::Closed,
        })?;
        // As they are stored.
        let deletion = match deletion {
            Deletion::Conversation(id) => Deletion::Conversation(ConversationId::from(id).as_str().to_owned()),
            Deletion::Query(query) => Deletion::Query(BoundedText::<512>::from(query).as_str().to_owned()),
        };
        let (reply, answer) = oneshot::channel();
        self.inner.control.do_send(DeleteFailures { deletion, so_far: Deleted::default(), reply });
        let answer = answer.await.unwrap_or(Err(StoreError::GiveUp(String::new())));
        let (Deleted { rows, statuses, .. }, erased) = answer.map_err(|error| match error {
            StoreError::GiveUp(_) => MarkError::Closed,
            error => MarkError::Store(error),
        })?;
        Ok(DeleteReport { rows, statuses, is_erased: erased == Erased::Everywhere })
    }

    /// Returns `false` if no failure is in the group of `question`. If that cannot be read in time, there may be one.
    async fn may_have_failed(&self, question: &str) -> bool {
        let filter = || FailureFilter { question: Some(question.into()), ..FailureFilter::default() };
        let is_absent = async || {
            let page = self.reader().list(filter(), PageRequest::newest(1)).await;
            page.is_ok_and(|page| page.complete && page.failures.is_empty())
        };
        // What waits in memory is found after a flush.
        !(is_absent().await && self.flush().await.is_ok() && is_absent().await)
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
        let shared = &self.inner.shared;
        if !shared.config.enabled {
            return Ok(ShutdownReport::default());
        }
        self.inner.close(shared.config.shutdown_timeout);
        tokio::select! {
            biased;
            result = shared.result() => result,
            () = Delay::new(shared.config.shutdown_timeout + GRACE) => {
                // Something else blocks the thread of the actor, or it was not started.
                finish(shared);
                shared.result().await
            }
        }
    }
}

impl fmt::Debug for LoggerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Inner {
    fn new(shared: Arc<Shared>, control: Addr<Control>, addr: Arc<OnceLock<Addr<FailureLogger>>>) -> Self {
        Self { shared, control, addr, closed_addr: closed_address(), thread: None }
    }

    fn close(&self, timeout: Duration) {
        self.shared.close(Instant::now() + timeout);
        self.control.do_send(Shutdown);
    }
}

/// An address without an actor.
fn closed_address<A: actix::Actor>() -> Addr<A> {
    Addr::new(mailbox(1).0)
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
