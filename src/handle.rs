//! The handle of an application: cheap to clone, usable from any thread and any runtime.
//!
//! A handle is not the actor. It shares the state of the logger, calls the buffer and the counters
//! directly, and sends a message to the control actor only for what needs the writer. `log`,
//! `stats` and `health` therefore work while the actor is busy, restarts or has ended.
//!
//! The thread of `spawn` ends with the last handle. A monitor or reader holds the state as well,
//! but not the thread, so that a forgotten monitor keeps no logger running.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use actix::dev::channel::channel as mailbox;
use actix::{Addr, AsyncContext as _, Context, Handler, Message, MessageResult, SystemService};
use futures_timer::Delay;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::config::LoggerConfig;
use crate::error::{ChangeError, LoggerError, StartError, StoreError, Unhealthy};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::entry::Origin;
use crate::model::failure::FailureFilter;
use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::record::{BoundedQuery, ConversationId, RetrievalFailureRecord};
use crate::model::stats::{
    DeleteReport, DropReason, FlushReport, LogOutcome, ShutdownReport, Stats,
};
use crate::model::time::Timestamp;
use crate::monitor::StrategyMonitor;
use crate::pipeline::actor::FailureLogger;
use crate::pipeline::buffer::Room;
use crate::pipeline::control::Control;
use crate::pipeline::messages::{DeleteFailures, Flush, MailboxMarker, SetQueryStatus, Shutdown};
use crate::pipeline::phase::Phase;
use crate::pipeline::state::Shared;
use crate::pipeline::supervisor::finish;
use crate::pipeline::thread::Thread;
use crate::report::{FailureReader, PageRequest};
use crate::similarity::normalized;
use crate::store;
use crate::store::sqlite::embed as sqlite;
use crate::store::write::Erased;

/// Deadline of the shutdown that the drop of the last handle begins. The drop blocks for so long
/// and [`REPORT_TIMEOUT`] at most.
const DRAIN_ON_DROP: Duration = Duration::from_secs(1);
/// Time beyond the deadline of a shutdown for its report: a commit that is under way, and the
/// records in the mailbox, are waited for after the deadline.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to a running [`FailureLogger`]. Clone it freely: clones share one logger.
///
/// Dropping the last one drains the buffer for up to a second; [`shutdown`](Self::shutdown) does
/// it properly, and tells what was saved.
#[derive(Clone)]
pub struct LoggerHandle {
    inner: Arc<Inner>,
}

/// Shared by all clones of a handle. Its drop is the end of the last clone.
struct Inner {
    shared: Arc<Shared>,
    control: Addr<Control>,
    /// Empty until the actor is started. The actor has a weak reference to the slot, so that an address
    /// in it does not keep the actor alive when the last handle is dropped.
    addr: Arc<OnceLock<Addr<FailureLogger>>>,
    /// Returned by `addr` before the actor is started. It has no actor: `try_send` returns the
    /// record.
    closed_addr: Addr<FailureLogger>,
    /// The logger's own thread, which ends with the last handle.
    thread: Option<Mutex<Thread>>,
}

impl FailureLogger {
    /// Opens the database, brings its schema up to date, and returns the actor, to be started in
    /// the application's own system. Blocks while the database is opened, usually for a few
    /// milliseconds.
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
    /// The logger ends when [`shutdown`](LoggerHandle::shutdown) is called, when no address and no
    /// handle is left, or when its event loop is dropped. In each case it commits what was
    /// accepted, within the `shutdown_timeout`.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn new(config: LoggerConfig) -> Result<Self, StartError> {
        let location = config.validate()?;
        if !config.enabled {
            return Ok(Self::with_shared(Arc::new(Shared::disabled())));
        }
        let database = store::backend(&location, config.pool_size, config.migrate);
        Self::open(config, database)
    }

    /// Returns the actor with the connections of `pool`, which the application built and also uses:
    /// its tables and those of the logger are in one file.
    ///
    /// The pool says where the file is and how many connections there are: `database_url` and
    /// [`pool_size`](LoggerConfig::pool_size) have no effect. The logger takes a connection for
    /// each transaction, and up to one less than the pool has for queries and checkpoints at the
    /// same time. In a pool of one connection it takes turns with itself, and with the application.
    /// If the application has all of them for longer than the pool's `connection_timeout` (6 s at
    /// most), records wait in the buffer, and the logger tries again.
    ///
    /// The logger creates its tables and keeps them up to date. It changes nothing else about the
    /// file: no journal mode, no page size, no permissions, no vacuum, no statistics. It never
    /// renames the file, not even a damaged one. On a connection it sets `query_only` for a query,
    /// and `busy_timeout`, and restores both before it returns it; and it adds one SQL function.
    /// [`CustomizeConnection`](crate::sqlite::CustomizeConnection) says what else suits the logger.
    /// Without it, SQLite's own checkpoints are the only ones.
    ///
    /// The pool stays open when the logger has ended. If its file is deleted or replaced, records
    /// are kept in memory, and the logger is [`Unavailable`](crate::error::Unhealthy::Unavailable)
    /// until the file is back.
    ///
    /// # Errors
    ///
    /// [`StartError::Pool`]: a pool of a database in memory or of a temporary one, whose
    /// connections may not write, or whose file is missing, was replaced, is damaged, or has a
    /// table of the same name that is not ours. All that is wrong is said with its remedy.
    /// [`StartError::Store`] with [`StoreError::Retry`]: another connection holds a lock, or all
    /// connections are in use.
    pub fn with_pool(config: LoggerConfig, pool: sqlite::Pool) -> Result<Self, StartError> {
        config.validate_without_url()?;
        if !config.enabled {
            return Ok(Self::with_shared(Arc::new(Shared::disabled())));
        }
        let (database, pool_size) = store::of_application(pool, config.migrate)?;
        let setting = config.pool_size;
        if pool_size != setting {
            tracing::info!(
                pool_size,
                setting,
                "the size of the application's pool counts, not the setting pool_size"
            );
        }
        Self::open(config, database)
    }

    /// Opens the database, brings its schema up to date, and starts the actor on a thread of its
    /// own. Works from any thread, with or without a runtime. Blocks while the database is opened,
    /// usually for a few milliseconds.
    ///
    /// # Errors
    ///
    /// Settings that are not accepted, and a database that cannot be opened, by what to do about
    /// it. Nothing is overwritten.
    pub fn spawn(config: LoggerConfig) -> Result<LoggerHandle, StartError> {
        Self::new(config)?.start_on_thread()
    }

    /// Starts the actor on a thread of its own, which ends with the last handle. Works from any
    /// thread, with or without a runtime.
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
        Ok(LoggerHandle {
            inner: Arc::new(inner),
        })
    }

    /// Returns a handle to this logger. Dropping it does not end the logger.
    pub fn handle(&mut self) -> LoggerHandle {
        LoggerHandle {
            inner: Arc::new(self.inner()),
        }
    }

    /// Returns what a handle needs. The slot of the address is shared with all handles made before,
    /// so that they find the address once the actor is started.
    fn inner(&mut self) -> Inner {
        let addr = self.address.upgrade().unwrap_or_default();
        self.address = Arc::downgrade(&addr);
        Inner::new(Arc::clone(&self.shared), self.control.clone(), addr)
    }
}

/// Requests a handle to the logger, for callers that have only its address, such as that of the
/// [system registry](SystemService::from_registry).
///
/// ```
/// use actix::Actor as _;
/// use failure_logger::{FailureLogger, GetHandle, LoggerConfig};
///
/// # #[actix::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let addr = FailureLogger::new(LoggerConfig::new(":memory:"))?.start();
/// let logger = addr.send(GetHandle).await?;
/// assert!(logger.health().is_ok());
/// # logger.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct GetHandle;

impl Message for GetHandle {
    type Result = LoggerHandle;
}

impl Handler<GetHandle> for FailureLogger {
    type Result = MessageResult<GetHandle>;

    fn handle(&mut self, _: GetHandle, ctx: &mut Context<Self>) -> Self::Result {
        let handle = FailureLogger::handle(self);
        let _ = handle.inner.addr.set(ctx.address());
        MessageResult(handle)
    }
}

/// A logger with the settings of the environment, for the system registry. If they are not
/// accepted, or the database cannot be opened, its [health](LoggerHandle::health) is
/// [`Unavailable`](Unhealthy::Unavailable): it buffers records, and opens the database as soon as
/// that is possible. With settings that are not accepted it drops every record as
/// [`Unavailable`](DropReason::Unavailable).
impl Default for FailureLogger {
    fn default() -> Self {
        // actix asks for a service without a way to report an error. A panic here would reach
        // whichever actor asked first, so that faults are states of the logger.
        let config = LoggerConfig::from_env().and_then(|config| Ok((config.validate()?, config)));
        match config {
            Err(error) => Self::unconfigured(&error),
            Ok((_, config)) if !config.enabled => Self::with_shared(Arc::new(Shared::disabled())),
            Ok((location, config)) => {
                let database = || store::backend(&location, config.pool_size, config.migrate);
                Self::open(config.clone(), database())
                    .unwrap_or_else(|error| Self::unopened(config.clone(), database(), &error))
            }
        }
    }
}

/// Registered by `SystemRegistry::set(FailureLogger::new(config)?.start())`, or with [`Default`]
/// when it is first asked for.
impl SystemService for FailureLogger {}

impl LoggerHandle {
    /// Returns a handle that does nothing: there is no thread and no database. Records given to it
    /// are dropped as [`Disabled`](crate::DropReason::Disabled), and not counted.
    pub fn disabled() -> Self {
        let shared = Arc::new(Shared::disabled());
        Self {
            inner: Arc::new(Inner::new(shared, closed_address(), Arc::default())),
        }
    }

    /// Records a failed retrieval. Never blocks, never panics, allocates nothing, and makes no
    /// system call unless the record completes a batch while the logger sleeps.
    ///
    /// The record's moment is that of the call.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    /// let record = RetrievalFailureRecord {
    ///     conversation_id: Some("chat-42".into()),
    ///     latency_ms: 12,
    ///     ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "where is the key?")
    /// };
    /// assert_eq!(logger.log(record), LogOutcome::Queued);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log(&self, record: RetrievalFailureRecord) -> LogOutcome {
        self.inner.shared.log(record, None, Origin::LOGGED)
    }

    /// Waits at most `timeout` for room in the buffer, then records a failed retrieval as
    /// [`log`](Self::log) does. Works on any runtime. The record's moment is that of its admission.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    /// # futures_executor::block_on(async {
    /// let record = RetrievalFailureRecord::new(RetrievalFailureType::Error, "bm25", "where is the key?");
    /// match logger.log_within(record, Duration::from_secs(1)).await {
    ///     LogOutcome::Queued => {}
    ///     LogOutcome::Dropped(reason) => eprintln!("not logged: {reason}"),
    /// }
    /// # });
    /// # assert_eq!(logger.stats().received, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn log_within(
        &self,
        record: RetrievalFailureRecord,
        timeout: Duration,
    ) -> LogOutcome {
        let shared = &self.inner.shared;
        let mut timeout = Delay::new(timeout);
        // A record whose timeout passes, or whose logger closes, is logged once more below. That
        // counts it as dropped, with the reason of that moment.
        while shared.refusal().is_none() {
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

    /// Records a retrieval that failed at another moment: one that another process reports, or that
    /// was kept back. One that is older than the retention in force is dropped as
    /// [`TooOld`](crate::DropReason::TooOld); one that is dated more than five minutes ahead of the
    /// clock gets the moment of the call, and is counted in [`Stats::redated`].
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    ///
    /// let yesterday = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    /// let record = RetrievalFailureRecord::new(RetrievalFailureType::Timeout, "graph", "who knows whom?");
    /// assert_eq!(logger.log_at(record, yesterday), LogOutcome::Queued);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log_at(&self, record: RetrievalFailureRecord, at: SystemTime) -> LogOutcome {
        self.inner
            .shared
            .log(record, Some(at.into()), Origin::LOGGED)
    }

    /// Records a failure that may come more than once, because its sender repeats what was not
    /// acknowledged. It is stored once for each `event_id`; prefer a UUIDv7.
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use uuid::Uuid;
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    ///
    /// let (at, event_id) = (SystemTime::now(), Uuid::now_v7());
    /// for _attempt in 0..2 {
    ///     let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "where is the key?");
    ///     logger.log_once(record, at, event_id);
    /// }
    /// let stats = futures_executor::block_on(logger.shutdown())?.stats;
    /// assert_eq!((stats.persisted, stats.duplicates), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log_once(
        &self,
        record: RetrievalFailureRecord,
        at: SystemTime,
        event_id: Uuid,
    ) -> LogOutcome {
        self.inner.shared.log(
            record,
            Some(at.into()),
            Origin {
                event_id: Some(event_id),
                ..Origin::LOGGED
            },
        )
    }

    /// Takes a record from a caller who retries it: one that is not taken is not lost, and not
    /// counted.
    pub(crate) fn offer(
        &self,
        record: RetrievalFailureRecord,
        at: Option<SystemTime>,
        origin: Origin,
    ) -> Result<(), DropReason> {
        self.inner
            .shared
            .offer(record, at.map(Timestamp::from), origin)
    }

    /// Returns a monitor for the retrieval strategy `name` (cut to 64 characters), which counts
    /// every attempt and logs those that fail.
    pub fn strategy(&self, name: &str) -> StrategyMonitor {
        StrategyMonitor::new(Arc::clone(&self.inner.shared), name)
    }

    /// Reads from the database what was logged and counted: what waits in memory
    /// is not included. Works on after the logger has ended, unless the database lived in memory.
    pub fn reader(&self) -> FailureReader {
        FailureReader::new(self.inner.shared.reads.clone())
    }

    /// Returns the actor's address, for other actors: `addr.try_send(record)`, or
    /// `addr.clone().recipient::<RetrievalFailureRecord>()`. It is closed before the actor is
    /// started, and after the end.
    ///
    /// From the first call on, the mailbox has its part of the buffer. Share one clone of the
    /// address, because each further clone enlarges the mailbox by one (actix issue 329).
    pub fn addr(&self) -> &Addr<FailureLogger> {
        let Some(addr) = self.inner.addr.get() else {
            return &self.inner.closed_addr;
        };
        let shared = &self.inner.shared;
        if shared.buffer.reserve(shared.config.mailbox_reserve()) {
            // The actor compares the room with the new bound before it takes a record.
            addr.do_send(MailboxMarker(oneshot::channel().0));
        }
        addr
    }

    /// Returns when everything that was logged before the call is committed, and what was sent to
    /// the actor before.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    /// # futures_executor::block_on(async {
    /// logger.log(RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "where is the key?"));
    /// assert_eq!(logger.flush().await?.persisted, 1);
    /// # Ok::<(), failure_logger::LoggerError>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The store failed: the records are kept and written later, so that it may be called again. In
    /// the pause before the next try the store is not tried earlier: the call returns the last
    /// failure at once.
    pub async fn flush(&self) -> Result<FlushReport, LoggerError> {
        if !self.inner.shared.config.enabled {
            return Ok(FlushReport::default());
        }
        let (reply, answer) = oneshot::channel();
        // `do_send` ignores the bound of the mailbox: a request of a caller must not be handed
        // back.
        self.inner.control.do_send(Flush(reply));
        let mut phases = self.inner.shared.phases();
        tokio::select! {
            biased;
            // A response that is there counts, whatever the phase is by now. If the control actor
            // ends without one, the sender is dropped, this branch is disabled, and the phase says
            // why.
            Ok(answer) = answer => answer,
            phase = phases.wait_for(|phase| matches!(phase, Phase::Unavailable { .. } | Phase::Closed { .. })) => {
                match phase.as_deref() {
                    Ok(Phase::Unavailable { cause }) => Err(LoggerError::Unavailable { cause: cause.clone() }),
                    _ => Err(LoggerError::Closed),
                }
            }
        }
    }

    /// Sets the status of a failing query: `query` is the [`key`](crate::report::QueryGroup::key)
    /// of a group, or any text of it, at most 512 characters. The database keeps it for each text
    /// that the group has now: a text that joins later is new, and the group is open.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    /// # futures_executor::block_on(async {
    /// use failure_logger::QueryStatus;
    ///
    /// logger.log(RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "Where is the key?"));
    /// // Case and punctuation do not matter.
    /// logger.set_query_status("where is the key", QueryStatus::Resolved).await?;
    /// assert!(logger.set_query_status("something else", QueryStatus::Resolved).await.is_err());
    /// # Ok::<(), failure_logger::error::ChangeError>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotFound`](ChangeError::NotFound): no failure of the log is in this group. `Open` is
    /// always accepted. [`TooLong`](ChangeError::TooLong): name the query as it is stored.
    /// [`Store`](ChangeError::Store): retry, or read the logger's health.
    pub async fn set_query_status(
        &self,
        query: &str,
        status: QueryStatus,
    ) -> Result<(), ChangeError> {
        // Counted no further than necessary.
        if query.chars().nth(BoundedQuery::MAX_CHARACTERS).is_some() {
            return Err(ChangeError::TooLong {
                characters: query.chars().count(),
            });
        }
        if !self.inner.shared.config.enabled {
            return Err(ChangeError::Closed);
        }
        let texts = self.texts_of_group(query).await;
        self.set_status_of_texts(texts, status).await
    }

    /// Sets the status of texts, which are given in their normal form.
    ///
    /// # Errors
    ///
    /// See [`set_query_status`](Self::set_query_status).
    pub(crate) async fn set_status_of_texts(
        &self,
        queries: Vec<String>,
        status: QueryStatus,
    ) -> Result<(), ChangeError> {
        if !self.inner.shared.config.enabled {
            return Err(ChangeError::Closed);
        }
        // A misspelt query must not look like one that is dealt with.
        if status != QueryStatus::Open && !self.may_have_failed(&queries).await {
            return Err(ChangeError::NotFound);
        }
        let (reply, answer) = oneshot::channel();
        let change = StatusChange {
            status,
            set_at: Timestamp::now(),
        };
        self.inner.control.do_send(SetQueryStatus {
            queries,
            change,
            reply,
        });
        answer
            .await
            .unwrap_or(Err(StoreError::GiveUp(String::new())))
            .map_err(|error| match error {
                StoreError::GiveUp(_) => ChangeError::Closed,
                error => ChangeError::Store(error),
            })
    }

    /// Deletes failures for good: those of a conversation, or with exactly one query, including the
    /// buffered ones. Statuses of their queries are deleted, too. Counts stay.
    ///
    /// SQLite rewrites the file without them, which takes the time and the disk space of a copy,
    /// and empties its journal. Backups are not reached. A record that its sender repeats under the
    /// same `event_id` is stored as a new one.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("failures.db").to_string_lossy().into_owned();
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(path))?;
    /// # futures_executor::block_on(async {
    /// use failure_logger::Deletion;
    ///
    /// logger.log(RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "my password is 1234"));
    /// let report = logger.delete(Deletion::Query("my password is 1234".into())).await?;
    /// assert_eq!(report.rows, 1);
    /// # Ok::<(), failure_logger::error::ChangeError>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Store`](ChangeError::Store): retry; the rows deleted by then stay deleted.
    /// [`Closed`](ChangeError::Closed): the logger has ended.
    pub async fn delete(&self, deletion: Deletion) -> Result<DeleteReport, ChangeError> {
        if !self.inner.shared.config.enabled {
            return Err(ChangeError::Closed);
        }
        self.flush().await.map_err(|error| match error {
            LoggerError::Waiting { cause, .. } | LoggerError::Unavailable { cause } => {
                ChangeError::Store(StoreError::Retry(cause))
            }
            LoggerError::Closed | LoggerError::Unsaved { .. } => ChangeError::Closed,
        })?;
        // As they are stored.
        let deletion = match deletion {
            Deletion::Conversation(id) => {
                Deletion::Conversation(ConversationId::from(id).as_str().to_owned())
            }
            Deletion::Query(query) => {
                Deletion::Query(BoundedQuery::from(query).as_str().to_owned())
            }
        };
        let (reply, answer) = oneshot::channel();
        self.inner.control.do_send(DeleteFailures {
            deletion,
            so_far: Deleted::default(),
            reply,
        });
        let answer = answer
            .await
            .unwrap_or(Err(StoreError::GiveUp(String::new())));
        let (Deleted { rows, statuses, .. }, erased) = answer.map_err(|error| match error {
            StoreError::GiveUp(_) => ChangeError::Closed,
            error => ChangeError::Store(error),
        })?;
        Ok(DeleteReport {
            rows,
            statuses,
            is_erased: erased == Erased::Everywhere,
        })
    }

    /// Returns the texts in the group of `query`. If they cannot be read in time, or there are none,
    /// returns the text of `query` alone.
    async fn texts_of_group(&self, query: &str) -> Vec<String> {
        let group = async || self.reader().group_of(query).await.unwrap_or_default();
        let mut texts = group().await;
        // A flush makes the records in memory visible to a read.
        if texts.is_empty() && self.flush().await.is_ok() {
            texts = group().await;
        }
        if texts.is_empty() {
            texts.push(normalized(query));
        }
        texts
    }

    /// Returns `false` if no failure is similar to one of `queries`. If that cannot be read in
    /// time, there may be one.
    async fn may_have_failed(&self, queries: &[String]) -> bool {
        let filter = || FailureFilter {
            similar_to: queries.to_vec(),
            ..FailureFilter::default()
        };
        // Only a complete page without a row proves that there is none. A read that ran out of
        // time, or failed, proves nothing.
        let is_absent = async || {
            let page = self.reader().list(filter(), PageRequest::newest(1)).await;
            page.is_ok_and(|page| page.complete && page.failures.is_empty())
        };
        // A flush makes the records in memory visible to a read.
        !(is_absent().await && self.flush().await.is_ok() && is_absent().await)
    }

    /// Returns the counters. Takes no lock and wakes no thread.
    ///
    /// ```
    /// # use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
    /// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    /// let stats = logger.stats();
    /// assert_eq!(stats.received, stats.persisted + stats.dropped.total() + stats.buffered);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// Returns `Ok` if the logger runs, and has written the records that it accepted ten seconds
    /// ago. Takes no lock that another thread holds for long.
    ///
    /// # Errors
    ///
    /// The fault.
    ///
    /// | fault | meaning |
    /// | --- | --- |
    /// | [`Disabled`](Unhealthy::Disabled) | the settings turn the logger off |
    /// | [`Unavailable`](Unhealthy::Unavailable) | restarts keep failing, or the settings are invalid |
    /// | [`Stale`](Unhealthy::Stale) | nothing was committed for ten seconds and three intervals although records wait |
    /// | [`AttemptsRefused`](Unhealthy::AttemptsRefused) | records are committed, and counts of attempts are not |
    /// | [`Closed`](Unhealthy::Closed) | a shutdown has begun |
    pub fn health(&self) -> Result<(), Unhealthy> {
        self.inner.shared.health()
    }

    /// Returns the time since the event loop of the actor had a turn last; it has one each second.
    /// `None`: the logger is disabled, or has ended. A blocked event loop says nothing of the
    /// database: see [`health`](Self::health).
    pub fn heartbeat_age(&self) -> Option<Duration> {
        self.inner.shared.beat_age()
    }

    /// Returns `true` if the buffer has room for a record now.
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
        // Only the first call sets the deadline. Every call waits for the one result.
        self.inner.close(shared.config.shutdown_timeout);
        tokio::select! {
            biased;
            result = shared.result() => result,
            () = Delay::new(shared.config.shutdown_timeout + REPORT_TIMEOUT) => {
                // Something else blocks the thread of the actor, or it was not started.
                finish(shared);
                shared.result().await
            }
        }
    }
}

impl fmt::Debug for LoggerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn new(
        shared: Arc<Shared>,
        control: Addr<Control>,
        addr: Arc<OnceLock<Addr<FailureLogger>>>,
    ) -> Self {
        Self {
            shared,
            control,
            addr,
            closed_addr: closed_address(),
            thread: None,
        }
    }

    /// Begins a shutdown with a deadline after `timeout`, unless one has begun.
    fn close(&self, timeout: Duration) {
        self.shared.prepare_close();
        self.shared.close(Instant::now() + timeout);
        self.control.do_send(Shutdown);
    }
}

/// Returns an address without an actor.
fn closed_address<A: actix::Actor>() -> Addr<A> {
    Addr::new(mailbox(1).0)
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let thread = thread.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.close(DRAIN_ON_DROP);
        // The logger's own thread must not wait for itself.
        if thread.id != thread::current().id() {
            // Without this wait, a program whose `main` returns would end before its last records
            // are committed.
            let _ = thread.ended.recv_timeout(DRAIN_ON_DROP + REPORT_TIMEOUT);
        }
    }
}
