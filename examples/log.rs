//! Embeds the logger: starts it, logs a failed retrieval, reads a summary and shuts it down.
//! `cargo run --example log`
use std::{error::Error, time::Duration};

use failure_logger::{
    FailureLogger, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType, TimeRange,
};

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("failures.db").display().to_string();

    // Creates the database. The logger runs on a thread of its own, with any async runtime.
    let logger = FailureLogger::spawn(LoggerConfig::new(&path))?;

    // The call only queues the record. It never waits for the disk, so any code path may log.
    let outcome = logger.log(RetrievalFailureRecord {
        conversation_id: Some("chat-42".into()),
        latency_ms: 12,
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "bm25", "where is the key?")
    });
    println!("log: {outcome:?}");

    // A flush commits the record now. Without it, the read below could come before the commit.
    logger.flush().await?;
    let hour = TimeRange::last(Duration::from_secs(60 * 60));
    let summary = logger.reader().summary(hour).await?;
    for strategy in summary.strategies {
        let (name, rates) = (strategy.retrieval_strategy, strategy.rates);
        println!("{name}: {} failures", rates.failures);
    }

    // The shutdown commits what is buffered. Its report accounts for each received record.
    println!("{}", logger.shutdown().await?.stats);
    Ok(())
}
