//! The schema's versions, in a table of ours: beside an application's own migrations, in every
//! order, and taken over from databases of the first versions. A logger without the right to
//! migrate leaves the schema as it is.

mod common;

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use common::{TestDb, block_on, eventually, no_hit};
use diesel::connection::{BoxableConnection, SimpleConnection as _};
use diesel::migration::{
    self, Migration, MigrationMetadata, MigrationName, MigrationSource, MigrationVersion,
};
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use failure_logger::error::{StoreError, Unhealthy};
use failure_logger::sqlite::{self, MIGRATIONS, MigrationError};
use failure_logger::{FailureLogger, LoggerConfig, StartError};

/// Migrations that the first versions ran by diesel's own harness.
const FIRST_VERSIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const OURS: [&str; 7] = [
    "202611230000010000",
    "202611240000010000",
    "202611250000010000",
    "202611260000010000",
    "202611270000010000",
    "202611280000010000",
    "202611290000020000",
];
const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/2026-11-25/failures.db"
);
const ROWS: i64 = 89;
/// Versions of an application before all of ours, between them, and after them.
const VERSIONS: [&str; 3] = ["20200101000000", "20261124120000", "20990101000000"];

/// A migration of an application: a table of its own.
struct Own(&'static str);

impl Own {
    fn table(&self) -> String {
        format!("orders_{}", self.0)
    }
}

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl MigrationName for Own {
    fn version(&self) -> MigrationVersion<'_> {
        self.0.into()
    }
}

impl MigrationMetadata for Own {}

impl Migration<Sqlite> for Own {
    fn run(&self, conn: &mut dyn BoxableConnection<Sqlite>) -> migration::Result<()> {
        Ok(conn.batch_execute(&format!(
            "CREATE TABLE {} (id INTEGER PRIMARY KEY)",
            self.table()
        ))?)
    }

    fn revert(&self, conn: &mut dyn BoxableConnection<Sqlite>) -> migration::Result<()> {
        Ok(conn.batch_execute(&format!("DROP TABLE {}", self.table()))?)
    }

    fn metadata(&self) -> &dyn MigrationMetadata {
        self
    }

    fn name(&self) -> &dyn MigrationName {
        self
    }
}

/// The migrations of an application, alone or chained with ours.
#[derive(Clone, Copy)]
enum App {
    Alone(&'static [&'static str]),
    Chained(&'static [&'static str]),
}

impl MigrationSource<Sqlite> for App {
    fn migrations(&self) -> migration::Result<Vec<Box<dyn Migration<Sqlite>>>> {
        let (App::Alone(versions) | App::Chained(versions)) = self;
        let mut all: Vec<Box<dyn Migration<Sqlite>>> = Vec::new();
        all.extend(
            versions
                .iter()
                .map(|version| Box::new(Own(version)) as Box<dyn Migration<Sqlite>>),
        );
        if let App::Chained(_) = self {
            all.extend(MIGRATIONS.migrations()?);
        }
        Ok(all)
    }
}

impl App {
    fn run(self, db: &TestDb) -> Vec<String> {
        let mut conn = db.connect();
        conn.run_pending_migrations(self)
            .expect("run")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn revert_last(self, db: &TestDb) -> migration::Result<String> {
        Ok(db.connect().revert_last_migration(self)?.to_string())
    }

    /// Reverts the application's last migration, and runs it once more.
    fn redo(self, db: &TestDb) {
        let (App::Alone(versions) | App::Chained(versions)) = self;
        let last = *versions.last().unwrap();
        let table = Own(last).table();
        assert!(has_table(db, &table));
        assert_eq!(self.revert_last(db).unwrap(), last);
        assert!(!has_table(db, &table));
        assert_eq!(self.run(db), [last]);
        assert!(has_table(db, &table));
    }
}

fn column(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Cell {
        #[diesel(sql_type = Text)]
        value: String,
    }
    diesel::sql_query(sql)
        .load::<Cell>(conn)
        .expect(sql)
        .into_iter()
        .map(|cell| cell.value)
        .collect()
}

fn has_table(db: &TestDb, name: &str) -> bool {
    db.integer(&format!(
        "SELECT count(*) FROM sqlite_schema WHERE name = '{name}'"
    )) == 1
}

/// Returns the versions in our table, or none if there is no such table.
fn ours(db: &TestDb) -> Vec<String> {
    versions(db, "memory_retrieval_migrations")
}

fn diesels(db: &TestDb) -> Vec<String> {
    versions(db, "__diesel_schema_migrations")
}

fn versions(db: &TestDb, table: &str) -> Vec<String> {
    if !has_table(db, table) {
        return Vec::new();
    }
    column(
        &mut db.connect(),
        &format!("SELECT version AS value FROM {table} ORDER BY version"),
    )
}

/// Returns all definitions and versions.
fn schema(db: &TestDb) -> (Vec<String>, Vec<String>, Vec<String>) {
    (definitions(db), ours(db), diesels(db))
}

/// Returns all definitions but those of statistics, which SQLite creates when a store is closed.
fn definitions(db: &TestDb) -> Vec<String> {
    let sql = "SELECT type || name || coalesce(sql, '') AS value FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' \
         ORDER BY type, name";
    column(&mut db.connect(), sql)
}

/// Creates a database of the first versions, which recorded in diesel's table.
fn first_version() -> TestDb {
    let db = TestDb::new();
    for suffix in ["", "-wal"] {
        fs::copy(
            format!("{FIXTURE}{suffix}"),
            format!("{}{suffix}", db.url()),
        )
        .unwrap();
    }
    assert_eq!(diesels(&db), OURS[..3]);
    db
}

/// Creates the same with all migrations of today.
fn first_version_of_today() -> TestDb {
    let db = TestDb::new();
    let mut conn = db.connect();
    conn.immediate_transaction(|conn| conn.run_pending_migrations(FIRST_VERSIONS).map(drop))
        .unwrap();
    assert_eq!(diesels(&db), OURS);
    db
}

/// Starts a logger that deletes nothing, stores a record, and ends.
fn log(db: &TestDb) {
    let logger = FailureLogger::spawn(db.config().retention_days(0).attempts_retention_days(0))
        .expect("spawn");
    logger.log(no_hit(0));
    assert_eq!(
        block_on(logger.shutdown())
            .expect("shutdown")
            .stats
            .persisted,
        1
    );
}

fn start_error(db: &TestDb, migrate: bool) -> StartError {
    FailureLogger::spawn(db.config().migrate(migrate))
        .map(drop)
        .expect_err("refused")
}

#[test]
fn new_database_has_our_table_and_not_diesels() {
    let db = TestDb::new();
    log(&db);
    assert_eq!(ours(&db), OURS);
    assert!(!has_table(&db, "__diesel_schema_migrations"));
    assert_eq!(
        db.integer(
            "SELECT count(*) FROM memory_retrieval_migrations WHERE run_on <= CURRENT_TIMESTAMP"
        ),
        7
    );
}

#[test]
fn application_reverts_and_redoes_migrations_in_any_order() {
    for nth in 0..VERSIONS.len() {
        let app = App::Alone(&VERSIONS[nth..=nth]);
        for logger_is_first in [true, false] {
            let db = TestDb::new();
            if logger_is_first {
                log(&db);
            }
            app.run(&db);
            app.redo(&db);
            log(&db);
            app.redo(&db);
            assert_eq!(
                (ours(&db), diesels(&db)),
                (OURS.map(String::from).to_vec(), vec![VERSIONS[nth].into()])
            );
            let rows = db.rows();
            let mut conn = db.connect();
            assert_eq!(conn.revert_all_migrations(app).unwrap().len(), 1);
            assert_eq!(db.rows(), rows, "the log is not the application's");
        }
    }
}

#[test]
fn take_over_moves_our_versions_and_no_other() {
    for nth in 0..VERSIONS.len() {
        let app = App::Alone(&VERSIONS[nth..=nth]);
        let db = first_version();
        app.run(&db);
        let run_on = "SELECT version || run_on AS value FROM";
        let before = column(
            &mut db.connect(),
            &format!("{run_on} __diesel_schema_migrations WHERE version < '20261125'"),
        );
        if nth < 2 {
            // Our migrations are the last ones.
            let error = app.revert_last(&db).unwrap_err().to_string();
            assert!(
                error.contains("Unable to find migration version 20261125"),
                "{error}"
            );
        }
        log(&db);
        assert_eq!(
            (ours(&db), diesels(&db)),
            (OURS.map(String::from).to_vec(), vec![VERSIONS[nth].into()])
        );
        let after = column(
            &mut db.connect(),
            &format!("{run_on} memory_retrieval_migrations WHERE version < '20261125'"),
        );
        assert!(
            after.iter().all(|version| before.contains(version)) && after.len() == 2,
            "{before:?}, {after:?}"
        );
        app.redo(&db);
        assert_eq!(db.rows(), ROWS + 1);
    }
}

#[test]
fn take_over_happens_once() {
    let db = first_version();
    log(&db);
    // The application chains ours from now on.
    App::Chained(&VERSIONS).run(&db);
    let before = schema(&db);
    log(&db);
    assert_eq!(schema(&db), before);
    assert_eq!(diesels(&db).len(), OURS.len() + VERSIONS.len());
}

#[test]
fn take_over_of_a_current_schema_changes_the_two_tables_alone() {
    let db = first_version_of_today();
    let (before, ..) = schema(&db);
    sqlite::run_migrations(&mut db.connect()).unwrap();
    let (after, ours, diesels) = schema(&db);
    assert_eq!(
        (ours, diesels),
        (OURS.map(String::from).to_vec(), Vec::new())
    );
    let new: Vec<_> = after
        .iter()
        .filter(|definition| !before.contains(definition))
        .collect();
    assert!(
        new.len() == 1 && new[0].starts_with("tablememory_retrieval_migrations"),
        "{new:?}"
    );
}

#[test]
fn first_version_fails_after_the_take_over_without_a_change() {
    for db in [TestDb::new(), first_version(), first_version_of_today()] {
        log(&db);
        let (before, rows) = (schema(&db), db.rows());
        let mut conn = db.connect();
        let mut cause = String::new();
        let _: QueryResult<()> = conn.immediate_transaction(|conn| {
            conn.run_pending_migrations(FIRST_VERSIONS)
                .map(drop)
                .map_err(|error| {
                    cause = error.to_string();
                    diesel::result::Error::RollbackTransaction
                })
        });
        assert!(
            cause.contains("table memory_retrieval_failures already exists"),
            "{cause}"
        );
        // Without one transaction around all migrations, it creates diesel's table alone.
        assert_eq!((schema(&db), db.rows()), (before.clone(), rows));
        assert!(conn.run_pending_migrations(FIRST_VERSIONS).is_err());
        let (definitions, ours, diesels) = schema(&db);
        let without_diesels = |definitions: &[String]| -> Vec<String> {
            definitions
                .iter()
                .filter(|text| !text.contains("__diesel_schema_migrations"))
                .cloned()
                .collect()
        };
        assert_eq!(without_diesels(&definitions), without_diesels(&before.0));
        assert_eq!((ours, diesels), (before.1, before.2));
        log(&db);
        assert_eq!(db.rows(), rows + 1);
    }
}

#[test]
fn chained_application_and_logger_work_in_any_order() {
    for nth in 0..VERSIONS.len() {
        let app = App::Chained(&VERSIONS[nth..=nth]);
        for file in [TestDb::new, first_version, first_version_of_today] {
            for logger_is_first in [true, false] {
                let db = file();
                if logger_is_first {
                    log(&db);
                }
                app.run(&db);
                if ours(&db).is_empty() {
                    // None of ours was pending, so none copied the versions. The logger moves them,
                    // and the application's harness calls the migrations once more.
                    log(&db);
                    assert_eq!(app.run(&db), OURS);
                }
                let rows = db.rows();
                for _ in 0..2 {
                    log(&db);
                    assert_eq!(ours(&db), OURS);
                    assert_eq!(diesels(&db).len(), OURS.len() + 1);
                    assert_eq!(
                        app.run(&db),
                        [""; 0],
                        "nothing is pending at a restart of the application"
                    );
                }
                assert_eq!(db.rows(), rows + 2);
                let own = Own(VERSIONS[nth]);
                if nth == 2 {
                    app.redo(&db);
                } else {
                    // By version, the last migration is ours.
                    db.connect().revert_migration(&own).unwrap();
                    assert_eq!(app.run(&db), [VERSIONS[nth]]);
                }
                assert_eq!(db.rows(), rows + 2);
                log(&db);
            }
        }
    }
}

#[test]
fn chained_application_reverts_ours_and_a_logger_reruns_them() {
    let db = TestDb::new();
    let app = App::Chained(&VERSIONS[..1]);
    app.run(&db);
    log(&db);
    for last in [6, 5, 4, 3] {
        assert_eq!(app.revert_last(&db).unwrap(), OURS[last]);
    }
    assert_eq!((ours(&db).len(), db.rows()), (3, 1));
    assert!(
        db.schema("memory_retrieval_failures")
            .contains("AUTOINCREMENT")
    );
    log(&db);
    assert_eq!((ours(&db).len(), db.rows()), (OURS.len(), 2));
    assert_eq!(app.run(&db), OURS[3..]);

    db.connect().revert_all_migrations(app).unwrap();
    assert!(!has_table(&db, "memory_retrieval_failures"));
    assert_eq!((ours(&db), diesels(&db)), (Vec::new(), Vec::new()));
    log(&db);
    assert_eq!(app.run(&db).len(), OURS.len() + 1);
    assert_eq!((ours(&db).len(), db.rows()), (OURS.len(), 1));
}

#[test]
fn revert_of_a_migration_that_is_not_recorded_does_nothing() {
    let db = TestDb::new();
    let app = App::Chained(&VERSIONS[..1]);
    app.run(&db);
    // Another application may chain the migrations in this way, too.
    let migrations = MIGRATIONS.migrations().unwrap();
    let last = migrations
        .iter()
        .find(|migration| migration.name().version() == OURS[OURS.len() - 1].into())
        .unwrap();
    last.revert(&mut db.connect()).unwrap();
    let (definitions, ..) = schema(&db);
    assert_eq!(app.revert_last(&db).unwrap(), OURS[OURS.len() - 1]);
    assert_eq!(schema(&db).0, definitions);
    assert_eq!(ours(&db), OURS[..OURS.len() - 1]);
}

#[test]
fn chained_migrations_run_on_a_pooled_connection() {
    let db = first_version();
    let pool = Pool::new(ConnectionManager::<SqliteConnection>::new(db.url())).unwrap();
    let mut conn = pool.get().unwrap();
    conn.immediate_transaction(|conn| {
        conn.run_pending_migrations(App::Chained(&VERSIONS))
            .map(drop)
    })
    .unwrap();
    assert!(!conn.has_pending_migration(App::Chained(&VERSIONS)).unwrap());
    assert_eq!(
        (ours(&db).len(), diesels(&db).len(), db.rows()),
        (OURS.len(), OURS.len() + VERSIONS.len(), ROWS)
    );
}

#[test]
fn chained_migrations_refuse_a_rewritten_definition() {
    let db = first_version();
    db.execute(
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'turn_index  ', 'turn_index') \
         WHERE name = 'memory_retrieval_failures'; PRAGMA writable_schema = RESET;",
    );
    let before = schema(&db);
    let error = db
        .connect()
        .run_pending_migrations(App::Chained(&VERSIONS))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rewrote the definition of memory_retrieval_failures"),
        "{error}"
    );
    // Each migration has a transaction of its own.
    let (definitions, _, diesels) = schema(&db);
    assert!(
        before
            .0
            .iter()
            .all(|definition| definitions.contains(definition))
    );
    assert!(!diesels.contains(&OURS[3].into()) && !ours(&db).contains(&OURS[3].into()));
}

/// Shows the hazard that the documentation of `MIGRATIONS` names.
#[test]
fn migrations_run_by_diesel_alone_block_application_reverts() {
    let db = TestDb::new();
    let app = App::Alone(&VERSIONS[..1]);
    app.run(&db);
    db.connect().run_pending_migrations(MIGRATIONS).unwrap();
    log(&db);
    let error = app.revert_last(&db).unwrap_err().to_string();
    assert!(
        error.contains("Unable to find migration version"),
        "{error}"
    );
    // The documentation names this remedy.
    db.execute(
        "DELETE FROM __diesel_schema_migrations WHERE version IN (SELECT version FROM \
         memory_retrieval_migrations)",
    );
    app.redo(&db);
    log(&db);
    assert_eq!(db.rows(), 2);
}

#[test]
fn run_migrations_is_idempotent_and_needs_no_settings() {
    for pragma in [
        "",
        "PRAGMA foreign_keys = ON",
        "PRAGMA journal_mode = WAL",
        "PRAGMA recursive_triggers = ON",
    ] {
        let db = first_version();
        let mut conn = SqliteConnection::establish(&db.url()).unwrap();
        conn.batch_execute(pragma).unwrap();
        sqlite::run_migrations(&mut conn).unwrap();
        let before = schema(&db);
        sqlite::run_migrations(&mut conn).unwrap();
        assert_eq!(schema(&db), before);
        assert_eq!(
            (before.1, db.rows()),
            (OURS.map(String::from).to_vec(), ROWS)
        );
        log(&db);
        assert_eq!(schema(&db).0, before.0, "the logger changed nothing");
    }
    // This database is in memory, without a file.
    let mut conn = SqliteConnection::establish(":memory:").unwrap();
    sqlite::run_migrations(&mut conn).unwrap();
    sqlite::run_migrations(&mut conn).unwrap();
}

#[test]
fn run_migrations_runs_all_or_none() {
    let db = TestDb::new();
    // This table is in the way of the third migration.
    db.execute("CREATE TABLE memory_retrieval_drops (id INTEGER)");
    let before = schema(&db);
    let error = sqlite::run_migrations(&mut db.connect()).unwrap_err();
    assert!(
        matches!(&error, MigrationError::Incompatible(cause) if cause.contains("already exists")),
        "{error}"
    );
    assert_eq!(schema(&db), before);

    let db = first_version();
    db.execute("CREATE TABLE memory_retrieval_log (id INTEGER)");
    let before = schema(&db);
    sqlite::run_migrations(&mut db.connect()).unwrap_err();
    assert_eq!(schema(&db), before, "the versions are not moved either");
}

#[test]
fn run_migrations_error_names_the_remedy() {
    let db = first_version();
    let before = schema(&db);
    let mut conn = SqliteConnection::establish(&db.url()).unwrap();
    let lock = common::Lock::new(&db);
    let error = sqlite::run_migrations(&mut conn).unwrap_err();
    assert_eq!(
        error,
        MigrationError::Store(StoreError::Retry("database is locked".into()))
    );
    drop(lock);

    let within: QueryResult<_> = conn.transaction(|conn| Ok(sqlite::run_migrations(conn)));
    assert_eq!(within, Ok(Err(MigrationError::InTransaction)));

    let mut reader = SqliteConnection::establish(&format!("file:{}?mode=ro", db.url())).unwrap();
    let error = sqlite::run_migrations(&mut reader).unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    assert_eq!(schema(&db), before);
    sqlite::run_migrations(&mut conn).unwrap();
}

#[test]
fn schema_that_is_missing_is_named_if_it_may_not_be_changed() {
    let db = TestDb::new();
    let check = |error: StartError| {
        let text = error.to_string();
        assert!(
            matches!(&error, StartError::SchemaTooOld { path, found, needed }
                if *path == db.path() && found.is_empty() && *needed == OURS),
            "{error:?}"
        );
        assert!(
            text.contains("found: none; needed: 202611230000010000, 20261124"),
            "{text}"
        );
        assert!(
            text.contains("sqlite::run_migrations") && text.contains("migrate = true"),
            "{text}"
        );
    };
    check(start_error(&db, false));
    assert_eq!(
        fs::read_dir(db.folder.path()).unwrap().count(),
        0,
        "not even a lock file"
    );
    fs::File::create(db.path()).unwrap();
    check(start_error(&db, false));
    assert_eq!(fs::metadata(db.path()).unwrap().len(), 0);
    db.execute("CREATE TABLE orders (id INTEGER)");
    check(start_error(&db, false));
    assert_eq!(schema(&db).0.len(), 1);

    sqlite::run_migrations(&mut db.connect()).unwrap();
    let logger = common::spawn(db.config().migrate(false));
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.rows(), 1);
}

#[test]
fn schema_that_is_too_old_is_left_if_it_may_not_be_changed() {
    let db = first_version();
    let before = schema(&db);
    let error = start_error(&db, false);
    assert!(
        matches!(&error, StartError::SchemaTooOld { found, needed, .. } if found[..] == OURS[..3] && *needed == OURS)
    );
    assert_eq!(schema(&db), before);
    log(&db);
    db.execute("DELETE FROM memory_retrieval_migrations WHERE version = '202611290000020000'");
    let before = schema(&db);
    assert!(
        matches!(start_error(&db, false), StartError::SchemaTooOld { found, .. } if found[..] == OURS[..OURS.len() - 1])
    );
    assert_eq!(schema(&db), before);
}

#[test]
fn current_schema_of_either_table_is_used_unchanged() {
    for db in [first_version_of_today(), TestDb::new()] {
        App::Alone(&VERSIONS).run(&db);
        if diesels(&db).len() == VERSIONS.len() {
            sqlite::run_migrations(&mut db.connect()).unwrap();
        }
        let before = schema(&db);
        for _ in 0..2 {
            let logger = common::spawn(db.config().migrate(false));
            logger.log(no_hit(0));
            assert_eq!(block_on(logger.shutdown()).unwrap().stats.persisted, 1);
        }
        assert_eq!((schema(&db), db.rows()), (before, 2));
    }
}

#[test]
fn schema_that_is_too_new_is_refused_and_left() {
    let db = TestDb::new();
    log(&db);
    db.execute("INSERT INTO memory_retrieval_migrations (version) VALUES ('209901010000000000')");
    let before = schema(&db);
    for migrate in [true, false] {
        let error = start_error(&db, migrate);
        let text = error.to_string();
        assert!(
            matches!(&error, StartError::SchemaTooNew { path, found, needed }
                if *path == db.path() && found.len() == OURS.len() + 1 && *needed == OURS),
            "{error:?}"
        );
        assert!(
            text.contains("209901010000000000; needed: 2026") && text.contains("a newer version"),
            "{text}"
        );
    }
    let error = sqlite::run_migrations(&mut db.connect()).unwrap_err();
    assert!(
        matches!(&error, MigrationError::TooNew { found, .. } if found.len() == OURS.len() + 1),
        "{error}"
    );
    assert!(error.to_string().contains("209901010000000000"), "{error}");
    assert_eq!(schema(&db), before);
}

#[test]
fn migrate_has_no_effect_in_memory() {
    let logger = common::spawn(LoggerConfig::new(":memory:").migrate(false));
    logger.log(no_hit(0));
    assert_eq!(block_on(logger.shutdown()).unwrap().stats.persisted, 1);
}

#[test]
fn table_of_another_shape_is_refused_and_left() {
    for definition in [
        "TABLE memory_retrieval_migrations (id INTEGER)",
        "TABLE memory_retrieval_migrations (version TEXT)",
        "TABLE memory_retrieval_migrations (version TEXT NOT NULL PRIMARY KEY)",
        "TABLE memory_retrieval_migrations (version TEXT PRIMARY KEY, run_on TEXT, owner TEXT NOT \
         NULL)",
        "VIEW memory_retrieval_migrations AS SELECT '1' AS version, '2' AS run_on WHERE FALSE",
    ] {
        for db in [TestDb::new(), first_version()] {
            db.execute(&format!("CREATE {definition}"));
            let before = definitions(&db);
            let error = start_error(&db, true);
            assert!(
                matches!(&error, StartError::Incompatible { .. }),
                "{definition}: {error:?}"
            );
            assert_eq!(definitions(&db), before, "{definition}");
        }
    }
    for value in ["NULL", "x'ff'"] {
        let db = TestDb::new();
        db.execute(&format!(
            "CREATE TABLE memory_retrieval_migrations (version); INSERT INTO \
             memory_retrieval_migrations VALUES ({value})"
        ));
        for migrate in [true, false] {
            let error = start_error(&db, migrate);
            assert!(
                matches!(
                    &error,
                    StartError::Incompatible { .. } | StartError::SchemaTooNew { .. }
                ),
                "{value}: {error:?}"
            );
        }
    }
}

#[test]
fn empty_table_of_ours_counts_as_none() {
    const EMPTY: &str = "CREATE TABLE memory_retrieval_migrations ( \
         version TEXT NOT NULL PRIMARY KEY, run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)";
    for (db, rows) in [(TestDb::new(), 0), (first_version(), ROWS)] {
        db.execute(EMPTY);
        assert!(matches!(
            start_error(&db, false),
            StartError::SchemaTooOld { .. }
        ));
        log(&db);
        assert_eq!(
            (ours(&db), diesels(&db), db.rows()),
            (OURS.map(String::from).to_vec(), Vec::new(), rows + 1)
        );
    }
    // The tables are there without a version.
    let db = TestDb::new();
    log(&db);
    db.execute("DELETE FROM memory_retrieval_migrations");
    let before = schema(&db);
    assert!(
        matches!(start_error(&db, true), StartError::Incompatible { cause, .. } if cause.contains("already exists"))
    );
    assert_eq!((schema(&db), db.rows()), (before, 1));
}

#[test]
fn versions_without_their_tables_are_refused() {
    let db = TestDb::new();
    log(&db);
    db.execute("DROP TABLE memory_retrieval_failures");
    let before = schema(&db);
    for migrate in [true, false] {
        let error = start_error(&db, migrate);
        assert!(
            matches!(&error, StartError::Incompatible { cause, .. } if cause.contains("no such table")),
            "{error:?}"
        );
    }
    assert!(matches!(
        sqlite::run_migrations(&mut db.connect()),
        Err(MigrationError::Incompatible(_))
    ));
    assert_eq!(schema(&db), before);

    // The database is of the first versions, whose record stays where it is.
    let db = first_version_of_today();
    db.execute("DROP TABLE memory_retrieval_failures");
    let before = schema(&db);
    sqlite::run_migrations(&mut db.connect()).unwrap_err();
    assert_eq!(schema(&db), before);
}

#[test]
fn read_only_file_is_refused_whatever_migrate_says() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;

    const DATABASE: &str = "FAILURE_LOGGER_TEST_DATABASE";
    const NAME: &str = "read_only_file_is_refused_whatever_migrate_says";
    if let Ok(url) = std::env::var(DATABASE) {
        for migrate in [true, false] {
            let error = FailureLogger::spawn(LoggerConfig::new(&url).migrate(migrate))
                .map(drop)
                .unwrap_err();
            assert!(
                matches!(&error, StartError::Inaccessible { .. }),
                "migrate = {migrate}: {error:?}"
            );
            assert!(error.to_string().contains(&url), "{error}");
        }
        return;
    }
    // The database belongs to an application, whose settings no start changes.
    let shared = TestDb::new();
    App::Alone(&VERSIONS).run(&shared);
    log(&shared);
    for db in [first_version(), first_version_of_today(), shared] {
        let before = schema(&db);
        let set = |path: &std::path::Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };
        set(db.folder.path(), 0o777);
        for entry in fs::read_dir(db.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            set(
                &path,
                if path.ends_with("failures.db-lock") {
                    0o666
                } else {
                    0o444
                },
            );
        }
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args([NAME, "--exact", "--test-threads=1"])
            .env(DATABASE, db.url());
        // Permissions do not bind root.
        if fs::metadata(db.path()).unwrap().uid() == 0 {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert_eq!(schema(&db), before);
    }
}

#[test]
fn deleted_file_is_not_created_by_a_logger_that_may_not_migrate() {
    let db = TestDb::new();
    sqlite::run_migrations(&mut db.connect()).unwrap();
    let config = db
        .config()
        .migrate(false)
        .backoff(Duration::from_millis(1), Duration::from_millis(20));
    let logger = common::spawn(config);
    for file in fs::read_dir(db.folder.path()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    logger.log(no_hit(0));
    eventually("the logger to be unavailable", || {
        let _ = block_on(logger.flush());
        matches!(logger.health(), Err(Unhealthy::Unavailable { cause }) if cause.contains("sqlite::run_migrations"))
    });
    assert!(!db.path().exists());
    sqlite::run_migrations(&mut db.connect()).unwrap();
    eventually("the new file", || block_on(logger.flush()).is_ok());
    assert_eq!(
        (
            db.rows(),
            block_on(logger.shutdown()).unwrap().stats.dropped.total()
        ),
        (1, 0)
    );
}

#[test]
fn loggers_and_applications_that_migrate_at_once_all_succeed() {
    for file in [TestDb::new, first_version] {
        let db = file();
        let rows = if has_table(&db, "memory_retrieval_failures") {
            db.rows()
        } else {
            0
        };
        let barrier = Barrier::new(6);
        std::thread::scope(|scope| {
            for nth in 0..6 {
                let (db, barrier) = (&db, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    match nth % 3 {
                        0 => log(db),
                        1 => sqlite::run_migrations(&mut db.connect()).unwrap(),
                        _ => db
                            .connect()
                            .immediate_transaction(|conn| {
                                conn.run_pending_migrations(App::Chained(&VERSIONS))
                                    .map(drop)
                            })
                            .unwrap(),
                    }
                });
            }
        });
        assert_eq!((ours(&db).len(), db.rows()), (OURS.len(), rows + 2));
        assert_eq!(App::Chained(&VERSIONS).run(&db), [""; 0]);
    }
}

#[test]
fn chained_migrations_wait_for_a_logger_that_writes() {
    let db = TestDb::new();
    log(&db);
    App::Alone(&VERSIONS).run(&db);
    let mut conn = db.connect();
    conn.batch_execute("PRAGMA busy_timeout = 60000").unwrap();
    let lock = common::Lock::new(&db);
    std::thread::scope(|scope| {
        let done = scope.spawn(move || {
            conn.run_pending_migrations(App::Chained(&VERSIONS))
                .map(|versions| versions.len())
                .map_err(|e| e.to_string())
        });
        // A statement that cannot wait fails at once.
        for _ in 0..100_000 {
            if done.is_finished() {
                break;
            }
            std::thread::yield_now();
        }
        drop(lock);
        assert_eq!(done.join().unwrap(), Ok(OURS.len()));
    });
}

#[test]
fn versions_in_diesels_table_alone_make_a_file_shared() {
    let db = TestDb::new();
    db.execute("PRAGMA journal_mode = DELETE");
    App::Alone(&VERSIONS[..1]).run(&db);
    db.execute(&format!("DROP TABLE {}", Own(VERSIONS[0]).table()));
    log(&db);
    assert_eq!(
        db.pragma("journal_mode"),
        "delete",
        "an application decides on its own file"
    );
    let db = first_version();
    log(&db);
    assert_eq!(db.pragma("journal_mode"), "wal");
}
