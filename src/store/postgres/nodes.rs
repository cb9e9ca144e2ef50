//! Tests of several nodes on one database, and of faults of the server.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use futures_executor::block_on;
use uuid::Uuid;

use crate::config::{Location, LoggerConfig};
use crate::error::StoreError;
use crate::model::entry::{Entry, Origin};
use crate::model::failure::{FailureFilter, Place};
use crate::model::outcome::RetrievalFailureType;
use crate::model::record::RetrievalFailureRecord;
use crate::model::stats::LogOutcome;
use crate::model::time::Timestamp;
use crate::pipeline::actor::FailureLogger;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::{AttemptBatch, Owner};
use crate::store;
use crate::store::backend::Backend;
use crate::store::gate::CommitGate;
use crate::store::postgres::server::TestDatabase;
use crate::store::reads::{Lane, Reads};
use crate::store::row::Row;
use crate::store::snapshot::Snapshot;
use crate::store::write::{Progress, Store};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn node(database: &TestDatabase) -> Box<dyn Backend> {
    store::backend(&Location::Postgres(database.url.clone().into()), 4, true)
}

/// A failure that is counted from its row.
fn row(query: &str) -> Row {
    let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", query);
    let entry = Entry {
        record,
        logged_at: NOW,
        origin: Origin::LOGGED,
    };
    let mut row = Row::new(Uuid::now_v7(), entry);
    row.count_from_row(false);
    row
}

fn insert(store: &mut dyn Store, rows: &[Row]) {
    let gate = CommitGate::default();
    store.insert(rows, &AttemptBatch::default(), &gate).unwrap();
}

fn read<T: Send + 'static>(
    reads: &Reads,
    read: impl Fn(&mut dyn Snapshot) -> T + Send + 'static,
) -> T {
    let read = reads.run(Lane::Quick, Duration::from_secs(60), move |snapshot, _| {
        Ok(read(snapshot))
    });
    block_on(read).unwrap()
}

/// Attempts by day, and those that are not rolled up.
fn counted(reads: &Reads) -> (u64, u64) {
    read(reads, |snapshot| {
        let (mut rolled_up, mut rest) = (0, 0);
        let days = Span {
            resolution: Resolution::Day,
            from: Timestamp::EPOCH,
            to: Timestamp::MAX,
        };
        let add = |sum: &mut u64, attempts: u64| {
            *sum += attempts;
            ControlFlow::Continue(())
        };
        snapshot
            .buckets(days, false, &mut |bucket| {
                add(&mut rolled_up, bucket.attempts)
            })
            .unwrap();
        snapshot
            .deltas(Timestamp::EPOCH..Timestamp::MAX, &mut |bucket| {
                add(&mut rest, bucket.attempts)
            })
            .unwrap();
        (rolled_up, rest)
    })
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

fn number(database: &TestDatabase, expression: &str) -> i64 {
    let Number { number } = diesel::sql_query(format!("SELECT {expression} AS number"))
        .get_result(&mut database.connect())
        .unwrap();
    number
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn nodes_that_start_at_once_create_the_schema_once() {
    let database = TestDatabase::new();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| node(&database).open().map(drop)))
            .collect();
        for started in started {
            started.join().unwrap().unwrap();
        }
    });
    let versions = "(SELECT count(*) FROM memory_retrieval_migrations)";
    assert_eq!(number(&database, versions), 3);
    assert_eq!(
        number(&database, "(SELECT count(*) FROM memory_retrieval_log)"),
        1
    );
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn schema_is_used_by_a_role_that_may_not_create_tables() {
    let database = TestDatabase::new();
    let location = Location::Postgres(database.url.clone().into());
    let refused = store::backend(&location, 4, false).open().err().unwrap();
    assert!(refused.to_string().contains("migrate = true"), "{refused}");
    drop(node(&database).open().unwrap());
    let revoke = format!("REVOKE CREATE ON SCHEMA {} FROM PUBLIC", database.schema());
    database.connect().batch_execute(&revoke).unwrap();
    drop(store::backend(&location, 4, false).open().unwrap());
    let newer = "INSERT INTO memory_retrieval_migrations VALUES ('999912310000010000')";
    database.connect().batch_execute(newer).unwrap();
    let refused = node(&database).open().err().unwrap();
    assert!(refused.to_string().contains("too new"), "{refused}");
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn script_of_the_schema_creates_what_a_node_needs() {
    let database = TestDatabase::new();
    let script = store::postgres::migrate::script();
    // Twice, as after a script that stopped halfway.
    for _ in 0..2 {
        database.connect().batch_execute(&script).unwrap();
    }
    let location = Location::Postgres(database.url.clone().into());
    let mut store = store::backend(&location, 4, false).open().unwrap();
    insert(&mut *store, &[row("q")]);
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn tail_misses_no_row_of_four_nodes() {
    const BATCHES: usize = 50;
    let database = TestDatabase::new();
    let reads = node(&database).reads();
    drop(node(&database).open().unwrap());
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let tail = scope.spawn(|| {
            let (mut seen, mut after) = (Vec::new(), 0);
            loop {
                let was_over = is_over.load(Ordering::Acquire);
                let (rows, newest) = read(&reads, move |snapshot| {
                    let newest = snapshot.log().unwrap().newest_id;
                    let rows = snapshot
                        .stored_within(
                            after..newest,
                            Place::BEGINNING..Place::END,
                            &FailureFilter::default(),
                            usize::MAX,
                        )
                        .unwrap();
                    let ids = rows.into_iter().map(|row| row.failure.unwrap().event_id);
                    (ids.collect::<Vec<_>>(), newest)
                });
                seen.extend(rows);
                after = newest;
                if was_over {
                    return seen;
                }
            }
        });
        let writers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut store = node(&database).open().unwrap();
                    for nth in 0..BATCHES {
                        // Transactions of different lengths overlap.
                        let rows: Vec<Row> = (0..=nth).map(|_| row("q")).collect();
                        insert(&mut *store, &rows);
                        let _ = store.roll_up(Some(Owner::default())).unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        is_over.store(true, Ordering::Release);
        tail.join().unwrap()
    });
    let rows = 4 * BATCHES * (BATCHES + 1) / 2;
    assert_eq!(seen.len(), rows);
    assert_eq!(seen.into_iter().collect::<HashSet<_>>().len(), rows);
    let (rolled_up, rest) = counted(&reads);
    assert_eq!(rolled_up + rest, rows as u64, "each is counted once");
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn roll_up_of_a_node_that_died_is_taken_over() {
    let database = TestDatabase::new();
    let mut store = node(&database).open().unwrap();
    let reads = node(&database).reads();
    insert(&mut *store, &[row("a"), row("b")]);
    // A node in the middle of its roll-up.
    let mut other = database.connect();
    other
        .batch_execute(
            "BEGIN; SELECT * FROM memory_retrieval_rollup FOR UPDATE; \
             UPDATE memory_retrieval_rollup SET rolled_up_to = 2",
        )
        .unwrap();
    assert_eq!(
        store.roll_up(Some(Owner::default())).unwrap(),
        Progress::Done
    );
    assert_eq!(counted(&reads), (0, 2), "left to the other node");
    // Writers do not wait for it.
    insert(&mut *store, &[row("c")]);
    drop(other);
    while counted(&reads) != (3, 0) {
        let _ = store.roll_up(Some(Owner::default())).unwrap();
    }
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn text_with_nul_is_stored_and_found() {
    let database = TestDatabase::new();
    let mut store = node(&database).open().unwrap();
    insert(&mut *store, &[row("a\0b"), row("ab")]);
    let found = |filter: FailureFilter| {
        read(&node(&database).reads(), move |snapshot| {
            let places = Place::BEGINNING..Place::END;
            let rows = snapshot
                .stored_within(0..i64::MAX, places, &filter, 10)
                .unwrap();
            rows.into_iter()
                .map(|row| row.failure.unwrap().query_text)
                .collect::<Vec<_>>()
        })
    };
    for filter in [
        FailureFilter {
            query_text: vec!["a\0b".into()],
            ..FailureFilter::default()
        },
        FailureFilter {
            text: Some("A\0B".into()),
            ..FailureFilter::default()
        },
    ] {
        assert_eq!(found(filter), ["a\u{2400}b"]);
    }
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn statements_use_the_indexes_that_were_meant() {
    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        #[diesel(column_name = "QUERY PLAN")]
        step: String,
    }
    let database = TestDatabase::new();
    drop(node(&database).open().unwrap());
    let mut conn = database.connect();
    conn.batch_execute(
        "INSERT INTO memory_retrieval_failures (event_id, id, failure_type, retrieval_strategy, \
         query_text, query_len, created_at, uncounted) \
         SELECT gen_random_uuid(), n, 'no_hit', 's', repeat('q', 50), 1, n * 1000, \
         CASE WHEN n % 100 = 0 THEN 1 END FROM generate_series(1, 20000) AS n; \
         INSERT INTO memory_retrieval_attempts (resolution, started_at, strategy, outcome, attempts, unobserved, \
         latency, top_score) SELECT 60, n * 60000, 's', 'success', 1, 0, \
         repeat('x', 200)::bytea, NULL FROM generate_series(1, 20000) AS n; \
         UPDATE memory_retrieval_rollup SET rolled_up_to = 19900",
    )
    .unwrap();
    conn.batch_execute("VACUUM ANALYZE memory_retrieval_failures, memory_retrieval_attempts")
        .unwrap();
    let by_time = "memory_retrieval_failures_created_at";
    let by_id = "memory_retrieval_failures_id";
    for (sql, index) in [
        (
            "SELECT created_at, id FROM memory_retrieval_failures \
             WHERE (created_at, id) >= (5000, 5) AND (created_at, id) < (19000000, 3) \
             ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET 2000",
            by_time,
        ),
        (
            "SELECT * FROM memory_retrieval_failures \
             WHERE (created_at, id) >= (18000000, 5) AND (created_at, id) < (19000000, 3) \
             AND id > -1 AND id <= 20000 ORDER BY created_at DESC, id DESC LIMIT 100",
            by_time,
        ),
        (
            "SELECT * FROM memory_retrieval_failures \
             WHERE (created_at, id) >= (-1, 5) AND (created_at, id) < (9900000000, 3) \
             AND id > 19900 AND id <= 20000 ORDER BY id LIMIT 100",
            by_id,
        ),
        (
            "SELECT * FROM memory_retrieval_failures WHERE id > 19900 AND uncounted IS NOT NULL \
             AND created_at + 0 >= 0 AND created_at + 0 < 99999999999",
            "memory_retrieval_failures_uncounted",
        ),
        (
            "SELECT min(created_at + 0) FROM memory_retrieval_failures WHERE id > 19900",
            by_id,
        ),
        (
            "SELECT min(created_at) FROM memory_retrieval_failures",
            by_time,
        ),
        (
            "SELECT event_id FROM memory_retrieval_failures WHERE created_at >= -1 \
             AND created_at < 3000000 AND id <= 19900 ORDER BY created_at, id LIMIT 500",
            by_time,
        ),
        (
            "SELECT started_at, strategy, outcome, attempts, unobserved \
             FROM memory_retrieval_attempts \
             WHERE resolution = 60 AND started_at >= 60000000 AND started_at < 90000000",
            "memory_retrieval_attempts_counts",
        ),
    ] {
        let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN {sql}"))
            .load(&mut conn)
            .unwrap();
        let plan: Vec<String> = steps.into_iter().map(|step| step.step).collect();
        let uses = |step: &String| step.contains("Index") && step.contains(&format!("{index} "));
        assert!(plan.iter().any(uses), "{sql}: {plan:#?}");
        let scans = |step: &String| step.contains("Seq Scan on memory_retrieval_failures");
        assert!(!plan.iter().any(scans), "{sql}: {plan:#?}");
    }
}

/// Runs `fault` while two loggers write, and checks that each record is stored and counted once.
fn each_record_survives(database: &TestDatabase, fault: impl FnMut()) {
    each_record_survives_by(database, &database.url, fault);
}

/// As [`each_record_survives`], with loggers that connect to `url`.
fn each_record_survives_by(database: &TestDatabase, url: &str, mut fault: impl FnMut()) {
    let config = || {
        LoggerConfig::new(url)
            .buffer_capacity(1 << 20)
            .flush_interval(Duration::from_millis(5))
            .backoff(Duration::from_millis(10), Duration::from_millis(200))
    };
    let loggers = [(); 2].map(|()| FailureLogger::spawn(config()).unwrap());
    let is_over = AtomicBool::new(false);
    let logged: u64 = std::thread::scope(|scope| {
        let senders: Vec<_> = loggers
            .iter()
            .map(|logger| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut logged = 0;
                    while !is_over.load(Ordering::Acquire) {
                        let record =
                            RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "q");
                        assert!(matches!(logger.log(record), LogOutcome::Queued));
                        logged += 1;
                        // About the rate of a busy service: the test is of faults, not of load.
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    logged
                })
            })
            .collect();
        fault();
        is_over.store(true, Ordering::Release);
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .sum()
    });
    let mut persisted = 0;
    for logger in loggers {
        while block_on(logger.flush()).is_err() {}
        let stats = block_on(logger.shutdown()).unwrap().stats;
        assert!(stats.is_balanced(), "{stats}");
        assert_eq!(stats.dropped.total(), 0, "{stats}");
        persisted += stats.persisted;
    }
    assert_eq!(persisted, logged);
    let rows = number(database, "(SELECT count(*) FROM memory_retrieval_failures)");
    assert_eq!(u64::try_from(rows), Ok(logged), "stored once");
    let mut store = node(database).open().unwrap();
    while store.roll_up(Some(Owner::default())).unwrap() == Progress::More {}
    let (rolled_up, rest) = counted(&node(database).reads());
    assert_eq!(rolled_up + rest, logged, "counted once");
}

#[test]
#[ignore = "starts and stops a server of PostgreSQL"]
fn crashes_of_the_server_lose_and_double_nothing() {
    let database = TestDatabase::of_its_own();
    let crashes = std::env::var("TEST_CRASHES").map_or(20, |text| text.parse().unwrap());
    each_record_survives(&database, || {
        for _ in 0..crashes {
            database.crash_and_restart();
        }
    });
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn connections_that_end_at_random_lose_and_double_nothing() {
    let database = TestDatabase::of_its_own();
    let mut conn = database.connect();
    each_record_survives(&database, || {
        for _ in 0..500 {
            conn.batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = 'failure-logger' AND random() < 0.5",
            )
            .unwrap();
        }
    });
}

#[test]
#[ignore = "needs PostgreSQL's programs and pgbouncer"]
fn pooler_in_transaction_mode_loses_and_doubles_nothing() {
    let database = TestDatabase::of_its_own();
    let pooler = database
        .pooler()
        .expect("no pgbouncer; install Debian's package pgbouncer");
    let mut conn = database.connect();
    each_record_survives_by(&database, &pooler.url, || {
        for _ in 0..100 {
            conn.batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE usename = 'test' AND pid <> pg_backend_pid() AND random() < 0.2; \
                 SELECT pg_sleep(0.01)",
            )
            .unwrap();
        }
    });
    let reads = store::backend(&Location::Postgres(pooler.url.clone().into()), 4, false).reads();
    assert_eq!(counted(&reads), counted(&node(&database).reads()));
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn limits_of_the_server_lose_and_double_nothing() {
    let database = TestDatabase::of_its_own();
    let mut conn = database.connect();
    // For sessions that begin later. A node has limits of its own for each transaction, and reopens
    // a session that ended.
    for limit in [
        "statement_timeout = 1",
        "lock_timeout = 1",
        "idle_in_transaction_session_timeout = 1",
        "idle_session_timeout = 20",
    ] {
        let sql = format!("ALTER DATABASE postgres SET {limit}");
        conn.batch_execute(&sql).unwrap();
    }
    each_record_survives(&database, || {
        conn.batch_execute("SELECT pg_sleep(1); ALTER DATABASE postgres RESET ALL")
            .unwrap();
    });
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn locked_table_makes_records_wait() {
    let database = TestDatabase::of_its_own();
    let mut conn = database.connect();
    each_record_survives(&database, || {
        for table in ["failures", "log", "attempts_recent", "rollup"] {
            conn.batch_execute(&format!(
                "BEGIN; LOCK TABLE memory_retrieval_{table} IN ACCESS EXCLUSIVE MODE; \
                 SELECT pg_sleep(0.2); COMMIT"
            ))
            .unwrap();
        }
    });
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn transaction_that_the_server_ends_is_retried_and_not_split() {
    let database = TestDatabase::new();
    let mut store = node(&database).open().unwrap();
    let mut conn = database.connect();
    for (code, message) in [
        ("40001", "any words"),
        ("40P01", "deadlock detected"),
        (
            "57P01",
            "terminating connection due to administrator command",
        ),
        ("53100", "could not extend file: No space left on device"),
    ] {
        conn.batch_execute(&format!(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER fail BEFORE INSERT ON memory_retrieval_failures \
             FOR EACH ROW EXECUTE FUNCTION fail()"
        ))
        .unwrap();
        let gate = CommitGate::default();
        let failed = store.insert(&[row("q")], &AttemptBatch::default(), &gate);
        assert!(matches!(failed, Err(StoreError::Retry(_))), "{code}");
        drop(failed);
        conn.batch_execute("DROP FUNCTION fail CASCADE").unwrap();
        insert(&mut *store, &[row("q")]);
    }
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn read_only_server_makes_records_wait() {
    let database = TestDatabase::of_its_own();
    let set = |value: &str| {
        let mut conn = database.connect();
        for sql in [
            &format!("ALTER SYSTEM SET default_transaction_read_only = {value}"),
            "SELECT pg_reload_conf()",
        ] {
            conn.batch_execute(sql).unwrap();
        }
    };
    each_record_survives(&database, || {
        set("on");
        // Ends the connections that began before.
        database.crash_and_restart();
        set("off");
    });
}
