//! The logger as an actor: messages from other actors.

mod common;

use std::time::Duration;

use actix::prelude::*;
use common::{Lock, TestDb, block_on, no_hit, spawn};
use failure_logger::{DropReason, FailureLogger, LogOutcome, RetrievalFailureRecord};

/// An actor that passes each number on as a record, in one of the two ways.
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
    // Only the flush commits.
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    let by_addr = Reporter {
        addr: Some(logger.addr().clone()),
        recipient: None,
    }
    .start();
    let by_recipient = Reporter {
        addr: None,
        recipient: Some(logger.addr().clone().recipient()),
    }
    .start();
    for turn in 0..10 {
        by_addr.send(Report(turn)).await.unwrap();
        by_recipient.send(Report(100 + turn)).await.unwrap();
    }
    let report = logger.flush().await.unwrap();
    assert_eq!((report.persisted, report.rejected), (20, 0));
    assert_eq!(
        db.turns(),
        (0..10)
            .flat_map(|turn| [turn, 100 + turn])
            .collect::<Vec<_>>()
    );
    for (column, value) in [
        ("query_text", "where is the key?"),
        ("failure_type", "no_hit"),
        ("retrieval_strategy", "semantic"),
    ] {
        assert_eq!(
            db.texts(column),
            vec![Some(value.to_owned()); 20],
            "{column}"
        );
    }
    let stats = logger.stats();
    assert_eq!(
        (
            stats.received,
            stats.persisted,
            stats.buffered,
            stats.dropped.total()
        ),
        (20, 20, 0, 0)
    );
}

#[actix::test]
async fn full_batch_of_messages_is_flushed_before_the_interval() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .batch_size(8)
            .flush_interval(Duration::from_secs(3600)),
    );
    for turn in 0..8 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    common::eventually("the batch", || logger.stats().persisted == 8);
}

/// Sends until a record is handed back. Returns the number of accepted records.
fn fill(addr: &Addr<FailureLogger>, most: i64) -> i64 {
    for turn in 0..=most {
        match addr.try_send(no_hit(turn)) {
            Ok(()) => {}
            Err(SendError::Full(record)) => {
                assert_eq!(record.turn_index, turn, "the record itself");
                return turn;
            }
            Err(SendError::Closed(_)) => panic!("the actor runs"),
        }
    }
    panic!("a mailbox without a bound");
}

#[test]
fn mailbox_holds_its_capacity_from_the_first_message_on() {
    // The capacities lie below and above actix's default of 16. Without a setting, the capacity is
    // an eighth of the buffer.
    for (setting, capacity) in [
        (Some(1), 1),
        (Some(100), 100),
        (Some(5000), 5000),
        (None, 1024),
    ] {
        let db = TestDb::new();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (enter, entered) = std::sync::mpsc::channel();
        let gate = std::sync::Mutex::new(gate);
        let mut config = db.config();
        if let Some(setting) = setting {
            config = config.mailbox_capacity(setting);
        }
        let logger = FailureLogger::spawn(config.redactor(move |_| {
            enter.send(()).unwrap();
            let _ = gate.lock().unwrap().recv();
        }))
        .unwrap();
        // The actor hangs in the first message, so that it takes no other one out of the mailbox.
        logger.addr().try_send(no_hit(0)).unwrap();
        entered.recv().unwrap();
        assert_eq!(fill(logger.addr(), 2 * 5000), capacity);
        // actix gives each clone of an address a place of its own.
        let clones: Vec<_> = (0..3).map(|_| logger.addr().clone()).collect();
        assert_eq!(clones.iter().map(|clone| fill(clone, 2)).sum::<i64>(), 3);
        drop(open);
        let sent = capacity as u64 + 4;
        common::eventually("all records", || logger.stats().received == sent);
        block_on(logger.shutdown()).unwrap();
        assert_eq!(logger.stats().persisted, sent);
    }
}

#[test]
fn full_buffer_hands_records_back_and_drops_no_queued_one() {
    let db = TestDb::new();
    let config = db
        .config()
        .buffer_capacity(1000)
        .mailbox_capacity(100)
        .batch_size(50);
    let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(5)));
    let lock = Lock::new(&db);
    // Senders do not pause until the actor has looked at its mailbox.
    let (mut taken, mut handed_back) = (Vec::new(), Vec::new());
    let mut turn = 0;
    common::eventually("the actor to leave its mailbox unread", || {
        match logger.addr().try_send(no_hit(turn)) {
            Ok(()) => taken.push(turn),
            Err(full) => handed_back.push(full.into_inner().turn_index),
        }
        turn += 1;
        logger.stats().mailbox_full && handed_back.len() > 10_000
    });
    assert!(
        (800..=1021).contains(&taken.len()),
        "{} records in a buffer of 1000",
        taken.len()
    );
    // All messages but one are visible.
    common::eventually("the actor to read its mailbox", || {
        taken.len() as u64 - logger.stats().received <= 1
    });
    let stats = logger.stats();
    assert!(stats.is_balanced());
    drop(lock);
    block_on(logger.flush()).unwrap();
    // On a slow machine, a look at the mailbox may find more than its part of the buffer holds. The
    // counter has the difference.
    let (stored, dropped) = (db.turns(), logger.stats().dropped.buffer_full);
    assert_eq!(stored.len() as u64 + dropped, taken.len() as u64);
    assert!(
        dropped <= 20
            && stored.is_sorted()
            && stored.iter().all(|turn| taken.binary_search(turn).is_ok())
    );
    assert_eq!(stored[..800], taken[..800], "each once, in order");
    // The actor reads the mailbox, which has its capacity once more.
    common::eventually("an open mailbox", || !logger.stats().mailbox_full);
    logger.addr().try_send(no_hit(turn)).unwrap();
    block_on(logger.shutdown()).unwrap();
    assert_eq!(
        logger.stats().received,
        taken.len() as u64 + 1,
        "a record that is handed back is not received"
    );
}

#[test]
fn calls_have_the_whole_buffer_until_the_address_is_used() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .buffer_capacity(100)
            .mailbox_capacity(10)
            .batch_size(50),
    );
    let lock = Lock::new(&db);
    let queued = (0..200)
        .filter(|turn| logger.log(no_hit(*turn)) == LogOutcome::Queued)
        .count();
    assert_eq!(queued, 100);
    drop(lock);
    block_on(logger.flush()).unwrap();
    logger.addr();
    let lock = Lock::new(&db);
    let queued = (0..200)
        .filter(|turn| logger.log(no_hit(*turn)) == LogOutcome::Queued)
        .count();
    assert_eq!(queued, 80, "twice the mailbox's capacity is kept for it");
    let sent = fill(logger.addr(), 20);
    assert!(sent >= 1, "messages find room while calls find none");
    drop(lock);
    block_on(logger.shutdown()).unwrap();
    assert_eq!(logger.stats().persisted, 180 + sent.unsigned_abs());
}

#[test]
fn records_forced_into_a_full_mailbox_are_dropped_and_counted() {
    let db = TestDb::new();
    let config = db
        .config()
        .buffer_capacity(10)
        .mailbox_capacity(1)
        .batch_size(1);
    let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(5)));
    let lock = Lock::new(&db);
    for turn in 0..5000 {
        logger.addr().do_send(no_hit(turn));
    }
    common::eventually("all records to be received", || {
        logger.stats().received == 5000
    });
    let stats = logger.stats();
    assert_eq!((stats.buffered, stats.dropped.buffer_full), (10, 4990));
    drop(lock);
    block_on(logger.flush()).unwrap();
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
}

#[test]
fn send_resolves_to_the_outcome_of_the_record() {
    let db = TestDb::new();
    let logger = spawn(db.config());
    let sent = block_on(logger.addr().send(no_hit(0))).unwrap();
    assert_eq!(sent, LogOutcome::Queued);
    block_on(logger.shutdown()).unwrap();
    common::eventually("the end of the actor", || !logger.addr().connected());
    assert!(block_on(logger.addr().send(no_hit(1))).is_err());
    assert_eq!(db.turns(), [0]);
}

#[test]
fn call_that_waits_for_room_gets_it_or_reports_a_full_buffer() {
    let db = TestDb::new();
    let config = db.config().buffer_capacity(1).batch_size(1);
    let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(5)));
    let lock = Lock::new(&db);
    assert_eq!(logger.log(no_hit(0)), LogOutcome::Queued);
    let in_time = block_on(logger.log_within(no_hit(1), Duration::from_millis(20)));
    assert_eq!(in_time, LogOutcome::Dropped(DropReason::BufferFull));
    let mut waiting = Box::pin(logger.log_within(no_hit(2), Duration::from_secs(3600)));
    assert!(futures_util::FutureExt::now_or_never(&mut waiting).is_none());
    drop(lock);
    assert_eq!(block_on(waiting), LogOutcome::Queued);
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.turns(), [0, 2]);
    let closed = block_on(logger.log_within(no_hit(3), Duration::from_secs(3600)));
    assert_eq!(closed, LogOutcome::Dropped(DropReason::Closed));
    let stats = logger.stats();
    assert_eq!(
        (
            stats.received,
            stats.dropped.buffer_full,
            stats.dropped.closed
        ),
        (4, 1, 1)
    );
}

#[test]
fn calls_that_wait_for_room_all_get_it() {
    let db = TestDb::new();
    let config = db.config().buffer_capacity(2).batch_size(1);
    let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(5)));
    // The records exceed the room of one flush, so that some callers find the room taken that they
    // waited for.
    let calls = (0..50).map(|turn| logger.log_within(no_hit(turn), Duration::from_secs(3600)));
    let outcomes = block_on(futures_util::future::join_all(calls));
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == LogOutcome::Queued),
        "{outcomes:?}"
    );
    block_on(logger.shutdown()).unwrap();
    assert_eq!((db.rows(), logger.stats().dropped.total()), (50, 0));
}

#[test]
fn mailbox_is_left_unread_while_a_shutdown_commits() {
    let db = TestDb::new();
    let config = db
        .config()
        .mailbox_capacity(10)
        .shutdown_timeout(Duration::from_millis(300));
    let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(5)));
    let lock = Lock::new(&db);
    logger.log(no_hit(0));
    let (mut taken, mut handed_back) = (0, 0);
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| block_on(logger.shutdown()));
        common::eventually("the end", || {
            match logger.addr().try_send(no_hit(1)) {
                Ok(()) => taken += 1,
                Err(_) => handed_back += 1,
            }
            shutdown.is_finished()
        });
    });
    drop(lock);
    common::eventually("the end of the actor", || !logger.addr().connected());
    let stats = logger.stats();
    assert!(
        handed_back > 1000,
        "{taken} sent, {handed_back} handed back; {stats}"
    );
    // One record was logged. Two at most were sent between the actor's last look at the empty
    // mailbox and its end.
    assert!(
        (stats.received - 1..=stats.received + 1).contains(&taken),
        "{taken} sent, {stats}"
    );
    // Each record that the actor reads lets one in, until it finds the mailbox empty. It gives up
    // at 65,536.
    assert!(stats.dropped.closed <= 65_537, "{stats:?}");
}

#[actix::test]
async fn records_sent_before_a_shutdown_are_committed_later_ones_not() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    for turn in 0..100 {
        logger.addr().try_send(no_hit(turn)).unwrap();
    }
    let report = logger.shutdown().await.unwrap();
    assert_eq!((report.drained, report.unsaved), (100, 0));
    assert_eq!(db.turns(), (0..100).collect::<Vec<_>>());
    common::eventually("the end of the actor", || !logger.addr().connected());
    assert!(matches!(
        logger.addr().try_send(no_hit(0)),
        Err(SendError::Closed(_))
    ));
}

#[test]
fn senders_that_never_pause_delay_no_flush_and_no_shutdown() {
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
            common::eventually("records to be written meanwhile", || {
                logger.stats().persisted > 1000
            });
            block_on(logger.flush()).unwrap();
            // The time decides how many records are saved. The shutdown ends in any case.
            let _ = block_on(logger.shutdown());
            stop.store(true, std::sync::atomic::Ordering::Release);
        });
        assert!(logger.stats().is_balanced());
        assert_eq!(logger.stats().persisted, db.rows().unsigned_abs());
    }
}
