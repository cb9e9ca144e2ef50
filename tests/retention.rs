//! One retention for all users of a database, and one rule for the dates of records.

mod common;

use std::time::{Duration, SystemTime};

use common::{TestDb, age, block_on, eventually, no_hit, old_rows, purge, spawn};
use failure_logger::{DropReason, LogOutcome, Outcome, RetrievalFailureType, TimeRange};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn logger_without_retention_adopts_that_of_the_database() {
    let db = TestDb::new();
    let keeping = spawn(db.config().retention_days(0).cleanup_every(1));
    purge(&keeping);
    age(&db, 10, 300);
    // The second logger runs beside the configured one, and after that one has ended.
    let beside = spawn(db.config().cleanup_every(1));
    purge(&beside);
    block_on(beside.shutdown()).unwrap();
    block_on(keeping.shutdown()).unwrap();
    let after = spawn(db.config().cleanup_every(1));
    purge(&after);
    assert_eq!(old_rows(&db), 10);
    assert_eq!(
        after.log_at(no_hit(7), SystemTime::now() - 300 * DAY),
        LogOutcome::Queued,
        "the logger accepts what it keeps"
    );
}

#[test]
fn retention_set_by_another_logger_applies_to_all() {
    let db = TestDb::new();
    let first = spawn(db.config().retention_days(0).cleanup_every(1));
    purge(&first);
    age(&db, 10, 40);
    let second = spawn(db.config().retention_days(30));
    eventually("the purge by the first logger or the second", || {
        purge(&first);
        old_rows(&db) == 0
    });
    assert_eq!(first.stats().purged + second.stats().purged, 10);
    eventually("the first logger to drop old records", || {
        purge(&first);
        first.log_at(no_hit(7), SystemTime::now() - 40 * DAY)
            == LogOutcome::Dropped(DropReason::TooOld)
    });
}

#[test]
fn new_database_adopts_the_retention_of_the_running_logger() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .retention_days(30)
            .attempts_retention_days(50)
            .cleanup_every(1),
    );
    let stored = "SELECT failures_days * 1000 + attempts_days FROM memory_retrieval_retention";
    assert_eq!(db.integer(stored), 30_050);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", db.url())).unwrap();
    }
    eventually("a new database", || {
        logger.log(no_hit(1));
        block_on(logger.flush()).is_ok()
    });
    purge(&logger);
    assert_eq!(db.integer(stored), 30_050);
}

#[test]
fn record_older_than_the_retention_is_dropped_and_counted() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(30));
    let dropped = LogOutcome::Dropped(DropReason::TooOld);
    let day_31 = SystemTime::now() - 31 * DAY;
    assert_eq!(logger.log_at(no_hit(1), day_31), dropped);
    assert_eq!(logger.log_once(no_hit(2), day_31, Uuid::now_v7()), dropped);
    // The sender took seconds for milliseconds.
    assert_eq!(
        logger.log_at(
            no_hit(3),
            SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000)
        ),
        dropped
    );
    assert_eq!(
        logger.log_at(no_hit(4), SystemTime::now() - 29 * DAY),
        LogOutcome::Queued
    );
    let report = block_on(logger.shutdown()).unwrap();
    assert!(report.stats.is_balanced());
    assert_eq!(
        (
            report.stats.received,
            report.stats.persisted,
            report.stats.dropped.too_old
        ),
        (4, 1, 3)
    );
    assert_eq!(db.turns(), [4]);
    assert_eq!(db.attempts(), 1, "the other records count in no rate");
    assert_eq!(
        db.integer("SELECT sum(records) FROM memory_retrieval_drops WHERE reason = 'too_old'"),
        3
    );
    // The accepted record survives the next start.
    purge(&spawn(db.config()));
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = 4"),
        1
    );
}

#[test]
fn attempt_is_counted_as_long_as_attempts_are_kept() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(30).attempts_retention_days(100));
    let monitor = logger.strategy("s");
    let failed = |days: u32| {
        Outcome::failure(RetrievalFailureType::NoHit, "q", DAY).at(SystemTime::now() - days * DAY)
    };
    monitor.record(failed(29));
    monitor.record(failed(99));
    monitor.record(Outcome::success(DAY).at(SystemTime::now() - 99 * DAY));
    monitor.record(failed(101));
    monitor.record(Outcome::success(DAY).at(SystemTime::now() - 101 * DAY));
    block_on(logger.flush()).unwrap();
    let stats = logger.stats();
    assert!(stats.is_balanced());
    assert_eq!(
        (stats.attempts, stats.persisted, stats.dropped.too_old),
        (3, 1, 2)
    );
    let total = block_on(logger.reader().summary(TimeRange::all()))
        .unwrap()
        .total;
    assert_eq!(
        (total.attempts, total.failures, total.failure_rate),
        (3, 2, Some(2.0 / 3.0))
    );
}

#[test]
fn record_dated_in_the_future_gets_the_present_moment() {
    let db = TestDb::new();
    let logger = db.spawn();
    let before = SystemTime::now();
    let millis = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis() as i64
    };
    let soon = before + Duration::from_secs(4 * 60);
    logger.log_at(no_hit(0), soon);
    logger.log_at(no_hit(1), before + Duration::from_secs(6 * 60));
    logger.log_once(
        no_hit(2),
        SystemTime::UNIX_EPOCH + 4_000_000 * DAY,
        Uuid::now_v7(),
    );
    logger.strategy("s").record(
        Outcome::failure(RetrievalFailureType::NoHit, "q", Duration::ZERO)
            .at(SystemTime::now() + 365 * DAY),
    );
    logger
        .strategy("s")
        .record(Outcome::success(Duration::ZERO).at(SystemTime::now() + 365 * DAY));
    block_on(logger.flush()).unwrap();
    let after = millis(SystemTime::now());
    let dates: Vec<i64> = db
        .texts("created_at")
        .into_iter()
        .map(|at| at.unwrap().parse().unwrap())
        .collect();
    assert_eq!(dates[0], millis(soon), "clocks differ by minutes");
    assert!(
        dates[1..]
            .iter()
            .all(|at| (millis(before)..=after).contains(at)),
        "{dates:?}"
    );
    let stats = logger.stats();
    assert_eq!(
        (stats.redated, stats.persisted, stats.dropped.total()),
        (4, 4, 0)
    );
    let latest = db.integer("SELECT max(started_at) FROM memory_retrieval_attempts_recent");
    assert!(latest <= millis(soon), "{latest}");
}

#[test]
fn migration_redates_rows_of_the_future_by_their_own_ids() {
    let db = TestDb::new();
    block_on(db.spawn().shutdown()).unwrap();
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-29-000002-0000_count_attempts_by_source/down.sql"
    ));
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-28-000001-0000_add_sources/down.sql"
    ));
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-27-000001-0000_rename_query_statuses/down.sql"
    ));
    db.execute(include_str!(
        "../migrations/sqlite/2026-11-26-000001-0000_number_rows_without_autoincrement/down.sql"
    ));
    // The rows are: the clock, a row of the present, one that was written a minute ago with the
    // year 9999, one whose sender invented date and id, and one whose id has no time.
    let id = |ms: &str| format!("unhex(printf('%012X', {ms}) || '7000' || hex(randomblob(8)))");
    let (now, end) = ("unixepoch() * 1000", "253402200000000");
    let row = |turn: u32, id: &str, at: &str| {
        format!(
            "INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
                 query_len, result_count, latency_ms, created_at)
             VALUES ({id}, {turn}, 'no_hit', 's', 'q', 1, 0, 0, {at});"
        )
    };
    db.execute(
        &[
            "DELETE FROM memory_retrieval_migrations WHERE version >= '202611260000010000';"
                .to_owned(),
            format!(
                "INSERT INTO memory_retrieval_clock VALUES (1, {now} - 5000) ON CONFLICT DO \
                UPDATE SET believed_at = excluded.believed_at;"
            ),
            row(0, &id(now), &format!("{now} + 200000")),
            row(1, &id(&format!("({now} - 60000)")), end),
            row(2, &id(end), end),
            row(3, "randomblob(6) || x'40' || randomblob(9)", end),
        ]
        .concat(),
    );
    let logger = db.spawn();
    let ahead = |turn: u32| {
        db.integer(&format!(
            "SELECT created_at - unixepoch() * 1000 FROM memory_retrieval_failures WHERE \
             turn_index = {turn}"
        ))
    };
    assert!((190_000..=200_000).contains(&ahead(0)), "{}", ahead(0));
    assert!((-70_000..=-60_000).contains(&ahead(1)), "{}", ahead(1));
    assert!(
        ahead(2) > 1_000_000_000 && ahead(3) > 1_000_000_000,
        "the times of these rows are unknown"
    );
    assert_eq!(
        logger.log_at(no_hit(4), SystemTime::now() - 91 * DAY),
        LogOutcome::Dropped(DropReason::TooOld)
    );
}

#[test]
fn log_without_a_trusted_time_deletes_nothing_for_a_day() {
    let db = TestDb::new();
    let logger = db.spawn();
    purge(&logger);
    block_on(logger.shutdown()).unwrap();
    age(&db, 5, 100);
    // The migration leaves a log without a known time in this state.
    db.execute(
        "UPDATE memory_retrieval_retention SET trusted_at = 0, trusted_boot = NULL, \
        trusted_since_boot = NULL",
    );
    let logger = spawn(db.config().cleanup_every(1));
    purge(&logger);
    assert_eq!(old_rows(&db), 5);
    block_on(logger.shutdown()).unwrap();
    // The first reading was a day ago.
    db.execute(
        "UPDATE memory_retrieval_retention SET ahead_at = ahead_at - 86400001, \
        ahead_since_boot = ahead_since_boot - 86400001",
    );
    let logger = spawn(db.config().cleanup_every(1));
    eventually("the purge", || {
        purge(&logger);
        old_rows(&db) == 0
    });
}

#[test]
fn idle_logger_writes_nothing_for_its_retention() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(30).cleanup_every(1));
    purge(&logger);
    block_on(logger.shutdown()).unwrap();
    // Another logger starts in the same hour with the same setting.
    db.execute(
        "CREATE TRIGGER t BEFORE INSERT ON memory_retrieval_retention BEGIN SELECT RAISE(ABORT, \
         'written'); END",
    );
    let logger = spawn(db.config().retention_days(30).cleanup_every(1));
    age(&db, 1, 31);
    eventually("a purge", || {
        purge(&logger);
        old_rows(&db) == 0
    });
}

#[test]
fn drops_with_a_reason_of_a_newer_version_are_purged() {
    let db = TestDb::new();
    let logger = spawn(db.config().cleanup_every(1));
    purge(&logger);
    db.execute(
        "INSERT INTO memory_retrieval_drops SELECT unixepoch() * 1000 - days * 86400000, 'of_a_newer_version', 1 \
         FROM (SELECT 300 AS days UNION SELECT 402)",
    );
    eventually("the purge", || {
        purge(&logger);
        db.integer("SELECT count(*) FROM memory_retrieval_drops") == 1
    });
}

#[cfg(feature = "http")]
mod http {
    use awc::http::StatusCode;
    use common::service::{JSON, LINES, Service};
    use failure_logger::http::HttpOptions;
    use serde_json::{Value, json};

    use super::*;

    fn service() -> Service {
        let db = TestDb::new();
        let logger = spawn(db.config().retention_days(30).attempts_retention_days(1000));
        Service::of(db, logger, HttpOptions::default())
    }

    fn failure(created_at: &str) -> Value {
        json!({"failure_type": "no_hit", "retrieval_strategy": "s", "query_text": "q", "created_at": created_at})
    }

    fn attempt(outcome: &str, created_at: &str) -> Value {
        json!({"strategy": "s", "outcome": outcome, "query_text": "q", "created_at": created_at})
    }

    const OLD: &str = "2001-09-09T01:46:40Z";

    #[actix_web::test]
    async fn record_that_is_too_old_is_rejected_with_its_reason() {
        let service = service();
        let now = TimeRange::last(DAY).to();
        let now = serde_json::to_value(TimeRange::between(now - DAY, now).unwrap()).unwrap()["to"]
            .clone();
        let now = now.as_str().unwrap();
        for (path, young, old, setting) in [
            (
                "/v1/failures",
                failure(now),
                failure(OLD),
                "retention_days = 30",
            ),
            (
                "/v1/attempts",
                attempt("success", now),
                attempt("success", OLD),
                "attempts_retention_days = 1000",
            ),
            (
                "/v1/attempts",
                attempt("no_hit", now),
                attempt("no_hit", OLD),
                "attempts_retention_days = 1000",
            ),
        ] {
            let reason = format!("created_at = 2001-09-09T01:46:40.000Z: older than {setting}");
            let (status, said) = service.post(path, JSON, old.to_string()).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{said}");
            assert!(
                said["errors"][0]["detail"]
                    .as_str()
                    .unwrap()
                    .starts_with(&reason),
                "{said}"
            );
            let lines = format!("{young}\n{old}\n{young}\n");
            let list = json!([young, old, young]).to_string();
            for (content_type, body) in [(LINES, lines), (JSON, list)] {
                let (status, said) = service.post(path, content_type, body).await;
                assert_eq!(status, StatusCode::ACCEPTED, "{said}");
                assert_eq!(
                    (&said["accepted"], &said["rejected"]),
                    (&json!(2), &json!(1)),
                    "{said}"
                );
                assert_eq!(said["errors"][0]["line"], 2);
                assert!(
                    said["errors"][0]["detail"]
                        .as_str()
                        .unwrap()
                        .starts_with(&reason),
                    "{said}"
                );
            }
        }
        service.flush().await;
        let stats = service.logger.stats();
        assert!(stats.is_balanced());
        // Three failures and three failed attempts were sent.
        assert_eq!(
            (stats.dropped.too_old, service.db.rows(), stats.attempts),
            (6, 8, 8)
        );
        let (_, metrics) = service.read("/metrics").await;
        let metrics = metrics.as_str().unwrap();
        assert!(
            metrics.contains("failure_logger_records_dropped_total{reason=\"too_old\"} 6"),
            "{metrics}"
        );
    }

    #[actix_web::test]
    async fn failed_attempt_between_both_retentions_is_counted_only() {
        let service = service();
        let range = TimeRange::between(SystemTime::now() - 100 * DAY, SystemTime::now()).unwrap();
        let at = serde_json::to_value(range).unwrap()["from"]
            .as_str()
            .unwrap()
            .to_owned();
        let (status, said) = service
            .post("/v1/attempts", JSON, attempt("no_hit", &at).to_string())
            .await;
        assert_eq!(
            (status, &said["accepted"]),
            (StatusCode::ACCEPTED, &json!(1)),
            "{said}"
        );
        service.flush().await;
        assert_eq!((service.db.rows(), service.db.attempts()), (0, 1));
        assert_eq!(service.logger.stats().dropped.too_old, 1);
    }

    #[actix_web::test]
    async fn record_dated_in_the_future_is_counted_as_redated() {
        let service = service();
        service
            .post(
                "/v1/failures",
                JSON,
                failure("9999-12-01T00:00:00Z").to_string(),
            )
            .await;
        service.flush().await;
        let (_, stats) = service.read("/v1/stats").await;
        assert_eq!(
            (&stats["redated"], &stats["persisted"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(
            (&stats["retention_days"], &stats["attempts_retention_days"]),
            (&json!(30), &json!(1000))
        );
        let (_, metrics) = service.read("/metrics").await;
        assert!(
            metrics
                .as_str()
                .unwrap()
                .contains("failure_logger_records_redated_total 1")
        );
        let (_, page) = service.read("/v1/failures?since=1h").await;
        assert_eq!(page["data"].as_array().unwrap().len(), 1);
    }
}
