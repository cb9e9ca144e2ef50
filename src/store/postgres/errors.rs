//! Classifies the errors of PostgreSQL by their remedy.
//!
//! diesel names the kind of a few SQLSTATEs (23xxx, 25006, 40001, 08xxx) and passes on the message
//! of the others without their code. Those are classified by the beginning of the message, which is
//! English unless the administrator of the server chose another language. A message that no rule
//! knows is [`StoreError::Split`]: the writer halves the batch, and probes the store with a
//! known-good row before it drops anything, so that an unknown error of the server costs time and
//! no record.
//!
//! | class | SQLSTATEs | remedy |
//! | --- | --- | --- |
//! | `Retry` | 08xxx, 25006, 40001, 40P01, 53xxx, 55P03, 57014, 57P01 to 57P03, 42501, a lost connection | a pause and a new connection |
//! | `Split` | 22xxx, 23xxx, unknown messages | halves of the batch |
//! | `Reopen` | 42P01, 42703, 3F000 | the schema is checked and migrated |

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{ReadError, StoreError};

/// Beginnings of messages that say nothing about any row.
const RETRY: [&str; 23] = [
    "deadlock detected",
    "canceling statement due to",
    "canceling authentication due to",
    "terminating connection due to",
    "the database system is",
    "could not extend file",
    "could not write",
    "could not fsync",
    "could not open",
    "could not resize shared memory",
    "out of memory",
    "out of shared memory",
    "sorry, too many clients already",
    "remaining connection slots are reserved",
    "too many connections",
    "cannot execute",
    "permission denied",
    "server closed the connection",
    "connection",
    "no connection to the server",
    "SSL",
    "could not serialize access",
    // A pooler gave the transaction another session.
    "prepared statement",
];

/// Returns the remedy of an error of diesel.
pub(crate) fn classify(error: &DieselError) -> StoreError {
    match error {
        DieselError::DatabaseError(kind, info) => classify_kind(kind, info.message()),
        DieselError::SerializationError(_) => StoreError::Split(error.to_string()),
        _ => StoreError::Retry(error.to_string()),
    }
}

fn classify_kind(kind: &DatabaseErrorKind, message: &str) -> StoreError {
    let message = message.trim_end().to_owned();
    match kind {
        DatabaseErrorKind::UniqueViolation
        | DatabaseErrorKind::ForeignKeyViolation
        | DatabaseErrorKind::NotNullViolation
        | DatabaseErrorKind::CheckViolation
        | DatabaseErrorKind::RestrictViolation
        | DatabaseErrorKind::ExclusionViolation => StoreError::Split(message),
        DatabaseErrorKind::SerializationFailure
        | DatabaseErrorKind::ReadOnlyTransaction
        | DatabaseErrorKind::ClosedConnection
        | DatabaseErrorKind::UnableToSendCommand => StoreError::Retry(message),
        // The kind is open for more: they are unknown as well.
        _ => classify_text(message),
    }
}

fn classify_text(message: String) -> StoreError {
    if RETRY.iter().any(|phrase| message.starts_with(phrase)) {
        StoreError::Retry(message)
    } else if is_about_the_schema(&message) {
        StoreError::Reopen(message)
    } else {
        StoreError::Split(message)
    }
}

/// Returns `true` for a table, column or schema that is missing.
fn is_about_the_schema(message: &str) -> bool {
    ["relation ", "column ", "schema "]
        .iter()
        .any(|what| message.starts_with(what))
        && message.contains("does not exist")
}

/// Returns `true` if the server ended a statement at its timeout.
pub(crate) fn is_timeout(error: &StoreError) -> bool {
    matches!(error, StoreError::Retry(cause)
        if cause.starts_with("canceling statement due to statement timeout"))
}

/// Returns the error of a read.
pub(crate) fn read_error(error: &DieselError) -> ReadError {
    match classify(error) {
        error if is_timeout(&error) => ReadError::TimedOut,
        error => ReadError::Store(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_their_remedy() {
        let of = |kind, message: &str| classify_kind(&kind, message);
        for message in [
            "deadlock detected",
            "canceling statement due to lock timeout",
            "terminating connection due to administrator command",
            "the database system is starting up",
            "could not extend file \"base/5/16\": No space left on device",
            "server closed the connection unexpectedly",
        ] {
            let error = of(DatabaseErrorKind::Unknown, message);
            assert_eq!(error, StoreError::Retry(message.into()));
        }
        for (kind, message) in [
            (DatabaseErrorKind::SerializationFailure, "40001"),
            (DatabaseErrorKind::ReadOnlyTransaction, "25006"),
            (DatabaseErrorKind::ClosedConnection, "08006"),
        ] {
            assert_eq!(of(kind, message), StoreError::Retry(message.into()));
        }
        for message in [
            "relation \"memory_retrieval_failures\" does not exist",
            "column \"uncounted\" of relation \"memory_retrieval_failures\" does not exist",
        ] {
            let error = of(DatabaseErrorKind::Unknown, message);
            assert_eq!(error, StoreError::Reopen(message.into()));
        }
        for (kind, message) in [
            (DatabaseErrorKind::CheckViolation, "23514"),
            (
                DatabaseErrorKind::Unknown,
                "value too long for type character varying(5)",
            ),
            (
                DatabaseErrorKind::Unknown,
                "a trigger reports a deadlock detected",
            ),
        ] {
            assert_eq!(of(kind, message), StoreError::Split(message.into()));
        }
    }
}
