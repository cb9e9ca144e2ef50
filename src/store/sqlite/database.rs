//! The SQLite store: opens, writes and purges a database.
//!
//! # Changes of the file by other processes
//!
//! Other processes delete, replace, restore and damage files. A connection to a file that was
//! deleted or replaced still works, but its commits are lost when the process ends. The store
//! therefore compares the identity of the file with the one it opened:
//!
//! - before a transaction, so that a job ends early;
//! - after its statements and before its commit, in [`transact`], so that the store reports no
//!   commit that the file with the name lacks. The store cannot notice a change in the microseconds
//!   between this check and the commit.
//!
//! The store also compares the identity of the journal, because commits to a journal that was
//! removed would go to a file that no other process reads.
//!
//! # Locks
//!
//! The lock file ([`DatabaseFile::lock`]) keeps processes apart while one opens, migrates, restores
//! or quarantines. SQLite's own write lock keeps transactions apart. Each transaction takes it at
//! its beginning: a transaction that reads first and writes later fails at once, without the busy
//! timeout, if another process wrote in between.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Integer};
use scheduled_thread_pool::ScheduledThreadPool;
use uuid::Uuid;

use crate::error::{MigrationError, StartError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::StatusChange;
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
use crate::retention::StoredRetention;
use crate::rollup::resolution::Resolution;
use crate::rollup::{AttemptBatch, Owner};
use crate::store::backend::{Backend, Quarantine};
use crate::store::gate::CommitGate;
use crate::store::reads::{Deadline, Reads};
use crate::store::row::Row;
use crate::store::sqlite::application::{self, ApplicationPool};
use crate::store::sqlite::checkpoint::{self, Checkpointer};
use crate::store::sqlite::errors::{NOT_A_DATABASE, classify, classify_text};
use crate::store::sqlite::file::{DatabaseFile, Identity};
use crate::store::sqlite::migrate::{self, Versions};
use crate::store::sqlite::pool::{
    self, BUSY_TIMEOUT, Checkout, Connections, Owner as PoolOwner, Pool, Purpose, Slot,
    WRITER_TIMEOUT,
};
use crate::store::sqlite::reader::{Source, SqliteReads};
#[cfg(feature = "program")]
use crate::store::sqlite::schema::memory_retrieval_failures::dsl;
use crate::store::sqlite::{attempts, delete, drops, models, retention, statuses, uncounted};
use crate::store::write::{Erased, Inserted, Progress, Size, Store};

/// Interval of retries while other processes open the same new database.
const REOPEN_INTERVAL: Duration = Duration::from_millis(10);
/// Longest time for which closing a store waits for reads with a connection.
const READERS_TIMEOUT: Duration = Duration::from_millis(500);
/// The oldest version without the WAL corruption bug (sqlite.org/wal.html, "WAL-reset bug").
const SAFE_SQLITE: (u32, u32, u32) = (3, 51, 3);
/// Pages given back to the file system after each chunk of a purge: 2 MiB of 4 KiB pages, so that a
/// flush waits for some milliseconds at most.
const VACUUM_PAGES: i64 = 512;

/// A database that can be opened, and reopened when the file behind it has changed.
pub(crate) struct Database {
    /// `None`: the database is in memory, at `memory_url`.
    file: Option<DatabaseFile>,
    memory_url: String,
    /// The pool of an application. `None`: each store has one of its own.
    application: Option<ApplicationPool>,
    pool_size: u32,
    /// `false`: the schema is used as it is.
    migrates: bool,
    /// A connection that is never closed, because SQLite deletes a database in memory with its last
    /// connection. `None` for a file.
    keep_alive: Mutex<Option<SqliteConnection>>,
    known: Arc<Known>,
    /// The slot in which readers find the connections of the store.
    slot: Arc<Slot>,
}

/// Facts about the file behind a database. The store keeps them up to date.
#[derive(Default)]
struct Known {
    /// The name, with the file that it led to at the last open.
    name: Mutex<Option<DatabaseFile>>,
    /// The file that was opened last, or could not be opened because it is damaged.
    file: Mutex<Option<Identity>>,
    /// Its journal, once there is one.
    journal: Mutex<Option<Identity>>,
    /// `true` if another application has tables in the file. `None` until its schema was read.
    has_foreign_tables: Mutex<Option<bool>>,
}

impl Database {
    /// Returns the database in the file at `path`. Nothing is opened before [`Backend::open`].
    pub(crate) fn file(path: &Path, pool_size: u32) -> Self {
        Self::with(Some(DatabaseFile::new(path)), String::new(), pool_size)
    }

    /// Returns a database in memory that ends with this value.
    pub(crate) fn in_memory() -> Self {
        // Shared, because otherwise each connection would have its own database.
        Self::with(
            None,
            format!(
                "file:failure-logger-{}?mode=memory&cache=shared",
                Uuid::new_v4()
            ),
            1,
        )
    }

    /// Returns the database behind the pool of an application.
    pub(crate) fn of_application(pool: Pool) -> Result<Self, StartError> {
        let application = ApplicationPool::new(pool)?;
        let database = Self::with(
            Some(application.file.clone()),
            String::new(),
            application.pool.max_size(),
        );
        Ok(Self {
            application: Some(application),
            ..database
        })
    }

    /// Returns a database with either a file or the URL of one in memory.
    fn with(file: Option<DatabaseFile>, memory_url: String, pool_size: u32) -> Self {
        Self {
            file,
            memory_url,
            application: None,
            pool_size,
            migrates: true,
            keep_alive: Mutex::default(),
            known: Arc::default(),
            slot: Arc::default(),
        }
    }

    /// Sets if an open may change the schema. An open that may not change it fails unless the
    /// schema is up to date. A database in memory always gets its schema, because it begins without
    /// one.
    pub(crate) fn migrate(mut self, migrate: bool) -> Self {
        self.migrates = migrate || self.file.is_none() && self.application.is_none();
        self
    }

    /// Returns the maximum number of connections.
    pub(crate) fn pool_size(&self) -> u32 {
        self.pool_size
    }

    /// Opens the file with a pool of the logger's own. The order of its steps keeps two processes
    /// apart, and the old file of a name from the new one:
    ///
    /// 1. The function renames the journal of a file that was deleted or replaced, before SQLite
    ///    finds that journal beside the new file.
    /// 2. It holds the lock file, so that no other process creates or migrates at the same time.
    /// 3. One connection creates or migrates the file, and empties its journal.
    /// 4. The pool opens its connections when they are needed.
    fn open_own(&self) -> Result<SqliteStore, StartError> {
        let Some(file) = &self.file else {
            let conn = self.connect(&self.memory_url)?;
            *lock(&self.keep_alive) = Some(conn);
            // A database in memory has no journal. `keep_alive` holds its connection.
            return Ok(self.store(self.memory_url.clone(), None)?);
        };
        self.move_orphaned_journal()?;
        let file = file.resolved();
        file.check_type()?;
        if !self.migrates
            && file
                .identity()
                .map_err(|error| self.inaccessible(error))?
                .is_none()
        {
            return Err(StartError::SchemaTooOld {
                path: self.path(),
                found: Vec::new(),
                needed: migrate::needed(),
            });
        }
        *lock(&self.known.name) = Some(file.clone());
        let _lock = file.lock()?;
        // Opened without the pool, because the pool hides the cause if it cannot connect. This
        // connection is closed before the pool opens its first one, so that at most `pool_size` are
        // open.
        let (mut conn, identity) = self.first_connection(&file)?;
        // A checkpoint that waits for a reader would keep other processes from writing.
        let _ = conn.batch_execute("PRAGMA busy_timeout = 0");
        checkpoint::empty(&mut conn);
        drop(conn);
        let url = file.url().map_err(|error| self.inaccessible(error))?;
        Ok(self.store(url, Some((file, identity)))?)
    }

    /// Opens the file with the application's pool. Brings the schema up to date, and changes
    /// nothing else.
    fn open_pool(&self, application: &ApplicationPool) -> Result<SqliteStore, StartError> {
        let ApplicationPool {
            pool,
            file,
            identity,
            is_customized,
        } = application;
        *lock(&self.known.name) = Some(file.clone());
        *lock(&self.known.file) = Some(*identity);
        *lock(&self.known.journal) = None;
        let _lock = file.lock()?;
        let connections = Connections::new(pool.clone(), PoolOwner::Application, Some(*identity));
        let mut conn = connections
            .get(Purpose::Write, Deadline::after(WRITER_TIMEOUT))
            .map_err(StoreError::from)?;
        // The check comes after `get`, so that a connection has the file open.
        application.check_identity()?;
        self.set_up(&mut conn)?;
        let has_wal = application::has_wal(&mut conn).map_err(|error| classify(&error))?;
        drop(conn);
        let checkpointer =
            (*is_customized && has_wal).then(|| Checkpointer::start(Arc::clone(&connections)));
        let checkpointer = checkpointer
            .transpose()
            .map_err(|error| StoreError::Retry(error.to_string()))?;
        let file = OpenFile {
            file: Some(file.clone()),
            identity: Some(*identity),
            journal: if has_wal {
                Journal::OfApplication
            } else {
                Journal::None
            },
            known: Arc::clone(&self.known),
        };
        Ok(self.opened(connections, None, checkpointer, file))
    }

    /// Returns the open store, and lets readers use its connections.
    fn opened(
        &self,
        connections: Arc<Connections>,
        threads: Option<Arc<ScheduledThreadPool>>,
        checkpointer: Option<Checkpointer>,
        file: OpenFile,
    ) -> SqliteStore {
        self.slot.open(&connections);
        SqliteStore {
            connections,
            threads,
            checkpointer,
            file: Arc::new(file),
            slot: Arc::clone(&self.slot),
        }
    }

    fn store(
        &self,
        url: String,
        file: Option<(DatabaseFile, Identity)>,
    ) -> Result<SqliteStore, StoreError> {
        let (file, identity) = file.unzip();
        let threads = Arc::new(ScheduledThreadPool::new(1));
        let pool = pool::build(url, self.pool_size, Arc::clone(&threads))
            .map_err(|error| StoreError::Retry(error.to_string()))?;
        let connections = Connections::new(pool, PoolOwner::Logger, identity);
        let checkpointer = match &file {
            Some(_) => Some(
                Checkpointer::start(Arc::clone(&connections))
                    .map_err(|e| StoreError::Retry(e.to_string()))?,
            ),
            None => None,
        };
        let file = OpenFile {
            file,
            identity,
            journal: Journal::Own,
            known: Arc::clone(&self.known),
        };
        Ok(self.opened(connections, Some(threads), checkpointer, file))
    }

    /// Renames the journal of a file that was deleted or replaced while this process had it open.
    /// SQLite would otherwise apply this journal to the file that has the name now.
    fn move_orphaned_journal(&self) -> Result<(), StartError> {
        let (name, last_file) = (lock(&self.known.name).clone(), *lock(&self.known.file));
        let journal = lock(&self.known.journal).take();
        let (Some(name), Some(last_file), Some(journal)) = (name, last_file, journal) else {
            return Ok(());
        };
        let file_lock = name.lock()?;
        if name.identity().map_err(|error| self.inaccessible(error))? == Some(last_file) {
            return Ok(());
        }
        if let Some(moved) = name
            .move_journal(journal, &file_lock)
            .map_err(|error| self.inaccessible(error))?
        {
            tracing::warn!(journal = %moved.display(), "the database file was replaced or \
                deleted; renamed its journal");
        }
        Ok(())
    }

    /// Returns the first connection, and the identity of its file. If several processes open a new
    /// database at once, SQLite rejects some of them without a wait, because the switch to WAL
    /// needs exclusive access. This function therefore retries for [`BUSY_TIMEOUT`].
    fn first_connection(
        &self,
        file: &DatabaseFile,
    ) -> Result<(SqliteConnection, Identity), StartError> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            match self.connect_to(file) {
                Err(StartError::Store(StoreError::Retry(_))) if Instant::now() < deadline => {
                    std::thread::sleep(REOPEN_INTERVAL);
                }
                // A folder in which no journal can be created.
                Err(StartError::Store(StoreError::Retry(cause)))
                    if cause.contains("readonly") || cause.contains("unable to open") =>
                {
                    return Err(StartError::Inaccessible {
                        path: file.path().into(),
                        cause,
                    });
                }
                Err(StartError::Store(StoreError::Retry(cause))) => {
                    let remedy = match &*cause {
                        "database or disk is full" | "disk I/O error" => {
                            "; make sure that the disk works and has 1 MB of free space"
                        }
                        _ => "",
                    };
                    let text = format!("database_url = {}: {cause}{remedy}", file.path().display());
                    return Err(StartError::Store(StoreError::Retry(text)));
                }
                done => return done,
            }
        }
    }

    /// Connects to the file that has the name. Returns the connection and the identity of the file.
    fn connect_to(&self, file: &DatabaseFile) -> Result<(SqliteConnection, Identity), StartError> {
        let identity = || file.identity().map_err(StoreError::reopen);
        let replaced =
            || StoreError::Retry("the database file was replaced while it was opened".into());
        let before = identity()?;
        *lock(&self.known.file) = before;
        if before.is_some() {
            self.check_header(file)?;
        }
        let url = file.url().map_err(|error| self.inaccessible(error))?;
        let mut conn =
            SqliteConnection::establish(&url).map_err(|error| classify_text(&error.to_string()))?;
        // SQLite has created a missing file by now.
        let opened = identity()?.ok_or_else(replaced)?;
        if before.is_some_and(|before| before != opened) {
            return Err(replaced().into());
        }
        self.set_up(&mut conn)?;
        if identity()? != Some(opened) {
            return Err(replaced().into());
        }
        *lock(&self.known.file) = Some(opened);
        Ok((conn, opened))
    }

    /// Fails if the file is no database, even if the journal beside it contains one.
    fn check_header(&self, file: &DatabaseFile) -> Result<(), StartError> {
        let read = SqliteConnection::establish(&file.immutable_url())
            .map_err(|error| error.to_string())
            .and_then(|mut conn| {
                conn.batch_execute("PRAGMA user_version")
                    .map_err(|error| error.to_string())
            });
        match read {
            Err(cause) if cause.contains(NOT_A_DATABASE) => {
                Err(StartError::NotADatabase { path: self.path() })
            }
            // The connection with the journal reports every other error.
            _ => Ok(()),
        }
    }

    /// Connects to a database in memory and creates its schema.
    fn connect(&self, url: &str) -> Result<SqliteConnection, StartError> {
        let mut conn =
            SqliteConnection::establish(url).map_err(|error| classify_text(&error.to_string()))?;
        self.set_up(&mut conn)?;
        Ok(conn)
    }

    /// Returns the error of a file or folder that cannot be reached.
    fn inaccessible(&self, error: io::Error) -> StartError {
        StartError::Inaccessible {
            path: self.path(),
            cause: error.to_string(),
        }
    }

    fn path(&self) -> PathBuf {
        self.file
            .as_ref()
            .map(|file| file.path().to_owned())
            .unwrap_or_default()
    }

    /// Prepares a connection and brings the schema up to date. The order matters. The function
    /// recognises tables that are not the logger's before it writes. It sets `auto_vacuum` and the
    /// journal mode before the first table exists. Afterwards SQLite ignores `auto_vacuum`, and
    /// cannot change the journal mode in the transaction of a migration.
    fn set_up(&self, conn: &mut SqliteConnection) -> Result<(), StartError> {
        let path = || self.path();
        let unusable = |error: StoreError| match error {
            StoreError::Corrupt(cause) if cause.contains(NOT_A_DATABASE) => {
                StartError::NotADatabase { path: path() }
            }
            StoreError::Corrupt(cause) => StartError::Damaged {
                path: path(),
                cause,
            },
            other => StartError::Store(other),
        };
        let refused = |error: MigrationError| match error {
            MigrationError::TooNew { found, needed } => StartError::SchemaTooNew {
                path: path(),
                found,
                needed,
            },
            MigrationError::Incompatible(cause) => StartError::Incompatible {
                path: path(),
                cause,
            },
            MigrationError::Store(error) => unusable(error),
            error @ MigrationError::InTransaction => StoreError::Retry(error.to_string()).into(),
        };
        let mut run = |statement: &str| {
            conn.batch_execute(statement)
                .map_err(|error| unusable(classify(&error)))
        };
        // A connection of an application has its own busy timeout and pragmas, which stay.
        let is_own = self.application.is_none();
        if is_own {
            run(&format!(
                "PRAGMA busy_timeout = {}",
                BUSY_TIMEOUT.as_millis()
            ))?;
        }
        // This read comes before any write, so that a table of this name that is not the logger's
        // stays as it is. If the table does not exist, the migrations create it.
        if let Err(StartError::Store(StoreError::Reopen(cause))) =
            run("SELECT event_id, created_at FROM memory_retrieval_failures LIMIT 0")
            && !cause.starts_with("no such table")
        {
            return Err(StartError::Incompatible {
                path: path(),
                cause,
            });
        }
        let versions = Versions::read(conn).map_err(refused)?;
        if !self.migrates && !versions.are_current() {
            let Versions { found, needed } = versions;
            return Err(StartError::SchemaTooOld {
                path: path(),
                found,
                needed,
            });
        }
        let foreign = has_foreign_tables(conn).map_err(|error| unusable(classify(&error)))?;
        *lock(&self.known.has_foreign_tables) = Some(foreign);
        let mut run = |statement: &str| {
            conn.batch_execute(statement)
                .map_err(|error| unusable(classify(&error)))
        };
        // If an application has tables in the file, it chooses the vacuum and the journal mode.
        if is_own && !foreign {
            // Comes before WAL and before the first table, because SQLite ignores it afterwards.
            run("PRAGMA auto_vacuum = INCREMENTAL")?;
            run("PRAGMA journal_mode = WAL")?;
        }
        if is_own {
            run(pool::STATEMENTS)?;
        }

        let prepare = if self.migrates {
            migrate::run_migrations
        } else {
            migrate::check_usable
        };
        prepare(conn).map_err(refused)?;

        let version = diesel::select(diesel::dsl::sql::<diesel::sql_types::Text>(
            "sqlite_version()",
        ))
        .get_result::<String>(conn);
        if let Ok(version) = version
            && parse_version(&version) < Some(SAFE_SQLITE)
        {
            tracing::warn!(
                version,
                "this SQLite can corrupt a WAL database; use 3.51.3 or later"
            );
        }
        Ok(())
    }
}

impl Backend for Database {
    fn open(&self) -> Result<Box<dyn Store>, StartError> {
        let store = match &self.application {
            Some(application) => self
                .open_pool(application)
                .map_err(|error| application.start_error(error)),
            None => self.open_own(),
        };
        Ok(Box::new(store?))
    }

    fn reads(&self) -> Reads {
        let source = match &self.file {
            Some(file) => Source::file(file.path()),
            None => Source::memory(&self.memory_url),
        };
        Reads::new(Some(Arc::new(SqliteReads::new(
            source.of_store(&self.slot, self.pool_size),
        ))))
    }

    fn quarantine(&self) -> Result<Quarantine, StartError> {
        if self.application.is_some() {
            return Ok(Quarantine::Shared);
        }
        let (Some(file), Some(damaged)) = (lock(&self.known.name).clone(), *lock(&self.known.file))
        else {
            return Ok(Quarantine::NotNeeded);
        };
        let file_lock = file.lock()?;
        let io_error = |error| self.inaccessible(error);
        if file.identity().map_err(io_error)? != Some(damaged) {
            return Ok(Quarantine::NotNeeded);
        }
        // If the schema cannot be read, the last successful read of it decides. If there was none,
        // the file counts as shared, because another application may have tables in it.
        let foreign = read_damaged_schema(&file)
            .or_else(|| *lock(&self.known.has_foreign_tables))
            .unwrap_or(true);
        if foreign {
            return Ok(Quarantine::Shared);
        }
        let renamed = file.quarantine(damaged, &file_lock).map_err(io_error)?;
        Ok(renamed.map_or(Quarantine::NotNeeded, Quarantine::Renamed))
    }
}

/// Returns `true` if the schema has an object of another application.
fn has_foreign_tables(conn: &mut SqliteConnection) -> QueryResult<bool> {
    let mut holds = |condition: &str| {
        diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(condition))
            .get_result::<bool>(conn)
    };
    if holds(FOREIGN)? {
        return Ok(true);
    }
    // The first versions of the logger created diesel's table, too.
    if !holds("EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '__diesel_schema_migrations')")? {
        return Ok(false);
    }
    let ours = migrate::needed().join("', '");
    holds(&format!(
        "EXISTS (SELECT 1 FROM __diesel_schema_migrations WHERE version NOT IN ('{ours}'))"
    ))
    .or_else(|error| {
        match classify(&error) {
            // The table of this name is not diesel's.
            StoreError::Reopen(_) | StoreError::Split(_) => Ok(true),
            StoreError::Retry(_) | StoreError::Corrupt(_) | StoreError::GiveUp(_) => Err(error),
        }
    })
}

/// Returns `true` if a database whose schema cannot be parsed has an object of another application.
/// Returns `None` if the schema cannot even be read.
fn read_damaged_schema(file: &DatabaseFile) -> Option<bool> {
    let mut conn = SqliteConnection::establish(&file.read_only_url()).ok()?;
    // With this pragma, SQLite reads the schema as an ordinary table, and does not parse its
    // statements.
    conn.batch_execute("PRAGMA writable_schema = ON").ok()?;
    has_foreign_tables(&mut conn).ok()
}

/// Condition that is true if the schema has an object that belongs neither to a table of the
/// logger, nor to SQLite, nor to diesel. In doubt it is true, because the logger never renames a
/// shared file.
const FOREIGN: &str = "EXISTS (SELECT 1 FROM sqlite_schema \
     WHERE coalesce(tbl_name, '') NOT LIKE 'memory\\_retrieval\\_%' ESCAPE '\\' \
     AND coalesce(name, '') NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND coalesce(name, '') <> '__diesel_schema_migrations' \
     AND coalesce(tbl_name, '') <> '__diesel_schema_migrations')";

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Returns a version as numbers, because version 3.9 is lower than 3.51, and its text is not.
/// Returns `None` if the text is no version.
fn parse_version(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

// Deletes only rows that a roll-up has seen, because other rows may not be counted yet.
const PURGE: &str = "DELETE FROM memory_retrieval_failures WHERE id IN ( \
     SELECT id FROM memory_retrieval_failures WHERE created_at >= ? AND created_at < ? \
     AND id <= (SELECT rolled_up_to FROM memory_retrieval_log) ORDER BY created_at LIMIT ?)";

/// An open database. One writer uses it at a time. Readers and checkpoints use its connections at
/// the same time.
struct SqliteStore {
    connections: Arc<Connections>,
    /// One thread, on which a pool of the logger's own opens connections.
    threads: Option<Arc<ScheduledThreadPool>>,
    checkpointer: Option<Checkpointer>,
    file: Arc<OpenFile>,
    slot: Arc<Slot>,
}

/// The file that the pool has open.
struct OpenFile {
    file: Option<DatabaseFile>,
    identity: Option<Identity>,
    journal: Journal,
    known: Arc<Known>,
}

/// The program that may remove the journal while the store is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Journal {
    /// Only the store. It keeps its connections open.
    Own,
    /// SQLite, between two transactions, when the application's pool has closed all connections.
    OfApplication,
    /// None, because the file of the application is not in WAL mode.
    None,
}

/// A connection, and the file that must have the name when it commits.
struct StoreConnection {
    conn: Checkout,
    file: Arc<OpenFile>,
}

impl Deref for StoreConnection {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.conn
    }
}

impl DerefMut for StoreConnection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }
}

impl SqliteStore {
    /// Returns a connection. Fails unless the file that it has open has the name now.
    fn connection(&self) -> Result<StoreConnection, StoreError> {
        if self.file.journal == Journal::OfApplication {
            *lock(&self.file.known.journal) = None;
        }
        self.file.has_the_name()?;
        let conn = self
            .connections
            .get(Purpose::Write, Deadline::after(WRITER_TIMEOUT))?;
        Ok(StoreConnection {
            conn,
            file: Arc::clone(&self.file),
        })
    }

    /// Returns the connection for a transaction that writes. Waits for a checkpoint first, because
    /// the commit must not wait for one while it holds its permit.
    fn connection_to_write(&mut self) -> Result<StoreConnection, StoreError> {
        let mut conn = self.connection()?;
        if let Some(checkpointer) = &mut self.checkpointer {
            checkpointer.before_transaction(&mut conn);
        }
        Ok(conn)
    }

    /// Returns `false` if the pool is an application's.
    fn is_own(&self) -> bool {
        self.threads.is_some()
    }

    /// Reports a commit to the checkpointer, so that a checkpoint follows in time. Every
    /// transaction that wrote must call this.
    fn committed(&self) {
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.committed();
        }
    }

    /// Runs `work` in a transaction that holds the write lock.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = self.connection_to_write()?;
        let done = transact(&mut conn, work)?;
        self.committed();
        Ok(done)
    }

    /// Notes if another application has tables in the file by now, because the logger never renames
    /// a shared file.
    fn note_foreign_tables(&self, conn: &mut SqliteConnection) {
        if let Ok(foreign) = has_foreign_tables(conn) {
            *lock(&self.file.known.has_foreign_tables) = Some(foreign);
        }
    }
}

impl OpenFile {
    /// Fails if the file was deleted or replaced, because writes to it would succeed and be lost.
    fn has_the_name(&self) -> Result<(), StoreError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        match file.identity() {
            Ok(now) if now.is_some() && now == self.identity => {}
            Ok(Some(_)) => return Err(StoreError::Reopen("the database file was replaced".into())),
            Ok(None) => return Err(StoreError::Reopen("the database file was deleted".into())),
            Err(error) => return Err(StoreError::reopen(error)),
        }
        // A commit to a journal that was removed would be lost when the process ends. The error
        // leads to a close of the store, which brings the journal into the database.
        let mut journal = lock(&self.known.journal);
        match (*journal, file.journal_identity().ok().flatten()) {
            _ if self.journal == Journal::None => {}
            (None, now) => *journal = now,
            (Some(then), Some(now)) if then == now => {}
            (Some(_), _) => {
                return Err(StoreError::Reopen(
                    "the database's journal was removed".into(),
                ));
            }
        }
        Ok(())
    }

    /// Notes the journal of the transaction that has begun. The check before its commit fails if
    /// this journal was removed.
    fn note_journal(&self) -> Result<(), StoreError> {
        if self.journal == Journal::OfApplication {
            let journal = self
                .file
                .as_ref()
                .and_then(|file| file.journal_identity().ok().flatten());
            let removed = || {
                StoreError::Reopen(
                    "the database's journal was removed; restart the application".into(),
                )
            };
            *lock(&self.known.journal) = Some(journal.ok_or_else(removed)?);
        }
        Ok(())
    }
}

impl Drop for SqliteStore {
    /// Closes the connections before it returns, so that the file is complete. A read that takes
    /// longer keeps its connection. SQLite then completes the file when that connection closes.
    fn drop(&mut self) {
        // Readers open no connection from here on, because it would keep SQLite from completing the
        // file.
        self.slot.closing();
        let Some(threads) = &self.threads else {
            // The application's pool stays open, and so do its connections.
            self.connections.close(Duration::ZERO);
            self.checkpointer = None;
            self.connections.end();
            self.slot.closed();
            return;
        };
        // If a reader keeps its connection, SQLite does not complete the file when the other
        // connections close. A checkpoint then brings all committed rows into the file.
        if !self.connections.close(READERS_TIMEOUT)
            && let Ok(mut conn) = self
                .connections
                .get(Purpose::Write, Deadline::after(READERS_TIMEOUT))
        {
            let _ = conn.batch_execute("PRAGMA busy_timeout = 0");
            checkpoint::empty(&mut conn);
        }
        self.checkpointer = None;
        self.connections.end();
        // A job that opens connections may hold the pool for a moment longer. `threads` has one
        // thread, so that this second job runs after that one.
        let (done, wait) = channel::<()>();
        threads.execute(move || drop(done));
        let _ = wait.recv();
        self.slot.closed();
    }
}

/// Reason why nothing was inserted.
enum InsertError {
    /// The store rejects the counts of attempts, with this cause.
    Attempts(String),
    Store(StoreError),
}

impl InsertError {
    fn into_store_error(self) -> StoreError {
        match self {
            Self::Attempts(cause) => {
                StoreError::Retry(format!("attempts cannot be counted: {cause}"))
            }
            Self::Store(error) => error,
        }
    }
}

impl From<StoreError> for InsertError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl SqliteStore {
    /// Inserts all rows and attempts, or nothing.
    fn insert_all<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, InsertError> {
        let mut conn = self.connection_to_write()?;
        let (mut permit, mut inserted, mut refused) = (None, models::InsertedRows::default(), None);
        transact(&mut conn, |conn| {
            inserted = models::insert_new(conn, rows).map_err(|error| classify(&error))?;
            let left_out = attempts::insert(conn, attempts, Timestamp::now()).map_err(|error| {
                let error = classify(&error);
                // This error is not the fault of the rows or the file.
                if let StoreError::Split(cause) | StoreError::Reopen(cause) = &error {
                    refused = Some(cause.clone());
                }
                error
            })?;
            inserted.sources_left_out += left_out;
            failpoint!("store-commit", |_| Err(StoreError::Retry(
                "injected".into()
            )));
            // The permit is the last step before the commit. If it came earlier, a shutdown that
            // waits for the permit would wait for slow statements. If it came later, a commit could
            // follow the report of a shutdown.
            permit = gate.enter(rows.len());
            if permit.is_some() {
                Ok(())
            } else {
                Err(closed())
            }
        })
        .map_err(|error| refused.map_or(InsertError::Store(error), InsertError::Attempts))?;
        self.committed();
        let models::InsertedRows {
            duplicates,
            are_behind,
            sources_left_out,
        } = inserted;
        Ok(Inserted {
            permit: permit.ok_or_else(closed)?,
            duplicates,
            are_behind,
            sources_left_out,
            refused: None,
        })
    }
}

impl Store for SqliteStore {
    fn insert<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, StoreError> {
        failpoint!("store-insert", |_| Err(StoreError::Retry(
            "injected".into()
        )));
        #[cfg(feature = "failpoints")]
        if let Some(Some(sql)) = fail::eval("store-sql", |sql| sql) {
            self.connection()?
                .batch_execute(&sql)
                .map_err(|error| classify(&error))?;
        }
        match self.insert_all(rows, attempts, gate) {
            // The transaction was rolled back as a whole, so that the rows go into a second one
            // without the attempts.
            Err(InsertError::Attempts(cause)) => {
                // No attempt of the transaction is inserted, because the writer retries all of
                // them. The rows do not wait for that.
                let inserted = self.insert_all(rows, &AttemptBatch::default(), gate);
                Ok(Inserted {
                    refused: Some(cause),
                    ..inserted.map_err(InsertError::into_store_error)?
                })
            }
            inserted => inserted.map_err(InsertError::into_store_error),
        }
    }

    fn takes_a_plain_row(&mut self) -> Result<(), StoreError> {
        let mut conn = self.connection()?;
        // The result of the insert is kept apart, because the transaction itself always fails.
        let mut taken = None;
        // The closure always fails, so that the row is rolled back.
        let rolled_back = transact(&mut conn, |conn| {
            taken = Some(
                models::insert(conn, &[Row::plain()])
                    .map(|_| ())
                    .map_err(|error| classify(&error)),
            );
            Err::<(), _>(StoreError::GiveUp("only a probe".into()))
        });
        taken.unwrap_or(rolled_back)
    }

    #[cfg(feature = "program")]
    fn count_within(&mut self, range: Range<Timestamp>) -> Result<u64, StoreError> {
        let rows: i64 = dsl::memory_retrieval_failures
            .filter(
                dsl::created_at
                    .ge(range.start.as_millis())
                    .and(dsl::created_at.lt(range.end.as_millis())),
            )
            .count()
            .get_result(&mut *self.connection()?)
            .map_err(|error| classify(&error))?;
        Ok(u64::try_from(rows).unwrap_or(0))
    }

    fn purge(&mut self, range: Range<Timestamp>, limit: u32) -> Result<u64, StoreError> {
        failpoint!("store-purge", |_| Err(StoreError::Retry("injected".into())));
        let mut conn = self.connection_to_write()?;
        self.note_foreign_tables(&mut conn);
        // The roll-up comes first, because every rate would lack a row that was deleted before it.
        // `PURGE` checks the same by `rolled_up_to`.
        if count_before_purge(&mut conn, range.end)? {
            self.committed();
        }
        let deleted = transact(&mut conn, |conn| {
            diesel::sql_query(PURGE)
                .bind::<BigInt, _>(range.start)
                .bind::<BigInt, _>(range.end)
                .bind::<Integer, _>(i32::try_from(limit).unwrap_or(i32::MAX))
                .execute(conn)
                .map_err(|error| classify(&error))
        })?;
        // The rows are deleted even if their space is not released: the next purge retries that.
        if deleted > 0 {
            if self.is_own()
                && let Err(error) = shrink_if_worthwhile(&mut conn)
            {
                tracing::debug!(%error, "the space of purged rows was not given back");
            }
            self.committed();
        }
        Ok(deleted as u64)
    }

    #[cfg(feature = "program")]
    fn purge_attempts_from(&mut self, from: Timestamp) -> Result<(), StoreError> {
        self.write(|conn| attempts::delete_from(conn, from).map_err(|error| classify(&error)))
    }

    fn delete(
        &mut self,
        deletion: &Deletion,
        so_far: Deleted,
    ) -> Result<(Deleted, Erased), StoreError> {
        let is_own = self.is_own();
        let mut conn = self.connection_to_write()?;
        self.note_foreign_tables(&mut conn);
        count_before_purge(&mut conn, Timestamp::MAX)?;
        let deleted = delete::with_secure_delete(&mut conn, |conn| {
            let deleted = transact(conn, |conn| {
                delete::delete_chunk(conn, deletion, so_far).map_err(|error| classify(&error))
            })?;
            if !deleted.is_done {
                return Ok((deleted, Erased::NotYet));
            }
            let erased = if is_own {
                delete::erase(conn)
            } else {
                delete::empty_journal(conn)
            };
            let erased = match (erased.map_err(|error| classify(&error))?, is_own) {
                (false, _) => Erased::NotInTheJournal,
                (true, true) => Erased::Everywhere,
                (true, false) => Erased::NotInFreePages,
            };
            Ok((deleted, erased))
        });
        drop(conn);
        self.committed();
        deleted
    }

    fn size(&mut self) -> Result<Option<Size>, StoreError> {
        if !self.is_own() {
            return Ok(None);
        }
        let mut conn = self.connection()?;
        self.note_foreign_tables(&mut conn);
        if *lock(&self.file.known.has_foreign_tables) != Some(false) {
            return Ok(None);
        }
        let pragma =
            |name: &str| diesel::dsl::sql::<BigInt>(&format!("(SELECT {name} FROM pragma_{name})"));
        let (pages, free, bytes): (i64, i64, i64) = diesel::select((
            pragma("page_count"),
            pragma("freelist_count"),
            pragma("page_size"),
        ))
        .get_result(&mut *conn)
        .map_err(|error| classify(&error))?;
        let bytes = |pages: i64| pages.saturating_mul(bytes).unsigned_abs();
        Ok(Some(Size {
            used: bytes(pages - free),
            all: bytes(pages),
        }))
    }

    fn shrink(&mut self) -> Result<(), StoreError> {
        let mut conn = self.connection_to_write()?;
        let vacuum = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
        conn.batch_execute(&vacuum)
            .map_err(|error| classify(&error))?;
        drop(conn);
        self.committed();
        Ok(())
    }

    fn retention(&mut self) -> Result<StoredRetention, StoreError> {
        retention::read(&mut *self.connection()?).map_err(|error| classify(&error))
    }

    fn change_retention(
        &mut self,
        change: &mut dyn FnMut(StoredRetention) -> StoredRetention,
    ) -> Result<(), StoreError> {
        self.write(|conn| {
            let stored = retention::read(conn).map_err(|error| classify(&error))?;
            retention::write(conn, &change(stored)).map_err(|error| classify(&error))
        })
    }

    fn roll_up(&mut self, own: Option<Owner>) -> Result<Progress, StoreError> {
        let mut conn = self.connection()?;
        self.note_foreign_tables(&mut conn);
        // Reads first, so that the write lock is taken only if there is work.
        let any = attempts::has_deltas(&mut conn)
            .and_then(|any| Ok(any || uncounted::has_rows(&mut conn)?));
        if !any.map_err(|error| classify_upkeep(&error))? {
            return Ok(Progress::Done);
        }
        drop(conn);
        let is_done = self.write(|conn| {
            attempts::roll_up(conn, Timestamp::now(), own).map_err(|error| classify_upkeep(&error))
        })?;
        Ok(Progress::unless(!is_done))
    }

    fn release(&mut self, owner: Owner) -> Result<(), StoreError> {
        let mut conn = self.connection()?;
        if !attempts::has_deltas_of(&mut conn, owner).map_err(|error| classify_upkeep(&error))? {
            return Ok(());
        }
        drop(conn);
        self.write(|conn| attempts::release(conn, owner).map_err(|error| classify_upkeep(&error)))
    }

    fn expire(
        &mut self,
        resolution: Resolution,
        before: Timestamp,
    ) -> Result<Progress, StoreError> {
        let mut conn = self.connection()?;
        // Reads first, so that the write lock is taken only if there is work.
        let oldest =
            attempts::oldest_at(&mut conn, resolution).map_err(|error| classify_upkeep(&error))?;
        if oldest.is_none_or(|oldest| oldest >= resolution.ended_before(before)) {
            return Ok(Progress::Done);
        }
        drop(conn);
        let is_done = self.write(|conn| {
            attempts::expire(conn, resolution, before).map_err(|error| classify_upkeep(&error))
        })?;
        Ok(Progress::unless(!is_done))
    }

    fn count_drops(&mut self, drops: &BTreeMap<Timestamp, DropCounts>) -> Result<(), StoreError> {
        self.write(|conn| {
            drops
                .iter()
                .try_for_each(|(at, drops)| drops::add(conn, *at, drops))
                .map_err(|error| classify_upkeep(&error))
        })
    }

    fn expire_drops(&mut self, before: Timestamp) -> Result<(), StoreError> {
        let mut conn = self.connection()?;
        // Reads first, so that the write lock is taken only if there is work.
        if !drops::any_expired(&mut conn, before).map_err(|error| classify_upkeep(&error))? {
            return Ok(());
        }
        drop(conn);
        self.write(|conn| {
            drops::expire(conn, before)
                .map(drop)
                .map_err(|error| classify_upkeep(&error))
        })
    }

    fn set_query_status(&mut self, query: &str, change: StatusChange) -> Result<(), StoreError> {
        failpoint!("store-status", |_| Err(StoreError::Retry(
            "injected".into()
        )));
        self.write(|conn| statuses::set(conn, query, change).map_err(|error| classify(&error)))
    }

    fn close(&mut self) {
        if self.is_own()
            && let Ok(mut conn) = self.connection()
            && let Err(error) = conn.batch_execute("PRAGMA optimize")
        {
            tracing::debug!(%error, "the query planner's statistics were not updated");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Classifies an error of the tables of attempts or drops. If such a table is missing, the store
/// does not reopen the file: it stores records without the table, and would meet the same error
/// after a restart.
fn classify_upkeep(error: &DieselError) -> StoreError {
    match classify(error) {
        StoreError::Reopen(cause) => StoreError::Split(cause),
        error => error,
    }
}

/// Rolls up the rows from before `before` that are not counted yet, because a purge deletes only
/// counted rows. Returns `true` if there were any.
fn count_before_purge(conn: &mut StoreConnection, before: Timestamp) -> Result<bool, StoreError> {
    let mut any = false;
    while uncounted::has_rows_before(conn, before).map_err(|error| classify(&error))? {
        let rolled_up = transact(conn, |conn| {
            attempts::roll_up(conn, Timestamp::now(), None).map_err(|error| classify_upkeep(&error))
        });
        match rolled_up {
            Ok(false) => any = true,
            Ok(true) => return Ok(true),
            Err(StoreError::Split(cause)) => {
                tracing::warn!(
                    cause,
                    "the store rejects the counts of attempts; their failures are not purged"
                );
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(any)
}

/// Gives free pages back to the file system if they are more than an eighth of the file. Leaves
/// that eighth to later inserts, because moving other pages into its place would write several
/// times as much.
fn shrink_if_worthwhile(conn: &mut SqliteConnection) -> QueryResult<()> {
    let spare: i64 = diesel::select(diesel::dsl::sql::<BigInt>(
        "(SELECT freelist_count FROM pragma_freelist_count) - (SELECT page_count FROM \
         pragma_page_count) / 8",
    ))
    .get_result(conn)?;
    if spare > 0 {
        conn.batch_execute(&format!(
            "PRAGMA incremental_vacuum({})",
            spare.min(VACUUM_PAGES)
        ))?;
    }
    Ok(())
}

/// Returns the error of a transaction that came after the end of a shutdown.
fn closed() -> StoreError {
    StoreError::GiveUp("the deadline of the shutdown has passed".into())
}

/// Runs `work` in a transaction that holds the write lock from its beginning, because SQLite
/// rejects a transaction that reads first and writes later if another one wrote in between. Every
/// transaction of the store runs here. It is rolled back if the file was deleted or replaced by its
/// end.
fn transact<T>(
    conn: &mut StoreConnection,
    work: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // SQLite rolls back by itself after some errors; then diesel's own rollback fails, and its
    // error would hide the cause.
    let mut cause = None;
    let StoreConnection { conn, file } = conn;
    conn.immediate_transaction(|conn| {
        let done = file
            .note_journal()
            .and_then(|()| work(conn))
            .and_then(|done| {
                failpoint!("store-before-commit");
                file.has_the_name()?;
                Ok(done)
            });
        done.map_err(|error| {
            cause = Some(error);
            DieselError::RollbackTransaction
        })
    })
    .map_err(|error| cause.unwrap_or_else(|| classify(&error)))
}

/// A database in memory with all tables.
#[cfg(test)]
pub(crate) fn migrated() -> SqliteConnection {
    let mut conn = SqliteConnection::establish(":memory:").unwrap();
    migrate::run_migrations(&mut conn).unwrap();
    crate::store::sqlite::functions::register(&mut conn).unwrap();
    conn
}

/// Waits until `done` returns `true`.
#[cfg(test)]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "still waiting: {what}"
        );
        std::thread::yield_now();
    }
}

/// Returns SQLite's query plan of `sql`, step by step.
#[cfg(test)]
pub(crate) fn plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = diesel::sql_types::Text)]
        detail: String,
    }
    // Parameters without a value are NULL, which changes no plan.
    let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {sql}"))
        .load(conn)
        .unwrap();
    steps.into_iter().map(|step| step.detail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::failure::Place;
    use crate::model::query_status::QueryStatus;
    use crate::store::reads::Lane;
    use crate::store::snapshot::Snapshot;

    #[test]
    fn errors_are_classified_by_their_remedy() {
        for text in [
            "database is locked",
            "database table is locked: t",
            "database or disk is full",
            "disk I/O error",
        ] {
            assert_eq!(classify_text(text), StoreError::Retry(text.into()));
        }
        for text in [
            "database disk image is malformed",
            "file is not a database",
            "malformed database schema (t)",
        ] {
            assert_eq!(classify_text(text), StoreError::Corrupt(text.into()));
        }
        assert!(matches!(
            classify_text("no such table: memory_retrieval_failures"),
            StoreError::Reopen(_)
        ));
        assert!(matches!(
            classify_text("a trigger says that the glass is full"),
            StoreError::Split(_)
        ));
    }

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let purge = plan(&mut conn, PURGE);
        for step in [
            "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid=?)",
            "SEARCH memory_retrieval_failures USING COVERING INDEX \
             memory_retrieval_failures_created_at (created_at>? AND created_at<?)",
        ] {
            assert!(purge.iter().any(|of| of == step), "{purge:?}");
        }
        let largest = plan(&mut conn, models::LARGEST_ID);
        assert!(
            largest
                .iter()
                .any(|of| of == "SEARCH memory_retrieval_failures"),
            "{largest:?}"
        );
        let stored = "SELECT id FROM memory_retrieval_failures WHERE event_id = ?";
        assert_eq!(
            plan(&mut conn, stored),
            ["SEARCH memory_retrieval_failures USING COVERING INDEX \
                 memory_retrieval_failures_event_id (event_id=?)"]
        );
    }

    /// A store with a row, and its readers.
    fn store_and_readers(pool_size: u32) -> (tempfile::TempDir, PathBuf, Box<dyn Store>, Reads) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let database = Database::file(&path, pool_size);
        let mut store = database.open().unwrap();
        let readers = database.reads();
        store
            .set_query_status(
                "q",
                StatusChange {
                    status: QueryStatus::Resolved,
                    set_at: Timestamp::EPOCH,
                },
            )
            .unwrap();
        (folder, path, store, readers)
    }

    fn statuses(readers: &Reads) -> Result<usize, crate::error::ReadError> {
        let read = |snapshot: &mut dyn Snapshot, _| Ok(snapshot.statuses()?.len());
        futures_executor::block_on(readers.run(Lane::Quick, Duration::from_secs(60), read))
    }

    fn journal_bytes(path: &Path) -> u64 {
        std::fs::metadata(path.with_extension("db-wal")).map_or(0, |journal| journal.len())
    }

    #[test]
    fn read_that_outlives_the_store_completes_the_file() {
        let (_folder, path, store, readers) = store_and_readers(4);
        let (begin, begun) = channel();
        let (end, ended) = channel::<()>();
        let ended = Mutex::new(ended);
        let query = std::thread::spawn({
            let readers = readers.clone();
            move || {
                let read = move |snapshot: &mut dyn Snapshot, _| {
                    let before = snapshot.statuses()?.len();
                    begin.send(()).unwrap();
                    let _ = lock(&ended).recv();
                    Ok((before, snapshot.statuses()?.len()))
                };
                futures_executor::block_on(readers.run(Lane::Quick, Duration::from_secs(60), read))
            }
        });
        begun.recv().unwrap();
        drop(store);
        // The read sees every committed row, and so does a reader of the file alone.
        let copy = path.with_extension("copy");
        std::fs::copy(&path, &copy).unwrap();
        assert_eq!(statuses(&crate::store::reads_of(&copy)), Ok(1));
        assert_eq!(statuses(&readers), Ok(1), "over a connection of its own");
        drop(end);
        assert_eq!(query.join().unwrap(), Ok((1, 1)));
    }

    #[test]
    fn read_that_panics_costs_neither_connection_nor_journal() {
        // With a pool of one connection, the end of that connection would remove the journal, and
        // the store would be reopened.
        for pool_size in [1, 4] {
            let (_folder, path, mut store, readers) = store_and_readers(pool_size);
            let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
            conn.batch_execute(
                "INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, query_len, \
                 created_at) VALUES (x'01', 'no_hit', 's', 'q', 1, 0)",
            )
            .unwrap();
            drop(conn);
            // The read panics in the middle of a statement.
            let read = |snapshot: &mut dyn Snapshot, _| {
                snapshot.queries(Place::END, 1, &mut |_| panic!("injected"))
            };
            let lost =
                futures_executor::block_on(readers.run(Lane::Quick, Duration::from_secs(60), read));
            assert!(lost.is_err());
            store
                .set_query_status(
                    "r",
                    StatusChange {
                        status: QueryStatus::Ignored,
                        set_at: Timestamp::EPOCH,
                    },
                )
                .unwrap();
            assert_eq!(statuses(&readers), Ok(2));
        }
    }

    #[test]
    fn reads_that_never_pause_let_the_store_close() {
        let (_folder, path, store, readers) = store_and_readers(4);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (begin, begun) = channel();
            for _ in 0..4 {
                let (begin, readers, over) = (begin.clone(), &readers, &over);
                scope.spawn(move || {
                    while !over.load(std::sync::atomic::Ordering::Acquire) {
                        assert_eq!(statuses(readers), Ok(1));
                        let _ = begin.send(());
                    }
                });
            }
            begun.recv().unwrap();
            drop(store);
            over.store(true, std::sync::atomic::Ordering::Release);
        });
        assert_eq!(
            journal_bytes(&path),
            0,
            "a reader came back before the journal was removed"
        );
    }

    /// Returns the store of an application's pool, with the logger's customizer if `customize` is
    /// `true`.
    fn application_store(journal_mode: &str, customize: bool) -> (tempfile::TempDir, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("x.db").to_str().unwrap().to_owned();
        SqliteConnection::establish(&url)
            .unwrap()
            .batch_execute(&format!("PRAGMA journal_mode = {journal_mode}"))
            .unwrap();
        let builder = Pool::builder().max_size(2);
        let builder = match customize {
            true => builder
                .connection_customizer(Box::new(crate::store::sqlite::embed::CustomizeConnection)),
            false => builder,
        };
        let pool = builder
            .build(diesel::r2d2::ConnectionManager::new(url))
            .unwrap();
        let database = Database::of_application(pool).unwrap();
        let store = database
            .open_pool(database.application.as_ref().unwrap())
            .unwrap();
        (folder, store)
    }

    #[test]
    fn application_keeps_its_checkpoints_unless_it_left_them() {
        for (journal_mode, customize, checkpoints) in [
            ("WAL", true, true),
            ("WAL", false, false),
            ("DELETE", true, false),
            ("DELETE", false, false),
        ] {
            let (_folder, store) = application_store(journal_mode, customize);
            assert_eq!(
                store.checkpointer.is_some(),
                checkpoints,
                "{journal_mode} {customize}"
            );
            let journal = if journal_mode == "WAL" {
                Journal::OfApplication
            } else {
                Journal::None
            };
            assert!(store.file.journal == journal);
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(parse_version("3.9.0") < Some(SAFE_SQLITE));
        assert!(parse_version("3.51.3") >= Some(SAFE_SQLITE));
    }
}
