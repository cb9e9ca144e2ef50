//! Use from other actors.

mod common;

use std::time::Duration;

use actix::prelude::*;
use common::{Lock, TestDb, block_on, no_hit, spawn};
use failure_logger::{FailureLogger, Flush, GetStats, RetrievalFailureRecord, Shutdown};

/// Passes each number on as a record, in one of the two ways.
struct Reporter {
    addr: Option<Addr<FailureLogger>>,
    recipient: Option<Recipient<RetrievalFailureRecord>>,
}

impl Actor for Reporter {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct Report(i64);

impl Handler<Report> for Reporter {
    type Result = ();

    fn handle(&mut self, Report(turn): Report, _: &mut Self::Context) {
        if let Some(addr) = &self.addr {
            addr.try_send(no_hit(turn)).unwrap();
        }
        if let Some(recipient) = &self.recipient {
            recipient.try_send(no_hit(turn)).unwrap();
        }
    }
}

#[actix::test]
async fn records_sent_by_other_actors_are_stored_in_order() {
    let db = TestDb::new();
    // Only the flush writes.
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    let by_addr = Reporter { addr: Some(logger.addr().clone()), recipient: None }.start();
    let by_recipient = Reporter { addr: None, recipient: Some(logger.addr().clone().recipient()) }.start();
    for turn in 0..10 {
        by_addr.send(Report(turn)).await.unwrap();
        by_recipient.send(Report(100 + turn)).await.unwrap();
    }
    let report = logger.addr().send(Flush).await.unwrap().unwrap();
    assert_eq!((report.persisted, report.rejected), (20, 0));
    assert_eq!(db.turns(), (0..10).flat_map(|turn| [turn, 100 + turn]).collect::<Vec<_>>());
    for (column, value) in
        [("query_text", "where is the key?"), ("failure_type", "no_hit"), ("retrieval_strategy", "semantic")]
    {
        assert_eq!(db.texts(column), vec![Some(value.to_owned()); 20], "{column}");
    }
    let stats = logger.addr().send(GetStats).await.unwrap();
    assert_eq!((stats.received, stats.persisted, stats.buffered, stats.dropped.total()), (20, 20, 0, 0));
}

#[actix::test]
async fn a_full_batch_of_messages_is_flushed_before_the_interval_has_passed() {
    let db = TestDb::new();
    let logger = spawn(db.config().batch_size(8).flush_interval(Duration::from_secs(3600)));
    for turn in 0..8 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    common::eventually("the batch", || logger.stats().persisted == 8);
}

#[test]
fn mailbox_holds_its_capacity_from_the_first_message_on() {
    // More and less than the default of 16.
    for capacity in [1, 100, 5000] {
        let db = TestDb::new();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (enter, entered) = std::sync::mpsc::channel();
        let gate = std::sync::Mutex::new(gate);
        let config = db.config().buffer_capacity(capacity).batch_size(1).redactor(move |_| {
            enter.send(()).unwrap();
            let _ = gate.lock().unwrap().recv();
        });
        let logger = FailureLogger::spawn(config).unwrap();
        // The actor hangs in the first message, so that it takes no other out of the mailbox.
        logger.addr().try_send(no_hit(0)).unwrap();
        entered.recv().unwrap();
        let mut held = 0;
        let refused = loop {
            match logger.addr().try_send(no_hit(held + 1)) {
                Ok(()) => held += 1,
                Err(refused) => break refused,
            }
            assert!(held <= 2 * 5000, "a mailbox without a bound");
        };
        assert!(matches!(refused, SendError::Full(_)), "{refused:?}");
        // Above the capacity, actix has room for one message of each sender.
        assert!((capacity as i64..=capacity as i64 + 4).contains(&held), "{held} messages, capacity {capacity}");
        drop(open);
        let stats = block_on(logger.addr().send(GetStats)).unwrap();
        assert_eq!(stats.received, held as u64 + 1);
        assert!(stats.is_balanced());
    }
}

#[actix::test]
async fn what_was_sent_before_a_shutdown_is_saved_and_later_sends_are_refused() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    for turn in 0..100 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    let report = logger.addr().send(Shutdown).await.unwrap().unwrap();
    assert_eq!((report.drained, report.unsaved), (100, 0));
    assert_eq!(db.turns(), (0..100).collect::<Vec<_>>());
    common::eventually("the end of the actor", || !logger.addr().connected());
    assert!(matches!(logger.addr().try_send(no_hit(0)), Err(SendError::Closed(_))));
}

#[test]
fn records_in_the_mailbox_beyond_the_buffer_are_counted_as_dropped() {
    let db = TestDb::new();
    let config = db.config().buffer_capacity(10).batch_size(1).flush_interval(Duration::from_secs(3600));
    let logger = spawn(config);
    let lock = Lock::new(&db);
    let mut sent = 0;
    while sent < 30 {
        if logger.addr().try_send(no_hit(sent)).is_ok() {
            sent += 1;
        }
    }
    let stats = block_on(logger.addr().send(GetStats)).unwrap();
    assert_eq!((stats.received, stats.buffered, stats.dropped.buffer_full), (30, 10, 20));
    drop(lock);
    block_on(logger.flush()).unwrap();
    assert_eq!(logger.stats().persisted, 10);
}

#[test]
fn senders_that_never_pause_keep_nothing_from_being_written_and_no_shutdown_from_ending() {
    for redactor in [Duration::ZERO, Duration::from_micros(300)] {
        let db = TestDb::new();
        let config = db.config().shutdown_timeout(Duration::from_secs(2));
        let logger = spawn(match redactor {
            Duration::ZERO => config,
            slow => config.redactor(move |_| std::thread::sleep(slow)),
        });
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Acquire) {
                        break;
                    }
                    let _ = logger.addr().try_send(no_hit(turn));
                }
            });
            common::eventually("records to be written meanwhile", || logger.stats().persisted > 1000);
            block_on(logger.flush()).unwrap();
            // Whether all of it was saved depends on the time there was; that it ends does not.
            let _ = block_on(logger.shutdown());
            stop.store(true, std::sync::atomic::Ordering::Release);
        });
        assert!(logger.stats().is_balanced());
        assert_eq!(logger.stats().persisted, db.rows().unsigned_abs());
    }
}
