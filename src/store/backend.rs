//! The interface through which the pipeline opens a database.

use std::path::PathBuf;

use crate::error::StartError;
use crate::store::reads::Reads;
use crate::store::write::Store;

/// A database that can be opened, and reopened after a fault or if the file was replaced. All
/// methods block.
pub(crate) trait Backend: Send + Sync {
    /// Migrates the schema and connects.
    fn open(&self) -> Result<Box<dyn Store>, StartError>;

    /// Returns the reads of the database.
    fn reads(&self) -> Reads;

    /// Renames a damaged file, so that the next `open` creates a new one. Renames no file with
    /// tables of other applications, and no file that took the place of the damaged one.
    fn quarantine(&self) -> Result<Quarantine, StartError>;
}

/// A damaged file after [`Backend::quarantine`].
pub(crate) enum Quarantine {
    /// The file has this name now. The next `open` creates a new database.
    Renamed(PathBuf),
    /// The file stays, because it has tables of other applications, or may have some.
    Shared,
    /// Another file has the name by now, or the database is in memory.
    NotNeeded,
}
