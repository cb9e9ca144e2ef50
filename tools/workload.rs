//! The logger under load: what a call costs, how fast records are written, how many are kept.
//!
//! Workloads, flags and output are those of the reference's driver, so that the two can be read
//! side by side (docs/performance.md).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use failure_logger::config::{DEFAULT_BATCH_SIZE, DEFAULT_BUFFER_CAPACITY};
use failure_logger::report::QueryFilter;
use failure_logger::{
    FailureFilter, FailureLogger, FailureReader, Labels, LogOutcome, LoggerConfig, LoggerHandle,
    PageRequest, RetrievalFailureRecord, RetrievalFailureType, TimeRange,
};

#[derive(Parser)]
struct Args {
    /// Database file; created if missing.
    #[arg(long)]
    db: PathBuf,
    /// Records held in memory at most.
    #[arg(long, default_value_t = DEFAULT_BUFFER_CAPACITY)]
    capacity: usize,
    /// Records that are written at once.
    #[arg(long, default_value_t = DEFAULT_BATCH_SIZE)]
    batch: usize,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// `threads` callers, `rate` calls a second in all: what one call costs the caller.
    Latency {
        #[arg(long, default_value_t = 1000)]
        rate: u64,
        #[arg(long, default_value_t = 5000)]
        n: u64,
        #[arg(long, default_value_t = 1)]
        threads: u64,
    },
    /// `threads` callers in a tight loop, buffer never full: what one call costs.
    Saturate {
        #[arg(long, default_value_t = 1)]
        threads: u64,
        #[arg(long, default_value_t = 100_000)]
        n: u64,
    },
    /// Send `n` records to the actor's mailbox, of which 200 wait at most: what one `try_send`
    /// costs.
    Send {
        #[arg(long, default_value_t = 100_000)]
        n: u64,
    },
    /// Log `n` records, then wait until all are committed: records a second.
    Drain {
        #[arg(long, default_value_t = 100_000)]
        n: u64,
    },
    /// `rate` records a second for `seconds`: how many are kept.
    Offered {
        #[arg(long, default_value_t = 50_000)]
        rate: u64,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// No records for `seconds`: what a logger costs that has nothing to do.
    Idle {
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// `rate` records a second while `rows` old rows are purged: drops, and how long a flush takes.
    Purge {
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
    },
    /// Each question to the database of `fill`, `n` times: how long the answer takes.
    Read {
        #[arg(long, default_value_t = 20)]
        n: usize,
    },
    /// `observe` around a future that is done at once, and that future alone: what it adds.
    Observe {
        #[arg(long, default_value_t = 1_000_000)]
        n: u64,
    },
    /// A full buffer of ordinary or of the largest records, with the database locked: memory.
    Full {
        #[arg(long)]
        largest: bool,
    },
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    let capacity = match args.workload {
        // Up to a million at a time: what lies beyond waits for the writer.
        Workload::Saturate { threads, n } => ((threads * n) as usize + 1).min(1 << 20),
        Workload::Drain { n } => (n as usize + 1).min(1 << 20),
        _ => args.capacity,
    };
    let db = args.db.to_str().ok_or("--db: not UTF-8")?.to_owned();
    if let Workload::Purge { rows, .. } = args.workload {
        make_old_rows(&db, rows).await?;
    }
    if let Workload::Read { n } = args.workload {
        return read(&db, n).await;
    }
    let logger = FailureLogger::spawn(
        LoggerConfig::new(&db)
            .buffer_capacity(capacity)
            .batch_size(args.batch),
    )?;
    match args.workload {
        Workload::Latency { rate, n, threads } => latency(&logger, rate, n, threads),
        Workload::Saturate { threads, n } => saturate(&logger, threads, n),
        Workload::Send { n } => send(&logger, n),
        Workload::Drain { n } => {
            let start = Instant::now();
            for i in 0..n {
                // Only where the buffer's limit is below `n` can it be full.
                while logger.log(record(i)) != LogOutcome::Queued {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            logger.flush().await?;
            let spent = start.elapsed();
            let rows = logger.shutdown().await?.stats.persisted;
            println!(
                "workload=drain n={n} persisted={rows} rows_per_s={:.0}",
                rows as f64 / spent.as_secs_f64()
            );
        }
        Workload::Offered { rate, seconds } => {
            // After a second, when everything has its size.
            offer(&logger, rate, 1);
            let before = resident_kib();
            offer(&logger, rate, seconds.saturating_sub(1));
            let growth = resident_kib() as f64 - before as f64;
            let stats = logger.shutdown().await?.stats;
            println!(
                "workload=offered rate={rate} seconds={seconds} sent={} persisted={} dropped={} \
                 cpu_s={:.2} resident_growth_mib={:.1}",
                stats.received,
                stats.persisted,
                stats.dropped.total(),
                cpu_seconds(),
                growth / 1024.0
            );
        }
        Workload::Idle { seconds } => {
            let before = (cpu_seconds(), database_bytes(&db));
            std::thread::sleep(Duration::from_secs(seconds));
            let cpu = (cpu_seconds() - before.0) / seconds as f64;
            println!(
                "workload=idle seconds={seconds} cpu_percent={:.3} bytes_written={}",
                cpu * 100.0,
                database_bytes(&db) - before.1
            );
        }
        Workload::Purge { rate, rows } => {
            let logger = &logger;
            let mut flushes = std::thread::scope(|scope| {
                let caller = scope.spawn(move || {
                    while logger.stats().purged < rows {
                        offer(logger, rate, 1);
                    }
                });
                // On a thread without a runtime: one that blocks would starve its own tasks.
                let flusher = scope.spawn(move || {
                    let mut flushes = Vec::new();
                    while !caller.is_finished() {
                        let start = Instant::now();
                        let done = futures_executor::block_on(logger.flush());
                        flushes.push(start.elapsed());
                        if let Err(error) = done {
                            println!("flush: {error}");
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    flushes
                });
                flusher.join().expect("flusher")
            });
            flushes.sort_unstable();
            let p = |q: f64| flushes[((flushes.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
            let stats = logger.shutdown().await?.stats;
            println!(
                "workload=purge rate={rate} purged={} sent={} persisted={} dropped={} \
                 flush_p50_ms={:.1} flush_p99_ms={:.1} flush_max_ms={:.1}",
                stats.purged,
                stats.received,
                stats.persisted,
                stats.dropped.total(),
                p(0.5),
                p(0.99),
                p(1.0)
            );
        }
        Workload::Observe { n } => observe(&logger, n),
        Workload::Read { .. } => {}
        Workload::Full { largest } => {
            let _lock = diesel_lock(&db)?;
            let before = resident_kib();
            let mut held = 0_u64;
            while logger.log(if largest {
                largest_record()
            } else {
                record(held)
            }) == LogOutcome::Queued
            {
                held += 1;
            }
            println!(
                "workload=full largest={largest} held={held} resident_mib={:.1} \
                 of_that_records_mib={:.1}",
                resident_kib() as f64 / 1024.0,
                (resident_kib() - before) as f64 / 1024.0
            );
        }
    }
    Ok(())
}

/// The medians of five rounds of `n` calls, with and without `observe`.
fn observe(logger: &LoggerHandle, n: u64) {
    let monitor = logger.strategy("semantic").confidence_threshold(0.3);
    let retrieval = || {
        std::future::ready(Ok::<_, std::convert::Infallible>(std::hint::black_box([
            0.9_f32, 0.8,
        ])))
    };
    let per_call = |start: Instant| start.elapsed().as_secs_f64() * 1e9 / n as f64;
    let (mut bare, mut observed) = (vec![], vec![]);
    for _ in 0..5 {
        futures_executor::block_on(async {
            let start = Instant::now();
            for _ in 0..n {
                let _ = std::hint::black_box(retrieval().await);
            }
            bare.push(per_call(start));
            let start = Instant::now();
            for _ in 0..n {
                let _ =
                    std::hint::black_box(monitor.observe("where is the key?", retrieval()).await);
            }
            observed.push(per_call(start));
        });
    }
    bare.sort_by(f64::total_cmp);
    observed.sort_by(f64::total_cmp);
    println!(
        "workload=observe n={n} bare_ns={:.1} observed_ns={:.1}",
        bare[2], observed[2]
    );
}

/// Measures each read over the last 30 days. Also measures reads over a shorter time if their
/// duration depends on the number of failures.
async fn read(db: &str, n: usize) -> Result<(), Box<dyn std::error::Error>> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let reader = FailureReader::open(db).timeout(Duration::from_secs(60));
    let month = TimeRange::last(30 * DAY);
    macro_rules! time {
        ($name:literal, $question:expr) => {{
            let mut spent = Vec::with_capacity(n);
            for _ in 0..n {
                let start = Instant::now();
                $question.await?;
                spent.push(start.elapsed().as_secs_f64() * 1e3);
            }
            spent.sort_by(f64::total_cmp);
            println!(
                "workload=read question={} p50_ms={:.2} max_ms={:.2}",
                $name,
                spent[n / 2],
                spent[n - 1]
            );
        }};
    }
    time!("summary", reader.summary(month));
    time!("timeseries", reader.timeseries(month, Vec::new()));
    time!("calibration", reader.calibration("semantic", month));
    time!("summary_of_a_day", reader.summary(TimeRange::last(DAY)));
    time!(
        "timeseries_of_a_day",
        reader.timeseries(TimeRange::last(DAY), Vec::new())
    );
    time!(
        "list_newest",
        reader.list(FailureFilter::default(), PageRequest::newest(50))
    );
    // The page that lies after a share of all failures.
    for share in [0.5, 0.99] {
        let before = std::time::SystemTime::now() - (30 * DAY).mul_f64(share);
        let deep = FailureFilter {
            range: Some(TimeRange::between(
                std::time::SystemTime::UNIX_EPOCH,
                before,
            )?),
            ..FailureFilter::default()
        };
        time!(
            "list_deep",
            reader.list(deep.clone(), PageRequest::newest(50))
        );
    }
    let some = || FailureFilter {
        retrieval_strategy: vec!["graph".into()],
        ..FailureFilter::default()
    };
    time!(
        "list_filtered",
        reader.list(some(), PageRequest::newest(50))
    );
    // About 100,000 failures.
    let failures = reader.summary(month).await?.total.failures.max(1);
    let part = TimeRange::last((30 * DAY).mul_f64((100_000.0 / failures as f64).min(1.0)));
    let before = resident_kib();
    let top = reader.top_queries(part, QueryFilter::default(), 50).await?;
    println!(
        "workload=read top_queries_failures={} groups={}",
        top.scanned.failures,
        top.groups.len()
    );
    time!(
        "top_queries",
        reader.top_queries(part, QueryFilter::default(), 50)
    );
    time!("conversations", reader.conversations(part, 50));
    println!(
        "workload=read top_queries_growth_mib={:.1}",
        (resident_kib() as f64 - before as f64) / 1024.0
    );
    Ok(())
}

fn latency(logger: &LoggerHandle, rate: u64, n: u64, threads: u64) {
    let caller = || {
        let gap = Duration::from_nanos(1_000_000_000 * threads / rate);
        let mut next = Instant::now();
        let mut nanos = Vec::with_capacity((n / threads) as usize);
        for i in 0..n / threads {
            let record = record(i);
            next += gap;
            if let Some(wait) = next.checked_duration_since(Instant::now()) {
                // Sleeping takes at least some 50 microseconds: shorter waits are spun.
                if wait > Duration::from_micros(200) {
                    std::thread::sleep(wait);
                }
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
            }
            let start = Instant::now();
            logger.log(record);
            nanos.push(start.elapsed().as_nanos() as u64);
        }
        nanos
    };
    let mut nanos: Vec<u64> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..threads).map(|_| scope.spawn(caller)).collect();
        callers
            .into_iter()
            .flat_map(|caller| caller.join().expect("caller"))
            .collect()
    });
    nanos.sort_unstable();
    let p = |q: f64| nanos[((nanos.len() - 1) as f64 * q) as usize];
    println!(
        "workload=latency rate={rate} n={n} p50_ns={} p99_ns={} p999_ns={} max_ns={}",
        p(0.5),
        p(0.99),
        p(0.999),
        p(1.0)
    );
}

fn saturate(logger: &LoggerHandle, threads: u64, n: u64) {
    let records: Vec<Vec<_>> = (0..threads).map(|_| (0..n).map(record).collect()).collect();
    let spent: Duration = std::thread::scope(|scope| {
        let caller = |records: Vec<_>| {
            let start = Instant::now();
            for record in records {
                logger.log(record);
            }
            start.elapsed()
        };
        let callers: Vec<_> = records
            .into_iter()
            .map(|records| scope.spawn(move || caller(records)))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().expect("caller"))
            .sum()
    });
    println!(
        "workload=saturate threads={threads} n={n} mean_ns={:.0} dropped={}",
        spent.as_nanos() as f64 / (threads * n) as f64,
        logger.stats().dropped.total()
    );
}

fn send(logger: &LoggerHandle, n: u64) {
    let mut spent = Duration::ZERO;
    for first in (0..n).step_by(200) {
        let records: Vec<_> = (first..n.min(first + 200)).map(record).collect();
        let sent = records.len() as u64;
        let start = Instant::now();
        for record in records {
            assert!(logger.addr().try_send(record).is_ok(), "there is room");
        }
        spent += start.elapsed();
        while logger.stats().received < first + sent {
            std::thread::yield_now();
        }
        // Nor in the buffer.
        while logger.stats().buffered > 1000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    println!(
        "workload=send n={n} mean_ns={:.0}",
        spent.as_nanos() as f64 / n as f64
    );
}

fn offer(logger: &LoggerHandle, rate: u64, seconds: u64) {
    let start = Instant::now();
    for i in 0..rate * seconds {
        let due = Duration::from_secs_f64(i as f64 / rate as f64);
        if i % 64 == 0 && start.elapsed() < due {
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        logger.log(record(i));
    }
}

fn record(i: u64) -> RetrievalFailureRecord {
    RetrievalFailureRecord {
        conversation_id: None,
        turn_index: i as i64,
        failure_type: if i.is_multiple_of(3) {
            RetrievalFailureType::NoHit
        } else {
            RetrievalFailureType::LowConfidence
        },
        retrieval_strategy: "semantic".into(),
        query_text: "how do I configure the retention window of the vector store for my tenant"
            .into(),
        query_len: 73,
        top_score: Some(0.21),
        confidence_threshold: Some(0.3),
        result_count: 3,
        latency_ms: 12,
        edge_types: None,
        error_context: None,
        source: None,
        labels: Labels::default(),
    }
}

fn largest_record() -> RetrievalFailureRecord {
    let text = "🦀".repeat(2048);
    let mut record = RetrievalFailureRecord::new(RetrievalFailureType::Error, text.as_str(), &text);
    record.conversation_id = Some(text.as_str().into());
    record.edge_types = Some(text.as_str().into());
    record.error_context = Some(text.as_str().into());
    record
}

/// Time that the threads of this process have run so far.
fn cpu_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let nanos = threads.filter_map(|thread| {
        let schedstat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanos.sum::<f64>() / 1e9
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap_or_default()
}

fn database_bytes(db: &str) -> u64 {
    ["", "-wal"]
        .iter()
        .filter_map(|suffix| std::fs::metadata(format!("{db}{suffix}")).ok())
        .map(|file| file.len())
        .sum()
}

/// A database with `rows` rows that are a year old.
async fn make_old_rows(db: &str, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    use diesel::Connection as _;
    use diesel::connection::SimpleConnection as _;
    FailureLogger::spawn(LoggerConfig::new(db))?
        .shutdown()
        .await?;
    let mut conn = diesel::SqliteConnection::establish(db)?;
    conn.batch_execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, top_score, confidence_threshold, result_count, latency_ms, created_at)
         SELECT CAST(printf('%016d', i) AS BLOB), i, 'no_hit', 'semantic',
             'how do I configure the retention window of the vector store for my tenant', 73, 0.21, 0.3, 3, 12,
             unixepoch() * 1000 - 365 * 86400000 + i FROM n;
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         VALUES (randomblob(16), 0, 'no_hit', 'semantic', 'new', 3, 0, 1, unixepoch() * 1000)"
    ))?;
    Ok(())
}

/// Holds the write lock while it lives.
fn diesel_lock(db: &str) -> Result<diesel::SqliteConnection, Box<dyn std::error::Error>> {
    use diesel::Connection as _;
    use diesel::connection::SimpleConnection as _;
    let mut conn = diesel::SqliteConnection::establish(db)?;
    conn.batch_execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE")?;
    Ok(conn)
}
