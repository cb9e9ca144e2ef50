//! Upgrades of a database that an earlier version wrote.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{TestDb, block_on, no_hit};
use diesel::migration::MigrationSource as _;
use diesel::prelude::*;
use diesel::sql_types::Text;
use failure_logger::report::QueryFilter;
use failure_logger::sqlite::MIGRATIONS;
use failure_logger::{
    FailureFilter, FailureLogger, FailureReader, LoggerConfig, LoggerHandle, PageRequest,
    QueryStatus, RetrievalFailureType, StartError, TimeRange,
};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/2026-11-25");
const ROWS: i64 = 89;
/// Number of rows that are in the journal alone.
const ROWS_IN_JOURNAL: i64 = 15;
const LARGEST_ID: i64 = 91;
const OLD_COLUMNS: &str = "id, event_id, conversation_id, turn_index, failure_type, retrieval_strategy, query_text, \
     query_len, top_score, confidence_threshold, result_count, latency_ms, edge_types, error_context, created_at";
/// Name, columns and row number of every other table.
const OTHER_TABLES: [(&str, &str, usize); 4] = [
    (
        "memory_retrieval_attempts",
        "resolution, started_at, strategy, outcome, attempts, unobserved, latency, top_score",
        72,
    ),
    (
        "memory_retrieval_attempts_recent",
        "delta_id, started_at, strategy, outcome, attempts, unobserved, latency, top_score",
        3,
    ),
    ("memory_retrieval_drops", "started_at, reason, records", 1),
    (
        "memory_retrieval_strategies",
        "strategy, confidence_threshold, lower_is_better, timeout_ms, updated_at",
        5,
    ),
];

/// Returns a copy of the fixture, with its journal.
fn fixture() -> TestDb {
    let db = TestDb::new();
    for suffix in ["", "-wal"] {
        let from = format!("{FIXTURE}/failures.db{suffix}");
        fs::copy(&from, format!("{}{suffix}", db.url())).expect(&from);
    }
    db
}

/// Returns settings without a purge, so that the fixture does not age.
fn config(db: &TestDb) -> LoggerConfig {
    db.config().retention_days(0).attempts_retention_days(0)
}

fn open(db: &TestDb) -> LoggerHandle {
    FailureLogger::spawn(config(db)).expect("the fixture is opened")
}

/// Returns the rows of a table, each as text that tells values and types.
fn dump(conn: &mut SqliteConnection, table: &str, columns: &str) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Line {
        #[diesel(sql_type = Text)]
        line: String,
    }
    let quoted: Vec<String> = columns
        .split(", ")
        .map(|column| format!("quote({})", column.trim()))
        .collect();
    let sql = format!(
        "SELECT {} AS line FROM {table} ORDER BY {columns}",
        quoted.join(" || ',' || ")
    );
    diesel::sql_query(&sql)
        .load::<Line>(conn)
        .expect(&sql)
        .into_iter()
        .map(|line| line.line)
        .collect()
}

fn failures(conn: &mut SqliteConnection) -> Vec<String> {
    dump(conn, "memory_retrieval_failures", OLD_COLUMNS)
}

fn assert_intact(db: &TestDb) {
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_foreign_key_check"),
        0
    );
}

/// Returns the definition of the table.
fn definition(conn: &mut SqliteConnection) -> String {
    dump(
        conn,
        "sqlite_schema WHERE name = 'memory_retrieval_failures'",
        "sql",
    )
    .concat()
}

fn is_old(conn: &mut SqliteConnection) -> bool {
    definition(conn).contains("AUTOINCREMENT")
}

/// Fails unless the versions are where the earlier version recorded them.
fn assert_versions_are_in_place(db: &TestDb) {
    assert_eq!(
        db.integer("SELECT count(*) FROM __diesel_schema_migrations"),
        3
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM sqlite_schema WHERE name = 'memory_retrieval_migrations'"),
        0
    );
}

#[test]
fn upgrade_keeps_every_row_and_count_and_logging_goes_on() {
    let (old, db) = (fixture(), fixture());
    let mut before = old.connect();
    assert_eq!(failures(&mut before).len() as i64, ROWS);
    let logger = open(&db);
    assert_eq!(failures(&mut db.connect()), failures(&mut before));
    for (table, columns, rows) in OTHER_TABLES {
        let there = dump(&mut db.connect(), table, columns);
        assert_eq!(there.len(), rows, "{table}");
        assert_eq!(there, dump(&mut before, table, columns), "{table}");
    }
    let statuses = dump(
        &mut db.connect(),
        "memory_retrieval_query_statuses",
        "query, status, set_at",
    );
    assert_eq!(statuses.len(), 2);
    assert_eq!(
        statuses,
        dump(
            &mut before,
            "memory_retrieval_question_marks",
            "question, status, marked_at"
        )
    );
    // Retention trusts the earlier version's clock first. A start has read the clock since.
    let believed = old.integer("SELECT believed_at FROM memory_retrieval_clock");
    assert!(db.integer("SELECT trusted_at FROM memory_retrieval_retention") >= believed);
    assert!(is_old(&mut before) && !is_old(&mut db.connect()));
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_migrations"),
        7
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM __diesel_schema_migrations"),
        0
    );

    logger.log(no_hit(7));
    block_on(logger.flush()).unwrap();
    assert_eq!(
        db.integer("SELECT max(id) FROM memory_retrieval_failures"),
        LARGEST_ID + 1
    );
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.rows(), ROWS + 1);
    assert_intact(&db);
}

#[test]
fn fixture_has_rows_that_are_in_the_journal_alone() {
    let db = TestDb::new();
    fs::copy(format!("{FIXTURE}/failures.db"), db.path()).unwrap();
    assert_eq!(db.rows(), ROWS - ROWS_IN_JOURNAL);
}

#[test]
fn upgrade_readers_see_all_failures_rates_and_statuses() {
    let db = fixture();
    let logger = open(&db);
    let reader = logger.reader();
    let page = block_on(reader.list(FailureFilter::default(), PageRequest::newest(1000))).unwrap();
    assert_eq!(page.failures.len() as i64, ROWS);
    for failure in &page.failures {
        assert_eq!(
            block_on(reader.get(failure.event_id)).unwrap().as_ref(),
            Some(failure)
        );
    }
    let by_type = |wanted: RetrievalFailureType| {
        page.failures
            .iter()
            .filter(|failure| failure.failure_type == wanted)
            .count()
    };
    let counts = [
        by_type(RetrievalFailureType::NoHit),
        by_type(RetrievalFailureType::LowConfidence),
        by_type(RetrievalFailureType::Timeout),
        by_type(RetrievalFailureType::Error),
    ];
    assert_eq!(counts, [55, 7, 8, 19]);
    let stored = |query: &str| {
        page.failures
            .iter()
            .find(|failure| failure.query_text == query)
            .expect(query)
    };
    let full = stored("everything optional: timeout");
    assert_eq!(full.conversation_id.as_deref(), Some("chat-7"));
    assert_eq!(full.edge_types.as_deref(), Some(r#"["cites","mentions"]"#));
    assert_eq!(full.error_context.as_deref(), Some("timed out after 17 ms"));
    assert_eq!(
        (full.top_score, full.confidence_threshold),
        (Some(0.25), Some(0.5))
    );
    let empty = stored("nothing optional: timeout");
    assert_eq!(
        (
            &empty.conversation_id,
            &empty.edge_types,
            &empty.error_context
        ),
        (&None, &None, &None)
    );
    assert_eq!((empty.top_score, empty.confidence_threshold), (None, None));
    assert!(stored("nul \0 in \0 the middle").error_context.as_deref() == Some("\0"));
    assert_eq!(
        stored(&"🦀".repeat(512)).retrieval_strategy,
        "🦀".repeat(64)
    );

    let summary = block_on(reader.summary(TimeRange::all())).unwrap();
    // Of the 88 that are rolled up, four were cancelled, and a cancelled one is no attempt.
    assert_eq!(summary.total.attempts, 88 - 4 + 18);
    assert_eq!(summary.dropped.rejected, 3);
    let strategies: BTreeMap<_, _> = summary
        .strategies
        .iter()
        .map(|strategy| {
            (
                strategy.retrieval_strategy.as_str(),
                strategy.rates.attempts,
            )
        })
        .collect();
    assert_eq!(strategies["journal"], 18);
    let calibration = block_on(reader.calibration("semantic", TimeRange::all())).unwrap();
    assert!(calibration.confidence_threshold.is_some());

    let groups =
        block_on(reader.top_queries(TimeRange::all(), QueryFilter::default(), 100)).unwrap();
    let status = |query: &str| {
        let group = groups
            .groups
            .iter()
            .find(|group| group.example.contains(query));
        group.expect(query).status
    };
    // It was stored without its crab and its accent, so that it might be that of another query. An
    // open group is looked at once more, and one that is hidden by mistake never.
    assert_eq!(status("Grüße"), QueryStatus::Open);
    assert_eq!(status("Where is key 1?"), QueryStatus::Resolved);
    assert_eq!(status("Where is key 2?"), QueryStatus::Open);
}

#[test]
fn reader_before_an_upgrade_names_the_remedy() {
    let db = fixture();
    let reader = FailureReader::open(db.path());
    let list = || block_on(reader.list(FailureFilter::default(), PageRequest::newest(1000)));
    for error in [
        list().map(drop).unwrap_err(),
        block_on(reader.summary(TimeRange::all()))
            .map(drop)
            .unwrap_err(),
    ] {
        let refused = error.to_string();
        assert!(
            refused.contains(&db.url()) && refused.contains("start the logger on it once"),
            "{refused}"
        );
    }
    assert!(is_old(&mut db.connect()));

    block_on(open(&db).shutdown()).unwrap();
    assert_eq!(list().unwrap().failures.len() as i64, ROWS);
    assert_eq!(
        block_on(reader.summary(TimeRange::all()))
            .unwrap()
            .dropped
            .rejected,
        3
    );
}

#[test]
fn upgrade_leaves_what_users_added_to_the_table() {
    let db = fixture();
    db.execute(
        "ALTER TABLE memory_retrieval_failures ADD COLUMN note TEXT; \
         UPDATE memory_retrieval_failures SET note = 'noted ' || id; \
         CREATE INDEX users_index ON memory_retrieval_failures (note); \
         CREATE VIEW users_view AS SELECT note FROM memory_retrieval_failures WHERE latency_ms > 10; \
         CREATE VIEW users_marks AS SELECT question FROM memory_retrieval_question_marks; \
         CREATE VIEW users_broken_view AS SELECT * FROM a_table_that_is_gone; \
         CREATE TABLE users_log (id INTEGER); \
         CREATE TRIGGER users_trigger AFTER DELETE ON memory_retrieval_failures \
         BEGIN INSERT INTO users_log VALUES (OLD.id); END;",
    );
    let seen = db.integer("SELECT count(*) FROM users_view");
    let logger = open(&db);
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE note = 'noted ' || id"),
        ROWS
    );
    assert_eq!(db.integer("SELECT count(*) FROM users_view"), seen);
    assert_eq!(db.integer("SELECT count(*) FROM users_marks"), 2);
    assert_eq!(
        db.integer(
            "SELECT count(*) FROM memory_retrieval_failures INDEXED BY users_index WHERE \
            note = 'noted 3'"
        ),
        1
    );
    db.execute("DELETE FROM memory_retrieval_failures WHERE id = 3");
    assert_eq!(db.integer("SELECT id FROM users_log"), 3);
    assert_intact(&db);
}

#[test]
fn upgrade_leaves_what_users_added_to_the_statuses() {
    let db = fixture();
    db.execute(
        "ALTER TABLE memory_retrieval_question_marks ADD COLUMN ticket TEXT DEFAULT 'open'; \
         UPDATE memory_retrieval_question_marks SET ticket = 'of ' || question; \
         CREATE INDEX users_index ON memory_retrieval_question_marks (ticket); \
         CREATE VIEW users_view AS SELECT ticket FROM memory_retrieval_question_marks; \
         CREATE VIEW users_broken_view AS SELECT * FROM a_table_that_is_gone; \
         CREATE TABLE users_log (question TEXT); \
         CREATE TRIGGER users_trigger AFTER DELETE ON memory_retrieval_question_marks \
         BEGIN INSERT INTO users_log VALUES (OLD.question); END;",
    );
    let logger = open(&db);
    let noted = "SELECT count(*) FROM memory_retrieval_query_statuses INDEXED BY users_index \
        WHERE ticket LIKE 'of %'";
    assert_eq!(
        (
            db.integer(noted),
            db.integer("SELECT count(*) FROM users_view")
        ),
        (2, 2)
    );
    // A status that is set once more keeps them, too.
    block_on(logger.set_query_status("Where is key 1?", QueryStatus::Open)).unwrap();
    block_on(logger.shutdown()).unwrap();
    let open = "SELECT count(*) FROM memory_retrieval_query_statuses WHERE status = 'open' AND \
        ticket LIKE 'of %'";
    assert_eq!((db.integer(noted), db.integer(open)), (2, 1));
    assert_eq!(db.integer("SELECT count(*) FROM users_log"), 0);
    db.execute("DELETE FROM memory_retrieval_query_statuses WHERE status = 'open'");
    assert_eq!(db.integer("SELECT count(*) FROM users_log"), 1);
    assert_intact(&db);
}

#[test]
fn upgrade_of_rewritten_statuses_fails_and_changes_nothing() {
    let db = fixture();
    db.execute(
        "PRAGMA writable_schema = ON; \
         UPDATE sqlite_schema SET sql = replace(sql, 'status = ''resolved'' OR', '\"status\" = ''resolved'' OR') \
         WHERE name = 'memory_retrieval_question_marks'; PRAGMA writable_schema = RESET;",
    );
    let text = FailureLogger::spawn(config(&db))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("rewrote the definition of memory_retrieval_question_marks"),
        "{text}"
    );
    assert_eq!(db.rows(), ROWS);
    assert_versions_are_in_place(&db);
    assert_intact(&db);
}

#[test]
fn upgrade_of_a_rewritten_definition_fails_and_changes_nothing() {
    // Tools that rebuild a table write it in this way: with quotes, other spaces, or the words in
    // another order.
    for (from, to) in [
        (
            "id                   INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL",
            "\"id\" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
        ),
        (
            "turn_index           INTEGER NOT NULL",
            "turn_index INTEGER NOT NULL",
        ),
        (
            "result_count         INTEGER NOT NULL",
            "result_count  INTEGER  NOT  NULL",
        ),
        (
            "latency_ms           INTEGER NOT NULL",
            "\"latency_ms\" INTEGER NOT NULL",
        ),
        ("NOT NULL", "not null"),
    ] {
        let db = fixture();
        db.execute(&format!(
            "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, '{from}', '{to}') \
             WHERE name = 'memory_retrieval_failures'; PRAGMA writable_schema = RESET;"
        ));
        let before = definition(&mut db.connect());
        let error = FailureLogger::spawn(config(&db)).map(drop).expect_err(to);
        assert!(matches!(error, StartError::Incompatible { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&db.url()) && text.contains("rewrote the definition"),
            "{text}"
        );
        assert_eq!(definition(&mut db.connect()), before);
        assert_eq!(db.rows(), ROWS);
        assert_versions_are_in_place(&db);
        assert_intact(&db);
    }
}

#[test]
fn connections_open_during_an_upgrade_see_the_new_schema() {
    let db = fixture();
    let mut other = db.connect();
    // The connection has read the old schema, and has statements of it.
    assert!(is_old(&mut other));
    let insert = "INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, \
         query_len, created_at) VALUES (randomblob(16), 'no_hit', 's', 'q', 1, 0)";
    let refused = diesel::sql_query(insert)
        .execute(&mut other)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("NOT NULL constraint failed"), "{refused}");
    let logger = open(&db);
    assert_eq!(diesel::sql_query(insert).execute(&mut other), Ok(1));
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    assert_eq!(failures(&mut other).len() as i64, ROWS + 2);
    assert_eq!(
        db.integer("SELECT max(id) FROM memory_retrieval_failures"),
        LARGEST_ID + 2
    );
}

#[test]
fn downgrade_and_upgrade_keep_rows_and_growing_ids() {
    let db = fixture();
    let before = failures(&mut db.connect());
    for round in 1..=3 {
        let logger = open(&db);
        for turn in 0..3 {
            logger.log(no_hit(turn));
        }
        block_on(logger.shutdown()).unwrap();
        // The newest row is deleted. Neither version uses its id a second time.
        db.execute(
            "DELETE FROM memory_retrieval_failures WHERE id = (SELECT max(id) FROM \
            memory_retrieval_failures)",
        );
        let mut conn = db.connect();
        conn.immediate_transaction(|conn| {
            let mut migrations = MIGRATIONS.migrations().unwrap();
            migrations.sort_by_key(|migration| migration.name().version().to_string());
            // The migrations are reverted down to the version of the fixture.
            for migration in migrations[3..].iter().rev() {
                migration.revert(conn).expect("down.sql");
            }
            QueryResult::Ok(())
        })
        .unwrap();
        assert!(is_old(&mut conn));
        assert_eq!(
            db.integer("SELECT seq FROM sqlite_sequence"),
            LARGEST_ID + 3 * round
        );
        assert_eq!(failures(&mut conn)[..before.len()], before);
        assert_intact(&db);
    }
    let logger = open(&db);
    assert_eq!(db.rows(), ROWS + 6);
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    assert_eq!(
        db.integer("SELECT max(id) FROM memory_retrieval_failures"),
        LARGEST_ID + 10
    );
}

#[test]
fn ids_of_deleted_rows_are_never_reused() {
    let db = TestDb::new();
    let logger = common::spawn(db.config());
    let log = |count: i64| {
        for turn in 0..count {
            logger.log(no_hit(turn));
        }
        block_on(logger.flush()).unwrap();
        db.integer("SELECT max(id) FROM memory_retrieval_failures")
    };
    // The batch needs one statement of each size: 64, 8 and 1 row.
    assert_eq!(log(64 + 8 + 1), 73);
    db.execute("DELETE FROM memory_retrieval_failures WHERE id > 50");
    assert_eq!(log(1), 74);
    db.execute("DELETE FROM memory_retrieval_failures");
    assert_eq!(log(9), 83);
    db.execute("DELETE FROM memory_retrieval_failures WHERE id = 83");
    block_on(logger.shutdown()).unwrap();
    let logger = common::spawn(db.config());
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(
        db.integer("SELECT max(id) FROM memory_retrieval_failures"),
        84
    );
    assert_eq!(
        db.integer("SELECT count(DISTINCT id) FROM memory_retrieval_failures"),
        9
    );
}

#[test]
fn full_file_system_before_an_upgrade_is_an_error_and_no_change() {
    let (source, db) = (fixture(), TestDb::new());
    let folder = db.folder.path().to_str().unwrap().to_owned();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).output();
    if !mount(&["-t", "tmpfs", "-o", "size=1m", "none", &folder])
        .is_ok_and(|done| done.status.success())
    {
        eprintln!("skipped: this machine does not allow mounting");
        return;
    }
    let paths = || ["", "-wal"].map(|suffix| format!("{}{suffix}", db.url()));
    for (from, to) in ["", "-wal"]
        .map(|suffix| format!("{}{suffix}", source.url()))
        .iter()
        .zip(paths())
    {
        fs::copy(from, to).unwrap();
    }
    let before = failures(&mut source.connect());
    let ballast = Path::new(&folder).join("ballast");
    // The file system has no room at first, and then room for a few pages.
    for room in [0, 40_960] {
        let mut file = fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full - room).unwrap();
        let error = FailureLogger::spawn(config(&db))
            .map(drop)
            .expect_err("there is no room");
        let text = error.to_string();
        assert!(
            text.contains(&db.url()) && text.contains("space"),
            "{room} bytes: {text}"
        );
        drop(file);
        fs::remove_file(&ballast).unwrap();
        let mut conn = db.connect();
        assert!(is_old(&mut conn), "{room} bytes");
        assert_versions_are_in_place(&db);
        assert!(failures(&mut conn) == before, "{room} bytes");
        assert_intact(&db);
    }
    let logger = open(&db);
    assert_eq!(db.rows(), ROWS);
    block_on(logger.shutdown()).unwrap();
    let unmounted = std::process::Command::new("umount")
        .args(["-l", &folder])
        .status()
        .unwrap();
    assert!(unmounted.success());
}

/// The parent kills the child when the migration has run and is not committed yet.
#[cfg(feature = "failpoints")]
#[test]
fn kill_before_the_commit_of_an_upgrade_leaves_the_old_file() {
    use std::io::BufRead as _;
    use std::process::{Command, Stdio};

    const DATABASE: &str = "FAILURE_LOGGER_TEST_DATABASE";
    const NAME: &str = "kill_before_the_commit_of_an_upgrade_leaves_the_old_file";
    if let Ok(url) = std::env::var(DATABASE) {
        fail::cfg_callback("store-migrated", || {
            println!("\nmigrated");
            loop {
                std::thread::park();
            }
        })
        .unwrap();
        drop(FailureLogger::spawn(LoggerConfig::new(url)));
        return;
    }
    let db = fixture();
    let before = failures(&mut fixture().connect());
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
            .env(DATABASE, db.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        assert!(
            lines.any(|line| line == "migrated"),
            "the migration was reached"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let mut conn = db.connect();
        assert!(is_old(&mut conn));
        assert_versions_are_in_place(&db);
        assert_eq!(failures(&mut conn), before);
        assert_intact(&db);
    }
    let logger = open(&db);
    assert_eq!(failures(&mut db.connect()), before);
    block_on(logger.shutdown()).unwrap();
}

#[test]
fn rename_of_the_statuses_keeps_views_of_users() {
    let db = TestDb::new();
    block_on(db.spawn().shutdown()).unwrap();
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-27-000001-0000_rename_query_statuses/down.sql"
    ));
    db.execute(
        "DELETE FROM memory_retrieval_migrations WHERE version = '202611270000010000'; \
         INSERT INTO memory_retrieval_question_marks VALUES ('where is it', 'ignored', 1, 1); \
         CREATE VIEW users_view AS SELECT marked_at AS at FROM memory_retrieval_question_marks; \
         CREATE VIEW users_broken_view AS SELECT * FROM a_table_that_is_gone;",
    );
    block_on(db.spawn().shutdown()).unwrap();
    assert_eq!(db.integer("SELECT at FROM users_view"), 1);
    assert_eq!(
        db.integer(
            "SELECT count(*) FROM memory_retrieval_query_statuses WHERE query = 'where is it'"
        ),
        1
    );
    assert_intact(&db);
}

#[test]
fn attempts_of_all_sources_become_one_and_views_stay() {
    let db = TestDb::new();
    block_on(db.spawn().shutdown()).unwrap();
    db.execute(
        "INSERT INTO memory_retrieval_attempts VALUES (60, 0, 's', 'success', 1, 2, 0, x'01', NULL), \
         (60, 0, 's', 'success', 2, 3, 1, x'02', NULL), (60, 60000, 's', 'success', 2, 40, 0, x'03', NULL); \
         CREATE VIEW users_view AS SELECT attempts FROM memory_retrieval_attempts; \
         CREATE VIEW users_broken_view AS SELECT * FROM a_table_that_is_gone;",
    );
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-29-000002-0000_count_attempts_by_source/down.sql"
    ));
    let merged = "SELECT count(*) FROM memory_retrieval_attempts WHERE \
        (attempts, unobserved) = (5, 1) AND latency IS NULL OR attempts = 40 AND latency = x'03'";
    assert_eq!(db.integer(merged), 2);
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-29-000002-0000_count_attempts_by_source/up.sql"
    ));
    assert_eq!(db.integer(merged), 2);
    assert_eq!(db.integer("SELECT sum(attempts) FROM users_view"), 45);
    assert_intact(&db);
}
