//! Makes a large database, to see how fast questions are answered: some strategies, failures and
//! successes spread over the last days, questions that repeat.

use std::time::{Duration, SystemTime};

use clap::Parser;
use failure_logger::{FailureLogger, LoggerConfig, Outcome, RetrievalFailureType, StrategyMonitor};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Parser)]
struct Args {
    /// Database file; created if missing.
    #[arg(long)]
    db: String,
    /// Failures to log.
    #[arg(long, default_value_t = 10_000_000)]
    failures: u64,
    /// Successes beside each failure.
    #[arg(long, default_value_t = 4)]
    successes: u64,
    /// Days over which they are spread, up to now.
    #[arg(long, default_value_t = 30)]
    days: u64,
}

const BUFFER: usize = 1 << 16;
/// Failures between two looks at the buffer.
const STEP: u64 = 4096;
/// Minutes between two flushes: the logger holds a few thousand counts in memory, and gives up
/// resolution beyond that.
const MINUTES_PER_FLUSH: u64 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    // What is old is not to be purged while it is being made.
    let config = LoggerConfig::new(&args.db)
        .buffer_capacity(BUFFER)
        .retention_days(0);
    let logger = FailureLogger::spawn(config)?;
    let monitors = ["semantic", "bm25", "graph", "hybrid"]
        .map(|name| logger.strategy(name).confidence_threshold(0.35));
    let bar = ProgressBar::new(args.failures);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} failures, {per_sec}, {eta} left",
    )?);

    let span = Duration::from_secs(args.days * 24 * 60 * 60);
    let begin = SystemTime::now() - span;
    let mut random = Random(42);
    let failures_per_flush = (args.failures * MINUTES_PER_FLUSH / (args.days * 24 * 60)).max(1);
    for nth in 0..args.failures {
        let at = begin + span.mul_f64(nth as f64 / args.failures as f64);
        let monitor = &monitors[random.below(4) as usize];
        fail(monitor, at, &mut random);
        for _ in 0..args.successes {
            let latency = Duration::from_micros(2000 + random.below(30_000));
            monitor.record(
                Outcome::success(latency)
                    .top_score(0.35 + random.share() * 0.6)
                    .at(at),
            );
        }
        if nth % failures_per_flush == 0 {
            logger.flush().await?;
        }
        if nth % STEP == 0 {
            bar.set_position(nth);
            // Nothing is to be dropped.
            while logger.stats().buffered as usize > BUFFER - 2 * STEP as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    bar.set_position(args.failures);
    let stats = logger.shutdown().await?.stats;
    bar.finish();
    println!("{stats}; {} attempts", stats.attempts_persisted);
    Ok(())
}

fn fail(monitor: &StrategyMonitor, at: SystemTime, random: &mut Random) {
    let latency = Duration::from_micros(2000 + random.below(50_000));
    let query = question(random);
    let outcome = match random.below(10) {
        0..4 => Outcome::failure(RetrievalFailureType::NoHit, &query, latency),
        4..8 => Outcome::failure(RetrievalFailureType::LowConfidence, &query, latency)
            .top_score(random.share() * 0.35)
            .result_count(3),
        8 => Outcome::failure(
            RetrievalFailureType::Timeout,
            &query,
            Duration::from_millis(500),
        ),
        _ => Outcome::failure(RetrievalFailureType::Error, &query, latency)
            .error(&"connection refused"),
    };
    monitor.record(outcome.at(at));
}

/// One of some hundred thousand, some far more often than others.
fn question(random: &mut Random) -> String {
    const ASKED: [&str; 5] = [
        "how do i configure",
        "where is",
        "what is the limit of",
        "why does",
        "who owns",
    ];
    // The product of two shares favours the small numbers.
    let often =
        |random: &mut Random, among: u64| (random.share() * random.share() * among as f32) as u64;
    let asked = ASKED[often(random, 5) as usize];
    format!(
        "{asked} the feature {} of product {} for tenant {}",
        often(random, 300),
        often(random, 40),
        often(random, 50)
    )
}

/// Numbers that are random enough, and the same each time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// 0 to 1.
    fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}
