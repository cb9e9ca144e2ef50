//! The connections that read.
//!
//! Readers draw on the pool of the store while it is open. Without one they open connections of
//! their own: beside a logger of another process, after the logger has ended, and while its store
//! is reopened.
//!
//! # Why readers wait while a store closes
//!
//! SQLite completes the file and removes the journal when the last connection to it is closed. A
//! reader that opened one in that moment would keep the journal alive, and the file without it
//! would lack the last commits. While the store closes, readers therefore wait for its end
//! ([`Slot`]).
//!
//! # A file that cannot be written
//!
//! SQLite needs to write the shared memory of a WAL even to read. A file in a folder that cannot be
//! written is therefore opened as immutable, without locks, and only if it has no journal. Size and
//! time of the file are compared before and after the read: if they differ, a writer was at work,
//! and the result is an error.

use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use diesel::connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _};
use diesel::prelude::*;

use crate::error::{ReadError, StoreError};
use crate::store::reads::{Deadline, Lane, Read, ReadSource, panicked};
use crate::store::sqlite::file::{DatabaseFile, Identity, with_suffix};
use crate::store::sqlite::functions;
use crate::store::sqlite::pool::{Checkout, NoConnection, Purpose, Slot};

/// Threads of a pool of few connections; one that has room for more gets more.
const THREADS: usize = 2;
/// Threads of heavy queries. A ranking, which takes long, is one at a time.
const HEAVY_THREADS: usize = 2;
/// Connections of a pool from which on heavy queries may take two of them, and leave two to quick
/// ones.
const ENOUGH_CONNECTIONS: u32 = 6;
/// Connections of a pool that are not for readers: the writer's, and one for checkpoints.
const NOT_FOR_READERS: usize = 2;
/// Interval of retries while a writer holds a lock: only in databases in memory.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// A database that is read beside its writer, with connections of the reader's own where there is
/// no pool.
pub(crate) struct SqliteReads {
    source: Source,
    idle: Mutex<Vec<OwnConnection>>,
}

/// A database to be read.
pub(crate) struct Source {
    url: String,
    /// `None`: the database lives in memory.
    file: Option<DatabaseFile>,
    /// The slot with the connections of the open store. `None`: another process has the store.
    slot: Option<Arc<Slot>>,
    threads: usize,
    heavy_threads: usize,
}

impl Source {
    /// Returns the file at `path`, which is not created if it is missing.
    pub(crate) fn file(path: &Path) -> Self {
        let file = DatabaseFile::new(path);
        Self {
            url: file.read_only_url(),
            file: Some(file),
            slot: None,
            threads: THREADS,
            heavy_threads: HEAVY_THREADS,
        }
    }

    /// Returns the database in memory that a logger of this process holds.
    pub(crate) fn memory(url: &str) -> Self {
        Self {
            url: url.into(),
            file: None,
            slot: None,
            threads: THREADS,
            heavy_threads: HEAVY_THREADS,
        }
    }

    /// Returns the same database, of a logger of this process with a pool of so many connections.
    pub(crate) fn of_store(self, slot: &Arc<Slot>, pool_size: u32) -> Self {
        let threads = THREADS.max((pool_size as usize).saturating_sub(NOT_FOR_READERS));
        let heavy_threads = if pool_size >= ENOUGH_CONNECTIONS {
            HEAVY_THREADS
        } else {
            1
        };
        Self {
            slot: Some(Arc::clone(slot)),
            threads,
            heavy_threads,
            ..self
        }
    }

    fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(DatabaseFile::path)
    }

    /// Returns the identity of the file with this name. `None`: in memory.
    fn identity(&self) -> Result<Option<Identity>, ReadError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        match file.identity() {
            Ok(Some(identity)) => Ok(Some(identity)),
            Ok(None) => Err(self.inaccessible("there is no such file".into())),
            Err(error) => Err(self.inaccessible(error.to_string())),
        }
    }

    /// Returns the file as it is now. `None`: it has a journal, without which it is not complete.
    fn frozen(&self) -> Option<Frozen> {
        let path = self.path()?;
        let has_journal =
            std::fs::metadata(with_suffix(path, "-wal")).is_ok_and(|journal| journal.len() > 0);
        let file = std::fs::metadata(path).ok().filter(|_| !has_journal)?;
        Some(Frozen {
            bytes: file.len(),
            modified: file.modified().ok(),
        })
    }

    /// Opens the file. One that cannot be written is read without its locks, if it is complete.
    fn open(&self) -> Result<(SqliteConnection, Option<Frozen>), ReadError> {
        let open = |url: &str| {
            let mut conn = SqliteConnection::establish(url).map_err(|error| error.to_string())?;
            // The file is looked at with the first statement that needs it.
            match conn
                .batch_execute("SELECT 1 FROM sqlite_schema LIMIT 1")
                .map_err(|error| error.to_string())
            {
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
        let conn = open(&file.immutable_url())
            .map_err(|cause| self.inaccessible(format!("{cause}; {cure}")))?;
        Ok((conn, Some(frozen)))
    }

    fn inaccessible(&self, cause: String) -> ReadError {
        ReadError::Inaccessible {
            path: self.path().map(Path::to_owned).unwrap_or_default(),
            cause,
        }
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

/// A file that cannot be written here, and has no journal. SQLite reads it without locks: if it
/// changes meanwhile, what was read is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frozen {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl SqliteReads {
    /// Returns reads of `source`. Nothing is opened before the first one.
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            idle: Mutex::default(),
        }
    }

    /// Runs `query` within a transaction, until `deadline`.
    pub(crate) fn run<T>(
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
            let result = catch_unwind(AssertUnwindSafe(|| {
                conn.transaction(|conn| query(conn, turn))
            }));
            let result = result.unwrap_or_else(|_| {
                // The connection is rolled back, because the next reader would find itself within
                // the transaction of this one.
                let _ = AnsiTransactionManager::rollback_transaction(conn);
                Err(panicked())
            });
            match result {
                Err(ReadError::Store(StoreError::Retry(cause)))
                    if cause.contains("locked") && !deadline.passed() =>
                {
                    drop(connection);
                    std::thread::sleep(AGAIN_AFTER);
                }
                // A connection that only reads cannot update them.
                Err(ReadError::Store(StoreError::Reopen(cause)))
                    if cause.starts_with("no such ") =>
                {
                    let cause = format!(
                        "{cause}; if an earlier version wrote it, start the logger on it once to \
                         update it"
                    );
                    return Err(self.source.inaccessible(cause));
                }
                Err(error) => return Err(error),
                done => {
                    if let ReadConnection::Own(OwnConnection {
                        frozen: Some(frozen),
                        ..
                    }) = connection
                    {
                        let changed = || {
                            self.source.inaccessible(
                                "the file changed while it was read; try again".into(),
                            )
                        };
                        return if self.source.frozen() == Some(frozen) {
                            done
                        } else {
                            Err(changed())
                        };
                    }
                    if let ReadConnection::Own(connection) = connection {
                        self.idle
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(connection);
                    }
                    return done;
                }
            }
        }
    }

    /// Returns a connection to the file that has the name now.
    fn connect(&self, deadline: Deadline) -> Result<ReadConnection, ReadError> {
        let source = &self.source;
        while let Some(connections) = source
            .slot
            .as_ref()
            .and_then(|slot| slot.connections(deadline))
        {
            let now = source.identity()?;
            if !connections.leads_to(now) {
                // The store is about to be reopened.
                break;
            }
            // Connections of the reader's own are closed while there is a pool: together they would
            // be more than `pool_size`.
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
            match connections.get(Purpose::Read, deadline) {
                // Checked once more, because the pool may have opened the connection just now,
                // under a name that leads to another file since.
                Ok(_) if source.identity()? != now => return Err(replaced()),
                Ok(connection) => return Ok(ReadConnection::Pooled(connection)),
                Err(NoConnection::Closed) => deadline.check()?,
                Err(NoConnection::Busy(_)) => return Err(ReadError::Busy),
                Err(NoConnection::Failed(error)) => return Err(error.into()),
            }
        }
        self.own_connection(source).map(ReadConnection::Own)
    }

    /// Returns a connection of the reader's own, an idle one if it leads to the file of the name.
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
            "PRAGMA query_only = ON; PRAGMA busy_timeout = 1000; PRAGMA temp_store = MEMORY; \
             PRAGMA cache_size = -4000;",
        )?;
        functions::register(&mut conn)?;
        // Either of the two files may have been opened: the next call begins with the one of this
        // name.
        if source.identity()? != now {
            return Err(replaced());
        }
        Ok(OwnConnection {
            conn,
            identity: now,
            frozen,
        })
    }
}

impl ReadSource for SqliteReads {
    fn snapshot(&self, deadline: Deadline, read: &mut Read<'_>) -> Result<(), ReadError> {
        self.run(deadline, |conn, turn| read(conn, turn))
    }

    fn threads(&self, lane: Lane) -> usize {
        match lane {
            Lane::Quick => self.source.threads,
            Lane::Heavy => self.source.heavy_threads,
        }
    }

    fn close_idle(&self) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn path(&self) -> Option<&Path> {
        self.source.path()
    }
}

/// Returns `true` for SQLite's messages about a file or folder that cannot be written or read.
fn is_read_only(cause: &str) -> bool {
    cause.contains("readonly") || cause.contains("unable to open")
}

/// Returns the error of a read that met a file in the moment of its replacement. The next read
/// finds the new one.
fn replaced() -> ReadError {
    ReadError::Store(StoreError::Reopen("the database file was replaced".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(statements: &str) -> (tempfile::TempDir, SqliteReads) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        SqliteConnection::establish(path.to_str().unwrap())
            .unwrap()
            .batch_execute(statements)
            .unwrap();
        (folder, SqliteReads::new(Source::file(&path)))
    }

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn count(reads: &SqliteReads) -> Result<i64, ReadError> {
        reads.run(deadline(), |conn, _| {
            Ok(
                diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(
                    "(SELECT count(*) FROM t)",
                ))
                .get_result(conn)?,
            )
        })
    }

    #[test]
    fn a_query_cannot_write() {
        let (_folder, reads) = file("CREATE TABLE t (x)");
        let refused = reads.run(deadline(), |conn, _| {
            Ok(conn.batch_execute("INSERT INTO t VALUES (1)")?)
        });
        assert!(refused.is_err());
        assert_eq!(count(&reads), Ok(0));
    }

    #[test]
    fn a_query_that_panics_leaves_its_connection_usable() {
        let (_folder, reads) = file("CREATE TABLE t (x)");
        let lost: Result<(), _> = reads.run(deadline(), |_, _| panic!("injected"));
        assert!(lost.is_err());
        assert_eq!(count(&reads), Ok(0));
    }

    #[test]
    fn a_file_that_is_replaced_is_read_anew() {
        let (folder, reads) = file("CREATE TABLE t (x)");
        assert_eq!(count(&reads), Ok(0));
        let (other, _) = file("CREATE TABLE t (x); INSERT INTO t VALUES (1)");
        std::fs::rename(other.path().join("x.db"), folder.path().join("x.db")).unwrap();
        assert_eq!(count(&reads), Ok(1));
    }
}
