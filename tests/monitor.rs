//! Monitors count and log outcomes, and return results unchanged.

mod common;

use std::future::{pending, ready};
use std::io;
use std::time::Duration;

use common::{TestDb, block_on, eventually};
use failure_logger::monitor::{Found, Retrieved, Scored, TimeoutOr};
use failure_logger::report::{AttemptFilter, Rates, Summary};
use failure_logger::{
    Labels, LoggerConfig, LoggerError, LoggerHandle, Outcome, OutcomeKind, RetrievalFailureRecord,
    RetrievalFailureType, ScoreDirection, SourceFilter, TimeRange,
};

const HOUR: Duration = Duration::from_secs(60 * 60);

type Hits = Result<Vec<(&'static str, f32)>, io::Error>;

fn found(scores: &[f32]) -> Hits {
    Ok(scores.iter().map(|score| ("document", *score)).collect())
}

fn rates(logger: &LoggerHandle) -> Rates {
    block_on(logger.flush()).unwrap();
    block_on(logger.reader().summary(TimeRange::last(HOUR)))
        .unwrap()
        .total
}

fn by_type(rates: &Rates) -> [u64; 4] {
    [0, 1, 2, 3].map(|nth| rates.types[nth].failures)
}

#[test]
fn outcome_is_read_from_the_result_which_is_passed_on() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic").confidence_threshold(0.5);
    block_on(async {
        assert_eq!(
            monitor
                .observe("q", ready(found(&[0.4, 0.9])))
                .await
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            monitor.observe("q", ready(found(&[0.5]))).await.unwrap(),
            [("document", 0.5)],
            "at the threshold"
        );
        assert!(
            monitor
                .observe("nothing", ready(found(&[])))
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            monitor
                .observe("low", ready(found(&[0.1, 0.4])))
                .await
                .unwrap()
                .len(),
            2
        );
        let error = monitor
            .observe("error", ready(Hits::Err(io::Error::other("on fire"))))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "on fire");
    });
    let rates = rates(&logger);
    assert_eq!(
        (
            rates.attempts,
            rates.successes,
            rates.failures,
            rates.unobserved
        ),
        (5, 2, 3, 0)
    );
    assert_eq!(by_type(&rates), [1, 1, 0, 1]);
    assert_eq!(rates.failure_rate, Some(0.6));
    let texts = |column| {
        db.texts(column)
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        texts("query_text"),
        ["nothing", "low", "error"],
        "successes are not logged"
    );
    assert_eq!(texts("failure_type"), ["no_hit", "low_confidence", "error"]);
    assert_eq!(
        texts("result_count"),
        ["0", "2", ""],
        "an error has no count"
    );
    assert_eq!(texts("error_context"), ["", "", "on fire"]);
    assert_eq!(db.texts("round(top_score, 3)")[1].as_deref(), Some("0.4"));
    assert_eq!(
        db.texts("round(confidence_threshold, 3)")[1].as_deref(),
        Some("0.5")
    );
}

#[test]
fn timeout_ends_the_retrieval_and_other_errors_are_unchanged() {
    let db = TestDb::new();
    let logger = db.spawn();
    let impatient = logger.strategy("graph").timeout(Duration::from_millis(1));
    let patient = logger.strategy("graph").timeout(HOUR);
    block_on(async {
        let late = impatient
            .observe("slow", pending::<Hits>())
            .await
            .unwrap_err();
        assert!(matches!(late, TimeoutOr::Timeout(limit) if limit == Duration::from_millis(1)));
        let error = patient
            .observe("bad", ready(Hits::Err(io::Error::other("on fire"))))
            .await
            .unwrap_err();
        assert!(matches!(&error, TimeoutOr::Other(_)));
        assert_eq!(error.to_string(), "on fire");
        assert_eq!(
            patient
                .observe("good", ready(found(&[0.1])))
                .await
                .unwrap()
                .len(),
            1
        );
    });
    assert_eq!(by_type(&rates(&logger)), [0, 0, 1, 1]);
    assert_eq!(
        db.texts("error_context")[0].as_deref(),
        Some("no result after 1ms")
    );
}

#[test]
fn retrieval_that_blocks_its_thread_too_long_is_a_timeout() {
    const LIMIT: Duration = Duration::from_millis(1);
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("graph").timeout(LIMIT);
    for result in [
        found(&[0.9]),
        found(&[]),
        Hits::Err(io::Error::other("on fire")),
    ] {
        let blocking = async {
            let start = std::time::Instant::now();
            eventually("the limit to pass", || start.elapsed() > LIMIT);
            result
        };
        let late = block_on(monitor.observe("q", blocking)).unwrap_err();
        assert!(matches!(late, TimeoutOr::Timeout(LIMIT)), "{late}");
    }
    let rates = rates(&logger);
    assert_eq!(
        (rates.attempts, rates.successes, by_type(&rates)),
        (3, 0, [0, 0, 3, 0])
    );
    assert_eq!(
        db.texts("error_context"),
        vec![Some("no result after 1ms".into()); 3]
    );
}

#[test]
fn judge_applies_the_timeout_to_the_latency() {
    const LIMIT: Duration = Duration::from_millis(100);
    let logger = LoggerHandle::disabled();
    let (limited, unlimited) = (
        logger.strategy("graph").timeout(LIMIT),
        logger.strategy("graph"),
    );
    let longer = LIMIT + Duration::from_nanos(1);
    for result in [
        found(&[0.9]),
        found(&[]),
        Hits::Err(io::Error::other("on fire")),
    ] {
        assert_eq!(
            limited.judge("q", &result, longer).kind(),
            OutcomeKind::Timeout
        );
        let (at_the_limit, without) = (
            limited.judge("q", &result, LIMIT),
            unlimited.judge("q", &result, longer),
        );
        assert_eq!(at_the_limit.kind(), without.kind());
        assert_ne!(without.kind(), OutcomeKind::Timeout);
    }
}

#[test]
fn distances_are_judged_in_reverse() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger
        .strategy("vector")
        .score_direction(ScoreDirection::LowerIsBetter)
        .confidence_threshold(0.5);
    block_on(async {
        monitor
            .observe("near", ready(found(&[0.9, 0.4])))
            .await
            .unwrap();
        monitor
            .observe("far", ready(found(&[0.9, 0.7])))
            .await
            .unwrap();
    });
    assert_eq!(by_type(&rates(&logger)), [0, 1, 0, 0]);
    assert_eq!(
        db.text("round(top_score, 3)").as_deref(),
        Some("0.7"),
        "the best is the lowest"
    );
}

#[test]
fn dropped_retrieval_is_cancelled_and_no_success_or_failure() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic");
    block_on(async {
        let mut retrieval = Box::pin(monitor.observe("q", pending::<Hits>()));
        assert!(is_pending_after_a_poll(retrieval.as_mut()).await);
        drop(retrieval);
        // The retrieval was never polled, so nothing was attempted.
        drop(monitor.observe("q", pending::<Hits>()));
    });
    let rates = rates(&logger);
    assert_eq!(
        (rates.attempts, rates.cancelled, rates.failure_rate),
        (0, 1, None)
    );
    assert_eq!(db.rows(), 0);
}

/// Returns `true` if the future is still pending after one poll.
async fn is_pending_after_a_poll<F: Future + Unpin>(mut future: F) -> bool {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut future).poll(cx).is_pending())
    })
    .await
}

#[test]
fn context_is_stored_with_failures_and_not_shared_by_clones() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("graph");
    let mine = monitor
        .clone()
        .conversation("chat-42")
        .turn(7)
        .edge_types(r#"["knows"]"#);
    for monitor in [&mine, &monitor] {
        monitor.record(Outcome::failure(
            RetrievalFailureType::NoHit,
            "q",
            Duration::from_millis(3),
        ));
    }
    block_on(logger.flush()).unwrap();
    assert_eq!(db.texts("conversation_id"), [Some("chat-42".into()), None]);
    assert_eq!(db.texts("turn_index"), [Some("7".into()), None]);
    assert_eq!(db.texts("edge_types"), [Some(r#"["knows"]"#.into()), None]);
    assert_eq!(db.texts("latency_ms"), [Some("3".into()), Some("3".into())]);
}

#[test]
fn success_allocates_nothing() {
    let logger = TestDb::new().spawn();
    let monitor = logger
        .strategy("semantic")
        .confidence_threshold(0.5)
        .timeout(Duration::from_secs(1));
    let mut hits = Some(found(&[0.9]));
    let info = allocation_counter::measure(|| {
        block_on(monitor.observe("q", ready(hits.take().unwrap())))
            .map(std::mem::forget)
            .unwrap();
    });
    assert_eq!(info.count_total, 0);
}

#[test]
fn attempts_beyond_the_queue_capacity_are_all_counted() {
    const THREADS: u64 = 4;
    const CALLS: u64 = 50_000;
    let db = TestDb::new();
    let logger = db.spawn();
    std::thread::scope(|scope| {
        for nth in 0..THREADS {
            let monitor = logger.strategy(["one", "two"][nth as usize % 2]);
            scope.spawn(move || {
                for _ in 0..CALLS {
                    monitor.record(Outcome::success(Duration::from_micros(10)).top_score(0.9));
                }
            });
        }
    });
    let rates = rates(&logger);
    assert_eq!((rates.attempts, rates.failures), (THREADS * CALLS, 0));
    let stats = logger.stats();
    assert_eq!(
        (stats.attempts, stats.attempts_persisted),
        (THREADS * CALLS, THREADS * CALLS)
    );
    assert_eq!(
        (stats.received, db.rows()),
        (0, 0),
        "successes are no records"
    );
}

#[test]
fn unmonitored_failures_have_a_rate_only_beside_attempts() {
    let db = TestDb::new();
    let logger = db.spawn();
    for turn in 0..10 {
        logger.log(common::no_hit(turn));
    }
    let without = rates(&logger);
    assert_eq!(
        (without.attempts, without.failures, without.unobserved),
        (10, 10, 10)
    );
    assert_eq!(without.failure_rate, None);
    let monitor = logger.strategy("semantic");
    monitor.record(Outcome::success(Duration::from_millis(1)));
    monitor.record(Outcome::failure(
        RetrievalFailureType::Error,
        "q",
        Duration::from_millis(1),
    ));
    let with = rates(&logger);
    assert_eq!(
        (
            with.attempts,
            with.failures,
            with.unobserved,
            with.failure_rate
        ),
        (12, 11, 10, Some(11.0 / 12.0))
    );
}

#[test]
fn strategies_beyond_the_cap_are_counted_together() {
    let db = TestDb::new();
    let logger = db.spawn();
    for nth in 0..100 {
        logger
            .strategy(&format!("strategy {nth}"))
            .record(Outcome::success(Duration::from_millis(1)));
    }
    block_on(logger.flush()).unwrap();
    let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(summary.strategies.len(), 65);
    let other = summary
        .strategies
        .iter()
        .find(|strategy| strategy.retrieval_strategy == "[other strategies]")
        .unwrap();
    assert_eq!((other.rates.attempts, summary.total.attempts), (36, 100));
    // Their failures keep their name, and none of them sets a threshold for all.
    let late = logger.strategy("late").confidence_threshold(0.5);
    late.record(Outcome::failure(
        RetrievalFailureType::NoHit,
        "q",
        Duration::ZERO,
    ));
    block_on(logger.flush()).unwrap();
    assert_eq!(db.text("retrieval_strategy").as_deref(), Some("late"));
    let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(
        summary.strategies[0].retrieval_strategy,
        "[other strategies]"
    );
    assert_eq!(summary.strategies[0].confidence_threshold, None);
}

#[test]
fn failures_of_strategies_beyond_the_cap_are_counted_together() {
    let db = TestDb::new();
    let logger = db.spawn();
    // Single failures are counted from their rows, many at once beside their rows.
    for flushes in [true, false] {
        for nth in 0..100 {
            let strategy = format!("strategy {nth}");
            logger.log(RetrievalFailureRecord::new(
                RetrievalFailureType::NoHit,
                strategy,
                "q",
            ));
            if flushes {
                block_on(logger.flush()).unwrap();
            }
        }
        block_on(logger.flush()).unwrap();
    }
    let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(
        (summary.strategies.len(), summary.total.attempts),
        (65, 200)
    );
    assert_eq!(
        (
            summary.strategies[0].retrieval_strategy.as_str(),
            summary.strategies[0].rates.unobserved
        ),
        ("[other strategies]", 72)
    );
    assert_eq!(
        db.integer(
            "SELECT count(*) FROM memory_retrieval_failures WHERE retrieval_strategy = \
            '[other strategies]'"
        ),
        0
    );
}

#[test]
fn infinite_score_is_judged_but_not_stored() {
    let db = TestDb::new();
    let logger = db.spawn();
    let near = logger
        .strategy("vector")
        .score_direction(ScoreDirection::LowerIsBetter)
        .confidence_threshold(0.5);
    block_on(near.observe("far", ready(found(&[f32::INFINITY])))).unwrap();
    let similar = logger.strategy("semantic").confidence_threshold(0.5);
    block_on(similar.observe("unlike", ready(found(&[f32::NEG_INFINITY])))).unwrap();
    assert_eq!(by_type(&rates(&logger)), [0, 2, 0, 0]);
    assert_eq!(db.texts("top_score"), [None, None]);
}

#[test]
fn retrieval_that_panics_is_an_error() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic");
    let panicking = async {
        if db.path().exists() {
            panic!("injected")
        } else {
            found(&[])
        }
    };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        block_on(monitor.observe("why?", panicking))
    }));
    assert!(caught.is_err());
    assert_eq!(by_type(&rates(&logger)), [0, 0, 0, 1]);
    assert_eq!(
        db.text("query_text || ': ' || error_context").as_deref(),
        Some("why?: the retrieval panicked")
    );
}

#[test]
fn result_of_a_foreign_type_can_be_observed() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("tantivy").confidence_threshold(0.5);
    // Some libraries return the score first.
    let hits: Result<Vec<(f32, u64)>, io::Error> = Ok(vec![(0.25, 17)]);
    let hits = monitor.observe_by("q", ready(hits), |hits: &Vec<(f32, u64)>| Found {
        result_count: hits.len(),
        top_score: hits.first().map(|(score, _)| *score),
    });
    assert_eq!(block_on(hits).unwrap(), [(0.25, 17)]);
    assert_eq!(by_type(&rates(&logger)), [0, 1, 0, 0]);
}

#[test]
fn shutdown_reports_the_attempts_that_it_could_not_store() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().shutdown_timeout(Duration::from_millis(200)));
    let lock = common::Lock::new(&db);
    let monitor = logger.strategy("semantic");
    for _ in 0..100 {
        monitor.record(Outcome::success(Duration::ZERO));
    }
    let Err(LoggerError::Unsaved { report, .. }) = block_on(logger.shutdown()) else {
        panic!("100 attempts are unsaved")
    };
    assert_eq!((report.unsaved, report.attempts_unsaved), (0, 100));
    drop(lock);
    assert_eq!(db.attempts(), 0);
}

#[test]
fn two_processes_do_not_erase_each_others_settings() {
    let db = TestDb::new();
    let (one, other) = (db.spawn(), db.spawn());
    one.strategy("s")
        .confidence_threshold(0.5)
        .record(Outcome::success(Duration::ZERO));
    block_on(one.flush()).unwrap();
    other
        .strategy("s")
        .timeout(Duration::from_secs(2))
        .record(Outcome::success(Duration::ZERO));
    block_on(other.flush()).unwrap();
    let summary = block_on(one.reader().summary(TimeRange::last(HOUR))).unwrap();
    let strategy = &summary.strategies[0];
    assert_eq!(
        (
            strategy.confidence_threshold,
            strategy.timeout_ms,
            strategy.rates.attempts
        ),
        (Some(0.5), Some(2000), 2)
    );
}

#[test]
fn attempts_are_committed_without_failure_or_flush() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().flush_interval(Duration::from_millis(5)));
    logger
        .strategy("semantic")
        .record(Outcome::success(Duration::from_millis(1)));
    eventually("the attempt to be written", || {
        logger.stats().attempts_persisted == 1
    });
}

#[test]
fn attempts_are_committed_by_a_shutdown_and_ignored_after_it() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic");
    monitor.record(Outcome::success(Duration::from_millis(1)));
    let stats = block_on(logger.shutdown()).unwrap().stats;
    assert_eq!((stats.attempts, stats.attempts_persisted), (1, 1));
    monitor.record(Outcome::success(Duration::from_millis(1)));
    monitor.record(Outcome::failure(
        RetrievalFailureType::Error,
        "late",
        Duration::ZERO,
    ));
    let stats = logger.stats();
    assert_eq!(
        (stats.attempts, stats.received, stats.dropped.closed),
        (1, 1, 1)
    );
    let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(summary.total.attempts, 1, "the reader still works");
}

/// Counts successes on four threads until `until` returns.
fn count_on_four_threads<T>(logger: &LoggerHandle, until: impl FnOnce() -> T) -> T {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for nth in 0..4 {
            let (monitor, stop) = (logger.strategy(["one", "two"][nth % 2]), &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    monitor.record(Outcome::success(Duration::from_micros(10)).top_score(0.9));
                }
            });
        }
        eventually("busy monitors", || logger.stats().attempts > 1000);
        let result = until();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    })
}

#[test]
fn shutdown_while_monitors_are_busy_loses_no_attempt() {
    for _ in 0..20 {
        let db = TestDb::new();
        let logger = db.spawn();
        let report = count_on_four_threads(&logger, || block_on(logger.shutdown())).unwrap();
        assert_eq!(
            (report.attempts_unsaved, report.stats.attempts),
            (0, report.stats.attempts_persisted)
        );
        assert_eq!(
            logger.stats().attempts,
            report.stats.attempts,
            "later attempts are not counted"
        );
        assert_eq!(db.attempts().unsigned_abs(), report.stats.attempts);
    }
}

#[test]
fn counts_of_attempts_never_decrease_during_a_flush() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().flush_interval(Duration::from_millis(1)));
    count_on_four_threads(&logger, || {
        let mut before = logger.stats();
        let mut snapshots = 0;
        while snapshots < 50_000 || before.attempts_persisted < 10_000 {
            let now = logger.stats();
            assert!(
                now.attempts >= before.attempts,
                "{} after {}",
                now.attempts,
                before.attempts
            );
            assert!(now.attempts_persisted >= before.attempts_persisted);
            assert!(now.attempts >= now.attempts_persisted, "{now:?}");
            before = now;
            snapshots += 1;
        }
    });
}

#[test]
fn attempts_of_a_week_reported_late_keep_their_minutes() {
    const MINUTES: u64 = 7 * 24 * 60 - 90;
    let db = TestDb::new();
    let logger = db.spawn();
    let now = std::time::SystemTime::now();
    for name in ["one", "two"] {
        let monitor = logger.strategy(name);
        for minute in 0..MINUTES {
            let at = now - Duration::from_secs(60 * (minute + 30));
            monitor.record(
                Outcome::success(Duration::from_millis(5))
                    .top_score(0.5)
                    .at(at),
            );
        }
    }
    block_on(logger.flush()).unwrap();
    let cells = "SELECT count(*) FROM (SELECT started_at, strategy FROM memory_retrieval_attempts_recent UNION \
                 SELECT started_at, strategy FROM memory_retrieval_attempts WHERE resolution = 60)";
    assert_eq!(db.integer(cells).unsigned_abs(), 2 * MINUTES);
    let week = block_on(logger.reader().summary(TimeRange::last(8 * 24 * HOUR)))
        .unwrap()
        .total;
    assert_eq!(
        (
            week.attempts,
            week.latency_ms.map(|latency| latency.p50.round())
        ),
        (2 * MINUTES, Some(5.0))
    );
}

#[test]
fn disabled_logger_observes_nothing_and_changes_nothing() {
    let logger =
        failure_logger::FailureLogger::spawn(LoggerConfig::default().enabled(false)).unwrap();
    let monitor = logger.strategy("semantic").confidence_threshold(0.5);
    assert_eq!(
        block_on(monitor.observe("q", ready(found(&[0.1]))))
            .unwrap()
            .len(),
        1
    );
    assert_eq!((logger.stats().attempts, logger.stats().received), (0, 0));
}

#[test]
fn result_of_any_type_with_scores_can_be_judged() {
    struct Hit {
        score: f64,
    }
    impl Scored for Hit {
        fn score(&self) -> f32 {
            self.score.score()
        }
    }
    let best = |found: &dyn Retrieved| {
        (
            found.result_count(),
            found.top_score(ScoreDirection::HigherIsBetter),
        )
    };
    assert_eq!(
        best(&vec![Hit { score: 0.25 }, Hit { score: 0.75 }]),
        (2, Some(0.75))
    );
    assert_eq!(best(&[("id", 0.5_f64)]), (1, Some(0.5)));
    assert_eq!(best(&Some(("id", 0.5_f32))), (1, Some(0.5)));
    assert_eq!(best(&None::<f32>), (0, None));
    assert_eq!(best(&vec![&("id", 0.25_f32), &("id", 0.5)]), (2, Some(0.5)));
    assert_eq!(
        best(&std::sync::Arc::new(vec![0.25_f32, 0.5])),
        (2, Some(0.5))
    );
    assert_eq!(best(&Box::new([0.25_f32, 0.5])), (2, Some(0.5)));
    assert_eq!(
        best(&std::sync::Arc::new(vec![f32::NAN])),
        (1, None),
        "NaN is no score"
    );
    assert_eq!(best(&&[0.1_f32, f32::NAN, 0.3][..]), (3, Some(0.3)));
}

#[test]
fn endless_error_is_cut_while_it_is_formatted() {
    struct Endless;
    impl std::fmt::Display for Endless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            loop {
                f.write_str("é")?;
            }
        }
    }
    let db = TestDb::new();
    let logger = db.spawn();
    let result: Result<Vec<f32>, Endless> = Err(Endless);
    let monitor = logger.strategy("semantic");
    monitor.record(monitor.judge("q", &result, Duration::ZERO));
    block_on(logger.flush()).unwrap();
    assert_eq!(db.text("length(error_context)").as_deref(), Some("256"));
}

/// SQL that makes the store reject attempts, and SQL that ends that.
const REFUSALS: [[&str; 2]; 4] = [
    [
        "CREATE TRIGGER refuses BEFORE INSERT ON memory_retrieval_attempts_recent BEGIN SELECT \
         RAISE(ABORT, 'no'); END",
        "DROP TRIGGER refuses",
    ],
    [
        "CREATE TRIGGER refuses BEFORE INSERT ON memory_retrieval_attempts_recent BEGIN SELECT \
         RAISE(ROLLBACK, 'no'); END",
        "DROP TRIGGER refuses",
    ],
    [
        "ALTER TABLE memory_retrieval_attempts_recent RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO memory_retrieval_attempts_recent",
    ],
    [
        "ALTER TABLE memory_retrieval_attempts_recent ADD COLUMN full INTEGER CHECK (full = 1) \
         DEFAULT 0",
        "ALTER TABLE memory_retrieval_attempts_recent DROP COLUMN full",
    ],
];

#[test]
fn store_that_rejects_attempts_drops_no_record_under_load() {
    const RECORDS: i64 = 1000;
    const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
    for [refuse, allow] in REFUSALS {
        let db = TestDb::new();
        // A pause that held records back would hold them back for a day.
        let logger = common::spawn(
            db.config()
                .buffer_capacity(64)
                .batch_size(16)
                .backoff(NEVER, NEVER),
        );
        db.execute(refuse);
        let monitor = logger.strategy("semantic");
        for turn in 0..RECORDS {
            eventually("room", || logger.stats().buffered < 64);
            assert_eq!(
                logger.log(common::no_hit(turn)),
                failure_logger::LogOutcome::Queued
            );
            monitor.record(Outcome::success(Duration::ZERO));
        }
        let refusal = block_on(logger.flush()).unwrap_err();
        assert!(
            refusal.to_string().contains("attempts cannot be counted: "),
            "{refusal}"
        );
        let stats = logger.stats();
        assert_eq!(
            (
                db.rows(),
                stats.persisted,
                stats.dropped.total(),
                stats.restarts
            ),
            (RECORDS, 1000, 0, 0)
        );
        assert_eq!((stats.attempts, stats.attempts_persisted), (1000, 0));
        let unhealthy = logger.health().unwrap_err();
        assert!(
            matches!(
                unhealthy,
                failure_logger::error::Unhealthy::AttemptsRefused { .. }
            ),
            "{unhealthy}"
        );
        db.execute(allow);
        let report = block_on(logger.shutdown()).unwrap();
        assert_eq!(
            (report.stats.attempts_persisted, db.attempts()),
            (1000, 1000 + RECORDS)
        );
    }
}

#[test]
fn shutdown_reports_attempts_that_the_store_rejects() {
    let db = TestDb::new();
    let day = Duration::from_secs(24 * 60 * 60);
    let logger = common::spawn(
        db.config()
            .backoff(day, day)
            .shutdown_timeout(Duration::from_millis(200)),
    );
    db.execute(REFUSALS[0][0]);
    logger
        .strategy("semantic")
        .record(Outcome::success(Duration::ZERO));
    logger.log(common::no_hit(1));
    let Err(LoggerError::Unsaved { report, cause }) = block_on(logger.shutdown()) else {
        panic!("one attempt is unsaved")
    };
    assert_eq!(
        (
            report.unsaved,
            report.attempts_unsaved,
            report.stats.persisted
        ),
        (0, 1, 1)
    );
    assert!(cause.contains("attempts cannot be counted: no"), "{cause}");
    assert_eq!(db.rows(), 1);
}

#[test]
fn attempts_are_counted_once_though_the_store_rejects_one() {
    let db = TestDb::new();
    let logger = common::spawn(
        db.config()
            .backoff(Duration::from_millis(1), Duration::from_millis(5)),
    );
    db.execute(
        "CREATE TRIGGER refuses BEFORE INSERT ON memory_retrieval_attempts_recent WHEN NEW.strategy = '7' \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    for nth in 0..41 {
        logger
            .strategy(&(nth % 20).to_string())
            .record(Outcome::success(Duration::ZERO));
    }
    logger.log(common::no_hit(1));
    block_on(logger.flush()).unwrap_err();
    assert_eq!((db.rows(), db.attempts()), (1, 1), "the record alone");
    db.execute("DROP TRIGGER refuses");
    eventually("a flush", || block_on(logger.flush()).is_ok());
    assert_eq!((db.attempts(), logger.stats().attempts_persisted), (42, 41));
    assert_eq!(logger.health(), Ok(()));
}

#[test]
fn latency_of_zero_is_unknown_in_small_and_large_batches() {
    use failure_logger::RetrievalFailureRecord;
    for records in [2, 100] {
        let db = TestDb::new();
        let logger = common::spawn(db.config().batch_size(1000).flush_interval(24 * HOUR));
        for latency_ms in [0, 100] {
            for _ in 0..records {
                let record = RetrievalFailureRecord {
                    latency_ms,
                    ..common::no_hit(0)
                };
                logger.log(record);
            }
        }
        let latency = rates(&logger).latency_ms.unwrap();
        assert!((latency.p50 - 100.0).abs() < 1.0, "{records}: {latency:?}");
    }
}

#[test]
fn settings_that_are_omitted_survive_a_restart() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger
        .strategy("vector")
        .score_direction(ScoreDirection::LowerIsBetter)
        .confidence_threshold(0.5);
    monitor
        .timeout(Duration::from_secs(7))
        .record(Outcome::success(Duration::ZERO).top_score(0.4));
    block_on(logger.shutdown()).unwrap();

    // The test changes one setting at a time.
    let known = |logger: &LoggerHandle| {
        block_on(logger.flush()).unwrap();
        let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
        let strategy = &summary.strategies[0];
        (
            strategy.score_direction,
            strategy.confidence_threshold,
            strategy.timeout_ms,
        )
    };
    let logger = db.spawn();
    logger
        .strategy("vector")
        .confidence_threshold(0.25)
        .record(Outcome::success(Duration::ZERO).top_score(0.4));
    assert_eq!(
        known(&logger),
        (ScoreDirection::LowerIsBetter, Some(0.25), Some(7000))
    );
    logger
        .strategy("vector")
        .record(Outcome::success(Duration::ZERO));
    assert_eq!(
        known(&logger),
        (ScoreDirection::LowerIsBetter, Some(0.25), Some(7000))
    );
    let calibration =
        block_on(logger.reader().calibration("vector", TimeRange::last(HOUR))).unwrap();
    assert_eq!(calibration.score_direction, ScoreDirection::LowerIsBetter);
    block_on(logger.shutdown()).unwrap();

    // A setting counts if it is given, even if it is the default.
    let logger = db.spawn();
    logger
        .strategy("vector")
        .score_direction(ScoreDirection::HigherIsBetter)
        .record(Outcome::success(Duration::ZERO));
    assert_eq!(
        known(&logger),
        (ScoreDirection::HigherIsBetter, Some(0.25), Some(7000))
    );
}

#[test]
fn place_of_a_strategy_is_used_by_counted_attempts_alone() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().max_strategies(2));
    let id = uuid::Uuid::now_v7();
    let record =
        |strategy: &str| RetrievalFailureRecord::new(RetrievalFailureType::NoHit, strategy, "q");
    // The rows have one id under several names, so the store has them already.
    for strategy in ["one", "copy", "another copy"] {
        logger.log_once(record(strategy), std::time::SystemTime::now(), id);
        block_on(logger.flush()).unwrap();
    }
    // A strategy that really has this name does not count as the rest.
    for strategy in ["other", "three", "four"] {
        logger.log(record(strategy));
    }
    block_on(logger.flush()).unwrap();
    let summary = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    let mut counts: Vec<_> = summary
        .strategies
        .iter()
        .map(|strategy| {
            (
                strategy.retrieval_strategy.as_str(),
                strategy.rates.failures,
            )
        })
        .collect();
    counts.sort_unstable();
    assert_eq!(
        counts,
        [("[other strategies]", 2), ("one", 1), ("other", 1)]
    );
}

#[test]
fn counts_outlive_failures_and_tell_the_first_kept_row() {
    let db = TestDb::new();
    let logger = db.spawn();
    let summary = || block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(summary().rows_since, None);
    let now = std::time::SystemTime::now();
    // This many failures at once are counted beside their rows.
    for minutes in [30, 20, 10] {
        (0..20).for_each(|_| {
            _ = logger.log_at(common::no_hit(0), now - Duration::from_secs(60 * minutes))
        });
    }
    block_on(logger.flush()).unwrap();
    let minutes_ago =
        |at: std::time::SystemTime| now.duration_since(at).unwrap().as_secs().div_ceil(60);
    assert_eq!(
        (
            summary().total.failures,
            summary().rows_since.map(minutes_ago)
        ),
        (60, Some(30))
    );
    db.execute(
        "DELETE FROM memory_retrieval_failures WHERE created_at < unixepoch() * 1000 - 900000",
    );
    assert_eq!(
        (
            summary().total.failures,
            summary().rows_since.map(minutes_ago)
        ),
        (60, Some(10))
    );
}

/// Attempts of one strategy by two programs, in two versions.
#[test]
fn rates_are_those_of_the_selected_sources() {
    let db = TestDb::new();
    let logger = db.spawn();
    let index = |version| Labels::new([("index", version)]).unwrap();
    let semantic = || logger.strategy("semantic").confidence_threshold(0.5);
    let monitors = [
        semantic(),
        semantic().source("api").labels(index("7")),
        semantic().labels(index("8")).source("api"),
        semantic().source("job").labels(index("8")),
    ];
    let (hit, missed) = (Duration::from_millis(2), Duration::from_millis(9));
    for (monitor, (successes, failures)) in monitors.iter().zip([(1, 0), (3, 1), (2, 2), (0, 4)]) {
        for _ in 0..successes {
            monitor.record(Outcome::success(hit).top_score(0.9));
        }
        for _ in 0..failures {
            monitor.record(Outcome::failure(RetrievalFailureType::NoHit, "q", missed));
        }
    }
    // The strategy has a rate; of what this source sends, nothing but failures is known.
    let logged = RetrievalFailureRecord {
        source: Some("old".into()),
        ..RetrievalFailureRecord::new(RetrievalFailureType::Error, "semantic", "q")
    };
    logger.log(logged);
    block_on(logger.flush()).unwrap();
    let filter = |source: &[&str], labels: Labels| AttemptFilter {
        range: TimeRange::last(HOUR),
        sources: SourceFilter {
            source: source.iter().copied().map(Into::into).collect(),
            labels,
        },
    };
    let none = Labels::default;
    for (filter, (attempts, failures)) in [
        (filter(&[], none()), (14, 8)),
        (filter(&["api"], none()), (8, 3)),
        (filter(&["api"], index("7")), (4, 1)),
        (filter(&[], index("8")), (8, 6)),
        (filter(&["", "job"], none()), (5, 4)),
        (filter(&["old"], none()), (1, 1)),
        (filter(&["unknown"], none()), (0, 0)),
    ] {
        let name = format!("{:?}", filter.sources);
        let reader = logger.reader();
        let Summary { total, .. } = block_on(reader.summary(filter.clone())).unwrap();
        assert_eq!(
            (total.attempts, total.failures),
            (attempts, failures),
            "{name}"
        );
        let observed = attempts > 1;
        let rate = observed.then(|| failures as f64 / attempts as f64);
        assert_eq!(total.failure_rate, rate, "{name}");
        let series = block_on(reader.timeseries(filter.clone(), Vec::new())).unwrap();
        let counted = series
            .points
            .iter()
            .map(|point| (point.attempts, point.failures));
        let counted = counted.fold((0, 0), |sum, (a, f)| (sum.0 + a, sum.1 + f));
        assert_eq!(counted, (attempts, failures), "{name}");
    }
    let api = filter(&["api"], none());
    let calibration = block_on(logger.reader().calibration("semantic", api)).unwrap();
    assert_eq!((calibration.attempts, calibration.certain_failures), (8, 3));
}
