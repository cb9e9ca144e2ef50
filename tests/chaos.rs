//! The days a failure log must survive: faults in the store, in the file, in the clock.
//!
//! After each: the accounting balances, the database is whole, nothing is there twice, and the
//! order of the sender is kept.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Lock, TestDb, block_on, eventually, no_hit, spawn};
use diesel::prelude::*;
use fail::FailScenario;
use failure_logger::{LogOutcome, LoggerConfig, LoggerError, LoggerHandle, QuestionStatus};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn config(db: &TestDb) -> LoggerConfig {
    db.config().flush_interval(NEVER).backoff(Duration::from_millis(1), Duration::from_millis(20))
}

fn log(logger: &LoggerHandle, turns: std::ops::Range<i64>) {
    for turn in turns {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
}

fn flushed(logger: &LoggerHandle) {
    eventually("a flush that succeeds", || block_on(logger.flush()).is_ok());
}

/// What must hold after any bad day on which nothing was to be lost.
fn survived(db: &TestDb, logger: &LoggerHandle, records: i64) {
    flushed(logger);
    let stats = logger.stats();
    assert!(stats.is_balanced(), "{stats:?}");
    assert_eq!((stats.received, stats.dropped.total(), stats.buffered), (records.unsigned_abs(), 0, 0));
    sound(db);
    assert_eq!(db.turns(), (0..records).collect::<Vec<_>>(), "each once, in order");
}

/// In a process of its own: to open the file here would release the locks that SQLite holds on it.
fn copy_file(from: &str, to: &str) {
    assert!(std::process::Command::new("cp").args([from, to]).status().unwrap().success());
}

fn sound(db: &TestDb) {
    assert_eq!(db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
    assert_eq!(
        db.integer("SELECT count(*) - count(DISTINCT event_id) FROM memory_retrieval_failures"),
        0,
        "duplicates"
    );
}

#[test]
fn a_fault_at_any_operation_of_the_store_once_or_lasting() {
    let _scenario = FailScenario::setup();
    for point in ["store-insert", "store-commit", "flush", "flush-committed", "store-purge", "purge", "actor-record"] {
        for n in 0..6 {
            for lasting in [false, true] {
                let db = TestDb::new();
                let logger = spawn(config(&db).cleanup_every(1));
                // Those two have no error to return: they panic.
                let fault =
                    if ["store-insert", "store-commit", "store-purge"].contains(&point) { "return" } else { "panic" };
                let times = if lasting { 3 } else { 1 };
                fail::cfg(point, &format!("{n}*off->{times}*{fault}->off")).unwrap();
                for round in 0..6 {
                    log(&logger, 10 * round..10 * round + 10);
                    let _ = block_on(logger.flush());
                    assert!(logger.stats().is_balanced());
                }
                flushed(&logger);
                fail::remove(point);
                survived(&db, &logger, 60);
            }
        }
    }
}

#[test]
fn a_store_that_fails_until_it_is_mended() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db));
    fail::cfg("store-insert", "return").unwrap();
    for round in 0..20 {
        log(&logger, 10 * round..10 * round + 10);
        assert!(matches!(block_on(logger.flush()), Err(LoggerError::Waiting { .. })));
        assert!(logger.stats().is_balanced());
    }
    fail::remove("store-insert");
    survived(&db, &logger, 200);
    assert_eq!(logger.stats().restarts, 0, "what can be tried again needs no restart");
}

#[test]
fn a_database_that_another_connection_locks_for_ten_seconds() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db));
    let lock = Lock::new(&db);
    log(&logger, 0..100);
    // Two attempts, each of which waits five seconds for the lock.
    let _ = block_on(logger.flush());
    eventually("the second attempt", || logger.stats().failed_flushes == 2);
    log(&logger, 100..200);
    assert_eq!((logger.stats().buffered, logger.stats().dropped.total()), (200, 0));
    drop(lock);
    survived(&db, &logger, 200);
}

#[test]
fn a_call_while_the_database_hangs_allocates_nothing_and_waits_for_nobody() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db).batch_size(16));
    let lock = Lock::new(&db);
    log(&logger, 0..16);
    // The writer hangs at the lock. This thread holds the lock: if a call waited for the writer,
    // it would wait for itself.
    let records: Vec<_> = (16..4000).map(no_hit).collect();
    let info = allocation_counter::measure(|| {
        for record in records {
            assert_eq!(logger.log(record), LogOutcome::Queued);
        }
    });
    assert_eq!(info.count_total, 0);
    drop(lock);
    survived(&db, &logger, 4000);
}

#[test]
fn a_full_disk_and_then_space_again() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    let pages = db.integer("SELECT page_count FROM pragma_page_count") + 2;
    fail::cfg("store-sql", &format!("return(PRAGMA max_page_count = {pages})")).unwrap();
    log(&logger, 10..2000);
    let refusal = block_on(logger.flush()).unwrap_err();
    assert!(refusal.to_string().contains("database or disk is full"), "{refusal}");
    assert!(logger.stats().is_balanced());
    fail::cfg("store-sql", "return(PRAGMA max_page_count = 1000000)").unwrap();
    survived(&db, &logger, 2000);
    assert_eq!(logger.stats().restarts, 0);
}

#[test]
fn a_small_file_system_that_is_full_and_then_has_space_again() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let folder = db.folder.path().to_str().unwrap().to_owned();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).output();
    if !mount(&["-t", "tmpfs", "-o", "size=2m", "none", &folder]).is_ok_and(|done| done.status.success()) {
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
    survived(&db, &logger, records);
    block_on(logger.shutdown()).unwrap();
    let unmounted = std::process::Command::new("umount").args(["-l", &folder]).status().unwrap();
    assert!(unmounted.success());
}

#[test]
fn a_file_that_is_replaced_by_another_database() {
    let _scenario = FailScenario::setup();
    let (db, other) = (TestDb::new(), TestDb::new());
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
    sound(&db);
    assert_eq!(db.turns(), std::iter::once(-1).chain(10..20).collect::<Vec<_>>());
    assert!(logger.stats().is_balanced());
    assert_eq!(logger.stats().persisted, 20);
}

#[test]
fn a_file_that_is_truncated() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db));
    log(&logger, 0..5000);
    flushed(&logger);
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::OpenOptions::new().write(true).open(db.path()).unwrap().set_len(4096 * 3).unwrap();
    log(&logger, 5000..10_000);
    flushed(&logger);
    // What was cut off is gone; what came later is in a sound database, and the rest is set aside.
    let stats = logger.stats();
    assert!(stats.is_balanced());
    assert_eq!((stats.persisted, stats.dropped.total()), (10_000, 0));
    sound(&db);
    let turns = db.turns();
    assert_eq!(
        turns.iter().copied().filter(|turn| *turn >= 5000).collect::<Vec<_>>(),
        (5000..10_000).collect::<Vec<_>>()
    );
    let names = fs::read_dir(db.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().any(|name| name.to_string_lossy().contains(".corrupt-")));
}

/// Rows that are that many days old, with turns of -1.
fn age(db: &TestDb, rows: usize, days: u32) {
    db.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         SELECT randomblob(16), -1, 'no_hit', 'semantic', 'old', 3, 0, 1, unixepoch() * 1000 - {days} * 86400000 FROM n"
    ));
}

const YEAR_AHEAD: &str = "return(31536000000)";

/// Has a purge done, by whatever clock there is. Each flush but the first comes after the purge that is due.
fn purge(logger: &LoggerHandle, records: &mut i64) {
    for _ in 0..3 {
        log(logger, *records..*records + 10);
        *records += 10;
        flushed(logger);
    }
}

#[test]
fn a_clock_that_jumps_a_year_ahead_and_back() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db).cleanup_every(1));
    let mut records = 0;
    purge(&logger, &mut records);
    // Old enough by a right clock, and by one that is wrong only.
    age(&db, 7, 91);
    age(&db, 5, 80);
    eventually("the purge by a right clock", || {
        purge(&logger, &mut records);
        logger.stats().purged == 7
    });
    fail::cfg("clock-ahead-ms", YEAR_AHEAD).unwrap();
    purge(&logger, &mut records);
    age(&db, 3, 92);
    eventually("the purge by the clock that was right before", || {
        purge(&logger, &mut records);
        logger.stats().purged == 10
    });
    // A client whose clock is right is not too old for it.
    let right = std::time::SystemTime::now();
    assert_eq!(logger.log_at(no_hit(records), right), LogOutcome::Queued);
    records += 1;
    fail::remove("clock-ahead-ms");
    age(&db, 2, 91);
    eventually("the purge after it is right again", || {
        purge(&logger, &mut records);
        logger.stats().purged == 12
    });
    assert_eq!(db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1"), 5);
    db.execute("DELETE FROM memory_retrieval_failures WHERE turn_index = -1");
    survived(&db, &logger, records);
}

#[test]
fn a_clock_that_is_wrong_when_the_logger_starts() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let mut records = 0;
    let young = |db: &TestDb| db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1");
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
    sound(&db);
}

#[test]
fn clock_that_jumps_at_each_start_within_a_boot_deletes_nothing() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
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
    for ahead in [4 * 365 * DAY, 4 * 365 * DAY + DAY + 1000, 4 * 365 * DAY + 2 * DAY + 2000] {
        start(ahead);
        assert_eq!(db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1"), 5);
    }
}

#[test]
fn a_weekly_run_on_a_machine_that_is_off_in_between_still_purges() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let mut records = 0;
    const WEEK: i64 = 7 * 86_400_000;
    for week in 0..12 {
        fail::cfg("clock-ahead-ms", &format!("return({})", week * WEEK)).unwrap();
        fail::cfg("clock-boot", &format!("return({week})")).unwrap();
        let logger = spawn(config(&db).retention_days(30).cleanup_every(1));
        purge(&logger, &mut records);
        block_on(logger.shutdown()).unwrap();
    }
    // Twelve weeks of 30 records: 30 days, one run that the clock is behind, and the run itself.
    let oldest = db.integer("SELECT min(turn_index) FROM memory_retrieval_failures");
    assert!(oldest >= 30 * (12 - 7), "{oldest}");
    assert!(oldest <= 30 * (12 - 5), "no row younger than 30 days is deleted: {oldest}");
}

#[test]
fn a_schema_that_cannot_be_read() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
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
    let names = fs::read_dir(db.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().any(|name| name.to_string_lossy().contains(".corrupt-")));
    assert!(logger.stats().is_balanced());
}

#[test]
fn a_journal_that_is_removed_while_it_is_written() {
    let _scenario = FailScenario::setup();
    let (db, copy) = (TestDb::new(), TestDb::new());
    let logger = spawn(config(&db));
    log(&logger, 0..10);
    flushed(&logger);
    fs::remove_file(format!("{}-wal", db.url())).unwrap();
    log(&logger, 10..20);
    flushed(&logger);
    // What a process that dies now would leave behind.
    copy_file(&db.url(), &copy.url());
    copy_file(&format!("{}-wal", db.url()), &format!("{}-wal", copy.url()));
    assert_eq!(copy.turns(), (0..20).collect::<Vec<_>>());
    survived(&db, &logger, 20);
}

#[test]
fn a_reader_that_holds_a_snapshot_and_the_journal_afterwards() {
    use diesel::connection::SimpleConnection as _;
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db));
    let journal = || fs::metadata(format!("{}-wal", db.url())).map_or(0, |file| file.len());
    let mut reader = db.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM memory_retrieval_failures").unwrap();
    let mut records = 0;
    eventually("the journal to grow beyond its limit", || {
        log(&logger, records..records + 5000);
        records += 5000;
        flushed(&logger);
        journal() > 80 << 20
    });
    reader.batch_execute("ROLLBACK").unwrap();
    // However little is written.
    eventually("the journal to shrink", || {
        log(&logger, records..records + 10);
        records += 10;
        flushed(&logger);
        journal() <= 64 << 20
    });
    survived(&db, &logger, records);
}

#[test]
fn idle_logger_writes_nothing() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let _scenario = FailScenario::setup();
    let db = TestDb::new();
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
    eventually("the checkpoint", || checkpoints.load(Ordering::Acquire) == 1);
    let state = || {
        ["", "-wal", "-shm"].map(|suffix| {
            let file = fs::metadata(format!("{}{suffix}", db.url())).unwrap();
            (file.len(), file.modified().unwrap())
        })
    };
    let (before, begin) = (state(), ticks.load(Ordering::Acquire));
    eventually("ticks of the actor", || ticks.load(Ordering::Acquire) > begin + 1000);
    assert_eq!(state(), before);
    assert_eq!(checkpoints.load(Ordering::Acquire), 1);
    survived(&db, &logger, 1);
}

#[test]
fn two_shutdowns_from_two_tasks_and_a_drop_against_a_locked_database() {
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(config(&db).shutdown_timeout(Duration::from_millis(200)));
    let lock = Lock::new(&db);
    log(&logger, 0..10);
    let (first, second) = block_on(async { tokio::join!(logger.shutdown(), logger.shutdown()) });
    assert_eq!(first, second);
    assert!(matches!(&first, Err(LoggerError::Unsaved { report, .. }) if report.unsaved == 10 && report.in_doubt == 0));
    drop(logger);
    drop(lock);
    assert_eq!(db.rows(), 0);
}

/// Returns when the timer of the actor has run, from beginning to end.
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
fn losses_of_an_outage_are_stored_at_their_minute() {
    const MINUTES: i64 = 179;
    let _scenario = FailScenario::setup();
    let db = TestDb::new();
    let logger = spawn(db.config().buffer_capacity(8).batch_size(4).flush_interval(Duration::from_millis(5)));
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
        let minutes = format!("started_at - ({first}) IN ({}, {})", minute * 60_000, (minute + 1) * 60_000);
        db.integer(&format!("SELECT coalesce(sum(records), 0) FROM memory_retrieval_drops WHERE {minutes}"))
    };
    assert_eq!((at(0), at(MINUTES)), (92, 50));
}

/// Everything in a database, as text.
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
            "SELECT 'quote(\"' || name || '\")' AS value FROM pragma_table_info('{table}') ORDER BY cid"
        ));
        let row = columns.join(" || ',' || ");
        all.extend(texts(format!("SELECT '{table} ' || {row} AS value FROM \"{table}\" ORDER BY value")));
    }
    all
}

/// What happens to a file just before a commit to it.
type Fate = fn(&std::path::Path);

#[test]
fn a_file_that_loses_its_name_before_any_commit_gets_none() {
    const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
    fn move_away(path: &std::path::Path) {
        for suffix in SUFFIXES {
            let _ = fs::rename(format!("{}{suffix}", path.display()), format!("{}.aside{suffix}", path.display()));
        }
    }
    let replace: Fate = |path| {
        move_away(path);
        fs::File::create(path).unwrap();
    };
    for fate in [move_away, replace] {
        for nth in 0.. {
            let _scenario = FailScenario::setup();
            let db = TestDb::new();
            let logger = spawn(config(&db).cleanup_every(1));
            // One for the purge.
            logger.log(no_hit(-1));
            flushed(&logger);
            db.execute("UPDATE memory_retrieval_failures SET created_at = 1");
            let before = Arc::new(Mutex::new(None));
            let (path, kept, commits) = (db.path().to_owned(), Arc::clone(&before), AtomicUsize::new(0));
            fail::cfg_callback("store-before-commit", move || {
                if commits.fetch_add(1, Ordering::SeqCst) == nth {
                    // As others see it, without what is about to be committed.
                    *kept.lock().unwrap() = Some(contents(path.to_str().unwrap()));
                    fate(&path);
                }
            })
            .unwrap();
            log(&logger, 0..10);
            flushed(&logger);
            eventually("a mark", || block_on(logger.mark_question("why", QuestionStatus::Open)).is_ok());
            flushed(&logger);
            let persisted = logger.stats().persisted;
            fail::remove("store-before-commit");
            block_on(logger.shutdown()).unwrap();
            assert_eq!((persisted, logger.stats().dropped.total()), (11, 0), "commit {nth}");
            let Some(before) = before.lock().unwrap().take() else {
                assert!(nth > 2, "the records, a purge and a mark");
                break;
            };
            assert_eq!(contents(&format!("{}.aside", db.url())), before, "commit {nth}");
            assert_eq!(logger.stats().restarts, 1, "commit {nth}");
        }
    }
}
