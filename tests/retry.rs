//! The logger tries a failing store as often as the backoff permits, whatever callers do.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{FaultDb, TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::error::ChangeError;
use failure_logger::{GetHandle, LoggerConfig, LoggerError, LoggerHandle, QueryStatus};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Returns settings that start jobs as often as possible: a short timer, batches of one record, and
/// a purge after each flush.
fn busy_config(db: &TestDb) -> LoggerConfig {
    db.config()
        .flush_interval(Duration::from_millis(1))
        .batch_size(1)
        .cleanup_every(1)
        .backoff(HOUR, HOUR)
}

/// Counts the jobs that reach the store from now on.
fn jobs() -> Arc<AtomicU64> {
    let jobs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&jobs);
    fail::cfg_callback("job", move || {
        counter.fetch_add(1, Ordering::AcqRel);
    })
    .unwrap();
    jobs
}

/// Waits until the actor has handled its timer and all messages that were sent to it.
fn settle(logger: &LoggerHandle) {
    for _ in 0..20 {
        block_on(logger.addr().send(GetHandle)).unwrap();
    }
}

#[test]
fn failing_store_is_tried_once_a_pause_whatever_callers_do() {
    let db = FaultDb::new();
    let logger = spawn(busy_config(&db));
    // Waits until the purge after the start is over, so that its job does not count below.
    eventually("an idle store", || {
        let seen = jobs();
        settle(&logger);
        seen.load(Ordering::Acquire) == 0
    });
    let tries = jobs();
    fail::cfg("store-insert", "return").unwrap();
    logger.log(no_hit(0));
    eventually("the first failure", || logger.stats().failed_flushes == 1);
    for turn in 1..200 {
        logger.log(no_hit(turn));
        logger.addr().try_send(no_hit(1000 + turn)).unwrap();
        let waits = block_on(logger.flush()).unwrap_err();
        assert!(
            matches!(&waits, LoggerError::Waiting { cause, .. } if cause.contains("injected")),
            "{waits:?}"
        );
        let set = block_on(logger.set_query_status("where", QueryStatus::Open)).unwrap_err();
        assert!(
            matches!(&set, ChangeError::Store(error) if error.to_string().contains("injected")),
            "{set:?}"
        );
    }
    settle(&logger);
    assert_eq!(tries.load(Ordering::Acquire), 1);
    assert_eq!(logger.stats().failed_flushes, 1);
    assert!(logger.stats().is_balanced());
    // A shutdown does not wait for the end of the pause.
    fail::remove("store-insert");
    let report = block_on(logger.shutdown()).unwrap();
    assert_eq!((report.unsaved, report.stats.persisted), (0, 399));
}

#[test]
fn failing_job_of_any_kind_begins_a_pause() {
    for (fault, action) in [
        ("store-insert", "return"),
        ("store-purge", "return"),
        ("store-status", "return"),
    ] {
        let db = FaultDb::new();
        let logger = spawn(busy_config(&db));
        fail::cfg(fault, action).unwrap();
        logger.log(no_hit(0));
        // A flush may be done before the purge that follows it fails.
        eventually("the pause", || {
            let _ = block_on(logger.set_query_status("where", QueryStatus::Open));
            matches!(block_on(logger.flush()), Err(LoggerError::Waiting { .. }))
        });
        let tries = jobs();
        logger.log(no_hit(1));
        for _ in 0..50 {
            assert!(block_on(logger.flush()).is_err());
            assert!(block_on(logger.set_query_status("where", QueryStatus::Open)).is_err());
        }
        settle(&logger);
        assert_eq!(tries.load(Ordering::Acquire), 0, "{fault}");
        fail::remove(fault);
        assert_eq!(block_on(logger.shutdown()).unwrap().unsaved, 0);
    }
}

#[test]
fn restart_of_the_actor_does_not_end_a_pause() {
    let db = FaultDb::new();
    let logger = spawn(
        db.config()
            .flush_interval(Duration::from_millis(5))
            .backoff(Duration::from_millis(1), HOUR),
    );
    fail::cfg("store-insert", "return").unwrap();
    logger.log(no_hit(0));
    let _ = block_on(logger.flush());
    // The pause of the writer is at least three seconds now, and that of the supervisor a
    // millisecond.
    eventually("a long pause", || logger.stats().failed_flushes == 13);
    let tries = jobs();
    fail::cfg("actor-tick", "1*panic->off").unwrap();
    eventually("the restart", || logger.stats().restarts == 1);
    logger.addr().try_send(no_hit(1)).unwrap();
    settle(&logger);
    assert_eq!(tries.load(Ordering::Acquire), 0);
    fail::remove("store-insert");
    assert_eq!(block_on(logger.shutdown()).unwrap().unsaved, 0);
}

#[test]
fn success_ends_the_growth_of_the_pauses() {
    let db = FaultDb::new();
    let logger = spawn(
        db.config()
            .flush_interval(NEVER)
            .backoff(Duration::from_millis(1), NEVER),
    );
    // Pauses that still grew would last a day after 27 failures.
    for turn in 0..60 {
        fail::cfg("store-insert", "1*return->off").unwrap();
        logger.log(no_hit(turn));
        let _ = block_on(logger.flush());
        eventually("the retry", || logger.stats().persisted == turn as u64 + 1);
    }
    assert_eq!(logger.stats().failed_flushes, 60);
    assert_eq!(db.turns(), (0..60).collect::<Vec<_>>());
}

#[test]
fn flush_in_a_pause_returns_and_the_retry_commits() {
    let db = FaultDb::new();
    let backoff = Duration::from_millis(50);
    let logger = spawn(db.config().flush_interval(NEVER).backoff(backoff, backoff));
    fail::cfg("store-insert", "1*return->off").unwrap();
    logger.log(no_hit(0));
    let first = block_on(logger.flush()).unwrap_err();
    assert_eq!(
        first,
        LoggerError::Waiting {
            buffered: 1,
            cause: "injected".into()
        }
    );
    // The retry needs no call.
    eventually("the retry", || logger.stats().persisted == 1);
    block_on(logger.flush()).unwrap();
    assert_eq!(logger.stats().failed_flushes, 1);
}

#[test]
fn shutdowns_shorten_a_pause_and_do_not_remove_it() {
    let db = FaultDb::new();
    let logger = spawn(
        busy_config(&db)
            .retention_days(0)
            .shutdown_timeout(Duration::from_secs(2)),
    );
    fail::cfg("store-insert", "return").unwrap();
    logger.log(no_hit(0));
    eventually("the first failure", || logger.stats().failed_flushes == 1);
    let tries = jobs();
    let requests = futures_util::future::join_all((0..200).map(|_| logger.shutdown()));
    for result in block_on(requests) {
        let Err(LoggerError::Unsaved { report, .. }) = result else {
            panic!("the store fails")
        };
        assert_eq!(report.unsaved, 1);
    }
    // A shutdown of two seconds makes at most 13 tries, because they are 187 to 250 ms apart.
    let tries = tries.load(Ordering::Acquire);
    assert!((1..=13).contains(&tries), "{tries} tries");
}
