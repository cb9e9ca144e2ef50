//! Purges: they delete old rows, keep young ones, and give space back.

mod common;

use std::time::Duration;

use common::{TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::LoggerHandle;

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Inserts rows that are `days` old.
fn age(db: &TestDb, rows: usize, days: u32) {
    db.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         SELECT randomblob(16), -1, 'no_hit', 'semantic', hex(randomblob(50)), 100, 0, 1,
             unixepoch() * 1000 - {days} * 86400000 FROM n"
    ));
}

fn old_rows(db: &TestDb) -> i64 {
    db.integer(
        "SELECT count(*) FROM memory_retrieval_failures WHERE created_at < (unixepoch() - \
        30 * 86400) * 1000",
    )
}

fn flush_one(logger: &LoggerHandle, turn: i64) {
    logger.log(no_hit(turn));
    block_on(logger.flush()).unwrap();
}

#[test]
fn old_rows_alone_are_purged_and_only_after_n_flushes() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(30)
            .cleanup_every(3)
            .flush_interval(NEVER),
    );
    flush_one(&logger, 0);
    age(&db, 2500, 31);
    age(&db, 10, 29);
    flush_one(&logger, 1);
    assert_eq!(old_rows(&db), 2500, "no purge is due");
    flush_one(&logger, 2);
    eventually("the purge", || logger.stats().purged == 2500);
    assert_eq!((old_rows(&db), db.rows()), (0, 13));
}

#[test]
fn old_rows_are_purged_at_the_start() {
    let db = TestDb::new();
    let logger = db.spawn();
    flush_one(&logger, 0);
    block_on(logger.shutdown()).unwrap();
    age(&db, 10, 91);
    let logger = spawn(db.config().flush_interval(NEVER));
    eventually("the purge", || logger.stats().purged == 10);
    assert_eq!(db.turns(), [0]);
}

#[test]
fn retention_of_zero_keeps_every_row() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(0)
            .cleanup_every(1)
            .flush_interval(NEVER),
    );
    flush_one(&logger, 0);
    age(&db, 10, 10_000);
    for turn in 1..10 {
        flush_one(&logger, turn);
    }
    block_on(logger.shutdown()).unwrap();
    assert_eq!((old_rows(&db), logger.stats().purged), (10, 0));
}

#[test]
fn records_are_committed_during_a_long_purge() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(30)
            .cleanup_every(2)
            .flush_interval(NEVER),
    );
    flush_one(&logger, 0);
    age(&db, 50_000, 31);
    flush_one(&logger, 1);
    let mut turn = 2;
    while logger.stats().purged < 50_000 {
        flush_one(&logger, turn);
        turn += 1;
    }
    assert!(
        turn > 10,
        "flushes ran between the chunks of the purge: {turn}"
    );
    assert_eq!(db.turns(), (0..turn).collect::<Vec<_>>());
}

#[test]
fn purge_gives_space_back() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(30)
            .cleanup_every(1)
            .flush_interval(NEVER),
    );
    age(&db, 20_000, 31);
    let full = db.integer("SELECT page_count FROM pragma_page_count");
    flush_one(&logger, 0);
    eventually("the purge", || logger.stats().purged == 20_000);
    block_on(logger.shutdown()).unwrap();
    let left = db.integer("SELECT page_count FROM pragma_page_count");
    assert!(left * 10 < full, "{left} of {full} pages");
}

#[test]
fn purge_continues_though_every_batch_is_full() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(30)
            .cleanup_every(2)
            .batch_size(16)
            .flush_interval(NEVER),
    );
    flush_one(&logger, 0);
    age(&db, 5000, 31);
    let mut turn = 1;
    eventually("the purge", || {
        for _ in 0..64 {
            logger.log(no_hit(turn));
            turn += 1;
        }
        logger.stats().purged == 5000
    });
    block_on(logger.shutdown()).unwrap();
    assert!(logger.stats().is_balanced());
}
