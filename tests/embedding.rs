//! The handle works on every runtime, and without one.

mod common;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{TestDb, block_on, no_hit, spawn};
use failure_logger::LoggerHandle;

async fn log_two_records(logger: &LoggerHandle) {
    logger.log(no_hit(1));
    logger.flush().await.unwrap();
    logger.log(no_hit(2));
    let report = logger.shutdown().await.unwrap();
    assert_eq!((report.stats.persisted, report.unsaved), (2, 0));
    assert!(report.stats.is_balanced());
}

#[actix_web::test]
async fn records_logged_in_actix_web_are_stored() {
    let db = TestDb::new();
    log_two_records(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[actix::test]
async fn records_logged_in_actix_are_stored() {
    let db = TestDb::new();
    log_two_records(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test]
async fn records_logged_in_tokio_on_one_thread_are_stored() {
    let db = TestDb::new();
    log_two_records(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_logged_in_spawned_tokio_tasks_are_stored() {
    let db = TestDb::new();
    let logger = db.spawn();
    let clone = logger.clone();
    tokio::spawn(async move { log_two_records(&clone).await })
        .await
        .unwrap();
    assert_eq!(db.turns(), [1, 2]);
}

#[test]
fn records_logged_on_a_plain_thread_are_stored() {
    let db = TestDb::new();
    let logger = db.spawn();
    std::thread::scope(|scope| {
        scope
            .spawn(|| block_on(log_two_records(&logger)))
            .join()
            .unwrap()
    });
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test]
async fn last_handle_dropped_on_a_runtime_commits_the_buffer() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    for turn in 0..100 {
        logger.log(no_hit(turn));
    }
    drop(logger.clone());
    assert_eq!(db.rows(), 0, "only the last handle drains");
    drop(logger);
    assert_eq!(db.rows(), 100);
}

#[test]
fn handle_is_formatted_with_its_counters() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(1));
    block_on(logger.shutdown()).unwrap();
    let text = format!("{logger:?}");
    assert!(
        text.starts_with("LoggerHandle") && text.contains("received: 1, persisted: 1"),
        "{text}"
    );
}

#[test]
fn two_loggers_in_one_process_do_not_mix() {
    let (left, right) = (TestDb::new(), TestDb::new());
    let loggers = [left.spawn(), right.spawn()];
    for (logger, turn) in loggers.iter().zip(1..) {
        logger.log(no_hit(turn));
        block_on(logger.shutdown()).unwrap();
    }
    assert_eq!((left.turns(), right.turns()), (vec![1], vec![2]));
}

#[test]
fn loggers_and_an_application_share_one_file() {
    const RECORDS: i64 = 500;
    let db = TestDb::new();
    db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)");
    let acknowledged = [const { AtomicI64::new(0) }; 4];
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..)
            .zip(&acknowledged)
            .map(|(sender, acknowledged)| {
                let db = &db;
                scope.spawn(move || {
                    let logger = db.spawn();
                    for turn in 0..RECORDS {
                        logger.log(no_hit(sender * 1000 + turn));
                        if turn % 50 == 49 {
                            block_on(logger.flush()).unwrap();
                            acknowledged.store(turn + 1, Ordering::Release);
                        }
                    }
                    assert_eq!(
                        block_on(logger.shutdown()).unwrap().stats.persisted,
                        RECORDS as u64
                    );
                })
            })
            .collect();
        // This connection opens the file, counts, commits and closes it: before, between and after
        // all commits of the loggers.
        let mut orders = 0;
        loop {
            let ended = senders
                .iter()
                .all(std::thread::ScopedJoinHandle::is_finished);
            let flushed: Vec<_> = acknowledged
                .iter()
                .map(|turns| turns.load(Ordering::Acquire))
                .collect();
            for (sender, turns) in flushed.iter().enumerate() {
                let of_sender = format!(
                    "SELECT count(*) FROM memory_retrieval_failures WHERE turn_index / 1000 = \
                     {sender}"
                );
                // The first logger may be about to create the table.
                assert!(
                    *turns == 0 || db.integer(&of_sender) >= *turns,
                    "sender {sender}: {turns} acknowledged"
                );
            }
            db.execute(&format!("INSERT INTO orders VALUES ({orders})"));
            orders += 1;
            assert_eq!(db.integer("SELECT count(*) FROM orders"), orders);
            if ended {
                break;
            }
        }
    });
    let mut turns = db.turns();
    turns.sort_unstable();
    assert_eq!(
        turns,
        (0..4)
            .flat_map(|sender| (0..RECORDS).map(move |turn| sender * 1000 + turn))
            .collect::<Vec<_>>()
    );
}
