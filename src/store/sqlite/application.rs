//! A database behind the pool of an application, which uses the connections as well.
//!
//! Invariants: the logger never renames or replaces the file, and changes nothing in it but its own
//! tables: no journal mode, no page size, no vacuum, no statistics. It restores the settings of a
//! connection before it returns the connection.

use std::path::Path;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::error::{StartError, StoreError};
use crate::store::sqlite::file::{self, DatabaseFile, Identity};
use crate::store::sqlite::functions;
use crate::store::sqlite::pool::{self, Pool};

/// A pool, and the file that it led to when it was given to the logger.
pub(crate) struct ApplicationPool {
    pub(crate) pool: Pool,
    pub(crate) file: DatabaseFile,
    pub(crate) identity: Identity,
    /// `true` if its connections leave checkpoints to the logger.
    pub(crate) is_customized: bool,
}

impl ApplicationPool {
    /// Finds the file of the pool.
    pub(crate) fn new(pool: Pool) -> Result<Self, StartError> {
        let mut conn = pool.get_timeout(pool::timeout(&pool)).map_err(|error| {
            match pool::last_error(&error) {
                Some(cause) => refused(format!(
                    "no connection: {cause}; the file must exist, and the pool may open it"
                )),
                None => StoreError::Retry(pool::all_in_use(pool.max_size())).into(),
            }
        })?;
        let unreadable = |error: diesel::result::Error| refused(error.to_string());
        let path = main_file(&mut conn).map_err(unreadable)?.ok_or_else(|| {
            refused(
                "its database is in memory, or temporary; give it a pool of a file, or use \
                `spawn` with `:memory:`",
            )
        })?;
        let file = DatabaseFile::new(Path::new(&path));
        let identity = file
            .identity()
            .ok()
            .flatten()
            .ok_or_else(|| refused(lost(&path)))?;
        // Recognised by what the customizer leaves on a connection, because r2d2 does not give its
        // customizer away. An application that sets the same pragma without the functions keeps its
        // own checkpoints.
        let is_customized = functions::are_registered(&mut conn)
            && autocheckpoint(&mut conn).map_err(unreadable)? == pool::APPLICATION_AUTOCHECKPOINT;
        drop(conn);
        Ok(Self {
            pool,
            file,
            identity,
            is_customized,
        })
    }

    /// Fails if another file has the name than the one that the pool leads to, or none.
    pub(crate) fn check_identity(&self) -> Result<(), StartError> {
        match self.file.identity() {
            Ok(Some(identity)) if identity == self.identity && file::is_open_here(identity) => {
                Ok(())
            }
            _ => Err(refused(lost(&self.path()))),
        }
    }

    /// Says what to do about an error in the terms of a pool.
    pub(crate) fn start_error(&self, error: StartError) -> StartError {
        let path = self.path();
        match error {
            StartError::NotADatabase { .. } => refused(format!(
                "{path} is not an SQLite database; build the pool for another file"
            )),
            StartError::Damaged { cause, .. } => refused(format!(
                "{path} is damaged ({cause}); repair it, or restore a backup"
            )),
            StartError::Incompatible { cause, .. } => refused(format!(
                "{path} does not fit this version ({cause}); build the pool for another file"
            )),
            StartError::Inaccessible { cause, .. } => refused(format!(
                "{path} cannot be written ({cause}); the file and its folder must be writable"
            )),
            StartError::Store(StoreError::Retry(cause)) if cause.contains("readonly") => {
                refused(format!(
                    "its connections may not write {path} ({cause}); make the file writable, and build the pool without \
                 `mode=ro` and `query_only`"
                ))
            }
            StartError::Store(StoreError::Retry(cause)) if cause.contains("locked") => {
                let remedy = "end the transaction that holds the lock, and try again";
                StoreError::Retry(format!("the pool of {path}: {cause}; {remedy}")).into()
            }
            error => error,
        }
    }

    fn path(&self) -> String {
        self.file.path().display().to_string()
    }
}

fn refused(cause: impl Into<String>) -> StartError {
    StartError::Pool {
        cause: cause.into(),
    }
}

/// Says what to do about a file that the connections of the pool still have and the name no longer
/// leads to.
fn lost(path: &str) -> String {
    format!(
        "{path} was deleted or replaced after the pool was built; put the file back, or build a \
         new pool"
    )
}

/// Returns the file of the main database. `None`: it has none.
fn main_file(conn: &mut SqliteConnection) -> QueryResult<Option<String>> {
    #[derive(QueryableByName)]
    struct Attached {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Nullable<Text>)]
        file: Option<String>,
    }
    let attached: Vec<Attached> = diesel::sql_query("PRAGMA database_list").load(conn)?;
    let main = attached
        .into_iter()
        .find(|database| database.name == "main");
    Ok(main
        .and_then(|main| main.file)
        .filter(|file| !file.is_empty()))
}

/// Returns the pages of the journal at which SQLite checkpoints by itself; 0: never.
fn autocheckpoint(conn: &mut SqliteConnection) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = BigInt)]
        wal_autocheckpoint: i64,
    }
    let Setting { wal_autocheckpoint } =
        diesel::sql_query("PRAGMA wal_autocheckpoint").get_result(conn)?;
    Ok(wal_autocheckpoint)
}

/// Returns `true` if the file has a write-ahead log.
pub(crate) fn has_wal(conn: &mut SqliteConnection) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = Text)]
        journal_mode: String,
    }
    let Setting { journal_mode } = diesel::sql_query("PRAGMA journal_mode").get_result(conn)?;
    Ok(journal_mode == "wal")
}
