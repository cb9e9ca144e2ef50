//! Latency of a call for its caller: a log with a free or a full buffer, and the cut of long texts.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use failure_logger::{
    BoundedText, FailureLogger, LoggerConfig, LoggerHandle, RetrievalFailureRecord,
    RetrievalFailureType,
};

/// Returns a record of ordinary length.
fn record() -> RetrievalFailureRecord {
    RetrievalFailureRecord::new(
        RetrievalFailureType::LowConfidence,
        "semantic",
        "how do I configure the retention window of the vector store for my tenant",
    )
}

/// Measures the three ways in which a call ends: the record is queued, dropped, or not even looked
/// at.
fn log(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = |name: &str| LoggerConfig::new(folder.path().join(name).to_str().expect("UTF-8"));

    let free = FailureLogger::spawn(config("free.db").buffer_capacity(1 << 20)).expect("spawn");
    let full =
        FailureLogger::spawn(config("full.db").buffer_capacity(1).batch_size(1)).expect("spawn");
    let lock = lock(folder.path().join("full.db").to_str().expect("UTF-8"));
    full.log(record());
    let disabled = LoggerHandle::disabled();

    let mut group = c.benchmark_group("log");
    // The buffer holds a batch, and the writer empties it between two batches. A tight loop would
    // measure a full buffer.
    group.bench_function("free buffer", |b| {
        b.iter_batched(
            || (0..1000).map(|_| record()).collect::<Vec<_>>(),
            |all| {
                for record in all {
                    free.log(record);
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("full buffer", |b| {
        b.iter_batched(record, |record| full.log(record), BatchSize::SmallInput)
    });
    group.bench_function("disabled", |b| {
        b.iter_batched(record, |record| disabled.log(record), BatchSize::SmallInput)
    });
    group.finish();
    drop(lock);
}

/// Returns a connection that holds the write lock until it is dropped, so that the buffer stays
/// full.
fn lock(db: &str) -> diesel::SqliteConnection {
    use diesel::Connection as _;
    use diesel::connection::SimpleConnection as _;
    let mut conn = diesel::SqliteConnection::establish(db).expect("connect");
    conn.batch_execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE")
        .expect("lock");
    conn
}

/// Measures the cut of a text by its number of characters, which depends on their length in bytes.
fn bounded_text(c: &mut Criterion) {
    let mut group = c.benchmark_group("BoundedText<512>");
    for (name, text) in [
        (
            "short",
            "how do I configure the retention window?".to_owned(),
        ),
        ("1 MB", "x".repeat(1 << 20)),
        ("four-byte characters that fit", "🦀".repeat(400)),
        ("four-byte characters, cut", "🦀".repeat(1000)),
    ] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || text.clone(),
                |text| BoundedText::<512>::from(black_box(text)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = log, bounded_text
}
criterion_main!(benches);
