//! A subscriber of the logger's traces that panics: no record is lost, and the report of a shutdown
//! is returned and correct.
//!
//! The test is alone in its process, because a process has one subscriber.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{FaultDb, Lock, TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::LoggerError;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static PANICS: AtomicBool = AtomicBool::new(false);

struct Panicking;

impl Subscriber for Panicking {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("failure_logger") && *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        // The panic hits the span of each call. The restarts cover those of the writer.
        let is_of_a_call = span.metadata().name() == "memory.retrieval_failure.log";
        assert!(
            !(is_of_a_call && PANICS.load(Ordering::Acquire)),
            "injected"
        );
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        assert!(!PANICS.load(Ordering::Acquire), "injected");
    }

    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn subscriber_that_panics_costs_no_record_and_no_report() {
    tracing::subscriber::set_global_default(Panicking).unwrap();
    PANICS.store(true, Ordering::Release);

    let db = FaultDb::new();
    let logger = spawn(
        db.config()
            .backoff(Duration::from_millis(1), Duration::from_millis(5)),
    );
    fail::cfg("flush", "3*panic->off").unwrap();
    for turn in 0..10 {
        logger.log(no_hit(turn));
    }
    eventually("the records to be stored", || {
        logger.stats().persisted == 10
    });
    assert!(logger.stats().restarts >= 3);
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());

    let db = TestDb::new();
    let logger = spawn(db.config().shutdown_timeout(Duration::from_millis(200)));
    let lock = Lock::new(&db);
    for turn in 0..40 {
        logger.log(no_hit(turn));
    }
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
        panic!("40 records are unsaved")
    };
    assert_eq!((report.unsaved, report.stats.dropped.unsaved), (40, 40));
    assert!(logger.stats().is_balanced());
    drop(lock);
    assert_eq!(db.rows(), 0);
    PANICS.store(false, Ordering::Release);
}
