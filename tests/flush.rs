//! The moment of a flush: at once if a batch is full, after the interval if not.

mod common;

use std::time::Duration;

use common::{Lock, TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::{DropReason, LogOutcome, LoggerError};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn full_batch_is_flushed_before_the_interval() {
    let db = TestDb::new();
    let logger = spawn(db.config().batch_size(16).flush_interval(NEVER));
    for turn in 0..16 {
        logger.log(no_hit(turn));
    }
    eventually("the batch", || logger.stats().persisted == 16);
    assert_eq!(db.rows(), 16);
}

#[test]
fn full_batch_after_a_full_batch_is_flushed() {
    let db = TestDb::new();
    let logger = spawn(db.config().batch_size(4).flush_interval(NEVER));
    for batch in 1..=50 {
        for turn in 0..4 {
            logger.log(no_hit(turn));
        }
        eventually("the batch", || logger.stats().persisted == batch * 4);
    }
}

#[test]
fn batch_of_many_callers_is_flushed_in_any_order() {
    const CALLERS: u64 = 8;
    const ROUNDS: u64 = 1000;
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .batch_size(CALLERS as usize)
            .flush_interval(NEVER),
    );
    let begin = std::sync::Barrier::new(CALLERS as usize);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    begin.wait();
                    // The writer may still be returning to its timer from the round before.
                    logger.log(no_hit(0));
                    eventually("the batch", || logger.stats().persisted >= round * CALLERS);
                }
            });
        }
    });
    assert_eq!(logger.stats().persisted, ROUNDS * CALLERS);
}

#[test]
fn partial_batch_waits_and_is_flushed_by_the_timer() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .batch_size(16)
            .flush_interval(Duration::from_millis(10)),
    );
    for turn in 0..15 {
        logger.log(no_hit(turn));
    }
    eventually("the timer", || logger.stats().persisted == 15);
    assert_eq!(db.rows(), 15);
}

#[test]
fn partial_batch_is_not_flushed_without_timer_or_request() {
    let db = TestDb::new();
    let logger = spawn(db.config().batch_size(17).flush_interval(NEVER));
    for turn in 0..15 {
        logger.log(no_hit(turn));
    }
    // The response of the actor shows that it has seen its messages. It has committed nothing.
    assert_eq!(
        block_on(logger.addr().send(no_hit(15))).unwrap(),
        LogOutcome::Queued
    );
    let stats = logger.stats();
    assert_eq!((stats.persisted, stats.buffered), (0, 16));
    assert_eq!(block_on(logger.flush()).unwrap().persisted, 16);
}

#[test]
fn log_on_a_full_buffer_returns_at_once_and_counts_the_drop() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .buffer_capacity(8)
            .batch_size(4)
            .flush_interval(NEVER),
    );
    let lock = Lock::new(&db);
    for turn in 0..8 {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued, "turn {turn}");
    }
    // The writer hangs at the lock, with or without a batch. The bound is the same.
    for turn in 8..1000 {
        assert_eq!(
            logger.log(no_hit(turn)),
            LogOutcome::Dropped(DropReason::BufferFull)
        );
    }
    let stats = logger.stats();
    assert_eq!(
        (stats.received, stats.buffered, stats.dropped.buffer_full),
        (1000, 8, 992)
    );
    assert!(stats.is_balanced());
    drop(lock);
    block_on(logger.flush()).unwrap();
    assert_eq!(
        db.turns(),
        (0..8).collect::<Vec<_>>(),
        "the newest records are dropped"
    );
}

#[test]
fn flush_covers_every_record_logged_before_it() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (logger, db) = (&logger, &db);
            scope.spawn(move || {
                for round in 0..50 {
                    let turn = caller * 1000 + round;
                    logger.log(no_hit(turn));
                    block_on(logger.flush()).unwrap();
                    let found = format!(
                        "SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = {turn}"
                    );
                    assert_eq!(db.integer(&found), 1);
                }
            });
        }
    });
    assert!(logger.stats().is_balanced());
}

#[test]
fn flush_that_fails_returns_an_error_and_keeps_the_records() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    logger.log(no_hit(1));
    db.execute("ALTER TABLE memory_retrieval_failures RENAME TO elsewhere");
    let refusal = block_on(logger.flush()).unwrap_err();
    assert!(
        matches!(&refusal, LoggerError::Waiting { buffered: 1, cause } if cause.contains("no such table")),
        "{refusal:?}"
    );
    assert!(logger.stats().is_balanced());
    db.execute("ALTER TABLE elsewhere RENAME TO memory_retrieval_failures");
    eventually("the next attempt", || logger.stats().persisted == 1);
    assert_eq!(db.turns(), [1]);
}

#[test]
fn unstorable_rows_are_dropped_alone_at_any_position() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    db.execute(
        "CREATE TRIGGER picky BEFORE INSERT ON memory_retrieval_failures WHEN NEW.turn_index < 0
         BEGIN SELECT RAISE(ABORT, 'a trigger says no'); END",
    );
    let bad = [0, 1, 77, 128, 254, 255];
    for turn in 0..256 {
        logger.log(no_hit(if bad.contains(&turn) { -1 } else { turn }));
    }
    block_on(logger.flush()).unwrap();
    assert_eq!(
        db.turns(),
        (0..256)
            .filter(|turn| !bad.contains(turn))
            .collect::<Vec<_>>()
    );
    let stats = logger.stats();
    assert_eq!((stats.persisted, stats.dropped.rejected), (250, 6));
    assert!(stats.is_balanced());
}

#[test]
fn store_that_takes_no_row_at_all_drops_none() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    db.execute(
        "CREATE TRIGGER closed BEFORE INSERT ON memory_retrieval_failures
         BEGIN SELECT RAISE(ABORT, 'closed for today'); END",
    );
    for turn in 0..10 {
        logger.log(no_hit(turn));
    }
    assert!(block_on(logger.flush()).is_err());
    assert_eq!(
        (logger.stats().buffered, logger.stats().dropped.total()),
        (10, 0)
    );
    db.execute("DROP TRIGGER closed");
    eventually("the next attempt", || logger.stats().persisted == 10);
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
}

#[test]
fn flush_report_counts_what_was_committed_since_the_call() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .flush_interval(Duration::from_secs(24 * 60 * 60)),
    );
    for records in [5, 3, 0] {
        for turn in 0..records {
            logger.log(no_hit(turn));
        }
        let report = block_on(logger.flush()).unwrap();
        assert_eq!(
            (report.persisted, report.rejected),
            (records.unsigned_abs(), 0)
        );
    }
}
