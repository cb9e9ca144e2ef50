//! Classifies the errors of SQLite by their remedy.

use std::io;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{ReadError, StoreError};

/// SQLite's message for a file that does not begin like a database.
pub(crate) const NOT_A_DATABASE: &str = "file is not a database";

impl StoreError {
    pub(crate) fn reopen(error: io::Error) -> Self {
        Self::Reopen(format!("the database file cannot be reached: {error}"))
    }
}

/// Returns the remedy of an error of diesel.
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

/// diesel passes no code on, only SQLite's text. Whole phrases, because triggers may say anything.
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
