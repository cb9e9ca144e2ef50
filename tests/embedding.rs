//! The handle works on every runtime, and without one.

mod common;

use std::time::Duration;

use common::{TestDb, block_on, no_hit, spawn};
use failure_logger::LoggerHandle;

async fn use_it(logger: &LoggerHandle) {
    logger.log(no_hit(1));
    logger.flush().await.unwrap();
    logger.log(no_hit(2));
    let report = logger.shutdown().await.unwrap();
    assert_eq!((report.stats.persisted, report.unsaved), (2, 0));
    assert!(report.stats.is_balanced());
}

#[actix_web::test]
async fn from_actix_web() {
    let db = TestDb::new();
    use_it(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[actix::test]
async fn from_actix() {
    let db = TestDb::new();
    use_it(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test]
async fn from_tokio_on_one_thread() {
    let db = TestDb::new();
    use_it(&db.spawn()).await;
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_tokio_on_several_threads_and_in_spawned_tasks() {
    let db = TestDb::new();
    let logger = db.spawn();
    let clone = logger.clone();
    tokio::spawn(async move { use_it(&clone).await }).await.unwrap();
    assert_eq!(db.turns(), [1, 2]);
}

#[test]
fn from_a_plain_thread() {
    let db = TestDb::new();
    let logger = db.spawn();
    std::thread::scope(|scope| scope.spawn(|| block_on(use_it(&logger))).join().unwrap());
    assert_eq!(db.turns(), [1, 2]);
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_on_a_runtime_and_saves_what_it_has() {
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
fn two_loggers_share_one_file() {
    let db = TestDb::new();
    std::thread::scope(|scope| {
        for sender in 0..4 {
            let db = &db;
            scope.spawn(move || {
                let logger = db.spawn();
                for turn in 0..500 {
                    logger.log(no_hit(sender * 1000 + turn));
                }
                assert_eq!(block_on(logger.shutdown()).unwrap().stats.persisted, 500);
            });
        }
    });
    assert_eq!(db.rows(), 2000);
}
