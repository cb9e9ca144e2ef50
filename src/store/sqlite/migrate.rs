//! Brings the schema of a database up to date, and records the versions that it has.
//!
//! The versions stand in a table of ours, so that an application keeps diesel's for its own
//! migrations of the same file. Invariant: our table says what the schema is. Each migration
//! records itself there, whichever harness runs it, and runs only if it is not recorded. An
//! application may therefore chain [`MIGRATIONS`] with its own, before or after a logger ran them:
//! its harness then records in diesel's table that it called them.
//!
//! The first versions of this crate recorded in diesel's table. [`run_migrations`] moves those
//! versions to our table while ours is empty. Versions that stand in diesel's table later were
//! recorded by an application that chains us. Its harness needs them there.
//!
//! # The migrations
//!
//! | version | change | care |
//! | --- | --- | --- |
//! | 11-23 | creates the failures | |
//! | 11-24 | creates the counts | |
//! | 11-25 | creates statuses and drops | |
//! | 11-26 | removes `AUTOINCREMENT`, allows unmeasured numbers, adds log and retention | changes two definitions in the text of the schema, in time that does not grow with the rows |
//! | 11-27 | renames the table of statuses | works beside views of users that still name the old one |
//! | 11-28 | creates the sources, and a column of failures for their ids | rewrites no row |
//!
//! A migration that was published is never changed: a database that ran it would not get the
//! change, and one that did not run it would end up different. A new one has to work
//!
//! - on a file of any size, within the time that a start may take;
//! - beside columns, indexes, triggers and views that users added;
//! - in one transaction with all the others, so that a process that is killed leaves the old
//!   schema;
//! - twice, if an application reverts it: `down.sql` exists for that.
//!
//! # Two tables of versions
//!
//! An application that chains our migrations has them in diesel's table; a logger has them in ours.
//! Both may start first, so that each migration asks our table and does nothing if it is recorded
//! there. [`adopt`] fills our table from diesel's while it is empty, and never afterwards: versions
//! that come into diesel's table later say what the harness of the application called, not what the
//! schema is.

use diesel::connection::{BoxableConnection, SimpleConnection};
use diesel::migration::{
    self, Migration, MigrationMetadata, MigrationName, MigrationSource, MigrationVersion,
};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{Bool, Text};
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::error::{MigrationError, StoreError};
use crate::store::sqlite::errors::{classify, classify_text};
use crate::store::sqlite::schema::memory_retrieval_failures::dsl;

const EMBEDDED: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Our table of versions, and diesel's. Both names are part of the file format.
const TABLE: &str = "memory_retrieval_migrations";
const DIESEL_TABLE: &str = "__diesel_schema_migrations";

const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS memory_retrieval_migrations ( \
     version TEXT NOT NULL PRIMARY KEY, run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID";

/// The migration that replaces parts of two definitions in the text of the schema, where it finds
/// nothing if another program wrote that text.
const REPLACES_DEFINITIONS: &str = "202611260000010000";
/// Returns a row for each table that still has its old definition afterwards.
const OLD_DEFINITIONS: [(&str, &str); 2] = [
    (
        "memory_retrieval_failures",
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'memory_retrieval_failures' \
         AND (sql LIKE '%AUTOINCREMENT%' OR EXISTS (SELECT 1 FROM pragma_table_info('memory_retrieval_failures') AS part \
         WHERE part.\"notnull\" = 1 AND part.name IN ('turn_index', 'result_count', 'latency_ms')))",
    ),
    (
        "memory_retrieval_question_marks",
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'memory_retrieval_question_marks' \
         AND instr(sql, 'CHECK (status = ''open'' OR status = ''resolved'' OR status = ''ignored'')') = 0",
    ),
];

/// The migrations of the log's tables, for an application that runs them together with its own, by
/// one harness.
///
/// A logger runs them by itself at its start, and [`run_migrations`] runs them at a moment of the
/// application's choice. Both record them in the table `memory_retrieval_migrations`, so that
/// `__diesel_schema_migrations` contains the application's migrations alone. Use this source only
/// to chain it with the application's:
///
/// ```
/// use diesel::migration::{Migration, MigrationSource, Result};
/// use diesel::sqlite::Sqlite;
/// # struct Own;
/// # impl MigrationSource<Sqlite> for Own {
/// #     fn migrations(&self) -> Result<Vec<Box<dyn Migration<Sqlite>>>> { Ok(Vec::new()) }
/// # }
/// # const OWN: Own = Own; // embed_migrations!()
///
/// struct All;
///
/// impl MigrationSource<Sqlite> for All {
///     fn migrations(&self) -> Result<Vec<Box<dyn Migration<Sqlite>>>> {
///         let mut all = OWN.migrations()?;
///         all.extend(failure_logger::sqlite::MIGRATIONS.migrations()?);
///         Ok(all)
///     }
/// }
/// # use diesel::Connection as _;
/// # use diesel_migrations::MigrationHarness as _;
/// # let mut conn = diesel::SqliteConnection::establish(":memory:")?;
/// // In one transaction with the lock, because two processes that migrate at once race.
/// conn.immediate_transaction(|conn| conn.run_pending_migrations(All).map(drop))?;
/// # assert!(!conn.has_pending_migration(All)?);
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
///
/// - Each migration records itself in `memory_retrieval_migrations`, whichever harness runs it. If
///   it is recorded there already, it does nothing. The application and loggers may therefore run
///   them in any order. A start of the logger leaves the versions in `__diesel_schema_migrations`
///   that the application's harness recorded.
/// - diesel reverts by version: `revert_last_migration` of a chained source reverts one of these
///   migrations if its version is the largest. That changes or drops tables of the log. A logger
///   that starts runs it again.
/// - Do not run this source alone with diesel's harness: its versions would stand in
///   `__diesel_schema_migrations`, the application's source would not contain them, and
///   `revert_last_migration` of the application would end with `UnknownMigrationVersion`. The same
///   happens to an application that stops chaining. To get out of it, delete the versions from
///   `__diesel_schema_migrations` that `memory_retrieval_migrations` contains.
///
/// The first versions of this crate recorded in `__diesel_schema_migrations`. The first
/// [`run_migrations`], or the first start of a logger, moves their versions to
/// `memory_retrieval_migrations`, if that has none. If a chained source runs first, it copies them,
/// because the application's harness needs them where they are.
pub const MIGRATIONS: Migrations = Migrations(());

/// The type of [`MIGRATIONS`].
#[derive(Debug, Clone, Copy)]
pub struct Migrations(());

/// Runs the migrations that the database lacks, all of them or none, under an immediate
/// transaction.
///
/// For applications that choose the moment, with
/// [`LoggerConfig::migrate(false)`](crate::LoggerConfig::migrate). If the schema is up to date,
/// nothing changes. The connection needs no settings of ours and must not be in a transaction; its
/// `busy_timeout` says how long to wait for other connections.
///
/// ```
/// use diesel::Connection as _;
/// use failure_logger::sqlite;
///
/// let mut conn = diesel::SqliteConnection::establish(":memory:")?;
/// sqlite::run_migrations(&mut conn)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The database is as it was, and the error says what to do.
pub fn run_migrations(conn: &mut SqliteConnection) -> Result<(), MigrationError> {
    // Under a lock, because two processes that migrate at once race (diesel issue 3707): both read
    // that a version is missing, and the second one fails when it creates the table.
    under_lock(conn, |conn| {
        Versions::read(conn)?;
        take_over(conn).map_err(|error| refusal(&error))?;
        Recorded(conn)
            .run_pending_migrations(MIGRATIONS)
            .map_err(|error| refusal_of_text(error.to_string()))?;
        failpoint!("store-migrated", |_| Err(MigrationError::Incompatible(
            "injected".into()
        )));
        check_table(conn)
    })
}

/// Fails unless the schema can be used as it is, and the file can be written. Changes nothing.
pub(crate) fn check_usable(conn: &mut SqliteConnection) -> Result<(), MigrationError> {
    under_lock(conn, |conn| {
        check_table(conn)?;
        // Locking alone does not fail on a file that is read-only.
        conn.batch_execute("DELETE FROM memory_retrieval_failures WHERE FALSE")
            .map_err(|error| refusal(&error))
    })
}

/// Rolls back after an error, which is the first one.
fn under_lock(
    conn: &mut SqliteConnection,
    work: impl FnOnce(&mut SqliteConnection) -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    let mut cause = None;
    conn.immediate_transaction(|conn| {
        work(conn).map_err(|error| {
            cause = Some(error);
            DieselError::RollbackTransaction
        })
    })
    .map_err(|error| match (cause, error) {
        (Some(cause), _) => cause,
        (None, DieselError::AlreadyInTransaction) => MigrationError::InTransaction,
        (None, error) => MigrationError::Store(classify(&error)),
    })
}

/// Fails if the table of failures lacks a column that every version of ours has: another program
/// created it.
fn check_table(conn: &mut SqliteConnection) -> Result<(), MigrationError> {
    dsl::memory_retrieval_failures
        .select((dsl::event_id, dsl::created_at))
        .limit(0)
        .load::<(Vec<u8>, i64)>(conn)
        .map(drop)
        .map_err(|error| refusal(&error))
}

/// Versions of a schema, in ascending order.
pub(crate) struct Versions {
    /// Recorded in the database.
    pub(crate) found: Vec<String>,
    /// Those of this program.
    pub(crate) needed: Vec<String>,
}

impl Versions {
    /// Looks into both tables. Fails if the database has a version that this program does not know.
    pub(crate) fn read(conn: &mut SqliteConnection) -> Result<Self, MigrationError> {
        let needed = needed();
        let mut found = recorded(conn, TABLE)?;
        if found.is_empty() {
            // Other versions in diesel's table are the application's, and no sign of a newer
            // logger.
            found = recorded(conn, DIESEL_TABLE)?;
            found.retain(|version| needed.contains(version));
        }
        if found.iter().any(|version| !needed.contains(version)) {
            return Err(MigrationError::TooNew { found, needed });
        }
        Ok(Self { found, needed })
    }

    /// Returns `true` if no migration is missing.
    pub(crate) fn are_current(&self) -> bool {
        self.needed
            .iter()
            .all(|version| self.found.contains(version))
    }
}

/// Returns the versions of [`MIGRATIONS`], in ascending order.
pub(crate) fn needed() -> Vec<String> {
    // Embedded ones are always there.
    let migrations = MIGRATIONS.migrations().unwrap_or_default();
    let mut versions: Vec<_> = migrations
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    versions.sort_unstable();
    versions
}

/// Returns the versions in one of the two tables; none if there is no such table.
fn recorded(conn: &mut SqliteConnection, table: &str) -> Result<Vec<String>, MigrationError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        version: String,
    }
    let exists = exists(conn, table).map_err(|error| refusal(&error))?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows = diesel::sql_query(format!("SELECT version FROM {table} ORDER BY version"))
        .load::<Row>(conn);
    match rows {
        Ok(rows) => Ok(rows.into_iter().map(|row| row.version).collect()),
        Err(error) => Err(match refusal(&error) {
            MigrationError::Incompatible(cause) => MigrationError::Incompatible(format!(
                "another program created the table {table}: {cause}"
            )),
            other => other,
        }),
    }
}

/// Returns `true` if the schema has anything with this name.
fn exists(conn: &mut SqliteConnection, table: &str) -> QueryResult<bool> {
    diesel::select(
        diesel::dsl::sql::<Bool>("EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ")
            .bind::<Text, _>(table)
            .sql(")"),
    )
    .get_result(conn)
}

/// Moves our versions from diesel's table to ours while ours is empty.
///
/// Only [`run_migrations`] deletes them from diesel's table. A chained source copies them, because
/// the harness of the application, which runs it, needs them there.
fn take_over(conn: &mut SqliteConnection) -> QueryResult<()> {
    let is_first = !exists(conn, TABLE)?
        || diesel::select(diesel::dsl::sql::<Bool>(
            "NOT EXISTS (SELECT 1 FROM memory_retrieval_migrations)",
        ))
        .get_result(conn)?;
    adopt(conn)?;
    if is_first && exists(conn, DIESEL_TABLE)? {
        conn.batch_execute(
            "DELETE FROM __diesel_schema_migrations WHERE version IN (SELECT version FROM \
             memory_retrieval_migrations)",
        )?;
    }
    Ok(())
}

/// Creates our table, and copies our versions from diesel's table while ours is empty.
fn adopt<C: SimpleConnection + ?Sized>(conn: &mut C) -> QueryResult<()> {
    // Begins a transaction of the application's with the write lock: one that has read does not
    // wait for it.
    unless_missing(
        TABLE,
        conn.batch_execute("DELETE FROM memory_retrieval_migrations WHERE version IS NULL"),
    )?;
    conn.batch_execute(CREATE_TABLE)?;
    let copied = conn.batch_execute(&format!(
        "INSERT INTO memory_retrieval_migrations (version, run_on) \
         SELECT version, run_on FROM __diesel_schema_migrations WHERE version IN ('{}') \
         AND NOT EXISTS (SELECT 1 FROM memory_retrieval_migrations)",
        needed().join("', '")
    ));
    unless_missing(DIESEL_TABLE, copied)
}

/// Ignores that there is no such table.
fn unless_missing(table: &str, executed: QueryResult<()>) -> QueryResult<()> {
    match executed {
        Err(DieselError::DatabaseError(_, info))
            if info.message() == format!("no such table: {table}") =>
        {
            Ok(())
        }
        executed => executed,
    }
}

impl MigrationSource<Sqlite> for Migrations {
    fn migrations(&self) -> migration::Result<Vec<Box<dyn Migration<Sqlite>>>> {
        let embedded: Vec<Box<dyn Migration<Sqlite>>> = EMBEDDED.migrations()?;
        Ok(embedded
            .into_iter()
            .map(|migration| Box::new(Recording(migration)) as _)
            .collect())
    }
}

/// A migration that records itself in our table, and runs once.
///
/// It knows of the connection only that it executes statements: an application's may be pooled or
/// wrapped.
struct Recording(Box<dyn Migration<Sqlite>>);

impl Recording {
    /// Returns the version: the date and number in the name of the folder, without its dashes.
    fn version(&self) -> String {
        self.0.name().version().to_string()
    }

    /// Returns `false` if it was recorded already.
    fn record(&self, conn: &mut dyn BoxableConnection<Sqlite>) -> QueryResult<bool> {
        adopt(conn)?;
        let version = self.version();
        match conn.batch_execute(&format!(
            "INSERT INTO memory_retrieval_migrations (version) VALUES ('{version}')"
        )) {
            Ok(()) => Ok(true),
            Err(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Migration<Sqlite> for Recording {
    fn run(&self, conn: &mut dyn BoxableConnection<Sqlite>) -> migration::Result<()> {
        if !self.record(conn)? {
            return Ok(());
        }
        self.0.run(conn)?;
        if self.version() == REPLACES_DEFINITIONS {
            check_definitions(conn)
        } else {
            Ok(())
        }
    }

    fn revert(&self, conn: &mut dyn BoxableConnection<Sqlite>) -> migration::Result<()> {
        if !self.record(conn)? {
            // `record` returns `false` if the migration was recorded, and only then there is
            // something to revert. If it was not, `record` has recorded it, which the deletion
            // below takes back.
            self.0.revert(conn)?;
        }
        let version = self.version();
        Ok(conn.batch_execute(&format!(
            "DELETE FROM memory_retrieval_migrations WHERE version = '{version}'"
        ))?)
    }

    fn metadata(&self) -> &dyn MigrationMetadata {
        self.0.metadata()
    }

    fn name(&self) -> &dyn MigrationName {
        self.0.name()
    }
}

/// Fails if a table still has its old definition.
fn check_definitions(conn: &mut dyn BoxableConnection<Sqlite>) -> migration::Result<()> {
    for (table, is_old) in OLD_DEFINITIONS {
        // A statement can tell what it found only by its failure: no version is NULL.
        let checked = conn.batch_execute(&format!(
            "INSERT INTO memory_retrieval_migrations (version) SELECT NULL WHERE EXISTS ({is_old})"
        ));
        match checked {
            Err(DieselError::DatabaseError(DatabaseErrorKind::NotNullViolation, _)) => {
                return Err(format!(
                    "another program rewrote the definition of {table}, which cannot be updated; restore the \
                     definition that failure-logger created"
                )
                .into());
            }
            checked => checked?,
        }
    }
    Ok(())
}

/// Runs [`MIGRATIONS`] by the versions in our table.
struct Recorded<'a>(&'a mut SqliteConnection);

impl MigrationHarness<Sqlite> for Recorded<'_> {
    fn run_migration(
        &mut self,
        migration: &dyn Migration<Sqlite>,
    ) -> migration::Result<MigrationVersion<'static>> {
        // It records itself.
        migration.run(self.0)?;
        Ok(migration.name().version().as_owned())
    }

    fn revert_migration(
        &mut self,
        migration: &dyn Migration<Sqlite>,
    ) -> migration::Result<MigrationVersion<'static>> {
        migration.revert(self.0)?;
        Ok(migration.name().version().as_owned())
    }

    fn applied_migrations(&mut self) -> migration::Result<Vec<MigrationVersion<'static>>> {
        // The trait wants them in descending order.
        Ok(recorded(self.0, TABLE)?
            .into_iter()
            .rev()
            .map(MigrationVersion::from)
            .collect())
    }
}

fn refusal(error: &DieselError) -> MigrationError {
    match error {
        DieselError::DatabaseError(_, info) => refusal_of_text(info.message().into()),
        DieselError::DeserializationError(_) => MigrationError::Incompatible(error.to_string()),
        other => MigrationError::Store(classify(other)),
    }
}

fn refusal_of_text(cause: String) -> MigrationError {
    match classify_text(&cause) {
        // Nothing is wrong with the definitions then.
        error @ (StoreError::Retry(_) | StoreError::Corrupt(_)) => MigrationError::Store(error),
        StoreError::Split(_) | StoreError::Reopen(_) | StoreError::GiveUp(_) => {
            MigrationError::Incompatible(cause)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrated;

    fn recorded_in_ours(conn: &mut SqliteConnection) -> Vec<String> {
        recorded(conn, TABLE).unwrap()
    }

    #[test]
    fn needed_versions_are_those_of_the_folders_in_ascending_order() {
        let folders =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite")).unwrap();
        let mut versions: Vec<_> = folders
            .map(|folder| folder.unwrap().file_name().into_string().unwrap())
            .map(|name| name.split('_').next().unwrap().replace('-', ""))
            .collect();
        versions.sort();
        assert_eq!(needed(), versions);
        assert!(
            versions
                .iter()
                .any(|version| version == REPLACES_DEFINITIONS)
        );
    }

    #[test]
    fn harness_reverts_and_runs_by_our_table() {
        let mut conn = migrated();
        let all = needed();
        // To the one before that replaces definitions.
        for left in [6, 5, 4, 3] {
            assert_eq!(
                Recorded(&mut conn)
                    .revert_last_migration(MIGRATIONS)
                    .unwrap()
                    .to_string(),
                all[left]
            );
            assert_eq!(recorded_in_ours(&mut conn), all[..left]);
        }
        assert_eq!(all[3], REPLACES_DEFINITIONS);
        assert!(
            Recorded(&mut conn)
                .has_pending_migration(MIGRATIONS)
                .unwrap()
        );
        run_migrations(&mut conn).unwrap();
        assert_eq!(recorded_in_ours(&mut conn), all);
        assert_eq!(
            Recorded(&mut conn)
                .revert_all_migrations(MIGRATIONS)
                .unwrap()
                .len(),
            all.len()
        );
        assert!(
            !exists(&mut conn, "memory_retrieval_failures").unwrap()
                && recorded_in_ours(&mut conn).is_empty()
        );
        assert!(!exists(&mut conn, DIESEL_TABLE).unwrap());
    }

    #[test]
    fn versions_of_an_application_are_neither_ours_nor_too_new() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.batch_execute(
            "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, \
             run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP); \
             INSERT INTO __diesel_schema_migrations (version) VALUES ('202611240000010000'), ('20990101000000')",
        )
        .unwrap();
        let versions = Versions::read(&mut conn).unwrap();
        assert_eq!((versions.found.len(), versions.are_current()), (1, false));
        adopt(&mut conn).unwrap();
        assert_eq!(recorded_in_ours(&mut conn), ["202611240000010000"]);
        // Ours is not empty any more.
        conn.batch_execute(
            "INSERT INTO __diesel_schema_migrations (version) VALUES ('202611250000010000')",
        )
        .unwrap();
        take_over(&mut conn).unwrap();
        assert_eq!(recorded_in_ours(&mut conn), ["202611240000010000"]);
        assert_eq!(recorded(&mut conn, DIESEL_TABLE).unwrap().len(), 3);
    }

    #[test]
    fn refusal_blames_the_schema_only_if_nothing_else_is_wrong() {
        let text = |text: &str| text.to_owned();
        for cause in [
            "database is locked",
            "database or disk is full",
            "attempt to write a readonly database",
        ] {
            assert_eq!(
                refusal_of_text(text(cause)),
                MigrationError::Store(StoreError::Retry(text(cause)))
            );
        }
        for cause in ["database disk image is malformed", "file is not a database"] {
            assert_eq!(
                refusal_of_text(text(cause)),
                MigrationError::Store(StoreError::Corrupt(text(cause)))
            );
        }
        for cause in [
            "no such column: event_id",
            "CHECK constraint failed: status",
        ] {
            assert_eq!(
                refusal_of_text(text(cause)),
                MigrationError::Incompatible(text(cause))
            );
        }
    }
}
