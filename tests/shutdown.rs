//! Each accepted record is committed, or reported as lost.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Lock, TestDb, block_on, no_hit, spawn};
use failure_logger::{DropReason, LogOutcome, LoggerError, Outcome, RetrievalFailureType};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn shutdown_drains_all_records_and_drops_later_ones() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    for turn in 0..5000 {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
    let report = block_on(logger.shutdown()).unwrap();
    assert_eq!(
        (
            report.stats.persisted,
            report.unsaved,
            report.stats.buffered
        ),
        (5000, 0, 0)
    );
    assert_eq!(db.turns(), (0..5000).collect::<Vec<_>>());
    assert_eq!(
        logger.log(no_hit(0)),
        LogOutcome::Dropped(DropReason::Closed)
    );
    let stats = logger.stats();
    assert_eq!((stats.received, stats.dropped.closed), (5001, 1));
    assert!(stats.is_balanced());
    assert_eq!(block_on(logger.flush()), Err(LoggerError::Closed));
}

#[test]
fn shutdown_repeated_or_raced_reports_the_same() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    for turn in 0..100 {
        logger.log(no_hit(turn));
    }
    let reports: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| block_on(logger.shutdown()).unwrap()))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(reports[0].drained, 100);
    assert!(
        reports.iter().all(|report| *report == reports[0]),
        "{reports:?}"
    );
    assert_eq!(block_on(logger.shutdown()).unwrap(), reports[0]);
}

#[test]
fn queued_records_and_attempts_are_committed_by_a_shutdown() {
    let db = TestDb::new();
    let logger = spawn(db.config().buffer_capacity(1 << 20));
    let observed = AtomicU64::new(0);
    let (queued, all): (u64, u64) = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let monitor = logger.strategy("observed");
                    let (mut queued, mut all) = (0, 0);
                    while logger.log(no_hit(0)) == LogOutcome::Queued {
                        queued += 1;
                        monitor.record(Outcome::success(Duration::from_millis(1)));
                        monitor.record(Outcome::failure(
                            RetrievalFailureType::NoHit,
                            "q",
                            Duration::ZERO,
                        ));
                        all += 2;
                        observed.fetch_add(2, Ordering::AcqRel);
                    }
                    (queued, all)
                })
            })
            .collect();
        common::eventually("some records", || logger.stats().received > 1000);
        let before = observed.load(Ordering::Acquire);
        let report = block_on(logger.shutdown()).unwrap();
        assert_eq!(
            (report.unsaved, report.attempts_unsaved, report.in_doubt),
            (0, 0, 0)
        );
        assert!(
            report.stats.attempts >= before,
            "{} of {before} attempts",
            report.stats.attempts
        );
        let sum = |(queued, all), (more, observed)| (queued + more, all + observed);
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .fold((0, 0), sum)
    });
    let stats = logger.stats();
    assert!(stats.is_balanced());
    let rows = |strategy: &str| {
        db.integer(&format!(
            "SELECT count(*) FROM memory_retrieval_failures WHERE retrieval_strategy = '{strategy}'"
        ))
        .unsigned_abs()
    };
    assert_eq!(
        (rows("semantic"), rows("semantic") + rows("observed")),
        (queued, stats.persisted)
    );
    assert!(
        stats.attempts <= all && stats.attempts == stats.attempts_persisted,
        "{stats:?}, {all} calls"
    );
    // Records without a monitor are attempts as well.
    assert_eq!(db.attempts().unsigned_abs(), stats.attempts + queued);
}

#[test]
fn shutdown_of_a_locked_database_ends_in_time_and_reports_drops() {
    let db = TestDb::new();
    let config = db
        .config()
        .flush_interval(NEVER)
        .shutdown_timeout(Duration::from_millis(300));
    let logger = spawn(config);
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    let lock = Lock::new(&db);
    for turn in 1..=40 {
        logger.log(no_hit(turn));
    }
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
        panic!("the database is locked")
    };
    assert_eq!(
        (report.unsaved, report.in_doubt, report.drained),
        (40, 0, 0)
    );
    assert_eq!(
        (
            report.stats.persisted,
            report.stats.dropped.unsaved,
            report.stats.buffered
        ),
        (1, 40, 0)
    );
    assert!(report.stats.is_balanced());
    drop(lock);
    drop(logger);
    // A record that was reported as lost does not appear later.
    assert_eq!(db.turns(), [0]);
}

#[test]
fn database_file_is_complete_after_a_shutdown() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["failures.db", "failures.db-lock"],
        "the journal is gone"
    );
    assert_eq!(db.rows(), 1);
}

#[test]
fn last_handle_dropped_by_a_panic_commits_the_buffer() {
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
