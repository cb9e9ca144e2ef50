//! The actor under a clock that the test moves: it jumps to the next timer once there is nothing
//! else to do.
//!
//! A test that waits in real time is slow or flaky, and one that polls proves nothing about the
//! moment. Here an hour passes in no time, and "59 seconds later nothing has happened" is exact.
//! The clock stands while a job runs on a blocking thread, so that the time that SQLite takes does
//! not count.

use std::future::Future;
use std::ops::ControlFlow;
#[cfg(feature = "failpoints")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::Actor as _;
use tokio::time::{Instant, sleep};

use crate::config::LoggerConfig;
use crate::model::entry::{Entry, Origin};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::record::RetrievalFailureRecord;
use crate::model::stats::DropReason;
use crate::model::time::Timestamp;
use crate::pipeline::actor::FailureLogger;
use crate::pipeline::state::{Shared, Writer};
use crate::pipeline::writer;
use crate::rollup::Attempt;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sums::ReadBucket;
use crate::store::sqlite::peer::Peer;
use crate::{LoggerHandle, store};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
const ATTEMPT: Attempt = Attempt {
    kind: OutcomeKind::Success,
    latency: Some(SECOND),
    top_score: None,
};

/// A file of its own, and what a logger keeps of it.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    pub(crate) shared: Arc<Shared>,
}

/// Each test ends in a legal combination of states, also one that is about something else.
impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.shared.is_legal(),
                "phase, admission, seal and gate do not fit together"
            );
        }
    }
}

impl Fixture {
    /// The timer of flushes is set to a day unless `configure` changes it.
    pub(crate) fn new(configure: impl FnOnce(LoggerConfig) -> LoggerConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failures.db");
        let config = configure(LoggerConfig::new(path.to_str().unwrap()).flush_interval(NEVER));
        let database = store::backend(&config.validate().unwrap(), config.pool_size, true);
        let store = database.open().unwrap();
        let shared = Arc::new(Shared::new(config, Writer::new(database, Some(store))));
        Self { folder, shared }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("failures.db")
    }

    fn connect(&self) -> Peer {
        Peer::open(&self.path())
    }

    fn execute(&self, sql: &str) {
        self.connect().execute(sql);
    }

    fn integer(&self, sql: &str) -> i64 {
        self.connect().integer(sql)
    }

    /// Counts an attempt of a monitor, which ends now and has a latency.
    fn observe(&self) {
        let series = self.shared.attempts.series(&"s".into(), None);
        self.shared.observe(&series, &ATTEMPT, None, || None);
    }
}

/// Runs `test` in an actix system whose clock stands still while anything is left to do, a job on a
/// blocking thread included, and jumps to the next timer then.
pub(crate) fn in_virtual_time(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    actix_rt::System::with_tokio_rt(runtime).block_on(test);
}

/// Runs `action` if this thread comes to a fault point, until the result is dropped. Fault points
/// belong to the process, and other tests pass them meanwhile.
#[cfg(feature = "failpoints")]
pub(crate) fn at_fault_point(
    point: &str,
    action: impl Fn() + Send + Sync + 'static,
) -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    let this = std::thread::current().id();
    fail::cfg_callback(point, move || {
        if std::thread::current().id() == this {
            action();
        }
    })
    .unwrap();
    scenario
}

/// Starts the actor, and returns when it has done what it does at its start.
async fn start(fixture: &Fixture) -> LoggerHandle {
    let mut actor = FailureLogger::with_shared(Arc::clone(&fixture.shared));
    let handle = actor.handle();
    actor.start();
    sleep(Duration::from_millis(1)).await;
    handle
}

/// `cleanup_every` counts flushes: without the hourly timer a quiet logger would never purge.
#[test]
fn old_rows_are_purged_every_hour_without_a_flush() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config.retention_days(30));
        let _logger = start(&fixture).await;
        let rows = || fixture.integer("SELECT count(*) FROM memory_retrieval_failures");
        for hour in 1..=3 {
            fixture.execute(
                "INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, \
                 query_text, query_len, result_count, latency_ms, created_at) \
                 SELECT randomblob(16), 0, 'no_hit', 's', 'q', 1, 0, 0, unixepoch() * 1000 - days * 86400000 \
                 FROM (SELECT 29 AS days UNION SELECT 31)",
            );
            sleep(HOUR - MINUTE).await;
            assert_eq!(rows(), hour + 1, "the hour has not passed");
            sleep(MINUTE).await;
            assert_eq!(rows(), hour, "the row of 31 days is gone");
        }
        assert_eq!(fixture.shared.stats().purged, 3);
    });
}

/// A record is counted before it is enqueued. A flush that finds the queue empty in between must
/// come back for it, and not wait for the timer.
#[test]
fn flush_waits_for_a_record_that_is_counted_and_not_yet_queued() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        let logger = start(&fixture).await;
        let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "q");
        let buffer = &fixture.shared.buffer;
        // A caller between the two halves of its call.
        let admission = buffer.admit().unwrap();
        let flushed = logger.flush();
        let late = async {
            sleep(SECOND).await;
            buffer
                .enqueue(
                    Entry {
                        record,
                        logged_at: Timestamp::EPOCH,
                        origin: Origin::LOGGED,
                    },
                    admission,
                )
                .unwrap();
        };
        let began = Instant::now();
        let (flushed, ()) = tokio::join!(flushed, late);
        assert_eq!(flushed.unwrap().persisted, 1);
        assert!(
            began.elapsed() < MINUTE,
            "the timer of a day is not waited for"
        );
    });
}

/// The seal comes after the first flush of a shutdown. The flush that was running may have
/// collected the attempts already, so that one more has to follow.
#[test]
fn shutdown_writes_attempts_that_come_during_its_last_flush() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        let logger = start(&fixture).await;
        let series = fixture.shared.attempts.series(&"s".into(), None);
        let mut lock = fixture.connect();
        lock.execute("BEGIN IMMEDIATE");
        logger.log(RetrievalFailureRecord::new(
            RetrievalFailureType::NoHit,
            "s",
            "q",
        ));
        let during_the_flush = async {
            // It has collected what was counted, and waits for the lock.
            while fixture.shared.buffer.waiting() > 0 {
                tokio::task::yield_now().await;
            }
            // A caller that found the logger open.
            fixture
                .shared
                .attempts
                .push(&series, &ATTEMPT, Timestamp::now());
            lock.execute("ROLLBACK");
        };
        let (report, ()) = tokio::join!(logger.shutdown(), during_the_flush);
        assert_eq!(
            report.map(|report| (report.drained, report.stats.attempts_persisted)),
            Ok((1, 1))
        );
    });
}

/// Reads visit each row that is not rolled up: without the timer they would become slower with each
/// hour.
#[test]
fn attempts_are_rolled_up_every_minute() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        let logger = start(&fixture).await;
        let recent = || fixture.integer("SELECT count(*) FROM memory_retrieval_attempts_recent");
        let rolled_up = || {
            fixture.integer(
                "SELECT coalesce(sum(attempts), 0) FROM memory_retrieval_attempts \
                WHERE resolution = 60",
            )
        };
        for round in 1..=3 {
            fixture.observe();
            logger.flush().await.unwrap();
            sleep(59 * SECOND).await;
            assert_eq!((recent(), rolled_up()), (1, round - 1));
            sleep(SECOND).await;
            assert_eq!((recent(), rolled_up()), (0, round));
        }
    });
}

/// The counters end with the process, and the table is all that is left of an outage.
#[test]
fn drops_are_stored_by_reason_every_minute() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        let _logger = start(&fixture).await;
        let stored = |reason: DropReason| {
            let of_reason = format!("WHERE reason = '{}'", reason.as_str());
            fixture.integer(&format!(
                "SELECT coalesce(sum(records), 0) FROM memory_retrieval_drops {of_reason}"
            ))
        };
        for round in 1..=3 {
            for reason in [
                DropReason::BufferFull,
                DropReason::BufferFull,
                DropReason::Unavailable,
            ] {
                fixture.shared.count_drop(reason);
            }
            sleep(59 * SECOND).await;
            assert_eq!(stored(DropReason::BufferFull), 2 * (round - 1));
            sleep(SECOND).await;
            assert_eq!(
                (
                    stored(DropReason::BufferFull),
                    stored(DropReason::Unavailable)
                ),
                (2 * round, round)
            );
        }
        let minutes_ago = fixture.integer(
            "SELECT max(abs(unixepoch() * 1000 - started_at)) / 60000 FROM memory_retrieval_drops",
        );
        assert!(minutes_ago <= 2, "{minutes_ago}");
    });
}

/// A setting shorter than the limits of minutes and hours holds for those as well.
#[test]
fn counts_expire_by_their_resolution_and_the_setting() {
    // Ages in days: minutes, hours, and days, of which some are kept.
    const AGES: [(i64, &[i64]); 3] = [
        (60, &[1, 2, 6, 8]),
        (3600, &[2, 6, 88, 92]),
        (86_400, &[2, 6, 98, 103, 5000]),
    ];
    for (setting, kept) in [
        (0, ["1,2,6", "2,6,88", "2,6,98,103,5000"]),
        (100, ["1,2,6", "2,6,88", "2,6,98"]),
        (4, ["1,2", "2", "2"]),
    ] {
        in_virtual_time(async {
            let fixture = Fixture::new(|config| config.attempts_retention_days(setting));
            for (resolution, ages) in AGES {
                for days in ages {
                    fixture.execute(&format!(
                        "INSERT INTO memory_retrieval_attempts VALUES ({resolution}, (unixepoch() / {resolution} - \
                         86400 / {resolution} * {days}) * {resolution} * 1000, '{days}', 'success', 0, 1, 0, NULL, NULL)"
                    ));
                }
            }
            fixture.execute(
                "INSERT INTO memory_retrieval_drops SELECT started_at, 'rejected', 1 FROM memory_retrieval_attempts \
                 WHERE resolution = 86400",
            );
            let _logger = start(&fixture).await;
            sleep(MINUTE + SECOND).await;
            let ages = |column: &str, table: &str| {
                fixture.connect().text(&format!(
                    "SELECT group_concat(x) FROM (SELECT {column} AS x FROM {table} ORDER BY \
                     started_at DESC)"
                ))
            };
            let counts = AGES.map(|(resolution, _)| {
                ages(
                    "strategy",
                    &format!("memory_retrieval_attempts WHERE resolution = {resolution}"),
                )
            });
            assert_eq!(counts, kept, "attempts_retention_days = {setting}");
            let drops = ages(
                "(unixepoch() * 1000 - started_at) / 86400000",
                "memory_retrieval_drops",
            );
            assert_eq!(drops, kept[2], "drops are kept as long as days");
        });
    }
}

/// As after a fault between commit and acknowledgement: the same attempts are written once more.
#[cfg(feature = "failpoints")]
#[test]
fn roll_up_waits_for_attempts_that_are_in_doubt() {
    let fixture = Fixture::new(|config| config);
    let recent = || fixture.integer("SELECT count(*) FROM memory_retrieval_attempts_recent");
    fixture.observe();
    let flush = || writer::flush(&fixture.shared);
    let fault = at_fault_point("flush-committed", || panic!("injected"));
    catch_unwind(AssertUnwindSafe(flush)).unwrap_err();
    fault.teardown();
    assert_eq!(
        (recent(), fixture.shared.stats().attempts_persisted),
        (1, 0),
        "committed and not acknowledged"
    );
    for _ in 0..2 {
        let _ = writer::roll_up(&fixture.shared).unwrap();
        assert_eq!(
            recent(),
            1,
            "not rolled up while it may be written once more"
        );
    }
    flush().unwrap();
    assert_eq!(
        (recent(), fixture.shared.stats().attempts_persisted),
        (1, 1)
    );
    let _ = writer::roll_up(&fixture.shared).unwrap();
    assert_eq!(recent(), 0);
    let counted = "SELECT sum(attempts) FROM memory_retrieval_attempts WHERE resolution = 86400";
    assert_eq!(fixture.integer(counted), 1);
}

/// A list that is half full wakes the writer, which makes room long before the timer. Otherwise
/// attempts would spill and lose their latencies.
#[test]
fn attempts_keep_their_latencies_however_long_the_interval() {
    // More than the lists of one thread hold, several times over.
    const ROUNDS: u64 = 8;
    const ATTEMPTS: u64 = 8192;
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        let logger = start(&fixture).await;
        for _ in 0..ROUNDS {
            (0..ATTEMPTS).for_each(|_| fixture.observe());
            // The writer is woken, and collects them.
            sleep(SECOND).await;
        }
        logger.flush().await.unwrap();
        sleep(MINUTE).await;
        assert_eq!(fixture.shared.stats().attempts_persisted, ROUNDS * ATTEMPTS);
        let (mut attempts, mut latencies) = (0, 0);
        let span = Span {
            resolution: Resolution::Day,
            from: Timestamp::EPOCH,
            to: Timestamp::MAX,
        };
        let mut each = |bucket: ReadBucket| {
            attempts += bucket.attempts;
            latencies += bucket.latency().map_or(0, |latency| latency.count());
            ControlFlow::Continue(())
        };
        fixture
            .connect()
            .snapshot()
            .buckets(span, true, &mut each)
            .unwrap();
        assert_eq!(
            (attempts, latencies),
            (ROUNDS * ATTEMPTS, ROUNDS * ATTEMPTS)
        );
    });
}

/// A purge without rows succeeds on a table that takes none. It must not make the logger healthy.
#[test]
fn failed_store_is_proven_by_a_row_and_not_by_an_empty_purge() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config.flush_interval(SECOND).backoff(SECOND, SECOND));
        let logger = start(&fixture).await;
        let is_unproven = || fixture.shared.counters.is_unproven();
        logger.flush().await.unwrap();
        assert!(!is_unproven());
        // A table that takes no row, and can be purged.
        fixture.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON memory_retrieval_failures BEGIN SELECT \
             raise(ABORT, 'injected'); END",
        );
        let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "q");
        let _ = logger.log(record);
        logger.flush().await.unwrap_err();
        assert!(is_unproven());
        let failed = fixture.shared.stats().failed_flushes;
        writer::purge(&fixture.shared).unwrap_err();
        fixture.execute("DELETE FROM memory_retrieval_failures");
        assert!(is_unproven());
        // An hour in which purges and roll-ups have their turns.
        sleep(HOUR + MINUTE).await;
        assert!(is_unproven() && fixture.shared.stats().failed_flushes > failed);
        fixture.execute("DROP TRIGGER refuse");
        sleep(MINUTE).await;
        assert!(!is_unproven());
        assert_eq!((logger.stats().persisted, logger.stats().buffered), (1, 0));
    });
}

/// Without a probe the logger would stay unhealthy until the next record, which may come next week.
#[test]
fn store_that_failed_with_nothing_left_to_write_is_probed() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config.flush_interval(SECOND).backoff(SECOND, SECOND));
        let _logger = start(&fixture).await;
        sleep(SECOND).await;
        fixture.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON memory_retrieval_failures BEGIN SELECT \
             raise(ABORT, 'injected'); END",
        );
        fixture.shared.counters.store_failed();
        sleep(MINUTE).await;
        assert!(fixture.shared.counters.is_unproven(), "no row is taken");
        fixture.execute("DROP TRIGGER refuse");
        sleep(MINUTE).await;
        assert!(!fixture.shared.counters.is_unproven());
        assert_eq!(
            fixture.integer("SELECT count(*) FROM memory_retrieval_failures"),
            0,
            "a probe leaves nothing"
        );
    });
}

/// A supervisor of processes restarts a program whose event loop hangs. A store that fails is no
/// reason to.
#[test]
fn heartbeat_ends_with_the_actor_and_not_with_a_failing_store() {
    in_virtual_time(async {
        let fixture = Fixture::new(|config| config);
        fixture.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON memory_retrieval_failures BEGIN SELECT \
             raise(ABORT, 'injected'); END",
        );
        let logger = start(&fixture).await;
        let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "q");
        let _ = logger.log(record);
        sleep(HOUR).await;
        assert!(logger.heartbeat_age().is_some_and(|age| age < MINUTE));
        let _ = logger.shutdown().await;
        assert_eq!(logger.heartbeat_age(), None);
    });
}

/// A fault a day must not add up to an unavailable logger after five days.
#[cfg(feature = "failpoints")]
#[test]
fn faults_far_apart_are_no_failed_restarts() {
    use std::sync::atomic::{AtomicU32, Ordering};

    use actix::Context;
    use actix::dev::channel::channel as mailbox;

    use crate::pipeline::backoff::UNAVAILABLE_AFTER_RESTARTS;
    use crate::pipeline::control::Control;
    use crate::pipeline::phase::Phase;
    use crate::pipeline::supervisor;

    const LONGEST: Duration = Duration::from_secs(10);
    let first = Duration::from_millis(100);
    let fixture = Fixture::new(|config| config.backoff(first, LONGEST).flush_interval(first / 10));
    let (faults, started) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (left, count) = (Arc::clone(&faults), Arc::clone(&started));
    let _scenario = at_fault_point("actor-tick", move || {
        let fails = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            left.checked_sub(1)
        });
        assert!(fails.is_err(), "injected");
    });
    let this = std::thread::current().id();
    fail::cfg_callback("actor-started", move || {
        count.fetch_add(
            u32::from(std::thread::current().id() == this),
            Ordering::AcqRel,
        );
    })
    .unwrap();
    in_virtual_time(async {
        let (_control, control_mailbox) = mailbox(8);
        let records = actix::Addr::<FailureLogger>::new(mailbox(8).0)
            .recipient()
            .downgrade();
        let mut actor = Context::with_receiver(control_mailbox)
            .into_future(Control::new(Arc::clone(&fixture.shared), records));
        let mut phases = fixture.shared.phases();
        let script = async {
            for round in 1..=20 {
                sleep(2 * LONGEST).await;
                faults.store(1, Ordering::Release);
                // The next tick and the shortest pause, not a longer one.
                sleep(first / 5 + first).await;
                assert_eq!(started.load(Ordering::Acquire), round + 1);
            }
            assert!(
                !phases.has_changed().unwrap(),
                "the logger was unavailable for a moment"
            );
            sleep(2 * LONGEST).await;
            // One after the other.
            faults.store(u32::MAX, Ordering::Release);
            let unavailable = phases
                .wait_for(|phase| matches!(phase, Phase::Unavailable { .. }))
                .await;
            drop(unavailable.unwrap());
            assert_eq!(
                started.load(Ordering::Acquire),
                20 + UNAVAILABLE_AFTER_RESTARTS
            );
        };
        tokio::select! {
            () = supervisor::supervise(&fixture.shared, &mut actor) => panic!("the supervisor ended"),
            () = script => {}
        }
    });
}
