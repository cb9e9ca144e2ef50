//! The ways to start the logger, and what differs between them. The table in docs/actors.md has a
//! column for each.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use actix::prelude::*;
use common::ways::{Started, WAYS, Way, in_system, start, start_actor};
use common::{Lock, TestDb, block_on, eventually, no_hit};
use failure_logger::error::Unhealthy;
use failure_logger::{DropReason, FailureLogger, GetHandle, LogOutcome, LoggerError};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Sends ten records to the actor and logs ten.
fn log_twenty(started: &Started) {
    for turn in 0..10 {
        started.addr().try_send(no_hit(turn)).unwrap();
        assert_eq!(started.logger.log(no_hit(100 + turn)), LogOutcome::Queued);
    }
}

/// Runs `test` as [`in_system`] does, and then stops the system, which ends its arbiters as well.
fn in_stopped_system<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runner = System::new();
        let outcome = runner.block_on(test());
        System::current().stop();
        runner.run().unwrap();
        outcome
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn every_way_to_start_commits_sent_and_logged_records() {
    for way in WAYS {
        let db = TestDb::new();
        in_system(async || {
            let started = start(way, db.config().flush_interval(NEVER));
            log_twenty(&started);
            assert_eq!(
                started.addr().send(no_hit(10)).await.unwrap(),
                LogOutcome::Queued,
                "{way:?}"
            );
            assert_eq!(
                started.logger.flush().await.unwrap().persisted,
                21,
                "{way:?}"
            );
            log_twenty(&started);
            let report = started.logger.shutdown().await.unwrap();
            assert_eq!(
                (report.drained, report.stats.persisted),
                (20, 41),
                "{way:?}"
            );
            assert_eq!(
                started.logger.log(no_hit(0)),
                LogOutcome::Dropped(DropReason::Closed)
            );
            assert_eq!(started.logger.shutdown().await.unwrap(), report);
        });
        assert_eq!(db.rows(), 41, "{way:?}");
    }
}

#[test]
fn every_way_to_start_flushes_by_timer_and_by_batch() {
    for way in WAYS {
        let db = TestDb::new();
        let counts = db
            .config()
            .batch_size(20)
            .flush_interval(Duration::from_millis(5));
        in_system(async || {
            let started = start(way, counts);
            let logger = started.logger.clone();
            // The wait blocks its thread, so it must not be that of the actor.
            let waiting = actix_rt::task::spawn_blocking(move || {
                log_twenty(&started);
                eventually("the batch", || started.logger.stats().persisted == 20);
                started.logger.log(no_hit(0));
                eventually("the timer", || started.logger.stats().persisted == 21);
            });
            waiting.await.unwrap();
            logger.shutdown().await.unwrap();
        });
    }
}

#[test]
fn address_kept_after_the_end_is_closed_or_counts_what_it_drops() {
    for way in WAYS {
        let db = TestDb::new();
        in_system(async || {
            let started = start(way, db.config());
            started.logger.shutdown().await.unwrap();
            if way == Way::Supervisor {
                // actix's supervisor restarts the actor for as long as it has an address.
                let outcome = started.addr().send(no_hit(0)).await.unwrap();
                assert_eq!(outcome, LogOutcome::Dropped(DropReason::Closed));
                assert_eq!(started.logger.stats().dropped.closed, 1);
            } else {
                while started.addr().connected() {
                    actix_rt::time::sleep(Duration::from_millis(1)).await;
                }
                assert!(
                    matches!(
                        started.addr().try_send(no_hit(0)),
                        Err(SendError::Closed(_))
                    ),
                    "{way:?}"
                );
                assert_eq!(
                    started.logger.stats().received,
                    0,
                    "a record that is handed back is not received"
                );
            }
        });
    }
}

#[test]
fn logger_of_a_stopped_system_has_committed_at_the_join() {
    for way in WAYS {
        let db = TestDb::new();
        let (logger, arbiter) = in_stopped_system(async || {
            let started = start(way, db.config().flush_interval(NEVER));
            // actix drops the messages to an actor that its arbiter has not started yet.
            started.logger.flush().await.unwrap();
            log_twenty(&started);
            (started.logger, started.arbiter)
        });
        match way {
            Way::Spawn => {
                assert_eq!(
                    logger.health(),
                    Ok(()),
                    "the logger has a system of its own"
                );
                drop(logger);
            }
            Way::Arbiter => {
                // actix does not wait for the thread of an arbiter.
                arbiter.unwrap().join().unwrap();
                assert!(matches!(logger.health(), Err(Unhealthy::Closed)));
            }
            Way::Start | Way::Supervisor | Way::Registry => {
                let report = block_on(logger.shutdown()).unwrap();
                assert_eq!((report.stats.persisted, report.unsaved), (20, 0), "{way:?}");
                assert!(matches!(logger.health(), Err(Unhealthy::Closed)));
            }
        }
        assert_eq!(db.rows(), 20, "{way:?}");
    }
}

#[test]
fn logger_of_a_stopped_system_commits_more_than_the_buffer() {
    let db = TestDb::new();
    in_stopped_system(async || {
        let config = db
            .config()
            .buffer_capacity(100)
            .mailbox_capacity(100)
            .batch_size(100)
            .flush_interval(NEVER);
        let addr = FailureLogger::new(config).unwrap().start();
        for turn in 0..100 {
            addr.try_send(no_hit(turn)).unwrap();
        }
        for turn in 100..150 {
            addr.do_send(no_hit(turn));
        }
    });
    assert_eq!(db.turns(), (0..150).collect::<Vec<_>>());
}

#[test]
fn system_that_stops_while_a_flush_waits_commits_each_row_once() {
    let db = TestDb::new();
    let (give, given) = channel();
    let config = db
        .config()
        .batch_size(5)
        .shutdown_timeout(Duration::from_secs(60));
    let db = &db;
    std::thread::scope(|scope| {
        let system = scope.spawn(move || {
            in_stopped_system(async || {
                let started = start(Way::Start, config);
                started.logger.flush().await.unwrap();
                let lock = Lock::new(db);
                for turn in 0..10 {
                    started.logger.log(no_hit(turn));
                }
                let logger = started.logger.clone();
                let begun =
                    move || eventually("the batch to be taken", || logger.stats().buffered == 10);
                actix_rt::task::spawn_blocking(begun).await.unwrap();
                // The job waits for the lock on its thread.
                give.send((started.logger, lock)).unwrap();
            });
        });
        let (logger, lock) = given.recv().unwrap();
        eventually("the end to begin", || {
            matches!(logger.health(), Err(Unhealthy::Closed))
        });
        assert!(!system.is_finished(), "the system waits for the writer");
        drop(lock);
        system.join().unwrap();
    });
    assert_eq!(db.turns(), (0..10).collect::<Vec<_>>());
}

#[test]
fn system_that_stops_reports_what_it_cannot_commit_in_time() {
    let db = TestDb::new();
    let (logger, lock) = in_stopped_system(async || {
        let started = start(
            Way::Start,
            db.config().shutdown_timeout(Duration::from_millis(50)),
        );
        started.logger.flush().await.unwrap();
        let lock = Lock::new(&db);
        log_twenty(&started);
        (started.logger, lock)
    });
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
        panic!("the database is locked")
    };
    assert_eq!((report.unsaved, report.stats.received), (20, 20));
    assert!(report.stats.is_balanced());
    drop(lock);
    assert_eq!(db.rows(), 0);
}

#[test]
fn arbiter_that_is_stopped_before_its_logger_commits() {
    let db = TestDb::new();
    in_system(async || {
        let started = start(Way::Arbiter, db.config().flush_interval(NEVER));
        started.logger.flush().await.unwrap();
        log_twenty(&started);
        let arbiter = started.arbiter.unwrap();
        arbiter.stop();
        arbiter.join().unwrap();
        assert_eq!(db.rows(), 20);
        assert_eq!(
            started.logger.log(no_hit(0)),
            LogOutcome::Dropped(DropReason::Closed)
        );
        assert_eq!(started.logger.shutdown().await.unwrap().stats.persisted, 20);
        assert_eq!(started.logger.flush().await, Err(LoggerError::Closed));
    });
}

#[test]
fn handles_may_be_dropped_while_there_is_an_address() {
    for way in [Way::Start, Way::Arbiter, Way::Supervisor, Way::Registry] {
        let db = TestDb::new();
        in_system(async || {
            let Started {
                logger,
                addr,
                arbiter,
            } = start(way, db.config());
            drop(logger);
            let addr = addr.unwrap();
            assert_eq!(
                addr.send(no_hit(0)).await.unwrap(),
                LogOutcome::Queued,
                "{way:?}"
            );
            let logger = addr.send(GetHandle).await.unwrap();
            assert_eq!(logger.flush().await.unwrap().rejected, 0);
            assert_eq!(logger.stats().persisted, 1, "{way:?}");
            logger.shutdown().await.unwrap();
            drop(arbiter);
        });
    }
}

#[test]
fn logger_ends_with_the_last_address_and_handle() {
    for way in [Way::Start, Way::Arbiter, Way::Supervisor] {
        let db = TestDb::new();
        in_system(async || {
            let started = start(way, db.config().flush_interval(NEVER));
            log_twenty(&started);
            let reader = started.logger.strategy("s");
            drop(started.logger);
            drop(started.addr);
            while db.rows() < 20 {
                actix_rt::time::sleep(Duration::from_millis(1)).await;
            }
            drop(reader);
        });
    }
}

#[test]
fn handle_keeps_its_logger_without_another_address() {
    for way in WAYS {
        let db = TestDb::new();
        in_system(async || {
            let mut started = start(way, db.config().flush_interval(NEVER));
            started.logger.flush().await.unwrap();
            drop(started.addr.take());
            drop(started.addr().clone());
            started.logger.flush().await.unwrap();
            log_twenty(&started);
            assert_eq!(
                started.logger.flush().await.unwrap().persisted,
                20,
                "{way:?}"
            );
            started.logger.shutdown().await.unwrap();
        });
    }
}

#[test]
fn logger_on_its_own_thread_ends_with_its_last_handle() {
    let db = TestDb::new();
    in_system(async || {
        let started = start(Way::Spawn, db.config().flush_interval(NEVER));
        log_twenty(&started);
        let addr = started.logger.addr().clone();
        drop(started);
        assert_eq!(db.rows(), 20, "the drop waits for the commit");
        eventually("the end of the actor", || !addr.connected());
    });
}

#[test]
fn registry_keeps_its_logger_without_handle_and_address() {
    let db = TestDb::new();
    in_system(async || {
        let started = start(Way::Registry, db.config());
        started.logger.flush().await.unwrap();
        drop(started);
        for turn in 0..10 {
            assert_eq!(
                FailureLogger::from_registry()
                    .send(no_hit(turn))
                    .await
                    .unwrap(),
                LogOutcome::Queued
            );
        }
        let logger = FailureLogger::from_registry()
            .send(GetHandle)
            .await
            .unwrap();
        assert_eq!(logger.shutdown().await.unwrap().stats.persisted, 10);
    });
}

/// Returns an arbiter that does nothing until the gate opens.
fn blocked_arbiter() -> (Arbiter, Sender<()>) {
    let (enter, entered) = channel();
    let (open, gate) = channel();
    let arbiter = Arbiter::new();
    arbiter.spawn_fn(move || {
        enter.send(()).unwrap();
        let _ = gate.recv();
    });
    entered.recv().unwrap();
    (arbiter, open)
}

#[test]
fn mailbox_before_the_first_poll_has_its_or_actix_capacity() {
    for (way, places) in [
        (Way::Start, 100),
        (Way::Registry, 100),
        (Way::Arbiter, 16),
        (Way::Supervisor, 16),
    ] {
        let db = TestDb::new();
        in_system(async || {
            let config = db.config().mailbox_capacity(100);
            let (other, open) = blocked_arbiter();
            let mut actor = FailureLogger::new(config).unwrap();
            let logger = actor.handle();
            let addr = start_actor(way, actor, &other.handle());
            let sent = (0..200)
                .filter(|turn| addr.try_send(no_hit(*turn)).is_ok())
                .count();
            assert_eq!(sent, places, "{way:?}");
            open.send(()).unwrap();
            logger.flush().await.unwrap();
            assert_eq!(
                logger.shutdown().await.unwrap().stats.persisted,
                places as u64
            );
        });
    }
}

#[test]
fn system_that_stops_before_the_first_poll_commits_records() {
    for way in [Way::Start, Way::Supervisor, Way::Registry] {
        let db = TestDb::new();
        in_stopped_system(async || log_twenty(&start(way, db.config().flush_interval(NEVER))));
        assert_eq!(db.rows(), 20, "{way:?}");
    }
}

#[test]
fn arbiter_stopped_before_the_actor_starts_loses_sent_records() {
    let db = TestDb::new();
    in_system(async || {
        let (other, open) = blocked_arbiter();
        let mut actor = FailureLogger::new(db.config()).unwrap();
        let logger = actor.handle();
        let addr = start_actor(Way::Arbiter, actor, &other.handle());
        addr.try_send(no_hit(0)).unwrap();
        logger.log(no_hit(1));
        other.stop();
        open.send(()).unwrap();
        other.join().unwrap();
        let stats = logger.shutdown().await.unwrap().stats;
        assert_eq!((stats.received, stats.persisted), (1, 1));
    });
    assert_eq!(db.turns(), [1]);
}

#[test]
fn actor_that_is_never_started_commits_what_was_logged() {
    let db = TestDb::new();
    let mut actor = FailureLogger::new(db.config()).unwrap();
    let logger = actor.handle();
    assert_eq!(logger.log(no_hit(0)), LogOutcome::Queued);
    assert!(
        matches!(logger.addr().try_send(no_hit(1)), Err(SendError::Closed(_))),
        "no actor would take it"
    );
    drop(actor);
    assert_eq!(db.turns(), [0]);
    assert_eq!(block_on(logger.shutdown()).unwrap().stats.persisted, 1);
}

#[test]
fn shutdown_of_an_unstarted_actor_ends_and_reports_drops() {
    let db = TestDb::new();
    let mut actor =
        FailureLogger::new(db.config().shutdown_timeout(Duration::from_millis(1))).unwrap();
    let logger = actor.handle();
    logger.log(no_hit(0));
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
        panic!("no actor writes")
    };
    assert_eq!(report.unsaved, 1);
    drop(actor);
    assert_eq!(db.rows(), 0, "as reported");
}

/// A task that blocks its arbiter until the gate opens.
struct Blocker(Option<Receiver<()>>);

impl Actor for Blocker {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct Block;

impl Handler<Block> for Blocker {
    type Result = ();

    fn handle(&mut self, _: Block, _: &mut Context<Self>) {
        let _ = self.0.take().unwrap().recv();
    }
}

#[test]
fn handler_that_blocks_the_arbiter_delays_and_loses_no_record() {
    for way in WAYS {
        let db = TestDb::new();
        let (open, gate) = channel();
        let (give, given) = channel();
        let config = db
            .config()
            .buffer_capacity(100)
            .mailbox_capacity(10)
            .batch_size(10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                System::new().block_on(async {
                    let started = start(way, config);
                    started.logger.flush().await.unwrap();
                    let blocker = Blocker(Some(gate)).start();
                    give.send((started.logger.clone(), started.addr().clone()))
                        .unwrap();
                    blocker.send(Block).await.unwrap();
                    started.logger.shutdown().await.unwrap();
                });
            });
            let (logger, addr) = given.recv().unwrap();
            let is_apart = [Way::Spawn, Way::Arbiter].contains(&way);
            if is_apart {
                logger.log(no_hit(0));
                assert_eq!(
                    block_on(addr.send(no_hit(1))).unwrap(),
                    LogOutcome::Queued,
                    "{way:?}"
                );
                block_on(logger.flush()).unwrap();
            } else {
                let queued = (0..100)
                    .filter(|turn| logger.log(no_hit(*turn)) == LogOutcome::Queued)
                    .count();
                assert_eq!(queued, 80);
                let sent = (0..100)
                    .filter(|turn| addr.try_send(no_hit(*turn)).is_ok())
                    .count();
                assert_eq!(sent, 10, "one address, ten places");
            }
            open.send(()).unwrap();
        });
        assert_eq!(
            db.rows(),
            if [Way::Spawn, Way::Arbiter].contains(&way) {
                2
            } else {
                90
            },
            "{way:?}"
        );
    }
}

#[test]
fn shutdown_ends_in_time_though_the_arbiter_is_blocked() {
    let db = TestDb::new();
    let (open, gate) = channel();
    let (give, given) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            System::new().block_on(async {
                let started = start(
                    Way::Start,
                    db.config().shutdown_timeout(Duration::from_millis(50)),
                );
                // The flush shows that the control actor has begun.
                started.logger.flush().await.unwrap();
                let blocker = Blocker(Some(gate)).start();
                give.send(started.logger).unwrap();
                blocker.send(Block).await.unwrap();
            });
        });
        let logger = given.recv().unwrap();
        logger.log(no_hit(0));
        let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
            panic!("no actor writes")
        };
        assert_eq!(report.unsaved, 1);
        open.send(()).unwrap();
    });
    assert_eq!(db.rows(), 0, "as reported");
}

#[test]
fn two_loggers_of_one_system_keep_apart() {
    let (one, other) = (TestDb::new(), TestDb::new());
    in_system(async || {
        let first = start(Way::Start, one.config());
        let second = start(Way::Supervisor, other.config());
        log_twenty(&first);
        second.logger.log(no_hit(0));
    });
    assert_eq!((one.rows(), other.rows()), (20, 1));
}

#[test]
fn disabled_actor_receives_records_and_stores_none() {
    let db = TestDb::new();
    in_system(async || {
        let started = start(Way::Start, db.config().enabled(false));
        let outcome = started.addr().send(no_hit(0)).await.unwrap();
        assert_eq!(outcome, LogOutcome::Dropped(DropReason::Disabled));
        assert_eq!(started.logger.stats(), failure_logger::Stats::default());
        started.logger.shutdown().await.unwrap();
    });
    assert!(!db.path().exists());
}

/// Prints the default logger, which reads the environment. Each process has one environment.
#[test]
#[ignore = "started by the tests of the default logger, with their variables"]
fn default_logger_of_this_process_is_printed() {
    in_system(async || {
        let logger = FailureLogger::from_registry()
            .send(GetHandle)
            .await
            .unwrap();
        let outcome = FailureLogger::from_registry()
            .send(no_hit(0))
            .await
            .unwrap();
        let flushed = logger.flush().await;
        println!(
            "{outcome:?}; {flushed:?}; {:?}; {}",
            logger.health(),
            logger.stats()
        );
    });
}

#[test]
#[ignore = "started by a test of the default logger, with its variables"]
fn default_logger_before_its_start_and_after_its_end_is_printed() {
    in_system(async || {
        let addr = FailureLogger::from_registry();
        let sent = (0..200)
            .filter(|turn| addr.try_send(no_hit(*turn)).is_ok())
            .count();
        let logger = addr.send(GetHandle).await.unwrap();
        logger.shutdown().await.unwrap();
        println!(
            "{sent}; {}; {:?}",
            logger.stats(),
            addr.send(no_hit(0)).await
        );
    });
}

fn default_logger(variables: &[(&str, &str)]) -> String {
    default_logger_in("default_logger_of_this_process_is_printed", variables)
}

fn default_logger_in(test: &str, variables: &[(&str, &str)]) -> String {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn default_logger_has_the_settings_of_the_environment() {
    let db = TestDb::new();
    let said = default_logger(&[("FAILURE_LOGGER_DATABASE_URL", &db.url())]);
    assert!(said.contains("Queued; Ok("), "{said}");
    assert_eq!(db.rows(), 1);
}

#[test]
fn default_logger_is_supervised_by_actix() {
    let db = TestDb::new();
    let variables = [
        ("FAILURE_LOGGER_DATABASE_URL", &*db.url()),
        ("FAILURE_LOGGER_MAILBOX_CAPACITY", "100"),
    ];
    let said = default_logger_in(
        "default_logger_before_its_start_and_after_its_end_is_printed",
        &variables,
    );
    assert!(
        said.contains(
            "16; received 16 = persisted 16 + dropped 0 + buffered 0; Ok(Dropped(Closed))"
        ),
        "{said}"
    );
}

#[test]
fn default_logger_without_a_database_keeps_its_records() {
    let db = TestDb::new();
    let missing = db.folder.path().join("missing/x.db");
    let said = default_logger(&[("FAILURE_LOGGER_DATABASE_URL", missing.to_str().unwrap())]);
    assert!(said.contains("Queued; Err(Unavailable"), "{said}");
    assert!(
        said.contains("Err(Unavailable { cause: \"database_url"),
        "{said}"
    );
    assert!(
        said.contains("received 1 = persisted 0 + dropped 0 + buffered 1"),
        "{said}"
    );
}

#[test]
fn default_logger_with_invalid_settings_drops_and_reports_why() {
    for (name, value) in [
        ("FAILURE_LOGGER_POOL_SIZE", "many"),
        ("FAILURE_LOGGER_MAILBOX_CAPACITY", "0"),
    ] {
        let said = default_logger(&[(name, value)]);
        assert!(
            said.contains("Dropped(Unavailable); Err(Unavailable"),
            "{said}"
        );
        assert!(
            said.to_lowercase()
                .contains(&name.trim_start_matches("FAILURE_LOGGER_").to_lowercase()),
            "{said}"
        );
        assert!(
            said.contains("received 1 = persisted 0 + dropped 1 + buffered 0"),
            "{said}"
        );
    }
}
