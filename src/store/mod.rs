//! The interface to a database, for writing and for reading. Each backend has a folder. The
//! pipeline and the reports use the interface only, and this file chooses the backend. Calls for
//! one kind of database name its folder: pools of applications, backups and the import.

pub(crate) mod backend;
pub(crate) mod gate;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod reads;
pub(crate) mod row;
pub(crate) mod snapshot;
pub(crate) mod sqlite;
#[cfg(test)]
pub(crate) mod suite;
pub(crate) mod write;

use std::path::Path;
use std::sync::Arc;

use crate::config::Location;
use crate::error::StartError;
use backend::Backend;
use reads::Reads;
use sqlite::database::Database;
#[cfg(test)]
pub(crate) use sqlite::database::{migrated, plan};
use sqlite::reader::{Source, SqliteReads};

/// Returns the database at `location`, with its own pool. With `migrate`, `open` may change the
/// schema.
pub(crate) fn backend(location: &Location, pool_size: u32, migrate: bool) -> Box<dyn Backend> {
    Box::new(Database::new(location, pool_size).migrate(migrate))
}

/// Returns a database in memory, which is deleted with this value.
pub(crate) fn in_memory() -> Box<dyn Backend> {
    Box::new(Database::in_memory())
}

/// Returns the database behind the pool of an application, and the number of connections of the
/// pool.
pub(crate) fn of_application(
    pool: sqlite::embed::Pool,
    migrate: bool,
) -> Result<(Box<dyn Backend>, u32), StartError> {
    let database = Database::of_application(pool)?;
    let pool_size = database.pool_size();
    Ok((Box::new(database.migrate(migrate)), pool_size))
}

/// Returns the reads of the database file at `path`, which other processes may write. The first
/// read opens it.
pub(crate) fn reads_of(path: &Path) -> Reads {
    Reads::new(Some(Arc::new(SqliteReads::new(Source::file(path)))))
}
