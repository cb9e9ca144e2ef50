//! Everything accepted is committed, or reported.

mod common;

use std::time::Duration;

use common::{Lock, TestDb, block_on, no_hit, spawn};
use failure_logger::{DropReason, LogOutcome, LoggerError};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn a_shutdown_drains_everything_and_refuses_what_comes_later() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    for turn in 0..5000 {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
    let report = block_on(logger.shutdown()).unwrap();
    assert_eq!((report.stats.persisted, report.unsaved, report.stats.buffered), (5000, 0, 0));
    assert_eq!(db.turns(), (0..5000).collect::<Vec<_>>());
    assert_eq!(logger.log(no_hit(0)), LogOutcome::Dropped(DropReason::Closed));
    let stats = logger.stats();
    assert_eq!((stats.received, stats.dropped.closed), (5001, 1));
    assert!(stats.is_balanced());
    assert_eq!(block_on(logger.flush()), Err(LoggerError::Closed));
}

#[test]
fn a_shutdown_can_be_repeated_and_raced_and_always_says_the_same() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    for turn in 0..100 {
        logger.log(no_hit(turn));
    }
    let reports: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| block_on(logger.shutdown()).unwrap())).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(reports[0].drained, 100);
    assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");
    assert_eq!(block_on(logger.shutdown()).unwrap(), reports[0]);
}

#[test]
fn every_call_that_was_told_queued_is_saved_though_a_shutdown_comes_in_between() {
    let db = TestDb::new();
    let logger = spawn(db.config().buffer_capacity(1 << 20));
    let queued: u64 = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut queued = 0;
                    while logger.log(no_hit(0)) == LogOutcome::Queued {
                        queued += 1;
                    }
                    queued
                })
            })
            .collect();
        common::eventually("some records", || logger.stats().received > 1000);
        let report = block_on(logger.shutdown()).unwrap();
        assert_eq!(report.unsaved, 0);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    assert_eq!(db.rows() as u64, queued);
    assert_eq!(logger.stats().persisted, queued);
    assert!(logger.stats().is_balanced());
}

#[test]
fn a_shutdown_against_a_locked_database_ends_in_time_and_reports_exactly_what_is_lost() {
    let db = TestDb::new();
    let config = db.config().flush_interval(NEVER).shutdown_timeout(Duration::from_millis(300));
    let logger = spawn(config);
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    let lock = Lock::new(&db);
    for turn in 1..=40 {
        logger.log(no_hit(turn));
    }
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else { panic!("cannot be saved") };
    assert_eq!((report.unsaved, report.in_doubt, report.drained), (40, 0, 0));
    assert_eq!((report.stats.persisted, report.stats.dropped.unsaved, report.stats.buffered), (1, 40, 0));
    assert!(report.stats.is_balanced());
    drop(lock);
    drop(logger);
    // What was reported as lost does not turn up later.
    assert_eq!(db.turns(), [0]);
}

#[test]
fn the_database_file_is_complete_after_a_shutdown() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(db.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["failures.db", "failures.db-lock"], "no journal is left");
    assert_eq!(db.rows(), 1);
}

#[test]
fn dropping_the_last_handle_while_panicking_saves_what_it_has() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    let unwound = std::thread::scope(|scope| {
        scope
            .spawn(move || {
                logger.log(no_hit(0));
                panic!("on purpose");
            })
            .join()
    });
    assert!(unwound.is_err());
    assert_eq!(db.rows(), 1);
}
