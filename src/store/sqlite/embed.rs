//! SQLite through diesel, for applications that share a database or a pool with the logger.
//!
//! This is the only public module that speaks diesel. [`diesel`] is the version that it means, so
//! that an application need not have the same one among its own dependencies.
//!
//! The log's migrations are recorded in a table of their own, `memory_retrieval_migrations`. The
//! application keeps `__diesel_schema_migrations` for its own migrations, which it runs, reverts
//! and redoes as if the log were not there.

pub use diesel;
pub use diesel::r2d2;
use diesel::sqlite::SqliteConnection;

pub use crate::error::MigrationError;
pub use crate::store::sqlite::migrate::{MIGRATIONS, Migrations, run_migrations};
use crate::store::sqlite::pool;

/// A pool of connections to an SQLite file, for
/// [`FailureLogger::with_pool`](crate::FailureLogger::with_pool).
pub type Pool = r2d2::Pool<r2d2::ConnectionManager<SqliteConnection>>;

/// Sets up each new connection of a pool as the logger's own connections are. Optional: the logger
/// works with other connections as well, only slower.
///
/// | statement | effect |
/// | --- | --- |
/// | `PRAGMA busy_timeout = 5000` | a statement waits up to 5 s for a lock, instead of failing at once |
/// | `PRAGMA synchronous = NORMAL` | in WAL mode, a commit does not wait for the disk: a power failure can cost the last commits, never the consistency of the file |
/// | `PRAGMA foreign_keys = ON` | foreign keys are enforced; SQLite ignores them otherwise |
/// | `PRAGMA temp_store = MEMORY` | temporary tables and indexes are in memory |
/// | `PRAGMA cache_size = -8000` | up to 8 MB of pages in memory for each connection |
/// | `PRAGMA journal_size_limit = 67108864` | a journal that was larger is cut to 64 MiB when it is reused |
/// | `PRAGMA wal_autocheckpoint = 16384` | in WAL mode, SQLite checkpoints by itself at 64 MiB (of 4 KiB pages) only, because the logger does so much earlier, on a thread of its own |
/// | an SQL function | `memory_retrieval_nearly_the_same(text, json)`, which the logger's queries use |
///
/// All of it is about connections. Nothing that the file keeps is changed, so that its journal mode
/// is for the application to choose: `PRAGMA journal_mode = WAL`, once, is what fits the logger.
///
/// ```
/// use failure_logger::sqlite::{CustomizeConnection, Pool, r2d2};
/// # fn pool(path: &str) -> Result<Pool, r2d2::PoolError> {
/// Pool::builder().max_size(8).connection_customizer(Box::new(CustomizeConnection)).build(r2d2::ConnectionManager::new(path))
/// # }
/// ```
///
/// A customizer of the application can call this one's `on_acquire`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CustomizeConnection;

impl r2d2::CustomizeConnection<SqliteConnection, r2d2::Error> for CustomizeConnection {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), r2d2::Error> {
        pool::customize_for_application(conn).map_err(r2d2::Error::QueryError)
    }
}
