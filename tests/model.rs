//! The accounting, against a model: after any sequence of events every record is accounted for, and
//! each lost record is counted as dropped.

mod common;

use std::time::Duration;

use actix::prelude::SendError;
use common::{FaultDb, TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::{
    DropReason, LogOutcome, LoggerConfig, LoggerHandle, Outcome, RetrievalFailureType,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const CAPACITY: usize = 64;
/// The turn of all old records.
const OLD: i64 = -100;
const POINTS: [&str; 5] = [
    "store-insert",
    "store-purge",
    "flush",
    "flush-committed",
    "actor-record",
];
/// Number that chooses the cases. They are the same at every run.
const SEED: u64 = 20_261_124;

fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .buffer_capacity(CAPACITY)
        .batch_size(16)
        .cleanup_every(2)
        .flush_interval(Duration::from_millis(5))
        .backoff(Duration::from_millis(1), Duration::from_millis(5))
}

/// One event of a sequence.
#[derive(Clone, Debug)]
enum Event {
    Log(usize),
    Send(usize),
    /// Successes and failures that a monitor observes.
    Observe(usize),
    Flush,
    StoreFails,
    StoreRecovers,
    PanicInFlush,
    PanicAfterCommit,
    PanicInHandler,
    /// A record so old that the next purge deletes it.
    LogOld,
    PurgeFails,
    /// The process ends, and another one takes its place.
    Restart,
    Shutdown,
}

/// The counters that a caller can predict.
#[derive(Clone, Debug, Default)]
struct Model {
    received: u64,
    observed: u64,
    observed_before: u64,
    failing: bool,
    closed: bool,
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Event;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Event> {
        prop_oneof![
            8 => (1..40_usize).prop_map(Event::Log),
            3 => (1..40_usize).prop_map(Event::Send),
            3 => (1..40_usize).prop_map(Event::Observe),
            6 => Just(Event::Flush),
            2 => Just(Event::StoreFails),
            4 => Just(Event::StoreRecovers),
            2 => Just(Event::PanicInFlush),
            2 => Just(Event::PanicAfterCommit),
            2 => Just(Event::PanicInHandler),
            2 => Just(Event::LogOld),
            1 => Just(Event::PurgeFails),
            2 => Just(Event::Restart),
            1 => Just(Event::Shutdown),
        ]
        .boxed()
    }

    fn preconditions(model: &Self, event: &Event) -> bool {
        // A closed mailbox accepts nothing, and a store that never recovers would cost the
        // deadline.
        match event {
            Event::Send(_) | Event::PanicInHandler => !model.closed,
            Event::Shutdown | Event::Restart => !model.failing && !model.closed,
            Event::StoreFails => !model.closed,
            _ => true,
        }
    }

    fn apply(mut model: Self, event: &Event) -> Self {
        match event {
            Event::Log(records) | Event::Send(records) => model.received += *records as u64,
            // One attempt of three fails.
            Event::Observe(attempts) => {
                model.received += attempts.div_ceil(3) as u64;
                model.observed += if model.closed { 0 } else { *attempts as u64 };
            }
            Event::PanicInHandler | Event::LogOld => model.received += 1,
            Event::Restart => {
                // The new logger counts from zero.
                model.observed_before += model.observed;
                (model.received, model.observed) = (0, 0);
            }
            Event::StoreFails => model.failing = true,
            Event::StoreRecovers => model.failing = false,
            Event::Shutdown => model.closed = true,
            Event::Flush | Event::PurgeFails | Event::PanicInFlush | Event::PanicAfterCommit => {}
        }
        model
    }
}

struct System {
    db: FaultDb,
    logger: LoggerHandle,
    next: i64,
    /// Records that earlier loggers persisted.
    persisted_before: u64,
    /// Old records that were queued.
    old: u64,
    /// Turns of the records that were queued, which must be stored.
    queued: Vec<i64>,
    /// Turns of the records that went through the mailbox. Only the counters tell if they were
    /// queued.
    sent: Vec<i64>,
    /// Records that did not fit into this logger's mailbox.
    handed_back: u64,
}

impl StateMachineTest for System {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        let db = FaultDb::new();
        let logger = spawn(config(&db));
        Self {
            db,
            logger,
            next: 0,
            persisted_before: 0,
            old: 0,
            queued: Vec::new(),
            sent: Vec::new(),
            handed_back: 0,
        }
    }

    fn apply(mut system: Self, model: &Model, event: Event) -> Self {
        match event {
            Event::Log(records) => {
                for _ in 0..records {
                    let turn = system.turn();
                    match system.logger.log(no_hit(turn)) {
                        LogOutcome::Queued => system.queued.push(turn),
                        LogOutcome::Dropped(DropReason::Closed) => assert!(model.closed),
                        LogOutcome::Dropped(reason) => {
                            assert!(
                                matches!(reason, DropReason::BufferFull | DropReason::Unavailable),
                                "{reason:?}"
                            );
                        }
                    }
                }
            }
            Event::Send(records) => (0..records).for_each(|_| system.send()),
            Event::Observe(attempts) => {
                let monitor = system.logger.strategy("observed");
                for nth in 0..attempts {
                    monitor.record(match nth % 3 {
                        0 => Outcome::failure(RetrievalFailureType::Error, "q", Duration::ZERO),
                        _ => Outcome::success(Duration::ZERO),
                    });
                }
            }
            Event::Flush => {
                let before = system.queued.len() as u64;
                if block_on(system.logger.flush()).is_ok() {
                    assert!(system.persisted_before + system.logger.stats().persisted >= before);
                }
            }
            Event::StoreFails => fail::cfg("store-insert", "return").unwrap(),
            Event::StoreRecovers => fail::remove("store-insert"),
            Event::PanicInFlush => fail::cfg("flush", "1*panic->off").unwrap(),
            Event::PanicAfterCommit => fail::cfg("flush-committed", "1*panic->off").unwrap(),
            Event::PanicInHandler => {
                fail::cfg("actor-record", "1*panic->off").unwrap();
                system.send();
            }
            Event::LogOld => {
                let at = std::time::SystemTime::now() - 100 * Duration::from_secs(24 * 60 * 60);
                system.logger.log_at(no_hit(OLD), at);
            }
            Event::PurgeFails => fail::cfg("store-purge", "1*return->off").unwrap(),
            Event::Restart => {
                for point in POINTS {
                    fail::remove(point);
                }
                let stats = block_on(system.logger.shutdown()).unwrap().stats;
                assert_eq!(
                    (stats.buffered, stats.attempts),
                    (0, stats.attempts_persisted)
                );
                system.persisted_before += stats.persisted;
                system.logger = spawn(config(&system.db));
                system.handed_back = 0;
            }
            Event::Shutdown => {
                block_on(system.logger.shutdown()).unwrap();
            }
        }
        // The actor receives a sent record when it reaches it, also after a restart.
        eventually("the mailbox to be empty or unread", || {
            let stats = system.logger.stats();
            let in_mailbox = model.received - system.handed_back - stats.received;
            in_mailbox == 0 || in_mailbox == 1 && stats.mailbox_full
        });
        system
    }

    fn check_invariants(system: &Self, _: &Model) {
        let stats = system.logger.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        assert!(stats.buffered <= CAPACITY as u64, "{stats:?}");
    }

    fn teardown(system: Self, model: Model) {
        for point in POINTS {
            fail::remove(point);
        }
        block_on(system.logger.shutdown()).unwrap();
        let stats = system.logger.stats();
        assert_eq!(stats.received, model.received - system.handed_back);
        assert_eq!(
            (
                stats.buffered,
                stats.dropped.unsaved,
                stats.dropped.rejected
            ),
            (0, 0, 0)
        );
        assert_eq!(stats.received, stats.persisted + stats.dropped.total());
        let mut stored = system.db.turns();
        let all = stored.len();
        stored.retain(|turn| *turn != OLD);
        assert!(
            (all - stored.len()) as u64 <= system.old,
            "a purge deletes old records alone"
        );
        assert_eq!(
            stored.len() as u64 + system.old,
            system.persisted_before + stats.persisted
        );
        // The attempts are those that a monitor observed, even if their record was dropped, and the
        // failures that no monitor observed.
        let young = format!(
            "SELECT count(*) FROM memory_retrieval_failures WHERE retrieval_strategy <> \
             'observed' AND turn_index <> {OLD}"
        );
        let unobserved = system.db.integer(&young).unsigned_abs() + system.old;
        assert_eq!(
            (stats.attempts, stats.attempts_persisted),
            (model.observed, model.observed)
        );
        assert_eq!(
            system.db.attempts().unsigned_abs(),
            model.observed_before + model.observed + unobserved
        );
        let stored_of = |sender: &[i64]| {
            stored
                .iter()
                .copied()
                .filter(|turn| sender.contains(turn))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            stored_of(&system.queued),
            system.queued,
            "each queued record is stored once and in order"
        );
        assert!(stored_of(&system.sent).is_sorted());
    }
}

impl System {
    fn turn(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn send(&mut self) {
        let turn = self.turn();
        match self.logger.addr().try_send(no_hit(turn)) {
            Ok(()) => self.sent.push(turn),
            Err(refused) => {
                assert!(matches!(refused, SendError::Full(_)), "the actor runs");
                self.handed_back += 1;
            }
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(SEED), ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_accounted_for_in_any_sequence(sequential 1..30 => System);
}
