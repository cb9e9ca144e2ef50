//! The import of the reference implementation's table, and repeated records.

mod common;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use common::{TestDb, block_on, no_hit};
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};
use failure_logger::import::ImportError;
use failure_logger::{LogOutcome, TimeRange};
use uuid::Uuid;

/// Creates a table of the reference's shape.
fn reference(db: &TestDb, rows: &str) -> PathBuf {
    let path = db.folder.path().join("reference.db");
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute(
        "CREATE TABLE memory_retrieval_failures (
             id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id INTEGER, turn_index INTEGER NOT NULL,
             failure_type TEXT NOT NULL, retrieval_strategy TEXT NOT NULL, query_text TEXT NOT NULL,
             query_len INTEGER NOT NULL, top_score REAL, confidence_threshold REAL, result_count INTEGER NOT NULL,
             latency_ms INTEGER NOT NULL, edge_types TEXT, error_context TEXT,
             created_at TEXT NOT NULL DEFAULT (datetime('now')))",
    )
    .unwrap();
    conn.batch_execute(rows).unwrap();
    path
}

fn insert(moment: &str, failure: &str) -> String {
    format!(
        "INSERT INTO memory_retrieval_failures (conversation_id, turn_index, failure_type, retrieval_strategy,
             query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, created_at)
         VALUES (42, 7, '{failure}', 'semantic', 'where is the key?', 17, 0.25, 0.5, 3, 12, {moment});"
    )
}

#[test]
fn rows_of_the_reference_are_imported_once_with_their_times() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().retention_days(0));
    let rows = [
        insert("'2024-11-01 12:30:00'", "low_confidence"),
        // An equal row without an id is another failure.
        insert("'2024-11-01 12:30:00'", "low_confidence"),
        insert("'2024-11-01T12:30:00.250Z'", "no_hit"),
        insert("'no date'", "error"),
        insert("datetime('now')", "unheard_of"),
    ];
    let path = reference(&db, &rows.concat());
    for _ in 0..3 {
        let report = block_on(logger.import_reference(&path)).unwrap();
        assert_eq!((report.read, report.stored, report.skipped), (5, 3, 2));
        assert_eq!(db.rows(), 3);
    }
    let stats = logger.stats();
    assert!(stats.is_balanced());
    assert_eq!((stats.persisted, stats.duplicates), (9, 6));
    assert_eq!(db.texts("conversation_id"), vec![Some("42".into()); 3]);
    let moments: Vec<_> = db.texts("created_at").into_iter().flatten().collect();
    assert_eq!(moments, ["1730464200000", "1730464200000", "1730464200250"]);
    let summary = block_on(logger.reader().summary(TimeRange::all())).unwrap();
    assert_eq!(summary.total.failures, 3, "each failure is counted once");
}

#[test]
fn file_without_the_reference_table_is_refused() {
    let db = TestDb::new();
    let logger = db.spawn();
    let other = db.folder.path().join("other.db");
    SqliteConnection::establish(other.to_str().unwrap())
        .unwrap()
        .batch_execute("CREATE TABLE t (x)")
        .unwrap();
    let refusal = block_on(logger.import_reference(&other)).unwrap_err();
    assert!(
        matches!(refusal, ImportError::NotAReference { .. }),
        "{refusal}"
    );
    let refusal =
        block_on(logger.import_reference(db.folder.path().join("missing.db"))).unwrap_err();
    assert!(matches!(refusal, ImportError::Read(_)), "{refusal}");
}

#[test]
fn repeated_record_is_stored_and_counted_once() {
    let db = TestDb::new();
    let logger = db.spawn();
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    let at = SystemTime::now() - Duration::from_secs(5);
    // The id occurs twice in one batch, and once more in another.
    for event_id in [one, one, two] {
        logger.log_once(no_hit(1), at, event_id);
    }
    block_on(logger.flush()).unwrap();
    logger.log_once(no_hit(1), at, two);
    logger.log(no_hit(2));
    block_on(logger.flush()).unwrap();
    assert_eq!(db.turns(), [1, 1, 2]);
    let stats = logger.stats();
    assert!(stats.is_balanced());
    assert_eq!(
        (stats.received, stats.persisted, stats.duplicates),
        (5, 5, 2)
    );
    let summary = block_on(
        logger
            .reader()
            .summary(TimeRange::last(Duration::from_secs(3600))),
    )
    .unwrap();
    assert_eq!(summary.total.failures, 3);
}

#[test]
fn many_rows_are_imported_through_a_small_buffer() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(16).batch_size(8));
    let rows: String = (0..2500)
        .map(|_| insert("datetime('now')", "no_hit"))
        .collect();
    let path = reference(&db, &format!("BEGIN; {rows} COMMIT;"));
    let report = block_on(logger.import_reference(&path)).unwrap();
    assert_eq!((report.read, report.stored), (2500, 2500));
    let stats = logger.stats();
    assert_eq!(
        (db.rows(), stats.received, stats.dropped.total()),
        (2500, 2500, 0),
        "a wait drops no record"
    );
}

#[test]
fn import_beside_other_callers_counts_only_their_drops() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(16).batch_size(8));
    let rows: String = (0..2500)
        .map(|_| insert("datetime('now')", "no_hit"))
        .collect();
    let path = reference(&db, &format!("BEGIN; {rows} COMMIT;"));
    let done = std::sync::atomic::AtomicBool::new(false);
    let (queued, lost) = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut outcomes = (0, 0);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match logger.log(no_hit(1)) {
                    LogOutcome::Queued => outcomes.0 += 1,
                    LogOutcome::Dropped(_) => outcomes.1 += 1,
                }
                std::thread::yield_now();
            }
            outcomes
        });
        block_on(logger.import_reference(&path)).unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        others.join().unwrap()
    });
    let stats = block_on(logger.shutdown()).unwrap().stats;
    assert!(lost > 0, "the buffer was contended");
    assert_eq!(
        (stats.persisted, stats.dropped.total()),
        (2500 + queued, lost)
    );
}

#[test]
fn unusable_rows_stop_no_import_and_are_not_counted_twice() {
    let db = TestDb::new();
    let logger = db.spawn();
    let rows = [
        insert("datetime('now', '-200 days')", "no_hit"),
        insert("'now'", "no_hit"),
        insert("datetime('now')", "no_hit").replace("'where is the key?'", "CAST(x'ff41' AS TEXT)"),
        insert("datetime('now')", "no_hit").replace("'where is the key?'", "x'42'"),
        insert("datetime('now')", "error"),
    ];
    let path = reference(&db, &rows.concat());
    for _ in 0..3 {
        let report = block_on(logger.import_reference(&path)).unwrap();
        assert_eq!(
            (report.read, report.stored, report.skipped, report.too_old),
            (5, 3, 1, 1)
        );
    }
    assert_eq!(
        db.texts("query_text"),
        ["\u{fffd}A", "B", "where is the key?"].map(|text| Some(text.into()))
    );
    assert_eq!(db.attempts(), 3);
}

#[test]
fn two_loggers_that_import_the_same_rows_count_them_once() {
    let db = TestDb::new();
    let (one, other) = (db.spawn(), db.spawn());
    let rows: String = (0..3000)
        .map(|_| insert("datetime('now')", "no_hit"))
        .collect();
    let path = reference(&db, &format!("BEGIN; {rows} COMMIT;"));
    std::thread::scope(|scope| {
        for logger in [&one, &other] {
            scope.spawn(|| block_on(logger.import_reference(&path)).unwrap());
        }
    });
    assert_eq!((db.rows(), db.attempts()), (3000, 3000));
    assert_eq!(one.stats().duplicates + other.stats().duplicates, 3000);
}

#[test]
fn repeated_record_is_counted_once_though_attempts_fail() {
    let db = TestDb::new();
    let logger = db.spawn();
    db.execute(
        "CREATE TRIGGER refuses BEFORE INSERT ON memory_retrieval_attempts_recent BEGIN SELECT RAISE(ABORT, 'no'); END; \
         CREATE TRIGGER refuses_too BEFORE INSERT ON memory_retrieval_attempts BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    // One transaction has few rows, the other many.
    for rows in [1, 100] {
        let ids: Vec<_> = (0..rows).map(|_| Uuid::now_v7()).collect();
        for _ in 0..2 {
            ids.iter().for_each(|id| {
                assert_eq!(
                    logger.log_once(no_hit(1), SystemTime::now(), *id),
                    LogOutcome::Queued
                )
            });
            block_on(logger.flush()).unwrap();
        }
    }
    assert_eq!(
        (db.rows(), db.attempts(), logger.stats().duplicates),
        (101, 101, 101)
    );
}
