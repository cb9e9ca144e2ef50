//! The interface to a database, for writing and for reading. Each backend has a folder. The
//! pipeline and the reports use the interface only, and this file chooses the backend. Calls for
//! one kind of database name its folder: pools of applications, backups and the import.

pub(crate) mod backend;
#[cfg(feature = "program")]
pub(crate) mod copy;
pub(crate) mod gate;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod reads;
pub(crate) mod reference;
pub(crate) mod row;
pub(crate) mod snapshot;
pub(crate) mod sqlite;
#[cfg(test)]
pub(crate) mod suite;
pub(crate) mod write;

use std::path::Path;
use std::sync::Arc;

use crate::config::Location;
#[cfg(feature = "program")]
use crate::copy::CopyError;
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
    match location {
        Location::File(path) => Box::new(Database::file(path, pool_size).migrate(migrate)),
        Location::Memory => in_memory(),
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => Box::new(postgres::database::Server::new(
            url.clone(),
            pool_size,
            migrate,
        )),
    }
}

/// Reads the log at `location`, whose schema must be that of this version.
#[cfg(feature = "program")]
pub(crate) fn copy_source(
    location: &Location,
    read: copy::ReadLog<'_, CopyError>,
) -> Result<(), CopyError> {
    match location {
        Location::File(path) => read(&mut sqlite::copy::CopyFile::source(path)?),
        Location::Memory => Err(CopyError::Memory),
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => postgres::copy::read_source(url, read),
    }
}

/// Opens the log at `location` to write a copy. Creates a missing one. With `migrate`, it may
/// change the schema.
#[cfg(feature = "program")]
pub(crate) fn copy_target(
    location: &Location,
    migrate: bool,
) -> Result<Box<dyn copy::Writable>, CopyError> {
    Ok(match location {
        Location::File(path) => Box::new(sqlite::copy::CopyFile::target(path, migrate)?),
        Location::Memory => return Err(CopyError::Memory),
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => Box::new(postgres::copy::CopyServer::target(url, migrate)?),
    })
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

/// Returns the reads of the database at `location`, without a logger. A database in memory is that
/// of the logger that made it, so that these reads find none.
#[cfg(feature = "program")]
#[cfg_attr(
    not(feature = "postgres"),
    expect(unused_variables, reason = "a file has its own number of connections")
)]
pub(crate) fn reads_at(location: &Location, pool_size: u32) -> Reads {
    match location {
        Location::File(path) => reads_of(path),
        Location::Memory => Reads::new(None),
        #[cfg(feature = "postgres")]
        Location::Postgres(_) => backend(location, pool_size, false).reads(),
    }
}
