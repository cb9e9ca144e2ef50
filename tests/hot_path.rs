//! A call of `log` allocates nothing, whatever its outcome.

mod common;

use std::time::Duration;

use common::{Lock, TestDb, no_hit, spawn};
use failure_logger::{DropReason, LogOutcome, LoggerHandle, RetrievalFailureRecord};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Logs `records` one by one. Returns the number of allocations, and the last outcome.
fn log_all(logger: &LoggerHandle, records: Vec<RetrievalFailureRecord>) -> (u64, LogOutcome) {
    let mut last = LogOutcome::Queued;
    let info = allocation_counter::measure(|| {
        for record in records {
            last = logger.log(record);
        }
    });
    (info.count_total, last)
}

#[test]
fn queued_record_costs_no_allocation() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER).batch_size(8192));
    let records: Vec<_> = (0..1000).map(no_hit).collect();
    assert_eq!(log_all(&logger, records), (0, LogOutcome::Queued));
}

#[test]
fn dropped_record_costs_no_allocation() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .flush_interval(NEVER)
            .buffer_capacity(1)
            .batch_size(1),
    );
    let lock = Lock::new(&db);
    logger.log(no_hit(0));
    let records: Vec<_> = (0..1000).map(no_hit).collect();
    assert_eq!(
        log_all(&logger, records),
        (0, LogOutcome::Dropped(DropReason::BufferFull))
    );
    drop(lock);
}

#[test]
fn disabled_logger_costs_no_allocation() {
    let records: Vec<_> = (0..1000).map(no_hit).collect();
    let outcome = log_all(&LoggerHandle::disabled(), records);
    assert_eq!(outcome, (0, LogOutcome::Dropped(DropReason::Disabled)));
}

#[test]
fn calls_that_complete_batches_cost_no_allocation() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER).batch_size(16));
    let records: Vec<_> = (0..4096).map(no_hit).collect();
    assert_eq!(log_all(&logger, records).0, 0);
}

#[test]
fn counter_counts_allocations() {
    assert_eq!(
        allocation_counter::measure(|| drop(Box::new(1))).count_total,
        1
    );
}

#[test]
fn records_that_fit_are_committed_without_a_flush_call() {
    // The flushes come from full batches alone, and from the timer alone. The records exceed the
    // buffer.
    for (round, batch, interval) in [(256, 256, NEVER), (200, 8192, Duration::from_millis(1))] {
        let db = TestDb::new();
        let logger = spawn(db.config().batch_size(batch).flush_interval(interval));
        for nth in 1..=50 {
            for _ in 0..round {
                assert_eq!(logger.log(no_hit(nth)), LogOutcome::Queued);
            }
            common::eventually("the round", || {
                logger.stats().persisted == nth.unsigned_abs() * round
            });
        }
        let stats = logger.stats();
        assert_eq!(
            (stats.persisted, stats.buffered, stats.dropped.total()),
            (50 * round, 0, 0)
        );
        assert_eq!(
            db.turns(),
            (1..=50)
                .flat_map(|nth| vec![nth; round as usize])
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn full_buffer_of_the_largest_records_is_bounded() {
    let text = "🦀".repeat(1 << 16);
    let largest = || {
        let mut record = RetrievalFailureRecord::new(
            failure_logger::RetrievalFailureType::Error,
            text.as_str(),
            &text,
        );
        record.conversation_id = Some(text.clone().into());
        record.edge_types = Some(text.clone().into());
        record.error_context = Some(text.clone().into());
        record
    };
    let mut records = Vec::with_capacity(1000);
    let info = allocation_counter::measure(|| records.extend((0..1000).map(|_| largest())));
    // Only kept memory counts, without temporary allocations.
    assert!(
        info.bytes_current <= 1000 * 8 * 1024,
        "{} bytes a record",
        info.bytes_current / 1000
    );
}
