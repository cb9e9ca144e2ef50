//! Classifies the errors of SQLite by their remedy.
//!
//! diesel passes SQLite's message on and not its result code, so that most errors are classified by
//! text. Three rules keep that safe:
//!
//! - Phrases are compared with the beginning or the end of the message. A trigger of an application
//!   may raise any text, and a phrase somewhere in it must not stop the logger. One exception has a
//!   name at both ends: `table .. has no column named ..`.
//! - Constraints come by diesel's kind, not by text.
//! - A text that no rule knows is [`StoreError::Split`]. The writer then halves the batch, and
//!   probes the store with a known-good row before it drops anything, so that an unknown error of
//!   the file costs time and no record.
//!
//! | class | remedy | examples |
//! | --- | --- | --- |
//! | `Retry` | a pause | locks, a full disk, a missing permission |
//! | `Split` | halves of the batch | constraints, triggers, unknown texts |
//! | `Reopen` | a new connection | a table or column that is gone, because the file was replaced |
//! | `Corrupt` | quarantine, then a new file | a damaged or foreign file |
//!
//! A new version of SQLite may change a message, which no compiler notices. `tests/chaos.rs`
//! provokes several of these errors.

use std::io;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{ReadError, StoreError};

/// SQLite's message for a file that does not begin like a database (`SQLITE_NOTADB`).
pub(crate) const NOT_A_DATABASE: &str = "file is not a database";

impl StoreError {
    /// Returns the remedy of an error of the file system: the next job opens the file.
    pub(crate) fn reopen(error: io::Error) -> Self {
        Self::Reopen(format!("the database file cannot be reached: {error}"))
    }
}

/// Returns the remedy of an error of diesel.
///
/// Errors without a text of SQLite are `Retry`, because they say nothing about any row.
pub(crate) fn classify(error: &DieselError) -> StoreError {
    match error {
        DieselError::DatabaseError(
            DatabaseErrorKind::UniqueViolation
            | DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation,
            info,
        ) => StoreError::Split(info.message().into()),
        DieselError::DatabaseError(_, info) => classify_text(info.message()),
        DieselError::SerializationError(_) => StoreError::Split(error.to_string()),
        _ => StoreError::Retry(error.to_string()),
    }
}

/// Returns the remedy of an error by SQLite's text.
pub(crate) fn classify_text(text: &str) -> StoreError {
    const RETRY: [&str; 10] = [
        "database is locked",
        "database table is locked",
        "database schema is locked",
        "database or disk is full",
        "disk I/O error",
        "attempt to write a readonly database",
        "unable to open database file",
        "locking protocol",
        "out of memory",
        // Of an application, whose pool has got it back like that.
        "cannot start a transaction within a transaction",
    ];
    // A name or other words may stand on either side of a phrase, such as "database table is
    // locked: t".
    let says = |phrase: &&str| text.ends_with(*phrase) || text.starts_with(*phrase);
    if RETRY.iter().any(says) || text.starts_with("Unable to open the database file") {
        StoreError::Retry(text.into())
    } else if [
        "database disk image is malformed",
        NOT_A_DATABASE,
        "malformed database schema",
    ]
    .iter()
    .any(says)
    {
        StoreError::Corrupt(text.into())
    } else if text.starts_with("no such table")
        || text.starts_with("no such column")
        || text.contains("has no column named")
    {
        StoreError::Reopen(text.into())
    } else {
        StoreError::Split(text.into())
    }
}

impl From<diesel::result::Error> for ReadError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(classify(&error))
    }
}
