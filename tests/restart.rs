//! Panics, and a store that must be reopened, restart the logger without a loss.

mod common;

use std::time::{Duration, Instant};

use common::ways::{WAYS, in_system, start};
use common::{FaultDb, TestDb, block_on, eventually, no_hit};
use failure_logger::{
    DropReason, FailureLogger, LogOutcome, LoggerConfig, LoggerError, LoggerHandle,
};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns settings with quick restarts and no flush by timer.
fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .flush_interval(NEVER)
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
}

fn log_ten(logger: &LoggerHandle) {
    for turn in 0..10 {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
}

fn assert_all_stored(db: &TestDb, logger: &LoggerHandle, records: u64) {
    let stats = logger.stats();
    assert_eq!(
        (stats.received, stats.persisted, stats.dropped.total()),
        (records, records, 0)
    );
    assert!(stats.is_balanced());
    assert_eq!(
        db.turns(),
        (0..records as i64).collect::<Vec<_>>(),
        "each once, in order"
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
}

#[test]
fn panic_in_the_handler_loses_no_record() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    fail::cfg("actor-record", "1*panic->3*off->1*panic->off").unwrap();
    for turn in 0..10 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    eventually("all records", || logger.stats().received == 10);
    block_on(logger.flush()).unwrap();
    assert_eq!(logger.stats().restarts, 2);
    assert_all_stored(&db, &logger, 10);
}

#[test]
fn panic_in_a_handler_loses_no_record_in_any_way_to_start() {
    for way in WAYS {
        let db = FaultDb::new();
        in_system(async || {
            let started = start(way, config(&db));
            fail::cfg("actor-record", "1*panic->3*off->1*panic->off").unwrap();
            for turn in 0..10 {
                // The result comes although the handler panics, because the record is queued.
                assert_eq!(
                    started.addr().send(no_hit(turn)).await.unwrap(),
                    LogOutcome::Queued,
                    "{way:?}"
                );
            }
            started.logger.flush().await.unwrap();
            assert_eq!(started.logger.stats().restarts, 2, "{way:?}");
            assert_all_stored(&db, &started.logger, 10);
            started.logger.shutdown().await.unwrap();
        });
    }
}

#[test]
fn panic_in_the_timer_loses_no_record() {
    let db = FaultDb::new();
    fail::cfg("actor-tick", "1*panic->off").unwrap();
    let logger =
        FailureLogger::spawn(config(&db).flush_interval(Duration::from_millis(5))).unwrap();
    log_ten(&logger);
    eventually("the restart", || logger.stats().restarts == 1);
    eventually("the timer of the next incarnation", || {
        logger.stats().persisted == 10
    });
    assert_all_stored(&db, &logger, 10);
}

#[test]
fn panic_around_the_commit_of_a_flush_loses_no_record() {
    for point in ["flush", "flush-committed", "store-commit"] {
        let db = FaultDb::new();
        let logger = FailureLogger::spawn(config(&db)).unwrap();
        block_on(logger.flush()).unwrap();
        fail::cfg(point, "1*panic->off").unwrap();
        log_ten(&logger);
        let refusal = block_on(logger.flush()).unwrap_err();
        assert!(
            matches!(&refusal, LoggerError::Waiting { buffered: 10, .. }),
            "{refusal:?}"
        );
        eventually("the next incarnation", || logger.stats().persisted == 10);
        assert_eq!(logger.stats().restarts, 1);
        assert_all_stored(&db, &logger, 10);
        assert_eq!(db.attempts(), 10, "each attempt is counted once");
    }
}

#[test]
fn panic_in_the_purge_or_at_the_start_loses_no_record() {
    for point in ["purge", "actor-started"] {
        let db = FaultDb::new();
        fail::cfg(point, "1*panic->off").unwrap();
        let logger = FailureLogger::spawn(config(&db)).unwrap();
        log_ten(&logger);
        eventually("the restart", || logger.stats().restarts == 1);
        // Another incarnation may still be starting.
        eventually("a flush", || block_on(logger.flush()).is_ok());
        assert_all_stored(&db, &logger, 10);
    }
}

#[test]
fn panic_in_the_redactor_costs_the_text_and_not_the_record() {
    let db = FaultDb::new();
    let redacting = config(&db).redactor(|record| {
        record.query_text = "half".into();
        assert!(record.turn_index != 1, "injected");
    });
    let logger = FailureLogger::spawn(redacting).unwrap();
    for turn in 0..3 {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
    block_on(logger.flush()).unwrap();
    let stored: Vec<_> = db.texts("query_text").into_iter().flatten().collect();
    assert_eq!(stored, ["half", "[the redactor panicked]", "half"]);
    assert_eq!(logger.stats().restarts, 0);
}

#[test]
fn address_and_mailbox_survive_restarts() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    for round in 0..5 {
        fail::cfg("actor-record", "1*panic->off").unwrap();
        logger.addr().try_send(no_hit(2 * round)).unwrap();
        logger.addr().try_send(no_hit(2 * round + 1)).unwrap();
        eventually("both records", || {
            logger.stats().received == 2 * round as u64 + 2
        });
        assert_eq!(logger.stats().restarts, round as u64 + 1);
        // After several restarts in a row the logger may be unavailable for a while.
        eventually("a flush", || block_on(logger.flush()).is_ok());
    }
    assert_all_stored(&db, &logger, 10);
}

#[test]
fn hundred_panics_in_a_row_do_not_spin() {
    let db = FaultDb::new();
    let start = Instant::now();
    let quick = config(&db).backoff(Duration::from_millis(4), Duration::from_millis(8));
    let logger = FailureLogger::spawn(quick).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("flush", "100*panic->off").unwrap();
    log_ten(&logger);
    eventually("the end of the panics", || {
        logger.stats().persisted == 10 || block_on(logger.flush()).is_ok()
    });
    let restarts = logger.stats().restarts;
    assert_eq!(restarts, 100);
    // Each restart waits for at least three quarters of 4 ms.
    assert!(
        start.elapsed() >= Duration::from_millis(3) * 100,
        "restarted without a pause"
    );
    assert_all_stored(&db, &logger, 10);
}

#[test]
fn logger_that_cannot_restart_drops_with_a_reason_and_recovers() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db).buffer_capacity(10).batch_size(10)).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("store-open", "return").unwrap();
    fail::cfg("flush", "1*panic->off").unwrap();
    log_ten(&logger);
    eventually(
        "the logger to be unavailable",
        || matches!(block_on(logger.flush()), Err(LoggerError::Unavailable { cause }) if cause == "injected"),
    );
    assert_eq!(
        logger.log(no_hit(99)),
        LogOutcome::Dropped(DropReason::Unavailable)
    );
    let stats = logger.stats();
    assert_eq!(
        (stats.received, stats.buffered, stats.dropped.unavailable),
        (11, 10, 1)
    );
    assert!(stats.is_balanced());

    fail::cfg("store-open", "off").unwrap();
    eventually("the logger to recover", || block_on(logger.flush()).is_ok());
    assert_eq!(logger.log(no_hit(10)), LogOutcome::Queued);
    block_on(logger.flush()).unwrap();
    assert_eq!(db.turns(), (0..11).collect::<Vec<_>>());
}

#[test]
fn shutdown_in_a_restart_loop_commits_or_reports_each_record() {
    let db = FaultDb::new();
    let stuck = config(&db)
        .backoff(NEVER, NEVER)
        .shutdown_timeout(Duration::from_secs(30));
    let logger = FailureLogger::spawn(stuck).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("actor-record", "1*panic->off").unwrap();
    logger.addr().try_send(no_hit(0)).unwrap();
    eventually("the long pause before the restart", || {
        logger.stats().restarts == 1
    });
    logger.addr().try_send(no_hit(1)).unwrap();
    assert_eq!(logger.log(no_hit(99)), LogOutcome::Queued);
    let report = block_on(logger.shutdown()).unwrap();
    assert_eq!((report.drained, report.unsaved), (3, 0));
    assert_eq!(db.turns(), [0, 99, 1]);

    let db = TestDb::new();
    let hopeless = config(&db).shutdown_timeout(Duration::from_millis(200));
    let logger = FailureLogger::spawn(hopeless).unwrap();
    fail::cfg("flush", "panic").unwrap();
    log_ten(&logger);
    let Err(LoggerError::Unsaved { report, cause }) = block_on(logger.shutdown()) else {
        panic!("the store fails")
    };
    assert_eq!(
        (
            report.unsaved,
            report.stats.dropped.unsaved,
            report.stats.buffered
        ),
        (10, 10, 0)
    );
    assert!(cause.contains("panic"), "{cause}");
    assert!(report.stats.is_balanced());
}

#[test]
fn deleted_file_is_created_once_more() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    logger.log(no_hit(-1));
    block_on(logger.flush()).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", db.url())).unwrap();
    }
    log_ten(&logger);
    let _ = block_on(logger.flush());
    eventually("the new file", || logger.stats().persisted == 11);
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
    assert_eq!(logger.stats().restarts, 1);
}

#[test]
fn file_replaced_by_garbage_is_quarantined_and_not_deleted() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    logger.log(no_hit(-1));
    block_on(logger.flush()).unwrap();
    let garbage = db.folder.path().join("garbage");
    std::fs::write(&garbage, "garbage ".repeat(1000)).unwrap();
    std::fs::rename(&garbage, db.path()).unwrap();
    log_ten(&logger);
    let _ = block_on(logger.flush());
    eventually("the new file", || logger.stats().persisted == 11);
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
    let aside = std::fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let aside: Vec<_> = aside
        .filter(|path| path.to_string_lossy().contains(".corrupt-"))
        .collect();
    assert!(
        aside
            .iter()
            .any(|path| std::fs::read(path).unwrap().starts_with(b"garbage ")),
        "{aside:?}"
    );
}

#[test]
fn flush_requested_while_the_mailbox_is_full_completes() {
    let db = FaultDb::new();
    let pausing = config(&db)
        .mailbox_capacity(4)
        .backoff(Duration::from_millis(500), Duration::from_millis(500));
    let logger = FailureLogger::spawn(pausing).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("actor-record", "1*panic->off").unwrap();
    logger.addr().try_send(no_hit(0)).unwrap();
    eventually("the pause before the restart", || {
        logger.stats().restarts == 1
    });
    let sent = (1..10)
        .filter(|turn| logger.addr().try_send(no_hit(*turn)).is_ok())
        .count();
    assert_eq!(sent, 4);
    block_on(logger.flush()).unwrap();
    assert_all_stored(&db, &logger, 5);
}

#[test]
fn panic_at_every_tick_is_followed_by_a_pause_each_time() {
    let db = FaultDb::new();
    let start = Instant::now();
    let slow = db.config().flush_interval(Duration::from_millis(1));
    let logger =
        FailureLogger::spawn(slow.backoff(Duration::from_millis(10), Duration::from_secs(5)))
            .unwrap();
    fail::cfg("actor-tick", "panic").unwrap();
    eventually("the logger to be unavailable", || {
        matches!(
            block_on(logger.flush()),
            Err(LoggerError::Unavailable { .. })
        )
    });
    // The fifth restart follows pauses of 10, 20, 40 and 80 ms. Each has at least three quarters of
    // its length.
    assert!(start.elapsed() >= Duration::from_millis(112));
    fail::remove("actor-tick");
    log_ten(&logger);
    eventually("a flush", || block_on(logger.flush()).is_ok());
    assert_all_stored(&db, &logger, 10);
}

#[test]
fn purge_that_meets_a_deleted_file_reopens_it() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db).cleanup_every(1)).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("purge", "pause").unwrap();
    logger.log(no_hit(-1));
    block_on(logger.flush()).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", db.url())).unwrap();
    }
    fail::remove("purge");
    eventually("the new file", || db.path().exists());
    log_ten(&logger);
    eventually("a flush", || block_on(logger.flush()).is_ok());
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
    assert!(logger.stats().restarts <= 2, "{:?}", logger.stats());
}

#[test]
fn records_in_the_mailbox_at_the_deadline_are_counted() {
    let db = FaultDb::new();
    let stuck = config(&db)
        .backoff(NEVER, NEVER)
        .shutdown_timeout(Duration::from_millis(50));
    let logger = FailureLogger::spawn(stuck).unwrap();
    block_on(logger.flush()).unwrap();
    fail::cfg("actor-record", "1*panic->off").unwrap();
    logger.addr().try_send(no_hit(0)).unwrap();
    eventually("the pause before the restart", || {
        logger.stats().restarts == 1
    });
    for turn in 1..=100 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    let _ = block_on(logger.shutdown());
    let stats = logger.stats();
    assert_eq!(stats.received, 101, "{stats:?}");
    assert!(stats.is_balanced());
}
