//! Brings the schema of a database up to date.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::Text;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use super::schema::memory_retrieval_failures::dsl;
use super::sqlite::{classify, classify_text};
use crate::error::StoreError;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Names the tables that still have a part of their old definition, which the migration to rows without AUTOINCREMENT
/// replaces. It replaces it in the text of the schema, where it finds nothing if another program wrote that text.
const OLD_DEFINITIONS: &str = "SELECT name FROM sqlite_schema \
     WHERE type = 'table' AND name = 'memory_retrieval_failures' AND (sql LIKE '%AUTOINCREMENT%' OR EXISTS (\
        SELECT 1 FROM pragma_table_info('memory_retrieval_failures') AS part WHERE part.\"notnull\" = 1 \
        AND (part.name = 'turn_index' OR part.name = 'result_count' OR part.name = 'latency_ms'))) \
     OR type = 'table' AND name = 'memory_retrieval_question_marks' \
        AND instr(sql, 'CHECK (status = ''open'' OR status = ''resolved'' OR status = ''ignored'')') = 0";

/// Reason for which a schema was not updated. The database is as it was.
#[derive(Debug)]
pub(super) enum MigrationError {
    /// The tables have not the definitions that this version expects.
    Incompatible(String),
    Store(StoreError),
}

/// Runs the migrations that the database lacks, all of them or none.
pub(super) fn migrate(conn: &mut SqliteConnection) -> Result<(), MigrationError> {
    let mut cause = None;
    // Under a lock, because two processes that migrate at once race (diesel issue 3707).
    conn.immediate_transaction(|conn| {
        run(conn).map_err(|error| {
            cause = Some(error);
            DieselError::RollbackTransaction
        })
    })
    .and_then(|()| {
        dsl::memory_retrieval_failures.select((dsl::event_id, dsl::created_at)).limit(0).load::<(Vec<u8>, i64)>(conn)
    })
    .map(drop)
    .map_err(|error| match (cause, classify(&error)) {
        (Some(cause), _) | (None, StoreError::Reopen(cause)) => match classify_text(&cause) {
            // Nothing is wrong with the definitions for it.
            error @ (StoreError::Retry(_) | StoreError::Corrupt(_)) => MigrationError::Store(error),
            _ => MigrationError::Incompatible(cause),
        },
        (None, other) => MigrationError::Store(other),
    })
}

fn run(conn: &mut SqliteConnection) -> Result<(), String> {
    let is_current = conn.run_pending_migrations(MIGRATIONS).map_err(|error| error.to_string())?.is_empty();
    failpoint!("store-migrated", |_| Err("injected".into()));
    if is_current { Ok(()) } else { check(conn) }
}

fn check(conn: &mut SqliteConnection) -> Result<(), String> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        name: String,
    }
    match diesel::sql_query(OLD_DEFINITIONS).load::<Found>(conn).map(|found| found.into_iter().next()) {
        Ok(None) => Ok(()),
        Ok(Some(Found { name })) => Err(format!(
            "another program rewrote the definition of {name}, which cannot be updated; restore the definition that \
             failure-logger created"
        )),
        Err(error) => Err(error.to_string()),
    }
}
