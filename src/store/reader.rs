//! The few threads on which queries run, and the connections that read.
//!
//! Readers draw on the pool of the store while it is open. Without one they open connections of their own: beside a
//! logger of another process, after the logger has ended, and while its store is reopened.

use std::fmt;
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use diesel::connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _};
use diesel::prelude::*;
use scheduled_thread_pool::ScheduledThreadPool;
use tokio::sync::oneshot;

use super::file::{DatabaseFile, Identity, with_suffix};
use super::pool::{Checkout, NoConnection, Purpose, Slot};
use super::sqlite::classify;
use crate::error::{ReadError, StoreError};
use crate::report::{contains, texts_are_nearly_the_same};

/// Queries that run at the same time; the others wait. More of them in a pool that has room for more.
const THREADS: usize = 2;
/// Connections of a pool that are not for readers: the writer's, and one for checkpoints.
const NOT_FOR_READERS: usize = 2;
/// Queries that run or wait at most.
const MAX_QUERIES: usize = 64;
/// How soon to try again where a writer holds a lock: only in databases in memory.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Where a database is, and how it is read. Cheap to clone: clones share them.
#[derive(Clone)]
pub(crate) struct ReadPool {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None`: there is no database.
    source: Option<Source>,
    idle: Mutex<Vec<OwnConnection>>,
    /// Started with the first query.
    threads: OnceLock<ScheduledThreadPool>,
    queries: AtomicUsize,
}

/// A database to be read.
pub(crate) struct Source {
    url: String,
    /// `None`: the database lives in memory.
    file: Option<DatabaseFile>,
    /// Where the connections of the store are while it is open. `None`: another process has the store.
    slot: Option<Arc<Slot>>,
    threads: usize,
}

impl Source {
    /// The file at `path`, which is not created if it is missing.
    pub(crate) fn file(path: &Path) -> Self {
        let file = DatabaseFile::new(path);
        Self { url: file.read_only_url(), file: Some(file), slot: None, threads: THREADS }
    }

    /// The database in memory that a logger of this process holds.
    pub(crate) fn memory(url: &str) -> Self {
        Self { url: url.into(), file: None, slot: None, threads: THREADS }
    }

    /// The same, of a logger of this process with a pool of so many connections.
    pub(super) fn of_store(self, slot: &Arc<Slot>, pool_size: u32) -> Self {
        let threads = THREADS.max((pool_size as usize).saturating_sub(NOT_FOR_READERS));
        Self { slot: Some(Arc::clone(slot)), threads, ..self }
    }

    fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(DatabaseFile::path)
    }

    /// Which file has the name now; `None` in memory.
    fn identity(&self) -> Result<Option<Identity>, ReadError> {
        let Some(file) = &self.file else { return Ok(None) };
        match file.identity() {
            Ok(Some(identity)) => Ok(Some(identity)),
            Ok(None) => Err(self.inaccessible("there is no such file".into())),
            Err(error) => Err(self.inaccessible(error.to_string())),
        }
    }

    /// Returns the file as it is now. `None`: it has a journal, without which it is not complete.
    fn frozen(&self) -> Option<Frozen> {
        let path = self.path()?;
        let has_journal = std::fs::metadata(with_suffix(path, "-wal")).is_ok_and(|journal| journal.len() > 0);
        let file = std::fs::metadata(path).ok().filter(|_| !has_journal)?;
        Some(Frozen { bytes: file.len(), modified: file.modified().ok() })
    }

    /// Opens the file. One that cannot be written is read without its locks, if it is complete.
    fn open(&self) -> Result<(SqliteConnection, Option<Frozen>), ReadError> {
        let open = |url: &str| {
            let mut conn = SqliteConnection::establish(url).map_err(|error| error.to_string())?;
            // The file is looked at with the first statement that needs it.
            match conn.batch_execute("SELECT 1 FROM sqlite_schema LIMIT 1").map_err(|error| error.to_string()) {
                Err(cause) if is_read_only(&cause) => Err(cause),
                // Any other error is one of the query, too.
                Ok(()) | Err(_) => Ok(conn),
            }
        };
        let cause = match open(&self.url) {
            Ok(conn) => return Ok((conn, None)),
            Err(cause) => cause,
        };
        let Some(file) = self.file.as_ref().filter(|_| is_read_only(&cause)) else {
            return Err(self.inaccessible(cause));
        };
        let cure = "read it as its owner, from a backup, or through the service (--url)";
        let Some(frozen) = self.frozen() else {
            let cause = "its journal cannot be read, because its folder cannot be written";
            return Err(self.inaccessible(format!("{cause}; {cure}")));
        };
        let conn = open(&file.immutable_url()).map_err(|cause| self.inaccessible(format!("{cause}; {cure}")))?;
        Ok((conn, Some(frozen)))
    }

    fn inaccessible(&self, cause: String) -> ReadError {
        ReadError::Inaccessible { path: self.path().map(Path::to_owned).unwrap_or_default(), cause }
    }
}

/// A connection for one query.
enum ReadConnection {
    Pooled(Checkout),
    Own(OwnConnection),
}

/// A connection of the reader's own, and which file it leads to.
struct OwnConnection {
    conn: SqliteConnection,
    identity: Option<Identity>,
    /// Opened without locks, because the file cannot be written: what it was like then.
    frozen: Option<Frozen>,
}

/// A file that cannot be written here, and has no journal. SQLite reads it without locks: if it changes meanwhile, what was
/// read is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frozen {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// When a query must be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        let now = Instant::now();
        // Beyond what can be told, a year is as good.
        Self(now.checked_add(patience).unwrap_or(now + Duration::from_secs(365 * 24 * 60 * 60)))
    }

    /// The same, or `time` from now if that is earlier.
    pub(super) fn at_most(self, time: Duration) -> Self {
        Self(self.0.min(Self::after(time).0))
    }

    pub(crate) fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn check(self) -> Result<(), ReadError> {
        if self.passed() { Err(ReadError::TimedOut) } else { Ok(()) }
    }
}

impl ReadPool {
    pub(crate) fn new(source: Option<Source>) -> Self {
        let inner = Inner { source, idle: Mutex::default(), threads: OnceLock::new(), queries: AtomicUsize::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// Closes connections that nobody uses: SQLite tidies up after the last one, if it may write.
    pub(crate) fn close_idle(&self) {
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Where the database is, if it is a file.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.inner.source.as_ref()?.path()
    }

    /// Runs `query` on a thread that may block, within a transaction: it sees one state of the
    /// database. It must look at its deadline whenever it has read some rows.
    pub(crate) async fn run<T, Q>(&self, timeout: Duration, query: Q) -> Result<T, ReadError>
    where
        T: Send + 'static,
        Q: FnMut(&mut SqliteConnection, Deadline) -> Result<T, ReadError> + Send + 'static,
    {
        let deadline = Deadline::after(timeout);
        let ticket = Ticket::take(&self.inner)?;
        let (reply, answer) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        self.inner.threads().execute(move || {
            // Nobody waits any more for a query whose future was dropped.
            if reply.is_closed() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| inner.run(deadline, query)));
            drop(ticket);
            let _ = reply.send(result.unwrap_or(Err(panicked())));
        });
        answer.await.unwrap_or(Err(panicked()))
    }
}

impl fmt::Debug for ReadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadPool").field("url", &self.inner.source.as_ref().map(|source| &source.url)).finish()
    }
}

impl Inner {
    fn threads(&self) -> &ScheduledThreadPool {
        self.threads.get_or_init(|| {
            let threads = self.source.as_ref().map_or(THREADS, |source| source.threads);
            ScheduledThreadPool::builder().num_threads(threads).thread_name_pattern("failure-logger-read-{}").build()
        })
    }

    fn run<T>(
        &self,
        deadline: Deadline,
        mut query: impl FnMut(&mut SqliteConnection, Deadline) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            deadline.check()?;
            let mut connection = self.connect(deadline)?;
            let (conn, turn) = match &mut connection {
                ReadConnection::Pooled(connection) => {
                    let turn = connection.deadline();
                    (connection.deref_mut(), turn)
                }
                ReadConnection::Own(OwnConnection { conn, .. }) => (conn, deadline),
            };
            let conn: &mut SqliteConnection = conn;
            let result = catch_unwind(AssertUnwindSafe(|| conn.transaction(|conn| query(conn, turn))));
            let result = result.unwrap_or_else(|_| {
                // Of no use to others within a transaction.
                let _ = AnsiTransactionManager::rollback_transaction(conn);
                Err(panicked())
            });
            match result {
                Err(ReadError::Store(StoreError::Retry(cause))) if cause.contains("locked") && !deadline.passed() => {
                    drop(connection);
                    std::thread::sleep(AGAIN_AFTER);
                }
                // A connection that only reads cannot update them.
                Err(ReadError::Store(StoreError::Reopen(cause))) if cause.starts_with("no such ") => {
                    let cause =
                        format!("{cause}; if an earlier version wrote it, start the logger on it once to update it");
                    return Err(self.source.as_ref().map_or(ReadError::Disabled, |source| source.inaccessible(cause)));
                }
                Err(error) => return Err(error),
                done => {
                    if let ReadConnection::Own(OwnConnection { frozen: Some(frozen), .. }) = connection {
                        let source = self.source.as_ref().ok_or(ReadError::Disabled)?;
                        let changed = || source.inaccessible("the file changed while it was read; try again".into());
                        return if source.frozen() == Some(frozen) { done } else { Err(changed()) };
                    }
                    if let ReadConnection::Own(connection) = connection {
                        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                    }
                    return done;
                }
            }
        }
    }

    /// A connection to the file that has the name now.
    fn connect(&self, deadline: Deadline) -> Result<ReadConnection, ReadError> {
        let source = self.source.as_ref().ok_or(ReadError::Disabled)?;
        while let Some(connections) = source.slot.as_ref().and_then(|slot| slot.connections(deadline)) {
            let now = source.identity()?;
            if !connections.leads_to(now) {
                // The store is about to be reopened.
                break;
            }
            // They would be more connections than the pool has.
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            match connections.get(Purpose::Read, deadline) {
                // It may have been opened just now.
                Ok(_) if source.identity()? != now => return Err(replaced()),
                Ok(connection) => return Ok(ReadConnection::Pooled(connection)),
                Err(NoConnection::Closed) => deadline.check()?,
                Err(NoConnection::Busy(_)) => return Err(ReadError::Busy),
                Err(NoConnection::Failed(error)) => return Err(error.into()),
            }
        }
        self.own_connection(source).map(ReadConnection::Own)
    }

    fn own_connection(&self, source: &Source) -> Result<OwnConnection, ReadError> {
        let now = source.identity()?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| connection.identity == now);
        if let Some(connection) = idle.pop() {
            return Ok(connection);
        }
        drop(idle);
        let (mut conn, frozen) = source.open()?;
        conn.batch_execute(
            "PRAGMA query_only = ON; PRAGMA busy_timeout = 1000; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000;",
        )?;
        teach(&mut conn)?;
        // Which of the two was opened is not known: the next call begins with this name's file.
        if source.identity()? != now {
            return Err(replaced());
        }
        Ok(OwnConnection { conn, identity: now, frozen })
    }
}

/// What SQLite says of a file or folder that cannot be written, or not even be read.
fn is_read_only(cause: &str) -> bool {
    cause.contains("readonly") || cause.contains("unable to open")
}

fn replaced() -> ReadError {
    ReadError::Store(StoreError::Reopen("the database file was replaced".into()))
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// Whether two questions are nearly the same.
    #[sql_name = "memory_retrieval_nearly_the_same"]
    fn nearly_the_same(one: diesel::sql_types::Text, other: diesel::sql_types::Text) -> diesel::sql_types::Bool;

    /// Whether a text contains a part, which is folded.
    #[sql_name = "memory_retrieval_contains"]
    fn text_contains(text: diesel::sql_types::Text, part: diesel::sql_types::Text) -> diesel::sql_types::Bool;
}

/// Adds to SQL what questions ask with.
pub(super) fn teach(conn: &mut SqliteConnection) -> QueryResult<()> {
    nearly_the_same_utils::register_impl(conn, |one: String, other: String| texts_are_nearly_the_same(&one, &other))?;
    text_contains_utils::register_impl(conn, |text: String, part: String| contains(&text, &part))
}

/// Returns `true` if SQL has what queries need.
pub(super) fn is_taught(conn: &mut SqliteConnection) -> bool {
    diesel::select((nearly_the_same("", ""), text_contains("", ""))).get_result::<(bool, bool)>(conn).is_ok()
}

fn panicked() -> ReadError {
    ReadError::Store(StoreError::GiveUp("the query panicked".into()))
}

/// One of the queries that may run or wait.
struct Ticket(Arc<Inner>);

impl Ticket {
    fn take(inner: &Arc<Inner>) -> Result<Self, ReadError> {
        let queries = inner.queries.fetch_add(1, Ordering::AcqRel);
        let ticket = Self(Arc::clone(inner));
        if queries < MAX_QUERIES { Ok(ticket) } else { Err(ReadError::Busy) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.queries.fetch_sub(1, Ordering::AcqRel);
    }
}

impl From<diesel::result::Error> for ReadError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(classify(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use futures_executor::block_on;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn file(statements: &str) -> (tempfile::TempDir, ReadPool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        SqliteConnection::establish(path.to_str().unwrap()).unwrap().batch_execute(statements).unwrap();
        (folder, ReadPool::new(Some(Source::file(&path))))
    }

    fn count(pool: &ReadPool) -> Result<i64, ReadError> {
        block_on(pool.run(LONG, |conn, _| {
            Ok(diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>("(SELECT count(*) FROM t)"))
                .get_result(conn)?)
        }))
    }

    #[test]
    fn a_query_cannot_write() {
        let (_folder, pool) = file("CREATE TABLE t (x)");
        let refused = block_on(pool.run(LONG, |conn, _| Ok(conn.batch_execute("INSERT INTO t VALUES (1)")?)));
        assert!(refused.is_err());
        assert_eq!(count(&pool), Ok(0));
    }

    #[test]
    fn a_query_that_panics_costs_its_answer_and_nothing_else() {
        let (_folder, pool) = file("CREATE TABLE t (x)");
        for _ in 0..2 * THREADS {
            let lost: Result<(), _> = block_on(pool.run(LONG, |_, _| panic!("injected")));
            assert!(lost.is_err());
        }
        assert_eq!(count(&pool), Ok(0));
        assert_eq!(pool.inner.queries.load(Ordering::Acquire), 0);
    }

    #[test]
    fn more_queries_than_may_wait_are_refused_at_once() {
        let (_folder, pool) = file("CREATE TABLE t (x)");
        let (gate, closed) = channel::<()>();
        let closed = Arc::new(Mutex::new(closed));
        let waiting: Vec<_> = (0..MAX_QUERIES)
            .map(|_| {
                let closed = Arc::clone(&closed);
                let mut query = Box::pin(pool.run(LONG, move |_, _| {
                    let _ = closed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                }));
                // Begun, and not waited for.
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                assert!(query.as_mut().poll(&mut cx).is_pending());
                query
            })
            .collect();
        assert_eq!(count(&pool), Err(ReadError::Busy));
        drop(gate);
        for query in waiting {
            block_on(query).unwrap();
        }
        assert_eq!(count(&pool), Ok(0));
    }

    #[test]
    fn a_file_that_is_replaced_is_read_anew() {
        let (folder, pool) = file("CREATE TABLE t (x)");
        assert_eq!(count(&pool), Ok(0));
        let (other, _) = file("CREATE TABLE t (x); INSERT INTO t VALUES (1)");
        std::fs::rename(other.path().join("x.db"), folder.path().join("x.db")).unwrap();
        assert_eq!(count(&pool), Ok(1));
    }
}
