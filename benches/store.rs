//! Time of the two main jobs of the writer: a flush and a purge.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use failure_logger::{FailureLogger, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType};
use futures_executor::block_on;

/// Flush interval that no run reaches, so that the timer never interferes.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// Number of rows that a purge deletes. One chunk of a purge is a small part of them.
const OLD_ROWS: u64 = 100_000;

/// Returns a record of ordinary length.
fn record() -> RetrievalFailureRecord {
    RetrievalFailureRecord::new(
        RetrievalFailureType::LowConfidence,
        "semantic",
        "how do I configure the retention window of the vector store for my tenant",
    )
}

/// Measures a flush by its number of rows: the commit has a fixed cost that large batches share.
fn flush(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let db = folder.path().join("flush.db");
    // No batch becomes complete, so that only the request below flushes.
    let config = LoggerConfig::new(db.to_str().expect("UTF-8"))
        .batch_size(8192)
        .flush_interval(NEVER);
    let logger = FailureLogger::spawn(config).expect("spawn");
    let mut group = c.benchmark_group("flush");
    for rows in [1, 64, 256, 1024] {
        group.throughput(Throughput::Elements(rows));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    for _ in 0..rows {
                        logger.log(record());
                    }
                    let start = Instant::now();
                    block_on(logger.flush()).expect("flush");
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

/// Measures a purge from a database of its own each time, because a purge leaves nothing to repeat.
fn purge(c: &mut Criterion) {
    let mut group = c.benchmark_group("purge");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(OLD_ROWS));
    group.bench_function(BenchmarkId::from_parameter(OLD_ROWS), |b| {
        b.iter_custom(|iterations| (0..iterations).map(|_| purge_once()).sum());
    });
    group.finish();
}

/// Returns the time from the start of a logger until all old rows are deleted. The first row is
/// young and stays.
fn purge_once() -> Duration {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let db = folder.path().join("purge.db");
    let db = db.to_str().expect("UTF-8");
    let config = || LoggerConfig::new(db).flush_interval(NEVER);
    block_on(FailureLogger::spawn(config()).expect("spawn").shutdown()).expect("shutdown");
    let mut conn = diesel::SqliteConnection::establish(db).expect("connect");
    conn.batch_execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {OLD_ROWS})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         SELECT randomblob(16), i, 'no_hit', 'semantic', hex(randomblob(35)), 70, 0, 12,
             CASE i WHEN 0 THEN unixepoch() * 1000 ELSE i END FROM n"
    ))
    .expect("old rows");
    // The start of a logger begins a purge.
    let start = Instant::now();
    let logger = FailureLogger::spawn(config()).expect("spawn");
    while logger.stats().purged < OLD_ROWS {
        std::thread::yield_now();
    }
    start.elapsed()
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));
    targets = flush, purge
}
criterion_main!(benches);
