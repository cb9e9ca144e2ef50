//! Reads a database that another process may write: failing queries, and a threshold that fits.
//! `cargo run --example report -- failures.db semantic`
use std::{error::Error, time::Duration};

use failure_logger::{FailureReader, TimeRange, report::QueryFilter};

/// Share of the attempts that may fail at the suggested threshold.
const GOAL: f64 = 0.05;

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("expected a database file")?;
    let strategy = arguments.next().ok_or("expected a strategy")?;

    // A reader needs no logger, and never blocks one that runs in another process.
    let reader = FailureReader::open(path);
    let month = TimeRange::last(Duration::from_secs(30 * 24 * 60 * 60));
    let top = reader.top_queries(month, QueryFilter::default(), 5).await?;
    println!("failures  query");
    for group in top.groups {
        // A group joins similar queries. The example is its most frequent one.
        println!("{:>8}  {}", group.count, group.example);
    }

    let calibration = reader.calibration(strategy, month).await?;
    println!("{} attempts", calibration.attempts);
    // Errors and empty results fail at any threshold, so a goal may be out of reach.
    match calibration.threshold_for(GOAL) {
        Some(threshold) => println!("at threshold {threshold:.3}, {GOAL} of them fail at most"),
        None => println!("more than {GOAL} of them fail at any threshold"),
    }
    Ok(())
}
