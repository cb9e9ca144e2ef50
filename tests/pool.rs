//! Writer, readers and checkpoints share the connections of one pool.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{TestDb, block_on, no_hit};
use failure_logger::{FailureLogger, LogOutcome, PageRequest, RetrievalFailureRecord};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A record that fills about a fifth of a page.
fn large(turn: i64) -> RetrievalFailureRecord {
    RetrievalFailureRecord { query_text: "q".repeat(512).into(), ..no_hit(turn) }
}

/// Descriptors of the database file that this process has open: one for each connection.
#[cfg(target_os = "linux")]
fn connections(db: &TestDb) -> usize {
    let path = db.path();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|file| file == path)).count()
}

#[cfg(target_os = "linux")]
#[test]
fn no_more_connections_than_the_pool_has_are_open_under_load() {
    const RECORDS: i64 = 20_000;
    for size in [1, 2, 4] {
        let db = TestDb::new();
        let logger = FailureLogger::spawn(db.config().pool_size(size)).unwrap();
        let over = AtomicBool::new(false);
        let (queries, most) = std::thread::scope(|scope| {
            let readers = [(); 8].map(|()| {
                scope.spawn(|| {
                    let reader = logger.reader().timeout(NEVER);
                    let mut queries = 0;
                    while !over.load(Ordering::Acquire) {
                        block_on(reader.list(Default::default(), PageRequest::newest(10))).unwrap();
                        queries += 1;
                    }
                    queries
                })
            });
            let counter = scope.spawn(|| {
                let mut most = 0;
                while !over.load(Ordering::Acquire) {
                    most = most.max(connections(&db));
                }
                most
            });
            for turn in 0..RECORDS {
                // The buffer has room again when the writer had its turn.
                while logger.stats().buffered >= 8000 {
                    std::thread::yield_now();
                }
                assert_eq!(logger.log(large(turn)), LogOutcome::Queued);
            }
            block_on(logger.flush()).unwrap();
            over.store(true, Ordering::Release);
            (readers.map(|reader| reader.join().unwrap()).iter().sum::<u64>(), counter.join().unwrap())
        });
        assert!((1..=size as usize).contains(&most), "{most} connections in a pool of {size}");
        assert!(queries >= 8, "{queries}");
        let stats = block_on(logger.shutdown()).unwrap().stats;
        assert!(stats.is_balanced() && stats.dropped.total() == 0, "{stats:?}");
        assert_eq!(connections(&db), 0, "all are closed");
        assert!(!db.path().with_extension("db-wal").exists());
        assert_eq!(db.rows(), RECORDS);
    }
}
