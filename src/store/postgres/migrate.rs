//! Creates and updates the schema, on one node at a time.
//!
//! A row of `memory_retrieval_migration_lock` is locked by one connection until another one has run
//! all migrations, because some engines have no advisory locks and allow one change of the schema
//! in a transaction. The lock ends with its connection, so that a node that dies keeps no other one
//! waiting. Each statement can run once more.
//!
//! A schema that is up to date is only read: a role that may not create tables can use it.

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{BigInt, Text};

use crate::error::StoreError;
use crate::store::postgres::connection::{Connection, Purpose};
use crate::store::postgres::errors::classify;

/// A version, and the statements that lead to it.
struct Migration {
    version: &'static str,
    statements: &'static str,
}

/// In ascending order. A migration that was published is never changed.
const MIGRATIONS: [Migration; 3] = [
    Migration {
        version: "202611270000010000",
        statements: include_str!(
            "../../../migrations/postgres/2026-11-27-000001-0000_create_tables/up.sql"
        ),
    },
    Migration {
        version: "202611280000010000",
        statements: include_str!(
            "../../../migrations/postgres/2026-11-28-000001-0000_add_sources/up.sql"
        ),
    },
    Migration {
        version: "202611290000020000",
        statements: include_str!(
            "../../../migrations/postgres/2026-11-29-000002-0000_count_attempts_by_source/up.sql"
        ),
    },
];

/// The tables that the migrations themselves need.
const OWN_TABLES: &str = "\
CREATE TABLE IF NOT EXISTS memory_retrieval_migrations (version TEXT NOT NULL PRIMARY KEY);
CREATE TABLE IF NOT EXISTS memory_retrieval_migration_lock (one BIGINT NOT NULL PRIMARY KEY);
INSERT INTO memory_retrieval_migration_lock VALUES (1) ON CONFLICT DO NOTHING;
";

/// Attempts to create the own tables. Two nodes that do so at once make one of them fail, and the
/// second attempt finds the tables.
const MAX_ATTEMPTS: usize = 10;

/// Versions of a schema, in ascending order.
pub(crate) struct Versions {
    pub(crate) found: Vec<String>,
    pub(crate) needed: Vec<String>,
}

impl Versions {
    /// Reads the versions of the database. A database without the table has none.
    pub(crate) fn read(conn: &mut Connection) -> Result<Self, StoreError> {
        let found = conn.transact(Purpose::Write, |conn| {
            let exists: Exists = diesel::sql_query(TABLE_EXISTS)
                .get_result(conn)
                .map_err(|error| classify(&error))?;
            if exists.tables == 0 {
                return Ok(Vec::new());
            }
            let versions: Vec<Version> = diesel::sql_query(VERSIONS)
                .load(conn)
                .map_err(|error| classify(&error))?;
            Ok::<_, StoreError>(versions.into_iter().map(|row| row.version).collect())
        })?;
        let needed = MIGRATIONS.iter().map(|of| of.version.to_owned()).collect();
        Ok(Self { found, needed })
    }

    /// Returns `true` if no migration is missing.
    pub(crate) fn are_current(&self) -> bool {
        self.needed.iter().all(|of| self.found.contains(of))
    }

    /// Returns `true` if a newer version updated the schema.
    pub(crate) fn are_too_new(&self) -> bool {
        self.found.iter().any(|of| !self.needed.contains(of))
    }
}

/// Runs the migrations that the database lacks. `lock` and `conn` are two connections to it.
pub(crate) fn run(lock: &mut Connection, conn: &mut Connection) -> Result<(), StoreError> {
    create_own_tables(conn)?;
    lock.transact(Purpose::Hold, |lock| {
        diesel::sql_query(LOCK)
            .execute(lock)
            .map_err(|error| classify(&error))?;
        // Another node may have run them while this one waited for the lock.
        let Versions { found, .. } = Versions::read(conn)?;
        for Migration {
            version,
            statements,
        } in MIGRATIONS
            .iter()
            .filter(|of| !found.iter().any(|f| f == of.version))
        {
            run_each(conn, statements).map_err(|error| classify(&error.error))?;
            conn.transact(Purpose::Write, |conn| {
                diesel::sql_query(RECORD)
                    .bind::<Text, _>(version)
                    .execute(conn)
                    .map_err(|error| classify(&error))
            })?;
        }
        Ok(())
    })
}

/// Returns all statements, in the order in which they run, for an operator who runs them by hand.
#[cfg(any(test, feature = "program"))]
pub(crate) fn script() -> String {
    let mut script = OWN_TABLES.to_owned();
    for Migration {
        version,
        statements,
    } in MIGRATIONS
    {
        script.push_str(&format!(
            "\n{statements}\nINSERT INTO memory_retrieval_migrations VALUES ('{version}') \
             ON CONFLICT DO NOTHING;\n"
        ));
    }
    script
}

fn create_own_tables(conn: &mut Connection) -> Result<(), StoreError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match run_each(conn, OWN_TABLES) {
            Ok(()) => return Ok(()),
            Err(Failed { error }) if attempt < MAX_ATTEMPTS && was_created(&error) => {}
            Err(Failed { error }) => return Err(classify(&error)),
        }
    }
}

/// Returns `true` if another node created the same table at the same time. The server finds that by
/// a key of its catalogue, or by the name of the type of the rows.
fn was_created(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => true,
        DieselError::DatabaseError(_, info) => info.message().ends_with("already exists"),
        _ => false,
    }
}

/// Runs each statement of a script in a transaction of its own.
fn run_each(conn: &mut Connection, script: &str) -> Result<(), Failed> {
    for statement in script.split(";\n").map(str::trim) {
        if statement
            .lines()
            .all(|line| line.trim().is_empty() || line.starts_with("--"))
        {
            continue;
        }
        conn.transact(Purpose::Write, |conn| {
            conn.batch_execute(statement)
                .map_err(|error| Failed { error })
        })?;
    }
    Ok(())
}

/// An error of a statement, with the kind that [`StoreError`] lacks.
struct Failed {
    error: DieselError,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self {
            error: DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection,
                Box::new(error.to_string()),
            ),
        }
    }
}

impl super::connection::KeepsConnection for Failed {
    fn keeps_connection(&self) -> bool {
        classify(&self.error).keeps_connection()
    }
}

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = BigInt)]
    tables: i64,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// By the name that a statement would find, in any schema of the search path.
const TABLE_EXISTS: &str = "SELECT count(*) AS tables FROM (SELECT to_regclass('memory_retrieval_migrations') AS found) \
     AS t WHERE found IS NOT NULL";
const VERSIONS: &str = "SELECT version FROM memory_retrieval_migrations ORDER BY version";
const LOCK: &str = "SELECT one FROM memory_retrieval_migration_lock FOR UPDATE";
const RECORD: &str = "INSERT INTO memory_retrieval_migrations VALUES ($1) ON CONFLICT DO NOTHING";
