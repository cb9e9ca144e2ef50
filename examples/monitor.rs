//! Watches a retrieval with a monitor, which judges each result, and prints the failure rate.
//! `cargo run --example monitor`
use std::{error::Error, io, time::Duration};

use failure_logger::{FailureLogger, LoggerConfig, TimeRange};

/// The application's own search: documents with their scores, best first.
async fn search(query: &str) -> io::Result<Vec<(&'static str, f32)>> {
    match query {
        "key" => Ok(vec![("key.txt", 0.8)]),
        "lock" => Ok(vec![("key.txt", 0.1)]),
        "slow" => std::future::pending().await,
        _ => Ok(vec![]),
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
    // Below the threshold, the best result counts as `low_confidence`. A search that exceeds the
    // timeout is cancelled, so that one slow index cannot delay the user for longer.
    let semantic = logger
        .strategy("semantic")
        .confidence_threshold(0.3)
        .timeout(Duration::from_millis(100));
    for query in ["key", "lock", "slow", "moon"] {
        match semantic.observe(query, search(query)).await {
            Ok(hits) => println!("{query}: {} results", hits.len()),
            Err(error) => println!("{query}: {error}"),
        }
    }

    logger.flush().await?;
    let hour = TimeRange::last(Duration::from_secs(60 * 60));
    let total = logger.reader().summary(hour).await?.total;
    let percent = 100.0 * total.failure_rate.unwrap_or(0.0);
    println!("{percent} % of {} attempts failed", total.attempts);
    logger.shutdown().await?;
    Ok(())
}
