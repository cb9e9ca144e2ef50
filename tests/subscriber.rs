//! A subscriber of the logger's traces that panics: whatever it does, nothing is lost and the result
//! of a shutdown comes, and is true.
//!
//! Alone in its process, for there is one subscriber.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Lock, TestDb, block_on, eventually, no_hit, spawn};
use fail::FailScenario;
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
        // That of each call; those of the writer are covered by its restarts.
        let is_of_a_call = span.metadata().name() == "memory.retrieval_failure.log";
        assert!(!(is_of_a_call && PANICS.load(Ordering::Acquire)), "injected");
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
fn a_subscriber_that_panics_costs_no_record_and_no_truth() {
    let scenario = FailScenario::setup();
    tracing::subscriber::set_global_default(Panicking).unwrap();
    PANICS.store(true, Ordering::Release);

    let db = TestDb::new();
    let logger = spawn(db.config().backoff(Duration::from_millis(1), Duration::from_millis(5)));
    fail::cfg("flush", "3*panic->off").unwrap();
    for turn in 0..10 {
        logger.log(no_hit(turn));
    }
    eventually("the records to be stored", || logger.stats().persisted == 10);
    assert!(logger.stats().restarts >= 3);
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());

    let db = TestDb::new();
    let logger = spawn(db.config().shutdown_timeout(Duration::from_millis(200)));
    let lock = Lock::new(&db);
    for turn in 0..40 {
        logger.log(no_hit(turn));
    }
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else { panic!("40 are lost") };
    assert_eq!((report.unsaved, report.stats.dropped.unsaved), (40, 40));
    assert!(logger.stats().is_balanced());
    drop(lock);
    assert_eq!(db.rows(), 0);
    PANICS.store(false, Ordering::Release);
    scenario.teardown();
}
