//! The accounting, against a model: whatever happens in whatever order, every record is accounted
//! for, and none is lost that was not said to be.

mod common;

use std::time::Duration;

use actix::prelude::SendError;
use common::{TestDb, block_on, eventually, no_hit, spawn};
use fail::FailScenario;
use failure_logger::{DropReason, LogOutcome, LoggerConfig, LoggerHandle, Outcome, RetrievalFailureType};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const CAPACITY: usize = 64;
/// The turn of all old records.
const OLD: i64 = -100;
const POINTS: [&str; 5] = ["store-insert", "store-purge", "flush", "flush-committed", "actor-record"];
/// The cases are the same at every run; this number chooses which.
const SEED: u64 = 20_261_124;

fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .buffer_capacity(CAPACITY)
        .batch_size(16)
        .cleanup_every(2)
        .flush_interval(Duration::from_millis(5))
        .backoff(Duration::from_millis(1), Duration::from_millis(5))
}

/// What can happen.
#[derive(Clone, Debug)]
enum Happening {
    Log(usize),
    Send(usize),
    /// Successes and failures that a monitor sees.
    Observe(usize),
    Flush,
    StoreFails,
    StoreRecovers,
    PanicInFlush,
    PanicAfterCommit,
    PanicInHandler,
    /// A record so old that the next purge takes it.
    LogOld,
    PurgeFails,
    /// The process ends, and another takes its place.
    Restart,
    Shutdown,
}

/// What is expected, as far as it can be known from outside.
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
    type Transition = Happening;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Happening> {
        prop_oneof![
            8 => (1..40_usize).prop_map(Happening::Log),
            3 => (1..40_usize).prop_map(Happening::Send),
            3 => (1..40_usize).prop_map(Happening::Observe),
            6 => Just(Happening::Flush),
            2 => Just(Happening::StoreFails),
            4 => Just(Happening::StoreRecovers),
            2 => Just(Happening::PanicInFlush),
            2 => Just(Happening::PanicAfterCommit),
            2 => Just(Happening::PanicInHandler),
            2 => Just(Happening::LogOld),
            1 => Just(Happening::PurgeFails),
            2 => Just(Happening::Restart),
            1 => Just(Happening::Shutdown),
        ]
        .boxed()
    }

    fn preconditions(model: &Self, happening: &Happening) -> bool {
        // A closed mailbox takes nothing, and a store that never recovers would cost the deadline.
        match happening {
            Happening::Send(_) | Happening::PanicInHandler => !model.closed,
            Happening::Shutdown | Happening::Restart => !model.failing && !model.closed,
            Happening::StoreFails => !model.closed,
            _ => true,
        }
    }

    fn apply(mut model: Self, happening: &Happening) -> Self {
        match happening {
            Happening::Log(records) | Happening::Send(records) => model.received += *records as u64,
            // One in three fails.
            Happening::Observe(attempts) => {
                model.received += attempts.div_ceil(3) as u64;
                model.observed += if model.closed { 0 } else { *attempts as u64 };
            }
            Happening::PanicInHandler | Happening::LogOld => model.received += 1,
            Happening::Restart => {
                // Another logger counts from the start.
                model.observed_before += model.observed;
                (model.received, model.observed) = (0, 0);
            }
            Happening::StoreFails => model.failing = true,
            Happening::StoreRecovers => model.failing = false,
            Happening::Shutdown => model.closed = true,
            Happening::Flush | Happening::PurgeFails | Happening::PanicInFlush | Happening::PanicAfterCommit => {}
        }
        model
    }
}

struct System {
    _scenario: FailScenario<'static>,
    db: TestDb,
    logger: LoggerHandle,
    next: i64,
    /// Records that earlier loggers persisted.
    persisted_before: u64,
    /// Old records that were queued.
    old: u64,
    /// Turns of the records that were queued: those must be stored.
    queued: Vec<i64>,
    /// Turns of the records that went through the mailbox: whether they were queued shows only in
    /// the counters.
    sent: Vec<i64>,
    /// Records that this logger's mailbox had no room for.
    handed_back: u64,
}

impl StateMachineTest for System {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        let scenario = FailScenario::setup();
        let db = TestDb::new();
        let logger = spawn(config(&db));
        Self {
            _scenario: scenario,
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

    fn apply(mut system: Self, model: &Model, happening: Happening) -> Self {
        match happening {
            Happening::Log(records) => {
                for _ in 0..records {
                    let turn = system.turn();
                    match system.logger.log(no_hit(turn)) {
                        LogOutcome::Queued => system.queued.push(turn),
                        LogOutcome::Dropped(DropReason::Closed) => assert!(model.closed),
                        LogOutcome::Dropped(reason) => {
                            assert!(matches!(reason, DropReason::BufferFull | DropReason::Unavailable), "{reason:?}");
                        }
                    }
                }
            }
            Happening::Send(records) => (0..records).for_each(|_| system.send()),
            Happening::Observe(attempts) => {
                let monitor = system.logger.strategy("observed");
                for nth in 0..attempts {
                    monitor.record(match nth % 3 {
                        0 => Outcome::failure(RetrievalFailureType::Error, "q", Duration::ZERO),
                        _ => Outcome::success(Duration::ZERO),
                    });
                }
            }
            Happening::Flush => {
                let before = system.queued.len() as u64;
                if block_on(system.logger.flush()).is_ok() {
                    assert!(system.persisted_before + system.logger.stats().persisted >= before);
                }
            }
            Happening::StoreFails => fail::cfg("store-insert", "return").unwrap(),
            Happening::StoreRecovers => fail::remove("store-insert"),
            Happening::PanicInFlush => fail::cfg("flush", "1*panic->off").unwrap(),
            Happening::PanicAfterCommit => fail::cfg("flush-committed", "1*panic->off").unwrap(),
            Happening::PanicInHandler => {
                fail::cfg("actor-record", "1*panic->off").unwrap();
                system.send();
            }
            Happening::LogOld => {
                let at = std::time::SystemTime::now() - 100 * Duration::from_secs(24 * 60 * 60);
                system.logger.log_at(no_hit(OLD), at);
            }
            Happening::PurgeFails => fail::cfg("store-purge", "1*return->off").unwrap(),
            Happening::Restart => {
                for point in POINTS {
                    fail::remove(point);
                }
                let stats = block_on(system.logger.shutdown()).unwrap().stats;
                assert_eq!((stats.buffered, stats.attempts), (0, stats.attempts_persisted));
                system.persisted_before += stats.persisted;
                system.logger = spawn(config(&system.db));
                system.handed_back = 0;
            }
            Happening::Shutdown => {
                block_on(system.logger.shutdown()).unwrap();
            }
        }
        // A record that was sent is received when the actor gets to it, also after a restart.
        eventually("the mailbox to be empty, or unread", || {
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
        assert_eq!((stats.buffered, stats.dropped.unsaved, stats.dropped.rejected), (0, 0, 0));
        assert_eq!(stats.received, stats.persisted + stats.dropped.total());
        let mut stored = system.db.turns();
        let all = stored.len();
        stored.retain(|turn| *turn != OLD);
        assert!((all - stored.len()) as u64 <= system.old, "old records may be purged at any time, others never");
        assert_eq!(stored.len() as u64 + system.old, system.persisted_before + stats.persisted);
        // What a monitor saw, also where its record was dropped, and the failures that none saw.
        let young = format!(
            "SELECT count(*) FROM memory_retrieval_failures WHERE retrieval_strategy <> 'observed' AND turn_index <> {OLD}"
        );
        let unobserved = system.db.integer(&young).unsigned_abs() + system.old;
        assert_eq!((stats.attempts, stats.attempts_persisted), (model.observed, model.observed));
        assert_eq!(system.db.attempts().unsigned_abs(), model.observed_before + model.observed + unobserved);
        let of = |sender: &[i64]| stored.iter().copied().filter(|turn| sender.contains(turn)).collect::<Vec<_>>();
        assert_eq!(of(&system.queued), system.queued, "what was queued is stored, once and in order");
        assert!(of(&system.sent).is_sorted());
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
    fn every_record_is_accounted_for_whatever_happens(sequential 1..30 => System);
}
