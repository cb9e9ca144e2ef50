//! Faults in the store, in the file and in the clock.
//!
//! After each fault, the accounting balances, the database is intact, no row is there twice, and
//! the order of the sender is kept.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{FaultDb, Lock, TestDb, block_on, eventually, no_hit, spawn};
use diesel::prelude::*;
use failure_logger::{LogOutcome, LoggerConfig, LoggerError, LoggerHandle, QueryStatus};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .flush_interval(NEVER)
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
}

fn log(logger: &LoggerHandle, turns: std::ops::Range<i64>) {
    for turn in turns {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
}

fn flushed(logger: &LoggerHandle) {
    eventually("a flush that succeeds", || block_on(logger.flush()).is_ok());
}

/// Fails unless each record is stored once and in order.
fn assert_all_stored(db: &TestDb, logger: &LoggerHandle, records: i64) {
    flushed(logger);
    let stats = logger.stats();
    assert!(stats.is_balanced(), "{stats:?}");
    assert_eq!(
        (stats.received, stats.dropped.total(), stats.buffered),
        (records.unsigned_abs(), 0, 0)
    );
    assert_intact(db);
    assert_eq!(
        db.turns(),
        (0..records).collect::<Vec<_>>(),
        "each once, in order"
    );
}

/// Copies a file in a process of its own, because opening it here would release SQLite's locks on
/// it.
fn copy_file(from: &str, to: &str) {
    assert!(
        std::process::Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

fn assert_intact(db: &TestDb) {
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
    assert_eq!(
        db.integer("SELECT count(*) - count(DISTINCT event_id) FROM memory_retrieval_failures"),
        0,
        "duplicates"
    );
}

#[test]
fn fault_at_any_store_operation_loses_no_record() {
    for point in [
        "store-insert",
        "store-commit",
        "flush",
        "flush-committed",
        "store-purge",
        "purge",
        "actor-record",
    ] {
        for n in 0..6 {
            for lasting in [false, true] {
                let db = FaultDb::new();
                let logger = spawn(config(&db).cleanup_every(1));
                // The other points have no error to return, so they panic.
                let fault = if ["store-insert", "store-commit", "store-purge"].contains(&point) {
                    "return"
                } else {
                    "panic"
                };
                let times = if lasting { 3 } else { 1 };
                fail::cfg(point, &format!("{n}*off->{times}*{fault}->off")).unwrap();
                for round in 0..6 {
                    log(&logger, 10 * round..10 * round + 10);
                    let _ = block_on(logger.flush());
                    assert!(logger.stats().is_balanced());
                }
                flushed(&logger);
                fail::remove(point);
                assert_all_stored(&db, &logger, 60);
            }
        }
    }
}

#[test]
fn failing_store_that_recovers_loses_no_record() {
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    fail::cfg("store-insert", "return").unwrap();
    for round in 0..20 {
        log(&logger, 10 * round..10 * round + 10);
        assert!(matches!(
            block_on(logger.flush()),
            Err(LoggerError::Waiting { .. })
        ));
        assert!(logger.stats().is_balanced());
    }
    fail::remove("store-insert");
    assert_all_stored(&db, &logger, 200);
    assert_eq!(
        logger.stats().restarts,
        0,
        "a fault that a retry cures needs no restart"
    );
}

#[test]
fn database_locked_for_ten_seconds_loses_no_record() {
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    let lock = Lock::new(&db);
    log(&logger, 0..100);
    // Each of the two attempts waits five seconds for the lock.
    let _ = block_on(logger.flush());
    eventually("the second attempt", || logger.stats().failed_flushes == 2);
    log(&logger, 100..200);
    assert_eq!(
        (logger.stats().buffered, logger.stats().dropped.total()),
        (200, 0)
    );
    drop(lock);
    assert_all_stored(&db, &logger, 200);
}

#[test]
fn call_beside_a_hanging_database_neither_allocates_nor_waits() {
    let db = FaultDb::new();
    let logger = spawn(config(&db).batch_size(16));
    let lock = Lock::new(&db);
    log(&logger, 0..16);
    // The writer hangs at the lock, which this thread holds. A call that waited for the writer
    // would wait for itself.
    let records: Vec<_> = (16..4000).map(no_hit).collect();
    let info = allocation_counter::measure(|| {
        for record in records {
            assert_eq!(logger.log(record), LogOutcome::Queued);
        }
    });
    assert_eq!(info.count_total, 0);
    drop(lock);
    assert_all_stored(&db, &logger, 4000);
}

#[test]
fn full_disk_that_gets_space_loses_no_record() {
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    let pages = db.integer("SELECT page_count FROM pragma_page_count") + 2;
    fail::cfg(
        "store-sql",
        &format!("return(PRAGMA max_page_count = {pages})"),
    )
    .unwrap();
    log(&logger, 10..2000);
    let refusal = block_on(logger.flush()).unwrap_err();
    assert!(
        refusal.to_string().contains("database or disk is full"),
        "{refusal}"
    );
    assert!(logger.stats().is_balanced());
    fail::cfg("store-sql", "return(PRAGMA max_page_count = 1000000)").unwrap();
    assert_all_stored(&db, &logger, 2000);
    assert_eq!(logger.stats().restarts, 0);
}

#[test]
fn full_file_system_that_gets_space_loses_no_record() {
    let db = FaultDb::new();
    let folder = db.folder.path().to_str().unwrap().to_owned();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).output();
    if !mount(&["-t", "tmpfs", "-o", "size=2m", "none", &folder])
        .is_ok_and(|done| done.status.success())
    {
        eprintln!("skipped: this machine does not allow mounting");
        return;
    }
    let logger = spawn(config(&db).shutdown_timeout(Duration::from_secs(60)));
    let ballast = db.folder.path().join("ballast");
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let mut records = 0;
    eventually("the disk to be full", || {
        log(&logger, records..records + 500);
        records += 500;
        block_on(logger.flush()).is_err()
    });
    assert!(logger.stats().is_balanced());
    fs::remove_file(ballast).unwrap();
    assert_all_stored(&db, &logger, records);
    block_on(logger.shutdown()).unwrap();
    let unmounted = std::process::Command::new("umount")
        .args(["-l", &folder])
        .status()
        .unwrap();
    assert!(unmounted.success());
}

#[test]
fn file_replaced_by_another_database_gets_later_records() {
    let (db, other) = (FaultDb::new(), TestDb::new());
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    let theirs = spawn(config(&other));
    theirs.log(no_hit(-1));
    block_on(theirs.shutdown()).unwrap();
    // The journal of the old file stays, and must not get into the new one.
    fs::rename(other.path(), db.path()).unwrap();
    log(&logger, 10..20);
    flushed(&logger);
    assert_intact(&db);
    assert_eq!(
        db.turns(),
        std::iter::once(-1).chain(10..20).collect::<Vec<_>>()
    );
    assert!(logger.stats().is_balanced());
    assert_eq!(logger.stats().persisted, 20);
}

#[test]
fn truncated_file_is_quarantined_and_later_records_are_stored() {
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    log(&logger, 0..5000);
    flushed(&logger);
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::OpenOptions::new()
        .write(true)
        .open(db.path())
        .unwrap()
        .set_len(4096 * 3)
        .unwrap();
    log(&logger, 5000..10_000);
    flushed(&logger);
    // The cut rows are gone. Later rows are in an intact database, and the damaged file is
    // quarantined.
    let stats = logger.stats();
    assert!(stats.is_balanced());
    assert_eq!((stats.persisted, stats.dropped.total()), (10_000, 0));
    assert_intact(&db);
    let turns = db.turns();
    assert_eq!(
        turns
            .iter()
            .copied()
            .filter(|turn| *turn >= 5000)
            .collect::<Vec<_>>(),
        (5000..10_000).collect::<Vec<_>>()
    );
    let names = fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .any(|name| name.to_string_lossy().contains(".corrupt-"))
    );
}

/// Inserts rows that are `days` old, with turns of -1.
fn age(db: &TestDb, rows: usize, days: u32) {
    db.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         SELECT randomblob(16), -1, 'no_hit', 'semantic', 'old', 3, 0, 1, unixepoch() * 1000 - {days} * 86400000 FROM n"
    ));
}

const YEAR_AHEAD: &str = "return(31536000000)";

/// Has the logger purge, by whichever clock it trusts. Each flush but the first follows the purge
/// that is due.
fn purge(logger: &LoggerHandle, records: &mut i64) {
    for _ in 0..3 {
        log(logger, *records..*records + 10);
        *records += 10;
        flushed(logger);
    }
}

#[test]
fn clock_that_jumps_a_year_and_back_purges_only_old_rows() {
    let db = FaultDb::new();
    let logger = spawn(config(&db).cleanup_every(1));
    let mut records = 0;
    purge(&logger, &mut records);
    // The first rows are old by a right clock, the others only by a wrong one.
    age(&db, 7, 91);
    age(&db, 5, 80);
    eventually("the purge by a right clock", || {
        purge(&logger, &mut records);
        logger.stats().purged == 7
    });
    fail::cfg("clock-ahead-ms", YEAR_AHEAD).unwrap();
    purge(&logger, &mut records);
    age(&db, 3, 92);
    eventually("the purge by the retention clock", || {
        purge(&logger, &mut records);
        logger.stats().purged == 10
    });
    // The record of a client with a right clock is not too old.
    let right = std::time::SystemTime::now();
    assert_eq!(logger.log_at(no_hit(records), right), LogOutcome::Queued);
    records += 1;
    fail::remove("clock-ahead-ms");
    age(&db, 2, 91);
    eventually("the purge after the clock is right", || {
        purge(&logger, &mut records);
        logger.stats().purged == 12
    });
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1"),
        5
    );
    db.execute("DELETE FROM memory_retrieval_failures WHERE turn_index = -1");
    assert_all_stored(&db, &logger, records);
}

#[test]
fn clock_wrong_at_the_start_purges_only_old_rows() {
    let db = FaultDb::new();
    let mut records = 0;
    let young = |db: &TestDb| {
        db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1")
    };
    let mut run = |old: usize| {
        let logger = spawn(config(&db).cleanup_every(1));
        age(&db, old, 91);
        age(&db, 1, 80);
        // A record that claims to come from the future is no evidence of the time.
        let ahead = std::time::SystemTime::now() + 1000 * Duration::from_secs(24 * 60 * 60);
        logger.log_at(no_hit(records), ahead);
        records += 1;
        eventually("the purge of old rows alone", || {
            purge(&logger, &mut records);
            logger.stats().purged == old as u64
        });
        block_on(logger.shutdown()).unwrap();
    };
    run(4);
    fail::cfg("clock-ahead-ms", YEAR_AHEAD).unwrap();
    run(3);
    run(2);
    fail::remove("clock-ahead-ms");
    run(5);
    assert_eq!(young(&db), 4);
    db.execute("DELETE FROM memory_retrieval_failures WHERE turn_index = -1");
    assert_eq!(db.turns(), (0..records).collect::<Vec<_>>());
    assert_intact(&db);
}

#[test]
fn clock_that_jumps_at_each_start_within_a_boot_deletes_nothing() {
    let db = FaultDb::new();
    const DAY: i64 = 86_400_000;
    let start = |ahead: i64| {
        fail::cfg("clock-ahead-ms", &format!("return({ahead})")).unwrap();
        let logger = spawn(config(&db).cleanup_every(1));
        let mut records = 0;
        purge(&logger, &mut records);
        purge(&logger, &mut records);
        block_on(logger.shutdown()).unwrap();
    };
    start(0);
    age(&db, 5, 80);
    for ahead in [
        4 * 365 * DAY,
        4 * 365 * DAY + DAY + 1000,
        4 * 365 * DAY + 2 * DAY + 2000,
    ] {
        start(ahead);
        assert_eq!(
            db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1"),
            5
        );
    }
}

#[test]
fn weekly_run_on_a_machine_off_in_between_purges_old_rows() {
    let db = FaultDb::new();
    let mut records = 0;
    const WEEK: i64 = 7 * 86_400_000;
    for week in 0..12 {
        fail::cfg("clock-ahead-ms", &format!("return({})", week * WEEK)).unwrap();
        fail::cfg("clock-boot", &format!("return({week})")).unwrap();
        let logger = spawn(config(&db).retention_days(30).cleanup_every(1));
        purge(&logger, &mut records);
        block_on(logger.shutdown()).unwrap();
    }
    // Each of the twelve weeks logs 30 records. Kept are 30 days, one run that the clock is behind,
    // and the run itself.
    let oldest = db.integer("SELECT min(turn_index) FROM memory_retrieval_failures");
    assert!(oldest >= 30 * (12 - 7), "{oldest}");
    assert!(
        oldest <= 30 * (12 - 5),
        "no row younger than 30 days is deleted: {oldest}"
    );
}

#[test]
fn unreadable_schema_is_quarantined_and_later_rows_are_stored() {
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    db.execute(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE TABLE nonsense (' WHERE name = 'memory_retrieval_failures';
         PRAGMA schema_version = 1000",
    );
    log(&logger, 10..20);
    flushed(&logger);
    assert_eq!(db.turns(), (10..20).collect::<Vec<_>>());
    let names = fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .any(|name| name.to_string_lossy().contains(".corrupt-"))
    );
    assert!(logger.stats().is_balanced());
}

#[test]
fn journal_removed_while_it_is_written_loses_no_record() {
    let (db, copy) = (FaultDb::new(), TestDb::new());
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    fs::remove_file(format!("{}-wal", db.url())).unwrap();
    log(&logger, 10..20);
    flushed(&logger);
    // The copies are the files that a process leaves behind when it dies now.
    copy_file(&db.url(), &copy.url());
    copy_file(&format!("{}-wal", db.url()), &format!("{}-wal", copy.url()));
    assert_eq!(copy.turns(), (0..20).collect::<Vec<_>>());
    assert_all_stored(&db, &logger, 20);
}

#[test]
fn journal_shrinks_after_a_reader_ends_its_snapshot() {
    use diesel::connection::SimpleConnection as _;
    let db = FaultDb::new();
    let logger = spawn(config(&db));
    let journal = || fs::metadata(format!("{}-wal", db.url())).map_or(0, |file| file.len());
    let mut reader = db.connect();
    reader
        .batch_execute("BEGIN; SELECT count(*) FROM memory_retrieval_failures")
        .unwrap();
    let mut records = 0;
    eventually("the journal to grow beyond its limit", || {
        log(&logger, records..records + 5000);
        records += 5000;
        flushed(&logger);
        journal() > 80 << 20
    });
    reader.batch_execute("ROLLBACK").unwrap();
    // A few records suffice.
    eventually("the journal to shrink", || {
        log(&logger, records..records + 10);
        records += 10;
        flushed(&logger);
        journal() <= 64 << 20
    });
    assert_all_stored(&db, &logger, records);
}

#[test]
fn idle_logger_writes_nothing() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let db = FaultDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_millis(1)));
    log(&logger, 0..1);
    flushed(&logger);
    let (checkpoints, ticks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for (point, count) in [("checkpoint-idle", &checkpoints), ("actor-tick", &ticks)] {
        let count = Arc::clone(count);
        let counted = move || {
            count.fetch_add(1, Ordering::AcqRel);
        };
        fail::cfg_callback(point, counted).unwrap();
    }
    eventually("the checkpoint", || {
        checkpoints.load(Ordering::Acquire) == 1
    });
    let state = || {
        ["", "-wal", "-shm"].map(|suffix| {
            let file = fs::metadata(format!("{}{suffix}", db.url())).unwrap();
            (file.len(), file.modified().unwrap())
        })
    };
    let (before, begin) = (state(), ticks.load(Ordering::Acquire));
    eventually("ticks of the actor", || {
        ticks.load(Ordering::Acquire) > begin + 1000
    });
    assert_eq!(state(), before);
    assert_eq!(checkpoints.load(Ordering::Acquire), 1);
    assert_all_stored(&db, &logger, 1);
}

#[test]
fn concurrent_shutdowns_of_a_locked_database_report_the_same() {
    let db = FaultDb::new();
    let logger = spawn(config(&db).shutdown_timeout(Duration::from_millis(200)));
    let lock = Lock::new(&db);
    log(&logger, 0..10);
    let (first, second) = block_on(async { tokio::join!(logger.shutdown(), logger.shutdown()) });
    assert_eq!(first, second);
    assert!(
        matches!(&first, Err(LoggerError::Unsaved { report, .. }) if report.unsaved == 10 && report.in_doubt == 0)
    );
    drop(logger);
    drop(lock);
    assert_eq!(db.rows(), 0);
}

/// Returns when the timer of the actor has run once from beginning to end.
fn after_a_tick() {
    let ticks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ticks);
    fail::cfg_callback("actor-tick", move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    eventually("two ticks", || ticks.load(Ordering::SeqCst) >= 2);
    fail::remove("actor-tick");
}

#[test]
fn drops_of_an_outage_are_stored_at_their_minute() {
    const MINUTES: i64 = 179;
    let db = FaultDb::new();
    let logger = spawn(
        db.config()
            .buffer_capacity(8)
            .batch_size(4)
            .flush_interval(Duration::from_millis(5)),
    );
    let lock = Lock::new(&db);
    for turn in 0..100 {
        let _ = logger.log(no_hit(turn));
    }
    after_a_tick();
    fail::cfg("clock-ahead-ms", &format!("return({})", MINUTES * 60_000)).unwrap();
    for turn in 0..50 {
        let _ = logger.log(no_hit(turn));
    }
    after_a_tick();
    drop(lock);
    block_on(logger.shutdown()).unwrap();
    fail::remove("clock-ahead-ms");
    let first = "SELECT min(started_at) FROM memory_retrieval_drops";
    let at = |minute: i64| {
        // The two parts may lie on both sides of a minute.
        let minutes = format!(
            "started_at - ({first}) IN ({}, {})",
            minute * 60_000,
            (minute + 1) * 60_000
        );
        db.integer(&format!(
            "SELECT coalesce(sum(records), 0) FROM memory_retrieval_drops WHERE {minutes}"
        ))
    };
    assert_eq!((at(0), at(MINUTES)), (92, 50));
}

/// Returns all rows of all tables, as text.
fn contents(url: &str) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Text {
        #[diesel(sql_type = diesel::sql_types::Text)]
        value: String,
    }
    let mut conn = SqliteConnection::establish(url).unwrap();
    let mut texts = |sql: String| -> Vec<String> {
        let rows: Vec<Text> = diesel::sql_query(&sql).load(&mut conn).expect(&sql);
        rows.into_iter().map(|row| row.value).collect()
    };
    let tables = "SELECT name AS value FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut all = Vec::new();
    for table in texts(tables.into()) {
        let columns = texts(format!(
            "SELECT 'quote(\"' || name || '\")' AS value FROM pragma_table_info('{table}') ORDER \
             BY cid"
        ));
        let row = columns.join(" || ',' || ");
        all.extend(texts(format!(
            "SELECT '{table} ' || {row} AS value FROM \"{table}\" ORDER BY value"
        )));
    }
    all
}

/// A change of the file just before a commit to it.
type Change = fn(&std::path::Path);

#[test]
fn file_that_loses_its_name_before_a_commit_is_unchanged() {
    const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
    fn move_away(path: &std::path::Path) {
        for suffix in SUFFIXES {
            let _ = fs::rename(
                format!("{}{suffix}", path.display()),
                format!("{}.aside{suffix}", path.display()),
            );
        }
    }
    let replace: Change = |path| {
        move_away(path);
        fs::File::create(path).unwrap();
    };
    for change in [move_away, replace] {
        for nth in 0.. {
            let db = FaultDb::new();
            let logger = spawn(config(&db).cleanup_every(1));
            // The purge deletes this record.
            logger.log(no_hit(-1));
            flushed(&logger);
            db.execute("UPDATE memory_retrieval_failures SET created_at = 1");
            let before = Arc::new(Mutex::new(None));
            let (path, kept, commits) = (
                db.path().to_owned(),
                Arc::clone(&before),
                AtomicUsize::new(0),
            );
            fail::cfg_callback("store-before-commit", move || {
                if commits.fetch_add(1, Ordering::SeqCst) == nth {
                    // Another connection sees this content, without the pending commit.
                    *kept.lock().unwrap() = Some(contents(path.to_str().unwrap()));
                    change(&path);
                }
            })
            .unwrap();
            log(&logger, 0..10);
            flushed(&logger);
            eventually("a status", || {
                block_on(logger.set_query_status("why", QueryStatus::Open)).is_ok()
            });
            flushed(&logger);
            let persisted = logger.stats().persisted;
            fail::remove("store-before-commit");
            block_on(logger.shutdown()).unwrap();
            assert_eq!(
                (persisted, logger.stats().dropped.total()),
                (11, 0),
                "commit {nth}"
            );
            let Some(before) = before.lock().unwrap().take() else {
                assert!(nth > 2, "the records, a purge and a status");
                break;
            };
            assert_eq!(
                contents(&format!("{}.aside", db.url())),
                before,
                "commit {nth}"
            );
            assert_eq!(logger.stats().restarts, 1, "commit {nth}");
        }
    }
}
