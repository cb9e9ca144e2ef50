//! A database, as the pipeline knows it.

use std::path::PathBuf;

use crate::error::StartError;
use crate::store::reads::Reads;
use crate::store::write::Store;

/// A database that can be opened, and reopened when what is behind it has changed. Blocking.
pub(crate) trait Backend: Send + Sync {
    /// Brings the schema up to date, and connects.
    fn open(&self) -> Result<Box<dyn Store>, StartError>;

    /// Returns what reads the database.
    fn reads(&self) -> Reads;

    /// Renames a damaged file, so that the next open creates a new one. It never renames a file
    /// that holds tables of others, nor one that another process has put there since.
    fn quarantine(&self) -> Result<Quarantine, StartError>;
}

/// A damaged file after [`Backend::quarantine`].
pub(crate) enum Quarantine {
    /// It has this name now. The next open creates a new database.
    Renamed(PathBuf),
    /// It holds tables of others, or may hold some, and was left where it is.
    Shared,
    /// Another file has the name by now, or the database lives in memory.
    NotNeeded,
}
